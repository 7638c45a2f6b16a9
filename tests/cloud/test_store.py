"""The store: each message once, whatever the order, and coverage, sums, newest values and rollups always to match."""

from __future__ import annotations

import math
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.messages import Last
from cloud.batch import Batch, Message, NewestValue, Outcome, RefusedMessage, Stream
from cloud.rollups import BUCKET_MS
from cloud.store import Store, Totals
from cloud.tables import SCHEMA_VERSION
from config import limits
from config.errors import SettingsError
from tests.cloud.stored import Content, content_of, duplicates_of, query
from tests.cloud.wire import EPOCH, FLEET, OTHER_EPOCH, SITE, T0, batch, gap, message, one, payload, readings

STREAM = Stream(SITE, "pc-1", EPOCH)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cloud.db"


@pytest.fixture
def store(file: Path) -> Iterator[Store]:
    made = Store(file, FLEET)
    yield made
    made.close()


def driver_of(store: Store) -> sqlite3.Connection:
    """Return SQLite's own connection of an open store."""
    assert store._connection is not None
    driver = store._connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def coverage(file: Path) -> list[tuple[int, int]]:
    """Return the intervals of the only stream."""
    [(_, intervals)] = content_of(file).coverage.items()
    return intervals


# --- Each message once -----------------------------------------------------------------------------------------------


def test_message_is_kept_as_received_with_its_times_and_points(store: Store, file: Path) -> None:
    """What a reader gets back is what the hub sent, byte for byte."""
    content = readings(7, [(T0 + 9, {"cpu.percent": 1.5}), (T0 + 4, {"cpu.percent": 2.5, "on": True})])
    outcome = store.commit(batch(content, received_ms=T0 + 50))
    assert (outcome.messages, outcome.points, outcome.duplicates) == (1, 2, 0)
    assert content_of(file).messages == {(SITE, "pc-1", EPOCH, 7): content}
    columns = "kind, sent_ms, received_ms, points, first_ts, last_ts"
    assert query(file, f"SELECT {columns} FROM messages") == [("readings", T0, T0 + 50, 2, T0 + 4, T0 + 9)]


def test_payload_is_never_kept_larger_than_it_was(store: Store, file: Path) -> None:
    """Some payloads don't compress: they are kept as they are."""
    noise = readings(1, [(T0, {"x": 1})])
    store.commit(batch(noise, readings(2, [(T0, {"x": "abc" * 500})])))
    assert query(file, "SELECT length(payload) <= ? FROM messages WHERE seq = 1", len(noise)) == [(1,)]
    assert query(file, "SELECT length(payload) < 300 FROM messages WHERE seq = 2") == [(1,)]


def test_repetition_is_refused_and_counted_whatever_it_says(store: Store, file: Path) -> None:
    """The first of two messages with one number counts, in the same batch or years later."""
    assert store.commit(batch(one(1), one(2), one(1, 99))).duplicates == 1
    assert store.commit(batch(one(2, 99), one(3))) == Outcome(1, 1, 1, 0, (newest(3, 1, 3),))
    assert content_of(file).messages[(SITE, "pc-1", EPOCH, 2)] == one(2)
    assert duplicates_of(file) == 2


def test_copies_that_ingest_has_dropped_are_counted(store: Store, file: Path) -> None:
    """An operator sees every repetition, wherever it was stopped."""
    assert store.commit(Batch(batch(one(1)).messages, copies=((STREAM, 3),))).duplicates == 3
    assert store.commit(Batch(copies=((STREAM, 2),))).duplicates == 2
    assert duplicates_of(file) == 5


def test_same_number_of_another_hub_site_or_outbox_is_another_message(store: Store, file: Path) -> None:
    """(hub, epoch, seq) is what makes a message."""
    messages = (
        message(one(1)),
        message(one(1, epoch=OTHER_EPOCH)),
        message(one(1), hub_id="pc-2"),
        message(one(1), site="hamburg"),
    )
    assert store.commit(Batch(messages)).messages == 4
    assert len(content_of(file).messages) == 4


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([[1, 2, 3]], [(1, 3)]),
        ([[1], [2], [3]], [(1, 3)]),
        ([[3], [2], [1]], [(1, 3)]),
        ([[1, 3], [2]], [(1, 3)]),
        ([[2], [1, 3]], [(1, 3)]),
        ([[1, 5, 9]], [(1, 1), (5, 5), (9, 9)]),
        ([[1, 2, 3], [2, 3, 4]], [(1, 4)]),
        ([[5, 6], [1, 2], [9], [3, 4, 7, 8]], [(1, 9)]),
        ([[2, 4, 6, 8], [3, 7]], [(2, 4), (6, 8)]),
        ([[1, 2, 3, 4, 5], [3]], [(1, 5)]),
        ([[2**53], [2**53 - 1]], [(2**53 - 1, 2**53)]),
    ],
)
def test_coverage_joins_what_touches(
    store: Store, file: Path, batches: list[list[int]], expected: list[tuple[int, int]]
) -> None:
    """Intervals that stay apart would grow with every message; one that is lost would let a repetition in."""
    for seqs in batches:
        store.commit(batch(*(one(seq) for seq in seqs)))
    assert coverage(file) == expected
    repeated = store.commit(batch(*(one(seq) for seqs in batches for seq in set(seqs))))
    assert repeated.messages == 0
    assert coverage(file) == expected


