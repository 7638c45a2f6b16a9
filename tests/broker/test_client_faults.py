"""One session against a broker that does what it is told to: bad moments, bad networks, and what must not be left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from broker import packets
from broker.client import Closed, Lost, Opened, Received, Session, SessionOptions
from broker.tls import ServerContext, client_context
from config import limits
from config.principal import server_name
from tests.broker.certificates import FleetFiles
from tests.broker.raw_mqtt import publish
from tests.sessions import WAIT_S, Ears, is_a

UP = "hl1/acme/berlin/hub/pc-1/up/readings"
ALL_STATES = "hl1/acme/berlin/hub/+/state"
STATE = "hl1/acme/berlin/hub/pc-1/state"
OTHER_STATE = "hl1/acme/berlin/connector/berlin-1/state"
CONNACK_5 = b"\x20\x03\x00\x00\x00"
SUBACK_REFUSED = packets.suback(b"\0\x01", [packets.NOT_SUBSCRIBED])
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
in_both_ways = pytest.mark.parametrize("in_thread", [False, True], ids=["loop", "thread"])


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> FleetFiles:
    return FleetFiles(tmp_path_factory.mktemp("faults") / "fleet")


class Bench:
    """A broker's end, and sessions to it."""

    def __init__(self, fleet: FleetFiles, endpoint: str):
        self.fleet, self.endpoint = fleet, endpoint
        self._identity = fleet.identity("hub", "pc-1", "berlin")

    def session(
        self,
        *,
        in_thread: bool,
        mqtt5: bool = False,
        keep_alive_s: int = 20,
        ask_again_s: tuple[float, ...] = limits.SUBSCRIBE_AGAIN_S,
    ) -> tuple[Session, Ears]:
        tls = client_context(self._identity, server_name("acme", "berlin"))
        ears = Ears()
        options = SessionOptions(
            self.endpoint,
            "pc-1",
            tls,
            keep_alive_s=keep_alive_s,
            mqtt5=mqtt5,
            in_thread=in_thread,
            ask_again_s=ask_again_s,
        )
        return Session(options, ears), ears


@asynccontextmanager
async def bench(fleet: FleetFiles, serve: Serve) -> AsyncIterator[Bench]:
    """Serve what a test says; it gets a stream right after the handshake."""
    served: set[asyncio.StreamWriter] = set()
    tasks: set[asyncio.Task[object]] = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(writer)
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # The client has gone.
        finally:
            writer.close()

    tls = ServerContext(fleet.identity("broker", "broker-1", "berlin"), None).current
    server = await asyncio.start_server(run, "127.0.0.1", 0, ssl=tls)
    try:
        yield Bench(fleet, "{}:{}".format(*server.sockets[0].getsockname()))
    finally:
        server.close()
        for writer in served:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()
        if tasks:
            await asyncio.wait(tasks)


async def packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    first = (await reader.readexactly(1))[0]
    length = shift = 0
    while True:
        more = (await reader.readexactly(1))[0]
        length, shift = length | (more & 0x7F) << shift, shift + 7
        if not more & 0x80:
            return first, await reader.readexactly(length)


async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take the CONNECT."""
    _, body = await packet(reader)
    writer.write(CONNACK_5 if body[6] == 5 else packets.CONNACK_ACCEPTED)


def run(story: Awaitable[None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(2 * WAIT_S):
            await story

    asyncio.run(limited())


# --- What passes ---------------------------------------------------------------------------------------------------------


@in_both_ways
@pytest.mark.parametrize("mqtt5", [False, True], ids=["3.1.1", "5"])
def test_what_one_tls_record_holds_is_read_at_once(fleet: FleetFiles, in_thread: bool, mqtt5: bool) -> None:
    """The socket is not readable for what TLS has read already: the last messages would wait for the next."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        await packet(reader)
        props = b"\0" if mqtt5 else b""
        one_record = b"".join(publish(UP, props + b"%d" % number, packet_id=1 + number) for number in range(300))
        writer.write(one_record)
        for _ in range(300):
            assert (await packet(reader))[0] == packets.PUBACK
        writer.write(publish(UP, props + b"all acknowledged", qos=0))
        await reader.read()

    async def story() -> None:
        async with bench(fleet, serve) as here:
            session, ears = here.session(in_thread=in_thread, mqtt5=mqtt5)
            session.open()
            await ears.hear(is_a(Opened))
            session.subscribe([(UP, 1)])
            await ears.hear(lambda event: isinstance(event, Received) and event.payload == b"all acknowledged")
            assert [e.payload for e in ears.heard if isinstance(e, Received)][:300] == [b"%d" % n for n in range(300)]
            await session.close()

    run(story())


