"""Lets nothing of the API run before its token is known, and nothing be answered before the audit log has it.

A right token always passes, whoever else has failed from its address: 256 random bits can't be guessed, and many people may
share an address. Wrong ones are let through to an answer at a bounded rate. /metrics needs a token of the whole fleet or
comes from this machine itself, not through a proxy.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Annotated, Any, Final

import orjson
from fastapi import Depends, HTTPException, Request
from sqlalchemy import Connection, insert
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from broker.clock import unix_ms
from broker.runner import monotonic_s
from cloud.desk import Desk, UnknownError
from cloud.fleet_schema import AUDIT
from cloud.hub_key import HubKey
from cloud.metrics import Metrics
from cloud.tokens import Access, Failures, Tokens, read_tokens, write_use
from cloud.tokens import Scope as TokenScope
from config import limits, log
from config.errors import StorageError

_log: Final = log.get(__name__)

NOBODY: Final = "-"
METRICS_PATH: Final = "/metrics"
OPENAPI_PATH: Final = "/api/v1/openapi.json"
_READING: Final = ("GET", "HEAD", "OPTIONS")
_PROXIED: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


@dataclass(slots=True)
class Trail:
    """What the audit log will say of a request; the endpoint fills in `target` and `detail`."""

    access: Access | None = None
    target: str = ""
    detail: dict[str, Any] = field(default_factory=dict)
    error: str = ""


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, *, desk: Desk, tokens: Tokens, metrics: Metrics):
        self._app: Final = app
        self._desk: Final = desk
        self._tokens: Final = tokens
        self._metrics: Final = metrics
        self._failures: Final = Failures()
        self._loaded_at = -math.inf

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Carry out one request (ASGI 3.0)."""
        if scope["type"] != "http":
            return
        request = _Watched(self._app, scope, receive, send)
        began_at = monotonic_s()
        refusal = await self._refusal(scope, request.trail)
        try:
            if refusal is not None:
                await request.answer(refusal, lambda: self._audit(scope, request))
            else:
                await request.run(lambda: self._audit(scope, request))
        finally:
            if request.status == 0:  # It failed, and ServerErrorMiddleware will say so.
                request.status = 500
                await self._audit(scope, request)
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.observe(scope["method"], route, request.status, monotonic_s() - began_at)

    # --- Who asks ---------------------------------------------------------------------------------------------------

    async def _refusal(self, scope: Scope, trail: Trail) -> JSONResponse | None:
        """Note who asks; return the answer if that is nobody who may."""
        path, headers = scope["path"], Headers(scope=scope)
        presented = _bearer(headers)
        if path == OPENAPI_PATH or (path == METRICS_PATH and presented is None and _is_local(scope, headers)):
            return None
        await self._load()
        access = self._tokens.find(presented) if presented is not None else None
        now_ms = unix_ms()
        problem = "this needs a token" if presented is None else "the token is unknown"
        if access is not None:
            found = access.problem(now_ms)
            if found is None:
                trail.access = access
                await self._note_use(access, now_ms)
                return None
            problem = found
        wait_s = self._failures.fail(address_of(scope) or NOBODY, monotonic_s())
        if wait_s is None:
            trail.error = problem
            return JSONResponse({"error": problem}, 401, {"WWW-Authenticate": "Bearer"})
        _log.debug("token_failures_limited", address=address_of(scope))
        seconds = str(math.ceil(wait_s))
        return JSONResponse(
            {"error": f"too many wrong tokens from this address: wait {seconds} s"}, 429, {"Retry-After": seconds}
        )

    async def _load(self) -> None:
        now = monotonic_s()
        if now - self._loaded_at < limits.API_TOKENS_RELOAD_S:
            return
        try:
            self._tokens.take(await self._desk.read(read_tokens))
            self._loaded_at = now
        except StorageError as exc:
            _log.debug("tokens_not_read", reason=exc.reason)  # Those known before go on counting.

    async def _note_use(self, access: Access, now_ms: int) -> None:
        if self._tokens.note_use(access, now_ms):
            try:
                await self._desk.write(lambda connection: write_use(connection, access, now_ms))
            except StorageError as exc:
                _log.debug("token_use_not_kept", reason=exc.reason)

    # --- What is kept of it -----------------------------------------------------------------------------------------

    async def _audit(self, scope: Scope, request: _Watched) -> None:
        """Write down changing requests of those who are known, and who was refused."""
        trail, status = request.trail, request.status
        known_change = trail.access is not None and scope["method"] not in _READING
        if not known_change and status not in (401, 403):
            return
        outcome = (
            "done" if status < 400 else f"{'refused' if status < 500 else 'failed'}: {status} {trail.error}".strip()
        )
        row = {
            "at_ms": unix_ms(),
            "who": trail.access.name if trail.access is not None else NOBODY,
            "address": address_of(scope),
            "action": getattr(scope.get("route"), "name", None) or scope["method"].lower()[:16],
            "target": _plain(trail.target or scope["path"]),
            "outcome": _plain(outcome),
            "detail": orjson.dumps(trail.detail).decode(),
        }
        try:
            await self._desk.write(lambda connection: _write(connection, row))
        except StorageError as exc:
            _log.error("audit_entry_lost", reason=exc.reason, who=row["who"], action=row["action"], outcome=outcome)


