"""Tasks in the database (SQL): a result that is stored has had its effect, once, and no end is ever taken back.

Functions take the connection of a running transaction. Writing twice what was written changes nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sqlalchemy import Connection, Row, Select, and_, delete, func, insert, or_, select, tuple_, update

from broker.control import Results
from cloud.fleet_schema import TASK_TARGETS, TASKS
from cloud.hub_key import HubKey
from cloud.schema import HUBS
from cloud.task_standing import (
    FINAL,
    OPEN,
    OpenTarget,
    Standing,
    TargetChange,
    TargetState,
    TaskOrder,
    merged,
)
from config import limits
from config.errors import SettingsError


def new_id() -> str:
    """Return an id for a task, as the contract wants it."""
    return secrets.token_hex(8)


# --- Writing --------------------------------------------------------------------------------------------------------


def create(connection: Connection, order: TaskOrder, created_by: str, hub_nos: Sequence[int]) -> None:
    """Add a task with these hubs as its targets, all queued. Raises SettingsError if they are none or too many."""
    if not 1 <= len(hub_nos) <= limits.TASK_TARGETS_MAX:
        problem = f"names {len(hub_nos)} hubs; a task is for 1 to {limits.TASK_TARGETS_MAX}"
        raise SettingsError(problem, key="targets")
    connection.execute(
        insert(TASKS).values(
            task=order.task,
            action=order.action,
            arguments=orjson.dumps(dict(order.arguments)).decode(),
            created_ms=order.created_ms,
            created_by=created_by,
            expires_ms=order.expires_ms,
            skip_if_offline=int(order.skip_if_offline),
        )
    )
    queued = {"task": order.task, "state": "queued", "changed_ms": order.created_ms}
    connection.execute(insert(TASK_TARGETS), [{**queued, "hub_no": hub_no} for hub_no in dict.fromkeys(hub_nos)])


def apply_results(
    connection: Connection, hub_no: int, results: Results, received_ms: int
) -> list[tuple[str, Standing]]:
    """Take in what a hub tells of its tasks, and return those that stand differently now. Others' tasks are not touched."""
    changed: dict[str, Standing] = {}
    for report in results.results:
        place = and_(TASK_TARGETS.c.task == report.task, TASK_TARGETS.c.hub_no == hub_no)
        found = connection.execute(select(*_STANDING).where(place)).one_or_none()
        if found is None:
            continue  # Of a task that was deleted here, or never was.
        standing = merged(_standing(found), report)
        if standing is not None:
            connection.execute(update(TASK_TARGETS).where(place).values(_columns(standing, received_ms)))
            changed[report.task] = standing
    return list(changed.items())


def save(connection: Connection, changes: Sequence[TargetChange], now_ms: int) -> None:
    """Keep what the machine has decided, unless a hub's report was there before it."""
    for change in changes:
        hub_no = select(HUBS.c.hub_no).where(HUBS.c.site == change.key[0], HUBS.c.hub == change.key[1])
        place = and_(TASK_TARGETS.c.task == change.task, TASK_TARGETS.c.hub_no == hub_no.scalar_subquery())
        target = update(TASK_TARGETS)
        if change.standing.final:
            values = _columns(change.standing, now_ms)
            if change.standing.output is None:
                del values["output"]
            connection.execute(target.where(place, TASK_TARGETS.c.state.in_(OPEN)).values(values))
        elif change.standing.state == "sent":
            sent = {"state": "sent", "changed_ms": now_ms}
            connection.execute(target.where(place, TASK_TARGETS.c.state == "queued").values(sent))
        if change.cancel_asked:
            unasked = and_(place, TASK_TARGETS.c.cancel_ms.is_(None))
            connection.execute(target.where(unasked).values(cancel_ms=now_ms))


