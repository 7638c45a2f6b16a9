"""`hubline hub`: run the sensor hub of this machine, and tell how it is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

_FILE = click.option("-c", "--config", "file", type=click.Path(path_type=Path), required=True, help="The hub.toml.")


@click.group()
def hub() -> None:
    """The sensor hub of this machine: measures, keeps, sends."""


@hub.command()
@_FILE
def run(file: Path) -> None:
    """Measure and send until stopped."""
    from broker.process import run_until_stopped
    from config import log
    from config.settings import HubSettings, load
    from hub.agent import run_hub

    settings = load(file, HubSettings)
    log.set_up(settings.log)
    run_until_stopped(lambda stop: run_hub(file, settings, stop))


@hub.command()
@_FILE
@click.option("--json", "as_json", is_flag=True, help="Print the status as one JSON object.")
@click.option(
    "--language",
    type=click.Choice(["en", "de"]),
    default="en",
    show_default=True,
    help="Of the sentence that sums it up, and of what to do.",
)
def status(file: Path, as_json: bool, language: Literal["en", "de"]) -> None:
    """Tell by which path the hub sends, and what waits. Exit status 1 if it does not run."""
    from config.settings import HubSettings, load
    from hub.status import read_status, told

    found = read_status(load(file, HubSettings))
    click.echo(found.json(language) if as_json else told(found, language))
    if not found.running:
        click.get_current_context().exit(1)


@hub.command()
@click.argument("switch", type=click.Choice(["on", "off"]))
@_FILE
def roam(switch: str, file: Path) -> None:
    """Have this hub roam (a presentation, a journey), or no more.

    A roaming hub measures and sends readings as ever. It keeps its log lines to itself, starts no task and takes no settings.
    """
    from hub.mode_roaming import in_force, set_roaming

    changed = set_roaming(in_force(file), switch == "on")
    now = "roams" if switch == "on" else "does not roam"
    click.echo(f"This hub {now}{' from now on' if changed else ', as before'}.")
