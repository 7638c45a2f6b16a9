"""A cloud and a hub that exchange tasks over a channel that loses, delays, doubles and reorders, on a clock that jumps.

What goes down may get lost; reports are kept by the hub and come late, in any order, and maybe twice. Either side can be
killed before any of its steps: then it forgets all but its disk, and starts again a little later.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from random import Random
from typing import Protocol

from broker.control import Results, Task, TaskReport
from broker.machine import Wakeup
from cloud import task_events as at_cloud
from cloud.hub_key import HubKey
from cloud.task_standing import OpenTarget, Standing, TargetChange, TaskOrder, merged
from cloud.tasks import Tasks
from hub import tasks as at_hub

KEY: HubKey = ("berlin", "pc-17")
T0 = 1_763_798_400_000
POLLS_UNTIL = 1200.0
"""Seconds: when every task of a story is over, further polls prove nothing."""
ENDED = ("done", "failed", "refused", "expired", "cancelled")


@dataclass(frozen=True)
class Weather:
    """How bad the world is. Times are seconds; bad things end at `calm_at`."""

    loss: float = 0.3
    doubling: float = 0.2
    delay_s: float = 8.0
    outages: int = 3
    calm_at: float = 300.0
    polling_s: float | None = None
    disk_refuses: float = 0.0


class Database(Protocol):
    """What the cloud's database does for tasks."""

    def create(self, order: TaskOrder) -> None: ...
    def open_tasks(self) -> tuple[OpenTarget, ...]: ...
    def save(self, changes: tuple[TargetChange, ...], now_ms: int) -> None: ...
    def apply(self, report: TaskReport, now_ms: int) -> None: ...
    def standing(self, task: str) -> Standing: ...


class MemoryDatabase:
    """The rules of `cloud.task_records`, in memory and fast."""

    def __init__(self) -> None:
        self.rows: dict[str, OpenTarget] = {}

    def create(self, order: TaskOrder) -> None:
        self.rows[order.task] = OpenTarget(order, KEY, Standing(), order.created_ms)

    def open_tasks(self) -> tuple[OpenTarget, ...]:
        return tuple(row for row in self.rows.values() if not row.standing.final)

    def save(self, changes: tuple[TargetChange, ...], now_ms: int) -> None:
        for change in changes:
            row = self.rows[change.task]
            asked = row.cancel_asked or change.cancel_asked
            fits = change.standing.final or (change.standing.state == "sent" and row.standing.state == "queued")
            standing = change.standing if fits and not row.standing.final else row.standing
            self.rows[change.task] = replace(row, standing=standing, cancel_asked=asked, changed_ms=now_ms)

    def apply(self, report: TaskReport, now_ms: int) -> None:
        row = self.rows[report.task]
        standing = merged(row.standing, report)
        if standing is not None:
            self.rows[report.task] = replace(row, standing=standing, changed_ms=now_ms)

    def standing(self, task: str) -> Standing:
        return self.rows[task].standing


class KilledError(Exception):
    """A side is killed before its next step."""


