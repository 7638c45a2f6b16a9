"""`hubline broker`: run the embedded broker of a site or of the cloud."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def broker() -> None:
    """The embedded MQTT broker of a site, or of the cloud."""


@broker.command()
@click.option("-c", "--config", "file", type=click.Path(path_type=Path), required=True, help="The broker.toml to run.")
def run(file: Path) -> None:
    """Serve MQTT over TLS until stopped."""
    from broker.process import run_until_stopped
    from broker.server import Server
    from config import log
    from config.settings import BrokerSettings, load

    settings = load(file, BrokerSettings)
    log.set_up(settings.log)
    run_until_stopped(lambda stop: Server(settings).run(stop))
