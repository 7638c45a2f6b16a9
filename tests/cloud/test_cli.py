"""`hubline cloud audit` and `hubline cloud readings`: true, bounded, and one clear line for whatever is wrong."""

from __future__ import annotations

import csv
import io
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import event

from cloud.batch import Batch, RefusedMessage, Stream
from cloud.cli import cloud
from cloud.queries import Archive
from cloud.readers import SqliteReader
from cloud.reports import instant
from cloud.store import Store
from config import limits
from config.errors import HublineError, SettingsError
from tests.cloud.stored import query
from tests.cloud.wire import EPOCH, FLEET, OTHER_EPOCH, SITE, T0, batch, gap, message, one, readings

ROOT = Path(__file__).parents[2]
DEADLINE_S = 30.0
HUBLINE = [sys.executable, "-c", "from config.cli import main; main()"]


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    file = tmp_path / "cloud.toml"
    identity = f'[identity]\nfleet = "{FLEET}"\nsite = "-"\nname = "cloud-1"\n'
    file.write_text(
        f'{identity}ca = "ca.pem"\ncert = "cert.pem"\nkey = "key.pem"\n[cloud]\ndatabase = "sqlite:///c.db"\n'
    )
    return file


@pytest.fixture
def store(settings_file: Path) -> Iterator[Store]:
    made = Store(settings_file.parent / "c.db", FLEET)
    made.open()
    yield made
    made.close()


def hubline(settings_file: Path, *arguments: str) -> Result:
    """Run a command of `hubline cloud` in this process."""
    return CliRunner().invoke(cloud, [*arguments, "-c", str(settings_file)])


def error_of(result: Result) -> str:
    """Return the one line that a person would see."""
    assert isinstance(result.exception, HublineError)
    text = str(result.exception)
    assert "\n" not in text
    return text


# --- Audit -----------------------------------------------------------------------------------------------------------


def test_audit_says_what_came_what_is_missing_and_what_was_dropped(store: Store, settings_file: Path) -> None:
    """The proof that nothing is lost, per outbox."""
    store.commit(batch(*(one(seq) for seq in (3, 4, 4, 9, 12))))
    store.commit(Batch((message(gap(13, 5, 7), kind="events"),)))
    place = (Stream(SITE, "pc-1", EPOCH), 10)
    store.commit(Batch(refused=(RefusedMessage("t", "r", b"", 0, T0, place),)))
    store.commit(batch(one(1, epoch=OTHER_EPOCH)))
    store.commit(batch(one(1), hub_id="pc-0"))
    result = hubline(settings_file, "audit", "--json")
    entries = json.loads(result.output)
    assert [(entry["hub"], entry["epoch"]) for entry in entries] == [
        ("pc-0", EPOCH),
        ("pc-1", EPOCH),
        ("pc-1", OTHER_EPOCH),
    ]
    assert entries[1] == {
        "hub": "pc-1",
        "site": SITE,
        "epoch": EPOCH,
        "first_seq": 3,
        "last_seq": 13,
        "missing": [[1, 2], [8, 8], [11, 11]],
        "messages": 5,
        "points": 4,
        "duplicates_refused": 1,
        "refused": 1,
        "gaps": [
            {
                "from_seq": 5,
                "to_seq": 7,
                "points": 7,
                "first_ts": T0,
                "last_ts": T0 + 5,
                "reason": "outbox full",
            }
        ],
    }
    assert result.exit_code == 1


@pytest.mark.parametrize(("seqs", "status"), [((1, 2, 3), 0), ((1, 3), 1), ((2, 3), 1)])
def test_audit_fails_when_a_message_is_missing(
    store: Store, settings_file: Path, seqs: tuple[int, ...], status: int
) -> None:
    """Scripts look at the exit status only; the first message of an outbox is number one."""
    store.commit(batch(*(one(seq) for seq in seqs)))
    assert hubline(settings_file, "audit").exit_code == status
    assert hubline(settings_file, "audit", "--verify").exit_code == status


