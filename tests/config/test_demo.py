"""What the demo says at its end agrees with its exit status."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from config.demo import Verdict, is_clean, tell
from config.demo_engines import Database, Engine, Landscape

GOOD = Verdict("hub-1", written=7, stored=7, waiting=0, lost=0, doubled=0, refused=0)


@pytest.mark.parametrize(
    ("second", "clean", "said"),
    [
        (GOOD, True, "0 lost, 0 doubled"),
        (replace(GOOD, lost=1), False, "1 lost, 0 doubled"),
        (replace(GOOD, doubled=2), False, "0 lost, 2 doubled"),
        (replace(GOOD, written=1, stored=0, waiting=1), False, "Nothing of hub-2 had come to the database yet"),
    ],
)
def test_demo_that_fails_says_why(second: Verdict, clean: bool, said: str) -> None:
    """Interrupted early, it has lost nothing, and has shown nothing either."""
    verdicts = [GOOD, replace(second, hub="hub-2")]
    out = io.StringIO()
    tell(Console(file=out, width=130), verdicts)
    assert is_clean(verdicts, 2) is clean
    assert said in out.getvalue()
    assert ("Nothing of" in out.getvalue()) is (second.stored == 0)


@pytest.mark.parametrize(
    ("database", "told"), [("sqlite", "database, all over"), ("postgresql", "all but that over mutual")]
)
def test_demo_claims_no_mutual_tls_that_is_not_there(tmp_path, database: Database, told: str) -> None:  # type: ignore[no-untyped-def]
    """Its PostgreSQL is reached by a password, on loopback."""
    engines: tuple[Engine, ...] = ("amqtt", "mosquitto", "nats")
    for engine in engines:
        assert told in Landscape(engine, database, tmp_path).describe("berlin", 3)
