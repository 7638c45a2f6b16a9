"""Schema 3: on PostgreSQL, messages are kept in a part for every week of arrival. SQLite's tables stay as they are."""

from __future__ import annotations

from typing import Final

from alembic import op
from sqlalchemy import text

revision = "0003"
down_revision = "0002"

_WEEK_MS: Final = 604_800_000

_BEFORE: Final = (
    "DROP INDEX messages_by_age",
    "DROP INDEX readings_by_time",
    "ALTER TABLE messages ALTER message_no DROP IDENTITY",
    "ALTER TABLE messages RENAME TO messages_before",
    "ALTER TABLE messages_before RENAME CONSTRAINT messages_pkey TO messages_before_pkey",
    "CREATE SEQUENCE messages_message_no_seq",
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
    "ALTER SEQUENCE messages_message_no_seq OWNED BY messages.message_no",
    "ALTER TABLE messages ALTER payload SET STORAGE EXTERNAL",
    "CREATE INDEX messages_by_age ON messages (kind, received_ms)",
    "CREATE INDEX readings_by_time ON messages (stream_no, last_ts, message_no) WHERE kind = 'readings'",
    "CREATE TABLE messages_default PARTITION OF messages DEFAULT",
)
_AFTER: Final = (
    """INSERT INTO messages
        (message_no, stream_no, seq, kind, sent_ms, received_ms, points, first_ts, last_ts, codec, payload, skew_ms)
        SELECT message_no, stream_no, seq, kind, sent_ms, received_ms, points, first_ts, last_ts, codec, payload, skew_ms
        FROM messages_before""",
    "SELECT setval('messages_message_no_seq', coalesce((SELECT max(message_no) FROM messages_before), 0) + 1, false)",
    "DROP TABLE messages_before",
)


def upgrade() -> None:
    """Make the table in parts, and move what there is."""
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    for statement in _BEFORE:
        op.execute(statement)
    weeks = text("SELECT DISTINCT received_ms / :week_ms FROM messages_before ORDER BY 1")
    for week in connection.scalars(weeks, {"week_ms": _WEEK_MS}).all():
        bounds = f"FROM ({week * _WEEK_MS}) TO ({(week + 1) * _WEEK_MS})"
        op.execute(f"CREATE TABLE messages_w{week} PARTITION OF messages FOR VALUES {bounds}")
    for statement in _AFTER:
        op.execute(statement)
