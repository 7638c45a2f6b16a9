"""What the API reads of hubs, their connections and logs, groups and audit: a page each, bound parameters only (SQL).

`sees` is the site that the asker is limited to, None for the whole fleet: what is elsewhere is not there.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson
from sqlalchemy import ColumnElement, Connection, Row, Select, and_, case, func, or_, select, tuple_

from cloud import api_models as models
from cloud.api_cursor import Number, Text, cursor_of, cut, place_of
from cloud.desk import UnknownError
from cloud.fleet_schema import (
    AUDIT,
    CONNECTION_LOG,
    GROUP_MEMBERS,
    LOGS,
    PRESENCE,
    REPORTED,
    SETTINGS_OF_HUBS,
)
from cloud.hub_key import HubKey
from cloud.schema import HUBS
from config import limits

T = TypeVar("T")
AnyRow = Row[*tuple[Any, ...]]

LEVELS: Final = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Window:
    """Which part of a list is asked for."""

    limit: int
    cursor: str | None = None


def page_of(
    rows: Sequence[AnyRow], limit: int, make: Callable[[Any], T], cursor: Callable[[Any], str]
) -> models.Page[T]:
    """Return a page of the rows, of which one more was asked for than there may be."""
    shown, more = cut(rows, limit)
    return models.Page(items=[make(row) for row in shown], next=cursor(shown[-1]) if more else None)


def content_of(text: str | None) -> Any:
    """Return what stored JSON holds."""
    return None if text is None else orjson.loads(text)


def seen_by(sees: str | None) -> list[ColumnElement[bool]]:
    """Return the condition that keeps an asker to its site."""
    return [] if sees is None else [HUBS.c.site == sees]


# --- Hubs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HubFilter:
    """Which hubs are asked for; what is None or empty excludes none."""

    site: str | None = None
    group: str | None = None
    connection: str | None = None
    hidden: str = "no"
    text: str | None = None


_HUB: Final = (
    select(HUBS.c.hub_no, HUBS.c.site, HUBS.c.hub, HUBS.c.mode, HUBS.c.version, PRESENCE)
    .outerjoin(PRESENCE, PRESENCE.c.hub_no == HUBS.c.hub_no)
    .order_by(HUBS.c.site, HUBS.c.hub)
)


def hubs(connection: Connection, sees: str | None, wanted: HubFilter, window: Window) -> models.Page[models.HubSummary]:
    """Return hubs by site and name, with the status that the database knows."""
    query = _filtered(_HUB.where(*seen_by(sees)), wanted)
    if window.cursor is not None:
        query = query.where(tuple_(HUBS.c.site, HUBS.c.hub) > place_of(window.cursor, tuple[Text, Text]))
    rows = connection.execute(query.limit(window.limit + 1)).all()
    return page_of(rows, window.limit, summary, lambda row: cursor_of(row.site, row.hub))


def _filtered(query: Select[Any], wanted: HubFilter) -> Select[Any]:
    if wanted.site is not None:
        query = query.where(HUBS.c.site == wanted.site)
    if wanted.group is not None:
        members = select(GROUP_MEMBERS.c.hub_no).where(GROUP_MEMBERS.c.group_name == wanted.group)
        query = query.where(HUBS.c.hub_no.in_(members))
    if wanted.connection is not None:
        query = query.where(PRESENCE.c.connection == wanted.connection)
    if wanted.hidden != "all":
        query = query.where(PRESENCE.c.hidden_ms.is_(None) if wanted.hidden == "no" else PRESENCE.c.hidden_ms > 0)
    if wanted.text:
        query = query.where((HUBS.c.site + "/" + HUBS.c.hub).icontains(wanted.text, autoescape=True))
    return query


def summary(row: AnyRow) -> models.HubSummary:
    """Return a hub as a list shows it."""
    presence = None
    if row.connection is not None:
        presence = models.HubPresence(
            connection=row.connection,
            since=row.since_ms,
            reason=row.reason,
            via=row.via,
            last_seen=row.last_seen_ms,
            text=row.reason,
            actions=[],  # Given, since pydantic copies a default deeply, which takes as long as all the rest.
            skew_ms=row.skew_ms,
            evidence={},
        )
    return models.HubSummary(
        site=row.site,
        hub=row.hub,
        presence=presence,
        hidden_since=row.hidden_ms,
        mode=row.mode,
        version=row.version,
    )


def hub_no(connection: Connection, sees: str | None, key: HubKey) -> int:
    """Return the number of a hub. Raises UnknownError, which names what there is instead."""
    site, hub_id = key
    found = connection.scalar(select(HUBS.c.hub_no).where(HUBS.c.site == site, HUBS.c.hub == hub_id, *seen_by(sees)))
    if found is not None:
        return int(found)
    near = select(HUBS.c.site, HUBS.c.hub).where(or_(HUBS.c.site == site, HUBS.c.hub == hub_id), *seen_by(sees))
    known = [f"{row.site}/{row.hub}" for row in connection.execute(near.limit(limits.API_PAGE_MAX))]
    close = difflib.get_close_matches(f"{site}/{hub_id}", known, n=limits.API_SUGGESTIONS)
    meant = f": did you mean {' or '.join(close)}?" if close else ""
    raise UnknownError(f"there is no hub {site}/{hub_id}{meant}")


def hub(connection: Connection, sees: str | None, key: HubKey) -> models.Hub:
    """Return everything about a hub, with the status that the database knows. Raises UnknownError."""
    number = hub_no(connection, sees, key)
    row = connection.execute(_HUB.where(HUBS.c.hub_no == number)).one()
    groups = select(GROUP_MEMBERS.c.group_name).where(GROUP_MEMBERS.c.hub_no == number)
    said = connection.execute(select(REPORTED).where(REPORTED.c.hub_no == number)).one_or_none()
    return models.Hub(
        **summary(row).__dict__,
        groups=list(connection.scalars(groups.order_by(GROUP_MEMBERS.c.group_name))),
        reported=None if said is None else models.Reported(received=said.received_ms, body=orjson.loads(said.body)),
        settings=settings_state(connection, number),
        values=[],
    )


def settings_state(connection: Connection, number: int) -> models.SettingsState | None:
    """Return what is desired of a hub against what it reports, None if nothing was ever desired."""
    row = connection.execute(select(SETTINGS_OF_HUBS).where(SETTINGS_OF_HUBS.c.hub_no == number)).one_or_none()
    if row is None or (row.desired_version == 0 and row.reported_hash is None):
        return None
    state = "waiting"
    if row.reported_hash == row.desired_hash:
        state = "in force" if row.reported_state == "applied" else row.reported_state or "waiting"
    return models.SettingsState.model_validate(
        {
            "state": state,
            "desired_version": row.desired_version,
            "desired_hash": row.desired_hash,
            "desired_since": row.desired_ms,
            "reported_version": row.reported_version,
            "reported_hash": row.reported_hash,
            "reported_reason": row.reported_reason,
            "reported_at": row.reported_ms,
        }
    )


def keys(connection: Connection, sees: str | None, wanted: HubFilter) -> list[HubKey]:
    """Return which hubs match, all of them."""
    query = _filtered(_HUB.where(*seen_by(sees)), wanted).with_only_columns(HUBS.c.site, HUBS.c.hub)
    return [(row.site, row.hub) for row in connection.execute(query)]


def hub_counts(connection: Connection, sees: str | None) -> dict[str, int]:
    """Return how many hubs that are not hidden are in which connection, and how many are hidden."""
    state = case((PRESENCE.c.hidden_ms > 0, "hidden"), else_=func.coalesce(PRESENCE.c.connection, "unknown"))
    query = (
        select(state.label("state"), func.count().label("hubs"))
        .select_from(HUBS)
        .outerjoin(PRESENCE, PRESENCE.c.hub_no == HUBS.c.hub_no)
        .where(*seen_by(sees))
        .group_by("state")
    )
    return {row.state: row.hubs for row in connection.execute(query)}


@dataclass(frozen=True, slots=True)
class LogFilter:
    """Which entries of the connection log are asked for; times are Unix ms, `until_ms` exclusive."""

    site: str | None = None
    hub_id: str | None = None
    connection: str | None = None
    since_ms: int = 0
    until_ms: int | None = None


def connection_log(
    connection: Connection, sees: str | None, wanted: LogFilter, window: Window
) -> models.Page[models.Connected]:
    """Return how hubs came and went, newest first."""
    log = CONNECTION_LOG.c
    query = (
        select(HUBS.c.site, HUBS.c.hub, CONNECTION_LOG)
        .join(HUBS, HUBS.c.hub_no == log.hub_no)
        .where(log.at_ms >= wanted.since_ms, *seen_by(sees))
    )
    if wanted.site is not None and wanted.hub_id is not None:
        query = query.where(log.hub_no == hub_no(connection, sees, (wanted.site, wanted.hub_id)))
    elif wanted.site is not None:
        query = query.where(HUBS.c.site == wanted.site)
    if wanted.connection is not None:
        query = query.where(log.connection == wanted.connection)
    if wanted.until_ms is not None:
        query = query.where(log.at_ms < wanted.until_ms)
    if window.cursor is not None:
        query = query.where(log.entry_no < place_of(window.cursor, tuple[Number])[0])
    rows = connection.execute(query.order_by(log.entry_no.desc()).limit(window.limit + 1)).all()

    def entry(row: AnyRow) -> models.Connected:
        return models.Connected(
            site=row.site,
            hub=row.hub,
            at=row.at_ms,
            connection=row.connection,
            reason=row.reason,
            via=row.via,
            evidence=content_of(row.evidence) or {},
        )

    return page_of(rows, window.limit, entry, lambda row: cursor_of(row.entry_no))


# --- Logs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LineFilter:
    """Which lines of a hub's log are asked for; `after` is a line's `no`, for those that arrived later, oldest first."""

    level: str = "debug"
    event: str | None = None
    text: str | None = None
    since_ms: int = 0
    until_ms: int | None = None
    after: int | None = None


def logs(
    connection: Connection, sees: str | None, key: HubKey, wanted: LineFilter, window: Window
) -> models.Page[models.LogLine]:
    """Return lines of a hub's log: newest first by its clock, or with `after` in the order of arrival."""
    log = LOGS.c
    query = select(LOGS).where(log.hub_no == hub_no(connection, sees, key), log.ts >= wanted.since_ms)
    query = query.where(log.level.in_(LEVELS[LEVELS.index(wanted.level) :]))
    if wanted.event is not None:
        query = query.where(log.event == wanted.event)
    if wanted.text:
        found = (log.event.icontains(wanted.text, autoescape=True), log.fields.icontains(wanted.text, autoescape=True))
        query = query.where(or_(*found))
    if wanted.until_ms is not None:
        query = query.where(log.ts < wanted.until_ms)
    if wanted.after is None:
        if window.cursor is not None:
            query = query.where(tuple_(log.ts, log.log_no) < place_of(window.cursor, tuple[Number, Number]))
        query = query.order_by(log.ts.desc(), log.log_no.desc())
    else:
        after = place_of(window.cursor, tuple[Number])[0] if window.cursor is not None else wanted.after
        query = query.where(log.log_no > after).order_by(log.log_no)
    rows = connection.execute(query.limit(window.limit + 1)).all()

    def line(row: AnyRow) -> models.LogLine:
        return models.LogLine(
            no=row.log_no,
            ts=row.ts,
            received=row.received_ms,
            level=row.level,
            event=row.event,
            fields=content_of(row.fields) or {},
        )

    def cursor(row: AnyRow) -> str:
        return cursor_of(row.ts, row.log_no) if wanted.after is None else cursor_of(row.log_no)

    return page_of(rows, window.limit, line, cursor)


