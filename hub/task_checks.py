"""Runs a check: a program of the machine's own settings, without a shell, with its time, its output and its processes bounded.

Its exit status and output mean what they do for monitoring plugins (Monitoring Plugins Development Guidelines): 0 ok,
1 warning, 2 critical, anything else unknown; the first line is the message, what follows a "|" is performance data.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from config import limits
from config.errors import SettingsError

STATES: Final[Mapping[int, str]] = {0: "ok", 1: "warning", 2: "error"}
UNKNOWN: Final = "unknown"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check has found. `exit_code` is None if it was ended because its time was over; below 0 it is a signal."""

    state: str
    exit_code: int | None
    message: str
    perfdata: str | None
    output: str
    truncated: bool


async def run_check(command: Sequence[str], timeout_s: float) -> CheckResult:
    """Run a program to its end. Raises SettingsError if it can't be started. Cancelled, it ends the program first."""
    loop = asyncio.get_running_loop()
    try:
        transport, reader = await loop.subprocess_exec(
            _Reader, *command, stdin=asyncio.subprocess.DEVNULL, start_new_session=os.name != "nt"
        )
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise SettingsError(f"can't be started: {reason}", key="command", value=command[0]) from exc
    exit_code: int | None = None
    try:
        try:
            async with asyncio.timeout(timeout_s):
                await reader.exited.wait()
        except TimeoutError:
            pass
        else:
            exit_code = transport.get_returncode()
            try:
                async with asyncio.timeout(limits.CHECK_DRAIN_S):
                    await reader.drained.wait()
            except TimeoutError:
                pass  # A process that it has left behind holds the pipe open.
    finally:
        await _end(transport, reader)
    return _result(exit_code, bytes(reader.output or reader.errors), reader.truncated, timeout_s)


class _Reader(asyncio.SubprocessProtocol):
    """Keeps the first bytes of what the program says; its `errors` count if it fails before it says anything else."""

    def __init__(self) -> None:
        self.output = bytearray()
        self.truncated = False
        self.exited = asyncio.Event()
        self.drained = asyncio.Event()
        self.errors = bytearray()
        self._open = {1, 2}

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        kept = self.output if fd == 1 else self.errors
        room = limits.CHECK_OUTPUT_MAX_BYTES - len(kept)
        self.truncated = self.truncated or len(data) > room
        kept += data[:room]

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self._open.discard(fd)
        if not self._open:
            self.drained.set()

    def process_exited(self) -> None:
        self.exited.set()


async def _end(transport: asyncio.SubprocessTransport, reader: _Reader) -> None:
    """Leave nothing behind of a program that has not ended by itself, or whose children hold its output open."""
    if not (reader.exited.is_set() and reader.drained.is_set()):
        _kill(transport)
        try:
            async with asyncio.timeout(limits.CHECK_DRAIN_S):
                await reader.exited.wait()
        except TimeoutError:
            pass  # It hangs in the kernel; the system ends it when it can.
    transport.close()


def _kill(transport: asyncio.SubprocessTransport) -> None:
    """End the program and, where the system has groups of processes, what it has started."""
    try:
        if os.name == "nt":
            if transport.get_returncode() is None:
                transport.kill()
        else:
            os.killpg(transport.get_pid(), signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # All of it has ended.


def _result(exit_code: int | None, output: bytes, truncated: bool, timeout_s: float) -> CheckResult:
    text = output.decode("utf-8", "replace")
    first, _, rest = text.partition("\n")
    message, _, perfdata = first.partition("|")
    # Long output and more performance data may follow, in this order, with a "|" between them.
    long, _, more = rest.partition("|")
    perfdata = " ".join((perfdata + " " + more).split())
    message = message.strip()
    if exit_code is None:
        message = f"has not ended within {timeout_s:g} s"
    state = UNKNOWN if exit_code is None else STATES.get(exit_code, UNKNOWN)
    return CheckResult(
        state,
        exit_code,
        (message or "(no output)")[: limits.VALUE_TEXT_MAX],
        perfdata[: limits.VALUE_TEXT_MAX] or None,
        long.strip(),
        truncated,
    )
