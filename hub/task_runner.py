"""Carries out what the hub's task machine decides: keeps its journal in a thread, runs actions, reports them.

While the journal can't be read nobody knows what has run already: every task is refused with the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog

from broker.clock import unix_ms
from broker.control import Task, TaskReport
from broker.runner import Runner, monotonic_s
from config import limits
from config.errors import StorageError
from config.settings import HubSettings
from hub import tasks
from hub.task_actions import Actions, Doer
from hub.task_journal import TaskJournal
from hub.tasks import Outcome, Tasks

log = structlog.get_logger(__name__)


class TaskRunner:
    """The tasks of one hub in the running event loop. `report` is called in it, and must take the report to the cloud.

    Call `set_roaming` before `start` if the hub roams already.
    """

    def __init__(
        self,
        settings: HubSettings,
        journal_file: Path,
        doer: Doer,
        report: Callable[[TaskReport], None],
        *,
        version: str = "0",
    ):
        self._actions = Actions(settings, doer, version)
        self._journal = TaskJournal(journal_file)
        self._report = report
        self._thread = ThreadPoolExecutor(1, "tasks")
        self._runner: Runner[tasks.Event, tasks.Command] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._running: dict[str, asyncio.Task[Outcome]] = {}
        self._saves: set[asyncio.Future[None]] = set()
        self._waiting: list[Task] = []
        self._refusal: str | None = None
        self._roaming = False
        self._leaving = False  # Takes no more tasks.
        self._closed = False

    @property
    def running(self) -> list[str]:
        """Return the tasks that run now."""
        return list(self._running)

    def start(self) -> None:
        """Read the journal, tell the cloud what has become of the tasks in it, and begin those that wait."""
        self._loading = asyncio.create_task(self._load(), name="task journal")

    def received(self, task: Task) -> None:
        """Take a delivery; the same one may come any number of times."""
        if self._leaving:
            return  # The next process gets it.
        if self._runner is not None:
            self._runner.feed(tasks.TaskReceived(task, unix_ms()))
        elif self._refusal is not None:
            self._report(TaskReport(task.id, "refused", unix_ms(), message=self._refusal))
        elif len(self._waiting) < limits.TASKS_WAITING_MAX:
            self._waiting.append(task)

    def set_roaming(self, roaming: bool) -> None:
        """Start no task while the hub roams."""
        self._roaming = roaming
        if self._runner is not None and not self._closed:
            self._runner.feed(tasks.RoamingChanged(roaming))

    async def close(self) -> None:
        """Let what is short come to its end, then end what runs, and the journal. The next start reports what was cut off.

        Cancelled, it waits no more: the journal is closed when the disk lets it be.
        """
        self._leaving = True
        try:
            async with asyncio.timeout(limits.TASK_CLOSE_GRACE_S):
                while self._saves or self._running:
                    waited: set[asyncio.Future[Any]] = {*self._saves, *self._running.values()}
                    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            pass
        self._closed = True
        if self._runner is not None:
            self._runner.close()
        ending: list[asyncio.Task[None] | asyncio.Task[Outcome]] = list(self._running.values())
        if self._loading is not None:
            ending.append(self._loading)
        for one in ending:
            one.cancel()
        try:
            if ending:
                await asyncio.wait(ending)
            if self._saves:
                await asyncio.wait(self._saves)
        finally:
            closing = self._thread.submit(self._journal.close)
            self._thread.shutdown(wait=False)
        await asyncio.shield(asyncio.wrap_future(closing))

    # --- The journal ----------------------------------------------------------------------------------------------------

    async def _load(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                records = await loop.run_in_executor(self._thread, self._journal.load)
                break
            except StorageError as exc:
                if self._refusal is None:
                    log.warning("task_list_unreadable", reason=str(exc), consequence="every task is refused")
                self._refusal = f"this hub can't read its list of tasks, so it begins none: {exc.reason}"
                self._take_waiting()
                await asyncio.sleep(limits.TASK_JOURNAL_RETRY_S)
        machine = Tasks(records, self._actions.refusal, started_at=monotonic_s(), started_ms=unix_ms())
        self._runner = Runner(machine, self._execute)
        self._runner.feed(tasks.RoamingChanged(self._roaming))
        self._take_waiting()

    def _take_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for task in waiting:
            self.received(task)

    def _save(self, save: tasks.Save) -> None:
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._thread, self._journal.save, save.records, save.forgotten)
        self._saves.add(future)

        def saved(future: asyncio.Future[None]) -> None:
            self._saves.discard(future)
            failure = future.exception()
            if failure is None:
                self._feed(tasks.Saved(save.number))
            else:
                log.warning("tasks_not_saved", reason=str(failure))
                reason = failure.reason if isinstance(failure, StorageError) else str(failure)
                self._feed(tasks.SaveFailed(save.number, reason))

        future.add_done_callback(saved)

    # --- Commands -------------------------------------------------------------------------------------------------------

    def _execute(self, command: tasks.Command) -> None:
        match command:
            case tasks.Save():
                self._save(command)
            case tasks.Run():
                self._run(command)
            case tasks.Stop(task_id):
                self._running[task_id].cancel()
            case tasks.Report(task_id, state, progress, message, output):
                if state not in ("accepted", "running"):
                    log.info("task_ended", task=task_id, state=state, message=message)
                message = None if message is None else message[: limits.VALUE_TEXT_MAX]
                self._report(TaskReport(task_id, state, unix_ms(), progress, message, output))

    def _run(self, command: tasks.Run) -> None:
        task_id = command.id

        def progressed(progress: int | None, message: str | None) -> None:
            self._feed(tasks.ActionProgressed(task_id, progress, message))

        def ended(running: asyncio.Task[Outcome]) -> None:
            del self._running[task_id]
            self._feed(tasks.ActionEnded(task_id, _outcome(running)))

        log.info("task_began", task=task_id, action=command.action)
        running = asyncio.create_task(
            self._actions.run(command.action, command.arguments, progressed), name=f"task {task_id}"
        )
        self._running[task_id] = running
        running.add_done_callback(ended)

    def _feed(self, event: tasks.Event) -> None:
        """Tell the machine, unless we are closing: what ends then was cut off, and the next start says so."""
        if self._runner is not None and not self._closed:
            self._runner.feed(event)


def _outcome(running: asyncio.Task[Outcome]) -> Outcome:
    if running.cancelled():
        return Outcome("cancelled", "it was stopped")
    failure = running.exception()
    if failure is None:
        return running.result()
    log.error("task_broke", task=running.get_name(), reason=f"{type(failure).__name__}: {failure}")
    return Outcome("failed", f"{type(failure).__name__}: {failure}")
