"""The commands `hubline config …`: show what counts and why, and say what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import orjson

from config import settings

if TYPE_CHECKING:
    from config.principal import Role

_FILE: Final = click.option(
    "-c", "file", required=True, type=click.Path(path_type=Path), help="The settings file: hub.toml, broker.toml, …"
)
_ROLE: Final = click.option(
    "--role", type=click.Choice(list(settings.SHAPES)), help="Whose file it is, if its name doesn't say so."
)


@click.group()
def config() -> None:
    """Show and check a settings file."""


@config.command()
@_FILE
@_ROLE
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for scripts.")
def show(file: Path, role: Role | None, as_json: bool) -> None:
    """Show every setting that counts, and where it is from.

    That is: the file, an environment variable (HUBLINE_<SECTION>__<KEY>), or the default.
    """
    shape = settings.SHAPES[settings.role_of(file, role)]
    effective = settings.effective(file, shape)
    if as_json:
        entries = {each.key: {"value": each.value, "origin": each.origin} for each in effective}
        click.echo(orjson.dumps(entries, default=str, option=orjson.OPT_INDENT_2))
        return
    origins = {str(file): file.name}
    rows = [(f"{each.key} = {_toml(each.value)}", origins.get(each.origin, each.origin)) for each in effective]
    width = min(max(len(text) for text, _ in rows), 60)
    for text, origin in rows:
        click.echo(f"{text:<{width}}  # {origin}")


@config.command(short_help="Say what is wrong with a settings file.")
@_FILE
@_ROLE
def check(file: Path, role: Role | None) -> None:
    """Say what is wrong with a settings file, with the certificates that it names, and with what an engine needs."""
    from config.check import findings

    whose = settings.role_of(file, role)
    found = findings(settings.load(file, settings.SHAPES[whose]), whose, file)
    for each in found:
        click.echo(f"{'error' if each.fatal else 'warning'}: {each}", err=True)
    if any(each.fatal for each in found):
        sys.exit(1)
    click.echo(f"{file}: all right for a {whose}")


def _toml(value: object) -> str:
    """Return a value as one would write it in the file."""
    from config.bundles import toml_string

    if value is None:
        return "(not set)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(_toml(entry) for entry in value) + "]"
    return str(value) if isinstance(value, int | float) else toml_string(str(value))
