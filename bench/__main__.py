"""`python -m bench`: measure everything, show the tables, and write them into docs/performance.md."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import click
from rich.console import Console

from bench import failover, operations, operations_table, peer, reconnect, report, scenarios
from bench.report import Grid
from bench.rig import ROOT, Rig
from bench.scenarios import FULL, QUICK, Plan, Results
from config.errors import HublineError

DOCUMENT: Final = ROOT / "docs" / "performance.md"
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
WIDTH: Final = 130
"""Columns where there is no terminal."""


_SECTIONS: Final[Mapping[str, Callable[[bool, scenarios.Tell], Grid]]] = {
    "failover": lambda quick, _: failover.grid(failover.measure(rounds=1 if quick else 5)),
    "reconnect": lambda quick, _: reconnect.grid(reconnect.measure(pairs=1 if quick else 5)),
    "operations": lambda quick, tell: operations_table.grid(operations.measure(tell, quick=quick)),
}


@click.command()
@click.argument("only", type=click.Choice(list(_SECTIONS)), required=False)
@click.option("--quick", is_flag=True, help="One short pair of each: less than two minutes, an indication only.")
@click.option("--write/--no-write", default=True, show_default=True, help="Renew the tables of docs/performance.md.")
def main(only: str | None, quick: bool, write: bool) -> None:
    """Measure Hubline against Mosquitto bridged to Mosquitto, on loopback; or only one of the runs beside that."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    plan = QUICK if quick else FULL
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    began = time.monotonic()
    try:
        peer.program()

        def tell(words: str) -> None:
            console.print(f"[dim]{time.monotonic() - began:5.0f} s[/]  {words}")

        if only is None:
            results = _measure(plan, tell)
            for grid in report.grids(results):
                _show(console, grid)
            console.print(report.machine(plan).replace("**", ""))
            if write:
                report.write(DOCUMENT, results, plan)
        for name, measure in _SECTIONS.items():
            if only in (None, name):
                measured = measure(quick, tell)
                _show(console, measured)
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


def _show(console: Console, grid: Grid) -> None:
    console.print(f"\n[bold]{grid.title}[/]", *[grid.said] * bool(grid.said), sep="\n")
    console.print(grid.on_terminal())


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
