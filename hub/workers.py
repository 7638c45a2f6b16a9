"""A few threads for work that may block, and may never come back.

The threads are daemons: one that hangs in a dead disk or a driver does not keep the hub from stopping.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TypeAlias

Task: TypeAlias = Callable[[], None]


class Workers:
    """`count` threads that take tasks in turn, started as they are needed; those that hang don't count.

    Only the threads' side is concurrent: call the methods from one thread. Tasks must not raise.
    """

    def __init__(self, count: int, name: str):
        self._count, self._name = count, name
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._started = 0  # Threads that there are.
        self._stuck = 0  # Those of them that hang.
        self._unfinished = 0

    def submit(self, task: Task) -> None:
        """Have a thread do `task`, as soon as one is free."""
        self._unfinished += 1
        self._tasks.put(task)
        self._staff()

    def stuck(self) -> None:
        """Take note that a task hangs: others are not to wait for its thread."""
        self._stuck += 1
        self._staff()

    def finished(self, *, was_stuck: bool) -> None:
        """Take note that a task has come back."""
        self._unfinished -= 1
        if was_stuck:
            self._stuck -= 1
            if self._started - self._stuck > self._count:
                self._started -= 1
                self._tasks.put(None)

    def close(self) -> None:
        """Let all threads go when they are done; does not wait for them."""
        for _ in range(self._started):
            self._tasks.put(None)
        self._started = 0

    def _staff(self) -> None:
        if self._started - self._stuck < min(self._count, self._unfinished - self._stuck):
            self._started += 1
            threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()
