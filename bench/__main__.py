"""`python -m bench`: measure everything, or some sections; show the tables, and write them into docs/performance.md."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Final, NoReturn, TypeAlias

import click
from rich.console import Console

from bench import (
    cluster,
    discovery,
    drain,
    failover,
    growth,
    hub_use,
    operations,
    operations_table,
    peer,
    reconnect,
    report,
    scenarios,
    sizes,
)
from bench.contest import Plan, Tell
from bench.report import Found
from bench.rig import ROOT
from config.errors import HublineError

DOCUMENT: Final = ROOT / "docs" / "performance.md"
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
WIDTH: Final = 150
"""Columns where there is no terminal."""
ROUNDS: Final = 5
SECONDS: Final = 10.0
QUICK: Final = Plan(rounds=1, warm_s=1, seconds=4)

Section: TypeAlias = Callable[[Plan, Tell], Found]
SECTIONS: Final[Mapping[str, Section]] = {
    "brokers": scenarios.brokers,
    "database": scenarios.database,
    "steady": scenarios.steady,
    "wan": scenarios.over_wan,
    "drain": drain.drain,
    "hub": hub_use.hub,
    "ssdp": discovery.ssdp,
    "failover": lambda plan, _: failover.found(failover.measure(rounds=plan.rounds)),
    "reconnect": lambda plan, _: reconnect.found(reconnect.measure(pairs=plan.rounds)),
    "hubs": growth.hubs,
    "ingest": growth.ingest,
    "sizes": sizes.sizes,
    "operations": lambda plan, tell: Found([operations_table.grid(operations.measure(tell, quick=plan.is_quick))]),
    "cluster": cluster.cluster,
}
BY_NAME_ONLY: Final = frozenset(("operations", "cluster"))
"""What is not measured unless it is asked for: it takes long."""


@click.command()
@click.argument("sections", type=click.Choice(list(SECTIONS)), nargs=-1)
@click.option("--quick", is_flag=True, help="One short round of each: an indication only.")
@click.option(
    "--rounds", type=click.IntRange(1), default=ROUNDS, show_default=True, help="How often each takes its turn."
)
@click.option(
    "--seconds", type=click.FloatRange(1), default=SECONDS, show_default=True, help="How long a run is measured."
)
@click.option("--write/--no-write", default=True, show_default=True, help="Renew the tables of docs/performance.md.")
def main(sections: tuple[str, ...], quick: bool, rounds: int, seconds: float, write: bool) -> None:
    """Measure Hubline against Mosquitto bridged to Mosquitto: everything but the long runs, or only SECTIONS."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # An installed package has its byte code, and starts with it.
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    plan = QUICK if quick else Plan(rounds, 2, seconds)
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    began = time.monotonic()

    def tell(words: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:5.0f} s[/]  {words}")

    failed = False
    try:
        peer.program()
        machine = report.machine(plan.rounds, plan.seconds)
        for name in sections or [name for name in SECTIONS if name not in BY_NAME_ONLY]:
            began_section = time.monotonic()
            try:
                found = SECTIONS[name](plan, tell)
            except (HublineError, OSError) as exc:
                console.print(f"bench {name}: {exc}", style="red", markup=False)
                failed = True
                continue
            _show(console, found)
            tell(f"{name}: {time.monotonic() - began_section:.0f} s")
            if write:
                found.notes = "\n\n".join(part for part in (machine, found.notes) if part)
                report.write(DOCUMENT, name, found)
        if write:
            console.print(f"Written into {DOCUMENT.relative_to(ROOT)}.")
    except (HublineError, OSError) as exc:
        console.print(f"bench: {exc}", style="red", markup=False)
        failed = True
    except KeyboardInterrupt:
        console.print("Interrupted: this section is not written.")
        sys.exit(130)
    sys.exit(1 if failed else 0)


def _show(console: Console, found: Found) -> None:
    for grid in (*found.grids, *([report.goals_grid(found.goals)] if found.goals else [])):
        console.print(f"\n[bold]{grid.title}[/]", *[grid.said] * bool(grid.said), sep="\n")
        console.print(grid.on_terminal())


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # An impatient second Ctrl-C would leave processes behind.
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
