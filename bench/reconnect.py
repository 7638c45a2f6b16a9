"""A storm: 1000 sessions open at once over mutual TLS, as after the restart of a broker; ours against Mosquitto, in turn."""

from __future__ import annotations

import asyncio
import random
import ssl
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.load import Line
from bench.report import Found, Grid, ratio_goal
from bench.rig import Rig, Side
from broker.backoff import Backoff
from broker.tls import client_context
from config import provision
from config.demo_fleet import FLEET, SITE
from config.principal import server_name

SESSIONS = 1000
PER_CERTIFICATE = 10


@dataclass(frozen=True, slots=True)
class Storm:
    """Seconds until all were connected, of each run, and how many attempts failed on the way."""

    ours_s: list[float]
    peer_s: list[float]
    ours_failed: int
    peer_failed: int


def found(storm: Storm) -> Found:
    """Return the storm as a table, and the verdict."""
    ratios = [ours / peer for ours, peer in zip(storm.ours_s, storm.peer_s, strict=True)]
    return Found([_grid(storm)], [ratio_goal(f"{SESSIONS} hubs reconnect (mutual TLS)", ratios, 3, most=True)])


def _grid(storm: Storm) -> Grid:
    both = (storm.ours_s, storm.peer_s)
    rows = [
        ("s until all are connected, median", *(f"{statistics.median(seconds):.1f}" for seconds in both)),
        ("lowest to highest", *(f"{min(seconds):.1f} to {max(seconds):.1f}" for seconds in both)),
        ("attempts turned away, all runs", str(storm.ours_failed), str(storm.peer_failed)),
    ]
    return Grid(
        f"{SESSIONS} sessions at once, mutual TLS", f"{len(storm.ours_s)} pairs.", ("", "Hubline", "Mosquitto"), rows
    )


def measure(pairs: int) -> Storm:
    """Let the storm break over each side in turn."""
    with tempfile.TemporaryDirectory(prefix="hubline-bench-") as folder:
        rig = Rig(Path(folder) / "fleet")
        names = [f"storm-{number}" for number in range(SESSIONS // PER_CERTIFICATE)]
        for name in names:
            provision.hub(rig.directory, name, SITE)
        contexts = {name: client_context(rig.identity("hub", name), server_name(FLEET, SITE)) for name in names}
        found: dict[str, list[tuple[float, int]]] = {"Hubline": [], "T": []}
        for pair in range(pairs):
            starts = [rig.start_ours, rig.start_peer]
            for start in starts if pair % 2 == 0 else reversed(starts):
                side = start()
                try:
                    found[side.name].append(asyncio.run(_storm(side, contexts)))
                finally:
                    rig.stop()
        rig.close()
    ours, peer = found["Hubline"], found["T"]
    return Storm([s for s, _ in ours], [s for s, _ in peer], sum(n for _, n in ours), sum(n for _, n in peer))


async def _storm(side: Side, contexts: Mapping[str, ssl.SSLContext]) -> tuple[float, int]:
    failed = 0
    lines: list[Line] = []

    async def connect(client_id: str, context: ssl.SSLContext, seed: int) -> None:
        nonlocal failed
        backoff = Backoff(random.Random(seed))  # As a hub's link: the first wait is up to a second.
        await asyncio.sleep(backoff.next_s())
        while True:
            line = Line(client_id)
            try:
                await line.open(side.site, context)
            except (OSError, TimeoutError):
                failed += 1
                await asyncio.sleep(backoff.next_s())
                continue
            lines.append(line)
            return

    began_at = time.monotonic()
    ids = [(f"{name}.s{number}", context) for name, context in contexts.items() for number in range(PER_CERTIFICATE)]
    await asyncio.gather(*(connect(client_id, context, seed) for seed, (client_id, context) in enumerate(ids)))
    seconds = time.monotonic() - began_at
    for line in lines:
        line.close()
    await asyncio.wait([line.lost for line in lines], timeout=10)
    return seconds, failed
