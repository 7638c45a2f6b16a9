"""Deletes what is older than its kind is kept, a bounded number of rows at a time (SQL).

A message's age is by the cloud's clock, a rollup's by its readings'. Coverage, sums and newest values stay: what was deleted is
not taken for missing, and when it comes once more it is still refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection, Table, bindparam, delete, func, select, tuple_, update

from cloud.fleet_schema import AUDIT, CONNECTION_LOG
from cloud.log_records import prune_logs
from cloud.rollups import BUCKET_MS, BUCKETS_PER_HOUR
from cloud.schema import MESSAGES, ROLLUP_1H, ROLLUP_5MIN, STREAMS
from cloud.statements import Prepared
from cloud.task_records import prune as prune_tasks
from config import limits
from config.settings import Retention

_DAY_MS: Final = 86_400_000

_NEXT_KIND: Final = Prepared(select(func.min(MESSAGES.c.kind)).where(MESSAGES.c.kind > bindparam("kind")), "kind")
_OLD: Final = Prepared(
    select(MESSAGES.c.message_no, MESSAGES.c.stream_no, MESSAGES.c.points)
    .where(MESSAGES.c.kind == bindparam("kind"), MESSAGES.c.received_ms < bindparam("ms"))
    .order_by(MESSAGES.c.received_ms)
    .limit(bindparam("most"))
    .offset(bindparam("skip")),
    *("kind", "ms", "most", "skip"),
)
_DELETE: Final = Prepared(delete(MESSAGES).where(MESSAGES.c.message_no == bindparam("no")), "no")
_COUNT: Final = Prepared(
    update(STREAMS)
    .where(STREAMS.c.stream_no == bindparam("no"))
    .values(
        pruned_messages=STREAMS.c.pruned_messages + bindparam("m"),
        pruned_points=STREAMS.c.pruned_points + bindparam("p"),
    ),
    *("m", "p", "no"),
)


def _delete_buckets(table: Table) -> Prepared:
    key = tuple_(table.c.bucket, table.c.sensor_no)
    old = select(table.c.bucket, table.c.sensor_no).where(table.c.bucket < bindparam("bucket"))
    return Prepared(
        delete(table).where(key.in_(old.limit(bindparam("most")).offset(bindparam("skip")))), "bucket", "most", "skip"
    )


_DELETE_5MIN: Final = _delete_buckets(ROLLUP_5MIN)
_DELETE_1H: Final = _delete_buckets(ROLLUP_1H)


def _delete_entries(table: Table) -> Prepared:
    """Return the deletion of the oldest entries of a log."""
    old = select(table.c.entry_no).where(table.c.at_ms < bindparam("ms"))
    old = old.limit(bindparam("most")).offset(bindparam("skip"))
    return Prepared(delete(table).where(table.c.entry_no.in_(old)), "ms", "most", "skip")


_DELETE_ENTRIES: Final = (_delete_entries(CONNECTION_LOG), _delete_entries(AUDIT))
"""How hubs came and went, and who did what, are kept as long as events."""


def prune(connection: Connection, retention: Retention, now_ms: int) -> int:
    """Delete up to RETENTION_BATCH rows of each kind that are too old and return how many: 0 when nothing is left to do."""
    deleted = 0
    for kind in _kinds(connection):
        deleted += _prune_messages(connection, retention, kind, now_ms - int(_days(retention, kind) * _DAY_MS))
    for statement, days, width_ms in (
        (_DELETE_5MIN, retention.rollup_5min_days, BUCKET_MS),
        (_DELETE_1H, retention.rollup_1h_days, BUCKET_MS * BUCKETS_PER_HOUR),
    ):
        oldest = (now_ms - int(days * _DAY_MS)) // width_ms
        deleted += statement.run(connection, oldest, limits.RETENTION_BATCH, 0)
    deleted += prune_logs(connection, now_ms - int(retention.logs_days * _DAY_MS))
    deleted += prune_tasks(connection, now_ms - int(retention.other_days * _DAY_MS))
    before_ms = now_ms - int(retention.events_days * _DAY_MS)
    return deleted + sum(
        statement.run(connection, before_ms, limits.RETENTION_BATCH, 0) for statement in _DELETE_ENTRIES
    )


def _kinds(connection: Connection) -> Iterator[str]:
    kind = _NEXT_KIND.rows(connection, "")[0][0]
    while kind is not None:
        yield kind
        kind = _NEXT_KIND.rows(connection, kind)[0][0]


def _days(retention: Retention, kind: str) -> float:
    match kind:
        case "readings":
            return retention.readings_days
        case "events":
            return retention.events_days
        case "logs":
            return retention.logs_days
        case _:
            return retention.other_days


def _prune_messages(connection: Connection, retention: Retention, kind: str, before_ms: int) -> int:
    if connection.dialect.name == "postgresql":
        from cloud.postgres_retention import prune_messages

        return prune_messages(connection, retention, kind, before_ms)
    old = _OLD.rows(connection, kind, before_ms, limits.RETENTION_BATCH, 0)
    messages: Counter[int] = Counter()
    points: Counter[int] = Counter()
    for _, stream_no, points_of_message in old:
        messages[stream_no] += 1
        points[stream_no] += points_of_message
    _DELETE.run_many(connection, [(message_no,) for message_no, _, _ in old])
    _COUNT.run_many(connection, [(messages[no], points[no], no) for no in messages])
    return len(old)
