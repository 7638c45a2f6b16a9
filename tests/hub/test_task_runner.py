"""Actions, journal and runner for real: real files, real subprocesses, hubs that are killed and come back."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from broker.clock import unix_ms
from broker.control import Results, Task, TaskReport
from broker.messages import encode
from config import limits
from config.errors import StorageError
from config.settings import Check, HubSettings, HubTasks, Identity
from hub.task_journal import TaskJournal
from hub.task_runner import TaskRunner
from hub.tasks import INTERRUPTED, TaskRecord

ID, OTHER_ID = "00000000000000aa", "00000000000000bb"
PYTHON = sys.executable
Scene = Callable[["Machine"], Coroutine[Any, Any, None]]


class Deeds:
    """What actions need of a hub."""

    def __init__(self) -> None:
        self.restarts = self.reports = 0
        self.lines: list[dict[str, Any]] = [{"event": "hub_started"}]
        self.broken = False

    async def sample_now(self) -> dict[str, float]:
        if self.broken:
            raise ZeroDivisionError("a bug")
        return {"cpu.percent": 12.5}

    def report_now(self) -> None:
        self.reports += 1

    def restart(self) -> None:
        self.restarts += 1

    def recent_logs(self, limit: int) -> list[dict[str, Any]]:
        return self.lines[-limit:]


class Machine:
    """A hub's tasks on a folder, and what they have reported."""

    def __init__(self, folder: Path, checks: dict[str, Check] | None = None, allow: list[str] | None = None):
        identity = Identity("acme", "berlin", "pc-17", *(folder / name for name in ("ca", "cert", "key")))
        more = {} if allow is None else {"tasks": HubTasks(allow=allow)}  # type: ignore[arg-type]
        self.settings = HubSettings(identity, checks=checks or {}, **more)
        self.journal = folder / "tasks.db"
        self.deeds = Deeds()
        self.reports: list[TaskReport] = []
        self._changed = asyncio.Event()
        self.runner = self._made()

    def _made(self) -> TaskRunner:
        return TaskRunner(self.settings, self.journal, self.deeds, self._report, version="1.2.0")

    def _report(self, report: TaskReport) -> None:
        assert encode(Results([report]))
        self.reports.append(report)
        self._changed.set()

    async def restarted(self) -> None:
        """End the runner as a crash would for the journal, and start another one."""
        await self.runner.close()
        self.reports.clear()
        self.runner = self._made()
        self.runner.start()

    def ask(self, action: str, task: str = ID, **arguments: Any) -> None:
        now = unix_ms()
        self.runner.received(Task(task, now, action, arguments, now + 600_000))

    def cancel(self, task: str = ID) -> None:
        self.runner.received(Task(task, unix_ms(), cancel=True))

    async def told(self, *states: str, task: str = ID) -> TaskReport:
        """Wait for a report in one of these states."""
        async with asyncio.timeout(20):
            while True:
                for report in self.reports:
                    if report.task == task and report.state in states:
                        return report
                self._changed.clear()
                await self._changed.wait()

    async def ended(self, task: str = ID) -> TaskReport:
        return await self.told("done", "failed", "refused", "expired", "cancelled", task=task)


def play(machine: Callable[[], Machine], scene: Scene, *, start: bool = True) -> None:
    async def main() -> None:
        this = machine()
        if start:
            this.runner.start()
        try:
            await scene(this)
        finally:
            await this.runner.close()

    asyncio.run(main())


# --- Actions ---------------------------------------------------------------------------------------------------------


def test_each_action_brings_what_it_is_for(tmp_path: Path) -> None:
    async def scene(machine: Machine) -> None:
        for number, action in enumerate(["ping", "sample-now", "report-now", "collect-logs"]):
            machine.ask(action, f"{number:016x}")
        ping, sample, report, logs = [await machine.ended(f"{number:016x}") for number in range(4)]
        assert {ping.state, sample.state, report.state, logs.state} == {"done"}
        assert ping.output is not None
        assert ping.output["version"] == "1.2.0"
        assert abs(ping.output["clock"] - unix_ms()) < 60_000
        assert ping.output["uptime_s"] >= 0
        assert sample.output == {"values": {"cpu.percent": 12.5}}
        assert machine.deeds.reports == 1
        assert logs.output == {"records": [{"event": "hub_started"}], "dropped": 0}

    play(lambda: Machine(tmp_path), scene)


