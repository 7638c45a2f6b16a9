"""Typed payloads ↔ bytes (the contract's "Payloads"); what the contract refuses, this refuses with ProtocolError."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

import msgspec
import orjson
from msgspec import Meta, Struct

from config import limits
from config.errors import ProtocolError

Epoch: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
Seq: TypeAlias = Annotated[int, Meta(ge=1, le=2**53)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
UnixMs: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
ValueName: TypeAlias = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,128}\Z")]
ValueText: TypeAlias = Annotated[str, Meta(max_length=limits.VALUE_TEXT_MAX)]
Value: TypeAlias = bool | int | float | ValueText
SeqRange: TypeAlias = tuple[Seq, Seq]
S = TypeVar("S")


class Envelope(Struct, frozen=True):
    """A sequenced message of a hub. `body` is what its kind says, decoded only as far as JSON."""

    epoch: Epoch
    seq: Seq
    sent: UnixMs
    body: dict[str, Any]


class Point(Struct, frozen=True):
    """Values of one moment, by the hub's clock."""

    ts: UnixMs
    values: Annotated[dict[ValueName, Value], Meta(min_length=1, max_length=limits.VALUES_MAX)]


class Readings(Struct, frozen=True):
    """The body of `up/readings`."""

    points: Annotated[list[Point], Meta(min_length=1, max_length=limits.POINTS_MAX)]


class HubEvent(Struct, frozen=True, omit_defaults=True):
    """One event in `up/events`. For `event` "gap", the fields from `from_seq` on tell what is lost and why."""

    event: Annotated[str, Meta(min_length=1, max_length=64)]
    ts: UnixMs | None = None
    sensor: ValueName | None = None
    from_state: str | None = msgspec.field(default=None, name="from")
    to_state: str | None = msgspec.field(default=None, name="to")
    message: ValueText | None = None
    from_seq: Seq | None = None
    to_seq: Seq | None = None
    points: Count | None = None
    first_ts: UnixMs | None = None
    last_ts: UnixMs | None = None
    reason: ValueText | None = None

    @property
    def is_gap(self) -> bool:
        """Tell whether this is a gap record, and a whole one: half a record would excuse a loss that it doesn't name."""
        if self.event != GAP or self.from_seq is None or self.to_seq is None or self.points is None:
            return False
        return self.from_seq <= self.to_seq


GAP: Final = "gap"
"""The event that tells of readings that were given up."""


class Events(Struct, frozen=True):
    """The body of `up/events`."""

    events: Annotated[list[HubEvent], Meta(min_length=1, max_length=limits.EVENTS_MAX)]


class Ack(Struct, frozen=True):
    """`down/ack`: what the database has committed, as inclusive ranges of seq."""

    epoch: Epoch
    ranges: Annotated[list[SeqRange], Meta(max_length=limits.ACK_RANGES_MAX)]


class HubState(Struct, frozen=True, omit_defaults=True):
    """`state` of a hub: birth (`online`), clean stop (`reason` "stopped") or last will.

    The first birth of a process has the `reason` "started"; a hub in polling mode leaves with the `reason` "polling".
    """

    online: bool
    epoch: Epoch
    session: Count
    via: str | None = None
    mode: Literal["continuous", "polling", "roaming"] | None = None
    version: str | None = None
    ts: UnixMs | None = None
    reason: str | None = None
    host: Annotated[str, Meta(max_length=256)] | None = None
    addresses: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=limits.ADDRESSES_MAX)] = []


class ConnectorState(Struct, frozen=True, omit_defaults=True):
    """`state` of a connector, on both brokers, or its last will. `site` is whether it reaches its site broker."""

    online: bool
    session: Count
    upstream: Literal["up", "down"] | None = None
    since: UnixMs | None = None
    ts: UnixMs | None = None
    reason: str | None = None
    site: Literal["up", "down"] | None = None


class Last(Struct, frozen=True):
    """`last/{sensor}`: the newest value by the hub's clock; `count` is how many of its readings are stored, each counted once."""

    ts: UnixMs
    value: Value
    count: Count


DIRECT: Final = "direct"
"""The `via` of a hub that speaks with the cloud broker itself."""


def encode(message: Struct) -> bytes:
    """Return the payload of a message. Raises ProtocolError if it would be too large or holds what JSON can't say."""
    return encode_json(msgspec.to_builtins(message))


def encode_json(content: object) -> bytes:
    """Return JSON bytes of plain content, within the contract's size. Raises ProtocolError."""
    try:
        payload = orjson.dumps(content)
    except TypeError as exc:
        raise ProtocolError(f"cannot be encoded: {exc}") from exc
    if len(payload) > limits.MESSAGE_MAX_BYTES:
        raise ProtocolError(f"{len(payload)} bytes, at most {limits.MESSAGE_MAX_BYTES} are allowed")
    return payload


def encode_envelope(epoch: str, seq: int, sent_ms: int, body: bytes) -> bytes:
    """Return an envelope around a body that is JSON already."""
    return b'{"epoch":"%b","seq":%d,"sent":%d,"body":%b}' % (epoch.encode("ascii"), seq, sent_ms, body)


def decode(payload: bytes, shape: type[S]) -> S:
    """Read a payload as the given type, which must hold. Raises ProtocolError; unknown fields are ignored."""
    return convert(_loads(payload), shape)


def convert(content: object, shape: type[S]) -> S:
    """Give decoded JSON its type. Raises ProtocolError that says where it does not fit."""
    try:
        return msgspec.convert(content, shape)
    except msgspec.ValidationError as exc:
        raise ProtocolError(str(exc)) from exc
    except RecursionError as exc:
        raise ProtocolError("nested too deeply") from exc


def decode_body(kind: str, envelope: Envelope) -> Readings | Events | None:
    """Read an envelope's body by its kind, or return None for a kind whose body this version does not know."""
    match kind:
        case "readings":
            return convert(envelope.body, Readings)
        case "events":
            return convert(envelope.body, Events)
        case _:
            return None


def is_value(value: object) -> bool:
    """Tell whether a reading may be sent: a number that JSON can say, a boolean or a short string."""
    match value:
        case bool():
            return True
        case int():
            return -(2**63) <= value < 2**63
        case float():
            return math.isfinite(value)
        case str():
            return len(value) <= limits.VALUE_TEXT_MAX
        case _:
            return False


def _loads(payload: bytes) -> object:
    if len(payload) > limits.MESSAGE_MAX_BYTES:
        raise ProtocolError(f"{len(payload)} bytes, at most {limits.MESSAGE_MAX_BYTES} are allowed")
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError as exc:
        raise ProtocolError(f"not JSON: {exc}") from exc
    except RecursionError as exc:
        raise ProtocolError("nested too deeply") from exc
