"""What is measured, in pairs of runs that take turns to go first; a run is a load that has warmed up, for some seconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import psutil

from bench import flows
from bench.flows import Load
from bench.gauge import Gauge, Memory, memory_of
from bench.load import CourierHub, PlainHub, Readings
from bench.rig import Rig, Side
from config.errors import HublineError

DRAIN_S: Final = 30.0
STEADY_RATE: Final = 500.0
"""Messages a second of 50 hubs together: a site at work, where the other scenarios are a site that catches up."""

Flow: TypeAlias = Callable[[Readings], AbstractAsyncContextManager[Load]]
Tell: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often."""

    pairs: int
    warm_s: float
    seconds: float
    steady_s: float
    hub_settles_s: float
    hub_s: float


FULL: Final = Plan(pairs=5, warm_s=2, seconds=10, steady_s=10, hub_settles_s=10, hub_s=60)
QUICK: Final = Plan(pairs=1, warm_s=1, seconds=4, steady_s=4, hub_settles_s=2, hub_s=10)


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one side. CPU is seconds per 1000 messages of each process, WAN bytes are per message."""

    side: Side
    messages_per_s: float
    cpu_s: dict[str, float]
    load_cores: float
    wan_up: float | None
    wan_down: float | None
    memory: dict[str, Memory]
    sent: int
    sent_again: int
    lost: int
    doubled: int

    @property
    def site_cpu_s(self) -> float:
        """Return what the machine at the site spends."""
        return sum(self.cpu_s[name] for name in self.side.at_site)

    @property
    def cloud_cpu_s(self) -> float:
        """Return what the machine in the cloud spends."""
        return sum(self.cpu_s[name] for name in self.side.at_cloud)

    @property
    def wan(self) -> float | None:
        """Return the bytes in both directions."""
        return None if self.wan_up is None or self.wan_down is None else self.wan_up + self.wan_down


@dataclass(slots=True)
class Comparison:
    """The pairs of one scenario, ours first whatever the order was, and the memory with 50 hubs connected and silent."""

    title: str
    readings: int
    payload_bytes: int
    rate: float | None
    pairs: list[tuple[Sample, Sample]] = field(default_factory=list)
    idle: dict[str, Memory] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HubUse:
    """What one hub needs: its memory (the most seen) and its share of a core."""

    memory: Memory
    core_share: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Audit:
    """Of everything that our hubs have sent into the database, by the database's own books."""

    messages: int
    points: int
    lost: int
    doubled: int
    repeats_refused: int


@dataclass(slots=True)
class Results:
    """All that was measured."""

    path: Comparison
    large: Comparison
    small: Comparison
    steady: Comparison
    audit: Audit
    hub: HubUse


async def measure(rig: Rig, plan: Plan, tell: Tell) -> Results:
    """Run every scenario."""
    tell("Starting brokers and connector, and Mosquitto twice.")
    ours, peer = rig.start_ours(storing=False), rig.start_peer()
    path = await _compare(
        rig,
        plan,
        tell,
        "Through the brokers to a subscriber that counts",
        [(ours, lambda readings: flows.counted(rig, ours, readings)), (peer, lambda r: flows.counted(rig, peer, r))],
        readings=10,
        with_idle=True,
    )
    rig.stop()
    tell("Starting them anew, with the cloud service, and for the peer a subscriber that stores rows.")
    ours, (peer, popen) = rig.start_ours(storing=True), rig.start_row_store(rig.start_peer())
    assert popen.stdout is not None
    ledger: list[tuple[CourierHub, int]] = []
    commits = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(commits)
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, popen.stdout)
    await asyncio.wait_for(commits.readline(), DRAIN_S)  # It is ready.

    @asynccontextmanager
    async def stored(readings: Readings) -> AsyncIterator[Load]:
        async with flows.stored(rig, ours, readings) as load:
            yield load
            ledger.extend((hub, readings.count) for hub in load.hubs if isinstance(hub, CourierHub) and hub.sent)

    into_database: list[tuple[Side, Flow]] = [
        (ours, stored),
        (peer, lambda readings: flows.stored_as_rows(rig, peer, readings, commits)),
    ]
    try:
        large = await _compare(rig, plan, tell, "Into the database", into_database, readings=100, with_idle=True)
        small = await _compare(rig, plan, tell, "Into the database", into_database, readings=10)
        steady = await _compare(
            rig, plan, tell, "Into the database at a steady load", into_database, readings=10, rate=STEADY_RATE
        )
        audit = _audit(rig, ledger)
        tell(f"Audit: {audit.messages:,} messages, {audit.lost} lost, {audit.doubled} doubled.")
        hub = await _hub(rig, plan, tell)
    finally:
        pipe.close()
    rig.stop()
    return Results(path, large, small, steady, audit, hub)


