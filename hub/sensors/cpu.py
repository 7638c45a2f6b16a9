"""How busy the processors are, between one sample and the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

import psutil

from broker.messages import Value
from hub.sensors import SensorSettings, ValueSpec

_PARTS: Final = {
    "user": "Share of time spent in programs",
    "system": "Share of time spent in the kernel",
    "iowait": "Share of time spent waiting for disks",
    "steal": "Share of time that the hypervisor gave to other machines",
}


class CpuSensor:
    """All processors together: 100 % is all of them busy."""

    name: ClassVar[str] = "cpu"
    Settings: ClassVar[type[SensorSettings]] = SensorSettings

    def __init__(self, settings: SensorSettings, state: str | None):
        self.interval_s = settings.interval_s
        self.state: str | None = None
        self._before: dict[str, float] | None = None

    @classmethod
    def available(cls) -> bool:
        """Return True: every machine has a processor."""
        return True

    def values(self) -> Sequence[ValueSpec]:
        """Return the whole and those parts that this system tells."""
        told = _times()
        parts = [ValueSpec(f"cpu.{part}", "%", "number", text) for part, text in _PARTS.items() if part in told]
        return [ValueSpec("cpu.percent", "%", "number", "Share of time that the processors were busy"), *parts]

    def sample(self) -> dict[str, Value]:
        """Return shares since the sample before (psutil's own are per thread, and samples come from several)."""
        before, now = self._before, _times()
        self._before = now
        if before is None:
            return {}
        # A counter may step back by a tick when a processor goes offline.
        spent = {part: max(0.0, seconds - before.get(part, seconds)) for part, seconds in now.items()}
        total = sum(spent.values())
        if total <= 0:
            return {}
        free = spent.get("idle", 0.0) + spent.get("iowait", 0.0)
        values: dict[str, Value] = {"cpu.percent": _percent(total - free, total)}
        return values | {f"cpu.{part}": _percent(spent[part], total) for part in _PARTS if part in spent}


def _times() -> dict[str, float]:
    times = psutil.cpu_times()._asdict()
    # Linux counts the time of guests in "user" and "nice" as well (proc(5)).
    return {part: float(seconds) for part, seconds in times.items() if part not in ("guest", "guest_nice")}


def _percent(part: float, total: float) -> float:
    return round(100.0 * part / total, 1)
