"""Deletes what is too old from PostgreSQL: other kinds row by row, readings a week's part at a time (SQL).

A part is dropped when even its newest readings are too old, so that readings stay up to a week longer; what is to be kept
of other kinds moves to the default part before. Where readings are kept for less than a month, they go row by row as well.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection

from cloud.partitions import WEEK_MS, partition_name, partitions
from cloud.postgres_driver import Driver, driver
from config import limits
from config.settings import Retention

_DAY_MS: Final = 86_400_000

_DELETE: Final = """
WITH old AS (SELECT stream_no, seq, received_ms FROM {table} WHERE kind = $1 AND received_ms < $2
             ORDER BY received_ms LIMIT $3),
    gone AS (DELETE FROM {table} m USING old o
             WHERE m.stream_no = o.stream_no AND m.seq = o.seq AND m.received_ms = o.received_ms
             RETURNING m.stream_no, m.points)
SELECT stream_no, count(*), sum(points)::bigint FROM gone GROUP BY stream_no"""
_LOCK_HUBS: Final = """
SELECT hub_no FROM hubs WHERE hub_no IN (SELECT hub_no FROM streams WHERE stream_no = ANY($1::bigint[]))
    ORDER BY hub_no FOR NO KEY UPDATE"""
_COUNT: Final = """
UPDATE streams s SET pruned_messages = s.pruned_messages + w.m, pruned_points = s.pruned_points + w.p
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS w(stream_no, m, p) WHERE s.stream_no = w.stream_no"""
_OLD: Final = """
received_ms < CASE kind WHEN 'readings' THEN $1::bigint WHEN 'events' THEN $2::bigint WHEN 'logs' THEN $3::bigint
    ELSE $4::bigint END"""


def prune_messages(connection: Connection, retention: Retention, kind: str, before_ms: int) -> int:
    """Delete up to RETENTION_BATCH messages of a kind that came before then, and return how many."""
    link = driver(connection)
    table = "messages_default" if kind == "readings" and _by_week(retention) else "messages"
    statement = _DELETE.format(table=table)
    gone = [tuple(row) for row in link.wait(link.raw.fetch(statement, kind, before_ms, limits.RETENTION_BATCH))]
    return _count(link, gone)


def drop_oldest_week(connection: Connection, retention: Retention, now_ms: int) -> int:
    """Drop the oldest week if all of its readings are too old, and return how many messages were deleted with it."""
    weeks = partitions(connection)
    before_ms = [
        now_ms - int(days * _DAY_MS)
        for days in (retention.readings_days, retention.events_days, retention.logs_days, retention.other_days)
    ]
    if not weeks or (weeks[0] + 1) * WEEK_MS > before_ms[0]:
        return 0
    link, name = driver(connection), partition_name(weeks[0])
    counted = f"SELECT stream_no, count(*), sum(points)::bigint FROM {name} WHERE {_OLD} GROUP BY stream_no"  # noqa: S608
    deleted = _count(link, [tuple(row) for row in link.wait(link.raw.fetch(counted, *before_ms))])
    # Whoever wants to write waits behind us as long as we wait for a reader.
    link.wait(link.raw.execute(f"SET LOCAL lock_timeout = {int(limits.POSTGRES_TABLE_LOCK_TIMEOUT_S * 1000)}"))
    link.wait(link.raw.execute(f"ALTER TABLE messages DETACH PARTITION {name}"))
    kept = f"INSERT INTO messages_default SELECT * FROM {name} WHERE NOT ({_OLD})"  # noqa: S608
    link.wait(link.raw.execute(kept, *before_ms))
    link.wait(link.raw.execute(f"DROP TABLE {name}"))
    return deleted


def _by_week(retention: Retention) -> bool:
    return retention.readings_days >= limits.RETENTION_BY_WEEK_DAYS


def _count(link: Driver, gone: list[tuple[int, int, int]]) -> int:
    """Add to the sums of streams what was deleted of them, and return how many messages. Hubs are locked as by ingest."""
    if not gone:
        return 0
    streams, messages, points = zip(*gone, strict=True)
    link.wait(link.raw.execute(_LOCK_HUBS, streams))
    link.wait(link.raw.execute(_COUNT, streams, messages, points))
    return int(sum(messages))
