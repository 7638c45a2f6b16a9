"""The stream between hubs and workers, on a real nats-server: full, too old, and with acknowledgements that are lost.

What is refused or dropped there is still with its hub, and what is delivered twice is known by its number.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError
from structlog.testing import capture_logs

from broker.engines import nats_stream
from broker.engines.nats_stream import CONSUMER, STREAM, StreamState
from broker.messages import Ack, encode
from broker.process import cancelled
from broker.topics import Topic
from cloud.envelopes import EnvelopeReader
from cloud.ingest import Arrived, Connected, Disconnected
from cloud.intake_jetstream import JetStreamIntake
from cloud.stream_watch import Level, StreamWatch, level_of
from config import limits
from config.settings import CloudProcess, CloudSettings
from tests.broker import raw_mqtt
from tests.broker.raw_mqtt import until
from tests.cluster_stream import Sender
from tests.nats import Cluster, needs_nats, running_cluster

pytestmark = needs_nats

SOON_S = 30.0
ACK_WAIT_S = 3.0
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return a node that the tests share; each makes the stream anew, and takes hubs of its own."""
    with running_cluster(tmp_path_factory.mktemp("stream")) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """Let a test leave the node to the next one: it is ended with its fixture, and the run looks that it is."""


class Worker:
    """A worker without a database: stores in `stored`, acknowledges to the hub, and then to the stream if it `settles`."""

    def __init__(self, node: Cluster, *, settles: bool = True, nats: Sequence[str] | None = None):
        self.arrived: list[tuple[str, int]] = []
        self.stored: set[tuple[str, int]] = set()
        self.receipts: list[int] = []
        self.settles = settles
        self.connections = 0
        settings = CloudSettings(node.service, CloudProcess(intake="jetstream", nats=list(nats or node.nats)))
        self.intake = JetStreamIntake(settings, self._on)
        self._reader = EnvelopeReader()

    def _on(self, event: Arrived | Connected | Disconnected) -> None:
        if isinstance(event, Connected):
            self.connections += 1
        elif isinstance(event, Arrived):
            topic = Topic.parse(event.topic)
            if topic.name == "ballast":
                self.intake.settle([event.receipt])
                return
            assert topic.leaf is not None
            epoch, seq, _, _ = self._reader.read(topic.leaf, event.payload)
            self.arrived.append((topic.name, seq))
            self.receipts.append(event.receipt)
            self.stored.add((topic.name, seq))
            if self.settles:
                to = str(Topic.down(topic.fleet, topic.site, topic.name, "ack"))
                self.intake.publish(to, encode(Ack(epoch, [(seq, seq)])), 0, False)
                self.intake.settle([event.receipt])

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[Worker]:
        """Work for the time of a block."""
        task = asyncio.create_task(self.intake.run())
        try:
            yield self
        finally:
            await cancelled([task])


@asynccontextmanager
async def stream_of(node: Cluster, **changes: float) -> AsyncIterator[JetStreamContext]:
    """Make the stream anew, with other limits than it has, and a consumer that soon sends again."""
    client = await nats_stream.connect(node.nats, node.service)
    try:
        stream = client.jetstream()
        with suppress(NotFoundError):
            await stream.delete_stream(STREAM)
        await nats_stream.ensure_stream(stream, "acme")
        config = (await stream.stream_info(STREAM)).config
        for key, value in changes.items():
            setattr(config, key, value)
        config.duplicate_window = min(config.duplicate_window, changes.get("max_age", config.duplicate_window))
        await stream.update_stream(config)
        consumer = (await stream.consumer_info(STREAM, CONSUMER)).config
        consumer.ack_wait = ACK_WAIT_S
        await stream.add_consumer(STREAM, consumer)
        yield stream
    finally:
        await client.close()


@asynccontextmanager
async def sending(node: Cluster, hub_id: str) -> AsyncIterator[Sender]:
    """Let a hub's own courier send to the node for the time of a block."""
    sender = Sender(node.hub(hub_id), node.endpoints)
    task = asyncio.create_task(sender.run())
    try:
        await until(lambda: sender.is_open)
        yield sender
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def held_by(stream: JetStreamContext) -> int:
    """Return how many messages the stream holds."""
    return (await stream.stream_info(STREAM)).state.messages


