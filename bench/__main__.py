"""`python -m bench`: measure everything, show the tables, and write them into docs/performance.md."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import click
from rich.console import Console

from bench import failover, peer, reconnect, report, scenarios
from bench.rig import ROOT, Rig
from bench.scenarios import FULL, QUICK, Plan, Results
from config.errors import HublineError

DOCUMENT: Final = ROOT / "docs" / "performance.md"
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
WIDTH: Final = 130
"""Columns where there is no terminal."""


@click.command()
@click.option("--quick", is_flag=True, help="One short pair of each: less than two minutes, an indication only.")
@click.option("--write/--no-write", default=True, show_default=True, help="Renew the tables of docs/performance.md.")
def main(quick: bool, write: bool) -> None:
    """Measure Hubline against Mosquitto bridged to Mosquitto, on loopback."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    plan = QUICK if quick else FULL
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    began = time.monotonic()
    try:
        peer.program()
        results = _measure(plan, lambda words: console.print(f"[dim]{time.monotonic() - began:5.0f} s[/]  {words}"))
        for grid in report.grids(results):
            console.print(f"\n[bold]{grid.title}[/]", *[grid.said] * bool(grid.said), sep="\n")
            console.print(grid.on_terminal())
        console.print(report.machine(plan).replace("**", ""))
        if write:
            report.write(DOCUMENT, results, plan)
        for name, measured in (
            ("failover", failover.grid(failover.measure(rounds=1 if quick else 5))),
            ("reconnect", reconnect.grid(reconnect.measure(pairs=1 if quick else 5))),
        ):
            console.print(f"\n[bold]{measured.title}[/]", measured.said, sep="\n")
            console.print(measured.on_terminal())
            if write:
                report.write_section(DOCUMENT, name, measured)
        if write:
            console.print(f"Written into {DOCUMENT.relative_to(ROOT)}.")
    except (HublineError, OSError) as exc:
        console.print(f"bench: {exc}", style="red", markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("Interrupted: nothing is written.")
        sys.exit(130)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _measure(plan: Plan, tell: scenarios.Tell) -> Results:
    """Measure in a temporary folder; whatever happens, no process and no file is left."""
    folder = Path(tempfile.mkdtemp(prefix="hubline-bench-"))
    try:
        rig = Rig(folder)
        try:
            return asyncio.run(scenarios.measure(rig, plan, tell))
        finally:
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)  # An impatient second Ctrl-C would leave processes behind.
            rig.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
