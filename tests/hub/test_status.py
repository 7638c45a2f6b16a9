"""What `hubline hub status` says, in the language that is asked for."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from broker.clock import unix_ms
from hub.cli import hub
from tests.hub.test_reporting import settings_of

CONTENT = {
    "hub": "pc-17",
    "site": "berlin",
    "pid": 1,
    "epoch": "0" * 16,
    "session": 1,
    "path": {
        "kind": "none",
        "since": 1,
        "failures": {},
        **dict.fromkeys(("connector", "endpoint", "outage_since", "switch_at", "watched", "return_at")),
    },
    "outbox": {
        **dict.fromkeys(("pending", "last_seq", "bytes", "gaps", "points", "points_written", "points_lost"), 0),
        "oldest": None,
        "refusal": None,
    },
    "sensors": {"running": [], "failing": []},
    "protection": {"scan": "smart", "pattern": "old", "realtime": "disabled", "reputation": "reachable"},
}


@pytest.mark.parametrize(
    ("options", "word"), [([], "Stopped:"), (["--language", "en"], "Stopped:"), (["--language", "de"], "Beendet:")]
)
@pytest.mark.parametrize("shape", [[], ["--json"]])
def test_the_sentence_is_in_the_language_that_is_asked_for(
    tmp_path: Path, options: list[str], word: str, shape: list[str]
) -> None:
    settings = settings_of(tmp_path)
    settings.hub.data_dir.mkdir()
    (settings.hub.data_dir / "status.json").write_bytes(orjson.dumps({**CONTENT, "ts": unix_ms()}))
    done = CliRunner().invoke(hub, ["status", "-c", str(tmp_path / "hub.toml"), *options, *shape])
    assert done.exit_code == 1, done.output
    assert word in done.output