def prune(connection: Connection, created_before_ms: int) -> int:
    """Delete some of the tasks that old whose targets are all at their end; return how many, 0 if none is left."""
    still_open = select(TASK_TARGETS.c.task).where(TASK_TARGETS.c.task == TASKS.c.task, TASK_TARGETS.c.state.in_(OPEN))
    old = (
        select(TASKS.c.task)
        .where(TASKS.c.created_ms < created_before_ms, ~still_open.exists())
        .order_by(TASKS.c.created_ms)
        .limit(limits.TASKS_PRUNED)
    )
    tasks = connection.scalars(old).all()
    if tasks:
        connection.execute(delete(TASK_TARGETS).where(TASK_TARGETS.c.task.in_(tasks)))
        connection.execute(delete(TASKS).where(TASKS.c.task.in_(tasks)))
    return len(tasks)


# --- Reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A task as it was ordered, and how many of its targets stand how (only of those asked for)."""

    order: TaskOrder
    created_by: str
    counts: Mapping[TargetState, int]

    @property
    def open(self) -> bool:
        """Tell whether any of these targets is not at its end."""
        return any(state in OPEN for state in self.counts)


@dataclass(frozen=True, slots=True)
class StoredTarget:
    """How a task stands at one hub."""

    task: str
    hub_no: int
    key: HubKey
    standing: Standing
    changed_ms: int
    cancel_ms: int | None


TaskCursor = tuple[int, str]
"""(created_ms, task) of the last task of a page; the next page goes on from there."""


def open_tasks(connection: Connection) -> tuple[OpenTarget, ...]:
    """Return everything that is not at its end, in the order in which it was asked for: what `Tasks` starts with."""
    query = _targets_query().where(TASK_TARGETS.c.state.in_(OPEN))
    rows = connection.execute(query.order_by(TASKS.c.created_ms, TASKS.c.task, TASK_TARGETS.c.hub_no))
    orders: dict[str, TaskOrder] = {}
    found = list[OpenTarget]()
    for row in rows:
        order = orders.setdefault(row.task, _order(row))
        cancel_asked = row.cancel_ms is not None
        found.append(OpenTarget(order, (row.site, row.hub), _standing(row), row.changed_ms, cancel_asked))
    return tuple(found)


def task(connection: Connection, task_id: str, *, site: str | None = None) -> StoredTask | None:
    """Return one task; with `site`, only if it has targets there, and only those are counted."""
    row = connection.execute(select(TASKS).where(TASKS.c.task == task_id)).one_or_none()
    if row is None:
        return None
    counts = _counts(connection, [task_id], site=site).get(task_id, {})
    return None if site is not None and not counts else StoredTask(_order(row), row.created_by, counts)


def newest_by(connection: Connection, created_by: str) -> int | None:
    """Return when somebody last ordered a task (Unix ms), or None."""
    newest: int | None = connection.scalar(select(func.max(TASKS.c.created_ms)).where(TASKS.c.created_by == created_by))
    return newest


def tasks(
    connection: Connection,
    *,
    hub_no: int | None = None,
    state: TargetState | None = None,
    site: str | None = None,
    after: TaskCursor | None = None,
    limit: int = limits.API_PAGE,
) -> list[StoredTask]:
    """Return tasks, the newest first, that have a target at this hub, in this state, of this site (all at once).

    Counted are a task's targets at that hub or site, in whatever state.
    """
    query = select(TASKS).order_by(TASKS.c.created_ms.desc(), TASKS.c.task.desc()).limit(limit)
    if after is not None:
        query = query.where(tuple_(TASKS.c.created_ms, TASKS.c.task) < after)
    if hub_no is not None or state is not None or site is not None:
        matching = select(TASK_TARGETS.c.task).where(TASK_TARGETS.c.task == TASKS.c.task)
        if hub_no is not None:
            matching = matching.where(TASK_TARGETS.c.hub_no == hub_no)
        if state is not None:
            matching = matching.where(TASK_TARGETS.c.state == state)
        if site is not None:
            matching = matching.join(HUBS, HUBS.c.hub_no == TASK_TARGETS.c.hub_no).where(HUBS.c.site == site)
        query = query.where(matching.exists())
    rows = connection.execute(query).all()
    counts = _counts(connection, [row.task for row in rows], hub_no=hub_no, site=site)
    return [StoredTask(_order(row), row.created_by, counts.get(row.task, {})) for row in rows]


