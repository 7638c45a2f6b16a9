"""A session's stream: what is ours and what is paho's, however the bytes are cut, and whatever the socket takes at once."""

from __future__ import annotations

import ssl
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import packets
from broker.client_stream import ClientStream
from broker.runner import monotonic_s

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
        self.refused = b""
        self.stream = ClientStream(self, own_packets=own_packets)
        self.stream.begin(self.read, self.write)

    def read(self, size: int) -> bytes:
        if not self.chunks:
            raise ssl.SSLWantReadError
        return self.chunks.popleft()

    def write(self, data: bytes) -> int:
        assert data.startswith(self.refused), "OpenSSL would write the old bytes, and count them as of the new ones"
        self.refused = b""
        if not self.takes:
            self.refused = data
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
    assert wire.stream.send(b"\xe0\0") == 2
    wire.stream.flush()
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


def test_a_packet_of_paho_s_keeps_its_place_between_messages() -> None:
    """A SUBSCRIBE that came behind what was published after it would miss the answers."""
    wire = Wire()
    wire.stream.publish(TOPIC, b"before", 0, retain=False)
    assert wire.stream.send(b"\x82\x01s") == 3
    wire.stream.publish(TOPIC, b"after", 0, retain=False)
    wire.stream.flush()
    assert wire.written == packets.publish(TOPIC, b"before") + b"\x82\x01s" + packets.publish(TOPIC, b"after")


def test_nothing_comes_behind_a_goodbye() -> None:
    """What arrives while it waits is not acknowledged any more, and a ping would be one packet too many."""
    wire = Wire(PUBLISH_ONCE, takes=0)
    with pytest.raises(ssl.SSLWantWriteError):
        wire.stream.send(b"\xe0\0")
    wire.for_paho()
    assert wire.stream.look_after(monotonic_s() + 1000, 20)
    wire.takes = 100
    assert wire.stream.flush()
    assert wire.stream.send(b"\xe0\0") == 2
    assert wire.written == b"\xe0\0"


def test_without_packets_of_ours_paho_hears_when_each_of_its_own_is_written() -> None:
    """It counts publishes at QoS 0 by that."""
    wire = Wire(takes=0, own_packets=False)
    for _ in range(2):
        with pytest.raises(ssl.SSLWantWriteError):
            wire.stream.send(b"\x30\x03\0\x01a")
        assert not wire.stream.flush()
    wire.takes = 100
    assert wire.stream.flush()
    assert wire.stream.send(b"\x30\x03\0\x01a") == 5
    assert wire.written == b"\x30\x03\0\x01a"


def test_a_tls_record_is_read_as_a_whole_even_if_all_of_it_is_paho_s() -> None:
    """The socket would not be readable for the rest."""
    wire = Wire(PUBLISH * 3, own_packets=False)
    assert wire.stream.recv(1) == PUBLISH[:1]
    assert not wire.chunks
    assert wire.stream.has_more
    assert wire.for_paho() == (PUBLISH * 3)[1:]
    assert not wire.stream.has_more


def test_a_write_that_must_read_first_does_not_wait_for_room() -> None:
    """The socket has room: watching for that would turn the event loop round and round."""
    wire = Wire()

    def write(_: bytes) -> int:
        raise ssl.SSLWantReadError

    wire.stream.begin(wire.read, write)
    wire.stream.publish(TOPIC, b"", 1, retain=False)
    assert not wire.stream.flush()
    assert wire.stream.must_read
    wire.stream.begin(wire.read, wire.write)
    assert wire.stream.flush()
    assert not wire.stream.must_read


@pytest.mark.parametrize("quiet", ["reading", "writing", "both"])
def test_a_quiet_direction_is_pinged_once_and_any_life_sign_will_do(quiet: str) -> None:
    """A PINGRESP may wait behind megabytes: whoever sends those is alive."""
    wire = Wire(PUBLISH, PUBLISH)
    with pytest.raises(ssl.SSLWantReadError):
        wire.stream.recv(1)
    began = wire.stream.alive_at
    assert began is not None
    assert wire.stream.look_after(began + 10, 20)
    assert not wire.stream.has_unsent
    later = began + 1000
    if quiet == "reading":
        wire.stream._written_at = later
    if quiet == "writing":
        wire.stream.alive_at = later
    wire.stream.publish(TOPIC, b"", 0, retain=False)
    assert wire.stream.look_after(later, 20)
    if quiet == "writing":
        wire.stream.alive_at = later - 1  # It came before the ping.
    assert wire.stream.look_after(later + 19, 20)
    wire.stream.flush()
    assert wire.written == packets.PING + packets.publish(TOPIC, b""), "in front of what waits"
    assert not wire.stream.look_after(later + 20, 20)
    wire.stream.alive_at = wire.stream._written_at = later + 20
    assert wire.stream.look_after(later + 21, 20)


