"""What is read of a cloud while it works: CPU time by process, stored messages, and answers of its API with their time."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import psutil

from bench.gauge import cpu_s_of
from bench.rig import Rig
from config.errors import HublineError

PATIENCE_S: Final = 180.0
LOOK_S: Final = 0.1


@dataclass(slots=True)
class Window:
    """What processes used in a stretch of time: CPU seconds by name, messages stored, and what else ran on the machine."""

    seconds: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)
    messages: int = 0
    other_cores: float = 0.0

    def per_thousand(self, name: str) -> float:
        """Return the CPU seconds of a process for 1000 messages."""
        return 1000 * self.cpu_s[name] / self.messages

    def share(self, name: str) -> float:
        """Return the part of a core that a process used."""
        return self.cpu_s[name] / self.seconds


class Meter:
    """Reads CPU time and the number of stored messages at both ends of a window."""

    def __init__(self, rig: Rig, api: Api):
        self._rig, self.api = rig, api

    @contextmanager
    def window(self, into: Window) -> Iterator[None]:
        """Fill in what was used between entry and exit."""
        messages, cpu_s, busy_s, began_at = self.api.stored(), self._cpu_s(), _busy_s(), time.monotonic()
        own_s = cpu_s_of(psutil.Process())
        yield
        into.seconds = time.monotonic() - began_at
        now_s = self._cpu_s()
        into.cpu_s = {name: spent_s - cpu_s.get(name, 0.0) for name, spent_s in now_s.items()}
        ours_s = sum(into.cpu_s.values()) + cpu_s_of(psutil.Process()) - own_s
        into.other_cores = max(0.0, (_busy_s() - busy_s - ours_s) / into.seconds)
        into.messages = self.api.stored() - messages

    def _cpu_s(self) -> dict[str, float]:
        return {name: cpu_s_of(psutil.Process(each.popen.pid)) for name, each in self._rig.fleet.processes.items()}


def _busy_s() -> float:
    """Return the CPU seconds that this machine has worked since it was started."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


class Api:
    """HTTP on one connection that is kept."""

    def __init__(self, place: str, token: str):
        self._connection = http.client.HTTPConnection(place, timeout=30)
        self._headers = {"Authorization": f"Bearer {token}"}

    def fetch(self, path: str, method: str = "GET", body: bytes | None = None) -> bytes:
        """Return the answer's body. Raises HublineError if it is an error."""
        headers = self._headers if body is None else {**self._headers, "Content-Type": "application/json"}
        try:
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
        except (
            http.client.RemoteDisconnected,
            BrokenPipeError,
        ):  # An idle connection was closed: only between windows.
            self._connection.close()
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
        content = answer.read()
        if answer.status >= 400:
            raise HublineError(f"{method} {path}: {answer.status} {content[:200]!r}")
        return content

    def timed(self, path: str) -> float:
        """Return how many seconds an answer takes, to its last byte."""
        began_at = time.perf_counter()
        self.fetch(path)
        return time.perf_counter() - began_at

    def metric(self, name: str) -> float:
        """Return a number of /metrics, 0 if it is not there."""
        for line in self.fetch("/metrics").decode().splitlines():
            words = line.split(" ")
            if words[0] == name:
                return float(words[1])
        return 0.0

    def hubs(self, connection: str) -> int:
        """Return how many hubs are shown with this connection."""
        return int(self.metric(f'hubline_hubs{{connection="{connection}"}}'))

    def stored(self) -> int:
        """Return how many messages the database holds."""
        return int(self.metric("hubline_stored_messages_total"))

    def wait_until(self, check: Callable[[], bool], rig: Rig) -> None:
        """Look until something holds. Raises HublineError."""
        ends_at = time.monotonic() + PATIENCE_S
        while not check():
            rig.fleet.check()
            if time.monotonic() > ends_at:
                raise HublineError(f"waited {PATIENCE_S:g} s in vain, see {rig.directory / 'logs'}")
            time.sleep(LOOK_S)
