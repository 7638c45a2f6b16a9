"""What the task machine hears, and what it wants done about it (pure): see `cloud.tasks`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from broker.control import Task, TaskReport
from broker.machine import Wakeup
from cloud.hub_key import HubKey
from cloud.task_standing import TargetChange, TaskOrder

# --- Events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Created:
    """A task was ordered, and is in the database with all its targets queued."""

    order: TaskOrder
    targets: tuple[HubKey, ...]


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """A person wants a task not to be done, at these hubs or (None) at all."""

    task: str
    targets: tuple[HubKey, ...] | None = None


@dataclass(frozen=True, slots=True)
class Reachable:
    """The cloud may start something toward this hub: it is online and continuous."""

    key: HubKey


@dataclass(frozen=True, slots=True)
class Unreachable:
    """It may not: the hub is offline, roams, polls, or its path is down."""

    key: HubKey


@dataclass(frozen=True, slots=True)
class Polled:
    """A hub in polling mode asks for what waits; it listens for a moment only."""

    key: HubKey


@dataclass(frozen=True, slots=True)
class Reported:
    """A hub's report of a task, which `apply_results` has already put into the database."""

    key: HubKey
    report: TaskReport


@dataclass(frozen=True, slots=True)
class HubForgotten:
    """A hub is no longer of the fleet; its rows are gone."""

    key: HubKey


@dataclass(frozen=True, slots=True)
class Connected:
    """The cloud broker has accepted our session."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """Our session has ended: nothing can be sent or heard."""


Event: TypeAlias = (
    Created
    | CancelAsked
    | Reachable
    | Unreachable
    | Polled
    | Reported
    | HubForgotten
    | Connected
    | Disconnected
    | Wakeup
)

# --- Commands -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Save:
    """Commit these changes before any `Send` that follows: what may have begun must never look as if it could be undone."""

    changes: tuple[TargetChange, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Publish on the hub's `down/task`. It may get lost."""

    key: HubKey
    task: Task


Command: TypeAlias = Save | Send