# --- Newest values, rollups, gaps -----------------------------------------------------------------------------------


def newest(seq: int, value: int, count: int) -> NewestValue:
    """Return what a commit says of the sensor of `one`."""
    return NewestValue(SITE, "pc-1", "counter", Last(T0 + seq * 1000, value, count))


def test_newest_value_follows_the_hubs_clock_and_counts_each_reading_once(store: Store, file: Path) -> None:
    """A backlog that arrives late must not make a sensor jump back, nor wait for newer readings until it is counted."""
    assert store.commit(batch(one(5, 50))).newest == (newest(5, 50, 1),)
    assert store.commit(batch(one(4, 40))).newest == (newest(5, 50, 2),)
    assert store.commit(batch(one(5, 50))).newest == ()
    assert store.commit(batch(one(6, 60))).newest == (newest(6, 60, 3),)
    assert content_of(file).newest == {(SITE, "pc-1", "counter"): (T0 + 6000, "60", 3)}


def test_rollups_of_later_transactions_are_added(store: Store, file: Path) -> None:
    """A bucket of five minutes fills over many transactions."""
    for seq, value in ((1, 4), (2, -2), (3, 10)):
        store.commit(batch(readings(seq, [(T0 + seq, {"x": value})])))
    store.commit(batch(readings(4, [(T0 + BUCKET_MS, {"x": 1})])))
    place = (SITE, "pc-1", "x")
    assert content_of(file).rollups == {
        ("rollup_5min", *place, T0 // BUCKET_MS): (3, -2.0, 10.0, 12.0),
        ("rollup_5min", *place, T0 // BUCKET_MS + 1): (1, 1.0, 1.0, 1.0),
        ("rollup_1h", *place, T0 // BUCKET_MS // 12): (4, -2.0, 10.0, 13.0),
    }


def test_huge_values_of_many_transactions_do_not_poison_a_bucket(store: Store, file: Path) -> None:
    """A row that can't be written would stop every hub's acknowledgements."""
    for seq, value in enumerate((1.7e308, 1.7e308, -1.7e308, -1.7e308), 1):
        store.commit(batch(readings(seq, [(T0, {"x": value})])))
    rollup = content_of(file).rollups[("rollup_5min", SITE, "pc-1", "x", T0 // BUCKET_MS)]
    assert rollup == (4, -1.7e308, 1.7e308, 0.0)


@pytest.mark.parametrize("value", [2**64 - 1, -(2**63), 1e300, "", "\0'\"; --", "ü" * 4096, True])
def test_every_value_that_the_contract_allows_can_be_stored(
    store: Store, file: Path, value: bool | float | str
) -> None:
    """What passes the contract must never fail in the database: it would block its hub for ever."""
    [changed] = store.commit(batch(readings(1, [(T0, {"x": value})]))).newest
    assert changed.last == Last(T0, value, 1)
    assert orjson.loads(content_of(file).newest[(SITE, "pc-1", "x")][1]) == value


def test_times_at_the_ends_of_the_contract_can_be_stored(store: Store) -> None:
    """A clock of 1970 or of the year 285428 is a wrong clock, not a reason to stop."""
    assert store.commit(batch(readings(1, [(0, {"x": 1}), (2**53, {"x": 2})]))).points == 2


def test_hub_with_sensors_without_end_keeps_its_messages_but_not_the_sums(store: Store, file: Path) -> None:
    """Made-up names must not grow the tables that every transaction reads."""
    wide = limits.VALUES_MAX
    for seq in range(1, limits.SENSORS_PER_HUB_MAX // wide + 3):
        names = (f"n{seq}-{index}" for index in range(wide))
        outcome = store.commit(batch(readings(seq, [(T0 + seq, dict.fromkeys(names, 2))])))
        assert outcome.messages == 1
    assert len(content_of(file).newest) == limits.SENSORS_PER_HUB_MAX
    [known] = store.commit(batch(readings(seq + 1, [(T0 + 99, {"n1-0": 3, "another": 3})]))).newest
    assert (known.sensor, known.last.value) == ("n1-0", 3)


def test_gap_record_is_kept_once(store: Store, file: Path) -> None:
    """The audit explains with it what will never come."""
    record = message(gap(9, 3, 8), kind="events")
    store.commit(Batch((record,)))
    store.commit(Batch((record,)))
    assert content_of(file).gaps == {(SITE, "pc-1", EPOCH, 9, 0, 3, 8, 7, T0, T0 + 5, "outbox full")}


def test_unknown_kind_is_stored(store: Store, file: Path) -> None:
    """A newer hub's messages wait for a newer cloud."""
    store.commit(Batch((message(payload({"x": 1}, 1), kind="tomorrow"),)))
    assert query(file, "SELECT kind, points, first_ts FROM messages") == [("tomorrow", 0, None)]


# --- Quarantine ------------------------------------------------------------------------------------------------------


def refused(number: int, *, seq: int | None = None) -> RefusedMessage:
    """Return a refused message, with or without a place in the stream."""
    return RefusedMessage("some/topic", f"reason {number}", b"x", 1, T0, None if seq is None else (STREAM, seq))


def test_refused_message_with_an_envelope_takes_its_place_once(store: Store, file: Path) -> None:
    """A poisoned message is set aside and counts as arrived, or its hub would send it for ever."""
    assert store.commit(Batch(refused=(refused(1, seq=2),))).quarantined == 1
    repeated = store.commit(Batch(batch(one(1), one(2)).messages, (refused(1, seq=2),)))
    assert (repeated.messages, repeated.quarantined, repeated.duplicates) == (1, 0, 2)
    assert coverage(file) == [(1, 2)]
    assert content_of(file).sums == {(SITE, "pc-1", EPOCH): (1, 1, 1)}


def test_quarantine_keeps_the_newest_and_counts_all(store: Store, file: Path) -> None:
    """A flood of rubbish must not fill the disk."""
    many = limits.QUARANTINE_MAX
    for start in (0, many // 2, many):
        store.commit(Batch(refused=tuple(refused(number) for number in range(start, start + many // 2))))
    [(count, first, last)] = query(file, "SELECT count(*), min(refused_no), max(refused_no) FROM quarantine")
    assert (count, first, last) == (many, many // 2 + 1, many + many // 2)
    assert query(file, "SELECT reason FROM quarantine WHERE refused_no = ?", first) == [(f"reason {many // 2}",)]
    assert store.open() == Totals(0, 0, 0, many + many // 2)


# --- Any order -------------------------------------------------------------------------------------------------------

SAID = st.dictionaries(
    st.sampled_from(["x", "y"]), st.one_of(st.integers(-50, 50), st.booleans(), st.just("t")), min_size=1
)
POINT = st.tuples(st.integers(T0, T0 + 3 * BUCKET_MS), SAID)


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[list[Message], list[list[Message]]]:
    """Return messages, and the same with repetitions, in another order and in batches."""
    messages: list[Message] = []
    for hub_id, epoch in (("pc-1", EPOCH), ("pc-1", OTHER_EPOCH), ("pc-2", EPOCH)):
        for seq in draw(st.sets(st.integers(1, 12), max_size=6)):
            content = readings(seq, draw(st.lists(POINT, min_size=1, max_size=3)), epoch=epoch)
            messages.append(message(content, hub_id=hub_id))
    again = draw(st.lists(st.sampled_from(messages), max_size=8)) if messages else []
    order = draw(st.permutations([*messages, *again]))
    cuts = sorted(draw(st.lists(st.integers(0, len(order)), max_size=5)))
    return messages, [order[first:last] for first, last in zip([0, *cuts], [*cuts, len(order)], strict=True)]


def stored(batches: list[list[Message]]) -> tuple[Content, list[Outcome]]:
    """Return what a new database holds after these batches, and what each commit has said."""
    with tempfile.TemporaryDirectory() as folder:
        target = Store(Path(folder) / "cloud.db", FLEET)
        try:
            target.open()
            outcomes = [target.commit(Batch(tuple(messages))) for messages in batches]
        finally:
            target.close()
        return content_of(Path(folder) / "cloud.db"), outcomes


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(arrivals())
def test_any_order_repetition_and_splitting_leads_to_the_same_database(
    case: tuple[list[Message], list[list[Message]]],
) -> None:
    """Paths change, acknowledgements get lost, backlogs come late: nobody who reads the data may see a difference."""
    messages, batches = case
    (expected, _), (found, outcomes) = stored([messages]), stored(batches)
    assert found.messages == expected.messages
    assert len(found.messages) == len(messages)
    assert (found.coverage, found.sums, found.newest) == (expected.coverage, expected.sums, expected.newest)
    assert found.rollups.keys() == expected.rollups.keys()
    for place, (*exact, total) in found.rollups.items():
        *expected_exact, expected_total = expected.rollups[place]
        assert exact == expected_exact
        assert math.isclose(total, expected_total, abs_tol=1e-6)
    assert sum(outcome.messages for outcome in outcomes) == len(messages)
    assert sum(outcome.duplicates for outcome in outcomes) == sum(map(len, batches)) - len(messages)
    said = {(new.site, new.hub_id, new.sensor): new.last for outcome in outcomes for new in outcome.newest}
    told = {place: (last.ts, orjson.dumps(last.value).decode(), last.count) for place, last in said.items()}
    assert told == expected.newest


# --- Opening ---------------------------------------------------------------------------------------------------------


def test_totals_survive_a_restart(store: Store, file: Path) -> None:
    """The status counts everything ever stored, not since the last start."""
    assert store.open() == Totals(0, 0, 0, 0)
    store.commit(Batch(batch(one(1), one(2), one(2)).messages, (refused(1),)))
    store.close()
    again = Store(file, FLEET)
    assert again.open() == Totals(2, 2, 1, 1)
    again.close()


def test_commit_is_synced_to_the_disk_and_readers_are_not_blocked(store: Store, file: Path) -> None:
    """Acknowledged means that a power cut loses nothing; a query must not hold up the acknowledgements."""
    store.commit(batch(one(1)))
    assert driver_of(store).execute("PRAGMA synchronous").fetchone() == (2,)
    assert query(file, "PRAGMA journal_mode") == [("wal",)]
    reader = sqlite3.connect(file, isolation_level=None)
    try:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM messages").fetchone() == (1,)
        assert store.commit(batch(one(2))).messages == 1
    finally:
        reader.close()


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        (f"UPDATE meta SET value = '{SCHEMA_VERSION + 1}' WHERE name = 'schema_version'", "written by a newer Hubline"),
        ("UPDATE meta SET value = '0' WHERE name = 'schema_version'", "written by an older Hubline"),
        ("UPDATE meta SET value = 'other' WHERE name = 'fleet'", "holds the fleet other, not acme"),
        ("DROP TABLE meta", "not one of Hubline's cloud"),
    ],
)
def test_database_that_is_not_ours_is_named(store: Store, file: Path, sql: str, said: str) -> None:
    """An operator who mixes up files or versions gets a line, not a damaged database."""
    store.open()
    store.close()
    connection = sqlite3.connect(file)
    connection.execute(sql)
    connection.commit()
    connection.close()
    with pytest.raises(SettingsError, match=said):
        store.open()


def test_file_that_is_no_database_is_named(store: Store, file: Path) -> None:
    """Nothing is overwritten."""
    file.write_bytes(b"photos of the summer" * 500)
    with pytest.raises(SettingsError, match="is not a database"):
        store.open()
    assert file.read_bytes() == b"photos of the summer" * 500


# --- Growth ----------------------------------------------------------------------------------------------------------


def steps_of_a_commit(store: Store, content: Batch) -> int:
    """Return how many steps SQLite's virtual machine takes for a commit: work, not time."""
    driver, steps = driver_of(store), 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    driver.set_progress_handler(count, 1)
    try:
        store.commit(content)
    finally:
        driver.set_progress_handler(None, 1)
    return steps


def test_work_of_a_commit_does_not_grow_with_the_database(store: Store) -> None:
    """A cloud that is slower every month ends by not keeping up. Holes in the numbers don't matter either."""
    store.commit(batch(one(1)))
    few = steps_of_a_commit(store, batch(*(one(seq) for seq in range(3, 13, 2))))
    for start in range(101, 8101, 1000):
        store.commit(batch(*(one(seq) for seq in range(start, start + 1000, 2))))
    many = steps_of_a_commit(store, batch(*(one(seq) for seq in range(15, 25, 2))))
    assert many <= few * 1.2
