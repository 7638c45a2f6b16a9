"""How much memory is used, and how much of it lies in swap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import psutil

from broker.messages import Value
from hub.sensors import SensorSettings, ValueSpec


class MemorySensor:
    """Physical memory and swap. `available` is what programs can still get without swapping."""

    name: ClassVar[str] = "memory"
    Settings: ClassVar[type[SensorSettings]] = SensorSettings

    def __init__(self, settings: SensorSettings, state: str | None):
        self.interval_s = settings.interval_s
        self.state: str | None = None

    @classmethod
    def available(cls) -> bool:
        """Return True: every machine has memory."""
        return True

    def values(self) -> Sequence[ValueSpec]:
        """Return physical memory and swap."""
        return [
            ValueSpec("memory.percent", "%", "number", "Share of memory that is not available to programs"),
            ValueSpec("memory.available", "By", "number", "Memory that programs can get without swapping"),
            ValueSpec("memory.total", "By", "number", "Physical memory"),
            ValueSpec("memory.swap.percent", "%", "number", "Share of swap in use; only where there is any"),
            ValueSpec("memory.swap.used", "By", "number", "Swap in use; only where there is any"),
        ]

    def sample(self) -> dict[str, Value]:
        """Return the present use."""
        memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        values: dict[str, Value] = {
            "memory.percent": float(memory.percent),
            "memory.available": int(memory.available),
            "memory.total": int(memory.total),
        }
        if swap.total:
            values |= {"memory.swap.percent": float(swap.percent), "memory.swap.used": int(swap.used)}
        return values
