"""`hubline doctor`: what is wrong with this hub, what to do, and by which path it would send now."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from rich.text import Text

    from hub.diagnosis import Check, Report

_COLOURS: Final = {"ok": "green", "warning": "yellow", "problem": "bold red"}
_INDENT: Final = 9
_NAME: Final = 12


@click.command()
@click.option("-c", "--config", "file", type=click.Path(path_type=Path), required=True, help="The hub.toml.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def doctor(file: Path, as_json: bool) -> None:
    """Examine this machine's hub, running or not: what is wrong, what to do, and by which path it would send now.

    Exit status 0 if a path works, 1 if none does.
    """
    import asyncio

    import orjson

    from config import log
    from config.errors import SettingsError
    from config.settings import HubSettings, Log, load
    from hub.doctor import examine, unreadable

    log.set_up(Log(level="error"))  # What there is to say, the report says.
    try:
        report = asyncio.run(examine(file, load(file, HubSettings)))
    except SettingsError as exc:
        report = unreadable(exc)
    if as_json:
        click.echo(orjson.dumps(report.plain(), option=orjson.OPT_INDENT_2).decode())
    else:
        _show(report)
    if not report.works:
        click.get_current_context().exit(1)


def _show(report: Report) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for line in told(report):
        console.print(line)


def told(report: Report) -> list[Text]:
    """Return the report as lines for a person; they have colours, which only a terminal shows."""
    from rich.text import Text

    lines = []
    for check in map(_printable, report.checks):
        state = check.state.value
        lines.append(Text.assemble((f"{state:<{_INDENT}}", _COLOURS[state]), f"{check.name:<{_NAME}}{check.text}"))
        inset = " " * (_INDENT + _NAME)
        lines += [Text(f"{inset}  {line}", style="dim") for line in check.lines]
        if check.todo is not None:
            lines.append(Text.assemble(inset, ("→ ", _COLOURS[state]), check.todo))
    colour = _COLOURS["ok" if report.works else "problem"]
    lines += [Text(), Text.assemble(("Path now: ", "bold"), (_without_controls(report.verdict.text), colour))]
    return lines


def _printable(check: Check) -> Check:
    """Return a check without what a terminal would obey: parts of it come from strangers on the network."""
    from dataclasses import replace

    todo = None if check.todo is None else _without_controls(check.todo)
    return replace(check, text=_without_controls(check.text), todo=todo, lines=[*map(_without_controls, check.lines)])


def _without_controls(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)
