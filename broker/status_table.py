"""Writes docs/status.md, every combination of the status vector: `python -m broker.status_table docs/status.md`."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, get_args

from broker.control import Connection, Protection
from broker.status import CONDITIONS, ICONS, Assessment, Reason, assess
from broker.status_text import WORDS

DIMENSIONS: Final = {
    "scan": ("conventional", "smart"),
    "pattern": ("current", "old"),
    "realtime": ("enabled", "disabled", "stopped"),
    "reputation": ("reachable", "unreachable"),
}
"""The protection's part of the vector, in the order of the rows."""

REASONS: Final[dict[Connection, tuple[str, ...]]] = {
    "online": ("connected", "rejected: clock", "rejected: duplicate identity", "paused"),
    "offline": tuple(reason for reason in get_args(Reason) if reason not in ("started", "connected", "path down")),
    "roaming": ("connected", "lost contact"),
    "unreachable-offline": ("heartbeat missed", "stopped cleanly", "paused", "rejected: revoked"),
    "path-down": ("path down", "rejected: clock"),
}
"""Where a reason makes a difference, and how."""

MEANINGS: Final[dict[Connection, tuple[str, str]]] = {
    "online": ("Online", "Continuous connection: tasks start and settings arrive at once."),
    "offline": ("Offline", "No connection: the hub keeps what it measures, and takes tasks and settings later."),
    "roaming": ("Roaming", "It may update components, but sends no logs and takes no tasks and settings."),
    "unreachable-online": ("Unreachable", "It cannot be called. Its heartbeat or poll came in time."),
    "unreachable-offline": ("Unreachable", "It cannot be called. No heartbeat and no poll came in time."),
    "path-down": ("Offline", "Its connector or the way from there is out, and it has not spoken directly yet."),
}

OPENING: Final = """# What the status of a hub means

One hub has one status: an icon, a sentence and what must be done, by whom, in this order. It is worked out by rule from a
vector, so every combination has its answer. This page is made from the program
(`python -m broker.status_table docs/status.md`), and a test holds both together.

The vector: **connection** × **scan method** (conventional, smart) × **pattern** (current, old) × **real-time scan** (enabled,
disabled, service stopped) × **reputation or smart-protection service** (reachable, unreachable). A machine whose protection is
not known has a connection only. The connection's **reason** tells more about it, and can add a condition.

The icon's shape shows the connection, its badge the worst condition: a check mark for none, a triangle for a warning, a
diamond for an error. Shapes and marks differ without their colours, and each icon has a title for screen readers."""


def document() -> str:
    """Return the page."""
    return (
        "\n\n".join([OPENING, *_icons(), *_connections(), *_conditions(), *_actions(), *_reasons(), *_matrix()]).rstrip(
            "\n"
        )
        + "\n"
    )


def protections() -> Iterator[Protection]:
    """Return every combination of the protection's dimensions, in the order of the rows."""
    for values in itertools.product(*DIMENSIONS.values()):
        yield Protection(**dict(zip(DIMENSIONS, values, strict=True)))  # type: ignore[arg-type]


def _icons() -> Iterator[str]:
    yield "## Icons"
    yield _table(("Icon", "Name"), ((_icon(name), f"`{name}`") for name in ICONS))


def _connections() -> Iterator[str]:
    yield "## Connections"
    yield _table(
        ("Connection", "Of the four", "Meaning"),
        ((f"`{name}`", *MEANINGS[name]) for name in get_args(Connection)),
    )


def _conditions() -> Iterator[str]:
    yield "## Conditions"
    yield (
        "What is not as it should be. The order is that of sentences and actions. Every action disappears with its condition, "
        "and with nothing else."
    )
    english, german = WORDS["en"], WORDS["de"]
    yield _table(
        ("Condition", "Badge", "English", "German", "Actions"),
        (
            (
                f"`{each.id}`",
                each.severity.name.lower() if each.severity else "",
                english.clauses.get(each.id, "").format(connector=english.its_connector),
                german.clauses.get(each.id, "").format(connector=german.its_connector),
                "<br>".join(f"{step.who}: `{step.id}`" for step in each.steps),
            )
            for each in CONDITIONS
        ),
    )


def _actions() -> Iterator[str]:
    yield "## Actions"
    english, german = WORDS["en"], WORDS["de"]
    steps = {step.id: step.who for each in CONDITIONS for step in each.steps}
    yield _table(
        ("Action", "Who", "English", "German"),
        (
            (
                f"`{name}`",
                who,
                english.actions[name].format(connector=english.its_connector),
                german.actions[name].format(connector=german.its_connector),
            )
            for name, who in steps.items()
        ),
    )


def _reasons() -> Iterator[str]:
    yield "## Reasons of the connection"
    yield "What the reasons add, here without protection."
    yield _table(
        ("Connection", "Reason", "Icon", "English", "German", "Actions"),
        (
            (
                f"`{connection}`",
                f"`{reason}`",
                _icon(english.icon),
                english.text,
                assess(connection, None, reason=reason, language="de").text,
                _steps(english),
            )
            for connection, reasons in REASONS.items()
            for reason in reasons
            for english in [assess(connection, None, reason=reason)]
        ),
    )


def _matrix() -> Iterator[str]:
    yield "## The whole matrix"
    yield (
        "A dagger (†) marks what the usual printed table of such systems does not have: a current pattern together with an "
        "unreachable service, and every row of the unreachable connections and of a path that is down."
    )
    for connection in get_args(Connection):
        yield f"### {MEANINGS[connection][0]}: `{connection}`"
        yield f"Protection not known: {_told(assess(connection, None))}"
        for scan in DIMENSIONS["scan"]:
            service = "Smart protection" if scan == "smart" else "Web reputation"
            yield f"**{scan.capitalize()} scan**"
            yield _table(
                ("", "Pattern", "Real-time scan", service, "Sentence", "Actions"),
                (_row(connection, each) for each in protections() if each.scan == scan),
            )


def _row(connection: Connection, protection: Protection) -> Sequence[str]:
    told = assess(connection, protection)
    missing = connection not in ("online", "offline", "roaming") or (
        (protection.pattern, protection.reputation) == ("current", "unreachable")
    )
    cells = (protection.pattern, protection.realtime, protection.reputation)
    return (_icon(told.icon) + ("†" if missing else ""), *cells, told.text, _steps(told))


def _told(told: Assessment) -> str:
    steps = _steps(told, "; ")
    return f"{_icon(told.icon)} {told.text}{f' {steps}' if steps else ''}"


def _steps(told: Assessment, between: str = "<br>") -> str:
    return between.join(f"{number}. {each.who}: `{each.id}`" for number, each in enumerate(told.actions, 1))


def _icon(name: str) -> str:
    return f"![{name}](../broker/icons/{name}.svg)"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(document(), encoding="utf-8", newline="\n")
