"""Schema 1: messages, and beside them what would otherwise need a scan."""

from __future__ import annotations

from typing import Final

from alembic import op
from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Identity,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Text,
    UniqueConstraint,
    text,
)

revision = "0001"
down_revision = None

_ID: Final = BigInteger().with_variant(Integer(), "sqlite")
_TEXT: Final = Text().with_variant(Text(collation="C"), "postgresql")
_ROOM: Final = {"fillfactor": 50}


def upgrade() -> None:
    """Create the tables."""
    op.create_table("meta", Column("name", _TEXT, primary_key=True), Column("value", _TEXT, nullable=False))
    _create_states()
    _create_messages()
    _create_sums()


def _numbered(name: str) -> Column[int]:
    return Column(name, _ID, Identity(always=False), primary_key=True)


def _count(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, server_default=text("0"))


def _create_states() -> None:
    op.create_table(
        "hubs",
        _numbered("hub_no"),
        Column("site", _TEXT, nullable=False),
        Column("hub", _TEXT, nullable=False),
        Column("online", SmallInteger),
        Column("epoch", _TEXT),
        Column("session", BigInteger),
        Column("via", _TEXT),
        Column("mode", _TEXT),
        Column("version", _TEXT),
        Column("reason", _TEXT),
        Column("state_ts", BigInteger),
        Column("last_seen_ms", BigInteger),
        UniqueConstraint("site", "hub"),
        postgresql_with=_ROOM,
    )
    op.create_table(
        "connectors",
        Column("site", _TEXT, primary_key=True),
        Column("connector", _TEXT, primary_key=True),
        Column("online", SmallInteger, nullable=False),
        Column("session", BigInteger, nullable=False),
        Column("upstream", _TEXT),
        Column("since_ts", BigInteger),
        Column("reason", _TEXT),
        Column("state_ts", BigInteger),
        Column("last_seen_ms", BigInteger, nullable=False),
    )


def _create_messages() -> None:
    op.create_table(
        "streams",
        _numbered("stream_no"),
        Column("hub_no", _ID, nullable=False),
        Column("epoch", _TEXT, nullable=False),
        *(_count(name) for name in ("messages", "points", "pruned_messages", "pruned_points", "duplicates", "refused")),
        _count("last_received_ms"),
        UniqueConstraint("hub_no", "epoch"),
        postgresql_with=_ROOM,
    )
    op.create_table(
        "coverage",
        Column("stream_no", _ID, primary_key=True),
        Column("first_seq", BigInteger, primary_key=True),
        Column("last_seq", BigInteger, nullable=False),
        sqlite_with_rowid=False,
        postgresql_with=_ROOM,
    )
    op.create_table(
        "messages",
        _numbered("message_no"),
        Column("stream_no", _ID, nullable=False),
        Column("seq", BigInteger, nullable=False),
        Column("kind", _TEXT, nullable=False),
        Column("sent_ms", BigInteger, nullable=False),
        Column("received_ms", BigInteger, nullable=False),
        Column("points", Integer, nullable=False),
        Column("first_ts", BigInteger),
        Column("last_ts", BigInteger),
        Column("codec", SmallInteger, nullable=False),
        Column("payload", LargeBinary, nullable=False),
        UniqueConstraint("stream_no", "seq"),
    )
    op.create_index("messages_by_age", "messages", ["kind", "received_ms"])
    only = text("kind = 'readings'")
    op.create_index("readings_by_time", "messages", ["stream_no", "last_ts"], sqlite_where=only, postgresql_where=only)
    op.create_table(
        "gaps",
        Column("stream_no", _ID, primary_key=True),
        Column("seq", BigInteger, primary_key=True),
        Column("position", Integer, primary_key=True),
        *(Column(name, BigInteger) for name in ("from_seq", "to_seq", "points", "first_ts", "last_ts")),
        Column("reason", _TEXT),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "quarantine",
        _numbered("refused_no"),
        Column("received_ms", BigInteger, nullable=False),
        Column("topic", _TEXT, nullable=False),
        Column("reason", _TEXT, nullable=False),
        Column("size_bytes", BigInteger, nullable=False),
        Column("payload", LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )


def _create_sums() -> None:
    op.create_table(
        "sensors",
        _numbered("sensor_no"),
        Column("hub_no", _ID, nullable=False),
        Column("sensor", _TEXT, nullable=False),
        Column("ts", BigInteger, nullable=False),
        Column("seq", BigInteger, nullable=False),
        Column("value", _TEXT, nullable=False),
        Column("readings", BigInteger, nullable=False),
        UniqueConstraint("hub_no", "sensor"),
        postgresql_with=_ROOM,
    )
    for name in ("rollup_5min", "rollup_1h"):
        op.create_table(
            name,
            Column("bucket", BigInteger, nullable=False),
            Column("sensor_no", _ID, nullable=False),
            Column("count", BigInteger, nullable=False),
            *(Column(column, Double, nullable=False) for column in ("min", "max", "sum")),
            PrimaryKeyConstraint("bucket", "sensor_no"),
            sqlite_with_rowid=False,
            postgresql_with={"fillfactor": 70},
        )
