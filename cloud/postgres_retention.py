"""Deletes what is too old from PostgreSQL: other kinds row by row, readings a week's part at a time (SQL).

A part goes when even its newest readings are too old, so that readings stay up to a week longer; what is to be kept of other
kinds moves to the default part, and can't be read until it has. Where readings are kept for less than a month, they go row by
row as well.
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
_DETACHED: Final = """
SELECT relname::text FROM pg_class WHERE relkind = 'r' AND NOT relispartition AND relname ~ '^messages_w[0-9]+$'
    AND relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'messages'::regclass) ORDER BY relname LIMIT 1"""
_PAGES: Final = """
SELECT pg_relation_filenode(name)::bigint, pg_relation_size(name) / current_setting('block_size')::bigint
    FROM (SELECT $1::text::regclass AS name) w"""
_COUNT_SLICE: Final = """
SELECT stream_no, count(*), sum(points)::bigint FROM {table}
    WHERE ctid >= $1::tid AND ctid < $2::tid AND kind = 'readings' GROUP BY stream_no"""
_SOME_KEPT: Final = """
SELECT stream_no, seq, received_ms FROM {table} WHERE kind {above} 'readings' ORDER BY kind, received_ms LIMIT $1"""
_MOVE: Final = """
WITH gone AS (DELETE FROM {table} m USING unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS w(stream_no, seq, received_ms)
              WHERE m.stream_no = w.stream_no AND m.seq = w.seq AND m.received_ms = w.received_ms RETURNING m.*)
INSERT INTO messages_default SELECT * FROM gone WHERE stream_no IN (SELECT stream_no FROM streams)"""


def prune_messages(connection: Connection, retention: Retention, kind: str, before_ms: int) -> int:
    """Delete up to RETENTION_BATCH messages of a kind that came before then, and return how many."""
    link = driver(connection)
    table = "messages_default" if kind == "readings" and _by_week(retention) else "messages"
    statement = _DELETE.format(table=table)
    gone = [tuple(row) for row in link.wait(link.raw.fetch(statement, kind, before_ms, limits.RETENTION_BATCH))]
    return _count(link, gone)


class OldWeeks:
    """What is known of the week that goes next. Steps are short, each a transaction, and any may be the last for a while.

    A week's readings are counted slice by slice; then, in one transaction, the sums of their streams learn of it and the
    part is detached. What is to be kept of other kinds moves to the default part afterwards, before the table is dropped:
    nobody waits for that, and what a process leaves undone, the next one finds.
    """

    def __init__(self) -> None:
        self._table: tuple[str, int] | None = None
        self._pages = 0
        self._sums: dict[int, tuple[int, int]] = {}

    def step(self, connection: Connection, retention: Retention, now_ms: int) -> int | None:
        """Do some of the work and return how many readings were counted out; None when there is nothing to do (yet)."""
        link = driver(connection)
        if left := link.wait(link.raw.fetchval(_DETACHED)):
            _move_kept(link, str(left))
            return 0
        weeks = partitions(connection)
        before_ms = now_ms - int(retention.readings_days * _DAY_MS)
        if not weeks or (weeks[0] + 1) * WEEK_MS > before_ms:
            self._forget()
            return None
        name = partition_name(weeks[0])
        if not _by_week(retention):
            if link.wait(link.raw.fetchval(f"SELECT 1 FROM {name} WHERE kind = 'readings' LIMIT 1")):  # noqa: S608
                return None  # They go, and are counted, row by row.
            self._forget()
            self._detach(link, name)
            return 0
        file, pages = link.wait(link.raw.fetchrow(_PAGES, name))
        if self._table != (name, file):  # Rewritten by its owner: the pages counted are not these.
            self._forget()
            self._table = (name, file)
        if self._pages < pages:
            return self._count_slice(link, name)
        self._detach(link, name)
        return 0

    def _count_slice(self, link: Driver, name: str) -> int:
        until = self._pages + limits.RETENTION_COUNT_PAGES
        counted = _COUNT_SLICE.format(table=name)
        rows = link.wait(link.raw.fetch(counted, (self._pages, 0), (until, 0)))
        for stream_no, messages, points in rows:
            messages_before, points_before = self._sums.get(stream_no, (0, 0))
            self._sums[stream_no] = (messages_before + messages, points_before + points)
        self._pages = until
        return sum(row[1] for row in rows)

    def _detach(self, link: Driver, name: str) -> None:
        _count(link, [(stream_no, *sums) for stream_no, sums in self._sums.items()])
        # Whoever wants to write waits behind us as long as we wait for a reader.
        link.wait(link.raw.execute(f"SET LOCAL lock_timeout = {int(limits.POSTGRES_TABLE_LOCK_TIMEOUT_S * 1000)}"))
        link.wait(link.raw.execute(f"ALTER TABLE messages DETACH PARTITION {name}"))

    def _forget(self) -> None:
        self._table, self._pages, self._sums = None, 0, {}


def _move_kept(link: Driver, name: str) -> None:
    """Move some of what a detached part has of other kinds to the default part; drop the part when nothing is left of them."""
    for above in (">", "<"):  # Two ranges of an index, where "<>" would read all readings.
        some = _SOME_KEPT.format(table=name, above=above)
        rows = link.wait(link.raw.fetch(some, limits.RETENTION_BATCH))
        if rows:
            streams, seqs, times = zip(*rows, strict=True)
            link.wait(link.raw.execute(_LOCK_HUBS, streams))  # Nobody forgets one of them meanwhile.
            link.wait(link.raw.execute(_MOVE.format(table=name), streams, seqs, times))
            return
    link.wait(link.raw.execute(f"DROP TABLE {name}"))


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
