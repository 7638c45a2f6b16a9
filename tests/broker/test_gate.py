"""The gate, byte by byte: whatever passes it, the engine carries out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import packets
from broker.embedded import Engine
from broker.gate import Gate, Sessions, ViolationError
from config import limits
from config.principal import Principal
from tests.broker import raw_mqtt as raw
from tests.broker.bad_packets import BEGINNINGS, HUB, SITE, VIOLATIONS

PC_1 = Principal("acme", "berlin", "hub", "pc-1")
READER = Principal("acme", "-", "reader", "desk")
SERVICE = Principal("acme", "-", "cloud", "cloud-1")


class RecordingLine:
    """Keeps what a client would get. `gate` is set by `World`."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.replayed: list[str] = []
        self.expelled: list[str] = []
        self.last_seen_at = 0.0
        self.gate: Gate | None = None

    def send(self, packet: bytes) -> None:
        self.sent.append(packet)

    def replay(self, topics: list[str]) -> None:
        self.replayed += topics

    def expel(self, kind: str, reason: str) -> None:
        self.expelled.append(kind)
        assert self.gate is not None
        self.gate.end(clean=False)


class World:
    """One engine and the gates before it, without sockets."""

    def __init__(self, site: str = "berlin") -> None:
        self.engine = Engine()
        self.sessions = Sessions(self.engine, "acme", site)

    def arrive(self, holder: Principal = PC_1) -> tuple[Gate, RecordingLine]:
        line = RecordingLine()
        gate = line.gate = Gate(holder, self.sessions, line)
        return gate, line

    def join(self, holder: Principal = PC_1, **options: object) -> tuple[Gate, RecordingLine]:
        gate, line = self.arrive(holder)
        assert gate.receive(raw.connect(holder.name, **options))  # type: ignore[arg-type]
        assert line.sent.pop() == raw.CONNACK
        return gate, line

    def listener(self, *topic_filters: str) -> RecordingLine:
        gate, line = self.join(READER)
        gate.receive(raw.subscribe(*topic_filters or ("hl1/acme/#",)))
        assert line.sent.pop()[0] == 0x90
        return line


def in_world(story: Callable[[World], None], site: str = "berlin") -> None:
    """Tell a story in a fresh world; the engine needs a running loop to be made in."""

    async def tell() -> None:
        story(World(site))

    asyncio.run(tell())


def refused(gate: Gate, data: bytes) -> ViolationError:
    with pytest.raises(ViolationError) as caught:
        gate.receive(data)
    gate.end(clean=False)
    return caught.value


# --- CONNECT -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client_id", ["pc-1", "pc-1_a", "pc-1_2", "pc-1_Direct_7-x", f"pc-1_{'a' * 32}", "pc-1.a"])
def test_a_client_id_is_the_certificates_id_with_a_suffix_at_most(client_id: str) -> None:
    def story(world: World) -> None:
        gate, line = world.arrive()
        assert gate.receive(raw.connect(client_id))
        assert line.sent == [raw.CONNACK]
        assert list(world.engine.sessions) == [client_id]

    in_world(story)


@pytest.mark.parametrize(
    "client_id",
    ["", "pc-2", "pc", "pc-1.", "pc-11", "pc-1x", "pc-1/a", "pc-1.a.b", "pc-1.a b", "PC-1", "pc-1.+", f"pc-1.{'a' * 33}",
     "pc-1\n", "pc-1.a\n", "pc-1_", "pc-1_a.b", f"pc-1_{'a' * 33}", "_a", "x" * 5000],
)  # fmt: skip
def test_another_client_id_is_refused_before_the_engine_hears_of_it(client_id: str) -> None:
    """B1 to B3: stock amqtt touches the session of whatever id it is told."""

    def story(world: World) -> None:
        gate, line = world.arrive()
        violation = refused(gate, raw.connect(client_id))
        assert (violation.kind, violation.reply) == ("client-id", packets.CONNACK_WRONG_CLIENT_ID)
        assert not world.engine.sessions
        assert not line.sent

    in_world(story)


@pytest.mark.parametrize(
    ("holder", "site", "kind"),
    [
        (Principal("other", "berlin", "hub", "pc-1"), "berlin", "fleet"),
        (Principal("acme", "munich", "hub", "pc-1"), "berlin", "site"),
        (Principal("acme", "munich", "connector", "m-1"), "berlin", "site"),
        (Principal("acme", "berlin", "broker", "broker-1"), "berlin", "role"),
        (Principal("acme", "-", "broker", "broker-1"), "-", "role"),
        (Principal("other", "-", "reader", "r"), "-", "fleet"),
    ],
)
def test_who_has_nothing_to_do_here_is_refused(holder: Principal, site: str, kind: str) -> None:
    def story(world: World) -> None:
        gate, _ = world.arrive(holder)
        violation = refused(gate, raw.connect(holder.name))
        assert (violation.kind, violation.reply) == (kind, packets.CONNACK_NOT_AUTHORIZED)

    in_world(story, site)


