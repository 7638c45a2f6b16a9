"""What the cloud asks of hubs, and what hubs answer: tasks, settings, reports, logs, life signs and presence (typed payloads).

Like `broker.messages`: what does not fit is refused with ProtocolError, unknown fields are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import Meta, Struct

from broker.messages import (
    Count,
    Envelope,
    Epoch,
    Events,
    Readings,
    UnixMs,
    Value,
    ValueName,
    ValueText,
    convert,
)
from broker.messages import decode_body as decode_plain_body
from config import limits

TaskId: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
SettingsHash: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
ActionName: TypeAlias = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,63}\Z")]
Address: TypeAlias = Annotated[str, Meta(max_length=64)]
ShortText: TypeAlias = Annotated[str, Meta(max_length=256)]
Mode: TypeAlias = Literal["continuous", "polling", "roaming"]
TaskState: TypeAlias = Literal["accepted", "running", "done", "failed", "refused", "expired", "cancelled"]
Connection: TypeAlias = Literal[
    "online", "offline", "roaming", "unreachable-online", "unreachable-offline", "path-down"
]

# --- Cloud → hub ------------------------------------------------------------------------------------------------------


class Task(Struct, frozen=True, omit_defaults=True):
    """`down/task`: run an action once, or (`cancel`) stop the one with this id. The same id may come any number of times.

    `sent` and `expires` are by the cloud's clock, so `expires - sent` is how long it may still be begun, on any clock.
    """

    id: TaskId
    sent: UnixMs
    action: ActionName | None = None
    arguments: dict[ValueName, Value] = {}
    expires: UnixMs | None = None
    cancel: bool = False


class DesiredSettings(Struct, frozen=True):
    """`down/settings`: what is to hold from now on, section by section, over the hub's own file. `hash` names the content."""

    version: Count
    hash: SettingsHash
    sent: UnixMs
    settings: dict[str, dict[str, Any]]


# --- Hub → cloud, sequenced (bodies of envelopes) ---------------------------------------------------------------------


class TaskReport(Struct, frozen=True, omit_defaults=True):
    """How a task stands, by the hub's clock; `progress` in percent, `output` what the action has found."""

    task: TaskId
    state: TaskState
    ts: UnixMs
    progress: Annotated[int, Meta(ge=0, le=100)] | None = None
    message: ValueText | None = None
    output: dict[str, Any] | None = None


class Results(Struct, frozen=True):
    """The body of `up/results`, in order."""

    results: Annotated[list[TaskReport], Meta(min_length=1, max_length=limits.EVENTS_MAX)]


class SettingsReport(Struct, frozen=True, omit_defaults=True):
    """Which settings from the cloud are in force. "trial": not confirmed yet; "rolled-back", "refused": what `reason` says."""

    version: Count
    hash: SettingsHash
    state: Literal["applied", "trial", "refused", "rolled-back"]
    reason: ValueText | None = None


class Protection(Struct, frozen=True):
    """The endpoint protection of a machine: the last four dimensions of the status vector."""

    scan: Literal["conventional", "smart"]
    pattern: Literal["current", "old"]
    realtime: Literal["enabled", "disabled", "stopped"]
    reputation: Literal["reachable", "unreachable"]


class ModePolicy(Struct, frozen=True):
    """The rules by which a hub makes itself heard: the values of its `[mode]` that are in force."""

    heartbeat: Literal["off", "all", "unreachable"]
    heartbeat_min: Annotated[int, Meta(ge=1, le=limits.MODE_MINUTES_MAX)]
    poll_min: Annotated[int, Meta(ge=1, le=limits.MODE_MINUTES_MAX)]
    offline_after_min: Annotated[int, Meta(ge=1, le=limits.MODE_MINUTES_MAX)]


class Reported(Struct, frozen=True, omit_defaults=True):
    """The body of `up/reported`: what a hub is, at its start and whenever it changes.

    `machine` is its class for hiding it when it is inactive; `sensors` maps each to `interval_s` and what else it tells.
    """

    version: ShortText
    host: ShortText
    system: ShortText
    addresses: Annotated[list[Address], Meta(max_length=limits.ADDRESSES_MAX)]
    mode: Mode
    machine: Literal["server", "workstation", "laptop"] = "server"
    settings: SettingsReport | None = None
    protection: Protection | None = None
    privileges: dict[str, bool] = {}
    tasks: list[ActionName] = []
    checks: list[str] = []
    sensors: dict[str, dict[str, Any]] = {}
    policy: ModePolicy | None = None


class LogRecord(Struct, frozen=True, omit_defaults=True):
    """One line of a hub's log. `n` counts from 1 within `Logs.boot`: a line that comes twice is known by it."""

    n: Count
    ts: UnixMs
    level: Literal["debug", "info", "warning", "error"]
    event: ShortText
    fields: dict[str, Any] = {}


class Logs(Struct, frozen=True, omit_defaults=True):
    """The body of `up/logs`. `boot` is random per start of the hub; `dropped` lines before these were too many."""

    boot: Epoch
    records: Annotated[list[LogRecord], Meta(min_length=1, max_length=limits.EVENTS_MAX)]
    dropped: Count = 0


# --- Hub → cloud, not sequenced ---------------------------------------------------------------------------------------


class Heartbeat(Struct, frozen=True):
    """`heartbeat`: the hub lives; brings nothing back."""

    epoch: Epoch
    session: Count
    ts: UnixMs


class Poll(Struct, frozen=True, omit_defaults=True):
    """`poll`: the hub asks for tasks and settings; `settings` is the hash of those in force."""

    epoch: Epoch
    session: Count
    ts: UnixMs
    settings: SettingsHash | None = None


# --- Cloud → all ------------------------------------------------------------------------------------------------------


class RequiredAction(Struct, frozen=True):
    """Something that `who` must do about a hub, in the order of the list."""

    id: ActionName
    who: Literal["user", "admin", "user or admin"]
    text: str


class Presence(Struct, frozen=True, omit_defaults=True):
    """`presence`: the one status of a hub, by the cloud's clock.

    `expected_direct_by`: while the path is down, when the hub should be direct. `skew_ms`: how far its clock is ahead.
    """

    connection: Connection
    since: UnixMs
    via: str | None
    reason: str
    last_seen: UnixMs | None
    icon: str
    text: str
    actions: list[RequiredAction] = []
    expected_direct_by: UnixMs | None = None
    skew_ms: int | None = None
    evidence: dict[str, Any] = {}


Body: TypeAlias = Readings | Events | Results | Reported | Logs
BODIES: Final = {"results": Results, "reported": Reported, "logs": Logs}


def decode_body(kind: str, envelope: Envelope) -> Body | None:
    """Read an envelope's body by its kind; None for a kind whose body this version does not know. Raises ProtocolError."""
    shape: Any = BODIES.get(kind)
    if shape is None:
        return decode_plain_body(kind, envelope)
    body: Body = convert(envelope.body, shape)
    return body
