"""What SIGHUP does to a role: a service goes on, whoever's terminal is gone ends in order, and nohup is obeyed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from tests.fleet import WAIT_S, until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")

ROLE = """
import asyncio, sys
from broker.process import run_until_stopped
from config import log
from config.settings import Log

async def main(stop):
    log.get("role").info("role_started")
    await stop.wait()
    log.get("role").info("role_stopped")

log.set_up(Log(format="json"), open(sys.argv[1], "a"))
run_until_stopped(main)
"""
ON_TERMINAL = (
    "import os, sys; os.open(sys.argv[1], os.O_RDWR); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
)
"""Makes a terminal its own, as the leader of a session does by opening one, and becomes another program."""

IGNORING = (
    "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


class Role:
    """A role of nothing but its life, and what it has logged."""

    def __init__(self, folder: Path, *before: str):
        self._log = folder / "role.log"
        self.process = subprocess.Popen(
            [sys.executable, *before, "-c", ROLE, str(self._log)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def events(self) -> list[object]:
        lines = self._log.read_bytes().splitlines(keepends=True) if self._log.exists() else []
        return [orjson.loads(line)["event"] for line in lines if line.endswith(b"\n")]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WAIT_S)


@contextmanager
def started(folder: Path, *before: str) -> Iterator[Role]:
    role = Role(folder, *before)
    try:
        until("it runs", lambda: role.events() == ["role_started"])
        yield role
    finally:
        role.process.kill()
        role.process.wait()


def test_a_service_goes_on_as_often_as_it_is_told_to_read_its_files_again(tmp_path: Path) -> None:
    """An administrator's habit, or ExecReload: it must not put out a whole site."""
    with started(tmp_path) as role:
        for number in (1, 2):
            role.process.send_signal(signal.SIGHUP)
            until("it has heard", lambda: role.events()[1:] == ["hangup_ignored"] * number)  # noqa: B023
        assert role.stop() == 0
        assert role.events()[-1] == "role_stopped"


def test_who_lets_a_role_run_on_a_terminal_and_closes_it_finds_no_process_left(tmp_path: Path) -> None:
    """It ends as by Ctrl-C, which its engine and its clients notice; asked by hand, it goes on there too."""
    import pty

    ours, theirs = (os.fdopen(end, "rb", buffering=0) for end in pty.openpty())
    with ours, theirs, started(tmp_path, "-c", ON_TERMINAL, os.ttyname(theirs.fileno())) as role:
        role.process.send_signal(signal.SIGHUP)
        until("it has heard", lambda: role.events()[1:] == ["hangup_ignored"])
        theirs.close()
        ours.close()
        assert role.process.wait(WAIT_S) == 0
        assert role.events()[-1] == "role_stopped"


def test_nohup_is_obeyed(tmp_path: Path) -> None:
    """Who ignores it for us has said what it shall mean."""
    with started(tmp_path, "-c", IGNORING) as role:
        role.process.send_signal(signal.SIGHUP)
        assert role.stop() == 0
        assert role.events() == ["role_started", "role_stopped"]
