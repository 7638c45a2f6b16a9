"""MQTT 3.1.1 packets ↔ bytes, as far as a broker needs them; whatever the standard forbids is a ProtocolError. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker.topics import is_topic, is_topic_filter
from config import limits
from config.errors import ProtocolError

CONNECT: Final = 0x10
PUBLISH: Final = 0x30
PUBACK: Final = 0x40
SUBSCRIBE: Final = 0x82
UNSUBSCRIBE: Final = 0xA2
PINGREQ: Final = 0xC0
DISCONNECT: Final = 0xE0
"""First bytes: type and flags. A client may send no other, and PUBLISH alone with other flags (2.2.2)."""

CONNACK_ACCEPTED: Final = b"\x20\x02\x00\x00"
CONNACK_WRONG_VERSION: Final = b"\x20\x02\x00\x01"
CONNACK_WRONG_CLIENT_ID: Final = b"\x20\x02\x00\x02"
CONNACK_BUSY: Final = b"\x20\x02\x00\x03"
CONNACK_NOT_AUTHORIZED: Final = b"\x20\x02\x00\x05"
PING: Final = b"\xc0\x00"
PINGRESP: Final = b"\xd0\x00"
SUBSCRIBED: Final = 0x00
"""Granted: QoS 0, whatever was asked for (3.8.4-6). In a clean session QoS 1 would promise no more than TCP does."""
NOT_SUBSCRIBED: Final = 0x80

_PROTOCOL_LEVEL: Final = 4


class WrongVersionError(ProtocolError):
    """A CONNECT of another version of MQTT: it gets an answer that says so (3.1.2.2)."""


@dataclass(frozen=True, slots=True)
class WillMessage:
    """What a client leaves to be published if it goes without a DISCONNECT."""

    topic: str
    payload: bytes
    qos: int
    retain: bool


@dataclass(frozen=True, slots=True)
class Connect:
    """A well-formed CONNECT. User name and password are read over: the certificate says who it is."""

    client_id: str
    clean_session: bool
    keep_alive_s: int
    will: WillMessage | None


class _Reader:
    """Reads fields from a packet's body; running out of bytes is a ProtocolError."""

    __slots__ = ("_at", "_body")

    def __init__(self, body: bytes):
        self._body = body
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._body)

    def take(self, count: int) -> bytes:
        taken = self._body[self._at : self._at + count]
        if len(taken) != count:
            raise ProtocolError("a field is longer than its packet")
        self._at += count
        return taken

    def number(self, size: int = 2) -> int:
        return int.from_bytes(self.take(size), "big")

    def binary(self) -> bytes:
        return self.take(self.number())

    def text(self) -> str:
        return text_of(self.binary())


