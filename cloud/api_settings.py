"""Settings and groups over HTTP: what is desired of whom, in which version, and what came of it.

A document is named by scope and name: fleet/-, site/SITE, group/GROUP, hub/SITE:HUB.
"""

from __future__ import annotations

import json
import re
from typing import Annotated

import orjson
from fastapi import APIRouter, Header, Path, Query, Request, Response
from sqlalchemy import Connection

from cloud import api_models as models
from cloud import api_orders, api_queries
from cloud.api_access import Operator, Reader, TheDesk, trail_of
from cloud.api_models import LABEL
from cloud.api_parameters import GroupName, Key, PageOf
from cloud.desk import UnknownError
from cloud.tokens import Access
from config.errors import SettingsError

router = APIRouter(tags=["settings"])

_INNER = LABEL[1:-1]
ScopeName = Annotated[models.SettingsScope, Path(examples=["site"])]
DocumentName = Annotated[
    str,
    Path(pattern=f"^(-|{_INNER}|{_INNER}:{_INNER})$", examples=["berlin"], description="-, SITE, GROUP or SITE:HUB"),
]


@router.get("/settings/{scope}/{name}")
async def get_settings(
    access: Reader,
    desk: TheDesk,
    response: Response,
    scope: ScopeName,
    name: DocumentName,
    version: Annotated[int | None, Query(ge=0, le=2**63 - 1)] = None,
) -> models.SettingsDocument:
    """A document of settings, by default its newest version (0 and empty if there is none); its ETag is the version."""
    stored = _stored(access, scope, name)
    found = await desk.read(lambda database: _document(database, access, scope, stored, name, version))
    response.headers["ETag"] = f'"{found.version}"'
    return found


@router.put("/settings/{scope}/{name}")
async def put_settings(
    access: Operator,
    desk: TheDesk,
    request: Request,
    response: Response,
    scope: ScopeName,
    name: DocumentName,
    wanted: models.PutSettings,
    if_match: Annotated[str | None, Header(max_length=100, description="the version that is replaced")] = None,
    dry_run: Annotated[bool, Query(description="only check it")] = False,
) -> models.SettingsKept:
    """Replace a document as a whole. What can't hold is refused with its key; what is unwise comes back as warnings."""
    trail, stored = trail_of(request), _stored(access, scope, name)
    trail.target = f"settings {scope}/{name}"
    expected = wanted.expected_version if if_match is None else _version(if_match)
    demand_plain(wanted.content)
    before = await desk.read(lambda database: _document(database, access, scope, stored, name, None))
    changes = api_orders.differences(before.content, wanted.content)
    if dry_run:
        trail.detail = {"dry_run": True}
        warnings = await desk.check_settings(scope, stored, wanted.content)
        return models.SettingsKept(version=before.version, warnings=warnings, changes=changes, kept=False)
    version, warnings = await desk.put_settings(
        scope, stored, wanted.content, expected_version=expected, by=access.name
    )
    trail.detail = {"version": version}
    response.headers["ETag"] = f'"{version}"'
    return models.SettingsKept(version=version, warnings=warnings, changes=changes, kept=True)


@router.get("/settings/{scope}/{name}/history")
async def list_versions(
    access: Reader, desk: TheDesk, page: PageOf, scope: ScopeName, name: DocumentName
) -> models.Page[models.SettingsVersion]:
    """The versions of a document, newest first."""
    stored = _stored(access, scope, name)
    return await desk.read(lambda database: api_orders.history(database, scope, stored, page))


@router.get("/settings/{scope}/{name}/diff")
async def get_difference(
    access: Reader,
    desk: TheDesk,
    scope: ScopeName,
    name: DocumentName,
    before: Annotated[int, Query(ge=0, le=2**63 - 1, description="a version")],
    after: Annotated[int | None, Query(ge=0, le=2**63 - 1, description="a version, by default the newest")] = None,
) -> list[models.Difference]:
    """What two versions of a document set differently, by key."""
    stored = _stored(access, scope, name)

    def work(database: Connection) -> list[models.Difference]:
        old = api_orders.document(database, scope, stored, name, before)
        new = api_orders.document(database, scope, stored, name, after)
        return api_orders.differences(old.content, new.content)

    return await desk.read(work)


