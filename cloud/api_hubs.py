"""Hubs over HTTP: who there is and how, what they last measured; pause, resume, forget."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec
from fastapi import APIRouter, Query, Request
from sqlalchemy import Connection

from cloud import api_archive, api_queries
from cloud import api_models as models
from cloud.api_access import Administrator, Operator, Reader, TheDesk, trail_of
from cloud.api_parameters import Key, OfConnection, OfGroup, OfHub, OfSite, PageOf, Since, Text, Until
from cloud.api_queries import HubFilter, LogFilter, Window
from cloud.desk import Desk
from cloud.hub_key import HubKey
from config import limits
from config.errors import SettingsError

H = TypeVar("H", bound=models.HubSummary)

router = APIRouter()


@router.get("/hubs", tags=["hubs"])
async def list_hubs(
    access: Reader,
    desk: TheDesk,
    page: PageOf,
    site: OfSite = None,
    group: OfGroup = None,
    connection: OfConnection = None,
    hidden: Annotated[Literal["no", "yes", "all"], Query(description="inactive hubs")] = "no",
    text: Text = None,
) -> models.Page[models.HubSummary]:
    """Hubs by site and name; `text` is a part of SITE/HUB."""
    wanted = HubFilter(site, group, connection, hidden, text)
    found = await desk.read(lambda database: api_queries.hubs(database, access.site, wanted, page))
    return models.Page(items=[_live(desk, entry) for entry in found.items], next=found.next)


@router.get("/hubs/{site}/{hub}", tags=["hubs"])
async def get_hub(access: Reader, desk: TheDesk, key: Key) -> models.Hub:
    """Everything about a hub."""

    def work(database: Connection) -> tuple[models.Hub, models.Page[models.NewestValue]]:
        found = api_queries.hub(database, access.site, key)
        return found, api_archive.values(database, access.site, key, Window(limits.API_PAGE_MAX))

    found, values = await desk.read(work)
    return _live(desk, found).model_copy(update={"values": values.items})


@router.get("/hubs/{site}/{hub}/values", tags=["readings"])
async def list_values(access: Reader, desk: TheDesk, key: Key, page: PageOf) -> models.Page[models.NewestValue]:
    """The newest value of each sensor of a hub, by name."""
    return await desk.read(lambda database: api_archive.values(database, access.site, key, page))


@router.get("/connection-log", tags=["hubs"])
async def list_connections(
    access: Reader,
    desk: TheDesk,
    page: PageOf,
    site: OfSite = None,
    hub_id: OfHub = None,
    connection: OfConnection = None,
    since: Since = 0,
    until: Until = None,
) -> models.Page[models.Connected]:
    """How hubs came and went, and why, newest first."""
    demand_site(site, hub_id)
    wanted = LogFilter(site, hub_id, connection, since, until)
    return await desk.read(lambda database: api_queries.connection_log(database, access.site, wanted, page))


@router.post("/hubs/{site}/{hub}/pause", tags=["hubs"])
async def pause_hub(access: Operator, desk: TheDesk, key: Key, request: Request) -> models.Done:
    """Expect nothing of a hub and start nothing on it, until it is resumed."""
    await _demand(desk, access.site, key, request)
    await desk.pause(key, by=access.name)
    return models.Done()


@router.post("/hubs/{site}/{hub}/resume", tags=["hubs"])
async def resume_hub(access: Operator, desk: TheDesk, key: Key, request: Request) -> models.Done:
    """End a pause."""
    await _demand(desk, access.site, key, request)
    await desk.resume(key, by=access.name)
    return models.Done()


@router.delete("/hubs/{site}/{hub}", tags=["hubs"])
async def forget_hub(access: Administrator, desk: TheDesk, key: Key, request: Request) -> models.Done:
    """Delete a hub and everything that is stored of it, for ever."""
    await _demand(desk, access.site, key, request)
    await desk.forget(key, by=access.name)
    return models.Done()


def demand_site(site: str | None, hub_id: str | None) -> None:
    """Raise SettingsError for a hub without its site: hubs of two sites may have one name."""
    if hub_id is not None and site is None:
        raise SettingsError("name its site too", key="hub")


async def _demand(desk: Desk, sees: str | None, key: HubKey, request: Request) -> None:
    trail_of(request).target = f"{key[0]}/{key[1]}"
    await desk.read(lambda database: api_queries.hub_no(database, sees, key))


def _live(desk: Desk, entry: H) -> H:
    """Return a hub with its status as it is published, which may be newer than the database."""
    presence = desk.presence((entry.site, entry.hub))
    if presence is None:
        return entry
    shown = models.HubPresence.model_validate(msgspec.to_builtins(presence))
    return entry.model_copy(update={"presence": shown})
