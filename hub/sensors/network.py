"""How much goes over the network: bytes and errors per second, in sum and per interface."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import psutil
from msgspec import Meta, field

from broker.messages import Value
from broker.runner import monotonic_s
from config import limits
from hub.sensors import SensorSettings, ValueSpec


class NetworkSettings(SensorSettings, frozen=True):
    """`[sensors.network]`. `interfaces` names the interfaces to watch; empty means those of hardware."""

    interfaces: Annotated[list[str], Meta(max_length=limits.SENSOR_INTERFACES_MAX)] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Counts:
    received: int
    sent: int
    errors: int


class NetworkSensor:
    """Rates between two samples; the first one is empty. Loopback, bridges and tunnels would count everything twice."""

    name: ClassVar[str] = "network"
    Settings: ClassVar[type[SensorSettings]] = NetworkSettings

    def __init__(self, settings: SensorSettings, state: str | None):
        assert isinstance(settings, NetworkSettings)
        self.interval_s = settings.interval_s
        self.state: str | None = None
        self._interfaces = settings.interfaces
        self._before: tuple[float, Mapping[str, _Counts]] | None = None

    @classmethod
    def available(cls) -> bool:
        """Tell whether the system counts packets."""
        return bool(psutil.net_io_counters(pernic=True, nowrap=False))

    def values(self) -> Sequence[ValueSpec]:
        """Return the sums and what is told of each interface that is there now."""
        specs = [
            ValueSpec("network.received", "By/s", "number", "Bytes received per second"),
            ValueSpec("network.sent", "By/s", "number", "Bytes sent per second"),
            ValueSpec("network.errors", "/s", "number", "Packets broken or dropped per second"),
        ]
        for interface in self._shown(self._counts()):
            label = label_of(interface)
            specs += [
                ValueSpec(f"network.{label}.received", "By/s", "number", f"Bytes received per second on {interface}"),
                ValueSpec(f"network.{label}.sent", "By/s", "number", f"Bytes sent per second on {interface}"),
            ]
        return specs

    def sample(self) -> dict[str, Value]:
        """Return rates since the sample before, of the interfaces that were there both times."""
        now, counts = monotonic_s(), self._counts()
        before, self._before = self._before, (now, counts)
        if before is None or now <= before[0]:
            return {}
        passed_s, old = now - before[0], before[1]
        rates = {
            # A counter that went back was reset with its interface: nothing is known of this interval.
            name: (count.received - old[name].received, count.sent - old[name].sent, count.errors - old[name].errors)
            for name, count in counts.items()
            if name in old and count.received >= old[name].received and count.sent >= old[name].sent
        }
        if not rates:
            return {}
        received, sent, errors = (sum(parts) for parts in zip(*rates.values(), strict=True))
        values: dict[str, Value] = {
            "network.received": round(received / passed_s, 1),
            "network.sent": round(sent / passed_s, 1),
            "network.errors": round(max(0, errors) / passed_s, 3),
        }
        for name in self._shown(rates):
            values[f"network.{label_of(name)}.received"] = round(rates[name][0] / passed_s, 1)
            values[f"network.{label_of(name)}.sent"] = round(rates[name][1] / passed_s, 1)
        return values

    def _counts(self) -> dict[str, _Counts]:
        found = psutil.net_io_counters(pernic=True, nowrap=False)
        watched = self._interfaces or _of_hardware(sorted(found))
        return {
            name: _Counts(
                found[name].bytes_recv,
                found[name].bytes_sent,
                found[name].errin + found[name].errout + found[name].dropin + found[name].dropout,
            )
            for name in watched
            if name in found
        }

    @staticmethod
    def _shown(interfaces: Mapping[str, object]) -> list[str]:
        return sorted(interfaces)[: limits.SENSOR_INTERFACES_MAX]


def label_of(interface: str) -> str:
    """Return an interface as part of a value's name."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", interface).strip("-").lower()[:64] or "unnamed"


def _of_hardware(interfaces: Sequence[str]) -> list[str]:
    """Return the interfaces with a device behind them; if there is none (a container), all but loopback."""
    others = [name for name in interfaces if not re.match(r"lo\d*$|loopback", name, re.IGNORECASE)]
    if sys.platform != "linux":
        return others
    return [name for name in others if os.path.exists(f"/sys/class/net/{name}/device")] or others
