"""Through the brokers, and into the database: who takes part, and what the goals say of it; on loopback and over a bad WAN."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bench import contest_table as table
from bench.contest import Contest, Contestant, Ledger, Plan, Tell, audit, hold
from bench.network import DELAY_MS, LOOPBACK, LOSS_PERCENT, Place, wans
from bench.report import Found, Goal
from bench.rig import HUBS, Rig
from config.errors import HublineError

STEADY_RATE: Final = 500.0
"""Messages a second of 50 hubs together: a site at work, where the other scenarios are a site that catches up."""
OURS: Final = "Hubline"
ON_MOSQUITTO: Final = "Hubline on Mosquitto"
T: Final = "T"
OUR_INGEST: Final = "T, our cloud service"
LIGHT_T: Final = "T without paho"

EMBEDDED_TO_READER: Final = Contestant(OURS, lambda rig: rig.start_ours(), "counted", T)
MOSQUITTO_TO_READER: Final = Contestant(
    ON_MOSQUITTO, lambda rig: rig.start_ours(site="mosquitto", cloud="mosquitto"), "counted", T
)
PEER_TO_READER: Final = Contestant(T, lambda rig: rig.start_peer(), "counted")
TO_READER: Final = (EMBEDDED_TO_READER, MOSQUITTO_TO_READER, PEER_TO_READER)

EMBEDDED_TO_SQLITE: Final = Contestant(
    OURS, lambda rig: rig.start_ours(database="sqlite"), "acknowledged", T, database="sqlite"
)
MOSQUITTO_TO_SQLITE: Final = Contestant(
    ON_MOSQUITTO,
    lambda rig: rig.start_ours(site="mosquitto", cloud="mosquitto", database="sqlite"),
    "acknowledged",
    T,
    database="sqlite",
)
PEER_TO_SQLITE: Final = Contestant(T, lambda rig: rig.start_row_store(rig.start_peer(), "sqlite"), "rows")

EMBEDDED_TO_POSTGRES: Final = Contestant(
    OURS, lambda rig: rig.start_ours(database="postgresql"), "acknowledged", T, database="postgresql"
)
MOSQUITTO_TO_POSTGRES: Final = Contestant(
    ON_MOSQUITTO,
    lambda rig: rig.start_ours(site="mosquitto", cloud="mosquitto", database="postgresql"),
    "acknowledged",
    T,
    database="postgresql",
)
PEER_TO_OUR_INGEST: Final = Contestant(
    OUR_INGEST, lambda rig: rig.start_peer(database="postgresql"), "acknowledged", T, database="postgresql"
)
PEER_TO_POSTGRES: Final = Contestant(T, lambda rig: rig.start_row_store(rig.start_peer(), "postgresql"), "rows")
LIGHT_PEER_TO_POSTGRES: Final = Contestant(
    LIGHT_T, lambda rig: rig.start_row_store(rig.start_peer(), "postgresql", light=True), "rows", T
)

READINGS_GOAL: Final = "readings/s committed, hubs to database, 100 readings per message"
CPU_GOAL: Final = "CPU per 1000 messages on the site's machine"
WAN_GOAL: Final = "WAN bytes per message, both directions, our acknowledgements included"


def brokers(plan: Plan, tell: Tell, place: Place = LOOPBACK) -> Found:
    """Measure the way from the hubs to a reader at the cloud broker."""
    where = "loopback" if place is LOOPBACK else "WAN"
    with a_rig(place) as rig:
        found = asyncio.run(
            hold(rig, plan, tell, TO_READER, "Through the brokers to a reader that counts", readings=10)
        )
    rate = "messages/s hub to cloud broker, 10 readings per message"
    goals = [
        table.ratio(f"{rate}: embedded engine, {where}", found, OURS, table.rate, 0.2, most=False),
        table.ratio(f"{rate}: Mosquitto and its bridge, {where}", found, ON_MOSQUITTO, table.rate, 0.9, most=False),
        *_cpu_goals(found, f"at full speed, {where}"),
    ]
    return Found([table.grid(found, "messages/s out of the cloud broker"), table.memory_grid([found])], goals)


def database(plan: Plan, tell: Tell) -> Found:
    """Measure the way from the hubs into a database."""
    ledger = Ledger()
    sqlite = (EMBEDDED_TO_SQLITE, PEER_TO_SQLITE)
    ours = (EMBEDDED_TO_POSTGRES, MOSQUITTO_TO_POSTGRES, PEER_TO_OUR_INGEST)
    postgres = (*ours, PEER_TO_POSTGRES, LIGHT_PEER_TO_POSTGRES)
    with a_rig() as rig:

        async def measured() -> list[Contest]:
            return [
                await hold(rig, plan, tell, postgres, "Into PostgreSQL", readings=100, ledger=ledger),
                await hold(rig, plan, tell, sqlite, "Into SQLite", readings=100, ledger=ledger),
            ]

        large, in_sqlite = asyncio.run(measured())
        goals = [_audited(rig, ledger, tell, "at full speed")]
    for name, words in (
        (OURS, "embedded engine"),
        (ON_MOSQUITTO, "Mosquitto and its bridge"),
        (OUR_INGEST, "T with our cloud service"),
    ):
        goals.append(table.ratio(f"{READINGS_GOAL}: {words}, PostgreSQL", large, name, table.rate, 3, most=False))
    goals.append(table.ratio(f"{READINGS_GOAL}: embedded engine, SQLite", in_sqlite, OURS, table.rate, 3, most=False))
    unit = "readings/s committed"
    return Found([*(table.grid(each, unit) for each in (large, in_sqlite)), table.memory_grid([large])], goals)


def steady(plan: Plan, tell: Tell, place: Place = LOOPBACK) -> Found:
    """Measure a site at work: 500 messages/s into the database."""
    where = "loopback" if place is LOOPBACK else "WAN"
    ledger = Ledger()
    contestants = (EMBEDDED_TO_SQLITE, MOSQUITTO_TO_SQLITE, PEER_TO_SQLITE)
    with a_rig(place) as rig:
        title = "Into SQLite at a steady load"
        found = asyncio.run(
            hold(rig, plan.shorter(), tell, contestants, title, readings=10, rate=STEADY_RATE, ledger=ledger)
        )
        goals = [_audited(rig, ledger, tell, f"at {STEADY_RATE:g} messages/s, {where}")]
    goals += _cpu_goals(found, f"at {STEADY_RATE:g} messages/s, {where}")
    for name, words in ((OURS, "embedded engine"), (ON_MOSQUITTO, "Mosquitto and its bridge")):
        what = f"{WAN_GOAL}: {words}, at {STEADY_RATE:g} messages/s, {where}"
        goals.append(table.ratio(what, found, name, lambda sample: sample.wan, 1.15, most=True))
    return Found([table.grid(found, "readings/s committed")], goals)


def over_wan(plan: Plan, tell: Tell) -> Found:
    """Measure the same with a round trip of 50 ms and 1 % loss in each direction between site and cloud."""
    plan, ledger = plan.shorter(), Ledger()
    contestants = (EMBEDDED_TO_POSTGRES, MOSQUITTO_TO_POSTGRES, PEER_TO_POSTGRES)
    with wans() as (place,):
        through, at_work = brokers(plan, tell, place), steady(plan, tell, place)
        with a_rig(place) as rig:
            large = asyncio.run(hold(rig, plan, tell, contestants, "Into PostgreSQL", readings=100, ledger=ledger))
            audited = _audited(rig, ledger, tell, "at full speed, WAN")
    goals = [*through.goals, *at_work.goals, audited]
    for name, words in ((OURS, "embedded engine"), (ON_MOSQUITTO, "Mosquitto and its bridge")):
        goals.append(table.ratio(f"{READINGS_GOAL}: {words}, PostgreSQL, WAN", large, name, table.rate, 3, most=False))
    grids = [through.grids[0], table.grid(large, "readings/s committed"), *at_work.grids]
    notes = f"{DELAY_MS:g} ms each way and {LOSS_PERCENT:g} % loss each way between site and cloud; the load is beside both."
    return Found([replace(grid, title=f"Over the WAN: {grid.title}") for grid in grids], goals, notes=notes)


def _cpu_goals(found: Contest, how: str) -> list[Goal]:
    return [
        table.ratio(f"{CPU_GOAL}: embedded engine, {how}", found, OURS, lambda s: s.site_cpu_s, 8, most=True),
        table.ratio(
            f"{CPU_GOAL}: Mosquitto and its bridge, {how}", found, ON_MOSQUITTO, lambda s: s.site_cpu_s, 1.2, most=True
        ),
    ]


def _audited(rig: Rig, ledger: Ledger, tell: Tell, where: str) -> Goal:
    what = f"lost and doubled in the database, runs {where}"
    try:
        found = audit(rig, ledger)
    except HublineError as exc:
        tell(f"{exc}")
        return Goal(what, "0 / 0", "–", None)
    measured = f"{found.lost} / {found.doubled} of {found.messages:,} messages"
    return Goal(what, "0 / 0", measured, found.lost == found.doubled == 0)


@contextmanager
def a_rig(place: Place = LOOPBACK, hubs: int = HUBS) -> Iterator[Rig]:
    """Have a fleet in a temporary folder; whatever happens, no process and no file is left."""
    with TemporaryDirectory(prefix="hubline-bench-") as folder:
        rig = Rig(Path(folder) / "fleet", hubs, place)
        try:
            yield rig
        finally:
            rig.close()
