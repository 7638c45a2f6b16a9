"""The administrator's part of the API: tokens, the audit log, and how the service is."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Query, Request, Response
from sqlalchemy import Connection

from broker.clock import unix_ms
from cloud import api_models as models
from cloud import api_orders, api_queries
from cloud.api_access import METRICS_PATH, FleetAdministrator, Reader, TheDesk, trail_of
from cloud.api_models import LABEL
from cloud.api_parameters import PRINTED, PageOf, Since, Until
from cloud.api_queries import AuditFilter
from cloud.desk import UnknownError
from cloud.metrics import CONTENT_TYPE, Metrics, Snapshot
from cloud.tokens import Access, Tokens, add_token, read_tokens, revoke_token
from config.errors import RefusedError

router = APIRouter()
metrics_router = APIRouter()

_DAY_MS = 86_400_000
_OF_A_SITE = ("role", "cloud", "fleet", "broker", "storage", "ts")
"""What a token of one site gets to know of the service."""


@router.get("/status", tags=["service"])
async def get_status(access: Reader, desk: TheDesk) -> models.Status:
    """How the service is, and how many hubs are in which state."""

    def work(database: Connection) -> tuple[dict[str, int], int]:
        return api_queries.hub_counts(database, access.site), api_orders.tasks_open(database, access.site)

    hubs, tasks_open = await desk.read(work)
    service = {key: value for key, value in desk.status().items() if access.site is None or key in _OF_A_SITE}
    return models.Status(hubs=hubs, tasks_open=tasks_open, service=service)


@router.get("/audit", tags=["administration"])
async def list_audit(
    access: FleetAdministrator,
    desk: TheDesk,
    page: PageOf,
    who: Annotated[str | None, Query(max_length=63, pattern=PRINTED, description="the name of a token")] = None,
    action: Annotated[str | None, Query(max_length=63, pattern=PRINTED, description='like "create_task"')] = None,
    since: Since = 0,
    until: Until = None,
) -> models.Page[models.Audited]:
    """Every request that changed something or was refused, newest first."""
    wanted = AuditFilter(who, action, since, until)
    return await desk.read(lambda database: api_queries.audit(database, wanted, page))


# --- Tokens ----------------------------------------------------------------------------------------------------------


@router.get("/tokens", tags=["administration"])
async def list_tokens(access: FleetAdministrator, desk: TheDesk, request: Request) -> models.Page[models.TokenSummary]:
    """All tokens, also those that have ended, by name."""
    tokens = await _reloaded(request, desk)
    return models.Page(items=[_summary(entry) for entry in tokens.listed()])


@router.post("/tokens", tags=["administration"], status_code=201)
async def create_token(
    access: FleetAdministrator, desk: TheDesk, wanted: models.NewToken, request: Request
) -> models.TokenMade:
    """Make a token. Its text is in the answer and nowhere else."""
    trail = trail_of(request)
    trail.target, trail.detail = f"token {wanted.name}", {"scope": wanted.scope, "site": wanted.site}
    tokens, now_ms = await _reloaded(request, desk), unix_ms()
    ends_ms = now_ms + wanted.expires_days * _DAY_MS
    taken = [entry.name for entry in tokens.listed()]
    text = await desk.write(
        lambda database: add_token(
            database, taken, wanted.name, wanted.scope, wanted.site, now_ms=now_ms, ends_ms=ends_ms
        )
    )
    await _reloaded(request, desk)
    return models.TokenMade(name=wanted.name, token=text, expires=ends_ms)


@router.delete("/tokens/{token}", tags=["administration"])
async def revoke(
    access: FleetAdministrator,
    desk: TheDesk,
    request: Request,
    name: Annotated[str, Path(alias="token", pattern=LABEL, description="its name", examples=["dashboard"])],
) -> models.Done:
    """End a token from now on. The one that asks can't end itself, so that one always remains."""
    trail_of(request).target = f"token {name}"
    tokens = await _reloaded(request, desk)
    ended = next((entry for entry in tokens.listed() if entry.name == name), None)
    if ended is None:
        raise UnknownError(f"there is no token {name}")
    if ended.sha256 == access.sha256:
        raise RefusedError("the API", "this is the token that you use: revoke it with another one")
    await desk.write(lambda database: revoke_token(database, ended, unix_ms()))
    await _reloaded(request, desk)
    return models.Done()


async def _reloaded(request: Request, desk: TheDesk) -> Tokens:
    tokens: Tokens = request.app.state.tokens
    tokens.take(await desk.read(read_tokens))
    return tokens


def _summary(entry: Access) -> models.TokenSummary:
    return models.TokenSummary(
        name=entry.name,
        scope=entry.scope,
        site=entry.site,
        created=entry.created_ms,
        expires=entry.expires_ms,
        revoked=entry.revoked_ms,
        used=entry.used_ms,
    )


# --- Metrics ---------------------------------------------------------------------------------------------------------


@metrics_router.get(
    METRICS_PATH,
    tags=["service"],
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    openapi_extra={"security": [{}, {"token": []}]},
)
async def get_metrics(desk: TheDesk, request: Request) -> Response:
    """Sums for Prometheus: with a token of the whole fleet, or from the service's own machine."""
    access = trail_of(request).access
    if access is not None and access.site is not None:
        raise HTTPException(403, f"this needs a token of the whole fleet, this one is of the site {access.site}")
    metrics: Metrics = request.app.state.metrics

    def work(database: Connection) -> tuple[dict[str, int], int]:
        return api_queries.hub_counts(database, None), api_orders.tasks_open(database, None)

    hubs, tasks_open = await desk.read(work)
    snapshot = Snapshot(hubs, tasks_open, request.app.state.streams.open, desk.status())
    return Response(metrics.text(snapshot), media_type=CONTENT_TYPE)
