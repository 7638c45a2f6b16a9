"""The results as tables, on a terminal and in docs/performance.md, with a plain yes or no for each goal."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Final

from rich.table import Table

from bench import peer
from bench.gauge import Memory
from bench.rig import HUBS
from bench.scenarios import STEADY_RATE, Audit, Comparison, Plan, Results, Sample
from config.errors import SettingsError

BEGIN: Final = "<!-- measured: begin (written by `make bench`) -->"
END: Final = "<!-- measured: end -->"
PACKAGES: Final = ("amqtt", "paho-mqtt", "orjson", "msgspec", "SQLAlchemy", "zstandard", "cryptography")


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
        lines = [f"### {self.title}", ""]
        if self.said:
            lines += [self.said, ""]
        lines += [_line(self.headings), "|---|" + "---:|" * (len(self.headings) - 1), *map(_line, self.rows)]
        return "\n".join(lines)


def grids(results: Results) -> list[Grid]:
    """Return all tables, the verdicts first."""
    return [
        _goals(results),
        _comparison(results.path, "messages/s out of the cloud broker"),
        _comparison(results.large, "readings/s committed"),
        _comparison(results.small, "readings/s committed"),
        _comparison(results.steady, "readings/s committed"),
        _memory(results),
    ]


def write(document: Path, results: Results, plan: Plan) -> None:
    """Put the tables between the document's markers. Raises SettingsError if it has none."""
    tables = "\n\n".join(grid.markdown() for grid in grids(results))
    _put(document, BEGIN, END, f"{machine(plan)}\n\n{tables}")


def write_section(document: Path, name: str, grid: Grid) -> None:
    """Put one table between the document's markers of this name. Raises SettingsError if it has none."""
    _put(document, f"<!-- {name}: begin -->", f"<!-- {name}: end -->", grid.markdown())


def _put(document: Path, begin: str, end: str, content: str) -> None:
    text = document.read_text("utf-8")
    if begin not in text or end not in text.partition(begin)[2]:
        raise SettingsError(f"has no place for the tables: {begin} … {end}", file=document)
    head, _, rest = text.partition(begin)
    document.write_text(f"{head}{begin}\n\n{content}\n\n{end}{rest.partition(end)[2]}", "utf-8")


