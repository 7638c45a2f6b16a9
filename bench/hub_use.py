"""What one hub needs on its machine: the real one with default sensors and intervals, connected and sending."""

from __future__ import annotations

import time

import psutil

from bench.contest import Plan, Tell
from bench.gauge import Memory, cpu_s_of, memory_of
from bench.report import Found, Goal, Grid
from bench.scenarios import a_rig

SETTLES_S = 10.0
SECONDS = 60.0
SECONDS_QUICK = 10.0


def hub(plan: Plan, tell: Tell) -> Found:
    """Run a hub with everything around it, and watch it."""
    seconds = SECONDS_QUICK if plan.is_quick else SECONDS
    tell(f"One hub with its default sensors and intervals, for {seconds:g} s.")
    with a_rig(hubs=1) as rig:
        rig.start_ours(database="sqlite")
        rig.start_hub()

        def is_connected() -> bool:
            status = rig.fleet.status(rig.real_hub)
            return status is not None and status.path.kind == "connector"

        rig.until("the hub is connected", is_connected)
        process = psutil.Process(rig.pid(rig.real_hub))
        time.sleep(SETTLES_S)
        first = most = memory_of(process)
        began_at, before_s = time.monotonic(), cpu_s_of(process)
        while time.monotonic() - began_at < seconds:
            time.sleep(1.0)
            now = memory_of(process)
            most = Memory(max(most.rss, now.rss), max(most.uss, now.uss))
        share = (cpu_s_of(process) - before_s) / (time.monotonic() - began_at)
        rig.fleet.check()
    rows: list[tuple[str, ...]] = [
        ("MB resident, at first", f"{first.rss / 1e6:.1f} ({first.uss / 1e6:.1f})"),
        ("MB resident, the most", f"{most.rss / 1e6:.1f} ({most.uss / 1e6:.1f})"),
        ("% of a core", f"{share * 100:.2f}"),
    ]
    said = f"Over {seconds:g} s; in brackets what is its alone."
    goals = [
        Goal("hub with default sensors: resident memory", "≤ 40 MB", f"{most.rss / 1e6:.1f} MB", most.rss <= 40e6),
        Goal("hub with default sensors: share of a core", "≤ 0.5 %", f"{share * 100:.2f} %", share <= 0.005),
    ]
    return Found([Grid("One hub", said, ("", "Hubline"), rows)], goals)
