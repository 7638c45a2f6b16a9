"""`hubline demo`: a whole fleet on one machine, with this machine's real measurements, and an audit at the end."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from config.demo_engines import Database, Engine
from config.demo_fleet import CONNECTOR, SITE, DemoFleet, HubAudit, HubStatus

SHOWN: Final = {
    "cpu.percent": "cpu %",
    "memory.percent": "memory %",
    "load.1min": "load",
    "disk.root.percent": "disk %",
}
"""The values that the table has room for, and their headings."""

QUICK: Final = {
    "HUBLINE_FAILBACK__PROBE_S": "3",
    "HUBLINE_FAILBACK__STABLE_S": "5",
    "HUBLINE_FAILBACK__JITTER_S": "5",
}
"""A minute's story instead of ten: with the defaults, hubs watch a connector for one to two minutes before they return."""

SCRIPT_SECONDS: Final = 15
"""How long all is well before the story begins, unless said."""

TURN_S: Final = 0.5
TOLD_EVERY_S: Final = 5.0

PLAIN_WIDTH: Final = 130
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
@click.option("--script", type=click.Choice(["outage"]), help="Then tell a story: the connector fails and comes back.")
@click.option(
    "--engine",
    type=click.Choice(["amqtt", "mosquitto", "nats"]),
    default="amqtt",
    show_default=True,
    help="Which brokers: our own, Mosquitto with its own bridge, or three nodes of NATS as the cloud broker.",
)
@click.option("--database", type=click.Choice(["sqlite", "postgresql"]), default="sqlite", show_default=True)
@click.option("--outage-s", default=10, show_default=True, type=click.IntRange(3, 300), help="The outage that counts.")
def demo(
    hubs: int,
    seconds: int,
    directory: Path | None,
    script: str | None,
    engine: Engine,
    database: Database,
    outage_s: int,
) -> None:
    """Run cloud broker, cloud, site broker, connector and hubs on this machine, watch them, and audit them at the end.

    The exit status is 1 if a message was lost or stored twice, or if nothing of a hub has been stored.
    """
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    with _interruptible(), _folder(directory) as place:
        # Every two seconds instead of every ten: there is something to see.
        environ = {f"HUBLINE_SENSORS__{name}__INTERVAL_S": "2" for name in ("CPU", "MEMORY", "LOAD", "NETWORK", "DISK")}
        if script == "outage":
            environ |= QUICK | {"HUBLINE_FAILOVER__OUTAGE_S": str(outage_s)}
            seconds = seconds or SCRIPT_SECONDS
        fleet = DemoFleet(place, hubs, environ, engine=engine, database=database)
        console.print(
            f"{fleet.landscape.describe(SITE, hubs)}\n"
            f"Every role is a process of its own. Settings, certificates and logs are in {place}"
        )
        fleet.provision()
        try:
            fleet.start()
            try:
                _watch(console, fleet, seconds)
                if script == "outage":
                    tell_outage(console, fleet, outage_s)
            except KeyboardInterrupt:
                console.print("Stopping.")
            verdicts = _audit(fleet)
        finally:
            _be_deaf()
            fleet.stop_all()
    tell(console, verdicts)
    sys.exit(not is_clean(verdicts, hubs))


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


def is_clean(verdicts: list[Verdict], hubs: int) -> bool:
    """Tell whether every hub has said what it wrote, something is stored of each, and nothing is lost or doubled."""
    return len(verdicts) == hubs and all(
        verdict.stored and not verdict.lost and not verdict.doubled for verdict in verdicts
    )


def judge(status: HubStatus, audits: list[HubAudit]) -> Verdict:
    """Compare a stopped hub's own books with the database's."""
    found = next((audit for audit in audits if (audit.hub, audit.epoch) == (status.hub, status.epoch)), None)
    outbox = status.outbox
    stored = 0 if found is None else found.points
    expected = outbox.points_written - outbox.points - outbox.points_lost
    # By their numbers, too: a sum can't tell a loss beside a double. What still waits in the hub is missing, and not lost.
    missing = 0 if found is None else sum(last - first + 1 for first, last in found.missing)
    # A message may have been stored whose acknowledgement the hub did not wait for: then it is in both places.
    return Verdict(
        hub=status.hub,
        written=outbox.points_written,
        stored=stored,
        waiting=outbox.points,
        lost=max(0, expected - stored, missing - outbox.pending),
        doubled=max(0, stored - expected - outbox.points),
        refused=0 if found is None else found.duplicates_refused,
    )


def watch(console: Console, fleet: DemoFleet, done: Callable[[], bool], caption: Callable[[], str]) -> None:
    """Show the fleet, live, until `done`. Raises KeyboardInterrupt, and HublineError if a role ends by itself."""
    told_at = 0.0
    with Live(_table(fleet, caption()), console=console, refresh_per_second=2, transient=True) as live:
        while not done():
            fleet.check()
            time.sleep(TURN_S)
            live.update(_table(fleet, caption()))
            if not console.is_terminal and time.monotonic() - told_at > TOLD_EVERY_S:
                told_at = time.monotonic()
                console.print(_line(fleet))
    console.print(_table(fleet, ""))


