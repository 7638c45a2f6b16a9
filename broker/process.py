"""Runs one role's asyncio main until the system or a person asks it to stop, and through everything else."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

import orjson

from config import limits, log

_STILL_TURNS: Final = max(1, int(limits.STATUS_STALE_S / limits.STATUS_INTERVAL_S / 2))
_log: Final = log.get(__name__)
T = TypeVar("T")


def run_until_stopped(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run `main(stop)` to its end; SIGTERM, Ctrl-C and (on Windows) Ctrl-Break set `stop`, and `main` has to return.

    A second signal ends the process at once, as a person who asks twice expects. A fault of ours in a callback or a
    `watched` task ends it too, with status 1: a service manager starts it anew, where half a process would go on in silence.

    SIGHUP sets `stop` too if the terminal that we had is gone. Else it asks, as it asks a service, to read files again: that
    is done all the time, so we go on. Where SIGHUP is ignored, as by nohup, it stays so.
    """
    faults: list[BaseException] = []

    async def supervised() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def on_exception(_loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
            exc = context.get("exception")
            if isinstance(exc, Exception) and not isinstance(exc, OSError):
                _log.error("internal_error", what=str(context.get("message")), exc_info=exc)
                faults.append(exc)
                stop.set()
            else:  # A socket's own trouble; whoever uses it hears of it as a loss.
                _log.debug("loop_complained", what=str(context.get("message")), reason=str(exc))

        loop.set_exception_handler(on_exception)

        def on_signal(number: int) -> None:
            if stop.is_set():
                os._exit(128 + number)
            stop.set()

        for name in ("SIGTERM", "SIGINT", "SIGBREAK"):
            number = getattr(signal, name, None)
            if number is None:
                continue
            try:
                loop.add_signal_handler(number, on_signal, number)
            except NotImplementedError:  # Windows' default loop has no signal handlers.
                signal.signal(number, lambda got, _frame: loop.call_soon_threadsafe(on_signal, got))
        if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            loop.add_signal_handler(signal.SIGHUP, _on_hangup, stop, _has_terminal())
        await main(stop)

    asyncio.run(supervised())
    if faults:
        sys.exit(1)


def _has_terminal() -> bool:
    """Tell whether a terminal controls this process, whatever its streams are."""
    try:
        os.close(os.open(os.ctermid(), os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _on_hangup(stop: asyncio.Event, had_terminal: bool) -> None:
    """Go on, or stop. Both the system and a shell that ends may say it: twice is no hurry."""
    if had_terminal and not _has_terminal():
        stop.set()
    else:
        reason = "certificates and lists are read again by themselves when they change, settings only at a start"
        _log.info("hangup_ignored", reason=reason)


def watched(task: asyncio.Task[T]) -> asyncio.Task[T]:
    """Return a background task whose failure is told to the event loop at once, not when the task is thrown away."""

    def look(done: asyncio.Task[T]) -> None:
        if not done.cancelled() and (exc := done.exception()) is not None:
            done.get_loop().call_exception_handler({"message": f"task {done.get_name()} failed", "exception": exc})

    task.add_done_callback(look)
    return task


async def cancelled(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks until all have ended.

    Once may not be enough: a library may take a cancellation for a failure of its own, or lose it (`asyncio.wait_for` before
    Python 3.12, if what it waits for has just come), and go on.
    """
    tasks = list(tasks)
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=limits.CANCEL_AGAIN_S)
    await asyncio.gather(*tasks, return_exceptions=True)


def write_status(file: Path, content: dict[str, object]) -> None:
    """Replace a status file in one step, so that a reader never sees half of it. Raises OSError.

    It is not synced to disk: a status tells of a running process, and is worthless after a crash.
    """
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    fresh.replace(file)


class StatusFile:
    """Renews a status file while a process runs: at a change, and often enough that it is not taken for stale.

    With `in_thread`, a slow disk doesn't hold up the event loop every second; that costs a thread.
    """

    def __init__(self, file: Path, describe: Callable[[], dict[str, object]], *, in_thread: bool = False):
        self._file = file
        self._in_thread = in_thread
        self._one_at_a_time = threading.Lock()
        self._describe = describe
        self._failed = False
        self._written: dict[str, object] = {}
        self._turns = 0

    def changed(self) -> None:
        """Renew the file at once: something has happened that a person may be waiting for."""
        self.write()

    async def keep(self) -> None:
        """Renew the file until cancelled: every STATUS_INTERVAL_S while something changes, else often enough."""
        while True:
            self._turns += 1
            content = self._describe()
            if {**content, "ts": None} != {**self._written, "ts": None} or self._turns % _STILL_TURNS == 0:
                if self._in_thread:
                    await asyncio.to_thread(self.write, content)
                else:
                    self.write(content)
            await asyncio.sleep(limits.STATUS_INTERVAL_S)

    def write(self, content: dict[str, object] | None = None) -> None:
        """Write the file now. A disk that refuses it costs one warning, never the process."""
        try:
            with self._one_at_a_time:
                self._written = self._describe() if content is None else content
                write_status(self._file, self._written)
            self._failed = False
        except OSError as exc:
            if not self._failed:
                _log.warning("status_not_written", file=str(self._file), reason=exc.strerror or str(exc))
            self._failed = True
