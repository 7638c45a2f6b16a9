"""A storm: 1000 sessions open at once over mutual TLS, as after the restart of a broker; Mosquitto against each of ours, in turn.

The embedded broker is the site's, a NATS node the cloud's: it asks its supervisor about each connection (ADR 0016).
"""

from __future__ import annotations

import asyncio
import random
import ssl
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.load import Line
from bench.network import LOOPBACK
from bench.report import Found, Grid, ratio_goal, spread
from bench.rig import Rig
from broker.backoff import Backoff
from broker.tls import client_context
from config import provision
from config.demo_fleet import FLEET, SITE
from config.errors import HublineError
from config.ports import free_ports
from config.principal import CLOUD_SITE, server_name

SESSIONS = 1000
PER_CERTIFICATE = 10
PATIENCE_S = 120.0
OURS: Final = "Hubline"
NATS: Final = "NATS, asking"
PEER: Final = "Mosquitto"


@dataclass(slots=True)
class Storm:
    """Of each contestant: seconds until all were connected, of each run, and how many attempts failed on the way."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)

    def note(self, name: str, seconds: float, failed: int) -> None:
        """Keep what one run has brought."""
        self.seconds.setdefault(name, []).append(seconds)
        self.failed[name] = self.failed.get(name, 0) + failed

    def ratios(self, name: str) -> list[float]:
        """Return how many times the peer's time it took, of each run."""
        return [ours / peer for ours, peer in zip(self.seconds[name], self.seconds[PEER], strict=True)]


def found(storm: Storm) -> Found:
    """Return the storm as a table, and the verdict."""
    what = f"{SESSIONS} hubs reconnect (mutual TLS)"
    return Found([_grid(storm)], [ratio_goal(what, storm.ratios(OURS), 3, most=True)])


def _grid(storm: Storm) -> Grid:
    of_each = storm.seconds.values()
    ratios = ["" if name == PEER else spread(storm.ratios(name), ".2f") for name in storm.seconds]
    rows = [
        ("s until all are connected, median", *(f"{statistics.median(seconds):.1f}" for seconds in of_each)),
        ("lowest to highest", *(f"{min(seconds):.1f} to {max(seconds):.1f}" for seconds in of_each)),
        ("times the peer's", *ratios),
        ("attempts turned away, all runs", *(str(storm.failed[name]) for name in storm.seconds)),
    ]
    pairs = len(storm.seconds[PEER])
    return Grid(f"{SESSIONS} sessions at once, mutual TLS", f"{pairs} turns each.", ("", *storm.seconds), rows)


def measure(pairs: int, contestants: Sequence[str] = (OURS, NATS, PEER)) -> Storm:
    """Let the storm break over each contestant in turn."""
    storm = Storm({name: [] for name in contestants})
    with tempfile.TemporaryDirectory(prefix="hubline-bench-") as folder:
        rig = Rig(Path(folder) / "fleet")
        names = [f"storm-{number}" for number in range(SESSIONS // PER_CERTIFICATE)]
        for name in names:
            provision.hub(rig.directory, name, SITE)
        starts: Mapping[str, Callable[[], tuple[str, str]]] = {
            OURS: lambda: (rig.start_ours().site, SITE),
            NATS: lambda: (_start_nats(rig), CLOUD_SITE),
            PEER: lambda: (rig.start_peer().site, SITE),
        }
        contexts = {
            site: {name: client_context(rig.identity("hub", name), server_name(FLEET, site)) for name in names}
            for site in (SITE, CLOUD_SITE)
        }
        try:
            for pair in range(pairs):
                for name in contestants if pair % 2 == 0 else reversed(contestants):
                    try:
                        endpoint, site = starts[name]()
                        storm.note(name, *asyncio.run(_storm(endpoint, contexts[site])))
                    finally:
                        rig.stop()
        finally:
            rig.close()
    return storm


def _start_nats(rig: Rig) -> str:
    """Start one node as the cloud broker, and wait until it lets somebody in; return its endpoint."""
    mqtt, nats = (f"127.0.0.1:{port}" for port in free_ports(2))
    environ = {
        "HUBLINE_BROKER__ENGINE": '"nats"',
        "HUBLINE_BROKER__LISTEN": f'["{mqtt}"]',
        "HUBLINE_NATS__LISTEN": f'"{nats}"',
    }
    rig.run("nats", "broker", "cloud", '"broker_started"', LOOPBACK.in_cloud, environ)
    hub = rig.hubs[0]
    asyncio.run(_let_in(hub, mqtt, client_context(rig.identity("hub", hub), server_name(FLEET, CLOUD_SITE))))
    return mqtt


async def _let_in(client_id: str, endpoint: str, context: ssl.SSLContext) -> None:
    began_at = time.monotonic()
    while True:
        line = Line(client_id)
        try:
            await line.open(endpoint, context)
        except (OSError, TimeoutError) as exc:
            if time.monotonic() - began_at > PATIENCE_S:
                raise HublineError(f"{endpoint} let nobody in within {PATIENCE_S:g} s: {exc}") from exc
            await asyncio.sleep(0.1)
            continue
        line.close()
        await line.lost
        return


async def _storm(endpoint: str, contexts: Mapping[str, ssl.SSLContext]) -> tuple[float, int]:
    failed = 0
    lines: list[Line] = []

    async def connect(client_id: str, context: ssl.SSLContext, seed: int) -> None:
        nonlocal failed
        backoff = Backoff(random.Random(seed))  # As a hub's link: the first wait is up to a second.
        await asyncio.sleep(backoff.next_s())
        while True:
            line = Line(client_id)
            try:
                await line.open(endpoint, context)
            except (OSError, TimeoutError):
                failed += 1
                await asyncio.sleep(backoff.next_s())
                continue
            lines.append(line)
            return

    began_at = time.monotonic()
    ids = [(f"{name}_s{number}", context) for name, context in contexts.items() for number in range(PER_CERTIFICATE)]
    await asyncio.gather(*(connect(client_id, context, seed) for seed, (client_id, context) in enumerate(ids)))
    seconds = time.monotonic() - began_at
    for line in lines:
        line.close()
    await asyncio.wait([line.lost for line in lines], timeout=10)
    return seconds, failed
