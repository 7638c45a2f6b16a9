"""Settings in the database: every version of what was desired, what each hub is to have, and what it says of it (SQL).

Everything that changes a row is to be called in a transaction; what it returns goes to the machine after the commit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

import msgspec
import orjson
from sqlalchemy import Connection, Row, delete, func, select

from broker.control import Reported, SettingsReport
from cloud.desired import KnownHub, Records, Save
from cloud.desired_groups import all_groups, groups_of
from cloud.desired_scopes import FLEET, Content, DocumentChanged, Scope, key_of, layers, merged_of
from cloud.fleet_schema import REPORTED, SETTINGS_DOCUMENTS, SETTINGS_OF_HUBS
from cloud.hub_key import HubKey
from cloud.schema import HUBS, STREAMS
from cloud.statements import insert
from config import limits, remote
from config.errors import RefusedError, SettingsError
from config.settings import Label

_SCOPES: Final = ("fleet", "site", "group", "hub")


class VersionConflictError(RefusedError):
    """A document is of another version than its writer believes: it must be read again. `current` is the version it has."""

    def __init__(self, scope: Scope, name: str, expected: int, current: int):
        self.current = current
        place = f"the settings of {scope} {name}".rstrip()
        super().__init__(place, f"they are of version {current} by now, not {expected}: read them again")


@dataclass(frozen=True, slots=True)
class Document:
    """One version of what is desired for a scope. Version 0: nothing was ever said."""

    scope: Scope
    name: str
    version: int
    created_ms: int
    created_by: str
    content: Mapping[str, object]

    @property
    def changed(self) -> DocumentChanged:
        """Return the event for the machine."""
        return DocumentChanged(self.scope, self.name, self.version, self.content)


@dataclass(frozen=True, slots=True)
class Effective:
    """What holds for a hub; `origins` says of every `section.key` from which document it comes, as (scope, name)."""

    content: Content
    hash: str
    origins: dict[str, tuple[Scope, str]]


@dataclass(frozen=True, slots=True)
class Standing:
    """What a hub is to have, and what it says. `changes` is what it does not have yet, or None where that isn't known."""

    version: int
    hash: str
    desired_ms: int | None
    report: SettingsReport | None
    reported_ms: int | None
    changes: list[remote.Change] | None

    @property
    def in_sync(self) -> bool:
        """Tell whether the hub has what it is to have, for good."""
        if self.report is None:
            return self.hash == remote.EMPTY_HASH
        return self.report.hash == self.hash and self.report.state == "applied"


# --- Documents ------------------------------------------------------------------------------------------------------


def put_document(
    connection: Connection,
    scope: Scope,
    name: str,
    content: Mapping[str, object],
    by: str,
    now_ms: int,
    expected_version: int | None = None,
) -> Document:
    """Store a document as a new version and return it; one that is there already stays as it is.

    Raises SettingsError for what the cloud may not set, and VersionConflictError if `expected_version` (0: none yet) is not
    the newest.
    """
    check_place(scope, name)
    remote.check(content)
    current = document(connection, scope, name)
    if expected_version is not None and expected_version != current.version:
        raise VersionConflictError(scope, name, expected_version, current.version)
    text = orjson.dumps(content, option=orjson.OPT_SORT_KEYS).decode()
    if current.version and orjson.dumps(current.content, option=orjson.OPT_SORT_KEYS).decode() == text:
        return current
    version = current.version + 1
    row = {"scope": scope, "name": name, "version": version, "created_ms": now_ms, "created_by": by, "content": text}
    connection.execute(insert(SETTINGS_DOCUMENTS).values(row))
    table = SETTINGS_DOCUMENTS.c
    connection.execute(
        delete(SETTINGS_DOCUMENTS).where(
            table.scope == scope, table.name == name, table.version <= version - limits.SETTINGS_HISTORY_MAX
        )
    )
    return Document(scope, name, version, now_ms, by, orjson.loads(text))


def check_place(scope: str, name: str) -> None:
    """Raise SettingsError if there can be no document of this scope and name."""
    if scope not in _SCOPES:
        raise SettingsError(f"must be one of {', '.join(_SCOPES)}", key="scope", value=scope)
    labels = {"fleet": (), "hub": key_of(name)}.get(scope, (name,))
    if scope == "fleet" and name != FLEET:
        raise SettingsError("must be empty: there is one fleet", key="name", value=name)
    try:
        msgspec.convert(labels, tuple[Label, ...])
    except msgspec.ValidationError as exc:
        wanted = "SITE/HUB" if scope == "hub" else f"the name of a {scope}"
        raise SettingsError(f"must be {wanted}: a-z, 0-9 and inner hyphens", key="name", value=name) from exc


