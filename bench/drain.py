"""The WAN is out for a minute at 500 messages/s: what piles up, what it weighs, and how soon it is in the cloud's database.

Each contestant has a WAN of its own; their outages overlap but begin and end at different times, so that none drains beside
another. A hub of ours keeps its messages until they are acknowledged; the peer's hubs hand them to their broker and forget them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, ExitStack
from dataclasses import dataclass
from typing import Final

from bench import flows
from bench.contest import Contestant, Plan, Tell, gauge_of
from bench.flows import UNLIMITED, Load
from bench.load import Readings
from bench.network import wans
from bench.report import Found, Goal, Grid, ratio_goal, spread
from bench.rig import Rig, Side
from bench.scenarios import (
    EMBEDDED_TO_SQLITE,
    MOSQUITTO_TO_SQLITE,
    ON_MOSQUITTO,
    OURS,
    PEER_TO_SQLITE,
    STEADY_RATE,
    T,
    a_rig,
)
from config.errors import HublineError

OUTAGE_S: Final = 60.0
OUTAGE_QUICK_S: Final = 10.0
STAGGER_S: Final = 15.0
WARM_S: Final = 5.0
PATIENCE_S: Final = 180.0
TICK_S: Final = 0.05
NORMAL_BEHIND_S: Final = 0.5
"""What is on its way without an outage: less than so many seconds of the load. The backlog is drained when no more is."""
CONTESTANTS: Final = (EMBEDDED_TO_SQLITE, MOSQUITTO_TO_SQLITE, PEER_TO_SQLITE)


@dataclass(frozen=True, slots=True)
class Outage:
    """One outage of one contestant. Memory is the most seen until all was drained; T's site broker bridges by itself."""

    drain_s: float
    behind: int
    site_rss: float
    connector_rss: float
    cloud_rss: float
    lost: int


def drain(plan: Plan, tell: Tell) -> Found:
    """Measure every round; all contestants at once, each with its own WAN."""
    outage_s = OUTAGE_QUICK_S if plan.is_quick else OUTAGE_S
    rounds: list[dict[str, Outage]] = []
    with ExitStack() as stack:
        places = stack.enter_context(wans(len(CONTESTANTS)))
        rigs = [stack.enter_context(a_rig(place)) for place in places]
        for number in range(plan.rounds):
            found = asyncio.run(_round(rigs, number, outage_s))
            rounds.append(found)
            told = ", ".join(f"{name} {each.drain_s:.1f} s" for name, each in found.items())
            tell(f"  round {number + 1} of {plan.rounds}: WAN out for {outage_s:g} s, drained {told} after it")
    return _found(rounds, outage_s)


async def _round(rigs: list[Rig], number: int, outage_s: float) -> dict[str, Outage]:
    sides = [contestant.start(rig) for contestant, rig in zip(CONTESTANTS, rigs, strict=True)]
    tasks: list[asyncio.Task[Outage]] = []
    try:
        for position, (contestant, rig, side) in enumerate(zip(CONTESTANTS, rigs, sides, strict=True)):
            turn = (position + number) % len(CONTESTANTS)
            wait_s = WARM_S + turn * min(STAGGER_S, outage_s)
            tasks.append(asyncio.create_task(_outage(contestant, rig, side, wait_s, outage_s)))
        found = await asyncio.gather(*tasks)
        return {contestant.name: outage for contestant, outage in zip(CONTESTANTS, found, strict=True)}
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for rig in rigs:
            rig.stop()