async def holds(stream: JetStreamContext, count: int) -> None:
    """Wait until the stream holds so many messages."""
    async with asyncio.timeout(SOON_S):
        while await held_by(stream) != count:
            await asyncio.sleep(0.02)


def all_of(hub_id: str, count: int) -> set[tuple[str, int]]:
    return {(hub_id, seq) for seq in range(1, count + 1)}


async def filled(node: Cluster, stream: JetStreamContext) -> int:
    """Send until the stream takes nothing more, although the node acknowledges everything; return what it holds."""
    ballast = await node.join(node.hub("ballast"))
    topic = str(Topic.up("acme", "berlin", "ballast", "logs"))
    count = 0
    for size_bytes in (200_000, 5_000, 50):
        before = -1
        while count > before:
            before = count
            ballast.send(raw_mqtt.publish(topic, b"x" * size_bytes))
            assert (await ballast.answer())[0] == 0x40
            count = await held_by(stream)
    await ballast.close()
    return count


def test_what_a_full_stream_refuses_stays_with_the_hub_and_comes_again(node: Cluster) -> None:
    """The node says "thank you" for it all the same; so only the hub's own books know. The operator is told in one line."""

    async def story() -> None:
        async with stream_of(node, max_bytes=MIB) as stream, sending(node, "full-1") as sender:
            full_of = await filled(node, stream)
            sender.measure(30)
            await until(lambda: sender._session is not None and sender._session._acknowledged >= 30)
            assert sender.acknowledged == 0
            state = (await stream.stream_info(STREAM)).state
            assert (state.messages, state.first_seq) == (full_of, 1), "it has let something go"
            worker = Worker(node)
            with capture_logs() as logs:
                async with worker.at_work():
                    await until(lambda: sender.acknowledged == 30, SOON_S)
                    await holds(stream, 0)
            assert worker.stored == all_of("full-1", 30)
            [said] = [line for line in logs if line["event"] == "stream_full"]
            assert said["log_level"] == "warning"
            assert said["messages"] == full_of
            assert said["size_max_bytes"] == MIB

    asyncio.run(story())


def test_what_the_stream_lets_go_as_too_old_comes_again(node: Cluster) -> None:
    """Workers were away for longer than it keeps anything."""

    async def story() -> None:
        async with stream_of(node, max_age=1.0) as stream, sending(node, "old-1") as sender:
            sender.measure(10)
            async with asyncio.timeout(SOON_S):
                while not await held_by(stream):
                    await asyncio.sleep(0.02)
            sender._runner.close()  # It sends nothing again meanwhile.
            await holds(stream, 0)
            assert sender.acknowledged == 0
            worker = Worker(node)
            async with worker.at_work():
                sender.measure()
                await until(lambda: sender.acknowledged == 11, SOON_S)
            assert worker.stored == all_of("old-1", 11)

    asyncio.run(story())


def test_messages_of_a_worker_that_has_gone_go_to_another_one_after_a_while(node: Cluster) -> None:
    """It was killed after it had fetched, and before it had acknowledged anything."""

    async def story() -> None:
        async with stream_of(node) as stream, sending(node, "gone-1") as sender:
            gone, other = Worker(node, settles=False), Worker(node)
            async with gone.at_work():
                sender.measure(20)
                await until(lambda: len(gone.stored) == 20)
            sender._runner.close()  # Nothing comes again from the hub, only from the stream.
            async with other.at_work():
                await until(lambda: other.stored == all_of("gone-1", 20), SOON_S)
                assert len(other.arrived) == 20
                await until(lambda: sender.acknowledged == 20)
                await holds(stream, 0)

    asyncio.run(story())


def test_a_lost_acknowledgement_is_given_again_and_nothing_waits_for_it(node: Cluster) -> None:
    """The database has it, its hub knows, and the stream does not: it comes once more, and is known."""

    async def story() -> None:
        async with stream_of(node) as stream, sending(node, "lost-1") as sender:
            worker = Worker(node, settles=False)
            async with worker.at_work():
                sender.measure(20)
                await until(lambda: len(worker.stored) == 20)
            sender._runner.close()  # Nothing comes again from the hub.
            worker.intake.settle(worker.receipts)  # There is no connection any more that could say so.
            worker.settles = True
            async with worker.at_work():
                sender.repeat(*range(21, 41))
                await until(lambda: len(worker.arrived) >= 40)
                news = [("lost-1", seq) for seq in range(21, 41)]
                assert worker.arrived[20:40] == news, "the new ones waited for the old ones"
                await holds(stream, 0)
            assert sorted(worker.arrived) == sorted([*all_of("lost-1", 40), *all_of("lost-1", 20)])
            assert worker.stored == all_of("lost-1", 40)
            assert worker.intake.waiting == 0

    asyncio.run(story())