def document(connection: Connection, scope: Scope, name: str, version: int | None = None) -> Document:
    """Return the newest version, or the one named; version 0 and empty if there is none."""
    table = SETTINGS_DOCUMENTS.c
    query = select(SETTINGS_DOCUMENTS).where(table.scope == scope, table.name == name)
    if version is not None:
        query = query.where(table.version == version)
    row = connection.execute(query.order_by(table.version.desc()).limit(1)).first()
    return Document(scope, name, 0, 0, "", {}) if row is None else _document(row)


def documents(connection: Connection) -> list[Document]:
    """Return the newest version of every document, by scope and name."""
    table = SETTINGS_DOCUMENTS.c
    newest = select(func.max(table.document_no)).group_by(table.scope, table.name)
    query = select(SETTINGS_DOCUMENTS).where(table.document_no.in_(newest)).order_by(table.scope, table.name)
    return [_document(row) for row in connection.execute(query)]


def history(
    connection: Connection, scope: Scope, name: str, *, before: int | None = None, limit: int = 100
) -> list[Document]:
    """Return versions of one document, the newest first; `before` is where the page before has ended."""
    table = SETTINGS_DOCUMENTS.c
    query = select(SETTINGS_DOCUMENTS).where(table.scope == scope, table.name == name)
    if before is not None:
        query = query.where(table.version < before)
    return [_document(row) for row in connection.execute(query.order_by(table.version.desc()).limit(limit))]


def _document(row: Row[tuple[object, ...]]) -> Document:
    return Document(row.scope, row.name, row.version, row.created_ms, row.created_by, orjson.loads(row.content))


# --- Hubs -----------------------------------------------------------------------------------------------------------


def save(connection: Connection, change: Save, now_ms: int) -> None:
    """Carry out a `Save`. Nothing happens for a hub that was forgotten meanwhile, or if a newer version is there."""
    hub_no = connection.scalar(select(HUBS.c.hub_no).where(HUBS.c.site == change.key[0], HUBS.c.hub == change.key[1]))
    if hub_no is None:
        return
    values = {
        "desired_version": change.version,
        "desired_hash": change.hash,
        "desired_ms": now_ms,
        "desired_content": orjson.dumps(change.settings, option=orjson.OPT_SORT_KEYS).decode(),
    }
    statement = insert(SETTINGS_OF_HUBS).values(hub_no=hub_no, **values)
    known = SETTINGS_OF_HUBS.c.desired_version
    connection.execute(
        statement.on_conflict_do_update(index_elements=["hub_no"], set_=values, where=known <= change.version)
    )


def apply_reported(
    connection: Connection, hub_no: int, reported: Reported, epoch: str, seq: int, received_ms: int
) -> bool:
    """Keep what a hub says of itself, and tell whether that is its newest word; only then the machines are to hear it."""
    known = connection.execute(select(REPORTED.c.epoch, REPORTED.c.seq).where(REPORTED.c.hub_no == hub_no)).first()
    if known is not None and not _is_newer(connection, hub_no, (known.epoch, known.seq), (epoch, seq)):
        return False
    values = {
        "epoch": epoch,
        "seq": seq,
        "received_ms": received_ms,
        "body": msgspec.json.encode(reported).decode(),
    }
    statement = insert(REPORTED).values(hub_no=hub_no, **values)
    connection.execute(statement.on_conflict_do_update(index_elements=["hub_no"], set_=values))
    _keep_report(connection, hub_no, reported.settings, received_ms)
    return True


def _is_newer(connection: Connection, hub_no: int, known: tuple[str, int], said: tuple[str, int]) -> bool:
    """Tell whether one message is newer than another. Of two epochs, the one that began later is, or the living one."""
    if known[0] == said[0]:
        return said[1] > known[1]
    living = connection.scalar(select(HUBS.c.epoch).where(HUBS.c.hub_no == hub_no))
    query = select(STREAMS.c.epoch, STREAMS.c.stream_no).where(
        STREAMS.c.hub_no == hub_no, STREAMS.c.epoch.in_([known[0], said[0]])
    )
    began = {row.epoch: row.stream_no for row in connection.execute(query)}
    is_older = said[0] in began and began[said[0]] < began.get(known[0], 0)
    return not (is_older and living == known[0])


