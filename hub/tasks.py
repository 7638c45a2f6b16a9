"""Tasks as a hub sees them (pure): each runs at most once, however often it is delivered, and is answered every time.

    accepted ──▶ running ──▶ done | failed
       └────────────┴──────▶ refused | expired | cancelled

What the hub knows of a task is on its disk (`Save`, answered by `Saved`) before it is run or reported. So
- a repeated delivery only brings a report of how the task stands, also after a restart of the hub;
- what ran when the hub ended is reported as failed, and not run again; "restart-hub" is done by then;
- a cancellation that overtakes its task is remembered: the task is never begun;
- a disk that refuses means a refused task, with the reason.

A task is begun within `expires - sent` of its receipt, on any clock. While the hub roams no task starts: a new one gets no
answer and leaves no trace, so it waits in the cloud, which delivers it again; one that was accepted before waits here.
Tasks are forgotten a day after they expire, by this process's clock; earlier only if there is no room for a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final, Literal, TypeAlias

import msgspec

from broker.control import Task, TaskState
from broker.machine import Wakeup
from broker.messages import Value
from config import limits

RESTART: Final = "restart-hub"
"""The action that is done when the hub has come back."""

INTERRUPTED: Final = "the hub was restarted while it ran"

Refusal: TypeAlias = Callable[[str, Mapping[str, Value]], str | None]
"""Says why an action with these arguments is not run here, or None if it may be."""


class TaskRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the hub's disk holds of a task. It may be begun within `lasts_ms` of `received_ms` (the hub's wall clock).

    Without an action it is a cancellation whose task has not come.
    """

    id: str
    state: TaskState
    received_ms: int
    lasts_ms: int
    action: str | None = None
    arguments: dict[str, Value] = {}
    message: str | None = None
    output: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an action has ended."""

    state: Literal["done", "failed", "refused", "cancelled"]
    message: str | None = None
    output: dict[str, Any] | None = field(default=None, hash=False)


# --- Events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TaskReceived:
    """The cloud has delivered a task or a cancellation, for the first time or again."""

    task: Task
    received_ms: int


@dataclass(frozen=True, slots=True)
class Saved:
    """The disk has taken what `Save` with this number brought, and everything before it."""

    number: int


@dataclass(frozen=True, slots=True)
class SaveFailed:
    """The disk has refused it."""

    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class ActionProgressed:
    """A running action says how far it is."""

    id: str
    progress: int | None
    message: str | None


@dataclass(frozen=True, slots=True)
class ActionEnded:
    """A running action has ended by itself, or because it was stopped."""

    id: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class RoamingChanged:
    """The hub roams from now on, or no longer."""

    roaming: bool


Event: TypeAlias = TaskReceived | Saved | SaveFailed | ActionProgressed | ActionEnded | RoamingChanged | Wakeup

# --- Commands -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Save:
    """Write these records and delete those of `forgotten`; `Saved` or `SaveFailed` has to follow, in the order of the saves."""

    number: int
    records: tuple[TaskRecord, ...]
    forgotten: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Run:
    """Begin the action; `ActionEnded` has to follow."""

    id: str
    action: str
    arguments: Mapping[str, Value] = field(hash=False)


@dataclass(frozen=True, slots=True)
class Stop:
    """End the action soon; `ActionEnded` is still due."""

    id: str


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the cloud how a task stands."""

    id: str
    state: TaskState
    progress: int | None = None
    message: str | None = None
    output: dict[str, Any] | None = field(default=None, hash=False)


Command: TypeAlias = Save | Run | Stop | Report

# --- The machine ----------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Known:
    """A task in memory. `awaits` is the save after which it is reported, and begun if it is running by then."""

    record: TaskRecord
    expires_at: float
    awaits: int | None = None
    on_disk: bool = False
    begun: bool = False
    stopping: bool = False
    progress: int | None = None
    note: str | None = None
    reported_at: float = -inf
    report_at: float = inf

    @property
    def state(self) -> TaskState:
        return self.record.state

    @property
    def ended(self) -> bool:
        return self.record.state not in ("accepted", "running")


