"""What a hub tells the cloud about itself: a whole message at the start and whenever something of it has changed."""

from __future__ import annotations

import platform
import socket
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import msgspec

from broker.clock import unix_ms
from broker.control import Mode, ModePolicy, Protection, Reported, SettingsReport
from config.settings import HubMode, HubSettings
from hub.entries import Entry
from hub.keeper import Keeper
from hub.sensors import Sensor

_TEXT_MAX: Final = 256


def hubline_version() -> str:
    """Return this program's version."""
    try:
        return version("hubline")
    except PackageNotFoundError:
        return "0"


def host_name() -> str:
    """Return this machine's name as it calls itself."""
    return socket.gethostname()[:_TEXT_MAX]


def reported_of(
    settings: HubSettings,
    sensors: Sequence[Sensor],
    *,
    addresses: Sequence[str],
    mode: Mode,
    settings_report: SettingsReport | None,
) -> Reported:
    """Return the body of `reported`."""
    told = settings.protection
    protection = None
    if told.source == "settings":
        protection = Protection(told.scan, told.pattern, told.realtime, told.reputation)
    return Reported(
        version=hubline_version(),
        host=host_name(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}"[:_TEXT_MAX],
        addresses=list(addresses),
        mode=mode,
        machine=settings.hub.machine,
        settings=settings_report,
        protection=protection,
        privileges=msgspec.structs.asdict(settings.privileges),
        tasks=list(settings.tasks.allow),
        checks=sorted(settings.checks),
        sensors={sensor.name: _of_sensor(sensor) for sensor in sensors},
        policy=_of_mode(settings.mode),
    )


def _of_mode(mode: HubMode) -> ModePolicy:
    return ModePolicy(mode.heartbeat, mode.heartbeat_min, mode.poll_min, mode.offline_after_min)


def _of_sensor(sensor: Sensor) -> dict[str, Any]:
    return {"interval_s": sensor.interval_s}


class Reporter:
    """Appends a `reported` message when there is something new in it. `describe` returns its body as of now."""

    def __init__(self, keeper: Keeper, describe: Callable[[], Reported]):
        self._keeper, self._describe = keeper, describe
        self._told: Reported | None = None
        self._reports = 0
        self._carrier: tuple[int, int] | None = None  # The newest report that is on the disk, and its seq.

    def look(self, *, anew: bool = False) -> None:
        """Report if something has changed since the last report; `anew`: in any case."""
        content = self._describe()
        if content == self._told and not anew:
            return
        self._told = content
        self._reports += 1
        number = self._reports

        def kept(seqs: Sequence[int]) -> None:
            self._carrier = (number, seqs[-1])

        self._keeper.append("reported", [Entry(unix_ms(), msgspec.json.encode(content))], {}, kept)

    def acknowledged(self, ranges: Sequence[tuple[int, int]]) -> bool:
        """Tell whether the newest report of all, made in this life of the hub, is among what the cloud has committed."""
        if self._carrier is None or self._carrier[0] != self._reports:
            return False
        return any(first <= self._carrier[1] <= last for first, last in ranges)
