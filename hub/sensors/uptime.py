"""How long the machine and this hub have been running."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import ClassVar

import psutil

from broker.messages import Value
from broker.runner import monotonic_s
from hub.sensors import Interval, SensorSettings, ValueSpec


class UptimeSettings(SensorSettings, frozen=True):
    """`[sensors.uptime]`."""

    interval_s: Interval = 60.0


class UptimeSensor:
    """Seconds since the machine's start (with its time asleep) and since the hub's."""

    name: ClassVar[str] = "uptime"
    Settings: ClassVar[type[SensorSettings]] = UptimeSettings

    def __init__(self, settings: SensorSettings, state: str | None):
        self.interval_s = settings.interval_s
        self.state: str | None = None
        self._started_at = monotonic_s()

    @classmethod
    def available(cls) -> bool:
        """Return True: every machine was started."""
        return True

    def values(self) -> Sequence[ValueSpec]:
        """Return the machine's and the hub's."""
        return [
            ValueSpec("uptime.machine", "s", "number", "Seconds since the machine was started"),
            ValueSpec("uptime.hub", "s", "number", "Seconds since the hub was started"),
        ]

    def sample(self) -> dict[str, Value]:
        """Return the present uptimes."""
        return {"uptime.machine": int(_machine_s()), "uptime.hub": int(monotonic_s() - self._started_at)}


def _machine_s() -> float:
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)  # Not moved when somebody sets the clock.
    return max(0.0, time.time() - psutil.boot_time())
