"""What growth costs: the embedded broker with more hubs, and the ingest with a larger database, at the same rate of messages."""

from __future__ import annotations

import asyncio
import sqlite3
from statistics import median
from typing import Final

from bench.chart import Series, svg
from bench.contest import Contestant, Plan, Sample, Tell, run
from bench.load import Readings
from bench.report import Found, Goal, Grid, ratio_goal, spread
from bench.rig import Database, Rig
from bench.scenarios import (
    EMBEDDED_TO_POSTGRES,
    EMBEDDED_TO_READER,
    EMBEDDED_TO_SQLITE,
    OURS,
    STEADY_RATE,
    TO_READER,
    a_rig,
)

COUNTS: Final = (10, 50, 200, 1000)
COUNTS_QUICK: Final = (10, 50, 100)
FEW, MANY = 100, 1000
INGEST_RATE: Final = 1000.0
MESSAGES: Final = 1_000_000
MESSAGES_QUICK: Final = 50_000
PLOT: Final = "cpu-by-hubs.svg"
_SHIFT: Final = 10**9
"""Added to the numbers of copied messages: no hub counts so far."""


def hubs(plan: Plan, tell: Tell) -> Found:
    """Measure CPU per message with few hubs and with many, 500 messages/s in all."""
    plan = plan.shorter()
    counts, many = (COUNTS_QUICK, COUNTS_QUICK[-1]) if plan.is_quick else (COUNTS, MANY)
    few = counts[0] if plan.is_quick else FEW
    tell(f"{many} certificates")
    with a_rig(hubs=many) as rig:
        everyone, readings = rig.hubs, Readings(10)

        async def with_hubs(contestant: Contestant, count: int) -> Sample:
            rig.hubs = everyone[:count]
            found = await run(rig, plan, contestant, readings, STEADY_RATE)
            tell(f"  {contestant.name}, {count} hubs: CPU per 1000 messages at the site {found.site_cpu_s:.3f} s")
            return found

        pairs: list[tuple[Sample, Sample]] = []
        series: list[Series] = []
        for number in range(plan.rounds):
            order = (few, many) if number % 2 == 0 else (many, few)
            found = {count: asyncio.run(with_hubs(EMBEDDED_TO_READER, count)) for count in order}
            pairs.append((found[few], found[many]))
        for contestant in TO_READER:
            points = []
            for count in counts:
                again = contestant.name == OURS and count == many
                sample = pairs[-1][1] if again else asyncio.run(with_hubs(contestant, count))
                points.append((float(count), sample.site_cpu_s * 1000))
            series.append(Series(contestant.name, points))
    title = f"CPU at the site by number of hubs, {STEADY_RATE:g} messages/s in all, 10 readings in a message"
    rows: list[tuple[str, ...]] = [
        (f"{count} hubs", *(f"{dict(each.points)[float(count)]:.0f}" for each in series)) for count in counts
    ]
    grid = Grid(
        title, "ms of CPU for 1000 messages, broker and bridge; one run each.", ("", *(e.name for e in series)), rows
    )
    ratios = [much.cpu_s["site broker"] / little.cpu_s["site broker"] for little, much in pairs]
    goal = ratio_goal(
        f"CPU per message of the embedded broker with {many} hubs", ratios, 1.2, most=True, than=f"with {few}"
    )
    plot = svg("CPU at the site by number of hubs", "hubs", "ms of CPU for 1000 messages", series)
    words = "CPU for 1000 messages at the site against the number of hubs: Hubline, Hubline on Mosquitto, and T"
    return Found([grid], [goal], {PLOT: (words, plot)})


