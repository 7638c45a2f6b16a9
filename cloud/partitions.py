"""The table `messages` on PostgreSQL: a part for every week of arrival, so that old weeks go as a whole (SQL).

What arrives in a week that has no part of its own goes into `messages_default`, and moves when the week gets one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from sqlalchemy import Connection, func, select, text

from config import limits

WEEK_MS: Final = 604_800_000

_LOCK: Final = 0x68756232
"""Of PostgreSQL's advisory locks, the one of whoever makes parts."""

_NAME: Final = re.compile("messages_w([0-9]+)")

_PARTS: Final = text(
    "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
    " WHERE i.inhparent = 'messages'::regclass AND NOT i.inhdetachpending"
)

_CREATE: Final = (
    """CREATE SEQUENCE messages_message_no_seq""",
    """CREATE TABLE messages (
        message_no BIGINT DEFAULT nextval('messages_message_no_seq') NOT NULL,
        stream_no BIGINT NOT NULL,
        seq BIGINT NOT NULL,
        kind TEXT COLLATE "C" NOT NULL,
        sent_ms BIGINT NOT NULL,
        received_ms BIGINT NOT NULL,
        points INTEGER NOT NULL,
        first_ts BIGINT,
        last_ts BIGINT,
        codec SMALLINT NOT NULL,
        payload BYTEA NOT NULL,
        skew_ms BIGINT,
        PRIMARY KEY (stream_no, seq, received_ms)
    ) PARTITION BY RANGE (received_ms)""",
    """ALTER SEQUENCE messages_message_no_seq OWNED BY messages.message_no""",
    """ALTER TABLE messages ALTER payload SET STORAGE EXTERNAL""",
    """CREATE INDEX messages_by_age ON messages (kind, received_ms)""",
    """CREATE INDEX readings_by_time ON messages (stream_no, last_ts, message_no) WHERE kind = 'readings'""",
    """CREATE TABLE messages_default PARTITION OF messages DEFAULT""",
)
"""As `cloud.schema.MESSAGES`, but for its keys: those of a table in parts have to hold what it is parted by."""


def create_messages(connection: Connection) -> None:
    """Create the table and its default part."""
    for statement in _CREATE:
        connection.execute(text(statement))


def ensure_partitions(connection: Connection, now_ms: int) -> list[str]:
    """Make the parts of this week and the next ones where they are missing, and return the names of the new ones."""
    this_week = now_ms // WEEK_MS
    return ensure_weeks(connection, range(this_week, this_week + limits.PARTITION_WEEKS_AHEAD + 1))


def ensure_weeks(connection: Connection, weeks: Iterable[int]) -> list[str]:
    """Make the parts of weeks (received_ms // WEEK_MS) where they are missing, and return the names of the new ones.

    To be called in a transaction that has not touched `messages` yet. Others may do the same at once.
    """
    wanted = set(weeks)
    if wanted <= set(partitions(connection)):
        return []
    connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    missing = sorted(wanted.difference(partitions(connection)))  # Somebody else may have made them meanwhile.
    for week in missing:
        _make(connection, week)
    return [partition_name(week) for week in missing]


def partitions(connection: Connection) -> list[int]:
    """Return the weeks that have a part, oldest first."""
    found = (_NAME.fullmatch(name) for name in connection.scalars(_PARTS))
    return sorted(int(match[1]) for match in found if match)


def partition_name(week: int) -> str:
    """Return the name of a week's part."""
    return f"messages_w{week}"


def _make(connection: Connection, week: int) -> None:
    """Make a part beside the table and attach it: CREATE TABLE … PARTITION OF would wait for whoever writes to any part."""
    name, from_ms, to_ms = partition_name(week), week * WEEK_MS, (week + 1) * WEEK_MS
    connection.execute(text(f"CREATE TABLE {name} (LIKE messages INCLUDING ALL)"))
    connection.execute(
        text("LOCK TABLE messages_default IN ACCESS EXCLUSIVE MODE")
    )  # As attaching does, but before looking.
    bounds = {"from_ms": from_ms, "to_ms": to_ms}
    moved = "WITH strays AS (DELETE FROM messages_default WHERE received_ms >= :from_ms AND received_ms < :to_ms RETURNING *)"
    connection.execute(text(f"{moved} INSERT INTO {name} SELECT * FROM strays"), bounds)  # noqa: S608 a name of ours
    connection.execute(text(f"ALTER TABLE messages ATTACH PARTITION {name} FOR VALUES FROM ({from_ms}) TO ({to_ms})"))
