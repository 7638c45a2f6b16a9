"""The retention deletes by kind and age, a little at a time, and what it deletes is neither missing nor let in again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, update

from broker.control import LogRecord, Logs
from cloud import task_records
from cloud.batch import Batch
from cloud.fleet_schema import AUDIT, CONNECTION_LOG, TASK_TARGETS
from cloud.log_records import apply_logs
from cloud.queries import Archive
from cloud.rollups import BUCKET_MS
from cloud.store import Store
from cloud.task_standing import TaskOrder
from config import limits
from config.settings import Retention
from tests.cloud.stored import content_of, query
from tests.cloud.wire import EPOCH, FLEET, SITE, T0, message, one, payload, readings

DAY_MS = 86_400_000
LOGS_OF_EVENTS = ("connection_log", "audit_log")
KEPT = Retention(readings_days=10, events_days=20, logs_days=1, other_days=5, rollup_5min_days=30, rollup_1h_days=60)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cloud.db"


@pytest.fixture
def store(file: Path) -> Iterator[Store]:
    made = Store(file, FLEET)
    yield made
    made.close()


def prune_all(store: Store, now_ms: int) -> list[int]:
    """Prune until nothing is left to do and return the sizes of the steps."""
    steps = []
    while deleted := store.prune(KEPT, now_ms):
        steps.append(deleted)
    return steps


@pytest.mark.parametrize(
    ("age_days", "left"),
    [
        (0.9, {"readings", "events", "logs", "results", "tomorrow"}),
        (1.1, {"readings", "events", "results", "tomorrow"}),
        (5.1, {"readings", "events"}),
        (10.1, {"events"}),
        (20.1, set()),
    ],
)
def test_each_kind_is_kept_as_long_as_its_setting_says(
    store: Store, file: Path, age_days: float, left: set[str]
) -> None:
    """Logs are bulky, events are evidence."""
    bodies: dict[str, object] = {
        "events": {"events": [{"event": "x"}]},
        "logs": {"boot": EPOCH, "records": [{"n": 1, "ts": T0, "level": "info", "event": "x"}]},
        "results": {"results": [{"task": EPOCH, "state": "done", "ts": T0}]},
        "tomorrow": {},
    }
    messages = [message(payload(body, seq), kind=kind) for seq, (kind, body) in enumerate(bodies.items(), 2)]
    store.commit(Batch((message(one(1)), *messages)))
    prune_all(store, T0 + int(age_days * DAY_MS))
    assert {kind for (kind,) in query(file, "SELECT kind FROM messages")} == left


def test_pruning_goes_in_bounded_steps(store: Store, file: Path) -> None:
    """Ingest waits for one step at most."""
    store.commit(Batch(tuple(message(one(seq)) for seq in range(1, limits.RETENTION_BATCH + 11))))
    assert prune_all(store, T0 + 11 * DAY_MS) == [limits.RETENTION_BATCH, 10]


def test_what_was_pruned_is_not_missing_not_uncounted_and_not_let_in_again(store: Store, file: Path) -> None:
    """A hub that was lost for a year comes back with a message whose acknowledgement it never got."""
    store.commit(Batch((message(one(1)), message(one(2)), message(one(3), received_ms=T0 + 20 * DAY_MS))))
    prune_all(store, T0 + 20 * DAY_MS)
    assert len(content_of(file).messages) == 1
    assert store.commit(Batch((message(one(1)),))).messages == 0
    with Archive(store.reader()) as archive:
        [audit] = archive.audit(verify=True)
    assert (audit.missing, audit.points, audit.duplicates_refused, audit.damaged) == ([], 3, 1, None)
    assert content_of(file).newest[(SITE, "pc-1", "counter")][2] == 3


def test_rollups_outlive_their_readings_and_end_too(store: Store, file: Path) -> None:
    """The chart of a year needs the hours, not the readings."""
    store.commit(Batch((message(readings(1, [(T0, {"x": 1}), (T0 + BUCKET_MS, {"x": 1})])),)))
    tables = [
        {table for table, *_ in content_of(file).rollups}
        for days in (29, 31, 61)
        if prune_all(store, T0 + days * DAY_MS) is not None
    ]
    assert tables == [{"rollup_5min", "rollup_1h"}, {"rollup_1h"}, set()]


def test_pruned_messages_are_counted_for_their_own_stream(store: Store, file: Path) -> None:
    """The verification compares each outbox's sum with what is left of it."""
    store.commit(Batch((message(one(1)), message(one(1), hub_id="pc-2"), message(one(2), hub_id="pc-2"))))
    prune_all(store, T0 + 11 * DAY_MS)
    sql = "SELECT hub, pruned_messages, pruned_points FROM streams JOIN hubs USING (hub_no) ORDER BY hub"
    assert query(file, sql) == [("pc-1", 1, 1), ("pc-2", 2, 2)]


@pytest.mark.parametrize(("age_days", "left"), [(0.9, 4), (1.1, 3), (5.1, 2), (20.1, 0)])
def test_what_was_logged_and_asked_for_is_kept_as_long_as_its_kind(
    store: Store, file: Path, age_days: float, left: int
) -> None:
    """Hubs' log lines as logs, finished tasks as other messages, who came and went and who did what as events."""
    store.open()

    def add(connection: Connection) -> None:
        task_records.create(connection, TaskOrder("0" * 16, "ping", {}, T0, T0 + 1), "ann", [1])
        connection.execute(update(TASK_TARGETS).values(state="done"))
        apply_logs(connection, 1, Logs(EPOCH, [LogRecord(1, T0, "info", "x")]), T0)
        told = {"at_ms": T0, "connection": "online", "reason": "started", "evidence": "{}"}
        connection.execute(insert(CONNECTION_LOG).values(hub_no=1, **told))
        connection.execute(
            insert(AUDIT).values(at_ms=T0, who="ann", action="x", target="x", outcome="done", detail="{}")
        )

    store.change(add)
    prune_all(store, T0 + int(age_days * DAY_MS))
    counts = [query(file, f"SELECT count(*) FROM {table}")[0][0] for table in ("logs", "tasks", *LOGS_OF_EVENTS)]
    assert sum(counts) == left


def test_a_task_that_is_still_open_is_kept_however_old_it_is(store: Store, file: Path) -> None:
    store.open()
    store.change(
        lambda connection: task_records.create(connection, TaskOrder("0" * 16, "ping", {}, T0, T0 + 1), "ann", [1])
    )
    prune_all(store, T0 + 1000 * DAY_MS)
    assert query(file, "SELECT count(*) FROM tasks")[0][0] == 1
