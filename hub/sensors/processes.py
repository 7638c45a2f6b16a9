"""How many processes there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import psutil

from broker.messages import Value
from hub.sensors import Interval, SensorSettings, ValueSpec


class ProcessesSettings(SensorSettings, frozen=True):
    """`[sensors.processes]`."""

    interval_s: Interval = 60.0


class ProcessesSensor:
    """Only their number: a look at each one would cost more than all other sensors together."""

    name: ClassVar[str] = "processes"
    Settings: ClassVar[type[SensorSettings]] = ProcessesSettings

    def __init__(self, settings: SensorSettings, state: str | None):
        self.interval_s = settings.interval_s
        self.state: str | None = None

    @classmethod
    def available(cls) -> bool:
        """Return True: this one is a process."""
        return True

    def values(self) -> Sequence[ValueSpec]:
        """Return the number."""
        return [ValueSpec("processes.count", "1", "number", "Processes that this machine runs")]

    def sample(self) -> dict[str, Value]:
        """Return the present number."""
        return {"processes.count": len(psutil.pids())}
