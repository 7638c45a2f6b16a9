"""From the start of a hub's process to its session at the site's broker: found by SSDP, and from the cache of the run before."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import orjson

from bench.contest import Plan, Tell
from bench.network import lan
from bench.operations_table import p95
from bench.report import Found, Goal, Grid, spread
from bench.rig import Rig
from bench.scenarios import a_rig
from config import limits

ROUNDS_PER_ROUND: Final = 3
ALLOWED_S: Final = 0.5


@dataclass(slots=True)
class Starts:
    """Seconds of many starts: from the process's beginning, and from when the hub said that it has started."""

    from_process_s: list[float] = field(default_factory=list)
    from_hub_s: list[float] = field(default_factory=list)


def ssdp(plan: Plan, tell: Tell) -> Found:
    """Start a hub again and again on a LAN of two machines, the connector on the other one."""
    searched, cached = Starts(), Starts()
    with lan() as place, a_rig(place, hubs=1) as rig:
        rig.start_ours(database="sqlite", advertise=True)
        for _ in range(plan.rounds * ROUNDS_PER_ROUND):
            shutil.rmtree(rig.bundles / "hub" / rig.real_hub / "data", ignore_errors=True)
            _start(rig, searched)
            _start(rig, cached)
    tell(f"SSDP: {spread(searched.from_process_s, '.2f')} s, from the cache {spread(cached.from_process_s, '.2f')} s")
    rows = [
        _row("found by SSDP, since the process began", searched.from_process_s),
        _row("found by SSDP, since the hub had started", searched.from_hub_s),
        _row("from the cache, since the process began", cached.from_process_s),
        _row("from the cache, since the hub had started", cached.from_hub_s),
    ]
    said = f"{len(searched.from_process_s)} starts of each kind; searches have an MX of {limits.SSDP_MX_S} s."
    grid = Grid("From start to connected", said, ("s", "median", "95th percentile", "longest"), rows)
    goals = [
        _goal("SSDP: start to connected", searched.from_process_s, limits.SSDP_MX_S + ALLOWED_S),
        _goal("start to connected, from the cache", cached.from_process_s, ALLOWED_S),
    ]
    return Found([grid], goals)


def _start(rig: Rig, into: Starts) -> None:
    """Start the hub, wait until its session is open, and end it."""
    log = rig.log(rig.real_hub)
    known = log.stat().st_size if log.exists() else 0
    began = time.time()
    rig.start_hub(searching=True)
    moments: dict[str, float] = {}

    def is_connected() -> bool:
        for line in log.read_bytes()[known:].splitlines():
            if line.startswith(b"{") and line.endswith(b"}"):
                said = orjson.loads(line)
                moments.setdefault(said["event"], datetime.fromisoformat(said["time"]).timestamp())
        return "path_taken" in moments

    rig.until("the hub is connected", is_connected)
    into.from_process_s.append(moments["path_taken"] - began)
    into.from_hub_s.append(moments["path_taken"] - moments["hub_started"])
    rig.fleet.stop(rig.real_hub)


def _row(what: str, seconds: Sequence[float]) -> tuple[str, ...]:
    ordered = sorted(seconds)
    return (what, *(f"{value:.2f}" for value in (ordered[len(ordered) // 2], p95(ordered), ordered[-1])))


def _goal(what: str, seconds: Sequence[float], limit_s: float) -> Goal:
    at_95 = p95(seconds)
    return Goal(f"{what}, 95th percentile", f"≤ {limit_s:g} s", f"{at_95:.2f} s", at_95 <= limit_s)
