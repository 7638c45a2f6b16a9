"""What the API says and takes, as types of its OpenAPI document. Times are Unix ms by the cloud's clock, `ts` by the hub's."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, JsonValue, StringConstraints

from cloud.tokens import Scope
from config import limits

T = TypeVar("T")

LABEL = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
_INNER = LABEL[1:-1]

Label: TypeAlias = Annotated[str, StringConstraints(pattern=LABEL), Field(examples=["berlin"])]
HubName: TypeAlias = Annotated[
    str, StringConstraints(pattern=f"^{_INNER}/{_INNER}$"), Field(examples=["berlin/pc-1"], description="SITE/HUB")
]
TaskId: TypeAlias = Annotated[str, StringConstraints(pattern="^[0-9a-f]{16}$"), Field(examples=["4f0c2d9a11b3e857"])]
Connection: TypeAlias = Literal[
    "online", "offline", "roaming", "unreachable-online", "unreachable-offline", "path-down"
]
Level: TypeAlias = Literal["debug", "info", "warning", "error"]
Action: TypeAlias = Literal[
    "ping", "sample-now", "report-now", "restart-hub", "collect-logs", "run-check", "update-now"
]
TargetState: TypeAlias = Literal[
    "queued", "sent", "accepted", "running", "done", "failed", "refused", "expired", "cancelled"
]
SettingsScope: TypeAlias = Literal["fleet", "site", "group", "hub"]
Number: TypeAlias = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Value: TypeAlias = bool | Number | FiniteFloat | Annotated[str, StringConstraints(max_length=limits.VALUE_TEXT_MAX)]


class Said(BaseModel):
    """Something that the API says."""

    model_config = ConfigDict(frozen=True)


class Asked(BaseModel):
    """Something that the API is asked; what it does not know is refused, not ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Page(Said, Generic[T]):
    """Some entries of a list. `next` is the cursor of the rest; a page may be short, only without `next` it is the last."""

    items: list[T]
    next: str | None = None


class Problem(Said):
    """Why a request was not carried out: one line for a person, and perhaps the key that must change."""

    error: str = Field(examples=["there is no hub berlin/pc-9: did you mean berlin/pc-1?"])
    key: str | None = None


class Done(Said):
    """A request was carried out."""

    done: Literal[True] = True


# --- Hubs ------------------------------------------------------------------------------------------------------------


class RequiredAction(Said):
    """Something that `who` must do about a hub, in this order."""

    id: str
    who: str
    text: str


class HubPresence(Said):
    """The one status of a hub."""

    connection: Connection
    since: int
    reason: str
    via: str | None = None
    last_seen: int | None = None
    icon: str = ""
    text: str = ""
    actions: list[RequiredAction] = []
    expected_direct_by: int | None = None
    skew_ms: int | None = None
    evidence: dict[str, Any] = {}


class HubSummary(Said):
    """A hub in a list. `hidden_since` if it is inactive and hidden, `presence` null if it was only ever announced."""

    site: str
    hub: str
    presence: HubPresence | None
    hidden_since: int | None
    mode: str | None
    version: str | None

    model_config = ConfigDict(
        frozen=True,
        json_schema_extra={
            "examples": [
                {
                    "site": "berlin",
                    "hub": "pc-1",
                    "presence": {
                        "connection": "online",
                        "since": 1763798400000,
                        "reason": "started",
                        "via": "berlin-1",
                        "last_seen": 1763798460000,
                        "icon": "online",
                        "text": "Online through berlin-1.",
                        "actions": [],
                    },
                    "hidden_since": None,
                    "mode": "continuous",
                    "version": "1.2.0",
                }
            ]
        },
    )


class SettingsState(Said):
    """Desired against reported: `state` is "in force", or what the hub still has to do or has said instead."""

    state: Literal["in force", "waiting", "trial", "refused", "rolled-back"]
    desired_version: int
    desired_hash: str
    desired_since: int
    reported_version: int | None = None
    reported_hash: str | None = None
    reported_reason: str | None = None
    reported_at: int | None = None


class NewestValue(Said):
    """The newest value of a sensor by the hub's clock; `count` of its readings were ever stored."""

    sensor: str
    ts: int
    value: JsonValue
    count: int


class Reported(Said):
    """What a hub last said of itself, as it said it."""

    received: int
    body: dict[str, Any]


class Hub(HubSummary):
    """Everything about a hub; `values` are its first 1000 sensors, all of them are at …/values."""

    groups: list[str]
    reported: Reported | None
    settings: SettingsState | None
    values: list[NewestValue]


class Connected(Said):
    """An entry of the connection log: from `at` on a hub was `connection`, and why."""

    site: str
    hub: str
    at: int
    connection: str
    reason: str
    via: str | None
    evidence: dict[str, Any]


# --- Readings --------------------------------------------------------------------------------------------------------


class Reading(Said):
    """One value of one sensor, as the hub sent it. `ts` is by the cloud's clock: by the hub's it was `ts + skew_ms`."""

    ts: int
    sensor: str
    value: JsonValue
    epoch: str
    seq: int
    skew_ms: int = 0


class Sum(Said):
    """The numeric readings of one sensor in one interval, which begins at `ts`."""

    ts: int
    count: int
    min: float
    mean: float
    max: float