def ingest(plan: Plan, tell: Tell) -> Found:
    """Measure CPU per message of the cloud service and its database, with few messages in it and with many, in turn."""
    plan, wanted = plan.shorter(), MESSAGES_QUICK if plan.is_quick else MESSAGES
    rows: list[tuple[str, ...]] = []
    goals: list[Goal] = []
    kinds: tuple[tuple[Database, Contestant], ...] = (
        ("sqlite", EMBEDDED_TO_SQLITE),
        ("postgresql", EMBEDDED_TO_POSTGRES),
    )
    for database, contestant in kinds:
        with a_rig() as few, a_rig() as many:

            async def cost_s(rig: Rig, contestant: Contestant = contestant) -> float:
                found = await run(rig, plan, contestant, Readings(10), INGEST_RATE)
                return found.cloud_cpu_s - found.cpu_s["cloud broker"]

            for rig in (few, many):  # So that there is something in both.
                asyncio.run(cost_s(rig))
            before, after, size_bytes = _grown(many, database, wanted)
            pairs: list[tuple[float, float]] = []
            for number in range(plan.rounds):
                order = (few, many) if number % 2 == 0 else (many, few)
                found = {rig: asyncio.run(cost_s(rig)) for rig in order}
                pairs.append((found[few], found[many]))
        small, large = [little for little, _ in pairs], [much for _, much in pairs]
        tell(
            f"  {database}: {median(small):.3f} s for 1000 messages with {before:,}, {median(large):.3f} s with {after:,}"
        )
        ratios = [much / little for little, much in pairs]
        name = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}[database]
        rows.append(
            (
                *(name, f"{before:,}", spread(small, ".3f"), f"{after:,}", spread(large, ".3f"), spread(ratios, ".2f")),
                f"{size_bytes / after:,.0f}",
            )
        )
        goals.append(
            ratio_goal(
                f"ingest cost per message in a large database, {name}", ratios, 1.1, most=True, than="in a small one"
            )
        )
    title = f"Ingest with a small and a large database, {INGEST_RATE:g} messages/s of 10 readings"
    headings = (
        *("", "messages in the small one", "CPU s per 1000", "in the large one", "CPU s per 1000", "large ÷ small"),
        "bytes on disk per message",
    )
    said = (
        "CPU of the cloud service and its database; before the first of the runs that took turns. The large one is a small one "
        "with its messages copied many times."
    )
    return Found([Grid(title, said, headings, rows)], goals)


def _grown(rig: Rig, database: Database, wanted: int) -> tuple[int, int, int]:
    """Copy the messages until there are as many as wanted; return how many there were, and are, and the database's bytes."""
    columns = (
        "stream_no",
        "kind",
        "sent_ms",
        "received_ms",
        "points",
        "first_ts",
        "last_ts",
        "codec",
        "payload",
        "skew_ms",
    )
    listed = ", ".join(columns)
    copy = f"INSERT INTO messages (seq, {listed}) SELECT seq + {{}}, {listed} FROM messages WHERE seq < {_SHIFT}"
    count = "SELECT count(*) FROM messages"
    if database == "sqlite":
        connection = sqlite3.connect(rig.sqlite)
        try:
            before = int(connection.execute(count).fetchone()[0])
            for number in range(1, _copies(before, wanted) + 1):
                with connection:
                    connection.execute(copy.format(number * _SHIFT))
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return before, int(connection.execute(count).fetchone()[0]), rig.sqlite.stat().st_size
        finally:
            connection.close()

    async def in_postgres() -> tuple[int, int, int]:
        connection = await rig.postgres()
        try:
            before = int(await connection.fetchval(count))
            for number in range(1, _copies(before, wanted) + 1):
                await connection.execute(copy.format(number * _SHIFT))
            for afterwards in (
                "VACUUM ANALYZE",
                "CHECKPOINT",
            ):  # What the copying leaves to be done is not the ingest's.
                await connection.execute(afterwards)
            size_bytes = int(await connection.fetchval("SELECT pg_database_size(current_database())"))
            return before, int(await connection.fetchval(count)), size_bytes
        finally:
            await connection.close()

    return asyncio.run(in_postgres())


def _copies(before: int, wanted: int) -> int:
    return max(1, wanted // before)
