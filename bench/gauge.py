"""What processes have used, read from outside: CPU time, memory, and the bytes of the connection over the WAN."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

import psutil


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
    """Reads the processes of one side. `bridge` is the pid of the one that is connected to the cloud broker's port."""

    def __init__(self, pids: Mapping[str, int], bridge: int, cloud_port: int):
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._bridge, self._cloud_port = bridge, cloud_port
        self._own = psutil.Process()

    def usage(self) -> Usage:
        """Read the counters."""
        cpu_s = {name: cpu_s_of(process) for name, process in self._processes.items()}
        return Usage(cpu_s, cpu_s_of(self._own), wan_bytes(self._bridge, self._cloud_port))

    def memory(self) -> dict[str, Memory]:
        """Read the memory of each process."""
        return {name: memory_of(process) for name, process in self._processes.items()}


def memory_of(process: psutil.Process) -> Memory:
    """Read the memory of one process."""
    full = process.memory_full_info()
    return Memory(full.rss, full.uss)


def wan_bytes(pid: int, port: int) -> Wan | None:
    """Return what a process has exchanged with a port, as the kernel counts it; None where `ss` can't tell."""
    if shutil.which("ss") is None:
        return None
    command = ["ss", "-tinpHO", "state", "established", f"( dport = :{port} )"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        up, down = re.search(r"\bbytes_acked:(\d+)", line), re.search(r"\bbytes_received:(\d+)", line)
        if f"pid={pid}," in line and up and down:
            return Wan(int(up[1]), int(down[1]))
    return None


def cpu_s_of(process: psutil.Process) -> float:
    """Return the seconds of CPU that one process has used."""
    times = process.cpu_times()
    return times.user + times.system