@router.get("/hubs/{site}/{hub}/settings")
async def get_hub_settings(access: Reader, desk: TheDesk, key: Key) -> models.HubSettings:
    """What all documents together want of a hub, each value with its origin; and what the hub reports of it."""

    def work(database: Connection) -> models.SettingsState | None:
        return api_queries.settings_state(database, api_queries.hub_no(database, access.site, key))

    state = await desk.read(work)
    wanted = await desk.effective_settings(key)
    effective = [
        models.EffectiveSetting(key=f"{section}.{name}", value=setting.value, origin=setting.origin)
        for section, settings in sorted(wanted.items())
        for name, setting in sorted(settings.items())
    ]
    return models.HubSettings(state=state, effective=effective)


# --- Groups ----------------------------------------------------------------------------------------------------------


@router.get("/groups", tags=["groups"])
async def list_groups(access: Reader, desk: TheDesk, page: PageOf) -> models.Page[models.Group]:
    """Groups that have members, by name."""
    return await desk.read(lambda database: api_queries.groups(database, access.site, page))


@router.get("/groups/{group}", tags=["groups"])
async def list_members(access: Reader, desk: TheDesk, page: PageOf, group: GroupName) -> models.Page[models.Member]:
    """The hubs of a group; a group that nobody knows has none."""
    return await desk.read(lambda database: api_queries.members(database, access.site, group, page))


@router.put("/groups/{group}/members/{site}/{hub}", tags=["groups"])
async def add_member(access: Operator, desk: TheDesk, request: Request, group: GroupName, key: Key) -> models.Done:
    """Take a hub into a group; the group's settings are its own from now on."""
    await _set_member(access, desk, request, group, key, member=True)
    return models.Done()


@router.delete("/groups/{group}/members/{site}/{hub}", tags=["groups"])
async def remove_member(access: Operator, desk: TheDesk, request: Request, group: GroupName, key: Key) -> models.Done:
    """Take a hub out of a group."""
    await _set_member(access, desk, request, group, key, member=False)
    return models.Done()


async def _set_member(access: Access, desk: TheDesk, request: Request, group: str, key: Key, *, member: bool) -> None:
    trail_of(request).target = f"group {group}: {key[0]}/{key[1]}"
    await desk.read(lambda database: api_queries.hub_no(database, access.site, key))
    await desk.set_group(group, key, member=member, by=access.name)


# --- Names and versions ----------------------------------------------------------------------------------------------


def _stored(access: Access, scope: str, name: str) -> str:
    """Return the name of a document as it is stored. Raises SettingsError, or UnknownError if it is not the token's."""
    site, colon, hub_id = name.partition(":")
    right = {
        "fleet": name == "-",
        "hub": colon != "",
        "site": name != "-" and not colon,
        "group": name != "-" and not colon,
    }
    if not right[scope]:
        form = {"fleet": '"-"', "site": "SITE", "group": "GROUP", "hub": "SITE:HUB"}[scope]
        raise SettingsError(f"must be {form} for the scope {scope}", key="name", value=name)
    if not access.sees(site if scope in ("site", "hub") else None):
        raise UnknownError(f"there are no settings {scope}/{name}")
    return {"fleet": "", "hub": f"{site}/{hub_id}"}.get(scope, name)


def _document(
    database: Connection, access: Access, scope: str, stored: str, name: str, version: int | None
) -> models.SettingsDocument:
    if scope == "hub":  # A hub that does not exist has no settings; sites and groups may get theirs before their hubs.
        site, _, hub_id = name.partition(":")
        api_queries.hub_no(database, access.site, (site, hub_id))
    return api_orders.document(database, scope, stored, name, version)


def _version(if_match: str) -> int:
    found = re.fullmatch('(?:W/)?"?([0-9]{1,18})"?', if_match.strip())
    if not found:
        raise SettingsError('must be a version like "3"', key="If-Match")
    return int(found[1])


def demand_plain(content: models.Content) -> None:
    """Raise SettingsError for what Python's JSON reads and JSON can't say: NaN, half a character, integers of any size."""
    for section, keys in content.items():
        for name, value in keys.items():
            try:
                json.dumps(value, allow_nan=False)
                orjson.dumps({section: {name: value}})
            except (ValueError, TypeError) as exc:  # The latter is orjson's.
                key = f"{section}.{name}".encode("utf-8", "backslashreplace").decode()
                raise SettingsError(
                    "can't be said in JSON: numbers must be finite and fit into 64 bits", key=key
                ) from exc
