"""Schema 2: what the cloud knows of its hubs and asks of them, and by how much a hub's clock is off."""

from __future__ import annotations

from typing import Final

from alembic import op
from sqlalchemy import BigInteger, Column, Identity, Integer, SmallInteger, Text, UniqueConstraint, text

revision = "0002"
down_revision = "0001"

_ID: Final = BigInteger().with_variant(Integer(), "sqlite")
_TEXT: Final = Text().with_variant(Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Create the tables, and the one column."""
    op.add_column("messages", Column("skew_ms", BigInteger))
    _create_presence()
    _create_tasks()
    _create_settings()
    _create_logs()
    _create_access()


def _numbered(name: str) -> Column[int]:
    return Column(name, _ID, Identity(always=False), primary_key=True)


def _of_hub() -> Column[int]:
    return Column("hub_no", _ID, primary_key=True, autoincrement=False)


def _create_presence() -> None:
    op.create_table(
        "presence",
        _of_hub(),
        Column("connection", _TEXT, nullable=False),
        Column("since_ms", BigInteger, nullable=False),
        Column("reason", _TEXT, nullable=False),
        Column("via", _TEXT),
        Column("last_seen_ms", BigInteger),
        Column("skew_ms", BigInteger),
        Column("hidden_ms", BigInteger),
        Column("record", _TEXT, nullable=False),
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "connection_log",
        _numbered("entry_no"),
        Column("hub_no", _ID, nullable=False),
        Column("at_ms", BigInteger, nullable=False),
        Column("connection", _TEXT, nullable=False),
        Column("reason", _TEXT, nullable=False),
        Column("via", _TEXT),
        Column("evidence", _TEXT, nullable=False),
    )
    op.create_index("connection_log_by_hub", "connection_log", ["hub_no", "entry_no"])
    op.create_index("connection_log_by_age", "connection_log", ["at_ms"])
    op.create_table(
        "reported",
        _of_hub(),
        Column("epoch", _TEXT, nullable=False),
        Column("seq", BigInteger, nullable=False),
        Column("received_ms", BigInteger, nullable=False),
        Column("body", _TEXT, nullable=False),
    )


def _create_tasks() -> None:
    op.create_table(
        "tasks",
        Column("task", _TEXT, primary_key=True),
        Column("action", _TEXT, nullable=False),
        Column("arguments", _TEXT, nullable=False),
        Column("created_ms", BigInteger, nullable=False),
        Column("created_by", _TEXT, nullable=False),
        Column("expires_ms", BigInteger, nullable=False),
        Column("skip_if_offline", SmallInteger, nullable=False),
    )
    op.create_index("tasks_by_age", "tasks", ["created_ms", "task"])
    op.create_table(
        "task_targets",
        Column("task", _TEXT, primary_key=True),
        _of_hub(),
        Column("state", _TEXT, nullable=False),
        Column("changed_ms", BigInteger, nullable=False),
        Column("progress", SmallInteger),
        Column("message", _TEXT),
        Column("output", _TEXT),
        Column("presumed", SmallInteger, nullable=False, server_default=text("0")),
        Column("cancel_ms", BigInteger),
    )
    op.create_index("task_targets_by_hub", "task_targets", ["hub_no", "state"])


def _create_settings() -> None:
    op.create_table(
        "settings_documents",
        _numbered("document_no"),
        Column("scope", _TEXT, nullable=False),
        Column("name", _TEXT, nullable=False),
        Column("version", BigInteger, nullable=False),
        Column("created_ms", BigInteger, nullable=False),
        Column("created_by", _TEXT, nullable=False),
        Column("content", _TEXT, nullable=False),
        UniqueConstraint("scope", "name", "version"),
    )
    op.create_table(
        "settings_of_hubs",
        _of_hub(),
        Column("desired_version", BigInteger, nullable=False),
        Column("desired_hash", _TEXT, nullable=False),
        Column("desired_ms", BigInteger, nullable=False),
        Column("desired_content", _TEXT, nullable=False),
        Column("applied_content", _TEXT),
        Column("reported_version", BigInteger),
        Column("reported_hash", _TEXT),
        Column("reported_state", _TEXT),
        Column("reported_reason", _TEXT),
        Column("reported_ms", BigInteger),
    )
    op.create_table("group_members", Column("group_name", _TEXT, primary_key=True), _of_hub())
    op.create_index("groups_of_hub", "group_members", ["hub_no"])


def _create_logs() -> None:
    op.create_table(
        "logs",
        _numbered("log_no"),
        Column("hub_no", _ID, nullable=False),
        Column("boot", _TEXT, nullable=False),
        Column("n", BigInteger, nullable=False),
        Column("ts", BigInteger, nullable=False),
        Column("received_ms", BigInteger, nullable=False),
        Column("level", _TEXT, nullable=False),
        Column("event", _TEXT, nullable=False),
        Column("fields", _TEXT, nullable=False),
        UniqueConstraint("hub_no", "boot", "n"),
    )
    op.create_index("logs_by_time", "logs", ["hub_no", "ts"])
    op.create_index("logs_by_age", "logs", ["received_ms"])


def _create_access() -> None:
    op.create_table(
        "tokens",
        _numbered("token_no"),
        Column("name", _TEXT, nullable=False, unique=True),
        Column("sha256", _TEXT, nullable=False, unique=True),
        Column("scope", _TEXT, nullable=False),
        Column("site", _TEXT),
        Column("created_ms", BigInteger, nullable=False),
        Column("expires_ms", BigInteger),
        Column("revoked_ms", BigInteger),
        Column("used_ms", BigInteger),
    )
    op.create_table(
        "audit_log",
        _numbered("entry_no"),
        Column("at_ms", BigInteger, nullable=False),
        Column("who", _TEXT, nullable=False),
        Column("address", _TEXT),
        Column("action", _TEXT, nullable=False),
        Column("target", _TEXT, nullable=False),
        Column("outcome", _TEXT, nullable=False),
        Column("detail", _TEXT, nullable=False),
    )
    op.create_index("audit_log_by_age", "audit_log", ["at_ms"])
