"""What processes have used, read from outside: CPU time, memory, and the bytes of the connection over the WAN."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import psutil

from bench.network import LOOPBACK, Place


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one process: resident, and of these its own alone (what would be free if it ended)."""

    rss: int
    uss: int


@dataclass(frozen=True, slots=True)
class Wan:
    """Bytes on the connection from the site to the cloud broker, TLS included, TCP and IP headers not."""

    up: int
    down: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Counters at one moment: CPU seconds of each process and of this one, WAN bytes if known."""

    cpu_s: Mapping[str, float]
    own_cpu_s: float
    wan: Wan | None


class Gauge:
    """Reads the processes of one side, each with its descendants. `bridge` names the one that crosses the WAN."""

    def __init__(self, pids: Mapping[str, int], bridge: str, cloud_port: int, place: Place = LOOPBACK):
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._bridge, self._cloud_port, self._place = bridge, cloud_port, place
        self._own = psutil.Process()

    def usage(self) -> Usage:
        """Read the counters."""
        cpu_s = {name: family_cpu_s(process) for name, process in self._processes.items()}
        bridge = {process.pid for process in _family(self._processes[self._bridge])}
        return Usage(cpu_s, cpu_s_of(self._own), wan_bytes(bridge, self._cloud_port, self._place))

    def memory(self) -> dict[str, Memory]:
        """Read the memory of each process."""
        return {name: family_memory(process) for name, process in self._processes.items()}


def family_cpu_s(process: psutil.Process) -> float:
    """Return the seconds of CPU that a process and its descendants have used, those that have ended included."""
    total = 0.0
    for each in _family(process):
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def family_memory(process: psutil.Process) -> Memory:
    """Read the memory of a process and its descendants; what they share counts in each of them."""
    found = []
    for each in _family(process):
        try:
            found.append(memory_of(each))
        except psutil.NoSuchProcess:
            continue
    return Memory(sum(each.rss for each in found), sum(each.uss for each in found))


def _family(process: psutil.Process) -> Iterator[psutil.Process]:
    yield process
    yield from process.children(recursive=True)


def memory_of(process: psutil.Process) -> Memory:
    """Read the memory of one process."""
    full = process.memory_full_info()
    return Memory(full.rss, full.uss)


def wan_bytes(pids: Collection[int], port: int, place: Place = LOOPBACK) -> Wan | None:
    """Return what processes have exchanged with a port, as the kernel counts it; None where `ss` can't tell."""
    if shutil.which("ss") is None:
        return None
    command = ["ss", "-tinpHO", "state", "established", f"( dport = :{port} )"]
    done = subprocess.run(place.at_site(command), capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        up, down = re.search(r"\bbytes_acked:(\d+)", line), re.search(r"\bbytes_received:(\d+)", line)
        if up and down and any(f"pid={pid}," in line for pid in pids):
            return Wan(int(up[1]), int(down[1]))
    return None


def cpu_s_of(process: psutil.Process) -> float:
    """Return the seconds of CPU that one process has used."""
    times = process.cpu_times()
    return times.user + times.system
