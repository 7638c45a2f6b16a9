"""Log lines on their way to the cloud (pure): bounded in number, rate and size, and what was too much is counted.

A hub in trouble logs the same again and again; what it sends of that must not become a trouble of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

import orjson

from broker.control import LogRecord, Logs
from config import limits

_EVENT_MAX: Final = 256
_TEXT_MAX: Final = 512
_OVERHEAD_BYTES: Final = 64
"""What a line costs beside its event and its fields: number, time, level and names."""


class LogBatches:
    """The lines of one start of the hub, `boot`. A token bucket lets LOGS_BURST through, then LOGS_PER_S."""

    def __init__(self, boot: str, now: float):
        self.boot = boot
        self._tokens, self._filled_at = float(limits.LOGS_BURST), now
        self._waiting: deque[tuple[LogRecord, int]] = deque()
        self._dropped = 0
        self._last = 0

    def offer(self, ts_ms: int, level: str, event: str, fields: Mapping[str, object], now: float) -> None:
        """Take a line, or count it as dropped if there were too many."""
        elapsed_s, self._filled_at = max(0.0, now - self._filled_at), now
        self._tokens = min(float(limits.LOGS_BURST), self._tokens + elapsed_s * limits.LOGS_PER_S)
        self._last += 1
        if self._tokens < 1.0 or len(self._waiting) >= limits.LOGS_WAITING_MAX:
            self._dropped += 1
            return
        self._tokens -= 1.0
        kept, size_bytes = bounded(fields)
        name = event[:_EVENT_MAX]
        record = LogRecord(self._last, ts_ms, level_of(level), name, kept)
        self._waiting.append((record, size_bytes + len(name.encode()) + _OVERHEAD_BYTES))

    def lost(self, records: int) -> None:
        """Count lines that were taken and have been given up since."""
        self._dropped += records

    def take(self) -> Logs | None:
        """Return the oldest lines, as many as fit into a message, or None if none waits."""
        if not self._waiting:
            return None
        taken: list[LogRecord] = []
        size_bytes = 0
        while self._waiting and len(taken) < limits.EVENTS_MAX:
            size_bytes += self._waiting[0][1]
            if taken and size_bytes > limits.LOGS_BATCH_BYTES:
                break
            taken.append(self._waiting.popleft()[0])
        dropped, self._dropped = self._dropped, 0
        return Logs(self.boot, taken, dropped)


def level_of(level: str) -> Any:
    """Return one of the four levels of the contract; there is nothing above an error."""
    return level if level in ("debug", "info", "warning", "error") else "error"


def bounded(fields: Mapping[str, object]) -> tuple[dict[str, Any], int]:
    """Return fields that take no more than LOG_FIELDS_MAX_BYTES together, and what they take."""
    kept: dict[str, Any] = {}
    size_bytes = 2
    for name, value in fields.items():
        short = value if value is None or isinstance(value, bool | int | float) else str(value)[:_TEXT_MAX]
        try:
            more = len(orjson.dumps({name: short}))
        except TypeError:
            continue  # A number that JSON can't say, or text that is no Unicode.
        if size_bytes + more > limits.LOG_FIELDS_MAX_BYTES:
            continue
        kept[name] = short
        size_bytes += more
    return kept, size_bytes
