"""How far each hub's clock is from the cloud's (pure): estimated from the moments at which messages were sent and came.

A message cannot come before it was sent, but it may come late: of several, the one that was least delayed says most. So the
estimate is the largest `sent - received` of the last minutes. It is negative for a clock that is behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from config import limits

_WINDOW_MS: Final = int(limits.SKEW_WINDOW_S * 1000)


@dataclass(slots=True)
class _Window:
    """The best of the current half of the window and of the one before."""

    number: int
    best_ms: int
    before_ms: int | None = None


class SkewMeter:
    """The clocks of up to `streams_max` streams; beyond, all are measured anew."""

    def __init__(self, streams_max: int = limits.SKEW_STREAMS_MAX) -> None:
        self._streams_max: Final = streams_max
        self._windows: dict[tuple[str, ...], _Window] = {}

    def measure(self, stream: tuple[str, ...], sent_ms: int, received_ms: int) -> int:
        """Take one message into account and return how far the clock is ahead, in ms; 0 if it is as right as can be told."""
        difference, number = sent_ms - received_ms, received_ms // _WINDOW_MS
        window = self._windows.get(stream)
        if window is None or number not in (window.number, window.number + 1):
            if window is None and len(self._windows) >= self._streams_max:
                self._windows.clear()
            self._windows[stream] = _Window(number, difference)
            return _told(difference)
        if _stepped_back(window, difference):  # The clock was set: what was measured before says nothing any more.
            self._windows[stream] = _Window(number, difference)
            return _told(difference)
        if number != window.number:
            window.number, window.before_ms, window.best_ms = number, window.best_ms, difference
        elif difference > window.best_ms:
            window.best_ms = difference
        best_ms = window.best_ms
        if window.before_ms is not None and window.before_ms > best_ms:
            best_ms = window.before_ms
        return _told(best_ms)


def _stepped_back(window: _Window, difference_ms: int) -> bool:
    """Tell whether a message can't only be late: nothing on its way holds one up for ten minutes.

    On a clock that was ahead this is believed soon: if it was a late message after all, the next one puts it right.
    """
    best_ms = window.best_ms if window.before_ms is None else max(window.best_ms, window.before_ms)
    late_ms = limits.SKEW_BEHIND_MIN_MS if best_ms > limits.SKEW_AHEAD_MIN_MS else 2 * _WINDOW_MS
    return difference_ms < best_ms - late_ms


def _told(difference_ms: int) -> int:
    """Return an estimate that is worth telling: a little behind is what every message is, by the time that it takes."""
    if -limits.SKEW_BEHIND_MIN_MS <= difference_ms <= limits.SKEW_AHEAD_MIN_MS:
        return 0
    return difference_ms