def machine(plan: Plan) -> str:
    """Return where and how this was measured, without a date."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    done = subprocess.run([peer.program(), "-h"], capture_output=True, text=True, check=False)
    found = re.search(r"version (\S+)", done.stdout)
    runs = f"{plan.pairs} pair{'s' * (plan.pairs > 1)} of runs of {plan.seconds:g} s ({plan.steady_s:g} s at a steady load)"
    hint = " **One short pair is an indication, not a result.**" if plan.pairs == 1 else ""
    return (
        f"Measured on {os.cpu_count()} cores ({platform.machine()}, {platform.system()}), Python {platform.python_version()},"
        f" {packages}; Mosquitto {found[1] if found else 'of unknown version'}. {runs}.{hint}"
    )


# --- Tables ---------------------------------------------------------------------------------------------------------


def _goals(results: Results) -> Grid:
    met = "met" if len(results.path.pairs) > 1 else "met, by one pair"
    grid = Grid("Goals", "", ("goal", "target", "measured", met))

    def against_peer(
        what: str, found: Comparison, of: Callable[[Sample], float | None], limit: float, *, most: bool
    ) -> None:
        ratios = _ratios(found, of)
        sign = "≤" if most else "≥"
        if ratios:
            verdict = _yes(median(ratios) <= limit if most else median(ratios) >= limit)
            grid.rows.append((what, f"{sign} {limit:g} × T", f"{_spread(ratios, '.2f')} × T", verdict))
        else:
            grid.rows.append((what, f"{sign} {limit:g} × T", "–", "not measured"))

    against_peer("messages/s hub to cloud broker, 10 readings per message", results.path, _rate, 0.2, most=False)
    cpu = "CPU per 1000 messages on the site's machine"
    against_peer(f"{cpu}, at full speed", results.path, lambda s: s.site_cpu_s, 8, most=True)
    against_peer(f"{cpu}, at {STEADY_RATE:g} messages/s", results.steady, lambda s: s.site_cpu_s, 8, most=True)
    against_peer(
        "readings/s committed, hubs to database, 100 readings per message (T: SQLite)",
        results.large,
        _rate,
        3,
        most=False,
    )
    against_peer(
        "WAN bytes per message, both directions, at full speed", results.small, lambda s: s.wan, 1.15, most=True
    )
    what = f"WAN bytes per message, both directions, at {STEADY_RATE:g} messages/s"
    against_peer(what, results.steady, lambda s: s.wan, 1.15, most=True)
    audit, hub = results.audit, results.hub
    rss, share = hub.memory.rss / 1e6, hub.core_share * 100
    grid.rows += [
        (
            "lost and doubled in the database, in these runs",
            "0 / 0",
            _lost(audit),
            _yes(audit.lost == audit.doubled == 0),
        ),
        ("hub with default sensors: resident memory", "≤ 40 MB", f"{rss:.1f} MB", _yes(rss <= 40)),
        ("hub with default sensors: share of a core", "≤ 0.5 %", f"{share:.2f} %", _yes(share <= 0.5)),
    ]
    return grid


def _comparison(found: Comparison, unit: str) -> Grid:
    pace = f", {STEADY_RATE:g} messages/s" if found.rate is not None else ""
    title = f"{found.title}: {found.readings} readings in a message of {found.payload_bytes} bytes{pace}"
    grid = Grid(title, "", ("", "Hubline", "T", "Hubline ÷ T"))
    per_message = found.readings if unit.startswith("readings") else 1

    def row(what: str, of: Callable[[Sample], float | None], form: str) -> None:
        ours, theirs = _values([pair[0] for pair in found.pairs], of), _values([pair[1] for pair in found.pairs], of)
        grid.rows.append((what, _spread(ours, form), _spread(theirs, form), _spread(_ratios(found, of), ".2f")))

    row(unit, lambda sample: sample.messages_per_s * per_message, ",.0f")
    row("CPU s per 1000 messages, site's machine", lambda sample: sample.site_cpu_s, ".3f")
    row("CPU s per 1000 messages, cloud", lambda sample: sample.cloud_cpu_s, ".3f")
    for position in (0, 1):
        samples = [pair[position] for pair in found.pairs]
        for name in samples[0].cpu_s:
            cells = ["", ""]
            cells[position] = _spread([sample.cpu_s[name] for sample in samples], ".3f")
            grid.rows.append((f"of these: {name}", *cells, ""))
    row("WAN bytes per message, up", lambda sample: sample.wan_up, ",.0f")
    row("WAN bytes per message, down", lambda sample: sample.wan_down, ",.1f")
    row("cores that the load itself took", lambda sample: sample.load_cores, ".2f")
    for what, of in _COUNTS:
        totals = [sum(of(pair[position]) for pair in found.pairs) for position in (0, 1)]
        grid.rows.append((what, f"{totals[0]:,}", f"{totals[1]:,}", ""))
    return grid


_COUNTS: Final[tuple[tuple[str, Callable[[Sample], int]], ...]] = (
    ("messages sent", lambda sample: sample.sent),
    ("sent again", lambda sample: sample.sent_again),
    ("not arrived", lambda sample: sample.lost),
)


def _memory(results: Results) -> Grid:
    said = "Resident, and in brackets of one process alone (RSS and USS), in MB. The most of all runs."
    grid = Grid(f"Memory with {HUBS} hubs", said, ("process", "connected", "10 readings", "100 readings"))
    idle = results.large.idle | results.path.idle
    for name, silent in idle.items():
        under = [_most(found, name) for found in (results.path, results.small)]
        small = max((each for each in under if each is not None), key=lambda each: each.rss, default=None)
        grid.rows.append((name, *(_shown(each) for each in (silent, small, _most(results.large, name)))))
    grid.rows.append(("a hub, default sensors", "", _shown(results.hub.memory), ""))
    return grid


def _most(found: Comparison, name: str) -> Memory | None:
    """Return the most memory that a process ("side: process") had under this load."""
    seen = [
        sample.memory[process]
        for pair in found.pairs
        for sample in pair
        for process in sample.memory
        if f"{sample.side.name}: {process}" == name
    ]
    return max(seen, key=lambda each: each.rss, default=None)


# --- Numbers --------------------------------------------------------------------------------------------------------


def _rate(sample: Sample) -> float:
    return sample.messages_per_s


def _values(samples: Sequence[Sample], of: Callable[[Sample], float | None]) -> list[float]:
    return [value for sample in samples if (value := of(sample)) is not None]


def _ratios(found: Comparison, of: Callable[[Sample], float | None]) -> list[float]:
    """Return ours by the peer's, for each pair in which both are known."""
    both = ((of(ours), of(theirs)) for ours, theirs in found.pairs)
    return [mine / other for mine, other in both if mine is not None and other]


def _spread(values: Sequence[float], form: str) -> str:
    """Return the median, and from where to where the values go."""
    if not values:
        return "–"
    middle = format(median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"


def _shown(memory: Memory | None) -> str:
    return "" if memory is None else f"{memory.rss / 1e6:.1f} ({memory.uss / 1e6:.1f})"


def _lost(audit: Audit) -> str:
    return f"{audit.lost} / {audit.doubled} of {audit.messages:,} messages"


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