@in_both_ways
def test_a_subscription_goes_before_what_is_published_after_it(fleet: FleetFiles, in_thread: bool) -> None:
    """The answer to a message may come at once: whoever is not subscribed by then misses it."""
    came: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        came.extend([(await packet(reader))[0] for _ in range(5)])
        writer.write(packets.publish(UP, b"all here"))
        await reader.read()

    async def story() -> None:
        async with bench(fleet, serve) as here:
            session, ears = here.session(in_thread=in_thread)
            session.open()
            await ears.hear(is_a(Opened))
            session.publish(UP, b"1")
            session.subscribe([(UP, 1)])
            session.publish(UP, b"2", qos=0)
            session.unsubscribe([UP])
            session.publish(UP, b"3")
            await ears.hear(is_a(Received))
            await session.close()
        assert came == [0x32, packets.SUBSCRIBE, 0x30, packets.UNSUBSCRIBE, 0x32]

    run(story())


async def subscription(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[str]:
    """Grant a SUBSCRIBE, and return its topic filters."""
    first, body = await packet(reader)
    assert first == packets.SUBSCRIBE
    packet_id, wanted = packets.parse_subscribe(body)
    writer.write(packets.suback(packet_id, [1] * len(wanted)))
    return list(wanted)


@in_both_ways
def test_states_are_asked_for_again_and_heard_once(fleet: FleetFiles, in_thread: bool) -> None:
    """A broker may hide what is published while it takes a subscription, and give an old state for a new one."""
    asked: list[list[str]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        born, missed = packets.publish(STATE, b"born", retain=True), packets.publish(OTHER_STATE, b"born", retain=True)
        for answer in (born, packets.publish(STATE, b"ended") + born + missed, born + missed):
            asked.append(await subscription(reader, writer))
            writer.write(answer)
        writer.write(packets.publish(UP, b"all answered"))
        await reader.read()

    async def story() -> None:
        async with bench(fleet, serve) as here:
            session, ears = here.session(in_thread=in_thread, ask_again_s=(0.01, 0.02))
            session.open()
            await ears.hear(is_a(Opened))
            session.subscribe([(UP, 1), (ALL_STATES, 1)])
            await ears.hear(lambda event: isinstance(event, Received) and event.payload == b"all answered")
            assert [(event.topic, event.payload) for event in ears.heard if isinstance(event, Received)] == [
                (STATE, b"born"), (STATE, b"ended"), (OTHER_STATE, b"born"), (UP, b"all answered"),
            ]  # fmt: skip
            await session.close()
        assert asked == [[UP, ALL_STATES], [ALL_STATES], [ALL_STATES]]

    run(story())


@in_both_ways
def test_a_subscription_to_states_that_was_ended_does_not_come_back(fleet: FleetFiles, in_thread: bool) -> None:
    asked: list[list[str]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        asked.append(await subscription(reader, writer))
        asked.append(await subscription(reader, writer))
        assert (await packet(reader))[0] == packets.UNSUBSCRIBE
        asked.append(await subscription(reader, writer))
        writer.write(packets.publish(UP, b"all answered"))
        await reader.read()

    async def story() -> None:
        async with bench(fleet, serve) as here:
            session, ears = here.session(in_thread=in_thread, ask_again_s=(0.01,))
            session.open()
            await ears.hear(is_a(Opened))
            session.subscribe([(ALL_STATES, 1)])
            session.subscribe([(OTHER_STATE, 1)])
            session.unsubscribe([ALL_STATES])
            await ears.hear(is_a(Received))
            await session.close()
        assert asked == [[ALL_STATES], [OTHER_STATE], [OTHER_STATE]]

    run(story())


@in_both_ways
def test_a_goodbye_comes_after_all_that_was_published(fleet: FleetFiles, in_thread: bool) -> None:
    """Megabytes wait for a slow reader when the session is closed; a DISCONNECT between them would cut them off."""
    came: list[tuple[int, int]] = []

    async def story() -> None:
        done = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await accept(reader, writer)
            while True:
                first, body = await packet(reader)
                came.append((first, len(body)))
                if first & 0xF0 == packets.DISCONNECT:
                    done.set()
                    return

        async with bench(fleet, serve) as here:
            session, ears = here.session(in_thread=in_thread)
            session.open()
            await ears.hear(is_a(Opened))
            for _ in range(40):
                assert session.publish(UP, bytes(limits.MESSAGE_MAX_BYTES))
            await session.close()
            assert not session.publish(UP, b"too late")
            await done.wait()
        assert [first for first, _ in came] == [0x32] * 40 + [packets.DISCONNECT]
        assert ears.heard[-1] == Closed()

    run(story())


@in_both_ways
def test_the_last_words_of_a_broker_that_cuts_the_connection_are_heard_as_they_were(
    fleet: FleetFiles, in_thread: bool
) -> None:
    """Writing fails first; then what has come is still TLS, not to be taken for packets as it is."""

    async def story() -> None:
        writers: list[asyncio.StreamWriter] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await accept(reader, writer)
            writers.append(writer)
            await reader.read()

        async with bench(fleet, serve) as here:
            session, ears = here.session(in_thread=in_thread)
            session.open()
            await ears.hear(is_a(Opened))
            (writer,) = writers
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.write(packets.publish(UP, b"last words"))
            writer.transport.abort()
            for _ in range(5):
                session.publish(UP, b"into the void")
                await asyncio.sleep(0)
            await ears.hear(is_a(Lost))
            assert [type(event) for event in ears.heard if not isinstance(event, Received)] == [Opened, Lost]
            assert {event.payload for event in ears.heard if isinstance(event, Received)} <= {b"last words"}
            if not in_thread:
                assert Received(UP, b"last words", retain=False) in ears.heard

    run(story())


# --- Keep alive ------------------------------------------------------------------------------------------------------------


@in_both_ways
def test_a_broker_that_only_sends_messages_lives(fleet: FleetFiles, in_thread: bool) -> None:
    """Its PINGRESP may wait behind a long queue: on a slow line a session must not end for what it carries."""
    pings: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)

        async def note_pings() -> None:
            while True:
                pings.append((await packet(reader))[0])

        noting = asyncio.create_task(note_pings())
        while len(pings) < 2:
            writer.write(packets.publish(UP, b"alive"))
            await asyncio.sleep(0.1)
        noting.cancel()
        writer.write(packets.publish(UP, b"enough"))
        await asyncio.wait([noting])

    async def story() -> None:
        async with bench(fleet, serve) as here:
            session, ears = here.session(in_thread=in_thread, keep_alive_s=3)
            session.open()
            await ears.hear(lambda event: isinstance(event, Lost) or getattr(event, "payload", b"") == b"enough")
            assert [type(e) for e in ears.heard if not isinstance(e, Received)] in ([Opened], [Opened, Lost])
            assert getattr(ears.heard[-1], "payload", b"enough") == b"enough"
            assert set(pings) == {packets.PINGREQ}
            assert len(pings) >= 2
            session.abort()

    run(story())


@in_both_ways
def test_a_broker_that_takes_all_and_says_nothing_is_lost(fleet: FleetFiles, in_thread: bool) -> None:
    """That we can write says little: the far end of a broken line does not tell."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accept(reader, writer)
        await reader.read()

    async def story() -> None:
        async with bench(fleet, serve) as here:
            session, ears = here.session(in_thread=in_thread, keep_alive_s=1)
            session.open()
            await ears.hear(is_a(Opened))
            while not any(isinstance(event, Lost) for event in ears.heard):
                session.publish(UP, b"hello?")
                await asyncio.sleep(0.05)
            (lost,) = (event for event in ears.heard if isinstance(event, Lost))
            assert lost.reason == "no life sign from the broker"
            assert lost.alive_at is not None

    run(story())


# --- Every end, in every state -----------------------------------------------------------------------------------------------


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def flooding(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await accept(reader, writer)
    while True:
        writer.write(packets.publish_once(UP, bytes(1000), 1) * 100)
        await writer.drain()
        await asyncio.sleep(0)  # To a connection that has just broken, drain() lets nobody else tell of it.


async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await accept(reader, writer)
    await packet(reader)
    writer.write(SUBACK_REFUSED + packets.publish(UP, b"more"))
    await reader.read()


async def leaving(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await accept(reader, writer)


SERVES: dict[str, Serve] = {"silent": silent, "flooding": flooding, "refusing": refusing, "leaving": leaving}


async def at_once(_session: Session, _ears: Ears) -> None:
    pass


async def met(session: Session, _ears: Ears) -> None:
    while session._dial.socket is None:
        await asyncio.sleep(0)


async def heard(_session: Session, ears: Ears) -> None:
    await ears.hear(is_a(Opened))


async def subscribed(session: Session, ears: Ears) -> None:
    await ears.hear(is_a(Opened))
    session.subscribe([(UP, 1)])
    await asyncio.sleep(0)


async def lost(_session: Session, ears: Ears) -> None:
    await ears.hear(is_a(Lost))


STATES = [
    ("silent", at_once),
    ("silent", met),
    ("flooding", at_once),
    ("flooding", met),
    ("flooding", heard),
    ("refusing", subscribed),
    ("leaving", heard),
    ("leaving", lost),
]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@in_both_ways
@pytest.mark.parametrize("ending", ["close", "abort", "close twice", "abort and close", "close and abort"])
def test_a_session_ends_once_and_leaves_nothing_behind(fleet: FleetFiles, in_thread: bool, ending: str) -> None:
    """A hub opens one after the other for years: in whatever state each of them ends, nothing of it may stay."""

    async def end(session: Session) -> None:
        match ending:
            case "close":
                await session.close()
            case "abort":
                session.abort()
            case "close twice":
                await asyncio.gather(session.close(), session.close())
            case "abort and close":
                session.abort()
                await session.close()
            case _:
                closing = asyncio.create_task(session.close())
                await asyncio.sleep(0)
                session.abort()
                await closing

    async def story() -> None:
        for serve, state in STATES:
            async with bench(fleet, SERVES[serve]) as here:
                threads, before = threading.active_count(), descriptors()
                for _ in range(3):
                    session, ears = here.session(in_thread=in_thread)
                    session.open()
                    await state(session, ears)
                    await end(session)
                    ends = [event for event in ears.heard if not isinstance(event, Opened | Received)]
                    assert len(ends) == 1, (serve, state.__name__, ears.heard)
                    if ending == "close" and state is not lost and serve not in ("leaving", "refusing"):
                        assert ends == [Closed()], (serve, state.__name__)
                    await session._ended.wait()
                    session._thread.join(WAIT_S)
                    assert not session._thread.is_alive()
                    told = len(ears.heard)
                    await asyncio.sleep(0)
                    await session.close()
                    session.abort()
                    assert len(ears.heard) == told, "nothing comes after the end"
                while descriptors() > before + 3 or threading.active_count() > threads:  # The broker's ends.
                    await asyncio.sleep(0.01)

    run(story())


@in_both_ways
def test_a_session_that_was_never_opened_ends_too(fleet: FleetFiles, in_thread: bool) -> None:
    async def story() -> None:
        async with bench(fleet, silent) as here:
            before = descriptors()
            session, ears = here.session(in_thread=in_thread)
            await session.close()
            session.open()
            assert ears.heard == [Closed()]
            other, other_ears = here.session(in_thread=in_thread)
            other.abort()
            other.open()
            assert other_ears.heard == [Lost("aborted", None)]
            assert not session._begun
            assert not other._begun
            assert descriptors() == before

    run(story())


@in_both_ways
def test_a_session_aborted_while_it_connects_never_shows_at_the_broker(fleet: FleetFiles, in_thread: bool) -> None:
    """It would go on as a ghost: pinging, holding the client id, and its will would come at a bad time."""
    came: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(await reader.read(1))

    async def story() -> None:
        async with bench(fleet, serve) as here:
            session, ears = here.session(in_thread=in_thread)
            session.open()
            await met(session, ears)
            session.abort()
            await session._ended.wait()
            assert [type(event) for event in ears.heard] == [Lost]
        assert came in ([], [b""])

    run(story())


@in_both_ways
def test_a_session_outlives_no_event_loop(fleet: FleetFiles, in_thread: bool) -> None:
    """A process that ends in an error closes nothing; its threads must not go on pinging for nobody."""

    async def story() -> Session:
        async with bench(fleet, flooding) as here:
            session, ears = here.session(in_thread=in_thread)
            session.open()
            await ears.hear(is_a(Opened))
            return session

    before = descriptors()
    session = asyncio.run(story())
    session._thread.join(WAIT_S)
    assert not session._thread.is_alive()
    del session
    gc.collect()
    assert descriptors() <= before


def test_a_loop_that_ends_with_its_session_leaves_no_socket_behind(fleet: FleetFiles) -> None:
    """What a thread asks of such a loop is never done: nothing may depend on it."""
    with socket.create_server(("127.0.0.1", 0)) as silent_peer:
        before = descriptors()
        loop = asyncio.new_event_loop()

        async def begin() -> Session:
            session, _ = Bench(fleet, f"127.0.0.1:{silent_peer.getsockname()[1]}").session(in_thread=True)
            session.open()
            return session

        session = loop.run_until_complete(begin())
        session.abort()
        session._thread.join(WAIT_S)
        assert not session._thread.is_alive()
        loop.close()
        assert descriptors() == before


@in_both_ways
def test_a_listener_that_fails_does_not_keep_acknowledgements_back(fleet: FleetFiles, in_thread: bool) -> None:
    """A broker sends no more than so many without them; the error itself goes to whoever runs the loop."""

    async def story() -> None:
        acknowledged = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await accept(reader, writer)
            await packet(reader)
            writer.write(packets.publish_once(UP, b"", 1))
            assert (await packet(reader))[0] == packets.PUBACK
            acknowledged.set()
            await reader.read()

        errors: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(str(context["exception"])))
        async with bench(fleet, serve) as here:
            session, ears = here.session(in_thread=in_thread)

            def fail(event: object) -> None:
                ears(event)  # type: ignore[arg-type]
                if isinstance(event, Received):
                    raise ValueError("bad listener")

            session._report = fail
            session.open()
            await ears.hear(is_a(Opened))
            session.subscribe([(UP, 1)])
            await acknowledged.wait()
            await session.close()
            assert errors == ["bad listener"]
            assert ears.heard[-1] == Closed()

    run(story())
