"""Which sensor is due (pure): aligned to one grid, without drift, and without a burst after the machine has slept."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor
from random import Random

from config import limits


class Schedule:
    """Due times of sensors by name, in monotonic seconds.

    All are due at `start`; from then on each at the multiples of its interval, counted from one origin, so that sensors
    with a common multiple stay together. `random` puts the origin somewhere in the longest interval before the start:
    hubs that were switched on together don't measure, and send, together for ever.
    """

    def __init__(self, intervals_s: Mapping[str, float], start: float, random: Random | None = None):
        self._intervals_s = dict(intervals_s)
        longest_s = max(self._intervals_s.values(), default=0.0)
        self._origin = start if random is None else start - random.uniform(0.0, longest_s)
        self._turns = dict.fromkeys(self._intervals_s, 0)
        self._due_at = dict.fromkeys(self._intervals_s, start)

    def deadline(self) -> float | None:
        """Return when the next sensor is due, or None if there is none."""
        return min(self._due_at.values(), default=None)

    def take_due(self, now: float) -> list[str]:
        """Return the sensors that are due at `now` or within a moment, and set each one's next time.

        What was missed is skipped: a sensor is returned once, however long ago it was due.
        """
        horizon = now + limits.SENSOR_TOGETHER_S
        due = [name for name, at in self._due_at.items() if at <= horizon]
        for name in due:
            interval_s = self._intervals_s[name]
            # The turn that is served now may lie within the horizon, or be one of those missed.
            served = max(self._turns[name], floor((horizon - self._origin) / interval_s))
            self._turns[name] = served + 1
            self._due_at[name] = self._origin + (served + 1) * interval_s
        return due