@pytest.mark.parametrize(
    ("action", "arguments", "said"),
    [
        ("format-disk", {}, "does not know the action format-disk"),
        ("update-now", {}, "updates are not set up on this hub"),
        ("sample-now", {}, 'add "sample-now" to tasks.allow'),
        ("run-check", {}, "needs the argument name"),
        ("run-check", {"name": "raid; reboot"}, "there is no [checks.raid; reboot]"),
        ("collect-logs", {"limit": 0}, "limit must be a whole number"),
        ("collect-logs", {"limit": True}, "limit must be a whole number"),
    ],
)
def test_what_is_not_allowed_is_refused_with_a_reason(
    tmp_path: Path, action: str, arguments: dict[str, Any], said: str
) -> None:
    """A hub runs only what its own settings allow, whoever asks."""

    async def scene(machine: Machine) -> None:
        machine.ask(action, **arguments)
        report = await machine.ended()
        assert report.state == "refused"
        assert said in (report.message or "")

    play(lambda: Machine(tmp_path, allow=["ping", "run-check", "collect-logs", "update-now"]), scene)


def test_a_bug_in_an_action_ends_the_action_only(tmp_path: Path) -> None:
    async def scene(machine: Machine) -> None:
        machine.deeds.broken = True
        machine.ask("sample-now")
        report = await machine.ended()
        assert (report.state, report.message) == ("failed", "ZeroDivisionError: a bug")
        machine.ask("ping", OTHER_ID)
        assert (await machine.ended(OTHER_ID)).state == "done"

    play(lambda: Machine(tmp_path), scene)


def test_the_newest_log_lines_that_fit_are_collected(tmp_path: Path) -> None:
    async def scene(machine: Machine) -> None:
        machine.deeds.lines = [{"n": number, "event": "x" * 1000} for number in range(300)]
        machine.ask("collect-logs", limit=300)
        output = (await machine.ended()).output
        assert output is not None
        assert output["records"][-1]["n"] == 299
        assert output["dropped"] == 300 - len(output["records"]) > 100

    play(lambda: Machine(tmp_path), scene)


# --- Checks ----------------------------------------------------------------------------------------------------------


def check(code: str, timeout_s: float = 20.0) -> dict[str, Check]:
    return {"it": Check([PYTHON, "-c", code], timeout_s)}


@pytest.mark.parametrize(
    ("code", "state", "message", "perfdata"),
    [
        ("print('DISK OK - free | used=5GB;8;9 x=1')", "ok", "DISK OK - free", "used=5GB;8;9 x=1"),
        ("print('W'); raise SystemExit(1)", "warning", "W", None),
        ("print('C\\nmore | b=2'); raise SystemExit(2)", "error", "C", "b=2"),
        ("raise SystemExit(3)", "unknown", "(no output)", None),
        ("raise SystemExit(77)", "unknown", "(no output)", None),
        ("raise SystemExit('it broke')", "warning", "it broke", None),
    ],
)
def test_a_check_means_what_it_does_for_monitoring_plugins(
    tmp_path: Path, code: str, state: str, message: str, perfdata: str | None
) -> None:
    async def scene(machine: Machine) -> None:
        machine.ask("run-check", name="it")
        report = await machine.ended()
        assert report.state == "done"
        assert report.message == message
        assert report.output is not None
        assert report.output["state"] == state
        assert report.output.get("perfdata") == perfdata

    play(lambda: Machine(tmp_path, check(code)), scene)


def test_a_check_has_no_shell_and_no_input(tmp_path: Path) -> None:
    """What looks like a command is an argument, and nothing waits for a person."""

    async def scene(machine: Machine) -> None:
        machine.ask("run-check", name="it")
        report = await machine.ended()
        assert report.message == "$(id); ['']"

    echo = [PYTHON, "-c", "import sys; print(sys.argv[1], [sys.stdin.read()])", "$(id);"]
    play(lambda: Machine(tmp_path, {"it": Check(echo)}), scene)


def test_a_check_that_is_not_there_fails_with_its_name(tmp_path: Path) -> None:
    async def scene(machine: Machine) -> None:
        machine.ask("run-check", name="it")
        report = await machine.ended()
        assert report.state == "failed"
        assert "checks.it" in (report.message or "")
        assert "No such file" in (report.message or "")

    play(lambda: Machine(tmp_path, {"it": Check(["/no/such/plugin"])}), scene)


def test_a_check_that_floods_its_output_is_cut_and_still_ends(tmp_path: Path) -> None:
    async def scene(machine: Machine) -> None:
        machine.ask("run-check", name="it")
        report = await machine.ended()
        assert report.output is not None
        assert report.output["truncated"] is True
        assert len(report.output["output"]) <= limits.CHECK_OUTPUT_MAX_BYTES

    play(lambda: Machine(tmp_path, check("print('ok\\n' + 'x' * 5_000_000)")), scene)


