"""How many processes want to run: the load averages of Unix."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import ClassVar

from broker.messages import Value
from hub.sensors import SensorSettings, ValueSpec


class LoadSensor:
    """The averages over 1, 5 and 15 minutes. Windows has none."""

    name: ClassVar[str] = "load"
    Settings: ClassVar[type[SensorSettings]] = SensorSettings

    def __init__(self, settings: SensorSettings, state: str | None):
        self.interval_s = settings.interval_s
        self.state: str | None = None

    @classmethod
    def available(cls) -> bool:
        """Tell whether the system has load averages of its own."""
        return hasattr(os, "getloadavg")

    def values(self) -> Sequence[ValueSpec]:
        """Return the three averages."""
        return [
            ValueSpec(f"load.{minutes}min", "1", "number", f"Processes that want to run, averaged over {minutes} min")
            for minutes in (1, 5, 15)
        ]

    def sample(self) -> dict[str, Value]:
        """Return the present averages."""
        averages = os.getloadavg()
        return {f"load.{minutes}min": round(load, 2) for minutes, load in zip((1, 5, 15), averages, strict=True)}