def test_gap_record_explains_what_will_never_come(store: Store, settings_file: Path) -> None:
    """A full outbox is a fact to be shown, not an error of the cloud."""
    store.commit(Batch((message(gap(1, 2, 40), kind="events"), message(one(41)))))
    assert hubline(settings_file, "audit").exit_code == 0


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("UPDATE streams SET points = points + 1", "3 points are stored, 4 are counted"),
        ("UPDATE streams SET messages = messages + 1", "3 messages are stored, 4 are counted"),
        ("DELETE FROM messages WHERE seq = 2", "2 messages are stored, 3 are counted"),
        ("UPDATE messages SET seq = 7 WHERE seq = 2", "seq 7 is stored, but not known to be"),
        (
            "UPDATE messages SET payload = (SELECT payload FROM messages WHERE seq = 3) WHERE seq = 2",
            "seq 2 holds another message",
        ),
        ("UPDATE messages SET points = 5 WHERE seq = 2", "seq 2 holds another message"),
        ("UPDATE messages SET payload = x'00' WHERE seq = 2", "seq 2 can't be read: a payload is damaged"),
        ("UPDATE messages SET codec = 9 WHERE seq = 2", "seq 2 can't be read: payload code 9 is unknown"),
        ("UPDATE messages SET payload = 'photos', codec = 0 WHERE seq = 2", "seq 2 can't be read: not JSON"),
        ("UPDATE coverage SET last_seq = 9", "9 seqs are covered, 3 messages came"),
    ],
)
def test_verification_finds_what_does_not_agree(store: Store, settings_file: Path, damage: str, said: str) -> None:
    """Sums are kept beside the messages: that they agree must be provable."""
    store.commit(batch(*(one(seq) for seq in (1, 2, 3))))
    assert hubline(settings_file, "audit", "--verify", "--json").exit_code == 0
    connection = sqlite3.connect(settings_file.parent / "c.db")
    connection.execute(damage)
    connection.commit()
    connection.close()
    result = hubline(settings_file, "audit", "--verify", "--json")
    assert result.exit_code == 1
    assert said in json.loads(result.output)[0]["damaged"]


def test_table_for_people_names_hub_and_verdict(store: Store, settings_file: Path) -> None:
    """An administrator reads one line."""
    assert "No hub has sent anything yet." in hubline(settings_file, "audit").output
    store.commit(batch(*(one(seq) for seq in (1, 2, 7))))
    output = hubline(settings_file, "audit").output
    assert f"{SITE}/pc-1" in output
    assert "3–6" in output
    assert "4 messages are missing." in output


# --- Readings --------------------------------------------------------------------------------------------------------


def values(result: Result) -> list[object]:
    """Return the values of a JSON answer."""
    assert result.exit_code == 0, result.output
    return [json.loads(line)["value"] for line in result.output.splitlines()]


def test_readings_come_back_as_they_were_sent(store: Store, settings_file: Path) -> None:
    """One object a line, so that a script can begin before the end."""
    store.commit(batch(readings(1, [(T0 + 250, {"cpu.percent": 12.5, "name": "ü\n", "on": True})])))
    lines = hubline(settings_file, "readings", "pc-1", "--json").output.splitlines()
    assert json.loads(lines[0]) == {
        "ts": T0 + 250,
        "time": "2025-11-22T08:00:00.250Z",
        "sensor": "cpu.percent",
        "value": 12.5,
        "epoch": EPOCH,
        "seq": 1,
    }
    assert [json.loads(line)["value"] for line in lines] == [12.5, "ü\n", True]
    rows = list(csv.reader(io.StringIO(hubline(settings_file, "readings", "pc-1", "--csv").output, newline="")))
    assert rows[0] == ["ts", "time", "sensor", "value", "epoch", "seq"]
    assert [row[3] for row in rows[1:]] == ["12.5", "ü\n", "true"]


