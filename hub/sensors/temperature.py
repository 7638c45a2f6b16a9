"""How warm the machine is, where it has thermal sensors that can be read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import ClassVar

import psutil

from broker.messages import Value
from config import limits
from hub.sensors import Interval, SensorSettings, ValueSpec


class TemperatureSettings(SensorSettings, frozen=True):
    """`[sensors.temperature]`."""

    interval_s: Interval = 60.0


class TemperatureSensor:
    """Named after chip and place: `temperature.coretemp.core-0`. Most virtual machines, and Windows, have none."""

    name: ClassVar[str] = "temperature"
    Settings: ClassVar[type[SensorSettings]] = TemperatureSettings

    def __init__(self, settings: SensorSettings, state: str | None):
        self.interval_s = settings.interval_s
        self.state: str | None = None

    @classmethod
    def available(cls) -> bool:
        """Tell whether there is a thermal sensor."""
        return any(_readings())

    def values(self) -> Sequence[ValueSpec]:
        """Return the places that can be read now."""
        return [ValueSpec(name, "Cel", "number", f"Temperature of {place}") for name, place, _ in _readings()]

    def sample(self) -> dict[str, Value]:
        """Return the present temperatures."""
        return {name: celsius for name, _, celsius in _readings()}


def _readings() -> Iterator[tuple[str, str, float]]:
    """Yield (value's name, place in words, degrees Celsius)."""
    read = getattr(psutil, "sensors_temperatures", None)  # Only where psutil knows how.
    chips = read() if read is not None else {}
    names: set[str] = set()
    for chip, entries in sorted(chips.items()):
        for position, entry in enumerate(entries, start=1):
            name = f"temperature.{_label(chip)}.{_label(entry.label) or position}"
            if name in names:
                name = f"{name}-{position}"
            if len(names) < limits.SENSOR_TEMPERATURES_MAX and name not in names:
                names.add(name)
                yield name, f"{chip} {entry.label}".strip(), float(entry.current)


def _label(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-").lower()[:48]