@pytest.mark.parametrize(
    ("data", "kind", "reply"),
    BEGINNINGS,
)
def test_any_other_beginning_is_refused_and_leaves_no_session(data: bytes, kind: str, reply: bytes) -> None:
    """One bad CONNECT must not lock its client out, nor publish what it brought as its will."""

    def story(world: World) -> None:
        heard = world.listener()
        gate, _ = world.arrive()
        violation = refused(gate, data)
        assert (violation.kind, violation.reply) == (kind, reply)
        assert list(world.engine.sessions) == ["desk"]
        assert not heard.sent
        world.join()

    in_world(story)


def test_the_first_byte_alone_gives_a_stranger_away() -> None:
    """A connection that can only be wrong is not kept until its timeout."""

    def story(world: World) -> None:
        assert refused(world.arrive()[0], b"\x30").kind == "malformed"

    in_world(story)


def test_user_name_and_password_change_nothing() -> None:
    """Some engines' bridges insist on sending them; the certificate says who it is."""

    def story(world: World) -> None:
        gate, line = world.arrive()
        body = raw.text("MQTT") + b"\4\xc2\0\x3c" + raw.text("pc-1") + raw.text("pc-2") + raw.text(b"\xff\0")
        assert gate.receive(raw.packet(0x10, body))
        assert line.sent == [raw.CONNACK]

    in_world(story)


def test_a_newer_connection_ends_the_older_one_first_and_its_will_is_sent_before() -> None:
    """B10: stock amqtt keeps both, and sends no will."""

    def story(world: World) -> None:
        heard = world.listener()
        older, older_line = world.join(will=(f"{HUB}/state", b"session 1"))
        newer, _ = world.arrive()
        newer.receive(
            raw.connect("pc-1", will=(f"{HUB}/state", b"session 2")) + raw.publish(f"{HUB}/state", b"born", qos=0)
        )
        assert older_line.expelled == ["taken-over"]
        assert heard.sent == [packets.publish(f"{HUB}/state", b"session 1"), packets.publish(f"{HUB}/state", b"born")]
        assert not older.is_open
        assert newer.is_open
        assert len(world.sessions) == 2
        older.end(clean=False)
        assert len(heard.sent) == 2, "the will of the older one was sent again"

    in_world(story)


def test_a_client_id_in_use_by_somebody_else_is_refused_to_the_newcomer() -> None:
    """At the cloud broker, machines of two sites may have the same name: neither may throw the other out."""

    def story(world: World) -> None:
        _, first = world.join()
        gate, _ = world.arrive(Principal("acme", "munich", "hub", "pc-1"))
        violation = refused(gate, raw.connect("pc-1"))
        assert (violation.kind, violation.reply) == ("client-id", packets.CONNACK_WRONG_CLIENT_ID)
        assert not first.expelled

    in_world(story, site="-")


def test_one_certificate_cannot_open_any_number_of_sessions() -> None:
    def story(world: World) -> None:
        for number in range(limits.SESSIONS_PER_CERTIFICATE_MAX):
            gate, _ = world.arrive()
            gate.receive(raw.connect(f"pc-1.{number}"))
        violation = refused(world.arrive()[0], raw.connect("pc-1.more"))
        assert (violation.kind, violation.reply) == ("too-many-sessions", packets.CONNACK_BUSY)
        again, line = world.arrive()
        again.receive(raw.connect("pc-1.0"))  # Taking over one's own is possible even then,
        assert line.sent == [raw.CONNACK]
        again.end(clean=True)
        world.join()  # and one that has ended makes room.

    in_world(story)


# --- After CONNECT -----------------------------------------------------------------------------------------------------

WILL_SENT = packets.publish(f"{HUB}/state", b"gone")


@pytest.mark.parametrize(
    ("data", "kind"),
    VIOLATIONS,
)
def test_a_violation_ends_the_session_with_its_will_and_reaches_nobody(data: bytes, kind: str) -> None:
    """B11, B15 to B17: stock amqtt leaves the connection open, hung, or as a zombie."""

    def story(world: World) -> None:
        heard = world.listener()
        gate, line = world.join(will=(f"{HUB}/state", b"gone"))
        violation = refused(gate, data + raw.publish(f"{HUB}/up/readings", b"after"))
        assert violation.kind == kind
        assert not line.sent
        assert heard.sent == [WILL_SENT]
        assert list(world.engine.sessions) == ["desk"]

    in_world(story)


