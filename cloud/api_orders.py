"""What the API reads of what was asked of hubs: tasks and settings, bound parameters only (SQL).

`sees` is the site that the asker is limited to, None for the whole fleet: what is elsewhere is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from sqlalchemy import Connection, func, select, tuple_

from cloud import api_models as models
from cloud.api_cursor import Number, Text, cursor_of, place_of
from cloud.api_queries import AnyRow, Window, content_of, hub_no, page_of, seen_by
from cloud.desk import UnknownError
from cloud.fleet_schema import SETTINGS_DOCUMENTS, TASK_TARGETS, TASKS
from cloud.hub_key import HubKey
from cloud.schema import HUBS

ENDED: Final = ("done", "failed", "refused", "expired", "cancelled")
"""States of a task's target that do not change any more."""

# --- Tasks -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks are asked for: with a target at this site, that is this hub, in this state, or (`unended`) not ended."""

    action: str | None = None
    state: str | None = None
    site: str | None = None
    key: HubKey | None = None
    unended: bool = False


_TARGETS: Final = TASK_TARGETS.join(HUBS, HUBS.c.hub_no == TASK_TARGETS.c.hub_no)


def tasks(
    connection: Connection, sees: str | None, wanted: TaskFilter, window: Window
) -> models.Page[models.TaskSummary]:
    """Return tasks, newest first."""
    having = seen_by(sees)
    if wanted.site is not None:
        having.append(HUBS.c.site == wanted.site)
    if wanted.state is not None:
        having.append(TASK_TARGETS.c.state == wanted.state)
    if wanted.unended:
        having.append(TASK_TARGETS.c.state.not_in(ENDED))
    if wanted.key is not None:
        having.append(TASK_TARGETS.c.hub_no == hub_no(connection, sees, wanted.key))
    query = select(TASKS)
    if having:
        targets = select(TASK_TARGETS.c.task).select_from(_TARGETS).where(TASK_TARGETS.c.task == TASKS.c.task, *having)
        query = query.where(targets.exists())
    if wanted.action is not None:
        query = query.where(TASKS.c.action == wanted.action)
    place = tuple_(TASKS.c.created_ms, TASKS.c.task)
    if window.cursor is not None:
        query = query.where(place < place_of(window.cursor, tuple[Number, Text]))
    rows = connection.execute(
        query.order_by(TASKS.c.created_ms.desc(), TASKS.c.task.desc()).limit(window.limit + 1)
    ).all()
    states = _states(connection, sees, [row.task for row in rows])
    return page_of(
        rows,
        window.limit,
        lambda row: models.TaskSummary(**_task(row), states=states.get(row.task, {})),
        lambda row: cursor_of(row.created_ms, row.task),
    )


def task(connection: Connection, sees: str | None, task_id: str, window: Window) -> models.Task:
    """Return a task with a page of its targets. Raises UnknownError."""
    row = connection.execute(select(TASKS).where(TASKS.c.task == task_id)).one_or_none()
    states = _states(connection, sees, [task_id]).get(task_id, {})
    if row is None or (sees is not None and not states):
        raise UnknownError(f"there is no task {task_id}")
    query = select(HUBS.c.site, HUBS.c.hub, TASK_TARGETS).select_from(_TARGETS)
    query = query.where(TASK_TARGETS.c.task == task_id, *seen_by(sees)).order_by(HUBS.c.site, HUBS.c.hub)
    if window.cursor is not None:
        query = query.where(tuple_(HUBS.c.site, HUBS.c.hub) > place_of(window.cursor, tuple[Text, Text]))
    rows = connection.execute(query.limit(window.limit + 1)).all()

    def target(row: AnyRow) -> models.TaskTarget:
        return models.TaskTarget(
            site=row.site,
            hub=row.hub,
            state=row.state,
            changed=row.changed_ms,
            progress=row.progress,
            message=row.message,
            output=content_of(row.output),
        )

    targets = page_of(rows, window.limit, target, lambda row: cursor_of(row.site, row.hub))
    return models.Task(**_task(row), states=states, targets=targets)


