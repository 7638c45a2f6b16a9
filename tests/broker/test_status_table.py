"""docs/status.md is what the program says, for every combination."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from broker.control import Connection
from broker.status import CONDITIONS, ICONS
from broker.status_table import REASONS, document, protections

FILE = Path(__file__).parent.parent.parent / "docs" / "status.md"


def rows_of(part: str) -> list[list[str]]:
    """Return the cells of a part's table rows, without the heads."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in part.splitlines()
        if line.startswith(("| ![", "| `"))
    ]


def test_page_is_what_the_program_says_now() -> None:
    """If this fails: python -m broker.status_table docs/status.md."""
    assert FILE.read_text(encoding="utf-8") == document()


def test_matrix_has_no_hole() -> None:
    """For each connection 12 rows with conventional and 12 with smart scan, and the one without protection."""
    _, matrix = FILE.read_text(encoding="utf-8").split("## The whole matrix")
    parts = matrix.split("\n### ")[1:]
    assert [part.splitlines()[0].split("`")[1] for part in parts] == list(get_args(Connection))
    for part in parts:
        rows = rows_of(part)
        assert len(rows) == len(list(protections())) == 24
        assert [row[1:4] for row in rows] == [[each.pattern, each.realtime, each.reputation] for each in protections()]
        assert all(row[0].startswith("![") and row[4].endswith(".") for row in rows)
        assert part.count("Protection not known: ![") == 1


def test_rows_that_printed_tables_lack_are_there_and_marked() -> None:
    """Pattern current and service unreachable, and everything about the unreachable connections."""
    _, matrix = FILE.read_text(encoding="utf-8").split("## The whole matrix")
    marked = [sum("†" in row[0] for row in rows_of(part)) for part in matrix.split("\n### ")[1:]]
    assert dict(zip(get_args(Connection), marked, strict=True)) == {
        "online": 6,
        "offline": 6,
        "roaming": 6,
        "unreachable-online": 24,
        "unreachable-offline": 24,
        "path-down": 24,
    }


def test_every_icon_condition_action_and_reason_is_explained() -> None:
    """The matrix names actions by their ids; the page must say what they mean."""
    front, _ = FILE.read_text(encoding="utf-8").split("## The whole matrix")
    icons, connections, conditions, actions, reasons = (len(rows_of(part)) for part in front.split("\n## ")[1:])
    assert (icons, connections, conditions) == (len(ICONS), 6, len(CONDITIONS))
    assert actions == len({step.id for each in CONDITIONS for step in each.steps})
    assert reasons == sum(map(len, REASONS.values()))


def test_pictures_are_where_the_page_looks_for_them() -> None:
    """The links are relative to the page."""
    for name in ICONS:
        assert f"![{name}](../broker/icons/{name}.svg)" in FILE.read_text(encoding="utf-8")
        assert (FILE.parent / f"../broker/icons/{name}.svg").is_file()
