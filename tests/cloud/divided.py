"""A divided cloud service in the event loop of a test: workers and operations with a real PostgreSQL and a real broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from broker import client
from broker.client import Session, SessionOptions
from broker.clock import unix_ms
from broker.messages import Ack, HubState, decode, encode
from broker.ranges import Ranges
from broker.tls import client_context
from broker.topics import Topic, hub_filter
from cloud.intake import Part
from cloud.service import Service
from config.principal import CLOUD_SITE, server_name
from config.settings import Api, CloudPresence, CloudProcess, CloudSettings, Identity
from tests.cloud.wire import EPOCH, SITE, one

DEADLINE_S = 30.0


async def until(what: str, true: Callable[[], object]) -> None:
    """Wait for something to become true, with a deadline that says what it waited for."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not true():
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE_S:g} s: {what}") from None


@dataclass
class Peer:
    """A session of some role with the broker, and everything that it has received."""

    session: Session
    fleet: str
    received: list[client.Received] = field(default_factory=list)
    opened: bool = False

    def send(self, hub_id: str, *seqs: int, epoch: str = EPOCH) -> None:
        """Send messages as a hub does."""
        for seq in seqs:
            topic = str(Topic.up(self.fleet, SITE, hub_id, "readings"))
            self.session.publish(topic, one(seq, epoch=epoch, sent=unix_ms()), qos=1)

    def say(self, topic: Topic, content: msgspec.Struct, *, retain: bool = False) -> None:
        """Publish something else."""
        self.session.publish(str(topic), encode(content), qos=1, retain=retain)

    def born(self, hub_id: str, session: int = 1) -> None:
        """Say that a hub is there."""
        state = HubState(online=True, epoch=EPOCH, session=session, via="direct", mode="continuous", ts=unix_ms())
        self.say(Topic.hub_state(self.fleet, SITE, hub_id), state, retain=True)

    def acknowledged(self) -> Ranges:
        """Return what the cloud has acknowledged."""
        acks = [decode(got.payload, Ack) for got in self.received if Topic.parse(got.topic).leaf == "ack"]
        return Ranges(part for ack in acks for part in ack.ranges)

    def of(self, channel: str) -> dict[str, dict[str, object]]:
        """Return the newest content of each topic of a channel."""
        found = [(got.topic, got.payload) for got in self.received if Topic.parse(got.topic).channel == channel]
        return {topic: json.loads(payload) for topic, payload in found if payload}


@asynccontextmanager
async def connected(identity: Identity, endpoint: str, filters: Sequence[tuple[str, int]] = ()) -> AsyncIterator[Peer]:
    """Open a session at the cloud broker; a hub hears what comes down to it."""
    tls = client_context(identity, server_name(identity.fleet, CLOUD_SITE))

    def report(event: client.SessionEvent) -> None:
        match event:
            case client.Received():
                this.received.append(event)
            case client.Opened():
                this.opened = True
            case _:
                pass

    this = Peer(Session(SessionOptions(endpoint, identity.name, tls), report), identity.fleet)
    this.session.open()
    await until(f"{identity.name} is connected", lambda: this.opened)
    this.session.subscribe(filters or [(hub_filter(identity.fleet, identity.site, identity.name, "down"), 1)])
    try:
        yield this
    finally:
        await this.session.close()


@dataclass
class Running:
    """One part of the service."""

    task: asyncio.Task[None]
    stop: asyncio.Event
    service: Service

    def status(self) -> dict[str, object]:
        return self.service._describe()


@dataclass
class Divided:
    """What all parts are told: where the broker, the nodes and the database are."""

    identity: Identity
    folder: Path
    broker: str
    database: str
    intake: str = "mqtt"
    nats: Sequence[str] = ()

    def settings(self) -> CloudSettings:
        """Return the settings of every part."""
        process = CloudProcess(
            broker=self.broker,
            intake=self.intake,  # type: ignore[arg-type]
            nats=list(self.nats),
            database=self.database,
            data_dir=self.folder / "data",
        )
        return CloudSettings(self.identity, process, presence=CloudPresence(grace_s=1.0), api=Api(enabled=False))

    @asynccontextmanager
    async def part(
        self, only: Part | None, ready: Callable[[dict[str, object]], bool] | None = None
    ) -> AsyncIterator[Running]:
        """Run a part, from when it is connected until it has stopped in order."""
        stop = asyncio.Event()
        service = Service(self.settings(), only)
        running = Running(asyncio.create_task(service.run(stop)), stop, service)
        try:
            if ready is None:
                ready = lambda status: status["broker"] == "up" and status.get("follows_workers", True)  # type: ignore[assignment,return-value] # noqa: E731
            await until(f"{only} runs", lambda: running.task.done() or ready(running.status()))
            yield running
        finally:
            stop.set()
            await asyncio.wait([running.task], timeout=DEADLINE_S)
            if running.task.done() and not running.task.cancelled():
                running.task.exception()
