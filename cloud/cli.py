"""`hubline cloud`: run the cloud service, audit what it has stored, read it back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cloud.queries import Archive

_file = click.option(
    "-c", "--config", "file", type=click.Path(path_type=Path), required=True, help="The cloud.toml of the service."
)


@click.group()
def cloud() -> None:
    """The cloud service: stores what the hubs send, and acknowledges it."""


@cloud.command()
@_file
def run(file: Path) -> None:
    """Store and acknowledge until stopped."""
    from broker.process import run_until_stopped
    from cloud.service import Service
    from config import log
    from config.settings import CloudSettings, load

    settings = load(file, CloudSettings)
    log.set_up(settings.log)
    run_until_stopped(lambda stop: Service(settings).run(stop))


@cloud.command()
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


def _archive(file: Path) -> Archive:
    from cloud.queries import Archive
    from cloud.schema import database_file
    from config.settings import CloudSettings, load

    return Archive(database_file(load(file, CloudSettings).cloud.database))
