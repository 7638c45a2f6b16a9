"""How many readings a second go into the database, by how many of them are in a message."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from statistics import median
from typing import Final

from bench.chart import Series, svg
from bench.contest import Plan, Tell, hold
from bench.report import Found, Grid, spread
from bench.scenarios import EMBEDDED_TO_POSTGRES, MOSQUITTO_TO_POSTGRES, PEER_TO_POSTGRES, a_rig

READINGS: Final = (1, 10, 100, 1000)
PLOT: Final = "readings-by-message.svg"
CONTESTANTS: Final = (EMBEDDED_TO_POSTGRES, MOSQUITTO_TO_POSTGRES, PEER_TO_POSTGRES)


def sizes(plan: Plan, tell: Tell) -> Found:
    """Measure each size; one round, for a picture."""
    short = replace(plan.shorter(), rounds=1)
    rows = []
    points: dict[str, list[tuple[float, float]]] = {each.name: [] for each in CONTESTANTS}
    with a_rig() as rig:
        for readings in READINGS:
            found = asyncio.run(hold(rig, short, tell, CONTESTANTS, "Into PostgreSQL", readings=readings))
            cells = []
            for name, line in points.items():
                values = [sample.messages_per_s * readings for sample in found.samples(name)]
                line.append((float(readings), median(values)))
                cells.append(spread(values, ",.0f"))
            rows.append((f"{readings} in a message", *cells))
    said = f"Readings/s from 50 hubs into PostgreSQL, one run of {short.seconds:g} s each."
    grid = Grid("Readings/s by readings in a message", said, ("", *points), rows)
    series = [Series(name, line) for name, line in points.items()]
    plot = svg("Readings/s into PostgreSQL by readings in a message", "readings in a message", "readings/s", series)
    words = "Readings per second into PostgreSQL against readings in a message: Hubline, Hubline on Mosquitto, and T"
    return Found([grid], [], {PLOT: (words, plot)})