def newest_line(connection: Connection, sees: str | None, key: HubKey) -> int:
    """Return the number of the line of a hub's log that arrived last, 0 if none did."""
    query = select(func.max(LOGS.c.log_no)).where(LOGS.c.hub_no == hub_no(connection, sees, key))
    return connection.scalar(query) or 0


# --- Groups ----------------------------------------------------------------------------------------------------------


def groups(connection: Connection, sees: str | None, window: Window) -> models.Page[models.Group]:
    """Return the groups that have members, by name."""
    name = GROUP_MEMBERS.c.group_name
    query = select(name.label("group"), func.count().label("hubs"))
    query = query.join(HUBS, HUBS.c.hub_no == GROUP_MEMBERS.c.hub_no).where(*seen_by(sees))
    if window.cursor is not None:
        query = query.where(name > place_of(window.cursor, tuple[Text])[0])
    rows = connection.execute(query.group_by(name).order_by(name).limit(window.limit + 1)).all()
    return page_of(
        rows, window.limit, lambda row: models.Group(group=row.group, hubs=row.hubs), lambda row: cursor_of(row.group)
    )


def members(connection: Connection, sees: str | None, group: str, window: Window) -> models.Page[models.Member]:
    """Return the hubs of a group; an unknown group has none."""
    query = select(HUBS.c.site, HUBS.c.hub).join(
        GROUP_MEMBERS, and_(GROUP_MEMBERS.c.hub_no == HUBS.c.hub_no, GROUP_MEMBERS.c.group_name == group)
    )
    query = query.where(*seen_by(sees)).order_by(HUBS.c.site, HUBS.c.hub)
    if window.cursor is not None:
        query = query.where(tuple_(HUBS.c.site, HUBS.c.hub) > place_of(window.cursor, tuple[Text, Text]))
    rows = connection.execute(query.limit(window.limit + 1)).all()
    return page_of(
        rows,
        window.limit,
        lambda row: models.Member(site=row.site, hub=row.hub),
        lambda row: cursor_of(row.site, row.hub),
    )


# --- Audit -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries of the audit log are asked for."""

    who: str | None = None
    action: str | None = None
    since_ms: int = 0
    until_ms: int | None = None


def audit(connection: Connection, wanted: AuditFilter, window: Window) -> models.Page[models.Audited]:
    """Return who did what through the API, newest first."""
    query = select(AUDIT).where(AUDIT.c.at_ms >= wanted.since_ms)
    for column, value in ((AUDIT.c.who, wanted.who), (AUDIT.c.action, wanted.action)):
        if value is not None:
            query = query.where(column == value)
    if wanted.until_ms is not None:
        query = query.where(AUDIT.c.at_ms < wanted.until_ms)
    if window.cursor is not None:
        query = query.where(AUDIT.c.entry_no < place_of(window.cursor, tuple[Number])[0])
    rows = connection.execute(query.order_by(AUDIT.c.entry_no.desc()).limit(window.limit + 1)).all()

    def entry(row: AnyRow) -> models.Audited:
        return models.Audited(
            at=row.at_ms,
            who=row.who,
            address=row.address,
            action=row.action,
            target=row.target,
            outcome=row.outcome,
            detail=content_of(row.detail) or {},
        )

    return page_of(rows, window.limit, entry, lambda row: cursor_of(row.entry_no))