def test_readings_come_in_order_of_time_across_pages(store: Store, settings_file: Path) -> None:
    """A backlog that came late stands where it belongs; no page border loses or doubles anything."""
    count = limits.READ_PAGE_MESSAGES * 2 + 7
    order = [*range(count // 2, count + 1), *range(1, count // 2)]
    store.commit(batch(*(readings(seq, [(T0 + seq // 50, {"n": seq})]) for seq in order)))
    result = hubline(settings_file, "readings", "pc-1", "--json")
    found = [json.loads(line) for line in result.output.splitlines()]
    assert [entry["ts"] for entry in found] == sorted(entry["ts"] for entry in found)
    assert sorted(entry["value"] for entry in found) == list(range(1, count + 1))


def test_since_and_sensor_choose(store: Store, settings_file: Path) -> None:
    """One point may lie before, its neighbour in the same message after."""
    store.commit(batch(readings(1, [(T0, {"cpu.a": 1, "cpu": 2}), (T0 + 5, {"cpu.a": 3, "cpux": 4, "mem": 5})])))
    assert values(hubline(settings_file, "readings", "pc-1", "--json", "--sensor", "cpu")) == [1, 2, 3]
    assert values(hubline(settings_file, "readings", "pc-1", "--json", "--sensor", "cpu.a")) == [1, 3]
    assert values(hubline(settings_file, "readings", "pc-1", "--json", "--since", str(T0 + 1))) == [3, 4, 5]
    assert values(hubline(settings_file, "readings", "pc-1", "--json", "--since", str(T0 + 6))) == []


def test_query_by_time_uses_the_index(store: Store, settings_file: Path) -> None:
    """The last two hours of a hub must not cost a scan of all its months."""
    store.commit(batch(*(one(seq) for seq in range(1, 9))))
    executed: list[tuple[str, tuple[object, ...]]] = []
    source = SqliteReader(settings_file.parent / "c.db")
    with Archive(source) as archive:

        @event.listens_for(source._engine, "before_cursor_execute")
        def remember(_c: object, _x: object, sql: str, parameters: tuple[object, ...], _y: object, _many: bool) -> None:
            executed.append((sql, parameters))

        assert len(list(archive.readings(archive.hub_named("pc-1"), since_ms=T0 + 5000))) == 4
    [(sql, parameters), *_] = [entry for entry in executed if "payload" in entry[0]]
    plan = query(settings_file.parent / "c.db", f"EXPLAIN QUERY PLAN {sql}", *parameters)
    assert [step[-1] for step in plan] == ["SEARCH messages USING INDEX readings_by_time (stream_no=? AND last_ts>?)"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", T0 - 90_000),
        ("30m", T0 - 1_800_000),
        ("2h", T0 - 7_200_000),
        ("7d", T0 - 604_800_000),
        (str(T0 - 1), T0 - 1),
        ("2025-11-22T08:00:00Z", T0),
        ("2025-11-22T09:00:00.5+01:00", T0 + 500),
        ("999999999d", 0),
    ],
)
def test_instants_are_understood(text: str, expected: int) -> None:
    """People write times in several ways."""
    assert instant(text, T0) == expected


@pytest.mark.parametrize("text", ["yesterday", "", "2 h", "-5m", "12", "2025-13-01", "2h30"])
def test_what_is_no_instant_is_named(text: str) -> None:
    """A typing error must not show the whole history."""
    with pytest.raises(SettingsError, match="is no time"):
        instant(text, T0)


def test_hub_is_found_by_name_or_site_and_a_wrong_name_gets_a_hint(store: Store, settings_file: Path) -> None:
    """Names get mistyped, and the same name may be used at two sites."""
    assert "no hub has sent anything" in error_of(hubline(settings_file, "readings", "pc-1"))
    store.commit(Batch((message(one(1, 1), hub_id="pc-17"), message(one(1, 2), hub_id="srv"))))
    store.commit(Batch((message(one(1, 3), hub_id="srv", site="hamburg"),)))
    assert "is it pc-17" in error_of(hubline(settings_file, "readings", "pc-71"))
    assert f"{SITE}/srv, hamburg/srv" in error_of(hubline(settings_file, "readings", "srv"))
    assert values(hubline(settings_file, "readings", "hamburg/srv", "--json")) == [3]
    assert values(hubline(settings_file, "readings", "pc-17", "--json")) == [1]
    assert "hamburg/srv" in error_of(hubline(settings_file, "readings", "hamburg/sv"))


def test_text_for_people_holds_nothing_that_a_terminal_obeys(store: Store, settings_file: Path) -> None:
    """A script sensor's output must not clear the administrator's screen."""
    store.commit(batch(readings(1, [(2**53, {"name": "\x1b[2J\x9b31m\nü"})])))
    output = hubline(settings_file, "readings", "pc-1").output
    assert output.rstrip().endswith("\\x1b[2J\\x9b31m\\nü")
    assert output.count("\n") == 1


# --- What can be wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("audit",), ("readings", "pc-1")])
def test_missing_or_foreign_database_gets_one_line_and_is_left_alone(
    settings_file: Path, arguments: tuple[str, ...]
) -> None:
    """A reading command makes no files."""
    file = settings_file.parent / "c.db"
    assert "there is no such database" in error_of(hubline(settings_file, *arguments))
    assert not file.exists()
    file.write_bytes(b"")
    assert "is empty" in error_of(hubline(settings_file, *arguments))
    file.write_bytes(b"photos" * 1000)
    assert "is not a database" in error_of(hubline(settings_file, *arguments))
    assert file.read_bytes() == b"photos" * 1000


def test_reading_commands_work_while_the_service_writes(store: Store, settings_file: Path) -> None:
    """An open transaction of the service hides only what is not committed."""
    store.commit(batch(one(1)))
    with store._transaction() as connection:
        connection.exec_driver_sql("DELETE FROM coverage")
        assert hubline(settings_file, "audit", "--verify").exit_code == 0
        assert len(values(hubline(settings_file, "readings", "pc-1", "--json"))) == 1


def test_slow_reader_holds_no_transaction(store: Store, settings_file: Path) -> None:
    """Somebody pages through a month of readings: the log must go on being reused."""
    store.commit(batch(*(one(seq) for seq in range(1, limits.READ_PAGE_MESSAGES * 2))))
    with Archive(settings_file.parent / "c.db") as archive:
        pages = archive.readings(archive.hub_named("pc-1"))
        next(pages)
        store.commit(batch(*(one(seq) for seq in range(5000, 5100))))
        [(blocked, *_)] = query(settings_file.parent / "c.db", "PRAGMA wal_checkpoint(TRUNCATE)")
        assert not blocked, "a reader was in the way"
        assert len(list(pages)) == limits.READ_PAGE_MESSAGES * 2 - 2, "and what came later is not part of the answer"


def test_closed_pipe_is_silent(store: Store, settings_file: Path) -> None:
    """`hubline cloud readings … | head` ends without a traceback."""
    store.commit(batch(*(readings(seq, [(T0 + seq, {"text": "x" * 2000})]) for seq in range(1, 300))))
    command = [*HUBLINE, "cloud", "readings", "pc-1", "-c", str(settings_file), "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b'{"ts"')
        process.stdout.close()
        assert process.stderr.read() == b""
        process.wait(DEADLINE_S)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM; its services are tested elsewhere")
def test_run_stops_cleanly_when_told(settings_file: Path) -> None:
    """Even with no broker to be found."""
    from config.principal import CLOUD_SITE
    from tests.broker.certificates import FleetFiles

    identity = FleetFiles(settings_file.parent / "fleet").identity("cloud", "cloud-1", CLOUD_SITE)
    text = settings_file.read_text()
    for key, file in (("ca", identity.ca), ("cert", identity.cert), ("key", identity.key)):
        text = text.replace(f'"{key}.pem"', f'"{file}"')
    settings_file.write_text(f'{text}broker = "127.0.0.1:1"\n[log]\nformat = "json"\n')
    command = [*HUBLINE, "cloud", "run", "-c", str(settings_file)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        events = [json.loads(process.stderr.readline())["event"]]
        while events[-1] != "broker_unreachable":
            events.append(json.loads(process.stderr.readline())["event"])
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(DEADLINE_S) == 0
    assert events[0] == "cloud_started"
    assert json.loads(rest.splitlines()[-1])["event"] == "cloud_stopped"
    status = json.loads((settings_file.parent / "data" / "status.json").read_text())
    assert (status["broker"], status["storage"]) == ("down", "ok")
