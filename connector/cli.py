"""`hubline connector`: run the connector of a site."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def connector() -> None:
    """The connector of a site: bridges its hubs to the cloud."""


@connector.command()
@click.option(
    "-c", "--config", "file", type=click.Path(path_type=Path), required=True, help="The connector.toml to run."
)
def run(file: Path) -> None:
    """Bridge the site to the cloud until stopped."""
    from broker.process import run_until_stopped
    from config import log
    from config.settings import ConnectorSettings, load
    from connector.agent import Agent

    settings = load(file, ConnectorSettings)
    log.set_up(settings.log)
    run_until_stopped(lambda stop: Agent(settings).run(stop))
