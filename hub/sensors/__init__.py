"""The Sensor protocol, and the sensors that this hub runs: the built-in ones and those added by entry point.

Bad options are the operator's error and named as such. A sensor of somebody else that is broken is logged and left out:
it never keeps the hub from measuring the rest.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, ClassVar, Final, Literal, Protocol, TypeAlias, TypeVar, cast

import msgspec
import structlog
from msgspec import Meta, Struct

from broker.messages import Value
from broker.topics import is_label
from config import limits
from config.errors import SettingsError
from config.plugins import SENSORS as GROUP
from config.settings import Scalar

Interval: TypeAlias = Annotated[float, Meta(ge=limits.SENSOR_INTERVAL_MIN_S, le=limits.SENSOR_INTERVAL_MAX_S)]
T = TypeVar("T")

BUILT_IN: Final[Mapping[str, str]] = {
    "cpu": "hub.sensors.cpu:CpuSensor",
    "memory": "hub.sensors.memory:MemorySensor",
    "load": "hub.sensors.load:LoadSensor",
    "disk": "hub.sensors.disk:DiskSensor",
    "network": "hub.sensors.network:NetworkSensor",
    "uptime": "hub.sensors.uptime:UptimeSensor",
    "processes": "hub.sensors.processes:ProcessesSensor",
    "temperature": "hub.sensors.temperature:TemperatureSensor",
    "counter": "hub.sensors.counter:CounterSensor",
}
"""Known without a look at what is installed, so that nothing installed can take their names."""

log = structlog.get_logger(__name__)


class SensorSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[sensors.<name>]`: what every sensor knows. A sensor's own `Settings` add its keys and other defaults."""

    enabled: bool = True
    interval_s: Interval = 10.0


@dataclass(frozen=True, slots=True)
class ValueSpec:
    """What a value means. `name` is in full (`disk.root.free`), `unit` is UCUM's ("%", "By", "s", "1", "Cel")."""

    name: str
    unit: str
    type: Literal["number", "string", "boolean"]
    description: str


@dataclass(frozen=True, slots=True)
class TimedValues:
    """Values of a moment that the sensor itself names, by the hub's clock."""

    ts_ms: int
    values: Mapping[str, Value]


Sampled: TypeAlias = Mapping[str, Value] | Sequence[TimedValues]
"""Values of now, to be merged with those of other sensors; or points of the sensor's own, in order."""


class Sensor(Protocol):
    """What measures. Names of values start with the sensor's name and a dot, or are its name.

    `sample` may block: it runs in a thread, never twice at once. `state` is read after it in the same thread, and stored
    together with the sample; the newest stored one is handed to the constructor after a restart.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[SensorSettings]]

    def __init__(self, settings: SensorSettings, state: str | None): ...

    @classmethod
    def available(cls) -> bool:
        """Tell whether this machine has anything for the sensor to measure."""
        ...

    @property
    def interval_s(self) -> float:
        """Return the seconds between samples."""
        ...

    @property
    def state(self) -> str | None:
        """Return what must outlive a restart, or None."""
        ...

    def values(self) -> Sequence[ValueSpec]:
        """Return what the samples hold on this machine."""
        ...

    def sample(self) -> Sampled:
        """Measure. What can't be told yet (a rate's first sample) is left out."""
        ...


def load_sensors(sections: Mapping[str, Mapping[str, Scalar]], states: Mapping[str, str]) -> list[Sensor]:
    """Return the enabled sensors that this machine has something for, in a fixed order.

    `sections` are the hub's `[sensors.<name>]`, those not there having their defaults; `states` are the stored ones by
    sensor. Raises SettingsError for a section without a sensor, or an option that its sensor does not know.
    """
    installed = dict(_installed())
    for name in sections:
        if name not in installed:
            known = ", ".join(sorted(installed))
            raise SettingsError(f"there is no such sensor (known: {known})", key=f"sensors.{name}")
    sensors = []
    for name, place in installed.items():
        section = sections.get(name, {})
        if name not in BUILT_IN and section.get("enabled") is False:
            continue  # Somebody else's code does not even run when it is switched off.
        kind = _loaded(name, place)
        if kind is not None:
            settings = settings_of(name, section, kind.Settings)
            sensor = _made(name, kind, settings, states.get(name)) if settings.enabled else None
            if sensor is not None:
                sensors.append(sensor)
    return sensors


def settings_of(name: str, section: Mapping[str, Scalar], shape: type[T]) -> T:
    """Return a section as its sensor's settings. Raises SettingsError that names the key."""
    try:
        return msgspec.convert(dict(section), shape)
    except msgspec.ValidationError as exc:
        problem, _, where = str(exc).partition(" - at ")
        unknown = re.search(r"unknown field `(.*)`", problem)
        key = unknown[1] if unknown else where.strip("`").removeprefix("$").removeprefix(".")
        if unknown:
            problem = f"is not a key here; known: {', '.join(getattr(shape, '__struct_fields__', ()))}"
        value = section.get(key.partition("[")[0])
        raise SettingsError(problem, key=f"sensors.{name}.{key}".rstrip("."), value=value) from exc