def test_before_the_first_life_sign_nothing_is_pinged() -> None:
    """A CONNECT comes first, and has a limit of its own."""
    wire = Wire()
    assert wire.stream.look_after(monotonic_s() + 1000, 20)
    assert not wire.stream.has_unsent


INBOUND = st.one_of(
    st.builds(
        lambda size, retain: packets.publish(TOPIC, bytes(size), retain=retain), st.integers(0, 400), st.booleans()
    ),
    st.builds(
        lambda size, number: packets.publish_once(TOPIC, bytes(size), number), st.integers(0, 400), st.integers(1, 9)
    ),
    st.sampled_from([CONNACK, SUBACK, PUBACK, packets.PINGRESP]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(1, 9)),
        st.tuples(st.just("room"), st.integers(0, 60)),
        st.tuples(st.just("publish"), st.integers(0, 60)),
        st.tuples(st.just("paho"), st.integers(0, 20)),
        st.tuples(st.just("flush"), st.just(0)),
    ),
    max_size=60,
)


@given(st.lists(INBOUND, max_size=20), st.lists(st.integers(1, 500), min_size=1, max_size=8), STEPS, st.booleans())
def test_any_cut_of_any_packets_in_any_order_of_calls(
    inbound: list[bytes], cuts: list[int], steps: list[tuple[str, int]], own: bool
) -> None:
    """Nothing is lost, doubled, moved or torn, in either direction."""
    whole = b"".join(inbound)
    chunks: list[bytes] = []
    at = 0
    while at < len(whole):
        size = cuts[len(chunks) % len(cuts)]
        chunks.append(whole[at : at + size])
        at += size
    wire = Wire(*chunks, takes=0, own_packets=own)
    outbound: list[bytes] = []
    for_paho = b""
    held = b""
    next_id = 0x8000

    def paho(packet: bytes) -> bytes:
        try:
            assert wire.stream.send(packet) == len(packet)
        except ssl.SSLWantWriteError:
            return packet
        return b""

    for what, amount in steps:
        match what:
            case "read":
                try:
                    for_paho += wire.stream.recv(amount)
                except ssl.SSLWantReadError:
                    pass
            case "room":
                wire.takes += amount
            case "publish" if own:
                wire.stream.publish(TOPIC, bytes(amount), amount % 2, retain=False)
                if amount % 2:
                    outbound.append(packets.publish_once(TOPIC, bytes(amount), next_id))
                    next_id += 1
                else:
                    outbound.append(packets.publish(TOPIC, bytes(amount)))
            case "paho":
                packet = held or b"\x82%c" % amount + bytes(amount)
                if not held:
                    outbound.append(packet)
                held = paho(packet)
            case _:
                wire.stream.flush()
    for_paho += wire.for_paho()
    wire.takes = 1 << 20
    while not wire.stream.flush():
        pass
    if held:
        assert not paho(held)
    is_ours = [own and packet[0] & 0xF0 in (packets.PUBLISH, packets.PUBACK) for packet in inbound]
    assert for_paho == b"".join(packet for packet, ours in zip(inbound, is_ours, strict=True) if not ours)
    messages = [p for p, ours in zip(inbound, is_ours, strict=True) if ours and p[0] & 0xF0 == packets.PUBLISH]
    assert [len(payload) for _, payload, _ in wire.messages] == [_payload_size(packet) for packet in messages]
    at_most_once = sum(packet[0] == packets.PUBLISH for packet in outbound)
    assert wire.over == at_most_once + (inbound.count(PUBACK) if own else 0)
    acknowledgements = [packets.puback(_packet_id(packet)) for packet in messages if packet[0] & 0x06]
    written = _split(wire.written)
    assert [packet for packet in written if packet[0] == packets.PUBACK] == acknowledgements
    assert [packet for packet in written if packet[0] != packets.PUBACK] == outbound


def _split(raw: bytes) -> list[bytes]:
    found: list[bytes] = []
    at = 0
    while at < len(raw):
        measured = packets.measure(raw, at)
        assert measured is not None, "torn"
        found.append(raw[at : measured[1]])
        at = measured[1]
    return found


def _payload_size(packet: bytes) -> int:
    measured = packets.measure(packet, 0)
    assert measured is not None
    return len(packets.parse_publish(packet[0], packet[measured[0] :])[2])


def _packet_id(packet: bytes) -> bytes:
    measured = packets.measure(packet, 0)
    assert measured is not None
    return packets.parse_publish(packet[0], packet[measured[0] :])[1]