def _watch(console: Console, fleet: DemoFleet, seconds: int) -> None:
    """Show the fleet until the time is over or Ctrl-C comes."""
    ends_at = time.monotonic() + seconds if seconds else float("inf")
    caption = f"for {seconds} s" if seconds else "Ctrl-C ends it with an audit"
    watch(console, fleet, lambda: time.monotonic() >= ends_at, lambda: caption)


def tell_outage(console: Console, fleet: DemoFleet, outage_s: int) -> None:
    """Kill the connector, wait until the hubs have gone to the cloud, start it again, wait until they are back."""
    began_at = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[bold]{time.monotonic() - began_at:5.1f} s[/]  {text}")

    say(f"All is well: {len(fleet.hubs)} hubs send through connector {CONNECTOR}.")
    fleet.kill("connector")
    say("The connector is killed, as by a power cut. The site broker publishes its last will.")
    say(
        f"The hubs measure on and keep everything. After {outage_s} s without a connector (300 s by default) they go around it."
    )
    say("Until then the cloud calls them path-down, not offline: it knows that their connector is out.")
    watch(console, fleet, lambda: fleet.all_on("direct"), lambda: _countdown(fleet))
    say(
        "Every hub sends to the cloud directly; what had waited is on its way. Nobody who reads the data sees a difference."
    )
    fleet.start_connector()
    say(
        "The connector is started again. The hubs go back when it has been good for a while, each at a moment of its own."
    )
    watch(
        console,
        fleet,
        lambda: fleet.all_on("connector"),
        lambda: "waiting until the connector has proven itself stable",
    )
    say(
        f"Every hub sends through {CONNECTOR} again; each left the cloud only after its first acknowledgement from there."
    )


def _countdown(fleet: DemoFleet) -> str:
    """Return when the hubs will go to the cloud."""
    moments = [status.path.switch_at for hub_id in fleet.hubs if (status := fleet.status(hub_id)) is not None]
    due = [moment / 1000 - time.time() for moment in moments if moment is not None]
    return f"to the cloud in {max(0, round(max(due)))} s" if due else "switching"


def _audit(fleet: DemoFleet) -> list[Verdict]:
    """Stop the hubs, so that their books are final, and compare them with the database."""
    fleet.stop(*fleet.hubs)
    audits = fleet.audit()
    statuses = [status for hub_id in fleet.hubs if (status := fleet.status(hub_id)) is not None]
    return [judge(status, audits) for status in statuses]


def tell(console: Console, verdicts: list[Verdict]) -> None:
    """Print the audit, and what of it is not as it should be."""
    table = Table(title="Audit, in points", title_justify="left")
    for column in ("hub", "wrote", "in the database", "waiting in the hub", "lost", "doubled", "repeats refused"):
        table.add_column(column, justify="left" if column == "hub" else "right")
    for verdict in verdicts:
        numbers = (verdict.written, verdict.stored, verdict.waiting, verdict.lost, verdict.doubled, verdict.refused)
        table.add_row(verdict.hub, *(f"{number:,}" for number in numbers))
    console.print(table)
    lost, doubled = sum(verdict.lost for verdict in verdicts), sum(verdict.doubled for verdict in verdicts)
    console.print(f"[bold {'red' if lost or doubled else 'green'}]{lost} lost, {doubled} doubled[/]")
    if silent := [verdict.hub for verdict in verdicts if not verdict.stored]:
        console.print(f"[bold red]Nothing of {', '.join(silent)} had come to the database yet: let it run longer.[/]")


def _table(fleet: DemoFleet, caption: str) -> Table:
    table = Table(caption=caption or None, caption_justify="left")
    for column in ("hub", "path", "for the cloud", *SHOWN.values(), "waiting", "stored"):
        left = column in ("hub", "path", "for the cloud")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for hub_id in fleet.hubs:
        status, counts = fleet.status(hub_id), fleet.counts[hub_id]
        values = (_shown(counts.values.get(name)) for name in SHOWN)
        pending = "" if status is None else str(status.outbox.points)
        stored = f"{sum(counts.stored.values()):,}"
        table.add_row(hub_id, _path(status), counts.presence, *values, pending, stored)
    return table


def _line(fleet: DemoFleet) -> str:
    """Return the state of the fleet, a hub a line, for where there is no terminal."""
    parts = []
    for hub_id in fleet.hubs:
        status, counts = fleet.status(hub_id), fleet.counts[hub_id]
        known = f", {counts.presence} for the cloud" if counts.presence else ""
        parts.append(f"{hub_id} {_path(status)}{known}, {sum(counts.stored.values())} values stored")
    return "\n".join(parts)


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
    place.chmod(0o711)  # PostgreSQL's user must get to its own folder; keys are their owner's alone.
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


def _be_deaf() -> None:
    """Hear no second Ctrl-C, for good: who asks twice would leave processes behind, and stopping them is bounded."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