FORKS = """
import os, sys, time
if os.fork() == 0:
    time.sleep(600)
open(sys.argv[1], 'w').write(str(os.getpid()))
print('ok', flush=True)
{rest}
"""


def group_is_gone(file: Path) -> bool:
    """Tell whether no living process of a check's group is left; what is dead waits for its parent only."""
    group = int(file.read_text())
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] not in "ZX":
                return False
    return True


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.skipif(os.name == "nt", reason="groups of processes are POSIX")
@pytest.mark.parametrize(
    ("rest", "timeout_s", "state", "message"),
    [("time.sleep(600)", 1.0, "failed", "has not ended within 1 s"), ("", 20.0, "done", "ok")],
)
def test_a_check_leaves_no_process_behind(
    tmp_path: Path, rest: str, timeout_s: float, state: str, message: str
) -> None:
    """One that hangs every time would fill the machine; one whose child holds the pipe open would hang the task."""
    file = tmp_path / "group"

    async def scene(machine: Machine) -> None:
        machine.ask("run-check", name="it")
        report = await machine.ended()
        assert (report.state, report.message) == (state, message)
        await until(lambda: group_is_gone(file))

    command = [PYTHON, "-c", FORKS.format(rest=rest), str(file)]
    play(lambda: Machine(tmp_path, {"it": Check(command, timeout_s)}), scene)


# --- Cancelling, roaming, restarting ---------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="groups of processes are POSIX")
def test_a_cancelled_check_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "group"

    async def scene(machine: Machine) -> None:
        machine.ask("run-check", name="it")
        await until(lambda: file.exists() and bool(file.read_text()))
        machine.cancel()
        assert (await machine.ended()).state == "cancelled"
        await until(lambda: group_is_gone(file))

    command = [PYTHON, "-c", FORKS.format(rest="time.sleep(600)"), str(file)]
    play(lambda: Machine(tmp_path, {"it": Check(command, 600)}), scene)


def test_a_roaming_hub_starts_nothing_until_it_is_back(tmp_path: Path) -> None:
    async def scene(machine: Machine) -> None:
        machine.runner.set_roaming(True)
        machine.runner.start()
        machine.ask("ping")
        machine.cancel(OTHER_ID)
        await machine.told("cancelled", task=OTHER_ID)
        assert [report.task for report in machine.reports] == [OTHER_ID]
        machine.runner.set_roaming(False)
        machine.ask("ping")
        assert (await machine.ended()).state == "done"

    play(lambda: Machine(tmp_path), scene, start=False)


def counting(file: Path, rest: str) -> dict[str, Check]:
    return check(f"open({str(file)!r}, 'a').write('x'); {rest}")


def test_a_hub_that_ends_while_a_check_runs_says_so_and_does_not_run_it_again(tmp_path: Path) -> None:
    """The check may have done its work: to run it again is worse than to say that nobody knows."""
    file = tmp_path / "runs"

    async def scene(machine: Machine) -> None:
        machine.ask("run-check", name="it")
        await until(file.exists)
        await machine.restarted()
        report = await machine.ended()
        assert (report.state, report.message) == ("failed", INTERRUPTED)
        machine.reports.clear()
        machine.ask("run-check", name="it")
        assert (await machine.ended()).state == "failed"
        assert file.read_text() == "x"

    play(lambda: Machine(tmp_path, counting(file, "import time; time.sleep(600)")), scene)


def test_a_finished_task_is_not_run_again_after_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "runs"

    async def scene(machine: Machine) -> None:
        machine.ask("run-check", name="it")
        machine.ask("run-check", name="it")
        first = await machine.ended()
        for _ in range(2):
            await machine.restarted()
            machine.ask("run-check", name="it")
            again = await machine.ended()
            assert (again.state, again.message, again.output) == (first.state, first.message, first.output)
        assert file.read_text() == "x"

    play(lambda: Machine(tmp_path, counting(file, "print('fine')")), scene)


def test_a_short_task_that_was_just_taken_comes_to_its_end_before_the_hub_begins_anew(tmp_path: Path) -> None:
    """New settings begin the hub anew, and nobody would understand why a ping fails for that."""

    async def scene(machine: Machine) -> None:
        machine.ask("ping", task="0" * 16)
        await machine.ended(task="0" * 16)
        machine.ask("ping")
        await machine.restarted()
        machine.ask("ping")  # Told again how it ended.
        assert (await machine.ended()).state == "done"

    play(lambda: Machine(tmp_path), scene)


