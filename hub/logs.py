"""The hub's own log lines for the cloud: collected from every thread, put into the outbox in batches.

While the hub roams they are kept in a file instead.

Nothing that is logged about sending logs is collected, and a batch comes every LOGS_INTERVAL_S at most: they can't feed
on themselves.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

import msgspec
import structlog

from broker.clock import unix_ms
from broker.control import LogRecord, Logs
from broker.runner import monotonic_s
from config import limits
from config import log as logging
from config.settings import HubLogs
from hub.entries import Entry
from hub.keeper import Keeper
from hub.log_batches import LogBatches, bounded, level_of

log = structlog.get_logger(__name__)

FILE: Final = "logs.jsonl"
RANKS: Final = {"debug": 0, "info": 1, "warning": 2, "error": 3, "critical": 3, "off": 9}
CONNECTION_EVENTS: Final = frozenset(
    (
        *("hub_started", "hub_stopped", "network_changed", "mode_changed", "roaming_entered", "roaming_left"),
        *("broker_connected", "broker_unreachable", "path_taken", "path_lost", "contact_made", "contact_failed"),
        "contact_cut_short",
    )
)
"""What tells how a hub's paths change: sent from the level info on, whatever `logs.level` says, if `logs.connection` is set."""
_MECHANICS: Final = frozenset(("logs", "log_batches"))
"""Modules whose own lines are not collected: they would feed on themselves."""


class LogCollector:
    """The log lines of one hub. `take` is called in any thread, the rest in the event loop."""

    def __init__(self, settings: HubLogs, data_dir: Path, keeper: Keeper):
        self._settings, self._keeper = settings, keeper
        self._waiting_file = WaitingLogs(data_dir / FILE)
        self._batches = LogBatches(token_hex(8), monotonic_s())
        self._recent: deque[LogRecord] = deque(maxlen=limits.LOGS_WAITING_MAX)
        self._count = 0
        self._one_at_a_time = threading.Lock()
        self._appended_at: float | None = None
        self._saved = True  # Something may wait in the file, of an earlier run.
        self._handing = self._handed = False
        lowest = min(RANKS[settings.level], RANKS["info"])
        self._untap = logging.tap(self.take, "debug" if lowest == 0 else "info")

    def take(self, line: Mapping[str, object]) -> None:
        """Look at one line, and keep it if it is wanted."""
        level, event = str(line.get("level", "info")), str(line.get("event", ""))
        if str(line.get("logger", "")).rpartition(".")[2] in _MECHANICS:
            return
        fields = {
            name: value for name, value in line.items() if name not in ("time", "timestamp", "level", "event", "logger")
        }
        now_ms = unix_ms()
        with self._one_at_a_time:
            self._count += 1
            self._recent.append(LogRecord(self._count, now_ms, level_of(level), event[:256], bounded(fields)[0]))
            if self._is_wanted(level, event):
                self._batches.offer(now_ms, level, event, fields, monotonic_s())

    def recent_logs(self, limit: int) -> list[LogRecord]:
        """Return the newest lines, wanted at the cloud or not, the oldest first."""
        with self._one_at_a_time:
            return list(self._recent)[-limit:] if limit > 0 else []

    async def pass_on(self, *, roaming: bool, at_once: bool = False) -> None:
        """Put what waits into the outbox, if it is time to; while the hub roams, into a file instead.

        What an earlier run, or a time of roaming, has left in the file goes first. It is taken away only when it is in the
        outbox: after a crash in between, lines come twice, and are known by `boot` and `n`.
        """
        now = monotonic_s()
        if not at_once and self._appended_at is not None and now < self._appended_at + limits.LOGS_INTERVAL_S:
            return
        if self._handing:
            return  # The outbox has not taken yet what was in the file.
        if self._handed:
            await self._keeper.call(self._waiting_file.clear)
            self._handed = self._saved = False
        if not roaming and self._saved:
            await self._hand_over()
            if self._handing:
                return
        with self._one_at_a_time:
            batch = self._batches.take()
        if batch is None:
            return
        self._appended_at = now
        if not roaming:
            self._append(batch)
            return
        lost = await self._keeper.call(lambda: self._waiting_file.add(batch))
        self._saved = True
        if lost:
            with self._one_at_a_time:
                self._batches.lost(lost)

    def close(self) -> None:
        """Listen no more."""
        self._untap()

    def _is_wanted(self, level: str, event: str) -> bool:
        rank = RANKS.get(level, 1)
        if rank >= RANKS[self._settings.level]:
            return True
        return self._settings.connection and event in CONNECTION_EVENTS and rank >= RANKS["info"]

    def _append(self, batch: Logs, kept: Callable[[Sequence[int]], None] | None = None) -> None:
        self._keeper.append("logs", [Entry(batch.records[-1].ts, msgspec.json.encode(batch))], {}, kept)

    async def _hand_over(self) -> None:
        batches = await self._keeper.call(self._waiting_file.read)
        if not batches:
            self._saved = False
            return
        self._handing = True
        for batch in batches[:-1]:
            self._append(batch)
        self._append(batches[-1], self._handed_over)

    def _handed_over(self, _seqs: Sequence[int]) -> None:
        """Take note that all is in the outbox."""
        self._handing, self._handed = False, True


class WaitingLogs:
    """Batches in a file, one a line, bounded; in one thread at a time. A disk that refuses costs log lines, nothing else."""

    def __init__(self, file: Path, max_bytes: int = limits.LOGS_FILE_MAX_BYTES):
        self._file, self._max_bytes = file, max_bytes

    def add(self, batch: Logs) -> int:
        """Add a batch durably; returns how many lines were given up for it."""
        line = msgspec.json.encode(batch) + b"\n"
        lost = 0
        try:
            size_bytes = self._file.stat().st_size if self._file.exists() else 0
            if size_bytes + len(line) > self._max_bytes:
                lost = self._halve()
            descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o600)
            with os.fdopen(descriptor, "ab") as stream:
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as exc:
            log.debug("waiting_logs_not_saved", reason=exc.strerror)
            return lost + len(batch.records)
        return lost

    def read(self) -> list[Logs]:
        """Return all batches that are whole, in order."""
        batches: list[Logs] = []
        try:
            lines = self._file.read_bytes().splitlines()
        except OSError:
            return batches
        for line in lines:
            try:
                batches.append(msgspec.json.decode(line, type=Logs))
            except (msgspec.DecodeError, RecursionError):
                continue  # Cut off by a crash.
        return batches

    def clear(self) -> None:
        """Remove the file."""
        try:
            self._file.unlink(missing_ok=True)
        except OSError as exc:
            log.debug("waiting_logs_not_removed", reason=exc.strerror)

    def _halve(self) -> int:
        """Give up the older half; returns how many lines that were."""
        batches = self.read()
        kept: list[bytes] = []
        size_bytes = lost = 0
        for batch in reversed(batches):
            line = msgspec.json.encode(batch) + b"\n"
            size_bytes += len(line)
            if size_bytes > self._max_bytes // 2:
                lost += len(batch.records)
            else:
                kept.append(line)
        fresh = self._file.with_name(f".{self._file.name}.new")
        fresh.write_bytes(b"".join(reversed(kept)))
        fresh.replace(self._file)
        return lost


def plain(records: list[LogRecord]) -> list[dict[str, Any]]:
    """Return records as plain JSON content."""
    return [msgspec.to_builtins(record) for record in records]
