"""`hubline cloud`: run the cloud service, audit and read what it has stored, bring its database up to date or to PostgreSQL."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cloud.intake import Part
    from cloud.queries import Archive

_file = click.option(
    "-c", "--config", "file", type=click.Path(path_type=Path), required=True, help="The cloud.toml of the service."
)


@click.group()
def cloud() -> None:
    """The cloud service: stores what the hubs send, and acknowledges it."""


@cloud.command()
@_file
@click.option(
    "--only",
    type=click.Choice(["ingest", "operations"]),
    help="One part of a divided service: a worker that stores and acknowledges, or all the rest. Needs PostgreSQL.",
)
def run(file: Path, only: Part | None) -> None:
    """Store and acknowledge until stopped.

    Any number of processes may run with --only ingest, if cloud.intake is "shared" or "jetstream"; of those with --only
    operations one is active, the others stand by.
    """
    from broker.process import run_until_stopped
    from cloud.service import Service
    from config import limits, log
    from config.settings import CloudSettings, load

    settings = load(file, CloudSettings)
    log.set_up(settings.log)
    gc.freeze()  # What the start has made stays.
    gc.set_threshold(limits.COLLECTOR_ALLOCATIONS)
    run_until_stopped(lambda stop: Service(settings, only).run(stop))


@cloud.command(short_help="Say of each hub what has come and what is missing.")
@_file
@click.option("--json", "as_json", is_flag=True, help="One JSON array, for scripts.")
@click.option("--verify", is_flag=True, help="Also decode every stored message and compare with the sums.")
@click.pass_context
def audit(ctx: click.Context, file: Path, as_json: bool, verify: bool) -> None:
    """Say for each outbox of each hub what has come and what is missing.

    The exit status is 1 if a message is missing that no gap record explains (it may still be on its way), or if --verify
    finds damage. Points are those ever stored; what the retention has deleted counts.
    """
    from cloud import reports

    with _archive(file) as archive:
        audits = list(archive.audit(verify=verify))
    stream = sys.stdout.buffer
    stream.write(reports.audit_json(audits) if as_json else reports.audit_table(audits, stream.isatty()))
    stream.flush()
    if any(entry.missing or entry.damaged for entry in audits):
        ctx.exit(1)


@cloud.command()
@click.argument("hub_name", metavar="HUB")
@_file
@click.option("--sensor", help='Only this value ("cpu.percent"), or all of a sensor ("cpu").')
@click.option("--since", help='ISO 8601 ("2026-11-22T08:00"), a while ago ("2h", "30m", "7d"), or Unix milliseconds.')
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated values, with a header.")
def readings(hub_name: str, file: Path, sensor: str | None, since: str | None, as_json: bool, as_csv: bool) -> None:
    """Print what HUB (or SITE/HUB) measured, oldest first."""
    from broker.clock import unix_ms
    from cloud import reports

    if as_json and as_csv:
        raise click.UsageError("choose one of --json and --csv")
    since_ms = reports.instant(since, unix_ms()) if since else 0
    with _archive(file) as archive:
        found = archive.readings(archive.hub_named(hub_name), sensor=sensor, since_ms=since_ms)
        stream = sys.stdout.buffer
        form = reports.json_lines if as_json else reports.csv_lines if as_csv else reports.text_lines
        for line in form(found):
            stream.write(line)
        stream.flush()


@cloud.command()
@_file
def migrate(file: Path) -> None:
    """Bring the database up to date with this Hubline.

    A SQLite file is brought up to date by the service itself when it starts. With PostgreSQL, stop all processes of the cloud
    service first, migrate, and start the new ones.
    """
    from cloud import upgrading
    from cloud.tables import SCHEMA_VERSION
    from config.settings import CloudSettings, load

    settings = load(file, CloudSettings)
    done = False
    for before, after in upgrading.migrate(settings.cloud.database, settings.identity.fleet):
        done = True
        click.echo(
            f"schema {before} -> {after}" if before else f"made the tables of schema {after} in an empty database"
        )
    click.echo("done" if done else f"nothing to do: the schema is {SCHEMA_VERSION}, the newest that this Hubline knows")


@cloud.command(short_help="Copy a SQLite database into an empty PostgreSQL.")
@_file
@click.option(
    "--to",
    "url",
    metavar="URL",
    required=True,
    envvar="HUBLINE_COPY_TO",
    show_envvar=True,
    help="The empty database: postgresql+asyncpg://USER:PASSWORD@HOST/NAME. Other users of this machine can see what a "
    "command is given, but not its environment.",
)
def copy(file: Path, url: str) -> None:
    """Copy a SQLite database into an empty PostgreSQL, with everything in it.

    The cloud service must be stopped. Whatever goes wrong, the copy is complete or nothing of it stays. Afterwards set
    cloud.database to the new one and start the service: hubs send what they still have, and what is there already is refused.
    """
    from cloud.copying import copy_database
    from cloud.copying_output import progress
    from cloud.schema import database_file
    from config.settings import CloudSettings, load

    settings = load(file, CloudSettings)
    source = database_file(settings.cloud.database)
    with progress() as seen:
        counts = copy_database(source, settings.identity.fleet, url, seen)
    rows = sum(counts.values())
    click.echo(f"copied {rows} rows, {counts['messages']} messages among them, and compared both databases: they agree")
    click.echo(f"now set cloud.database in {file}, and keep {source} until you trust the new one")


def _archive(file: Path) -> Archive:
    from cloud.database import open_archive
    from config.settings import CloudSettings, load

    return open_archive(load(file, CloudSettings).cloud.database)
