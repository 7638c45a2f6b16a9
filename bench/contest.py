"""Contestants under the same load, in rounds in which they take turns to go first; a run has warmed up before it counts.

Each run starts its contestant's processes from scratch, and ends them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from bench import flows
from bench.flows import Load
from bench.gauge import Gauge, Memory
from bench.load import CourierHub, PlainHub, Readings
from bench.rig import Database, Rig, Side
from config.errors import HublineError

DRAIN_S: Final = 30.0
TICK_S: Final = 0.02
SHORT_MIN_S: Final = 4.0
PATIENCE: Final = 5.0
"""Times the length of a run: how long two commits are waited for."""
Tell: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How often and how long."""

    rounds: int
    warm_s: float
    seconds: float

    @property
    def is_quick(self) -> bool:
        """Tell whether the figures are an indication only."""
        return self.rounds == 1

    def shorter(self) -> Plan:
        """Return one with shorter runs, for what is steady or only a picture."""
        return Plan(self.rounds, self.warm_s, max(SHORT_MIN_S, self.seconds * 0.6))


@dataclass(frozen=True, slots=True)
class Contestant:
    """How to start one, and how its hubs learn that a message has arrived: counted out of the broker, or stored.

    `against` names the one that it is compared with; a name may be that of several contests' contestants.
    """

    name: str
    start: Callable[[Rig], Side]
    ends: Literal["counted", "acknowledged", "rows"]
    against: str | None = None
    database: Database | None = None

    def flow(self, rig: Rig, side: Side, readings: Readings) -> AbstractAsyncContextManager[Load]:
        """Return the hubs, when entered."""
        match self.ends:
            case "counted":
                return flows.counted(rig, side, readings)
            case "acknowledged":
                return flows.stored(rig, side, readings)
            case "rows":
                return flows.stored_as_rows(rig, side, readings)


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one side. CPU is seconds per 1000 messages of each process, WAN bytes are per message."""

    side: Side
    messages_per_s: float
    cpu_s: dict[str, float]
    load_cores: float
    wan_up: float | None
    wan_down: float | None
    idle: dict[str, Memory]
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
class Contest:
    """What was measured: a sample of each contestant in each round."""

    title: str
    readings: int
    payload_bytes: int
    rate: float | None
    contestants: Sequence[Contestant]
    rounds: list[dict[str, Sample]] = field(default_factory=list)

    def samples(self, name: str) -> list[Sample]:
        """Return those of one contestant."""
        return [samples[name] for samples in self.rounds]

    def ratios(self, name: str, of: Callable[[Sample], float | None]) -> list[float]:
        """Return a contestant's value by that of whom it is compared with, for each round in which both are known."""
        against = next(each.against for each in self.contestants if each.name == name)
        if against is None:
            return []
        both = ((of(samples[name]), of(samples[against])) for samples in self.rounds)
        return [mine / other for mine, other in both if mine is not None and other]


@dataclass(slots=True)
class Ledger:
    """Every message that hubs with couriers have sent into a database, for an audit."""

    sent: dict[Database, list[tuple[str, str, int, int]]] = field(default_factory=dict)

    def note(self, database: Database, load: Load, readings: int) -> None:
        """Take the load's books."""
        entries = self.sent.setdefault(database, [])
        hubs = [hub for hub in load.hubs if isinstance(hub, CourierHub) and hub.sent]
        entries.extend((hub.line.client_id, hub.epoch, hub.sent, readings) for hub in hubs)


@dataclass(slots=True)
class Audit:
    """Of everything that our hubs have sent into the database, by the database's own books."""

    messages: int = 0
    points: int = 0
    lost: int = 0
    doubled: int = 0
    repeats_refused: int = 0