def _installed() -> Iterator[tuple[str, EntryPoint]]:
    for name, place in BUILT_IN.items():
        yield name, EntryPoint(name, place, GROUP)
    for found in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        if found.name not in BUILT_IN:
            yield found.name, found
        elif found.value != BUILT_IN[found.name]:
            log.warning("sensor_left_out", sensor=found.name, place=found.value, reason="a built-in one has this name")


def _loaded(name: str, place: EntryPoint) -> type[Sensor] | None:
    """Return a sensor's class, or None if it is broken."""
    try:
        if name in BUILT_IN:
            module, _, attribute = place.value.partition(":")
            found: object = getattr(importlib.import_module(module), attribute)
        else:
            found = place.load()
        complaint = _complaint(name, found)
    except Exception as exc:  # noqa: BLE001  # Somebody else's module may raise anything.
        complaint = f"{type(exc).__name__}: {exc}"
    if complaint:
        log.error("sensor_left_out", sensor=name, place=place.value, reason=complaint[: limits.LOG_TEXT_MAX])
        return None
    return cast(type[Sensor], found)


def _complaint(name: str, found: object) -> str:
    """Return what keeps a loaded object from being a sensor's class, or nothing."""
    settings = getattr(found, "Settings", None)
    if not is_label(name):
        return "its name must be lower-case letters, digits and hyphens"
    if not isinstance(found, type) or getattr(found, "name", None) != name:
        return f'is not a class with name = "{name}"'
    if not (isinstance(settings, type) and issubclass(settings, SensorSettings)):
        return "has no Settings derived from SensorSettings"
    return _lacking(found, ("available", "values", "sample"))


def _lacking(thing: object, parts: Sequence[str]) -> str:
    missing = [part for part in parts if not hasattr(thing, part)]
    return f"lacks {', '.join(missing)}" if missing else ""


def _made(name: str, kind: type[Sensor], settings: SensorSettings, state: str | None) -> Sensor | None:
    """Return the sensor, or None if the machine has nothing for it or its making fails."""
    try:
        if not kind.available():
            return None
        sensor = kind(settings, state)
        complaint = _lacking(sensor, ("interval_s", "state"))
        if not complaint and not limits.SENSOR_INTERVAL_MIN_S <= sensor.interval_s <= limits.SENSOR_INTERVAL_MAX_S:
            complaint = f"its interval is {sensor.interval_s} s"
    except Exception as exc:  # noqa: BLE001  # See above; the hub measures what it can.
        complaint = f"{type(exc).__name__}: {exc}"
    if complaint:
        log.error("sensor_left_out", sensor=name, reason=complaint[: limits.LOG_TEXT_MAX])
        return None
    return sensor