def test_restart_hub_is_done_when_the_hub_is_back(tmp_path: Path) -> None:
    """Done before would be a promise; and a repeated delivery must not restart it again."""

    async def scene(machine: Machine) -> None:
        machine.ask("restart-hub")
        await machine.told("running")
        await until(lambda: machine.deeds.restarts == 1)
        assert {report.state for report in machine.reports} == {"running"}
        await machine.restarted()
        assert (await machine.ended()).state == "done"
        machine.ask("restart-hub")
        await until(lambda: len(machine.reports) == 2)
        assert {report.state for report in machine.reports} == {"done"}
        assert machine.deeds.restarts == 1

    play(lambda: Machine(tmp_path), scene)


def test_tasks_that_come_before_the_journal_is_read_are_not_lost(tmp_path: Path) -> None:
    async def scene(machine: Machine) -> None:
        machine.ask("ping")
        assert (await machine.ended()).state == "done"

    play(lambda: Machine(tmp_path), scene)


# --- The journal -----------------------------------------------------------------------------------------------------

RECORD = TaskRecord(ID, "running", 5, 600_000, "run-check", {"name": "raid", "n": 1.5, "on": True})


def test_the_journal_gives_back_what_it_was_given_in_order(tmp_path: Path) -> None:
    journal = TaskJournal(tmp_path / "tasks.db")
    other = TaskRecord(OTHER_ID, "done", 6, 0, "ping", output={"a": [1, {"b": None}]})
    journal.save([RECORD, other], [])
    journal.save([TaskRecord(ID, "done", 5, 600_000)], [])
    journal.close()
    again = TaskJournal(tmp_path / "tasks.db")
    assert again.load() == [TaskRecord(ID, "done", 5, 600_000), other]
    again.save([RECORD], [OTHER_ID, ID])
    assert again.load() == [RECORD]
    again.close()


@pytest.mark.parametrize("damage", [b"not a database" * 100, b""])
def test_a_damaged_journal_is_set_aside_and_a_new_one_begins(tmp_path: Path, damage: bytes) -> None:
    """A hub that can't read its list would be of no use for ever."""
    file = tmp_path / "tasks.db"
    file.write_bytes(damage)
    journal = TaskJournal(file)
    assert journal.load() == []
    journal.save([RECORD], [])
    assert journal.load() == [RECORD]
    journal.close()
    assert (tmp_path / "tasks.db.damaged").exists() == bool(damage)


def test_a_disk_that_refuses_is_told_of_and_asked_again(tmp_path: Path) -> None:
    """A folder in the file's place refuses like a full disk does, also for root."""
    (tmp_path / "tasks.db").mkdir()
    journal = TaskJournal(tmp_path / "tasks.db")
    for _ in range(2):
        with pytest.raises(StorageError):
            journal.load()
        with pytest.raises(StorageError):
            journal.save([RECORD], [])
    (tmp_path / "tasks.db").rmdir()
    assert journal.load() == []
    journal.save([RECORD], [])
    journal.close()


def test_a_hub_whose_journal_can_not_be_read_refuses_with_the_reason(tmp_path: Path) -> None:
    """Nobody knows what has run already, so nothing runs; and the hub goes on with all else."""

    async def scene(machine: Machine) -> None:
        machine.ask("ping")
        report = await machine.ended()
        assert report.state == "refused"
        assert "can't read its list of tasks" in (report.message or "")

    (tmp_path / "tasks.db").mkdir()
    play(lambda: Machine(tmp_path), scene)


def test_a_journal_that_can_not_be_written_refuses_tasks_and_the_hub_lives_on(tmp_path: Path) -> None:
    """A task that could not be remembered would be run again by its next delivery."""

    async def scene(machine: Machine) -> None:
        machine.ask("ping")
        assert (await machine.ended()).state == "done"
        blocker = sqlite3.connect(machine.journal, isolation_level=None)
        blocker.execute("DROP TABLE task")
        blocker.close()
        machine.ask("ping", OTHER_ID)
        report = await machine.ended(OTHER_ID)
        assert report.state == "refused"
        assert "can't remember it" in (report.message or "")
        machine.reports.clear()
        machine.ask("ping", OTHER_ID)
        assert (await machine.ended(OTHER_ID)).state == "refused"

    play(lambda: Machine(tmp_path), scene)
