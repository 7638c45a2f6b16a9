"""What the presence machine must not forget, the connection log, and the only deletion of a hub (SQL)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import orjson
from sqlalchemy import Connection, bindparam, delete, func, literal, select, tuple_, update

from broker.topics import Topic
from cloud.fleet_schema import CONNECTION_LOG, PRESENCE, SETTINGS_DOCUMENTS
from cloud.hub_key import HubKey
from cloud.presence_events import Entry
from cloud.presence_facts import Record
from cloud.schema import HUBS, MESSAGES, META, QUARANTINE, SCHEMA, SENSORS, STREAMS
from cloud.statements import Prepared, insert
from cloud.states import add_hub
from config import limits


@dataclass(frozen=True, slots=True)
class Logged:
    """A line of the connection log as it was kept."""

    entry_no: int
    at_ms: int
    connection: str
    reason: str
    via: str | None
    evidence: dict[str, Any]


def _upsert() -> Prepared:
    names = ("hub_no", *_NAMES)
    statement = insert(PRESENCE).values({name: bindparam(name) for name in names})
    return Prepared(
        statement.on_conflict_do_update(
            index_elements=["hub_no"], set_={name: statement.excluded[name] for name in _NAMES}
        ),
        *names,
    )


_NAMES: Final = ("connection", "since_ms", "reason", "via", "last_seen_ms", "skew_ms", "hidden_ms", "record")
_SAVE: Final = _upsert()
_LOGGED: Final = ("hub_no", "at_ms", "connection", "reason", "via", "evidence")
_LOG: Final = Prepared(insert(CONNECTION_LOG).values({name: bindparam(name) for name in _LOGGED}), *_LOGGED)


def load(connection: Connection) -> list[Record]:
    """Return every record as it was saved last; one that can't be read is left out, and its hub made known by its next word."""
    records = []
    for packed in connection.scalars(select(PRESENCE.c.record).order_by(PRESENCE.c.hub_no)):
        try:
            records.append(msgspec.json.decode(packed, type=Record))
        except msgspec.DecodeError:
            continue
    return records


def save(connection: Connection, records: Iterable[Record]) -> None:
    """Keep records in place of those of the same hubs, which are made known if they aren't yet."""
    rows = []
    for record in records:
        status = record.status
        assert status is not None, "a record that was judged has a status"
        told = (status.connection, status.since_ms, status.reason, status.via)
        packed = msgspec.json.encode(record).decode()
        hub_no = add_hub(connection, *record.key)
        rows.append((hub_no, *told, record.seen_ms, record.skew_ms, record.hidden_ms, packed))
    _SAVE.run_many(connection, rows)


def log(connection: Connection, entries: Iterable[Entry]) -> None:
    """Add lines to the connection log, in order."""
    rows = [
        (add_hub(connection, *line.key), line.at_ms, line.connection, line.reason, line.via, _json(line.evidence))
        for line in entries
    ]
    _LOG.run_many(connection, rows)


def connection_log(connection: Connection, hub_no: int, before_entry: int | None, limit: int) -> list[Logged]:
    """Return lines of a hub's connection log, the newest first, older than `before_entry` if that is given."""
    query = select(CONNECTION_LOG).where(CONNECTION_LOG.c.hub_no == hub_no)
    if before_entry is not None:
        query = query.where(CONNECTION_LOG.c.entry_no < before_entry)
    rows = connection.execute(query.order_by(CONNECTION_LOG.c.entry_no.desc()).limit(limit))
    return [
        Logged(row.entry_no, row.at_ms, row.connection, row.reason, row.via, orjson.loads(row.evidence)) for row in rows
    ]


def page(
    connection: Connection, after: HubKey | None, limit: int, *, with_hidden: bool = False
) -> list[tuple[int, Record]]:
    """Return hubs (number, record) by site and id, from behind `after` on; hidden ones only if asked for."""
    place = tuple_(HUBS.c.site, HUBS.c.hub)
    query = select(HUBS.c.hub_no, PRESENCE.c.record).join(PRESENCE, PRESENCE.c.hub_no == HUBS.c.hub_no)
    if after is not None:
        query = query.where(place > tuple_(*(literal(part) for part in after)))
    if not with_hidden:
        query = query.where(PRESENCE.c.hidden_ms.is_(None))
    rows = connection.execute(query.order_by(HUBS.c.site, HUBS.c.hub).limit(limit))
    return [(row.hub_no, msgspec.json.decode(row.record, type=Record)) for row in rows]


# --- Forgetting ------------------------------------------------------------------------------------------------------


def forget(connection: Connection, hub_no: int, most: int = limits.RETENTION_BATCH) -> bool:
    """Delete a hub and everything of it in all tables, and tell whether nothing is left.

    Its messages go `most` at a time, so that ingest never waits long: to be called, each time in a transaction of its
    own, until it returns True. Other hubs' rows, what was done through the API and the counts of refused messages stay.
    """
    # Locked before all else, as by whoever stores what the hub sends.
    query = select(HUBS.c.site, HUBS.c.hub).where(HUBS.c.hub_no == hub_no).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        return True
    streams = select(STREAMS.c.stream_no).where(STREAMS.c.hub_no == hub_no)
    some = select(MESSAGES.c.stream_no, MESSAGES.c.seq).where(MESSAGES.c.stream_no.in_(streams)).limit(most)
    deleted = connection.execute(delete(MESSAGES).where(tuple_(MESSAGES.c.stream_no, MESSAGES.c.seq).in_(some)))
    if deleted.rowcount == most:
        return False
    sensors = select(SENSORS.c.sensor_no).where(SENSORS.c.hub_no == hub_no)
    for column, numbers in (("stream_no", streams), ("sensor_no", sensors)):
        for table in SCHEMA.sorted_tables:
            if column in table.c and "hub_no" not in table.c:
                connection.execute(delete(table).where(table.c[column].in_(numbers)))
    documents = SETTINGS_DOCUMENTS.c
    named = documents.name == f"{row.site}/{row.hub}"
    connection.execute(delete(SETTINGS_DOCUMENTS).where(documents.scope == "hub", named))
    _blank_refused(connection, row.site, row.hub)
    for table in SCHEMA.sorted_tables:
        if "hub_no" in table.c and table is not HUBS:
            connection.execute(delete(table).where(table.c.hub_no == hub_no))
    connection.execute(delete(HUBS).where(HUBS.c.hub_no == hub_no))
    return True


def _blank_refused(connection: Connection, site: str, hub_id: str) -> None:
    """Take out what the quarantine holds of a hub; the rows stay, since their highest number is a count."""
    fleet = connection.scalar(select(META.c.value).where(META.c.name == "fleet")) or ""
    start = str(Topic.hub_state(fleet, site, hub_id)).removesuffix("state")
    refused = func.substr(QUARANTINE.c.topic, 1, len(start)) == start
    connection.execute(update(QUARANTINE).where(refused).values(topic="", payload=b""))


def _json(content: object) -> str:
    return orjson.dumps(content).decode()