class Tasks:
    """The tasks of one hub. `records` is what its disk held at the start, the oldest first."""

    def __init__(self, records: Iterable[TaskRecord], refusal: Refusal, *, started_at: float, started_ms: int):
        self._refusal = refusal
        self._started_at = started_at
        self._known: dict[str, _Known] = {}
        self._roaming = False
        self._number = 0
        self._saves: dict[int, Save] = {}
        self._changed: dict[str, bool] = {}  # What the next save brings, and whether it is reported after it.
        self._forgotten: set[str] = set()
        self._retry_at = inf  # When what a disk has refused is offered again.
        self._begin_after = started_at
        self._now = started_at
        for record in records:
            left_s = min(record.lasts_ms, record.received_ms + record.lasts_ms - started_ms) / 1000.0
            known = _Known(record, started_at + max(0.0, left_s), on_disk=True)
            self._known[record.id] = known
            if record.state == "running":
                restarted = record.action == RESTART
                self._move(known, "done" if restarted else "failed", None if restarted else INTERRUPTED)

    @property
    def roaming(self) -> bool:
        """Return whether no task starts for now."""
        return self._roaming

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take what has happened; see `Machine`."""
        self._now = now
        commands: list[Command] = []
        match event:
            case TaskReceived(task, received_ms):
                commands += self._received(task, received_ms)
            case Saved(number):
                commands += self._saved(number)
            case SaveFailed(number, reason):
                commands += self._refused_by_disk(number, reason)
            case ActionProgressed(task_id, progress, message):
                self._progressed(task_id, progress, message)
            case ActionEnded(task_id, outcome):
                known = self._known.get(task_id)
                if known is not None and known.state == "running" and known.begun:
                    self._move(known, outcome.state, outcome.message, outcome.output)
            case RoamingChanged(roaming):
                self._roaming = roaming
            case Wakeup():
                pass  # What is due is looked for after every event.
        self._expire()
        self._forget()
        self._begin_waiting()
        commands += self._due_reports()
        return [*self._save(), *commands]

    def deadline(self) -> float | None:
        """Return when something is due: a report of progress, the end of a waiting task, another try at the disk."""
        if any(self._changed.values()):
            return self._started_at  # What the constructor has found is to be told.
        due_at = self._retry_at
        for known in self._known.values():
            if known.state == "accepted":
                due_at = min(due_at, known.expires_at, inf if self._roaming else self._begin_at())
            elif known.state == "running":
                due_at = min(due_at, known.report_at)
            elif known.awaits is None:
                due_at = min(due_at, known.expires_at + limits.TASK_REMEMBERED_S)
        return None if due_at == inf else due_at

    # --- Deliveries ---------------------------------------------------------------------------------------------------

    def _received(self, task: Task, received_ms: int) -> list[Command]:
        known = self._known.get(task.id)
        if known is not None:
            if task.cancel:
                return self._cancel(known)
            return [] if known.awaits is not None else [self._report(known)]
        if self._roaming and not task.cancel:
            return []  # It stays in the cloud.
        if len(self._saves) >= limits.TASK_SAVES_MAX:
            return []  # The disk does not keep up; the next delivery may find it better.
        if not task.cancel and task.action is None:
            return [Report(task.id, "refused", message="it names no action")]
        if not self._has_room():
            return [Report(task.id, "refused", message="too many tasks are remembered here: try again tomorrow")]
        lasts_s = limits.TASK_EXPIRES_S if task.expires is None else (task.expires - task.sent) / 1000.0
        lasts_s = min(max(0.0, lasts_s), limits.TASK_EXPIRES_MAX_S)
        record = TaskRecord(task.id, "accepted", received_ms, round(lasts_s * 1000), task.action, task.arguments)
        known = self._known[task.id] = _Known(record, self._now + lasts_s)
        if task.cancel:
            self._move(known, "cancelled", "before it began")
        elif lasts_s == 0.0:
            self._move(known, "expired", "its deadline had passed when it came")
        elif (reason := self._refusal(task.action or "", task.arguments)) is not None:
            self._move(known, "refused", reason)
        elif sum(other.state == "accepted" for other in self._known.values()) > limits.TASKS_WAITING_MAX:
            self._move(known, "refused", f"{limits.TASKS_WAITING_MAX} tasks wait here already")
        else:
            self._move(known, "accepted")
        return []

    def _cancel(self, known: _Known) -> list[Command]:
        if known.state == "accepted" or (known.state == "running" and not known.begun):
            self._move(known, "cancelled", "before it began")
        elif known.state == "running":
            if not known.stopping:
                known.stopping = True
                return [Stop(known.record.id)]
        elif known.awaits is None:
            return [self._report(known)]
        return []

    # --- The disk -----------------------------------------------------------------------------------------------------

    def _saved(self, number: int) -> list[Command]:
        commands: list[Command] = []
        for known in self._answered(self._saves.pop(number)):
            known.on_disk = True
            if known.awaits != number:
                continue  # A later save decides.
            known.awaits = None
            if known.state == "running" and self._roaming:
                self._move(known, "accepted")  # The hub has begun to roam meanwhile.
                continue
            commands.append(self._report(known))
            if known.state == "running":
                known.begun = True
                assert known.record.action is not None
                commands.append(Run(known.record.id, known.record.action, known.record.arguments))
        return commands

    def _refused_by_disk(self, number: int, reason: str) -> list[Command]:
        """Begin nothing that the disk does not know, tell what is true all the same, and offer it to the disk again."""
        commands: list[Command] = []
        save = self._saves.pop(number)
        self._retry_at = min(self._retry_at, self._now + limits.TASK_JOURNAL_RETRY_S)
        self._forgotten.update(task_id for task_id in save.forgotten if task_id not in self._known)
        for known in self._answered(save):
            self._changed.setdefault(known.record.id, False)
            if known.awaits != number:
                continue  # A later save decides.
            known.awaits = None
            if not known.ended and not known.on_disk:
                message = f"the hub can't remember it, so it was not begun: {reason}"
                known.record = msgspec.structs.replace(known.record, state="refused", message=message)
            elif known.state == "running":
                known.record = msgspec.structs.replace(known.record, state="accepted")
                known.report_at = inf
                self._begin_after = self._now + limits.TASK_JOURNAL_RETRY_S
                continue
            commands.append(self._report(known))
        return commands

    def _answered(self, save: Save) -> list[_Known]:
        return [known for record in save.records if (known := self._known.get(record.id)) is not None]

    def _save(self) -> list[Command]:
        if not self._changed and not self._forgotten:
            self._retry_at = inf
            return []
        if not any(self._changed.values()) and self._now < self._retry_at < inf:
            return []
        self._number += 1
        for task_id, announced in self._changed.items():
            if announced:
                self._known[task_id].awaits = self._number
        records = tuple(self._known[task_id].record for task_id in self._changed)
        save = self._saves[self._number] = Save(self._number, records, tuple(sorted(self._forgotten)))
        self._changed.clear()
        self._forgotten.clear()
        self._retry_at = inf
        return [save]

    # --- What is due --------------------------------------------------------------------------------------------------

    def _begin_at(self) -> float:
        """Return when the next waiting task may begin, if nothing else happens."""
        running = sum(known.state == "running" for known in self._known.values())
        return self._begin_after if running < limits.TASKS_RUNNING_MAX else inf

    def _begin_waiting(self) -> None:
        if self._roaming or self._now < self._begin_after:
            return
        free = limits.TASKS_RUNNING_MAX - sum(known.state == "running" for known in self._known.values())
        for known in [known for known in self._known.values() if known.state == "accepted"][: max(0, free)]:
            self._move(known, "running")

    def _expire(self) -> None:
        for known in self._known.values():
            if known.state == "accepted" and self._now >= known.expires_at:
                self._move(known, "expired", "its deadline came before its turn")

    def _progressed(self, task_id: str, progress: int | None, message: str | None) -> None:
        known = self._known.get(task_id)
        if known is None or not known.begun or known.ended:
            return  # The last words of an action that has ended.
        known.progress = known.progress if progress is None else min(100, max(progress, known.progress or 0))
        known.note = message
        known.report_at = min(known.report_at, known.reported_at + limits.TASK_PROGRESS_MIN_S)

    def _due_reports(self) -> list[Command]:
        due = [known for known in self._known.values() if known.begun and not known.ended]
        return [self._report(known) for known in due if self._now >= known.report_at]

    def _report(self, known: _Known) -> Report:
        record = known.record
        if record.state == "running":
            known.reported_at = self._now
            known.report_at = self._now + limits.TASK_PROGRESS_S
            return Report(record.id, "running", known.progress, known.note)
        return Report(record.id, record.state, None, record.message, record.output)

    def _move(
        self, known: _Known, state: TaskState, message: str | None = None, output: dict[str, Any] | None = None
    ) -> None:
        """Go on to a state, which is reported when it is on the disk."""
        known.record = msgspec.structs.replace(known.record, state=state, message=message, output=output)
        if known.ended:
            known.report_at = inf
            known.record = msgspec.structs.replace(known.record, arguments={})
        self._changed[known.record.id] = True
        if output is not None:
            self._drop_old_outputs()

    def _drop_old_outputs(self) -> None:
        told = (
            known for known in self._known.values() if known.awaits is None and not self._changed.get(known.record.id)
        )
        kept = [known for known in told if known.record.output is not None]
        for known in kept[: -limits.TASK_OUTPUTS_KEPT]:
            known.record = msgspec.structs.replace(known.record, output=None)
            self._changed.setdefault(known.record.id, False)

    # --- Forgetting ---------------------------------------------------------------------------------------------------

    def _forget(self) -> None:
        over = [known for known in self._known.values() if self._now >= known.expires_at + limits.TASK_REMEMBERED_S]
        self._drop(known for known in over if known.ended and known.awaits is None)

    def _has_room(self) -> bool:
        """Make room for a new task, if some are long over; the oldest goes first."""
        if len(self._known) >= limits.TASKS_REMEMBERED_MAX:
            over = (known for known in self._known.values() if known.ended and self._now >= known.expires_at)
            self._drop([known for known in over if known.awaits is None][:1])
        return len(self._known) < limits.TASKS_REMEMBERED_MAX

    def _drop(self, dropped: Iterable[_Known]) -> None:
        for known in list(dropped):
            del self._known[known.record.id]
            self._changed.pop(known.record.id, None)
            self._forgotten.add(known.record.id)
