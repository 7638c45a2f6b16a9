"""The bench keeps its promises: sections have their place, verdicts are gathered, the peer stores each reading once."""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import orjson
import pytest

from bench import network
from bench.__main__ import DOCUMENT, SECTIONS
from bench.chart import Series, svg
from bench.contest import Contest, Contestant, Sample
from bench.copy_store import CopyStore
from bench.report import GOALS, Found, Goal, Grid, ratio_goal, write
from bench.rig import Side
from config.errors import SettingsError
from tests.postgres import Postgres, postgres, postgres_server  # noqa: F401

SIDE = Side("any", "127.0.0.1:1", "127.0.0.1:2", ("broker",), ("service",), "broker")


def sample(rate: float) -> Sample:
    """Return a run that reached this rate."""
    cpu_s = {"broker": 1.0, "service": 1.0}
    return Sample(SIDE, rate, cpu_s, 0.1, None, None, {}, {}, sent=1, sent_again=0, lost=0, doubled=0)


def test_every_section_has_its_place_in_the_document() -> None:
    """Without it, minutes of measuring end in an error."""
    text = DOCUMENT.read_text("utf-8")
    for name in (*SECTIONS, GOALS):
        begin, end = text.find(f"<!-- {name}: begin -->"), text.find(f"<!-- {name}: end -->")
        assert 0 <= begin < end, name


def test_goals_of_all_sections_are_gathered_and_only_the_measured_section_changes(tmp_path: Path) -> None:
    """Sections run alone, on different days; the table of goals must show all of them."""
    document = tmp_path / "performance.md"
    parts = [f"<!-- {name}: begin -->\n\nold {name}\n\n<!-- {name}: end -->" for name in (GOALS, "one", "two")]
    document.write_text("\n\n".join(["head", *parts, "tail"]))
    grid = Grid("A table", "", ("", "x"), [("row", "1")])
    write(
        document, "one", Found([grid], [Goal("fast", "≥ 1 × T", "2.00 × T", True)], {"plot.svg": ("A plot", "<svg/>")})
    )
    write(document, "two", Found([grid], [Goal("small", "≤ 1 MB", "2 MB", False), Goal("kept", "0", "–", None)]))
    text = document.read_text()
    gathered = text.partition(f"<!-- {GOALS}: end -->")[0]
    assert "| fast | ≥ 1 × T | 2.00 × T | yes |" in gathered
    assert "| small | ≤ 1 MB | 2 MB | **no** |" in gathered
    assert "| kept | 0 | – | not measured |" in gathered
    assert "old" not in text
    assert text.startswith("head") and text.endswith("tail")  # noqa: PT018
    assert "![A plot](plot.svg)" in text
    assert (tmp_path / "plot.svg").read_text() == "<svg/>"
    with pytest.raises(SettingsError, match="has no place"):
        write(document, "three", Found([]))


def test_a_ratio_is_taken_within_its_round_and_the_median_decides() -> None:
    """The machine's mood changes between rounds, so the ratio of medians would say something else."""
    ours = Contestant("ours", lambda _: SIDE, "counted", "peer")
    peer = Contestant("peer", lambda _: SIDE, "counted")
    rounds = [{"ours": sample(rate), "peer": sample(10)} for rate in (20, 40, 1000)]
    rounds[2]["peer"] = sample(1000)
    found = Contest("t", 10, 500, None, (ours, peer), rounds)
    assert found.ratios("ours", lambda each: each.messages_per_s) == [2, 4, 1]
    assert found.ratios("peer", lambda each: each.messages_per_s) == []
    assert ratio_goal("x", [2, 4, 1], 2, most=False).met is True
    assert ratio_goal("x", [2, 4, 1], 1.9, most=True).met is False
    assert ratio_goal("x", [], 1, most=True).met is None


def test_a_chart_is_valid_and_keeps_every_point_inside() -> None:
    """An SVG that browsers refuse shows nothing, and nobody notices in a text file."""
    series = [Series("a < b", [(1, 900), (10, 12_000), (1000, 230_000)]), Series("T", [(1, 5_000), (1000, 800)])]
    root = ElementTree.fromstring(svg('Rates & "sizes"', "readings", "readings/s", series))
    _, _, width, height = (float(word) for word in root.attrib["viewBox"].split())
    space = "{http://www.w3.org/2000/svg}"
    lines = root.findall(f"{space}polyline")
    assert len(lines) == 2
    for line, each in zip(lines, series, strict=True):
        places = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
        assert len(places) == len(each.points)
        assert all(0 < x < width and 0 < y < height for x, y in places)
    ys = [float(pair.split(",")[1]) for pair in lines[0].attrib["points"].split()]
    assert ys == sorted(ys, reverse=True)
    texts = [each.text for each in root.iter(f"{space}text")]
    assert {"a < b", "T", "readings", "readings/s"} <= set(texts)


def test_the_peer_on_postgresql_stores_repeated_readings_once(postgres: Postgres) -> None:  # noqa: F811
    """A peer that lost or doubled readings would be no fair opponent."""

    def message(seq: int) -> tuple[bytes, bytes]:
        points = [{"ts": 1000 + number, "values": {"temp": number / 2}} for number in range(10)]
        envelope = {"epoch": "e" * 16, "seq": seq, "sent": 1, "body": {"points": points}}
        return b"hl1/demo/berlin/hub/hub-1/up/readings", orjson.dumps(envelope)

    async def stored() -> None:
        store = CopyStore(postgres.url)
        await store.prepare()
        writer = await store.connected()
        for batch in ([message(1), message(2)], [message(2), message(3)], [message(3), message(3), message(4)]):
            rows, done = await store.decoded(writer, batch)
            assert len(done) == len(batch)
            await store.store(writer, rows)
        await writer.close()

    asyncio.run(stored())
    found = postgres.query("SELECT seq, count(*), sum(value) FROM readings GROUP BY seq ORDER BY seq")
    assert found == [(seq, 10, 22.5) for seq in (1, 2, 3, 4)]


def test_without_root_the_namespaces_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lacks the right or a program is told which, instead of a traceback."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "root" in network.why_not()
    with pytest.raises(SettingsError, match="root"), network.wans():
        pass
