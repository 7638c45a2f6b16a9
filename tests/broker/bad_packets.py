"""What no well-behaved client sends, as the hub pc-1 of the site berlin: before its CONNECT, and in an open session."""

from __future__ import annotations

from typing import Final

from broker import packets
from config import limits
from tests.broker import raw_mqtt as raw

SITE: Final = "hl1/acme/berlin"
HUB: Final = f"{SITE}/hub/pc-1"

BEGINNINGS: Final[tuple[tuple[bytes, str, bytes], ...]] = (
    (raw.connect("pc-1", clean=False), "clean-session", packets.CONNACK_NOT_AUTHORIZED),
    (raw.connect("pc-1", level=5), "version", packets.CONNACK_WRONG_VERSION),
    (raw.connect("pc-1", level=3), "version", packets.CONNACK_WRONG_VERSION),
    (raw.connect("pc-1", will=(f"{SITE}/hub/pc-2/state", b"x")), "will", packets.CONNACK_NOT_AUTHORIZED),
    (raw.connect("pc-1", will=(f"{HUB}/presence", b"x")), "will", packets.CONNACK_NOT_AUTHORIZED),
    (raw.connect("pc-1", will=(f"{HUB}/up/readings", b"x")), "will", packets.CONNACK_NOT_AUTHORIZED),
    (raw.connect("pc-1", will=(f"{HUB}/state", b"x" * 4097)), "will", packets.CONNACK_NOT_AUTHORIZED),
    (raw.connect("pc-1", will=(f"{HUB}/state", b"x"), flags=0x16), "will", packets.CONNACK_NOT_AUTHORIZED),
    (raw.connect("pc-1", will=("$SYS/x", b"x")), "malformed", b""),
    (raw.connect("pc-1", will=("a/#", b"x")), "malformed", b""),
    (raw.connect("pc-1", will=("", b"x")), "malformed", b""),
    (raw.connect("pc-1", will=(f"{HUB}/state", b"x"), flags=0x1E), "malformed", b""),
    (raw.connect("pc-1", flags=0x03), "malformed", b""),
    (raw.connect("pc-1", flags=0x0A), "malformed", b""),
    (raw.connect("pc-1", flags=0x22), "malformed", b""),
    (raw.connect("pc-1", flags=0x42), "malformed", b""),
    (raw.connect("pc-1", flags=0x82), "malformed", b""),
    (raw.connect("pc-1", tail=b"x"), "malformed", b""),
    (raw.connect("pc-1\0"), "malformed", b""),
    (raw.packet(0x10, raw.text(b"MQTX") + b"\4\2\0\0" + raw.text("pc-1")), "malformed", b""),
    (raw.packet(0x10, raw.text(b"MQTT") + b"\4\2\0\0" + raw.text(b"\xff\xfe")), "malformed", b""),
    (raw.packet(0x10, raw.text(b"MQTT") + b"\4\2\0\0\0\x50pc-1"), "malformed", b""),
    (raw.packet(0x10, b""), "malformed", b""),
    (raw.packet(0x11, raw.connect("pc-1")[2:]), "malformed", b""),
    (raw.connect("pc-1", tail=b"x" * 9000), "malformed", b""),
    (b"\x10\xff\xff\xff\x7f", "malformed", b""),
    (b"\x10\xff\xff\xff\xff\x01", "malformed", b""),
    (b"\x16\x03\x01", "malformed", b""),
    (b"GET / HTTP/1.1\r\n", "malformed", b""),
    (raw.publish(f"{HUB}/state", b"x"), "malformed", b""),
    (raw.subscribe(f"{HUB}/down/+"), "malformed", b""),
    (raw.PINGREQ, "malformed", b""),
    (raw.DISCONNECT, "malformed", b""),
    (b"\x00\x00", "malformed", b""),
)
"""What comes first, how the embedded engine calls it, and what it answers."""

VIOLATIONS: Final[tuple[tuple[bytes, str], ...]] = (
    (raw.publish(f"{SITE}/hub/pc-2/up/readings", b"x"), "publish"),
    (raw.publish(f"{HUB}/presence", b"x"), "publish"),
    (raw.publish(f"{HUB}/down/ack", b"x"), "publish"),
    (raw.publish("$SYS/broker", b"x"), "publish"),
    (raw.publish("$share/x", b"x", qos=0), "publish"),
    (raw.publish("", b"x"), "publish"),
    (raw.publish(f"{SITE}/hub/+/state", b"x"), "publish"),
    (raw.publish(f"{HUB}/#", b"x"), "publish"),
    (raw.publish(f"{HUB}/up/{'k' * 600}", b"x"), "publish"),
    (raw.publish(f"{HUB}/up/readings", b"x", retain=True), "publish"),
    (raw.publish(f"{HUB}/up/readings", b"x" * (limits.MESSAGE_MAX_BYTES + 1)), "too-large"),
    (b"\x32\xff\xff\xff\x7f", "too-large"),
    (b"\x82\xff\xff\xff\x7f", "too-large"),
    (raw.publish(f"{HUB}/up/readings", b"x", qos=2), "qos"),
    (raw.publish(f"{HUB}/up/readings", b"x", qos=3), "qos"),
    (raw.publish(f"{HUB}/up/readings", b"x", packet_id=0), "malformed"),
    (raw.publish(b"\xff\xfe", b"x"), "malformed"),
    (raw.publish(b"a\0b", b"x"), "malformed"),
    (raw.packet(0x38, raw.text(f"{HUB}/state") + b"x"), "malformed"),
    (raw.packet(0x32, b""), "malformed"),
    (raw.packet(0x32, b"\0"), "malformed"),
    (raw.packet(0x32, b"\0\x40abc"), "malformed"),
    (raw.packet(0x32, raw.text(f"{HUB}/state") + b"\1"), "malformed"),
    (raw.subscribe(f"{SITE}/hub/+/down/+"), "subscribe"),
    (raw.subscribe("#"), "subscribe"),
    (raw.subscribe("$SYS/#"), "subscribe"),
    (raw.subscribe(f"{HUB}/down/+", f"{HUB}/up/+"), "subscribe"),
    (raw.subscribe("a/b#"), "malformed"),
    (raw.subscribe(""), "malformed"),
    (raw.subscribe(f"{HUB}/down/+", packet_id=0), "malformed"),
    (raw.subscribe(f"{HUB}/down/+", qos=3), "malformed"),
    (raw.subscribe(f"{HUB}/down/+", qos=0x81), "malformed"),
    (raw.packet(0x82, b"\0\1"), "malformed"),
    (raw.packet(0x80, raw.subscribe(f"{HUB}/down/+")[2:]), "malformed"),
    (raw.packet(0xA2, b"\0\1"), "malformed"),
    (raw.packet(0xA0, b"\0\1" + raw.text("a")), "malformed"),
    (raw.connect("pc-1"), "malformed"),
    (raw.packet(0xC0, b"x"), "malformed"),
    (raw.packet(0xC1, b""), "malformed"),
    (raw.packet(0xE0, b"x"), "malformed"),
    (raw.packet(0xE1, b""), "malformed"),
    (b"\x30\xff\xff\xff\xff\x7f", "malformed"),
    *((bytes((first, 2, 0, 1)), "malformed") for first in (0x00, 0x20, 0x40, 0x50, 0x62, 0x70, 0x90, 0xB0, 0xD0, 0xF0)),
)
"""What comes in an open session, and how the embedded engine calls it."""