async def _compare(
    rig: Rig,
    plan: Plan,
    tell: Tell,
    title: str,
    sides: list[tuple[Side, Flow]],
    *,
    readings: int,
    rate: float | None = None,
    with_idle: bool = False,
) -> Comparison:
    made = Readings(readings)
    found = Comparison(title, readings, made.payload_bytes, rate)
    pace = "as fast as it goes" if rate is None else f"{rate:g} messages/s"
    tell(f"{title}: {readings} readings in a message of {found.payload_bytes} bytes, {pace}.")
    for side, flow in sides if with_idle else ():
        async with flow(made):
            await asyncio.sleep(plan.warm_s)
            found.idle |= {f"{side.name}: {name}": used for name, used in _gauge(rig, side).memory().items()}
    for number in range(plan.pairs):
        samples: dict[str, Sample] = {}
        for side, flow in sides if number % 2 == 0 else reversed(sides):
            sample = await _run(rig, side, flow(made), plan, rate)
            samples[side.name] = sample
            tell(
                f"  pair {number + 1} of {plan.pairs}, {side.name}: {sample.messages_per_s:,.0f} messages/s,"
                f" CPU per 1000: site {sample.site_cpu_s:.3f} s, cloud {sample.cloud_cpu_s:.3f} s"
            )
        ours, peer = (samples[side.name] for side, _ in sides)
        found.pairs.append((ours, peer))
    return found


async def _run(rig: Rig, side: Side, flow: AbstractAsyncContextManager[Load], plan: Plan, rate: float | None) -> Sample:
    """Run one load: its rate is that of the middle of the run; CPU and WAN bytes are of the whole, each message complete."""
    gauge, loop = _gauge(rig, side), asyncio.get_running_loop()
    async with flow as load:
        began, before = loop.time(), gauge.usage()
        load.start(rate)
        await asyncio.sleep(plan.warm_s)
        counted_at, counted = loop.time(), load.arrived
        await asyncio.sleep(plan.seconds if rate is None else plan.steady_s)
        messages_per_s = (load.arrived - counted) / (loop.time() - counted_at)
        memory = gauge.memory()
        rig.fleet.check()
        load.check()
        await load.finish(DRAIN_S)
        ended, after, arrived = loop.time(), gauge.usage(), load.arrived
        if not messages_per_s:
            raise HublineError(f"{side.name}: nothing arrived within {plan.seconds:g} s")
        plain = [hub for hub in load.hubs if isinstance(hub, PlainHub)]
        return Sample(
            side=side,
            messages_per_s=messages_per_s,
            cpu_s={name: (after.cpu_s[name] - before.cpu_s[name]) / arrived * 1000 for name in after.cpu_s},
            load_cores=(after.own_cpu_s - before.own_cpu_s) / (ended - began),
            wan_up=(after.wan.up - before.wan.up) / arrived if before.wan and after.wan else None,
            wan_down=(after.wan.down - before.wan.down) / arrived if before.wan and after.wan else None,
            memory=memory,
            sent=load.sent,
            sent_again=sum(hub.sent_again for hub in load.hubs if isinstance(hub, CourierHub)),
            lost=sum(hub.lost for hub in plain) + sum(hub.outstanding for hub in load.hubs),
            doubled=sum(hub.doubled for hub in plain),
        )


def _gauge(rig: Rig, side: Side) -> Gauge:
    pids = {name: rig.fleet.processes[name].popen.pid for name in (*side.at_site, *side.at_cloud)}
    return Gauge(pids, pids[side.bridge], int(side.cloud.rpartition(":")[2]))


def _audit(rig: Rig, ledger: list[tuple[CourierHub, int]]) -> Audit:
    """Hold the load's books against the database's."""
    books = {(entry.hub, entry.epoch): entry for entry in rig.fleet.audit()}
    messages = points = lost = doubled = refused = 0
    for hub, readings in ledger:
        messages += hub.sent
        points += hub.sent * readings
        entry = books.get((hub.line.client_id, hub.epoch))
        if entry is None:
            lost += hub.sent
            continue
        missing = sum(last - first + 1 for first, last in entry.missing) + hub.sent - (entry.last_seq or 0)
        lost += missing
        doubled += entry.points // readings - (hub.sent - missing)
        refused += entry.duplicates_refused
    return Audit(messages, points, lost, doubled, refused)


async def _hub(rig: Rig, plan: Plan, tell: Tell) -> HubUse:
    """Run a real hub with its default sensors, and watch it."""
    tell(f"One hub with its default sensors and intervals, for {plan.hub_s:g} s.")
    rig.start_hub()

    def is_connected() -> bool:
        status = rig.fleet.status(rig.real_hub)
        return status is not None and status.path.kind == "connector"

    rig.until("the hub is connected", is_connected)
    process = psutil.Process(rig.fleet.processes[rig.real_hub].popen.pid)
    await asyncio.sleep(plan.hub_settles_s)
    loop, most = asyncio.get_running_loop(), memory_of(process)
    began, before = loop.time(), process.cpu_times()
    while loop.time() - began < plan.hub_s:
        await asyncio.sleep(1.0)
        now = memory_of(process)
        most = Memory(max(most.rss, now.rss), max(most.uss, now.uss))
    after, seconds = process.cpu_times(), loop.time() - began
    rig.fleet.check()
    return HubUse(most, (after.user + after.system - before.user - before.system) / seconds, seconds)
