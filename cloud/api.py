"""The API of the cloud service, JSON over HTTP under /api/v1: reads the database, and asks the service to act.

Its OpenAPI document is at /api/v1/openapi.json; pages of documentation that would load assets from elsewhere are not served.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from cloud import api_admin, api_events, api_hubs, api_readings, api_settings, api_tasks
from cloud.api_access import OPENAPI_PATH, Gate, Trail
from cloud.api_events import Streams
from cloud.api_models import Problem
from cloud.desk import Desk, StaleVersionError, UnknownError
from cloud.metrics import Metrics
from cloud.tokens import Tokens
from config.errors import HublineError, RefusedError, SettingsError, StorageError
from config.settings import CloudSettings

PREFIX: Final = "/api/v1"

_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": Problem, "description": text}
    for status, text in (
        (400, "The body is not JSON."),
        (401, "There is no token, or it does not count (any more)."),
        (403, "The token does not reach that far."),
        (404, "There is no such thing, or not at the token's site."),
        (409, "It can't be done now."),
        (412, "The document has changed meanwhile; `current` is its version."),
        (413, "The body is too large."),
        (422, "Something in the request can't be; `key` says what."),
        (429, "Too many wrong tokens came from this address; Retry-After says how long to wait."),
        (503, "The database or the service can't answer now."),
    )
}


class _Application(FastAPI):
    """An application whose document says that everything needs a bearer token; made when somebody asks for it."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        document = super().openapi()
        document.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        return document


def create_app(desk: Desk, tokens: Tokens, settings: CloudSettings) -> FastAPI:
    """Return the application in front of a desk; `app.state.streams.close()` ends what would never end by itself."""
    metrics, streams = Metrics(), Streams()
    app = _Application(
        title="Hubline",
        version="1",
        summary=f"The fleet {settings.identity.fleet}: its hubs, what they measured, and what is asked of them.",
        openapi_url=OPENAPI_PATH,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=_PROBLEMS,
        generate_unique_id_function=_operation,
    )
    app.state.desk, app.state.tokens, app.state.metrics, app.state.streams = desk, tokens, metrics, streams
    everything = APIRouter(prefix=PREFIX)
    for module in (api_hubs, api_readings, api_tasks, api_settings, api_admin, api_events):
        everything.include_router(module.router)
    app.include_router(everything)
    app.include_router(api_admin.metrics_router)
    app.add_middleware(Gate, desk=desk, tokens=tokens, metrics=metrics)
    app.add_exception_handler(HublineError, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_fault)
    return app


def _operation(route: APIRoute) -> str:
    return route.name


# --- What goes wrong -------------------------------------------------------------------------------------------------


async def _on_problem(request: Request, exc: Exception) -> JSONResponse:
    """Answer an error of ours."""
    match exc:
        case UnknownError():
            return _answer(request, 404, str(exc))
        case StaleVersionError(current=current):
            return _answer(request, 412, str(exc), "version", current=current)
        case SettingsError(problem=problem, key=key, value=value):
            return _answer(request, 422, str(SettingsError(problem, key=key, value=value)), key)
        case RefusedError(reason=reason):
            return _answer(request, 409, reason)
        case StorageError(reason=reason):
            answer = _answer(request, 503, f"the database does not answer: {reason}")
            answer.headers["Retry-After"] = "5"
            return answer
        case _:
            return _answer(request, 500, str(exc))


async def _on_invalid(request: Request, exc: Exception) -> JSONResponse:
    """Answer a request that does not fit the document: the first thing that is wrong."""
    assert isinstance(exc, RequestValidationError)
    first = exc.errors()[0]
    place, *path = first["loc"]
    if first["type"] == "json_invalid":
        return _answer(request, 422, "the body is not JSON", "body")
    key = ".".join(map(str, path)) or str(place)
    return _answer(request, 422, f"{key}: {first['msg']}", key)


async def _on_http(request: Request, exc: Exception) -> JSONResponse:
    """Answer what the framework refuses."""
    assert isinstance(exc, HTTPException)
    answer = _answer(request, exc.status_code, str(exc.detail))
    answer.headers.update(exc.headers or {})
    return answer


async def _on_fault(request: Request, exc: Exception) -> JSONResponse:
    """Answer a fault of ours; it goes on to the log."""
    return _answer(request, 500, "the service has failed to answer this: its log says more")


def _answer(request: Request, status: int, error: str, key: str | None = None, **more: object) -> JSONResponse:
    trail = request.scope.get("state", {}).get("trail")
    if isinstance(trail, Trail):
        trail.error = error
    content = {"error": " ".join(error.split()), **({} if key is None else {"key": key}), **more}
    return JSONResponse(content, status)
