"""The command `hubline`: loads a subcommand's module only when it is called, and turns what goes wrong into one line."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

import click

from config.errors import HublineError

INTERRUPTED: Final = 130
"""The exit status of a process that Ctrl-C has ended: 128 and SIGINT, as shells have it."""


@dataclass(frozen=True, slots=True)
class Lazy:
    """A subcommand that is not imported yet: `place` is "module:attribute", `help` its line in the list of commands."""

    place: str
    help: str


COMMANDS: Final[Mapping[str, Lazy]] = {
    "demo": Lazy("config.demo:demo", "Run a whole fleet on this machine and watch it."),
    "provision": Lazy("config.provisioning:provision", "Make a fleet, and the bundles for its machines."),
    "config": Lazy("config.commands:config", "Show and check a settings file."),
    "broker": Lazy("broker.cli:broker", "Run a site's broker or the cloud broker."),
    "connector": Lazy("connector.cli:connector", "Run a site's connector."),
    "hub": Lazy("hub.cli:hub", "Run the sensor hub of this machine, or show its status."),
    "doctor": Lazy("hub.doctor_cli:doctor", "Say what is wrong with this machine's hub, and what to do."),
    "cloud": Lazy("cloud.cli:cloud", "Run the cloud service; audit and read what it has stored."),
    "fleet": Lazy("cloud.fleet_cli:fleet", "See the fleet and act on it: hubs, tasks, settings, logs, tokens."),
    "tail": Lazy("broker.tail:tail", "Print messages as a subscriber sees them."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, so that each starts as fast as it can."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command."""
        lazy = COMMANDS.get(cmd_name)
        if lazy is None:
            return None
        module, _, attribute = lazy.place.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.help) for name, lazy in COMMANDS.items()])


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("hubline")
    except PackageNotFoundError:
        number = "(not installed: run from its source)"
    click.echo(f"hubline {number}")
    ctx.exit()


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version and exit."
)
def hubline() -> None:
    """Hubline keeps the line between the machines of an organisation and its cloud open, and loses nothing they have to say."""


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 refused or failed (one line on stderr), 2 wrong usage, 130 interrupted."""
    try:
        status = hubline.main(prog_name="hubline", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        status = exc.exit_code
    except HublineError as exc:
        click.echo(f"hubline: {exc}", err=True)
        status = 1
    except click.Abort as exc:
        click.echo("hubline: interrupted", err=True)
        cause = exc.__cause__ or exc.__context__  # A prompt hides the Ctrl-C that ended it.
        status = INTERRUPTED if isinstance(cause, KeyboardInterrupt) else 1
    except OSError as exc:
        if not isinstance(exc, BrokenPipeError):  # Whoever closed the pipe wants no more lines.
            place = f"{exc.filename}: " if exc.filename else ""
            click.echo(f"hubline: {place}{exc.strerror or exc}", err=True)
        status = 1
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status if isinstance(status, int) else 0)