async def hold(
    rig: Rig,
    plan: Plan,
    tell: Tell,
    contestants: Sequence[Contestant],
    title: str,
    *,
    readings: int,
    rate: float | None = None,
    ledger: Ledger | None = None,
) -> Contest:
    """Run every round."""
    made = Readings(readings)
    found = Contest(title, readings, made.payload_bytes, rate, contestants)
    pace = "as fast as it goes" if rate is None else f"{rate:g} messages/s"
    tell(f"{title}: {readings} readings in a message of {found.payload_bytes} bytes, {pace}.")
    for number in range(plan.rounds):
        turn = (number // 2) % len(contestants)
        order = [*contestants[turn:], *contestants[:turn]]
        samples: dict[str, Sample] = {}
        for contestant in order if number % 2 == 0 else reversed(order):
            sample = samples[contestant.name] = await run(rig, plan, contestant, made, rate, ledger)
            tell(
                f"  round {number + 1} of {plan.rounds}, {contestant.name}: {sample.messages_per_s:,.0f} messages/s,"
                f" CPU per 1000: site {sample.site_cpu_s:.3f} s, cloud {sample.cloud_cpu_s:.3f} s"
            )
        found.rounds.append(samples)
    return found


async def run(
    rig: Rig,
    plan: Plan,
    contestant: Contestant,
    readings: Readings,
    rate: float | None,
    ledger: Ledger | None = None,
) -> Sample:
    """Run one load: its rate is that of the middle of the run; CPU and WAN bytes are of the whole, each message complete."""
    loop = asyncio.get_running_loop()
    side = contestant.start(rig)
    try:
        async with contestant.flow(rig, side, readings) as load:
            gauge = gauge_of(rig, side)
            await asyncio.sleep(plan.warm_s / 2)
            idle = gauge.memory()
            began, before = loop.time(), gauge.usage()
            load.start(rate)
            await asyncio.sleep(plan.warm_s)
            messages_per_s = await _rate(load, plan.seconds)
            memory = gauge.memory()
            rig.fleet.check()
            load.check()
            await load.finish(DRAIN_S)
            ended, after, arrived = loop.time(), gauge.usage(), load.arrived
            if ledger is not None and contestant.ends == "acknowledged" and contestant.database is not None:
                ledger.note(contestant.database, load, readings.count)
    finally:
        rig.stop()
    if not messages_per_s:
        raise HublineError(f"{contestant.name}: nothing arrived within {plan.seconds:g} s")
    plain = [hub for hub in load.hubs if isinstance(hub, PlainHub)]
    return Sample(
        side=side,
        messages_per_s=messages_per_s,
        cpu_s={name: (after.cpu_s[name] - before.cpu_s[name]) / arrived * 1000 for name in after.cpu_s},
        load_cores=(after.own_cpu_s - before.own_cpu_s) / (ended - began),
        wan_up=(after.wan.up - before.wan.up) / arrived if before.wan and after.wan else None,
        wan_down=(after.wan.down - before.wan.down) / arrived if before.wan and after.wan else None,
        idle=idle,
        memory=memory,
        sent=load.sent,
        sent_again=sum(hub.sent_again for hub in load.hubs if isinstance(hub, CourierHub)),
        lost=sum(hub.lost for hub in plain) + sum(hub.outstanding for hub in load.hubs),
        doubled=sum(hub.doubled for hub in plain),
    )


async def _rate(load: Load, seconds: float) -> float:
    """Return the messages a second between the first and the last arrival of some seconds; of more, if commits are rarer."""
    loop = asyncio.get_running_loop()
    began, seen = loop.time(), load.arrived
    moments: list[tuple[float, int]] = []
    while True:
        await asyncio.sleep(TICK_S)
        now, arrived = loop.time(), load.arrived
        if arrived != seen:
            moments.append((now, arrived))
            seen = arrived
        if now - began >= (seconds if len(moments) > 1 else PATIENCE * seconds):
            break
    if len(moments) < 2:
        return 0.0
    (first_at, first), (last_at, last) = moments[0], moments[-1]
    return (last - first) / (last_at - first_at)


def gauge_of(rig: Rig, side: Side) -> Gauge:
    """Return what reads a side's processes."""
    pids = {name: rig.pid(name) for name in (*side.at_site, *side.at_cloud)}
    return Gauge(pids, side.bridge, int(side.cloud.rpartition(":")[2]), rig.place)


def audit(rig: Rig, ledger: Ledger) -> Audit:
    """Hold the load's books against the databases'."""
    found = Audit()
    for database, entries in ledger.sent.items():
        books = {(entry.hub, entry.epoch): entry for entry in rig.audit(database)}
        for hub_id, epoch, sent, readings in entries:
            found.messages += sent
            found.points += sent * readings
            entry = books.get((hub_id, epoch))
            if entry is None:
                found.lost += sent
                continue
            missing = sum(last - first + 1 for first, last in entry.missing) + sent - (entry.last_seq or 0)
            found.lost += missing
            found.doubled += entry.points // readings - (sent - missing)
            found.repeats_refused += entry.duplicates_refused
    return found