def test_a_topic_that_was_allowed_is_not_thereby_allowed_retained() -> None:
    """Rights are remembered per session: the two questions have two answers."""

    def story(world: World) -> None:
        gate, _ = world.join()
        gate.receive(raw.publish(f"{HUB}/up/readings", b"x"))
        assert refused(gate, raw.publish(f"{HUB}/up/readings", b"x", retain=True)).kind == "publish"
        assert world.engine.retained_count == 0

    in_world(story)


def test_a_refused_subscription_is_answered_before_the_end() -> None:
    """The client can then say which of its filters was wrong."""

    def story(world: World) -> None:
        gate, _ = world.join()
        violation = refused(gate, raw.subscribe(f"{HUB}/down/+", "#", packet_id=9))
        assert violation.reply == b"\x90\x04\0\x09\x00\x80"

    in_world(story)


def test_a_session_has_a_bounded_number_of_subscriptions() -> None:
    def story(world: World) -> None:
        gate, _ = world.join(READER)
        gate.receive(raw.subscribe(*(f"hl1/acme/s{n}/#" for n in range(limits.SUBSCRIPTIONS_MAX))))
        assert refused(gate, raw.subscribe("hl1/acme/more/#")).kind == "subscribe"

    in_world(story)


def test_subscribing_over_and_over_is_bounded_in_time() -> None:
    """Each time, all that is retained is searched: a reader could keep the broker busy with nothing else."""

    def story(world: World) -> None:
        gate, line = world.join(READER)
        for _ in range(limits.SUBSCRIPTIONS_MAX):
            gate.receive(raw.subscribe("hl1/acme/#") + raw.unsubscribe("hl1/acme/#"))
        line.last_seen_at += 1 / limits.SUBSCRIBES_PER_S
        gate.receive(raw.subscribe("hl1/acme/#"))
        assert refused(gate, raw.subscribe("hl1/acme/#")).kind == "subscribe"

    in_world(story)


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 16_383, 16_384, limits.MESSAGE_MAX_BYTES])
def test_a_message_arrives_as_it_was_sent_and_qos_1_is_acknowledged(qos: int, size: int) -> None:
    def story(world: World) -> None:
        heard = world.listener()
        gate, line = world.join()
        payload = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        assert gate.receive(raw.publish(f"{HUB}/up/readings", payload, qos=qos, packet_id=0x1234))
        assert heard.sent == [packets.publish(f"{HUB}/up/readings", payload)]
        assert line.sent == ([b"\x40\x02\x12\x34"] if qos else [])

    in_world(story)


def test_a_duplicate_of_qos_1_is_delivered_again() -> None:
    """The cloud recognises it; a broker that guesses could lose a message."""

    def story(world: World) -> None:
        heard = world.listener()
        gate, _ = world.join()
        once = raw.publish(f"{HUB}/up/readings", b"x")
        gate.receive(once + bytes((once[0] | 8,)) + once[1:])
        assert heard.sent == [packets.publish(f"{HUB}/up/readings", b"x")] * 2

    in_world(story)


def test_nothing_is_delivered_after_unsubscribe_or_disconnect() -> None:
    def story(world: World) -> None:
        gate, line = world.join(READER)
        other, other_line = world.arrive(READER)
        other.receive(raw.connect("desk.2") + raw.subscribe("hl1/acme/#"))
        gate.receive(raw.subscribe("hl1/acme/#", f"{HUB}/state") + raw.unsubscribe("hl1/acme/#", "never/asked/for"))
        world.engine.publish(f"{HUB}/presence", b"x")
        assert line.sent == [b"\x90\x04\0\7\0\0", packets.unsuback(b"\0\x08")]
        world.engine.publish(f"{HUB}/state", b"y")
        assert line.sent[2:] == [packets.publish(f"{HUB}/state", b"y")]
        assert not other.receive(raw.DISCONNECT)
        world.engine.publish(f"{HUB}/state", b"z")
        assert len(other_line.sent) == 4

    in_world(story)


def test_a_disconnect_drops_the_will_and_what_comes_after_it_is_not_read() -> None:
    def story(world: World) -> None:
        heard = world.listener()
        gate, _ = world.join(will=(f"{HUB}/state", b"gone"))
        assert not gate.receive(raw.DISCONNECT + raw.publish(f"{HUB}/up/readings", b"after"))
        gate.end(clean=False)
        assert not heard.sent

    in_world(story)


def test_a_retained_message_is_kept_replaced_and_removed() -> None:
    def story(world: World) -> None:
        gate, _ = world.join()
        topic = f"{HUB}/state"
        gate.receive(raw.publish(topic, b"one", retain=True))
        gate.receive(raw.publish(topic, b"two", retain=True))
        gate.receive(raw.publish(topic, b"passing"))
        assert world.listener().replayed == [topic]
        assert world.engine.retained_packet(topic) == packets.publish(topic, b"two", retain=True)
        gate.receive(raw.publish(topic, b"", retain=True))
        reader, line = world.arrive(READER)
        reader.receive(raw.connect("desk.2") + raw.subscribe("hl1/acme/#"))
        assert not line.replayed
        assert world.engine.retained_count == 0

    in_world(story)


