"""Tasks over HTTP: start an action on hubs, see how it stands on each, cancel it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Connection

from cloud import api_models as models
from cloud import api_orders, api_queries
from cloud.api_access import Operator, Reader, TheDesk, trail_of
from cloud.api_hubs import demand_site
from cloud.api_orders import TaskFilter
from cloud.api_parameters import OfHub, OfSite, PageOf, TaskNo, key_named
from cloud.api_queries import HubFilter
from cloud.desk import UnknownError
from cloud.hub_key import HubKey
from config.errors import SettingsError

router = APIRouter(prefix="/tasks", tags=["tasks"])


@router.post("", status_code=201)
async def create_task(
    access: Operator, desk: TheDesk, wanted: models.NewTask, request: Request, response: Response
) -> models.TaskMade:
    """Queue an action; hubs that are away get it when they come, until it expires."""
    trail = trail_of(request)
    trail.detail = {"action": wanted.action, "targets": wanted.targets.model_dump(exclude_defaults=True)}
    keys = await desk.read(lambda database: _targets(database, access.site, wanted.targets))
    if not keys:
        raise SettingsError("no hub is meant by it", key="targets")
    task = await desk.create_task(
        keys,
        wanted.action,
        wanted.arguments,
        expires_s=wanted.expires_s,
        skip_if_offline=wanted.skip_if_offline,
        by=access.name,
    )
    trail.target = f"task {task}"
    trail.detail["hubs"] = len(keys)
    response.headers["Location"] = f"/api/v1/tasks/{task}"
    return models.TaskMade(task=task, targets=len(keys))


@router.get("")
async def list_tasks(
    access: Reader,
    desk: TheDesk,
    page: PageOf,
    site: OfSite = None,
    hub_id: OfHub = None,
    action: Annotated[models.Action | None, Query()] = None,
    state: Annotated[models.TargetState | None, Query(description="with a target in this state")] = None,
    open_only: Annotated[bool, Query(alias="open", description="with a target that has not ended")] = False,
) -> models.Page[models.TaskSummary]:
    """Tasks, newest first, with how many of their targets are in which state."""
    demand_site(site, hub_id)
    wanted = TaskFilter(action, state, site, None if site is None or hub_id is None else (site, hub_id), open_only)
    return await desk.read(lambda database: api_orders.tasks(database, access.site, wanted, page))


@router.get("/{task}")
async def get_task(access: Reader, desk: TheDesk, task: TaskNo, page: PageOf) -> models.Task:
    """A task with its targets by site and name, a page of them."""
    return await desk.read(lambda database: api_orders.task(database, access.site, task, page))


@router.post("/{task}/cancel")
async def cancel_task(
    access: Operator, desk: TheDesk, task: TaskNo, request: Request, wanted: models.Cancel | None = None
) -> models.Done:
    """Cancel a task on one hub or on all, as far as it has not ended there."""
    name = None if wanted is None else wanted.hub
    trail = trail_of(request)
    trail.target, trail.detail = f"task {task}", {} if name is None else {"hub": name}
    keys = await desk.read(lambda database: api_orders.task_keys(database, access.site, task))
    if not keys:
        raise UnknownError(f"there is no task {task}")
    if name is not None:
        if key_named(name) not in keys:
            raise UnknownError(f"task {task} is not for a hub {name}")
        await desk.cancel_task(task, key_named(name), by=access.name)
    elif access.site is None:
        await desk.cancel_task(task, None, by=access.name)
    else:
        for key in keys:  # Those of other sites go on.
            await desk.cancel_task(task, key, by=access.name)
    return models.Done()


def _targets(database: Connection, sees: str | None, targets: models.Targets) -> list[HubKey]:
    """Return the hubs that are meant, each once. Raises UnknownError for one that there is not."""
    found: dict[HubKey, None] = {}
    for name in targets.hubs:
        api_queries.hub_no(database, sees, key_named(name))
        found[key_named(name)] = None
    filters = [HubFilter(site=site) for site in targets.sites] + [HubFilter(group=group) for group in targets.groups]
    for wanted in [*filters, *([HubFilter()] if targets.all else [])]:
        found.update(dict.fromkeys(api_queries.keys(database, sees, wanted)))
    return list(found)