def _keep_report(connection: Connection, hub_no: int, report: SettingsReport | None, received_ms: int) -> None:
    known = connection.execute(select(SETTINGS_OF_HUBS).where(SETTINGS_OF_HUBS.c.hub_no == hub_no)).first()
    said = {
        "reported_version": None if report is None else report.version,
        "reported_hash": None if report is None else report.hash,
        "reported_state": None if report is None else report.state,
        "reported_reason": None if report is None else report.reason,
        "reported_ms": received_ms,
        "applied_content": _applied(known, report),
    }
    nothing = {"desired_version": 0, "desired_hash": remote.EMPTY_HASH, "desired_ms": 0, "desired_content": "{}"}
    statement = insert(SETTINGS_OF_HUBS).values(hub_no=hub_no, **nothing, **said)
    connection.execute(statement.on_conflict_do_update(index_elements=["hub_no"], set_=said))


def _applied(known: Row[tuple[object, ...]] | None, report: SettingsReport | None) -> str | None:
    """Return the content that is in force for good after a report, as far as that is known."""
    before = None if known is None else cast(str | None, known.applied_content)
    if report is None or (report.state == "applied" and report.hash == remote.EMPTY_HASH):
        return "{}"
    if report.state != "applied":
        return before if known is not None and known.reported_ms is not None else "{}"
    if known is not None and report.hash == known.desired_hash:
        return cast(str, known.desired_content)
    return before if before is not None and remote.hash_of(orjson.loads(before)) == report.hash else None


def load(connection: Connection) -> Records:
    """Return all that the machine must know after a restart."""
    of_hubs, member_of = SETTINGS_OF_HUBS.c, all_groups(connection)
    query = select(HUBS.c.hub_no, HUBS.c.site, HUBS.c.hub, SETTINGS_OF_HUBS).select_from(
        HUBS.outerjoin(SETTINGS_OF_HUBS, of_hubs.hub_no == HUBS.c.hub_no)
    )
    hubs = [
        KnownHub(
            (row.site, row.hub),
            member_of.get(row.hub_no, ()),
            row.desired_version or 0,
            row.desired_hash or remote.EMPTY_HASH,
            _report(row),
        )
        for row in connection.execute(query)
    ]
    return Records(tuple(each.changed for each in documents(connection)), tuple(hubs))


def effective(connection: Connection, hub_no: int) -> Effective:
    """Return what holds for a hub, and where each of its values comes from."""
    key = _key(connection, hub_no)
    content: Content = {}
    origins: dict[str, tuple[Scope, str]] = {}
    for scope, name in layers(key, groups_of(connection, hub_no)):
        said = document(connection, scope, name).content
        content, stated = merged_of(content, said), remote.leaves(said)
        origins = {each: (scope, name) if each in stated else origins[each] for each in remote.leaves(content)}
    return Effective(content, remote.hash_of(content), origins)


def standing(connection: Connection, hub_no: int) -> Standing:
    """Return what a hub is to have and what it says of it."""
    row = connection.execute(select(SETTINGS_OF_HUBS).where(SETTINGS_OF_HUBS.c.hub_no == hub_no)).first()
    if row is None:
        return Standing(0, remote.EMPTY_HASH, None, None, None, [])
    never_heard = row.reported_ms is None
    applied = "{}" if never_heard else row.applied_content
    changes = None if applied is None else remote.diff(orjson.loads(applied), orjson.loads(row.desired_content))
    desired_ms = row.desired_ms if row.desired_version else None
    return Standing(row.desired_version, row.desired_hash, desired_ms, _report(row), row.reported_ms, changes)


def _key(connection: Connection, hub_no: int) -> HubKey:
    row = connection.execute(select(HUBS.c.site, HUBS.c.hub).where(HUBS.c.hub_no == hub_no)).one()
    return row.site, row.hub


def _report(row: Row[tuple[object, ...]]) -> SettingsReport | None:
    if row.reported_hash is None:
        return None
    return SettingsReport(row.reported_version, row.reported_hash, row.reported_state, row.reported_reason)
