"""How `hubline fleet` writes: tables on a terminal, aligned lines elsewhere, JSON for scripts; nothing that a terminal obeys."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import click

from broker.clock import unix_ms
from cloud.fleet_client import Api, place_from
from config.errors import SettingsError

P = ParamSpec("P")
R = TypeVar("R")

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_STYLES: Final = {
    "online": "green",
    "unreachable-online": "green",
    "offline": "red",
    "unreachable-offline": "red",
    "path-down": "yellow",
    "roaming": "cyan",
    "done": "green",
    "failed": "red",
    "refused": "red",
    "expired": "yellow",
    "cancelled": "yellow",
    "error": "red",
    "warning": "yellow",
    "in force": "green",
    "rolled-back": "red",
}
"""Colours of what a column says; the words say it too."""


def with_api(command: Callable[P, R]) -> Callable[P, R]:
    """Give a command the options --dir and --json."""
    directory = click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path),
        help="The fleet directory, for its admin.token; else HUBLINE_FLEET_DIR or HUBLINE_API_TOKEN count.",
    )
    as_json = click.option("--json", "as_json", is_flag=True, help="JSON, for scripts.")
    return directory(as_json(command))


def api_at(directory: Path | None) -> Api:
    """Return the API that the options and the environment name, to be closed with the command. Raises SettingsError."""
    api = Api(place_from(directory))
    click.get_current_context().call_on_close(api.close)
    return api


# --- Writing ---------------------------------------------------------------------------------------------------------


def is_terminal() -> bool:
    """Tell whether a person reads the output."""
    return sys.stdout.isatty()


def say_json(content: object) -> None:
    """Write one JSON document."""
    click.echo(json.dumps(content, indent=2, ensure_ascii=False))


def say_line(content: object) -> None:
    """Write one JSON object in a line, at once."""
    click.echo(json.dumps(content, ensure_ascii=False))
    sys.stdout.flush()


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write rows under headings."""
    cells = [[visible("-" if cell is None or cell == "" else str(cell)) for cell in row] for row in rows]
    if not is_terminal():
        lines = [[heading.upper() for heading in headings], *cells]
        widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
        for line in lines:
            click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        shown.add_column(heading)
    for line in cells:
        shown.add_row(*(Text(cell, _STYLES.get(cell, "")) for cell in line))
    Console(highlight=False).print(shown)


def facts(rows: Iterable[tuple[str, object]]) -> None:
    """Write names and what they stand for, without those that stand for nothing."""
    known = [(name, visible(str(value))) for name, value in rows if value not in (None, "", [], {})]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        style = _STYLES.get(value) if is_terminal() else None
        click.echo(f"{name.ljust(width)}  {click.style(value, fg=style) if style else value}")


def visible(text: str) -> str:
    """Return text without control characters: what a hub sends must not drive the terminal of whoever reads it."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def compact(content: object) -> str:
    """Return JSON in a line, as a value of a key is shown."""
    return json.dumps(content, ensure_ascii=False)


def confirm(question: str, yes: bool) -> None:
    """Ask unless --yes was given. Raises SettingsError where nobody can answer, click.Abort for a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise SettingsError(f"{question} Nobody is here to answer: give --yes")
    click.confirm(question, abort=True)


# --- Times -----------------------------------------------------------------------------------------------------------


def clock(ms: int) -> str:
    """Return a time for people, in the time zone of this machine."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return str(ms)


def ago(ms: int | None) -> str:
    """Return how long ago something was."""
    if ms is None:
        return "never"
    seconds = max(0, (unix_ms() - ms) // 1000)
    for unit, length_s in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds // length_s} {unit} ago"
    return f"{seconds} s ago"


def seconds_of(text: str, key: str) -> int:
    """Return the seconds of "90s", "10m", "1h" or "2d". Raises SettingsError."""
    found = re.fullmatch("([0-9]{1,7})([smhd])", text)
    if not found:
        raise SettingsError('is no length of time: give "90s", "10m", "1h" or "2d"', key=key, value=text)
    return int(found[1]) * _UNITS_S[found[2]]


def instant(text: str) -> int:
    """Return Unix ms of "2h" (ago), ISO 8601 (local time unless it says otherwise) or Unix ms. Raises SettingsError."""
    if re.fullmatch("[0-9]{9,15}", text):
        return int(text)
    try:
        return max(0, unix_ms() - seconds_of(text, "--since") * 1000)
    except SettingsError:
        pass  # Then it is a time.
    try:
        return max(0, int(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1000))
    except (ValueError, OverflowError, OSError) as exc:
        problem = 'is no time: give "2026-11-22T08:00", "2h", "30m", "7d" or Unix milliseconds'
        raise SettingsError(problem, key="--since", value=text) from exc


# --- Names -----------------------------------------------------------------------------------------------------------


def hub_named(api: Api, name: str) -> str:
    """Return SITE/HUB of HUB or SITE/HUB. Raises SettingsError that names what there is instead."""
    if re.fullmatch("[a-z0-9-]{1,63}/[a-z0-9-]{1,63}", name):
        return name
    known = [f"{entry['site']}/{entry['hub']}" for entry in _alike(api, name)]
    if len(known) == 1:
        return known[0]
    if known:
        raise SettingsError(
            f"there are several hubs of this name: say which, {', '.join(known)}", key="HUB", value=name
        )
    import difflib

    there = [f"{entry['site']}/{entry['hub']}" for entry in api.get("/hubs", limit=1000, hidden="all")["items"]]
    names = {full.partition("/")[2]: full for full in there}
    close = [names[near] for near in difflib.get_close_matches(name, names, n=3)]
    meant = f": did you mean {' or '.join(close)}?" if close else ""
    raise SettingsError(f"there is no such hub{meant}", key="HUB", value=name)


def _alike(api: Api, name: str) -> list[dict[str, Any]]:
    if len(name) > 63:
        return []
    return [entry for entry in api.pages("/hubs", text=f"/{name}", hidden="all") if entry["hub"] == name]
