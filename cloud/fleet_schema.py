"""The tables of what the cloud knows of its hubs and asks of them, beside what they measured (SQL). Content is JSON text.

Times are Unix ms by the cloud's clock (`_ms`) or by the hub's (`ts`).
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Index, Integer, SmallInteger, Table, Text, UniqueConstraint, text

from cloud.schema import SCHEMA

# SQLite makes ids of its own only for a column that is an INTEGER (and nothing else) PRIMARY KEY.
_ID: Final = BigInteger().with_variant(Integer(), "sqlite")

PRESENCE: Final = Table(
    "presence",
    SCHEMA,
    Column("hub_no", _ID, primary_key=True, autoincrement=False),
    Column("connection", Text, nullable=False),
    Column("since_ms", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("via", Text),
    Column("last_seen_ms", BigInteger),
    Column("skew_ms", BigInteger),
    Column("hidden_ms", BigInteger),
    Column("record", Text, nullable=False),
)
"""The one status of each hub; `record` is all that the presence machine must know of it after a restart.

`hidden_ms`: since when an inactive hub is left out of lists, until it revives.
"""

CONNECTION_LOG: Final = Table(
    "connection_log",
    SCHEMA,
    Column("entry_no", _ID, primary_key=True),
    Column("hub_no", _ID, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("connection", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("via", Text),
    Column("evidence", Text, nullable=False),
)
Index("connection_log_by_hub", CONNECTION_LOG.c.hub_no, CONNECTION_LOG.c.entry_no)
Index("connection_log_by_age", CONNECTION_LOG.c.at_ms)

REPORTED: Final = Table(
    "reported",
    SCHEMA,
    Column("hub_no", _ID, primary_key=True, autoincrement=False),
    Column("epoch", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("received_ms", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
)
"""What each hub last reported of itself."""

TASKS: Final = Table(
    "tasks",
    SCHEMA,
    Column("task", Text, primary_key=True),
    Column("action", Text, nullable=False),
    Column("arguments", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("skip_if_offline", SmallInteger, nullable=False),
)
Index("tasks_by_age", TASKS.c.created_ms, TASKS.c.task)

TASK_TARGETS: Final = Table(
    "task_targets",
    SCHEMA,
    Column("task", Text, primary_key=True),
    Column("hub_no", _ID, primary_key=True, autoincrement=False),
    Column("state", Text, nullable=False),
    Column("changed_ms", BigInteger, nullable=False),
    Column("progress", SmallInteger),
    Column("message", Text),
    Column("output", Text),
    Column("presumed", SmallInteger, nullable=False, server_default=text("0")),
    Column("cancel_ms", BigInteger),
)
"""How a task stands at each hub. `presumed`: concluded from silence, a late result corrects it. `cancel_ms`: asked for since."""
Index("task_targets_by_hub", TASK_TARGETS.c.hub_no, TASK_TARGETS.c.state)

SETTINGS_DOCUMENTS: Final = Table(
    "settings_documents",
    SCHEMA,
    Column("document_no", _ID, primary_key=True),
    Column("scope", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("content", Text, nullable=False),
    UniqueConstraint("scope", "name", "version"),
)
"""Every version of what was desired. `scope` is "fleet" (name ""), "site" (SITE), "group" (GROUP) or "hub" (SITE/HUB)."""

SETTINGS_OF_HUBS: Final = Table(
    "settings_of_hubs",
    SCHEMA,
    Column("hub_no", _ID, primary_key=True, autoincrement=False),
    Column("desired_version", BigInteger, nullable=False),
    Column("desired_hash", Text, nullable=False),
    Column("desired_ms", BigInteger, nullable=False),
    Column("desired_content", Text, nullable=False),
    Column("applied_content", Text),
    Column("reported_version", BigInteger),
    Column("reported_hash", Text),
    Column("reported_state", Text),
    Column("reported_reason", Text),
    Column("reported_ms", BigInteger),
)
"""What each hub is to have, and what it says of it. `applied_content`: what it last said to be in force, where that is known."""

GROUP_MEMBERS: Final = Table(
    "group_members",
    SCHEMA,
    Column("group_name", Text, primary_key=True),
    Column("hub_no", _ID, primary_key=True, autoincrement=False),
)
Index("groups_of_hub", GROUP_MEMBERS.c.hub_no)

LOGS: Final = Table(
    "logs",
    SCHEMA,
    Column("log_no", _ID, primary_key=True),
    Column("hub_no", _ID, nullable=False),
    Column("boot", Text, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("ts", BigInteger, nullable=False),
    Column("received_ms", BigInteger, nullable=False),
    Column("level", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("fields", Text, nullable=False),
    UniqueConstraint("hub_no", "boot", "n"),
)
Index("logs_by_time", LOGS.c.hub_no, LOGS.c.ts)
Index("logs_by_age", LOGS.c.received_ms)

TOKENS: Final = Table(
    "tokens",
    SCHEMA,
    Column("token_no", _ID, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("sha256", Text, nullable=False, unique=True),
    Column("scope", Text, nullable=False),
    Column("site", Text),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    Column("revoked_ms", BigInteger),
    Column("used_ms", BigInteger),
)
"""API tokens by digest; `scope` is read, operate or admin, `site` limits one to a site."""

AUDIT: Final = Table(
    "audit_log",
    SCHEMA,
    Column("entry_no", _ID, primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("who", Text, nullable=False),
    Column("address", Text),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("detail", Text, nullable=False),
)
"""Who did what through the API, and how it ended."""
Index("audit_log_by_age", AUDIT.c.at_ms)
