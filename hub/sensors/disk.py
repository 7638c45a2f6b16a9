"""How full the file systems are that lie on disks of this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Final

import psutil
from msgspec import Meta, field

from broker.messages import Value
from config import limits
from hub.sensors import Interval, SensorSettings, ValueSpec

_ALWAYS_FULL: Final = frozenset({"squashfs", "erofs", "cramfs", "romfs", "iso9660", "udf", "cdfs"})
"""File systems that can't be written: nobody needs to know that they are full."""

_LABEL_MAX: Final = 64
"""Characters of a mount point in a value's name: with the rest it stays far below VALUE_NAME_MAX."""


class DiskSettings(SensorSettings, frozen=True):
    """`[sensors.disk]`. `mounts` names the mount points to watch; empty means those of local disks."""

    interval_s: Interval = 60.0
    mounts: Annotated[list[str], Meta(max_length=limits.SENSOR_DISKS_MAX)] = field(default_factory=list)


class DiskSensor:
    """A file system is named after its mount point: `disk.root`, `disk.home`, `disk.var-lib`, on Windows `disk.c`."""

    name: ClassVar[str] = "disk"
    Settings: ClassVar[type[SensorSettings]] = DiskSettings

    def __init__(self, settings: SensorSettings, state: str | None):
        assert isinstance(settings, DiskSettings)
        self.interval_s = settings.interval_s
        self.state: str | None = None
        self._mounts = settings.mounts

    @classmethod
    def available(cls) -> bool:
        """Return True: every machine has a file system."""
        return True

    def values(self) -> Sequence[ValueSpec]:
        """Return what is told of each file system that is mounted now."""
        return [
            spec
            for label, mount in self._labelled()
            for spec in (
                ValueSpec(f"disk.{label}.free", "By", "number", f"Bytes that users can still write to {mount}"),
                ValueSpec(f"disk.{label}.used", "By", "number", f"Bytes in use on {mount}"),
                ValueSpec(f"disk.{label}.percent", "%", "number", f"Share of {mount} in use, of what users can have"),
            )
        ]

    def sample(self) -> dict[str, Value]:
        """Return the present use; a mount point that can't be read is left out."""
        values: dict[str, Value] = {}
        for label, mount in self._labelled():
            try:
                usage = psutil.disk_usage(mount)
            except OSError:
                continue  # Unmounted since, an empty card reader, or not ours to look at.
            if usage.total:
                values[f"disk.{label}.free"] = int(usage.free)
                values[f"disk.{label}.used"] = int(usage.used)
                values[f"disk.{label}.percent"] = float(usage.percent)
        return values

    def _labelled(self) -> Iterator[tuple[str, str]]:
        taken: set[str] = set()
        for mount in (self._mounts or _local_mounts())[: limits.SENSOR_DISKS_MAX]:
            label = label_of(mount)
            unique = next(name for n in range(1, 1000) if (name := label if n == 1 else f"{label}-{n}") not in taken)
            taken.add(unique)
            yield unique, mount


def label_of(mount: str) -> str:
    """Return a mount point as part of a value's name."""
    if mount == "/":
        return "root"
    return re.sub(r"[^A-Za-z0-9_]+", "-", mount).strip("-")[:_LABEL_MAX].lower() or "unnamed"


def _local_mounts() -> list[str]:
    """Return one mount point for each local disk: the shortest, since bind mounts show the same disk again."""
    mounts: dict[str, str] = {}
    for partition in psutil.disk_partitions(all=False):
        mount, kind = partition.mountpoint, partition.fstype.lower()
        options = partition.opts.lower().split(",")
        if not kind or kind in _ALWAYS_FULL or "cdrom" in options or not os.path.isdir(mount):
            continue
        known = mounts.get(partition.device)
        if known is None or len(mount) < len(known):
            mounts[partition.device] = mount
    found = sorted(mounts.values(), key=lambda mount: (len(mount), mount))
    if os.name == "posix" and "/" not in found:
        found.insert(0, "/")  # A container's root is no disk of its own, and yet what fills up.
    return found
