"""docs/engines.md says of every engine what the suite has seen of it, and points to tests that exist."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conformance.engines import DIFFERENCES, RULE, TITLES, Check, Difference

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = ROOT / "docs" / "engines.md"
HEAD = "| what | embedded | Mosquitto | NATS | why it harms nobody |"


def rows() -> list[str]:
    """Return the table of differences as it must stand in the document."""
    table = [HEAD, "|---|---|---|---|---|"]
    for check in Check:
        found = {engine: own[check] for engine, own in DIFFERENCES.items() if check in own}
        if not found:
            continue
        cells = [found[engine].instead if engine in found else RULE[check] for engine in DIFFERENCES]
        whys = dict.fromkeys(each.harmless for each in found.values())
        if len(whys) == 1:
            why = next(iter(whys))
        else:
            why = "; ".join(f"{TITLES[engine]}: {each.harmless}" for engine, each in found.items())
        table.append(f"| {check.value} | {' | '.join(cells)} | {why} |")
    return table


def test_the_document_shows_the_table_of_differences() -> None:
    """An operator must know what another engine does otherwise before it is his."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    start = lines.index(HEAD)
    shown = lines[start : lines.index("", start)]
    assert shown == rows(), "\n".join(rows())


@pytest.mark.parametrize(
    "difference",
    {each.proof: each for own in DIFFERENCES.values() for each in own.values()}.values(),
    ids=lambda difference: difference.instead,
)
def test_every_difference_is_proven_harmless_by_a_test_that_exists(difference: Difference) -> None:
    file, _, name = difference.proof.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert difference.harmless


def test_no_difference_is_one_that_keeps_the_rule() -> None:
    for own in DIFFERENCES.values():
        for check, difference in own.items():
            assert difference.instead != RULE[check]
