"""`hubline demo`: a whole fleet on one machine, with this machine's real measurements, and an audit at the end."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from config.demo_fleet import SITE, DemoFleet, HubAudit, HubStatus

SHOWN: Final = {
    "cpu.percent": "cpu %",
    "memory.percent": "memory %",
    "load.1min": "load",
    "disk.root.percent": "disk %",
}
"""The values that the table has room for, and their headings."""

PLAIN_WIDTH: Final = 110
"""Columns where there is no terminal: the tables are whole there, too."""


@click.command()
@click.option("--hubs", default=3, show_default=True, type=click.IntRange(1, 50), help="How many hubs.")
@click.option("--seconds", default=0, type=click.IntRange(0), help="End by itself, with an audit; 0 runs until Ctrl-C.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    help="Make the fleet here and keep it; without, a temporary folder that is removed.",
)
def demo(hubs: int, seconds: int, directory: Path | None) -> None:
    """Run cloud broker, cloud, site broker, connector and hubs on this machine, watch them, and audit them at the end.

    The exit status is 1 if a message was lost or stored twice.
    """
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    with _folder(directory) as place, _interruptible():
        # Every two seconds instead of every ten: there is something to see.
        environ = {f"HUBLINE_SENSORS__{name}__INTERVAL_S": "2" for name in ("CPU", "MEMORY", "LOAD", "NETWORK", "DISK")}
        fleet = DemoFleet(place, hubs, environ)
        console.print(
            f"One site, [bold]{SITE}[/]: {hubs} hubs → site broker → connector → cloud broker → cloud → database,"
            " all over mutual TLS.\n"
            f"Every role is a process of its own. Settings, certificates and logs are in {place}"
        )
        fleet.provision()
        try:
            fleet.start()
            _watch(console, fleet, seconds)
            verdicts = _audit(console, fleet)
        finally:
            fleet.stop_all()
    _tell(console, verdicts)
    sys.exit(any(verdict.lost or verdict.doubled for verdict in verdicts))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The audit of one hub, in points: what it wrote, what the database holds, what still waits in its outbox."""

    hub: str
    written: int
    stored: int
    waiting: int
    lost: int
    doubled: int
    refused: int


def judge(status: HubStatus, audits: list[HubAudit]) -> Verdict:
    """Compare a stopped hub's own books with the database's."""
    found = next((audit for audit in audits if (audit.hub, audit.epoch) == (status.hub, status.epoch)), None)
    outbox = status.outbox
    stored = 0 if found is None else found.points
    expected = outbox.points_written - outbox.points - outbox.points_lost
    # A message may have been stored whose acknowledgement the hub did not wait for: then it is in both places.
    return Verdict(
        hub=status.hub,
        written=outbox.points_written,
        stored=stored,
        waiting=outbox.points,
        lost=max(0, expected - stored),
        doubled=max(0, stored - expected - outbox.points),
        refused=0 if found is None else found.duplicates_refused,
    )


def _watch(console: Console, fleet: DemoFleet, seconds: int) -> None:
    """Show the fleet until the time is over or Ctrl-C comes."""
    ends_at = time.monotonic() + seconds if seconds else float("inf")
    console.print("[dim]Ctrl-C ends it with an audit.[/]" if not seconds else f"[dim]Ends after {seconds} s.[/]")
    told_at = 0.0
    try:
        with Live(_table(fleet), console=console, refresh_per_second=2, transient=False) as live:
            while time.monotonic() < ends_at:
                fleet.check()
                time.sleep(min(0.5, max(0.0, ends_at - time.monotonic())))
                live.update(_table(fleet))
                if not console.is_terminal and time.monotonic() - told_at > 5:
                    told_at = time.monotonic()
                    console.print(_line(fleet))
    except KeyboardInterrupt:
        console.print("Stopping.")


def _audit(console: Console, fleet: DemoFleet) -> list[Verdict]:
    """Stop the hubs, so that their books are final, and compare them with the database."""
    fleet.stop(*fleet.hubs)
    audits = fleet.audit()
    statuses = [status for hub_id in fleet.hubs if (status := fleet.status(hub_id)) is not None]
    return [judge(status, audits) for status in statuses]


def _tell(console: Console, verdicts: list[Verdict]) -> None:
    table = Table(title="Audit, in points", title_justify="left")
    for column in ("hub", "wrote", "in the database", "waiting in the hub", "lost", "doubled", "repeats refused"):
        table.add_column(column, justify="left" if column == "hub" else "right")
    for verdict in verdicts:
        numbers = (verdict.written, verdict.stored, verdict.waiting, verdict.lost, verdict.doubled, verdict.refused)
        table.add_row(verdict.hub, *(f"{number:,}" for number in numbers))
    console.print(table)
    lost, doubled = sum(verdict.lost for verdict in verdicts), sum(verdict.doubled for verdict in verdicts)
    console.print(f"[bold {'red' if lost or doubled else 'green'}]{lost} lost, {doubled} doubled[/]")


def _table(fleet: DemoFleet) -> Table:
    table = Table()
    for column in ("hub", "path", *SHOWN.values(), "pending", "stored values"):
        table.add_column(column, justify="left" if column in ("hub", "path") else "right", no_wrap=True)
    for hub_id in fleet.hubs:
        status, counts = fleet.status(hub_id), fleet.counts[hub_id]
        values = (_shown(counts.values.get(name)) for name in SHOWN)
        pending = "" if status is None else str(status.outbox.pending)
        table.add_row(hub_id, _path(status), *values, pending, f"{sum(counts.stored.values()):,}")
    return table


def _line(fleet: DemoFleet) -> str:
    """Return the state of the fleet in a line, for where there is no terminal."""
    parts = []
    for hub_id in fleet.hubs:
        status, counts = fleet.status(hub_id), fleet.counts[hub_id]
        parts.append(f"{hub_id} {_path(status)}, {sum(counts.stored.values())} values stored")
    return "; ".join(parts)


def _path(status: HubStatus | None) -> str:
    if status is None:
        return "starting"
    match status.path.kind:
        case "connector":
            return f"through {status.path.connector}"
        case "direct":
            return "direct to the cloud"
        case _:
            return "looking for a path"


def _shown(value: object) -> str:
    return "" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


@contextmanager
def _folder(directory: Path | None) -> Iterator[Path]:
    if directory is not None:
        yield directory.absolute()
        return
    place = Path(tempfile.mkdtemp(prefix="hubline-demo-"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end the demo as Ctrl-C does, so that no process is left behind."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
