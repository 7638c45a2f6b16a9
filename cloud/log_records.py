"""The log lines of hubs: kept once each, searchable per hub, and deleted when they are old (SQL)."""

from __future__ import annotations

from typing import Final

import orjson
from sqlalchemy import Connection, bindparam, delete, select

from broker.control import Logs
from cloud.fleet_schema import LOGS
from cloud.statements import Prepared, insert
from config import limits

_NAMES: Final = ("hub_no", "boot", "n", "ts", "received_ms", "level", "event", "fields")
_ADD: Final = Prepared(
    insert(LOGS).values({name: bindparam(name) for name in _NAMES}).on_conflict_do_nothing(), *_NAMES
)


def apply_logs(connection: Connection, hub_no: int, logs: Logs, received_ms: int) -> None:
    """Keep the lines of one message; those that have come before are known by their boot and number."""
    rows = [
        (hub_no, logs.boot, line.n, line.ts, received_ms, line.level, line.event, orjson.dumps(line.fields).decode())
        for line in logs.records
    ]
    _ADD.run_many(connection, rows)


def prune_logs(connection: Connection, before_ms: int) -> int:
    """Delete up to RETENTION_BATCH lines that came before then, and return how many."""
    old = select(LOGS.c.log_no).where(LOGS.c.received_ms < before_ms).limit(limits.RETENTION_BATCH)
    return connection.execute(delete(LOGS).where(LOGS.c.log_no.in_(old))).rowcount
