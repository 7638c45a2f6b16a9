"""The stream in which what hubs send waits on every node of the cluster, until an ingest worker has committed it.

A work queue: a message goes when a worker acknowledges it. When the stream is full it takes nothing in instead of dropping
what is old: nothing is acknowledged then, so the hubs keep it and send it again, oldest first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
import orjson
from msgspec import Struct

from broker.engines.nats_client import connected
from broker.engines.nats_rights import DELIVERIES_STREAM, RETAINED_STREAM, STREAM, subject_of, topic_of
from broker.topics import hub_filter
from config import limits
from config.errors import TransportError
from config.settings import Identity

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext

__all__ = [
    "BOUNDS",
    "CONSUMER",
    "STREAM",
    "StreamState",
    "bound_others",
    "connect",
    "ensure_stream",
    "pull",
    "state_of",
    "subject_of",
    "topic_of",
]

CONSUMER: Final = "ingest"
"""The consumer that all workers share."""


BOUNDS: Final[Mapping[str, Mapping[str, object]]] = {
    DELIVERIES_STREAM: {
        "max_bytes": limits.NATS_DELIVERIES_MAX_BYTES,
        "max_age": int(limits.NATS_DELIVERIES_MAX_AGE_S * 1e9),
        "discard": "old",
    },
    RETAINED_STREAM: {"max_bytes": limits.NATS_RETAINED_MAX_BYTES, "discard": "new"},
}
"""In the words of JetStream's API. A subscriber with QoS 1 that is slow or gone loses its oldest messages; when too much is
retained, no further topic is, and those that are stay up to date."""


class _Refusal(Struct, frozen=True):
    description: str = "refused"


class _Answer(Struct, frozen=True):
    error: _Refusal | None = None


class _State(Struct, frozen=True):
    messages: int = 0
    bytes: int = 0
    first_ts: datetime | None = None


class _Limits(Struct, frozen=True):
    max_bytes: int = 0


class _Told(Struct, frozen=True):
    """What the stream's leader says of it; `ts` is its own time."""

    state: _State
    config: _Limits
    ts: datetime | None = None


@dataclass(frozen=True, slots=True)
class StreamState:
    """How full the stream is. `oldest_s` is how long its first message has waited, by the clock of the node that leads it."""

    messages: int
    size_bytes: int
    size_max_bytes: int
    oldest_s: float


async def connect(
    endpoints: Sequence[str],
    identity: Identity,
    *,
    on_lost: Callable[[], Awaitable[None]] | None = None,
    on_back: Callable[[], Awaitable[None]] | None = None,
) -> Client:
    """Connect the cloud service to a node, and to another when that is lost, for as long as the client is not closed.

    Look at `is_closed` when something fails: a node that refuses us closes it. Raises TransportError, RefusedError and
    SettingsError (nats-py is not installed).
    """
    return await connected(list(endpoints), identity, on_lost=on_lost, on_back=on_back, again=True)


async def ensure_stream(js: JetStreamContext, fleet: str, replicas: int = 1) -> None:
    """Make the stream and the workers' consumer, or bring them up to date. Any number of workers may do so at once.

    Raises TransportError while the cluster can't: too few nodes, or no leader yet.
    """
    from nats.errors import Error
    from nats.js import api
    from nats.js.errors import NotFoundError

    stream = api.StreamConfig(
        name=STREAM,
        subjects=[subject_of(hub_filter(fleet, "+", "+", "up"))],
        retention=api.RetentionPolicy.WORK_QUEUE,
        discard=api.DiscardPolicy.NEW,
        storage=api.StorageType.FILE,
        num_replicas=replicas,
        max_bytes=limits.NATS_STREAM_MAX_BYTES,
        max_age=limits.NATS_STREAM_MAX_AGE_S,
        max_msg_size=limits.PACKET_MAX_BYTES,
    )
    consumer = api.ConsumerConfig(
        durable_name=CONSUMER,
        ack_policy=api.AckPolicy.EXPLICIT,
        ack_wait=limits.NATS_STREAM_ACK_WAIT_S,
        max_deliver=-1,
        max_ack_pending=limits.NATS_STREAM_PENDING_MAX,
        num_replicas=replicas,
    )
    try:
        try:
            await js.stream_info(STREAM)
        except NotFoundError:
            await js.add_stream(stream)
        else:
            await js.update_stream(stream)
        await js.add_consumer(STREAM, consumer)
    except (Error, TimeoutError) as exc:
        raise TransportError(f"stream {STREAM}", str(exc) or type(exc).__name__) from exc


async def bound_others(client: Client, bounds: Mapping[str, Mapping[str, object]] = BOUNDS) -> None:
    """Bound the streams that nats-server makes without bounds: what only one member has caused would fill the nodes' disks.

    They come with the first MQTT client; to be called now and then. Raises TransportError, also before they are there.
    """
    for stream, wanted in bounds.items():
        told: dict[str, Any] = orjson.loads(await _asked(client, "INFO", stream))
        was = told["config"]  # As it was told, also what we don't know: an update says all of it.
        if not wanted.items() <= was.items():
            await _asked(client, "UPDATE", stream, orjson.dumps({**was, **wanted}))


async def _asked(client: Client, what: str, stream: str, request: bytes = b"") -> bytes:
    """Return the answer about a stream. Raises TransportError: there is none, nobody leads it now, or it says no."""
    from nats.errors import Error

    try:
        answer = await client.request(f"$JS.API.STREAM.{what}.{stream}", request, limits.NATS_REQUEST_S)
        refused = msgspec.json.decode(answer.data, type=_Answer).error
    except (Error, TimeoutError, msgspec.DecodeError) as exc:
        raise TransportError(f"stream {stream}", str(exc) or type(exc).__name__) from exc
    if refused is not None:
        raise TransportError(f"stream {stream}", refused.description)
    return answer.data


async def pull(js: JetStreamContext, durable: str = CONSUMER) -> JetStreamContext.PullSubscription:
    """Return what a worker fetches its messages from. It is lost with the client's connection only if that is closed."""
    return await js.pull_subscribe_bind(durable=durable, stream=STREAM)


async def state_of(client: Client) -> StreamState:
    """Ask how full the stream is. Raises TransportError: there is none, or nobody leads it now."""
    try:
        told = msgspec.json.decode(await _asked(client, "INFO", STREAM), type=_Told)
    except msgspec.DecodeError as exc:
        raise TransportError(f"stream {STREAM}", str(exc)) from exc
    state, oldest_s = told.state, 0.0
    if state.messages and state.first_ts is not None and told.ts is not None:
        oldest_s = (told.ts - state.first_ts).total_seconds()
    return StreamState(state.messages, state.bytes, told.config.max_bytes, oldest_s)