def test_live_messages_come_without_the_retain_flag_and_replayed_ones_with_it() -> None:
    """MQTT 3.1.1, 3.3.1.3: it tells a subscriber what is news."""

    def story(world: World) -> None:
        heard = world.listener()
        gate, _ = world.join()
        gate.receive(
            raw.publish(f"{HUB}/state", b"x", retain=True, qos=0) + raw.publish(f"{HUB}/state", b"x", retain=True)
        )
        assert heard.sent == [packets.publish(f"{HUB}/state", b"x")] * 2

    in_world(story)


def test_the_number_of_retained_messages_is_bounded_and_an_old_one_never_passes_for_the_newest() -> None:
    def story(world: World) -> None:
        engine = world.engine
        size = limits.MESSAGE_MAX_BYTES
        for number in range(limits.RETAINED_MAX_BYTES // size):
            engine.publish(f"{SITE}/hub/pc-{number}/state", bytes(size), retain=True)
        count = engine.retained_count
        engine.publish(f"{SITE}/hub/late/state", b"x", retain=True)
        assert engine.retained_count == count
        engine.publish(f"{SITE}/hub/pc-0/state", bytes(size + 1), retain=True)
        assert engine.retained_packet(f"{SITE}/hub/pc-0/state") is None
        engine.publish(f"{SITE}/hub/late/state", b"x", retain=True)
        assert engine.retained_packet(f"{SITE}/hub/late/state") is not None
        assert engine.not_retained == 2

    in_world(story)


# --- Any bytes ---------------------------------------------------------------------------------------------------------

CONVERSATION = (
    raw.connect("pc-1", will=(f"{HUB}/state", b"gone"))
    + raw.subscribe(f"{HUB}/down/+")
    + raw.publish(f"{HUB}/up/readings", b"x" * 300)
    + raw.publish(f"{HUB}/state", b"born", retain=True, qos=0)
    + raw.PINGREQ
    + raw.unsubscribe(f"{HUB}/down/+")
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_packets_may_come_in_any_pieces(size: int) -> None:
    """TCP and TLS promise an order of bytes, not of packets."""

    def story(world: World) -> None:
        heard = world.listener()
        gate, line = world.arrive()
        for start in range(0, len(CONVERSATION), size):
            assert gate.receive(CONVERSATION[start : start + size])
        assert line.sent == [
            raw.CONNACK, packets.suback(b"\0\7", [0]), b"\x40\x02\0\1", packets.PINGRESP, packets.unsuback(b"\0\x08")
        ]  # fmt: skip
        assert len(heard.sent) == 2

    in_world(story)


@settings(max_examples=250, deadline=None)
@given(st.binary(max_size=300), st.booleans(), st.integers(1, 50))
def test_random_bytes_are_taken_or_refused_and_nothing_else_happens(data: bytes, joined: bool, size: int) -> None:
    def story(world: World) -> None:
        gate, _ = world.join() if joined else world.arrive()
        try:
            for start in range(0, len(data), size):
                if not gate.receive(data[start : start + size]):
                    break
        except ViolationError:
            pass
        gate.end(clean=False)
        assert not world.engine.sessions

    in_world(story)


@settings(max_examples=350, deadline=None)
@given(st.data())
def test_a_damaged_conversation_reaches_nobody_who_may_not_hear_it(data: st.DataObject) -> None:
    """Flipped, cut and doubled bytes of valid packets get deeper into the parser than random ones."""
    damaged = bytearray(CONVERSATION)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "double"])):
            case "flip":
                damaged[at] = data.draw(st.integers(0, 255))
            case "cut":
                del damaged[at : at + data.draw(st.integers(1, 20))]
            case "insert":
                damaged[at:at] = data.draw(st.binary(min_size=1, max_size=20))
            case _:
                damaged[at:at] = damaged[at : at + 40]
        if not damaged:
            return

    def story(world: World) -> None:
        others, line = world.arrive(Principal("acme", "berlin", "hub", "pc-2"))
        others.receive(raw.connect("pc-2") + raw.subscribe(f"{SITE}/hub/pc-2/down/+", f"{SITE}/connector/+/state"))
        del line.sent[:]
        heard = world.listener()
        gate, _ = world.arrive()
        try:
            gate.receive(bytes(damaged))
        except ViolationError:
            pass
        gate.end(clean=False)
        assert sorted(world.engine.sessions) == ["desk", "pc-2"]
        assert not line.sent
        assert all(f"{HUB}/".encode() in sent for sent in heard.sent)

    in_world(story)
