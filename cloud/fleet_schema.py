"""The tables of what the cloud knows of its hubs and asks of them, beside what they measured (SQL). Content is JSON text.

Times are Unix ms by the cloud's clock (`_ms`) or by the hub's (`ts`).
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Index, SmallInteger, Table, UniqueConstraint, text

from cloud.tables import ID, ROOM_TO_UPDATE, SCHEMA, TEXT, numbered

PRESENCE: Final = Table(
    "presence",
    SCHEMA,
    Column("hub_no", ID, primary_key=True, autoincrement=False),
    Column("connection", TEXT, nullable=False),
    Column("since_ms", BigInteger, nullable=False),
    Column("reason", TEXT, nullable=False),
    Column("via", TEXT),
    Column("last_seen_ms", BigInteger),
    Column("skew_ms", BigInteger),
    Column("hidden_ms", BigInteger),
    Column("record", TEXT, nullable=False),
    postgresql_with=ROOM_TO_UPDATE,
)
"""The one status of each hub; `record` is all that the presence machine must know of it after a restart.

`hidden_ms`: since when an inactive hub is left out of lists, until it revives.
"""

CONNECTION_LOG: Final = Table(
    "connection_log",
    SCHEMA,
    numbered("entry_no"),
    Column("hub_no", ID, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("connection", TEXT, nullable=False),
    Column("reason", TEXT, nullable=False),
    Column("via", TEXT),
    Column("evidence", TEXT, nullable=False),
)
Index("connection_log_by_hub", CONNECTION_LOG.c.hub_no, CONNECTION_LOG.c.entry_no)
Index("connection_log_by_age", CONNECTION_LOG.c.at_ms)

REPORTED: Final = Table(
    "reported",
    SCHEMA,
    Column("hub_no", ID, primary_key=True, autoincrement=False),
    Column("epoch", TEXT, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("received_ms", BigInteger, nullable=False),
    Column("body", TEXT, nullable=False),
)
"""What each hub last reported of itself."""

TASKS: Final = Table(
    "tasks",
    SCHEMA,
    Column("task", TEXT, primary_key=True),
    Column("action", TEXT, nullable=False),
    Column("arguments", TEXT, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("created_by", TEXT, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("skip_if_offline", SmallInteger, nullable=False),
)
Index("tasks_by_age", TASKS.c.created_ms, TASKS.c.task)

TASK_TARGETS: Final = Table(
    "task_targets",
    SCHEMA,
    Column("task", TEXT, primary_key=True),
    Column("hub_no", ID, primary_key=True, autoincrement=False),
    Column("state", TEXT, nullable=False),
    Column("changed_ms", BigInteger, nullable=False),
    Column("progress", SmallInteger),
    Column("message", TEXT),
    Column("output", TEXT),
    Column("presumed", SmallInteger, nullable=False, server_default=text("0")),
    Column("cancel_ms", BigInteger),
)
"""How a task stands at each hub. `presumed`: concluded from silence, a late result corrects it. `cancel_ms`: asked for since."""
Index("task_targets_by_hub", TASK_TARGETS.c.hub_no, TASK_TARGETS.c.state)

SETTINGS_DOCUMENTS: Final = Table(
    "settings_documents",
    SCHEMA,
    numbered("document_no"),
    Column("scope", TEXT, nullable=False),
    Column("name", TEXT, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("created_by", TEXT, nullable=False),
    Column("content", TEXT, nullable=False),
    UniqueConstraint("scope", "name", "version"),
)
"""Every version of what was desired. `scope` is "fleet" (name ""), "site" (SITE), "group" (GROUP) or "hub" (SITE/HUB)."""

SETTINGS_OF_HUBS: Final = Table(
    "settings_of_hubs",
    SCHEMA,
    Column("hub_no", ID, primary_key=True, autoincrement=False),
    Column("desired_version", BigInteger, nullable=False),
    Column("desired_hash", TEXT, nullable=False),
    Column("desired_ms", BigInteger, nullable=False),
    Column("desired_content", TEXT, nullable=False),
    Column("applied_content", TEXT),
    Column("reported_version", BigInteger),
    Column("reported_hash", TEXT),
    Column("reported_state", TEXT),
    Column("reported_reason", TEXT),
    Column("reported_ms", BigInteger),
)
"""What each hub is to have, and what it says of it. `applied_content`: what it last said to be in force, where that is known."""

GROUP_MEMBERS: Final = Table(
    "group_members",
    SCHEMA,
    Column("group_name", TEXT, primary_key=True),
    Column("hub_no", ID, primary_key=True, autoincrement=False),
)
Index("groups_of_hub", GROUP_MEMBERS.c.hub_no)

LOGS: Final = Table(
    "logs",
    SCHEMA,
    numbered("log_no"),
    Column("hub_no", ID, nullable=False),
    Column("boot", TEXT, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("ts", BigInteger, nullable=False),
    Column("received_ms", BigInteger, nullable=False),
    Column("level", TEXT, nullable=False),
    Column("event", TEXT, nullable=False),
    Column("fields", TEXT, nullable=False),
    UniqueConstraint("hub_no", "boot", "n"),
)
Index("logs_by_time", LOGS.c.hub_no, LOGS.c.ts)
Index("logs_by_age", LOGS.c.received_ms)

TOKENS: Final = Table(
    "tokens",
    SCHEMA,
    numbered("token_no"),
    Column("name", TEXT, nullable=False, unique=True),
    Column("sha256", TEXT, nullable=False, unique=True),
    Column("scope", TEXT, nullable=False),
    Column("site", TEXT),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    Column("revoked_ms", BigInteger),
    Column("used_ms", BigInteger),
)
"""API tokens by digest; `scope` is read, operate or admin, `site` limits one to a site."""

AUDIT: Final = Table(
    "audit_log",
    SCHEMA,
    numbered("entry_no"),
    Column("at_ms", BigInteger, nullable=False),
    Column("who", TEXT, nullable=False),
    Column("address", TEXT),
    Column("action", TEXT, nullable=False),
    Column("target", TEXT, nullable=False),
    Column("outcome", TEXT, nullable=False),
    Column("detail", TEXT, nullable=False),
)
"""Who did what through the API, and how it ended."""
Index("audit_log_by_age", AUDIT.c.at_ms)
