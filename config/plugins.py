"""Finds what other distributions add by entry point: sensors, each with the settings that it knows.

A sensor's class has an attribute `Settings`: a frozen msgspec Struct that forbids unknown fields and has at least
`enabled` and `interval_s`.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Final

from msgspec import Struct

from config.errors import SettingsError
from config.similar import did_you_mean

SENSORS: Final = "hubline.sensors"
"""The entry point group of sensors."""


def sensor_names() -> list[str]:
    """Return the names of all sensors that are installed."""
    return sorted(set(entry_points(group=SENSORS).names))


def sensor_shape(name: str, place: str | None = None) -> type[Struct]:
    """Return the settings that a sensor knows; `place` says where its name was read, for errors."""
    key = f"sensors.{name}"
    found = _entry_point(name)
    if found is None:
        names = sensor_names()
        known = ", ".join(names) or "none; is Hubline installed in this environment?"
        raise SettingsError(f"there is no such sensor{did_you_mean(name, names)} (known: {known})", file=place, key=key)
    try:
        shape: object = getattr(found.load(), "Settings", None)
    except (ImportError, AttributeError) as exc:
        raise SettingsError(f"this sensor can't be loaded from {found.value}: {exc}", file=place, key=key) from exc
    if not (isinstance(shape, type) and issubclass(shape, Struct)):
        raise SettingsError(f"this sensor ({found.value}) has no Settings of type msgspec.Struct", file=place, key=key)
    return shape


def _entry_point(name: str) -> EntryPoint | None:
    return next(iter(entry_points(group=SENSORS, name=name)), None)
