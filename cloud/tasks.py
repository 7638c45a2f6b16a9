"""Tasks as the cloud sees them, one standing per task and hub (pure): everything that is asked for comes to an end.

    queued ──▶ sent ──▶ accepted ──▶ running ──▶ done | failed
      │          └─────────┴────────────┴──────▶ refused | expired | cancelled
      └──▶ expired | cancelled | refused ("skipped: offline")

Brokers keep nothing, so a task is delivered again (jittered, backed off) until its hub reports anything of it; the hub
runs it once. From then on only the hub knows, and tells in messages that are not lost. Is it silent for long all the same
while it can be reached, it is asked again: with a task that has no time left, so that a hub that knows it tells how it
stands and any other can't start it. If that helps nothing, the end is *presumed* ("failed: no progress for …"), and a
late report with the true end corrects it. Silence on a path that is down counts for nothing until a day has passed.

Toward hubs that poll, or roam, or are away, nothing is started: what waits is handed out at a poll or when they are back.
Reports are in the database before the machine hears of them (`task_records.apply_results`), so they cause no `Save`.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from math import inf
from random import Random

from broker.backoff import Backoff
from broker.control import Task, TaskReport
from broker.machine import Wakeup
from cloud.hub_key import HubKey
from cloud.task_events import (
    CancelAsked,
    Command,
    Connected,
    Created,
    Disconnected,
    Event,
    HubForgotten,
    Polled,
    Reachable,
    Reported,
    Save,
    Send,
    Unreachable,
)
from cloud.task_standing import OpenTarget, Standing, TargetChange, TargetState, TaskOrder, merged
from config import limits


@dataclass(slots=True, eq=False)
class _Target:
    number: int
    order: TaskOrder
    key: HubKey
    standing: Standing
    expires_at: float
    heard_at: float
    backoff: Backoff
    skip_at: float = inf
    send_at: float = -inf
    sent_at: float = -inf
    cancel_asked: bool = False
    due_at: float = inf  # Of its only valid entry in the heap.

    @property
    def state(self) -> TargetState:
        return self.standing.state


@dataclass(slots=True)
class _Step:
    """What one event has led to; changes come before sends."""

    now: float
    changes: dict[_Target, TargetChange] = field(default_factory=dict)
    sends: list[Command] = field(default_factory=list)

    def commands(self) -> list[Command]:
        return [Save(tuple(self.changes.values())), *self.sends] if self.changes else self.sends


class Tasks:
    """All open tasks of the fleet. `started_at` is monotonic, `started_ms` the wall clock at the same moment.

    Until word comes, the cloud's session is closed and every hub unreachable.
    """

    def __init__(self, known: tuple[OpenTarget, ...], *, random: Random, started_at: float, started_ms: int):
        self._random = random
        self._targets: dict[tuple[str, HubKey], _Target] = {}
        self._of_hubs: dict[HubKey, dict[str, _Target]] = {}
        self._reachable: dict[HubKey, float] = {}
        self._connected_at: float | None = None
        self._heap: list[tuple[float, int, int, _Target]] = []
        self._pushes = 0
        self._numbers = 0
        self._burst_at = -inf
        self._burst_left = limits.TASK_BURST
        for found in known:
            target = self._add(found.order, found.key, started_at, (found.order.expires_ms - started_ms) / 1000.0)
            target.standing, target.cancel_asked = found.standing, found.cancel_asked
            target.heard_at = started_at - max(0.0, (started_ms - found.changed_ms) / 1000.0)
            if found.order.skip_if_offline:
                target.skip_at = started_at + limits.TASK_START_GRACE_S
            self._plan(target)

    @property
    def open_targets(self) -> int:
        """Return how many standings are not at their end."""
        return len(self._targets)

    def deadline(self) -> float | None:
        """Return when the next target is due."""
        while self._heap and self._is_stale(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take what has happened; see `Machine`."""
        step = _Step(now)
        match event:
            case Created(order, targets):
                self._created(order, targets, step)
            case CancelAsked(task, keys):
                self._cancel(task, keys, step)
            case Reachable(key):
                if key not in self._reachable:
                    self._reachable[key] = now
                    self._path_opened(self._of(key), now)
            case Unreachable(key):
                if self._reachable.pop(key, None) is not None:
                    self._replan(self._of(key))
            case Polled(key):
                self._polled(key, step)
            case Reported(key, report):
                self._reported(key, report, step)
            case HubForgotten(key):
                self._reachable.pop(key, None)
                for target in self._of(key):
                    self._drop(target)
            case Connected():
                if self._connected_at is None:
                    self._connected_at = now
                    self._path_opened(list(self._targets.values()), now)
            case Disconnected():
                self._connected_at = None
                self._replan(list(self._targets.values()))
            case Wakeup():
                pass  # What is due is looked for after every event.
        self._run_due(step)
        return step.commands()

    # --- What has happened ------------------------------------------------------------------------------------------

    def _created(self, order: TaskOrder, targets: tuple[HubKey, ...], step: _Step) -> None:
        for key in targets:
            if (order.task, key) in self._targets:
                continue  # We know of it: the same order came twice.
            lasts_s = (order.expires_ms - order.created_ms) / 1000.0
            bound = self._bound_reached(key)
            target = self._add(order, key, step.now, lasts_s)
            if bound is not None:
                self._end(target, "refused", bound, step)
                continue
            if order.skip_if_offline:
                target.skip_at = step.now
            self._plan(target)

    def _bound_reached(self, key: HubKey) -> str | None:
        if len(self._of_hubs.get(key, ())) >= limits.TASKS_PER_HUB_MAX:
            return f"{limits.TASKS_PER_HUB_MAX} tasks of this hub are open already: wait for them, or cancel some"
        if len(self._targets) >= limits.TASKS_OPEN_MAX:
            return f"{limits.TASKS_OPEN_MAX} tasks are open already: wait for them, or cancel some"
        return None

    def _cancel(self, task: str, keys: tuple[HubKey, ...] | None, step: _Step) -> None:
        if keys is None:
            keys = tuple(key for of_task, key in self._targets if of_task == task)
        for key in keys:
            target = self._targets.get((task, key))
            if target is None or target.cancel_asked:
                continue  # It has come to its end, or its end is asked for already.
            target.cancel_asked = True
            if target.state == "queued":
                self._end(target, "cancelled", "before it was sent", step)
                continue
            self._save(target, step)
            target.backoff.failures = 0
            target.send_at = step.now
            self._plan(target)

    def _reported(self, key: HubKey, report: TaskReport, step: _Step) -> None:
        target = self._targets.get((report.task, key))
        if target is None:
            return  # Late or repeated, or about something that is not ours: the database knows what to do with it.
        target.heard_at = step.now
        target.standing = merged(target.standing, report) or target.standing
        if target.standing.final:
            self._drop(target)
            return
        if not target.cancel_asked:
            target.backoff.failures = 0
            target.send_at = step.now + limits.TASK_ASK_S
        self._plan(target)

    def _polled(self, key: HubKey, step: _Step) -> None:
        if self._connected_at is None:
            return  # It came in before our session ended; the next poll brings what waits.
        for target in self._of(key):
            if target.state != "queued" or step.now < target.expires_at:
                self._send(target, step)

    def _path_opened(self, targets: list[_Target], now: float) -> None:
        """Deliver at once what waits, and ask for what may have changed; not oftener than ever."""
        for target in targets:
            if self._path_at(target) is not None:
                target.backoff.failures = 0
                target.send_at = max(now, target.sent_at + limits.TASK_REPEAT_MIN_S)
            self._plan(target)

    # --- What is due ------------------------------------------------------------------------------------------------

    def _run_due(self, step: _Step) -> None:
        while (due_at := self.deadline()) is not None and due_at <= step.now:
            target = heapq.heappop(self._heap)[-1]
            target.due_at = inf
            self._advance(target, step)
            if (target.order.task, target.key) in self._targets:
                self._plan(target)

    def _advance(self, target: _Target, step: _Step) -> None:
        """Do the first thing about a target whose time has come."""
        path_at, now = self._path_at(target), step.now
        match target.state:
            case "queued" if now >= target.expires_at:
                self._end(target, "expired", "its deadline came before the hub could be reached", step)
            case "queued" if path_at is None and now >= target.skip_at:
                self._end(target, "refused", "skipped: offline", step)
            case "sent" if now >= target.expires_at + limits.TASK_MARGIN_S:
                state: TargetState = "cancelled" if target.cancel_asked else "expired"
                self._end(target, state, "the hub has not answered before the deadline", step, presumed=True)
            case "accepted" | "running" if now >= self._lost_at(target, path_at):
                silent_s = round(now - target.heard_at)
                self._end(target, "failed", f"no progress for {silent_s} s", step, presumed=True)
            case _:
                if now >= self._send_at(target, path_at):
                    self._send_within_burst(target, step)

    def _next_at(self, target: _Target) -> float:
        """Return when something is to be done about a target at the latest; `_advance` must then find it due."""
        path_at = self._path_at(target)
        match target.state:
            case "queued":
                end_at = min(target.expires_at, target.skip_at) if path_at is None else target.expires_at
            case "sent":
                end_at = target.expires_at + limits.TASK_MARGIN_S
            case _:
                end_at = self._lost_at(target, path_at)
        return min(end_at, self._send_at(target, path_at))

    def _lost_at(self, target: _Target, path_at: float | None) -> float:
        gone_at = max(target.heard_at, target.expires_at) + limits.TASK_SILENCE_MAX_S
        if path_at is None:
            return gone_at
        quiet_at = max(target.heard_at, path_at)
        if target.state == "accepted":
            quiet_at = max(quiet_at, target.expires_at)  # Until then it may wait for its turn, in silence.
        return min(gone_at, quiet_at + limits.TASK_PROGRESS_MAX_S)

    def _send_at(self, target: _Target, path_at: float | None) -> float:
        return inf if path_at is None else target.send_at

    def _path_at(self, target: _Target) -> float | None:
        """Return since when we can reach the hub and hear of it, or None if we can't."""
        reachable_at = self._reachable.get(target.key)
        if self._connected_at is None or reachable_at is None:
            return None
        return max(self._connected_at, reachable_at)

    # --- What is done -----------------------------------------------------------------------------------------------

    def _send_within_burst(self, target: _Target, step: _Step) -> None:
        if step.now >= self._burst_at + limits.TASK_BURST_S:
            self._burst_at, self._burst_left = step.now, limits.TASK_BURST
        if self._burst_left == 0:
            target.send_at = self._burst_at + limits.TASK_BURST_S
            return
        self._burst_left -= 1
        self._send(target, step)

    def _send(self, target: _Target, step: _Step) -> None:
        order = target.order
        sent_ms = max(0, order.expires_ms - round((target.expires_at - step.now) * 1000))
        if target.cancel_asked:
            task = Task(order.task, sent_ms, expires=order.expires_ms, cancel=True)
        elif target.state in ("queued", "sent"):
            task = Task(order.task, sent_ms, order.action, dict(order.arguments), order.expires_ms)
        else:
            task = Task(order.task, sent_ms, order.action, dict(order.arguments), expires=sent_ms)
        if target.state == "queued":
            target.standing = Standing("sent")
            self._save(target, step)
        step.sends.append(Send(target.key, task))
        target.sent_at = step.now
        target.send_at = step.now + limits.TASK_REPEAT_MIN_S + target.backoff.next_s()
        self._plan(target)

    def _end(self, target: _Target, state: TargetState, why: str, step: _Step, *, presumed: bool = False) -> None:
        target.standing = replace(target.standing, state=state, message=why, presumed=presumed)
        self._save(target, step)
        self._drop(target)

    def _save(self, target: _Target, step: _Step) -> None:
        step.changes[target] = TargetChange(target.order.task, target.key, target.standing, target.cancel_asked)

    # --- Bookkeeping ------------------------------------------------------------------------------------------------

    def _of(self, key: HubKey) -> list[_Target]:
        return list(self._of_hubs.get(key, {}).values())

    def _add(self, order: TaskOrder, key: HubKey, now: float, lasts_s: float) -> _Target:
        backoff = Backoff(self._random, limits.TASK_REPEAT_FIRST_S, limits.TASK_REPEAT_MAX_S)
        self._numbers += 1
        target = _Target(self._numbers, order, key, Standing(), now + lasts_s, now, backoff)
        self._targets[(order.task, key)] = target
        self._of_hubs.setdefault(key, {})[order.task] = target
        return target

    def _drop(self, target: _Target) -> None:
        del self._targets[(target.order.task, target.key)]
        of_hub = self._of_hubs[target.key]
        del of_hub[target.order.task]
        if not of_hub:
            del self._of_hubs[target.key]
        target.due_at = inf

    def _replan(self, targets: list[_Target]) -> None:
        for target in targets:
            self._plan(target)

    def _plan(self, target: _Target) -> None:
        """Put a target into the heap for its next moment; an older entry of it becomes stale."""
        due_at = self._next_at(target)
        if due_at == target.due_at:
            return
        target.due_at = due_at
        if due_at < inf:
            self._pushes += 1
            heapq.heappush(self._heap, (due_at, target.number, self._pushes, target))
        if len(self._heap) > 2 * len(self._targets) + 64:
            self._heap = [entry for entry in self._heap if not self._is_stale(entry)]
            heapq.heapify(self._heap)

    def _is_stale(self, entry: tuple[float, int, int, _Target]) -> bool:
        return entry[0] != entry[-1].due_at