class World:
    """One history: the same seed, weather and kills give the same one."""

    def __init__(
        self,
        seed: int,
        weather: Weather,
        *,
        kill_hub_at: int = -1,
        kill_cloud_at: int = -1,
        database: Database | None = None,
    ):
        self.random, self.weather = Random(seed), weather
        self.now, self.steps = 0.0, 0
        self.kill_at = {"hub": kill_hub_at, "cloud": kill_cloud_at}
        self.kills: Counter[str] = Counter()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.database = MemoryDatabase() if database is None else database
        self.orders: dict[str, TaskOrder] = {}
        self.cancelled: set[str] = set()
        self.path_up = True
        self.sends: Counter[str] = Counter()
        # The hub.
        self.disk: dict[str, at_hub.TaskRecord] = {}
        self.truth: dict[str, at_hub.TaskRecord] = {}
        self.outbox: list[TaskReport] = []
        self.runs: Counter[str] = Counter()
        self.lives = {"hub": 0, "cloud": 0}
        self.hub_tasks: at_hub.Tasks | None = None
        self.cloud_tasks: Tasks | None = None
        self.roaming = False
        self.started_while_roaming = 0
        self._wakeups = {"hub": -1.0, "cloud": -1.0}
        self.start_cloud()
        self.start_hub()
        for _ in range(weather.outages):
            begin = self.random.uniform(0, weather.calm_at * 0.8)
            self.at(begin, lambda: self.set_path(up=False))
            self.at(min(weather.calm_at, begin + self.random.uniform(1, 120)), lambda: self.set_path(up=True))
        self.at(weather.calm_at, lambda: self.set_path(up=True))
        if weather.polling_s is not None:
            self.at(weather.polling_s, self._poll)

    # --- Time --------------------------------------------------------------------------------------------------------

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (max(when, self.now), next(self._order), what))

    def soon(self, what: Callable[[], None], within_s: float) -> None:
        self.at(self.now + self.random.uniform(0.0, within_s), what)

    def run(self, until: float) -> None:
        turns = 0
        while self._queue and self._queue[0][0] <= until:
            self.now, _, what = heapq.heappop(self._queue)
            what()
            turns += 1
            assert turns < 100_000, "nothing ever comes to rest"
        self.now = until

    @property
    def wall_ms(self) -> int:
        return T0 + round(self.now * 1000)

    # --- Living and dying ---------------------------------------------------------------------------------------------

    def _step(self, side: str) -> None:
        """Count a step of a side; raise if this is where it is killed."""
        self.steps += 1
        if self.steps == self.kill_at[side]:
            raise KilledError

    def _kill(self, side: str) -> None:
        self.kills[side] += 1
        self.lives[side] += 1
        if side == "hub":
            self.hub_tasks = None
            self.tell_presence(reachable=False)
            self.soon(self.start_hub, 20.0)
        else:
            self.cloud_tasks = None
            self.soon(self.start_cloud, 20.0)

    def start_hub(self) -> None:
        records = list(self.disk.values())
        self.hub_tasks = at_hub.Tasks(records, lambda *_: None, started_at=self.now, started_ms=self.wall_ms)
        self.feed_hub(at_hub.RoamingChanged(self.roaming))
        self.tell_presence(reachable=self.path_up)
        self._flush_outbox()

    def start_cloud(self) -> None:
        known = self.database.open_tasks()
        self.cloud_tasks = Tasks(
            known, random=Random(self.random.random()), started_at=self.now, started_ms=self.wall_ms
        )
        self.feed_cloud(at_cloud.Connected())
        self.tell_presence(reachable=self.path_up and self.hub_tasks is not None)
        self._flush_outbox()

    # --- The cloud ----------------------------------------------------------------------------------------------------

    def feed_cloud(self, event: at_cloud.Event) -> None:
        machine, life = self.cloud_tasks, self.lives["cloud"]
        if machine is None:
            return
        try:
            self._step("cloud")
            for command in machine.handle(event, self.now):
                self._step("cloud")
                match command:
                    case at_cloud.Save(changes):
                        self.database.save(changes, self.wall_ms)
                    case at_cloud.Send(_, task):
                        self.sends[task.id] += 1
                        self._carry_down(task)
        except KilledError:
            self._kill("cloud")
            return
        self._arm("cloud", machine.deadline(), lambda: self._wake_cloud(life))

    def _wake_cloud(self, life: int) -> None:
        if life == self.lives["cloud"]:
            self._wakeups["cloud"] = -1.0
            self.feed_cloud(Wakeup())

    def _arm(self, side: str, deadline: float | None, wake: Callable[[], None]) -> None:
        if deadline is not None and deadline != self._wakeups[side]:
            self._wakeups[side] = deadline
            self.at(deadline, wake)

    def create(self, action: str = "work", lasts_s: float = 900.0, *, skip: bool = False) -> str:
        task = f"{len(self.orders):016x}"
        order = TaskOrder(task, action, {}, self.wall_ms, self.wall_ms + round(lasts_s * 1000), skip)
        self.orders[task] = order
        self.database.create(order)
        self.feed_cloud(at_cloud.Created(order, (KEY,)))
        return task

    def cancel(self, task: str) -> None:
        if self.cloud_tasks is not None:
            self.cancelled.add(task)
            self.feed_cloud(at_cloud.CancelAsked(task))

    def tell_presence(self, *, reachable: bool) -> None:
        """The cloud notices a little later."""
        if self.weather.polling_s is None:
            noticed = at_cloud.Reachable(KEY) if reachable else at_cloud.Unreachable(KEY)
            self.at(self.now + 1.0, lambda: self.feed_cloud(noticed))

    def _poll(self) -> None:
        assert self.weather.polling_s is not None
        if self.hub_tasks is not None and self.path_up:
            self.soon(lambda: self.feed_cloud(at_cloud.Polled(KEY)), 1.0)
        if self.now < POLLS_UNTIL:
            self.at(self.now + self.weather.polling_s, self._poll)

    # --- The hub ------------------------------------------------------------------------------------------------------

    def feed_hub(self, event: at_hub.Event) -> None:
        machine, life = self.hub_tasks, self.lives["hub"]
        if machine is None:
            return
        try:
            self._step("hub")
            for command in machine.handle(event, self.now):
                self._step("hub")
                match command:
                    case at_hub.Save():
                        self._save(command, life)
                    case at_hub.Run(task, action, _):
                        self._run(task, action, life)
                    case at_hub.Stop(task):
                        self.soon(lambda task=task: self._end(task, at_hub.Outcome("cancelled"), life), 2.0)  # type: ignore[misc]
                    case at_hub.Report(task, state, progress, message, output):
                        self.outbox.append(TaskReport(task, state, self.wall_ms, progress, message, output))
                        self._flush_outbox()
        except KilledError:
            self._kill("hub")
            return
        self._arm("hub", machine.deadline(), lambda: self._wake_hub(life))

    def _wake_hub(self, life: int) -> None:
        if life == self.lives["hub"]:
            self._wakeups["hub"] = -1.0
            self.feed_hub(Wakeup())

    def _save(self, save: at_hub.Save, life: int) -> None:
        """The disk takes it a moment later, if the hub lives that long; the word of it comes a moment after that."""
        refused = self.now < self.weather.calm_at and self.random.random() < self.weather.disk_refuses

        def write() -> None:
            if life != self.lives["hub"]:
                return
            if refused:
                self.feed_hub(at_hub.SaveFailed(save.number, "disk full"))
                return
            for task in save.forgotten:
                self.disk.pop(task, None)
            for record in save.records:
                self.disk[record.id] = record
                if record.state in ENDED:
                    assert self.truth.setdefault(record.id, record).state == record.state, "an end was taken back"
            self.at(self.now + 0.01, lambda: life == self.lives["hub"] and self.feed_hub(at_hub.Saved(save.number)))  # type: ignore[arg-type, func-returns-value]

        self.at(self.now + 0.02, write)

    def _run(self, task: str, action: str, life: int) -> None:
        self.runs[task] += 1
        self.started_while_roaming += self.roaming
        assert self.disk[task].state == "running", "begun before it was on the disk"
        if action == at_hub.RESTART:
            self.soon(lambda: life == self.lives["hub"] and self._kill("hub"), 3.0)  # type: ignore[arg-type, func-returns-value]
            return
        lasts_s = self.random.choice([0.0, 5.0, 90.0])
        outcome = at_hub.Outcome("done", None, {"run": self.runs[task]})
        self.at(self.now + lasts_s, lambda: self._end(task, outcome, life))

    def _end(self, task: str, outcome: at_hub.Outcome, life: int) -> None:
        if life == self.lives["hub"]:
            self.feed_hub(at_hub.ActionEnded(task, outcome))

    def roam(self, *, roaming: bool) -> None:
        self.roaming = roaming
        self.feed_hub(at_hub.RoamingChanged(roaming))
        self.tell_presence(reachable=not roaming and self.path_up and self.hub_tasks is not None)

    # --- Between them -------------------------------------------------------------------------------------------------

    def set_path(self, *, up: bool) -> None:
        self.path_up = up
        self.tell_presence(reachable=up and self.hub_tasks is not None)
        self._flush_outbox()

    def _carry_down(self, task: Task) -> None:
        rough = self.now < self.weather.calm_at
        copies = 1 + (rough and self.random.random() < self.weather.doubling)
        for _ in range(copies):
            if rough and self.random.random() < self.weather.loss:
                continue
            self.soon(lambda: self._arrive(task), self.weather.delay_s if rough else 0.2)

    def _arrive(self, task: Task) -> None:
        if self.path_up:
            self.feed_hub(at_hub.TaskReceived(task, self.wall_ms))

    def _flush_outbox(self) -> None:
        """Reports go out while both are there; what does not arrive goes out again."""
        if self.path_up and self.hub_tasks is not None and self.cloud_tasks is not None:
            reports, self.outbox = self.outbox, []
            for report in reports:
                for _ in range(1 + (self.random.random() < self.weather.doubling)):
                    self.soon(lambda report=report: self._deliver(report), 3.0)  # type: ignore[misc]

    def _deliver(self, report: TaskReport) -> None:
        if self.cloud_tasks is None:
            self.outbox.append(report)
            return
        self.database.apply(Results([report]).results[0], self.wall_ms)
        self.feed_cloud(at_cloud.Reported(KEY, report))
