"""The parameters that many resources share, with the patterns that they must match."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from fastapi import Depends, Path, Query

from broker.clock import unix_ms
from cloud.api_models import LABEL, Connection
from cloud.api_queries import Window
from cloud.hub_key import HubKey
from config import limits

_UNIX_MS_MAX = 2**53

PRINTED = "^[^\\x00-\\x1f\\x7f]*$"
"""A text without control characters: SQLite's LIKE would read on only to the first NUL."""

SiteName: TypeAlias = Annotated[str, Path(pattern=LABEL, examples=["berlin"])]
HubId: TypeAlias = Annotated[str, Path(pattern=LABEL, examples=["pc-1"])]
GroupName: TypeAlias = Annotated[str, Path(pattern=LABEL, examples=["laptops"])]
TaskNo: TypeAlias = Annotated[str, Path(pattern="^[0-9a-f]{16}$", examples=["4f0c2d9a11b3e857"])]

OfSite: TypeAlias = Annotated[str | None, Query(pattern=LABEL, description="only this site")]
OfHub: TypeAlias = Annotated[str | None, Query(alias="hub", pattern=LABEL, description="only this hub of the site")]
OfGroup: TypeAlias = Annotated[str | None, Query(pattern=LABEL, description="only the members of this group")]
OfConnection: TypeAlias = Annotated[Connection | None, Query(description="only with this connection")]
Text: TypeAlias = Annotated[
    str | None, Query(max_length=200, pattern=PRINTED, description="a part of it; the case of a-z does not matter")
]
Since: TypeAlias = Annotated[int, Query(ge=0, le=_UNIX_MS_MAX, description="Unix ms, inclusive")]
Until: TypeAlias = Annotated[int | None, Query(ge=0, le=_UNIX_MS_MAX, description="Unix ms, exclusive")]


async def _window(
    limit: Annotated[int, Query(ge=1, le=limits.API_PAGE_MAX, description="entries of a page")] = limits.API_PAGE,
    cursor: Annotated[str | None, Query(max_length=1000, description="`next` of the page before")] = None,
) -> Window:
    return Window(limit, cursor)


async def _key(site: SiteName, hub_id: Annotated[str, Path(alias="hub", pattern=LABEL, examples=["pc-1"])]) -> HubKey:
    return site, hub_id


PageOf: TypeAlias = Annotated[Window, Depends(_window)]
Key: TypeAlias = Annotated[HubKey, Depends(_key)]


def until_or_now(until_ms: int | None) -> int:
    """Return the end of a time range: a day ahead unless said, for hubs whose clocks run ahead."""
    return unix_ms() + 86_400_000 if until_ms is None else until_ms


def key_named(name: str) -> HubKey:
    """Return the key of SITE/HUB."""
    site, _, hub_id = name.partition("/")
    return site, hub_id