async def _outage(contestant: Contestant, rig: Rig, side: Side, wait_s: float, outage_s: float) -> Outage:
    loop = asyncio.get_running_loop()
    readings = Readings(10)
    async with _flow(contestant, rig, side, readings) as load:
        load.start(STEADY_RATE)
        await asyncio.sleep(wait_s)
        brokers = [
            name
            for name in (*side.at_site, *side.at_cloud)
            if "broker" in name or "mosquitto" in name or name == "connector"
        ]
        gauge, most = gauge_of(rig, side), dict.fromkeys(brokers, 0)

        def weigh() -> None:
            memory = gauge.memory()
            for name in brokers:
                most[name] = max(most[name], memory[name].rss)

        try:
            rig.place.cut()
            cut_at = loop.time()
            while loop.time() - cut_at < outage_s:
                await asyncio.sleep(1.0)
                weigh()
        finally:
            rig.place.mend()
        mended_at, behind = loop.time(), load.offered - load.arrived
        while load.offered - load.arrived > STEADY_RATE * NORMAL_BEHIND_S:
            if loop.time() - mended_at > PATIENCE_S:
                raise HublineError(
                    f"{contestant.name}: {load.offered - load.arrived} messages had not come after {PATIENCE_S:g} s"
                )
            rig.fleet.check()
            load.check()
            await asyncio.sleep(TICK_S)
        drain_s = loop.time() - mended_at
        weigh()
        await load.finish(PATIENCE_S)
        lost = sum(hub.outstanding for hub in load.hubs)
        connector = most.pop("connector", 0)
        at_site = sum(size for name, size in most.items() if name in side.at_site)
        return Outage(drain_s, behind, at_site, connector, sum(most.values()) - at_site, lost)


def _flow(contestant: Contestant, rig: Rig, side: Side, readings: Readings) -> AbstractAsyncContextManager[Load]:
    if contestant.ends == "rows":
        return flows.stored_as_rows(rig, side, readings, window=UNLIMITED)
    return contestant.flow(rig, side, readings)


def _found(rounds: list[dict[str, Outage]], outage_s: float) -> Found:
    names = [each.name for each in CONTESTANTS]
    ours = [name for name in names if name != T]

    def ratios(name: str, of: Callable[[Outage], float]) -> list[float]:
        return [of(found[name]) / of(found[T]) for found in rounds]

    rows: list[tuple[str, ...]] = []
    measures: tuple[tuple[str, Callable[[Outage], float], str], ...] = (
        ("s until the backlog is in the database", lambda each: each.drain_s, ".1f"),
        ("messages behind when the WAN is back", lambda each: each.behind, ",.0f"),
        ("MB, broker at the site, the most", lambda each: each.site_rss / 1e6, ".0f"),
        (
            "MB, broker and connector at the site, the most",
            lambda each: (each.site_rss + each.connector_rss) / 1e6,
            ".0f",
        ),
        ("MB, broker in the cloud, the most", lambda each: each.cloud_rss / 1e6, ".0f"),
    )
    for what, of, form in measures:
        columns = [spread([of(found[name]) for found in rounds], form) for name in names]
        rows.append((what, *columns, *(spread(ratios(name, of), ".2f") for name in ours)))
    missing = [f"{sum(found[name].lost for found in rounds):,}" for name in names]
    rows.append(("lost, all rounds", *missing, *("" for _ in ours)))
    title = f"After an outage of {outage_s:g} s at {STEADY_RATE:g} messages/s"
    grid = Grid(title, "", ("", *names, *(f"{name} ÷ {T}" for name in ours)), rows)
    goals = []
    for name, words in ((OURS, "embedded engine"), (ON_MOSQUITTO, "Mosquitto and its bridge")):
        what = f"after an outage of {outage_s:g} s at {STEADY_RATE:g} messages/s, {words}"
        goals.append(ratio_goal(f"drain {what}", ratios(name, lambda each: each.drain_s), 2, most=True))
        memory = ratios(name, lambda each: each.site_rss + each.cloud_rss)
        goals.append(ratio_goal(f"memory of the brokers alone {what}", memory, 1, most=True))
        whole = ratios(name, lambda each: each.site_rss + each.connector_rss + each.cloud_rss)
        goals.append(ratio_goal(f"memory of brokers and connector {what}", whole, 1, most=True))
    lost = sum(found[name].lost for found in rounds for name in ours)
    goals.append(Goal("lost in outages of the WAN", "0", f"{lost} of {len(rounds) * len(ours)} outages", lost == 0))
    return Found([grid], goals)
