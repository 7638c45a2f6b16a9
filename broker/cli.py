"""`hubline broker`: run the broker of a site or of the cloud, by our own engine or by one that exists."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from broker.engines.plan import Plan
    from config.settings import BrokerSettings

ENGINES: Final = ("mosquitto", "nats", "emqx")
"""Engines whose configuration can be written."""


@click.group()
def broker() -> None:
    """The MQTT broker of a site, or of the cloud."""


@broker.command()
@click.option("-c", "--config", "file", type=click.Path(path_type=Path), required=True, help="The broker.toml to run.")
def run(file: Path) -> None:
    """Serve MQTT over TLS until stopped."""
    from broker.process import run_until_stopped
    from config import log
    from config.settings import BrokerSettings, load

    settings = load(file, BrokerSettings)
    log.set_up(settings.log)
    run_until_stopped(_served_by(settings))


@broker.command(name="config")
@click.argument("engine", type=click.Choice(ENGINES))
@click.option(
    "-c",
    "--config",
    "file",
    type=click.Path(path_type=Path),
    default=Path("broker.toml"),
    show_default=True,
    help="The broker.toml to write it for.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="The folder to write it into.")
def write_config(engine: str, file: Path, out: Path | None) -> None:
    """Write an engine's configuration for this broker, and run nothing. Without --out, show it, and write nothing.

    `hubline broker run` does this by itself for Mosquitto and NATS: here it is for those who look, or who run EMQX.
    """
    from broker.engines.prepared import FOLDER, read_members, write_files
    from broker.engines.registry import engine_named
    from config.settings import BrokerSettings, load

    settings = load(file, BrokerSettings)
    folder = (settings.broker.data_dir / FOLDER) if out is None else out.absolute()
    plan = engine_named(engine).plan(settings, read_members(settings), folder)
    if out is not None:
        write_files(plan, folder)
    for name, content in plan.files.items():
        if out is not None:
            click.echo(folder / name)
        elif name in plan.private:
            click.echo(f"# --- {name}: private, only written with --out")
        else:
            click.echo(f"# --- {name}\n{content.decode()}")
    click.echo(f"# {_use_of(engine, settings, plan, out and folder)}", err=True)


def _use_of(engine: str, settings: BrokerSettings, plan: Plan, folder: Path | None) -> str:
    """Return what a person does with the files; `folder` is where they are, or None."""
    if folder is None:
        return "only shown: --out DIRECTORY writes it"
    if engine == "emqx":
        from broker.engines.emqx import CONF

        return f'Add this to the configuration of EMQX: include "{folder / CONF}"'
    if engine == "nats":
        from broker.engines.nats import authorization

        if authorization(settings) == "callout":
            return (
                "By itself nats-server lets nobody in with this: it asks `hubline broker run` about each client. "
                'Run that, with engine = "nats" in [broker]'
            )
    environ = [f"{name}={shlex.quote(value)}" for name, value in plan.environ.items()]
    command = " ".join([*environ, shlex.join((plan.program, *plan.arguments))])
    return f"Run it by: cd {shlex.quote(str(folder))} && {command}"


def _served_by(settings: BrokerSettings) -> Callable[[asyncio.Event], Awaitable[None]]:
    """Return what runs the engine of the settings until an event is set. Raises SettingsError."""
    from config.errors import SettingsError

    match settings.broker.engine:
        case "amqtt":
            from broker.server import Server

            return lambda stop: Server(settings).run(stop)
        case "external":
            problem = (
                "there is nothing to run: this broker is run by others, `hubline broker config` writes files for it"
            )
            raise SettingsError(problem, key="broker.engine", value="external")
        case name:
            from broker.engines.child import EngineProcess
            from broker.engines.registry import engine_named

            engine = engine_named(name)
            return lambda stop: EngineProcess(settings, engine).run(stop)
