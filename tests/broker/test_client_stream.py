"""A session's stream: what is ours and what is paho's, however the bytes are cut, and whatever the socket takes at once."""

from __future__ import annotations

import ssl
from collections import deque

import pytest

from broker import packets
from broker.client_stream import ClientStream

TOPIC = "hl1/acme/berlin/hub/pc-1/down/ack"
CONNACK = packets.CONNACK_ACCEPTED
SUBACK = packets.suback(b"\0\x07", [1])
PUBLISH = packets.publish(TOPIC, b"zero", retain=True)
PUBLISH_ONCE = packets.publish_once(TOPIC, b"once" * 50, 9)
PUBACK = packets.puback(b"\x80\0")


class Wire:
    """A socket that has read some bytes, and takes as many as it is told to; and what a session would hear."""

    def __init__(self, *chunks: bytes, takes: int = 1 << 20, own_packets: bool = True):
        self.chunks, self.takes, self.written = deque(chunks), takes, b""
        self.messages: list[tuple[str, bytes, bool]] = []
        self.over = 0
        self.stream = ClientStream(self, own_packets=own_packets)
        self.stream.begin(self.read, self.write)

    def read(self, size: int) -> bytes:
        if not self.chunks:
            raise ssl.SSLWantReadError
        return self.chunks.popleft()

    def write(self, data: bytes) -> int:
        if not self.takes:
            raise ssl.SSLWantWriteError
        taken = data[: self.takes]
        self.takes -= len(taken)
        self.written += taken
        return len(taken)

    def received(self, topic: str, payload: bytes, retain: bool) -> None:
        self.messages.append((topic, payload, retain))

    def settled(self, count: int) -> None:
        self.over += count

    def for_paho(self) -> bytes:
        """Read as paho does, a few bytes at a time, until there is nothing to read."""
        found = b""
        while True:
            try:
                part = self.stream.recv(3)
            except ssl.SSLWantReadError:
                if not self.stream.has_more and not self.chunks:
                    return found
                continue
            if not part:
                return found + b"|end"
            found += part


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_messages_are_ours_and_all_else_is_paho_s_however_the_bytes_are_cut(size: int) -> None:
    """TCP and TLS cut where they like; a packet handed to paho in parts would mix with the next one."""
    whole = CONNACK + PUBLISH + SUBACK + PUBLISH_ONCE + PUBACK + packets.PINGRESP + PUBLISH + PUBACK
    wire = Wire(*(whole[at : at + size] for at in range(0, len(whole), size)))
    assert wire.for_paho() == CONNACK + SUBACK + packets.PINGRESP
    assert wire.messages == [(TOPIC, b"zero", True), (TOPIC, b"once" * 50, False), (TOPIC, b"zero", True)]
    assert wire.over == 2
    assert wire.stream.alive_at is not None


def test_a_message_that_is_to_be_acknowledged_is() -> None:
    """Else a broker that keeps count sends no more after its window."""
    wire = Wire(PUBLISH_ONCE + PUBLISH + PUBLISH_ONCE)
    wire.for_paho()
    assert wire.stream.has_unsent
    assert wire.stream.flush()
    assert wire.written == packets.puback(b"\0\x09") * 2
    assert wire.over == 0, "an acknowledgement is no publish of ours"


def test_the_end_of_the_stream_is_paho_s_to_see() -> None:
    assert Wire(PUBLISH, b"").for_paho() == b"|end"


def test_nothing_holds_up_others_for_long() -> None:
    """A flood is read a part at a time; the socket stays readable for the rest."""
    wire = Wire(*[PUBLISH] * 100)
    with pytest.raises(ssl.SSLWantReadError):
        wire.stream.recv(1)
    assert 0 < len(wire.messages) < 100
    assert len(wire.chunks) == 100 - len(wire.messages)


@pytest.mark.parametrize(
    "packet",
    [
        b"\x30\xff\xff\xff\xff\x01",
        b"\x30" + packets.length_bytes(200_000_000),
        b"\x30\x03\0\x05a",
        b"\x32\x03\0\x01a",
        b"\x30\x04\0\x02\xff\xfe",
        b"\x30\x03\0\x01\0",
    ],
    ids=["length of five bytes", "200 MB", "topic cut", "no packet id", "topic no UTF-8", "NUL in the topic"],
)
def test_what_no_broker_sends_ends_the_connection(packet: bytes) -> None:
    """In a word of the network's, which paho takes for a loss; what came before it counts."""
    wire = Wire(PUBLISH, packet)
    with pytest.raises(ConnectionError, match="the broker sent"):
        wire.stream.recv(1)
    assert wire.messages == [(TOPIC, b"zero", True)]


def test_exactly_once_is_left_to_paho() -> None:
    """We never ask for it, and it needs more than one acknowledgement."""
    qos_2 = b"\x34" + PUBLISH_ONCE[1:]
    wire = Wire(PUBLISH + qos_2 + PUBLISH)
    assert wire.for_paho() == qos_2
    assert len(wire.messages) == 2


def test_without_packets_of_ours_every_byte_is_paho_s() -> None:
    """MQTT 5 has properties in its PUBLISH."""
    wire = Wire(CONNACK, PUBLISH, own_packets=False)
    assert wire.for_paho() == CONNACK + PUBLISH
    assert not wire.messages


@pytest.mark.parametrize("step", [1, 5, 50, 500])
def test_what_is_written_in_parts_arrives_whole_and_in_order(step: int) -> None:
    """A slow network takes what it can; paho's own packets wait behind what was published before them."""
    wire = Wire(takes=0)
    for number in range(20):
        wire.stream.publish(TOPIC, b"%d" % number, number % 2, retain=False)
    with pytest.raises(ssl.SSLWantWriteError):
        wire.stream.send(b"\xe0\0")
    while wire.stream.has_unsent:
        wire.takes = step
        wire.stream.flush()
    assert wire.over == 10, "at QoS 0 what is written is over, at QoS 1 what is acknowledged"
    wire.takes = 2
    assert wire.stream.send(b"\xe0\0") == 2
    expected = [
        packets.publish_once(TOPIC, b"%d" % number, 0x8000 + number // 2)
        if number % 2
        else packets.publish(TOPIC, b"%d" % number)
        for number in range(20)
    ]
    assert wire.written == b"".join(expected) + b"\xe0\0"


def test_packet_ids_come_round_without_touching_those_of_paho() -> None:
    """An id of 0 is forbidden, and one of paho's would settle the wrong thing."""
    wire = Wire()
    for _ in range(0x8001):
        wire.stream.publish("t", b"", 1, retain=False)
    wire.stream.flush()
    ids = [int.from_bytes(wire.written[at + 5 : at + 7], "big") for at in range(0, len(wire.written), 7)]
    assert ids == [*range(0x8000, 0x10000), 0x8000]


def test_before_the_socket_there_is_nothing_to_write_to() -> None:
    stream = ClientStream(Wire(), own_packets=True)
    stream.publish(TOPIC, b"", 1, retain=False)
    with pytest.raises(ConnectionError, match="not connected"):
        stream.flush()
