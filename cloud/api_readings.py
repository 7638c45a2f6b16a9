"""What hubs measured and logged over HTTP: raw, summed up, and the audit of what is stored."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from broker.clock import unix_ms
from cloud import api_archive, api_queries
from cloud import api_models as models
from cloud.api_access import Reader, TheDesk
from cloud.api_archive import Span
from cloud.api_hubs import demand_site
from cloud.api_models import LABEL
from cloud.api_parameters import PRINTED, OfHub, OfSite, PageOf, Since, Text, Until, until_or_now
from cloud.api_queries import LineFilter

router = APIRouter()

_DAY_MS = 86_400_000

TheSite = Annotated[str, Query(pattern=LABEL, examples=["berlin"])]
TheHub = Annotated[str, Query(alias="hub", pattern=LABEL, examples=["pc-1"])]
OfSensor = Annotated[
    str | None,
    Query(pattern="^[A-Za-z0-9_.-]{1,128}$", description='a value ("cpu.percent"), or all of a sensor ("cpu")'),
]
SinceOrDay = Annotated[int | None, Query(ge=0, le=2**53, description="Unix ms, inclusive; by default a day ago")]


@router.get("/readings", tags=["readings"])
async def list_readings(
    access: Reader,
    desk: TheDesk,
    page: PageOf,
    site: TheSite,
    hub_id: TheHub,
    sensor: OfSensor = None,
    since: SinceOrDay = None,
    until: Until = None,
) -> models.Page[models.Reading]:
    """What a hub sent, outbox after outbox, message by message in order of time. A page may be short, even empty."""
    span = Span((site, hub_id), sensor, _since(since), until_or_now(until))
    return await desk.read(lambda database: api_archive.readings(database, access.site, span, page))


@router.get("/readings/sums", tags=["readings"])
async def list_sums(
    access: Reader,
    desk: TheDesk,
    page: PageOf,
    site: TheSite,
    hub_id: TheHub,
    sensor: Annotated[str, Query(pattern="^[A-Za-z0-9_.-]{1,128}$", examples=["cpu.percent"])],
    interval: Annotated[
        str, Query(pattern="^[1-9][0-9]{0,4}(min|h|d)$", description="5min or a multiple of it", examples=["1h"])
    ] = "5min",
    since: SinceOrDay = None,
    until: Until = None,
) -> models.Page[models.Sum]:
    """Count, minimum, mean and maximum of a value by interval (UTC), whole intervals only, oldest first."""
    length_ms = api_archive.interval_ms(interval)
    span = Span((site, hub_id), sensor, _since(since), until_or_now(until))
    return await desk.read(lambda database: api_archive.sums(database, access.site, span, length_ms, page))


@router.get("/storage", tags=["readings"])
async def list_stored(
    access: Reader, desk: TheDesk, page: PageOf, site: OfSite = None, hub_id: OfHub = None
) -> models.Page[models.Stored]:
    """For each outbox of each hub what was stored, what came twice, what is missing, and what the hub had to drop."""
    demand_site(site, hub_id)
    return await desk.read(lambda database: api_archive.storage(database, access.site, site, hub_id, page))


@router.get("/logs", tags=["logs"])
async def list_logs(
    access: Reader,
    desk: TheDesk,
    page: PageOf,
    site: TheSite,
    hub_id: TheHub,
    level: Annotated[Literal["debug", "info", "warning", "error"], Query(description="this level and above")] = "debug",
    event: Annotated[str | None, Query(max_length=256, pattern=PRINTED, description="exactly this event")] = None,
    text: Text = None,
    since: Since = 0,
    until: Until = None,
    after: Annotated[
        int | None, Query(ge=0, le=2**53, description="lines that arrived after the one of this `no`, oldest first")
    ] = None,
) -> models.Page[models.LogLine]:
    """A hub's log, newest first by its clock; `text` is searched in event and fields."""
    wanted = LineFilter(level, event, text, since, until, after)
    return await desk.read(lambda database: api_queries.logs(database, access.site, (site, hub_id), wanted, page))


@router.get("/logs/newest", tags=["logs"])
async def get_newest_line(access: Reader, desk: TheDesk, site: TheSite, hub_id: TheHub) -> models.Arrived:
    """The `no` of the line of a hub's log that arrived last: where to begin with `after`."""
    number = await desk.read(lambda database: api_queries.newest_line(database, access.site, (site, hub_id)))
    return models.Arrived(no=number)


def _since(since_ms: int | None) -> int:
    return max(0, unix_ms() - _DAY_MS) if since_ms is None else since_ms
