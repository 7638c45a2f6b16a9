"""Counts 1, 2, 3 …, for tests and benchmarks: whoever reads the stored values sees at once what is lost or doubled.

The count is stored in one transaction with its points, so that it goes on without hole or repetition after any crash.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from msgspec import Meta

from broker.clock import unix_ms
from broker.messages import Value
from broker.runner import monotonic_s
from config import limits
from hub.sensors import Interval, SensorSettings, TimedValues, ValueSpec

_CLOCKS_APART_MS = 1000
"""A wall clock that was set back by more than this is believed."""


class CounterSettings(SensorSettings, frozen=True):
    """`[sensors.counter]`. `rate_hz` is how far it counts in a second, `interval_s` how often it catches up."""

    enabled: bool = False
    interval_s: Interval = limits.SENSOR_INTERVAL_MIN_S
    rate_hz: Annotated[float, Meta(gt=0, le=limits.COUNTER_RATE_MAX_HZ)] = 10.0


class CounterSensor:
    """One point per count. After a pause (a suspended machine) it goes on at its rate and does not make up for it."""

    name: ClassVar[str] = "counter"
    Settings: ClassVar[type[SensorSettings]] = CounterSettings

    def __init__(self, settings: SensorSettings, state: str | None):
        assert isinstance(settings, CounterSettings)
        self.interval_s = settings.interval_s
        self._rate_hz = settings.rate_hz
        self._count = int(state) if state is not None and state.isdecimal() else 0
        self._counted_until = monotonic_s()
        self._last_ms = 0

    @classmethod
    def available(cls) -> bool:
        """Return True: one can always count."""
        return True

    @property
    def state(self) -> str | None:
        """Return the last count, or None before the first."""
        return str(self._count) if self._count else None

    def values(self) -> Sequence[ValueSpec]:
        """Return the count."""
        return [ValueSpec("counter.value", "1", "number", "Counts up by one, for ever")]

    def sample(self) -> list[TimedValues]:
        """Return a point for each count since the sample before, spread evenly over that time."""
        now, now_ms = monotonic_s(), unix_ms()
        due = int((now - self._counted_until) * self._rate_hz)
        most = max(limits.POINTS_MAX, int(2 * self._rate_hz * self.interval_s))
        if due > most:
            due, self._counted_until = most, now - most / self._rate_hz
        self._counted_until += due / self._rate_hz
        late_ms = (now - self._counted_until) * 1000.0
        step_ms = 1000.0 / self._rate_hz
        points = []
        for position in range(due):
            values: dict[str, Value] = {"counter.value": self._count + position + 1}
            ts_ms = now_ms - int(late_ms + (due - 1 - position) * step_ms)
            # The two clocks are not read at the same instant: what is a little too early comes after the point before.
            self._last_ms = ts_ms if self._last_ms - ts_ms > _CLOCKS_APART_MS else max(ts_ms, self._last_ms)
            points.append(TimedValues(self._last_ms, values))
        self._count += due
        return points