def text_of(raw: bytes) -> str:
    """Return a UTF-8 string as MQTT allows it (1.5.3). Raises ProtocolError."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ProtocolError("a text is not UTF-8") from exc
    if "\0" in text:
        raise ProtocolError("a text contains NUL")
    return text


def parse_connect(body: bytes) -> Connect:
    """Read the body of a CONNECT (3.1). Raises WrongVersionError, ProtocolError."""
    reader = _Reader(body)
    name, level = reader.binary(), reader.number(1)
    if name not in (b"MQTT", b"MQIsdp"):
        raise ProtocolError("not MQTT")
    if name != b"MQTT" or level != _PROTOCOL_LEVEL:
        raise WrongVersionError("another version of MQTT than 3.1.1")
    flags, keep_alive_s = reader.number(1), reader.number()
    has_will, will_qos, will_retain = bool(flags & 0x04), flags >> 3 & 3, bool(flags & 0x20)
    has_password, has_username = bool(flags & 0x40), bool(flags & 0x80)
    if flags & 0x01 or will_qos == 3 or (not has_will and (will_qos or will_retain)) or (has_password > has_username):
        raise ProtocolError("contradictory flags in CONNECT")
    client_id = reader.text()
    will = WillMessage(reader.text(), reader.binary(), will_qos, will_retain) if has_will else None
    if has_username:
        reader.text()
    if has_password:
        reader.binary()
    if not reader.at_end:
        raise ProtocolError("bytes after the end of CONNECT")
    if will is not None and not is_topic(will.topic):
        raise ProtocolError("the will's topic is not a topic")
    return Connect(client_id, bool(flags & 0x02), keep_alive_s, will)


def parse_subscribe(body: bytes) -> tuple[bytes, list[str]]:
    """Return the packet id and the topic filters of a SUBSCRIBE (3.8). Raises ProtocolError."""
    return _parse_filters(body, with_qos=True)


def parse_unsubscribe(body: bytes) -> tuple[bytes, list[str]]:
    """Return the packet id and the topic filters of an UNSUBSCRIBE (3.10). Raises ProtocolError."""
    return _parse_filters(body, with_qos=False)


def _parse_filters(body: bytes, *, with_qos: bool) -> tuple[bytes, list[str]]:
    reader = _Reader(body)
    packet_id = reader.take(2)
    if packet_id == b"\0\0":
        raise ProtocolError("packet id 0")
    topic_filters: list[str] = []
    while not reader.at_end:
        topic_filter = reader.text()
        if not is_topic_filter(topic_filter):
            raise ProtocolError("not a topic filter", topic=topic_filter)
        if with_qos and reader.number(1) > 2:
            raise ProtocolError("no such QoS")
        topic_filters.append(topic_filter)
    if not topic_filters:
        raise ProtocolError("no topic filters")
    return packet_id, topic_filters


def length_bytes(length: int) -> bytes:
    """Return a remaining length as one to four bytes (2.2.3)."""
    if length < 0x80:
        return bytes((length,))
    if length < 0x4000:
        return bytes((length & 0x7F | 0x80, length >> 7))
    if length < 0x20_0000:
        return bytes((length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14))
    return bytes((length & 0x7F | 0x80, length >> 7 & 0x7F | 0x80, length >> 14 & 0x7F | 0x80, length >> 21))


def publish(topic: str, payload: bytes, *, retain: bool = False) -> bytes:
    """Return a PUBLISH with QoS 0 (3.3)."""
    raw = topic.encode("utf-8")
    length = length_bytes(2 + len(raw) + len(payload))
    return b"%c%b%b%b%b" % (PUBLISH | retain, length, len(raw).to_bytes(2, "big"), raw, payload)


def publish_once(topic: str, payload: bytes, packet_id: int, *, retain: bool = False) -> bytes:
    """Return a PUBLISH with QoS 1, which is to be acknowledged (3.3)."""
    raw = topic.encode("utf-8")
    length = length_bytes(4 + len(raw) + len(payload))
    head = (PUBLISH | 0x02 | retain, length, len(raw).to_bytes(2, "big"), raw, packet_id.to_bytes(2, "big"))
    return b"%c%b%b%b%b%b" % (*head, payload)


def puback(packet_id: bytes) -> bytes:
    """Return a PUBACK (3.4)."""
    return b"\x40\x02" + packet_id


def measure(data: bytes, at: int) -> tuple[int, int] | None:
    """Return where the body of the packet at `at` begins and ends, or None if not all of it is there.

    Raises ProtocolError for a packet that is longer than the contract can cause.
    """
    end = len(data)
    if end - at < 2:
        return None
    length, body = data[at + 1], at + 2
    if length & 0x80:
        length, shift = length & 0x7F, 7
        while True:
            if body == end:
                return None
            more = data[body]
            body += 1
            length |= (more & 0x7F) << shift
            shift += 7
            if not more & 0x80:
                break
            if shift > 21:
                raise ProtocolError("a remaining length of more than four bytes")
        if length > limits.PACKET_MAX_BYTES:
            raise ProtocolError(f"a packet of {length} bytes")
    stop = body + length
    return (body, stop) if stop <= end else None


def parse_publish(first: int, body: bytes) -> tuple[str, bytes, bytes]:
    """Return topic, packet id (none at QoS 0) and payload of a PUBLISH from a broker (3.3). Raises ProtocolError."""
    topic_end = 2 + int.from_bytes(body[:2], "big")
    payload_at = topic_end + 2 if first & 0x06 else topic_end
    if payload_at > len(body):
        raise ProtocolError("a PUBLISH that ends within its topic or packet id")
    return text_of(body[2:topic_end]), body[topic_end:payload_at], body[payload_at:]


def suback(packet_id: bytes, codes: list[int]) -> bytes:
    """Return a SUBACK (3.9)."""
    return b"\x90%b%b%b" % (length_bytes(2 + len(codes)), packet_id, bytes(codes))


def unsuback(packet_id: bytes) -> bytes:
    """Return an UNSUBACK (3.11)."""
    return b"\xb0\x02" + packet_id