def targets(
    connection: Connection,
    task_id: str,
    *,
    state: TargetState | None = None,
    site: str | None = None,
    after: HubKey | None = None,
    limit: int = limits.API_PAGE,
) -> list[StoredTarget]:
    """Return the targets of a task by site and hub. `after` is the key of the last one of the page before."""
    query = _targets_query().where(TASK_TARGETS.c.task == task_id).order_by(HUBS.c.site, HUBS.c.hub).limit(limit)
    if state is not None:
        query = query.where(TASK_TARGETS.c.state == state)
    if site is not None:
        query = query.where(HUBS.c.site == site)
    if after is not None:
        query = query.where(or_(HUBS.c.site > after[0], and_(HUBS.c.site == after[0], HUBS.c.hub > after[1])))
    return [_stored_target(row) for row in connection.execute(query)]


def target(connection: Connection, task_id: str, hub_no: int) -> StoredTarget | None:
    """Return how one task stands at one hub."""
    query = _targets_query().where(TASK_TARGETS.c.task == task_id, TASK_TARGETS.c.hub_no == hub_no)
    row = connection.execute(query).one_or_none()
    return None if row is None else _stored_target(row)


# --- Rows -----------------------------------------------------------------------------------------------------------

_STANDING: Final = (
    TASK_TARGETS.c.state,
    TASK_TARGETS.c.progress,
    TASK_TARGETS.c.message,
    TASK_TARGETS.c.output,
    TASK_TARGETS.c.presumed,
)


def _targets_query() -> Select[*tuple[Any, ...]]:
    of_target = (TASK_TARGETS.c.hub_no, TASK_TARGETS.c.changed_ms, TASK_TARGETS.c.cancel_ms, HUBS.c.site, HUBS.c.hub)
    return (
        select(TASKS, *_STANDING, *of_target)
        .join(TASK_TARGETS, TASK_TARGETS.c.task == TASKS.c.task)
        .join(HUBS, HUBS.c.hub_no == TASK_TARGETS.c.hub_no)
    )


def _counts(
    connection: Connection, task_ids: Sequence[str], *, hub_no: int | None = None, site: str | None = None
) -> dict[str, dict[TargetState, int]]:
    query = select(TASK_TARGETS.c.task, TASK_TARGETS.c.state, func.count()).where(TASK_TARGETS.c.task.in_(task_ids))
    if hub_no is not None:
        query = query.where(TASK_TARGETS.c.hub_no == hub_no)
    if site is not None:
        query = query.join(HUBS, HUBS.c.hub_no == TASK_TARGETS.c.hub_no).where(HUBS.c.site == site)
    counts: dict[str, dict[TargetState, int]] = {}
    for task_id, state, count in connection.execute(query.group_by(TASK_TARGETS.c.task, TASK_TARGETS.c.state)):
        counts.setdefault(task_id, {})[state] = count
    return {task_id: {state: of[state] for state in (*OPEN, *FINAL) if state in of} for task_id, of in counts.items()}


def _order(row: Row[*tuple[Any, ...]]) -> TaskOrder:
    arguments: dict[str, Any] = orjson.loads(row.arguments)
    return TaskOrder(row.task, row.action, arguments, row.created_ms, row.expires_ms, bool(row.skip_if_offline))


def _standing(row: Row[*tuple[Any, ...]]) -> Standing:
    output = None if row.output is None else orjson.loads(row.output)
    return Standing(row.state, row.progress, row.message, output, bool(row.presumed))


def _stored_target(row: Row[*tuple[Any, ...]]) -> StoredTarget:
    return StoredTarget(row.task, row.hub_no, (row.site, row.hub), _standing(row), row.changed_ms, row.cancel_ms)


def _columns(standing: Standing, changed_ms: int) -> dict[str, object]:
    return {
        "state": standing.state,
        "changed_ms": changed_ms,
        "progress": standing.progress,
        "message": standing.message,
        "output": None if standing.output is None else orjson.dumps(standing.output).decode(),
        "presumed": int(standing.presumed),
    }
