"""The two flows that are measured: to a subscriber that counts, and into a database, each with 50 hubs of the load."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import orjson

from bench.load import WINDOW, CourierHub, Line, LoadHub, PlainHub, Readings, seq_of
from bench.rig import COUNTER, Rig, Side
from broker.tls import client_context
from broker.topics import Topic, hub_filter
from config.demo_fleet import FLEET, SITE
from config.principal import CLOUD_SITE, server_name

TICK_S: Final = 0.01
UNLIMITED: Final = 10**9
READY_S: Final = 30.0
COMMIT_LINE_BYTES: Final = 1024 * 1024
"""A row store's line about one commit of 500 messages is some 30 kB."""


@dataclass(slots=True)
class Load:
    """The hubs of one run, connected. `rate` is in messages a second over all of them; None is as fast as it goes."""

    hubs: Sequence[LoadHub]
    learning: list[asyncio.Task[None]] = field(default_factory=list)
    """What tells the hubs how far their messages are; it must not end."""
    patient: bool = False
    """Nothing is given up: what piles up somewhere may still come."""
    reconnects: bool = False
    """Its hubs may lose their connections."""
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self, rate: float | None) -> None:
        """Begin to send."""
        if rate is None:
            for hub in self.hubs:
                hub.offer(UNLIMITED)
        else:
            self._tasks.append(asyncio.create_task(self._pace(rate)))
        self._tasks.append(asyncio.create_task(self._write_off()))

    @property
    def arrived(self) -> int:
        return sum(hub.arrived for hub in self.hubs)

    @property
    def offered(self) -> int:
        """Return how many messages its hubs have been given to send."""
        return sum(hub.offered for hub in self.hubs)

    @property
    def sent(self) -> int:
        return sum(hub.sent for hub in self.hubs)

    async def finish(self, timeout_s: float) -> None:
        """Send nothing new, and wait until everything has arrived or is given up."""
        pacing, self._tasks = self._tasks[:-1], self._tasks[-1:]
        for task in pacing:
            task.cancel()
        for hub in self.hubs:
            hub.withhold()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while any(hub.outstanding for hub in self.hubs) and loop.time() < deadline:  # noqa: ASYNC110 cheaper than events
            await asyncio.sleep(0.05)
        for task in self._tasks:
            task.cancel()

    async def _pace(self, rate: float) -> None:
        loop = asyncio.get_running_loop()
        began, offered = loop.time(), 0
        while True:
            due = int((loop.time() - began) * rate)
            for number in range(offered, due):
                self.hubs[number % len(self.hubs)].offer(1)
            offered = due
            await asyncio.sleep(TICK_S)

    async def _write_off(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            for hub in self.hubs:
                if hub.line.lost.done() and not self.reconnects:
                    raise ConnectionError(f"{hub.line.client_id} was disconnected")
                if isinstance(hub, PlainHub) and not self.patient:
                    hub.write_off()

    def check(self) -> None:
        """Raise ConnectionError if a hub has lost its connection."""
        for task in (*self._tasks, *self.learning):
            if task.done():
                task.result()


@asynccontextmanager
async def counted(rig: Rig, side: Side, readings: Readings, window: int = WINDOW) -> AsyncIterator[Load]:
    """Connect hubs that publish with QoS 1, and a subscriber (QoS 1) at the cloud broker that counts what comes."""
    hubs, by_topic = _plain_hubs(rig, readings, window)
    touched: set[PlainHub] = set()

    def count(topic: bytes, payload: bytes) -> None:
        hub = by_topic.get(topic)
        if hub is not None:
            hub.arrive(seq_of(payload))
            touched.add(hub)

    def go_on() -> None:
        for hub in touched:
            hub.pump()
        touched.clear()

    counter = Line(COUNTER, count, go_on)
    try:
        await counter.open(side.cloud, client_context(rig.identity("reader", COUNTER), server_name(FLEET, CLOUD_SITE)))
        await counter.subscribe(hub_filter(FLEET, "+", "+", "up"), 1)
        await _open_all(rig, side, hubs)
        yield Load(hubs)
    finally:
        _close_all(hubs)
        counter.close()
        await asyncio.sleep(0.1)


@asynccontextmanager
async def stored_as_rows(rig: Rig, side: Side, readings: Readings, window: int = WINDOW) -> AsyncIterator[Load]:
    """Connect hubs that publish with QoS 1, and learn from the row store what it has committed."""
    hubs, _ = _plain_hubs(rig, readings, window)
    by_id = {hub.line.client_id: hub for hub in hubs}
    commits = asyncio.StreamReader(limit=COMMIT_LINE_BYTES)
    loop = asyncio.get_running_loop()
    pipe, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commits), rig.output("row store"))

    async def learn() -> None:
        while line := await commits.readline():
            for hub_id, epoch, seq in orjson.loads(line):
                if by_id[hub_id].epoch == epoch:
                    by_id[hub_id].arrive(seq)
            for hub in hubs:
                hub.pump()

    try:
        await asyncio.wait_for(commits.readline(), READY_S)  # It is ready.
        learning = asyncio.create_task(learn())
        try:
            await _open_all(rig, side, hubs)
            yield Load(hubs, [learning], patient=window == UNLIMITED)
        finally:
            learning.cancel()
            _close_all(hubs)
            await asyncio.sleep(0.1)
    finally:
        pipe.close()


@asynccontextmanager
async def stored(rig: Rig, side: Side, readings: Readings) -> AsyncIterator[Load]:
    """Connect hubs that send again until the cloud acknowledges."""
    hubs: list[CourierHub] = []
    for name in rig.hubs:
        position = len(hubs)
        line = Line(name, lambda _, payload, position=position: hubs[position].acknowledged(payload))  # type: ignore[misc]
        hubs.append(CourierHub(line, str(Topic.up(FLEET, SITE, name, "readings")), readings, secrets.token_hex(8)))
    try:
        await _open_all(rig, side, hubs)
        for hub in hubs:
            await hub.line.subscribe(hub_filter(FLEET, SITE, hub.line.client_id, "down"), 0)
        yield Load(hubs)
    finally:
        for hub in hubs:
            hub.close()
        _close_all(hubs)
        await asyncio.sleep(0.1)


def _plain_hubs(rig: Rig, readings: Readings, window: int) -> tuple[list[PlainHub], dict[bytes, PlainHub]]:
    hubs, by_topic = list[PlainHub](), dict[bytes, PlainHub]()
    for name in rig.hubs:
        topic = str(Topic.up(FLEET, SITE, name, "readings"))
        hub = PlainHub(Line(name), topic, readings, secrets.token_hex(8), window)
        hubs.append(hub)
        by_topic[topic.encode()] = hub
    return hubs, by_topic


async def _open_all(rig: Rig, side: Side, hubs: Sequence[LoadHub]) -> None:
    name = server_name(FLEET, SITE)
    for hub in hubs:
        await hub.line.open(side.site, client_context(rig.identity("hub", hub.line.client_id), name))


def _close_all(hubs: Sequence[LoadHub]) -> None:
    for hub in hubs:
        hub.line.close()