def task_keys(connection: Connection, sees: str | None, task_id: str) -> list[HubKey]:
    """Return the targets of a task that the asker may see."""
    query = select(HUBS.c.site, HUBS.c.hub).select_from(_TARGETS).where(TASK_TARGETS.c.task == task_id, *seen_by(sees))
    return [(row.site, row.hub) for row in connection.execute(query.order_by(HUBS.c.site, HUBS.c.hub))]


def tasks_open(connection: Connection, sees: str | None) -> int:
    """Return how many targets of tasks have not ended."""
    query = select(func.count()).select_from(_TARGETS).where(TASK_TARGETS.c.state.not_in(ENDED), *seen_by(sees))
    return connection.scalar(query) or 0


def _task(row: AnyRow) -> dict[str, Any]:
    return {
        "task": row.task,
        "action": row.action,
        "arguments": content_of(row.arguments) or {},
        "created": row.created_ms,
        "created_by": row.created_by,
        "expires": row.expires_ms,
        "skip_if_offline": bool(row.skip_if_offline),
    }


def _states(connection: Connection, sees: str | None, task_ids: Sequence[str]) -> dict[str, dict[str, int]]:
    query = (
        select(TASK_TARGETS.c.task, TASK_TARGETS.c.state, func.count().label("hubs"))
        .select_from(_TARGETS)
        .where(TASK_TARGETS.c.task.in_(task_ids), *seen_by(sees))
        .group_by(TASK_TARGETS.c.task, TASK_TARGETS.c.state)
    )
    states: dict[str, dict[str, int]] = {}
    for row in connection.execute(query):
        states.setdefault(row.task, {})[row.state] = row.hubs
    return states


# --- Settings --------------------------------------------------------------------------------------------------------


def document(
    connection: Connection, scope: str, name: str, shown: str, version: int | None = None
) -> models.SettingsDocument:
    """Return a version of a document, by default the newest; version 0 is empty. Raises UnknownError.

    `shown` is the name as the API writes it.
    """
    columns = SETTINGS_DOCUMENTS.c
    query = select(SETTINGS_DOCUMENTS).where(columns.scope == scope, columns.name == name)
    if version is not None:
        query = query.where(columns.version == version)
    row = connection.execute(query.order_by(columns.version.desc()).limit(1)).one_or_none()
    if row is None:
        if version:
            raise UnknownError(f"there is no version {version} of these settings")
        return models.SettingsDocument(scope=scope, name=shown, version=0, content={})  # type: ignore[arg-type]
    return models.SettingsDocument(
        scope=row.scope,
        name=shown,
        version=row.version,
        content=orjson.loads(row.content),
        created=row.created_ms,
        created_by=row.created_by,
    )


def history(connection: Connection, scope: str, name: str, window: Window) -> models.Page[models.SettingsVersion]:
    """Return the versions of a document, newest first."""
    columns = SETTINGS_DOCUMENTS.c
    query = select(columns.version, columns.created_ms, columns.created_by)
    query = query.where(columns.scope == scope, columns.name == name)
    if window.cursor is not None:
        query = query.where(columns.version < place_of(window.cursor, tuple[Number])[0])
    rows = connection.execute(query.order_by(columns.version.desc()).limit(window.limit + 1)).all()

    def entry(row: AnyRow) -> models.SettingsVersion:
        return models.SettingsVersion(version=row.version, created=row.created_ms, created_by=row.created_by)

    return page_of(rows, window.limit, entry, lambda row: cursor_of(row.version))


def differences(before: models.Content, after: models.Content) -> list[models.Difference]:
    """Return the keys that two contents set differently, in order."""
    old, new = (
        {f"{section}.{name}": value for section, keys in content.items() for name, value in keys.items()}
        for content in (before, after)
    )
    return [
        models.Difference(key=key, before=old.get(key), after=new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) or (key in old) != (key in new)
    ]