def test_a_stream_that_one_node_held_is_spread_over_three_and_never_taken_back(tmp_path: Path) -> None:
    """It was made when the cluster was smaller, or by a worker that knew of one node only: one death would stop the ingest."""

    async def copies(node: Cluster) -> tuple[int | None, int | None]:
        client = await nats_stream.connect(node.nats, node.service)
        try:
            stream = client.jetstream()
            of_consumer = (await stream.consumer_info(STREAM, CONSUMER)).config.num_replicas
            return (await stream.stream_info(STREAM)).config.num_replicas, of_consumer
        finally:
            await client.close()

    async def story(node: Cluster) -> None:
        async with stream_of(node):
            assert await copies(node) == (1, 1)
        for known in (node.nats, node.nats[:1]):
            worker = Worker(node, nats=known)
            async with worker.at_work(), asyncio.timeout(SOON_S):
                while not worker.connections:
                    await asyncio.sleep(0.02)
            assert await copies(node) == (3, 3)

    with running_cluster(tmp_path, nodes=3) as node:
        asyncio.run(story(node))


@pytest.mark.soak  # It waits as long as an election may take.
def test_a_worker_makes_stream_and_consumer_anew_when_somebody_has_deleted_them(node: Cluster) -> None:
    """They are looked for once, when it starts; later it notices that nobody answers."""

    async def story() -> None:
        async with stream_of(node) as stream, sending(node, "anew-1") as sender:
            worker = Worker(node)
            async with worker.at_work():
                sender.measure()
                await until(lambda: sender.acknowledged == 1, SOON_S)
                await stream.delete_stream(STREAM)
                sender.measure()
                await until(lambda: sender.acknowledged == 2, SOON_S)
                assert worker.connections == 1
            assert worker.intake._requests < SOON_S / limits.JETSTREAM_RETRY_S, "it asked without a pause"

    asyncio.run(story())


# --- What is said of it ---------------------------------------------------------------------------------------------


def seen(size_bytes: int = 0, oldest_s: float = 0.0, size_max_bytes: int = 10 * MIB) -> StreamState:
    return StreamState(size_bytes // 1000, size_bytes, size_max_bytes, oldest_s)


@pytest.mark.parametrize(
    ("state", "level"),
    [
        (seen(), Level.WELL),
        (seen(5 * MIB), Level.WELL),
        (seen(5 * MIB + 1), Level.BEHIND),
        (seen(10 * MIB - limits.PACKET_MAX_BYTES), Level.BEHIND),
        (seen(10 * MIB - limits.PACKET_MAX_BYTES + 1), Level.FULL),
        (seen(1, limits.JETSTREAM_BEHIND_S), Level.WELL),
        (seen(1, limits.JETSTREAM_BEHIND_S + 1), Level.BEHIND),
        (seen(100 * MIB, size_max_bytes=-1), Level.WELL),
    ],
)
def test_level_of_the_stream(state: StreamState, level: Level) -> None:
    """Full is what may refuse the largest message; one without a limit refuses none."""
    assert level_of(state) is level


def test_each_change_for_the_worse_and_the_recovery_are_said_once() -> None:
    """An operator who is told every half minute reads nothing any more."""
    watch = StreamWatch()
    with capture_logs() as logs:
        for now, size_bytes in enumerate([0, 6 * MIB, 7 * MIB, 10 * MIB, 10 * MIB, 6 * MIB, 10 * MIB, 0, 0]):
            watch.look(seen(size_bytes), float(now))
    said = [(line["log_level"], line["event"], line.get("after_s")) for line in logs]
    assert said == [
        ("warning", "stream_behind", None),
        ("warning", "stream_full", None),
        ("warning", "stream_full", None),
        ("info", "stream_caught_up", 6.0),
    ]