class _Watched:
    """One request on its way through: bounds its body, and lets the audit be written before its answer begins."""

    def __init__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send):
        self.trail: Final = Trail()
        self.status = 0
        self._app: Final = app
        self._scope: Final = scope
        self._receive: Final = receive
        self._send: Final = send
        self._received_bytes = 0
        scope.setdefault("state", {})["trail"] = self.trail

    async def run(self, before_answer: Callable[[], Awaitable[None]]) -> None:
        """Run the application."""

        async def receive() -> Message:
            message = await self._receive()
            self._received_bytes += len(message.get("body", b""))
            if self._received_bytes > limits.API_BODY_MAX_BYTES:
                raise HTTPException(413, f"the body is larger than {limits.API_BODY_MAX_BYTES} bytes")
            return message

        await self._app(self._scope, receive, self._answering(before_answer))

    async def answer(self, response: JSONResponse, before_answer: Callable[[], Awaitable[None]]) -> None:
        """Answer without the application."""
        await response(self._scope, self._receive, self._answering(before_answer))

    def _answering(self, before_answer: Callable[[], Awaitable[None]]) -> Send:
        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                await before_answer()
                headers = MutableHeaders(scope=message)
                headers.setdefault("Cache-Control", "no-store")
                headers["X-Content-Type-Options"] = "nosniff"
            await self._send(message)

        return send


def address_of(scope: Scope) -> str | None:
    """Return the address that a request comes from; what a header says of it does not count."""
    client = scope.get("client")
    return client[0] if client else None


def _is_local(scope: Scope, headers: Headers) -> bool:
    try:
        local = ip_address(address_of(scope) or "").is_loopback
    except ValueError:
        return False
    return local and not any(name in headers for name in _PROXIED)


def _bearer(headers: Headers) -> str | None:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" and token.strip() else None


def _write(connection: Connection, row: dict[str, Any]) -> None:
    connection.execute(insert(AUDIT).values(**row))


def _plain(text: str) -> str:
    return text[: limits.AUDIT_TEXT_MAX].encode("utf-8", "backslashreplace").decode()


# --- For the endpoints -----------------------------------------------------------------------------------------------


class Need:
    """A dependency: the token of the request, if it reaches as far as `scope`."""

    def __init__(self, scope: TokenScope, *, whole_fleet: bool = False):
        self._scope: Final[TokenScope] = scope
        self._whole_fleet: Final = whole_fleet

    async def __call__(self, request: Request) -> Access:
        """Return the token, or refuse the request."""
        access = trail_of(request).access
        assert access is not None
        if not access.may(self._scope):
            raise HTTPException(403, f"this needs a token of the scope {self._scope}, this one has {access.scope}")
        if self._whole_fleet and access.site is not None:
            raise HTTPException(403, f"this needs a token of the whole fleet, this one is of the site {access.site}")
        return access


def trail_of(request: Request) -> Trail:
    """Return what the audit log will say of a request."""
    trail: Trail = request.scope["state"]["trail"]
    return trail


async def desk_of(request: Request) -> Desk:
    """Return the service behind the API."""
    desk: Desk = request.app.state.desk
    return desk


def demand_seen(access: Access, keys: Iterable[HubKey]) -> None:
    """Raise UnknownError for a hub that the token may not know of."""
    for site, hub_id in keys:
        if not access.sees(site):
            raise UnknownError(f"there is no hub {site}/{hub_id}")


TheDesk = Annotated[Desk, Depends(desk_of)]
Reader = Annotated[Access, Depends(Need("read"))]
Operator = Annotated[Access, Depends(Need("operate"))]
Administrator = Annotated[Access, Depends(Need("admin"))]
FleetAdministrator = Annotated[Access, Depends(Need("admin", whole_fleet=True))]
