"""Drives one machine in asyncio: feeds it events, carries out its commands in order, and wakes it at its deadline.

The only reader of the monotonic clock.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from broker.machine import Machine, Wakeup

E = TypeVar("E")
C = TypeVar("C")


def monotonic_s() -> float:
    """Return monotonic seconds; the machines get them as `now`."""
    return time.monotonic()


class Runner(Generic[E, C]):
    """One machine in the running event loop. Not thread-safe: feed it from the loop.

    An event that arrives while a command is carried out waits until the commands before it are done, so a machine
    never sees itself in the middle of a step.
    """

    def __init__(self, machine: Machine[E | Wakeup, C], execute: Callable[[C], None]):
        self.machine = machine
        self._execute = execute
        self._waiting: deque[E | Wakeup] = deque()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_ends_at = 0.0
        self._loop = asyncio.get_running_loop()

    def feed(self, event: E | Wakeup) -> None:
        """Hand over one event and carry out what the machine answers."""
        self._waiting.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._waiting:
                for command in self.machine.handle(self._waiting.popleft(), monotonic_s()):
                    self._execute(command)
        finally:
            self._busy = False
        self._arm()

    def close(self) -> None:
        """Wake the machine no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        """See to it that a timer runs that ends in time; one that ends too early looks again, which costs less than a new one."""
        deadline = self.machine.deadline()
        if deadline is None or (self._timer is not None and self._timer_ends_at <= deadline):
            return
        self.close()
        self._timer_ends_at = deadline
        self._timer = self._loop.call_later(max(0.0, deadline - monotonic_s()), self._wake)

    def _wake(self) -> None:
        self._timer = None
        deadline = self.machine.deadline()
        if deadline is not None and deadline <= monotonic_s():
            self.feed(Wakeup())
        else:
            self._arm()