class Gap(Said):
    """What a hub said it had to drop."""

    from_seq: int | None
    to_seq: int | None
    points: int | None
    first_ts: int | None
    last_ts: int | None
    reason: str | None


class Stored(Said):
    """What was ever stored of one outbox of a hub. `missing` are inclusive ranges that no gap record explains."""

    site: str
    hub: str
    epoch: str
    first_seq: int | None
    last_seq: int | None
    missing: list[tuple[int, int]]
    messages: int
    points: int
    duplicates_refused: int
    refused: int
    gaps: list[Gap]


class LogLine(Said):
    """A line of a hub's log. `no` grows in the order of arrival."""

    no: int
    ts: int
    received: int
    level: str
    event: str
    fields: dict[str, Any]


class Arrived(Said):
    """Which line of a hub's log arrived last; 0 if none ever did."""

    no: int


# --- Tasks -----------------------------------------------------------------------------------------------------------


class Targets(Asked):
    """Whom a task is for; hidden hubs only if they are named."""

    hubs: list[HubName] = Field(default=[], max_length=limits.API_TARGETS_MAX)
    sites: list[Label] = Field(default=[], max_length=limits.API_TARGETS_MAX)
    groups: list[Label] = Field(default=[], max_length=limits.API_TARGETS_MAX)
    all: bool = False


class NewTask(Asked):
    """An action to be run once on each target, begun within `expires_s`."""

    action: Action
    targets: Targets
    arguments: dict[Annotated[str, StringConstraints(pattern="^[A-Za-z0-9_.-]{1,64}$")], Value] = Field(
        default={}, max_length=limits.API_PAGE
    )
    expires_s: int = Field(default=3600, ge=1, le=90 * 86_400)
    skip_if_offline: bool = False

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"action": "ping", "targets": {"hubs": ["berlin/pc-1"]}, "expires_s": 600}]},
    )


class TaskMade(Said):
    """A task that was queued, for so many hubs."""

    task: TaskId
    targets: int


class Cancel(Asked):
    """Which target of a task is cancelled: all, if none is named."""

    hub: HubName | None = None


class TaskSummary(Said):
    """A task, and how many of its targets are in which state."""

    task: str
    action: str
    arguments: dict[str, Any]
    created: int
    created_by: str
    expires: int
    skip_if_offline: bool
    states: dict[str, int]


class TaskTarget(Said):
    """How a task stands on one hub."""

    site: str
    hub: str
    state: str
    changed: int
    progress: int | None
    message: str | None
    output: dict[str, Any] | None


class Task(TaskSummary):
    """A task with a page of its targets."""

    targets: Page[TaskTarget]


# --- Settings and groups ---------------------------------------------------------------------------------------------

Content: TypeAlias = dict[str, dict[str, JsonValue]]


class SettingsDocument(Said):
    """What is desired of the fleet, a site, a group or a hub. Version 0 is before the first."""

    scope: SettingsScope
    name: str
    version: int
    content: Content
    created: int | None = None
    created_by: str | None = None


class PutSettings(Asked):
    """A new version of a document, as a whole; with `expected_version` (or If-Match) only over that one."""

    content: Content = Field(examples=[{"logs": {"level": "info"}, "mode": {"poll_min": 30}}], max_length=100)
    expected_version: int | None = Field(default=None, ge=0, le=2**63 - 1)


class Difference(Said):
    """A key that two versions set differently; null: not set."""

    key: str
    before: JsonValue = None
    after: JsonValue = None


class SettingsKept(Said):
    """The version that counts now. `warnings` say what is unwise; with dry_run nothing was kept."""

    version: int
    warnings: list[str]
    changes: list[Difference]
    kept: bool


class SettingsVersion(Said):
    """A version in the history of a document."""

    version: int
    created: int
    created_by: str


class EffectiveSetting(Said):
    """A value that is to hold on a hub; `origin` is the document that says so."""

    key: str
    value: JsonValue
    origin: str


class HubSettings(Said):
    """What all documents together want of a hub, and what it reports."""

    state: SettingsState | None
    effective: list[EffectiveSetting]


class Group(Said):
    """A group, and how many hubs are in it."""

    group: str
    hubs: int


class Member(Said):
    """A hub in a group."""

    site: str
    hub: str


# --- Administration --------------------------------------------------------------------------------------------------


class Audited(Said):
    """Who did what through the API, and how it ended."""

    at: int
    who: str
    address: str | None
    action: str
    target: str
    outcome: str
    detail: dict[str, Any]


class TokenSummary(Said):
    """A token without its text, which is kept nowhere."""

    name: str
    scope: Scope
    site: str | None
    created: int
    expires: int | None
    revoked: int | None
    used: int | None


class NewToken(Asked):
    """A token to be made."""

    name: Label
    scope: Scope
    site: Label | None = None
    expires_days: int = Field(default=365, ge=1, le=3650)


class TokenMade(Said):
    """A new token; its text is shown this once."""

    name: str
    token: str
    expires: int


class Status(Said):
    """How the service is, and how many hubs are in which state; a token of one site gets that site's hubs only."""

    hubs: dict[str, int]
    tasks_open: int
    service: dict[str, Any]
