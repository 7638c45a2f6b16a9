"""Changes over HTTP as they happen: server-sent events (HTML Standard, 9.2), one stream per listener.

The first event is `hello`: from then on nothing is missed. After `reload` something was, and all must be read anew. A comment
every API_HEARTBEAT_S shows that the stream lives; when its token ends, so does the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final, Literal

import orjson
from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import StreamingResponse

from broker.clock import unix_ms
from cloud.api_access import Reader, TheDesk
from cloud.desk import Change, Desk, Listener
from cloud.tokens import Access, Tokens
from config import limits

router = APIRouter()

Kind = Literal["presence", "forgotten", "task", "settings"]

_EXAMPLE: Final = (
    'event: presence\ndata: {"at": 1763798400000, "key": "berlin/pc-1", "body": {"connection": "offline"}}\n\n'
)
_SAID: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}, "example": _EXAMPLE}}}
}


class Streams:
    """The open streams of one application, so that they can be ended when the service stops."""

    def __init__(self) -> None:
        self._listeners: Final[set[Listener]] = set()
        self._closed = False

    @property
    def open(self) -> int:
        """Return how many there are."""
        return len(self._listeners)

    @property
    def full(self) -> bool:
        """Tell whether no further one is taken."""
        return self._closed or self.open >= limits.API_STREAMS_MAX

    def add(self, listener: Listener) -> None:
        """Take in a stream that has begun."""
        self._listeners.add(listener)
        if self._closed:
            listener.close()

    def end(self, listener: Listener) -> None:
        """Close a stream."""
        self._listeners.discard(listener)
        listener.close()

    def close(self) -> None:
        """End all of them, and take no more."""
        self._closed = True
        for listener in list(self._listeners):
            self.end(listener)


@router.get("/events", tags=["service"], response_class=StreamingResponse, responses=_SAID)
async def stream_events(
    access: Reader,
    desk: TheDesk,
    request: Request,
    kinds: Annotated[list[Kind] | None, Query(alias="kind", max_length=4, description="only these")] = None,
) -> StreamingResponse:
    """Changes of presence, tasks and settings as they happen, as server-sent events."""
    streams: Streams = request.app.state.streams
    if streams.full:
        raise HTTPException(503, "there are too many listeners: try again later", {"Retry-After": "5"})
    wanted = None if kinds is None else frozenset(kinds)
    content = _events(desk, streams, request.app.state.tokens, access, wanted)
    return StreamingResponse(content, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def _events(
    desk: Desk, streams: Streams, tokens: Tokens, access: Access, kinds: frozenset[str] | None
) -> AsyncIterator[bytes]:
    listener = desk.changes()
    streams.add(listener)
    coming: asyncio.Task[Change | None] | None = None
    try:
        yield _event(Change("reload", "", {}), "hello")
        while True:
            if coming is None:
                coming = asyncio.ensure_future(_next(listener))
            await asyncio.wait((coming,), timeout=limits.API_HEARTBEAT_S)
            if not tokens.still_counts(access, unix_ms()):
                return
            if not coming.done():
                yield b": still here\n\n"
                continue
            change = coming.result()
            coming = None
            if change is None:
                return
            seen = change.kind == "reload" or access.sees(change.site)
            if seen and (kinds is None or change.kind in (*kinds, "reload")):
                yield _event(change, change.kind)
    finally:
        if coming is not None:
            coming.cancel()
        streams.end(listener)


async def _next(listener: Listener) -> Change | None:
    """Return the next change, or None at the end: StopAsyncIteration can't leave a task."""
    return await anext(listener, None)


def _event(change: Change, name: str) -> bytes:
    said = {"at": unix_ms(), "key": change.key, "body": change.body}
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(said))
