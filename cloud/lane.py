"""The order of things: what must be durable is committed before anything that was asked for after it is done."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from random import SystemRandom
from typing import Final, TypeAlias

from sqlalchemy import Connection

from broker.backoff import Backoff
from cloud.database import Database
from config import limits, log
from config.errors import StorageError

_log: Final = log.get(__name__)

Change: TypeAlias = Callable[[Connection], object]
Deed: TypeAlias = Callable[[], None]


class Lane:
    """Takes changes of the database and deeds that may follow them; neighbours share a transaction.

    While the database refuses, everything waits: nothing is told that could be forgotten.
    """

    def __init__(self, database: Database):
        self._database: Final = database
        self._waiting: Final[deque[tuple[Change | None, Deed | None]]] = deque()
        self._there: Final = asyncio.Event()
        self._empty: Final = asyncio.Event()
        self._empty.set()

    @property
    def waiting(self) -> int:
        """Return how many changes and deeds wait."""
        return len(self._waiting)

    def change(self, change: Change) -> None:
        """Commit a change."""
        self._put((change, None))

    def then(self, deed: Deed) -> None:
        """Do something once all changes before it are committed."""
        self._put((None, deed))

    async def drained(self) -> None:
        """Wait until nothing waits any more."""
        await self._empty.wait()

    async def run(self) -> None:
        """Carry everything out, for ever."""
        backoff = Backoff(SystemRandom(), max_s=limits.STORE_RETRY_MAX_S, stable_s=0.0)
        while True:
            await self._there.wait()
            while self._waiting:
                steps = [self._waiting[number] for number in range(min(len(self._waiting), limits.LANE_BATCH))]
                changes = [change for change, _ in steps if change is not None]
                if changes:
                    try:
                        await self._database.change(lambda connection, changes=changes: _all(connection, changes))  # type: ignore[misc]
                    except StorageError as exc:
                        _log.debug("changes_wait", reason=exc.reason, waiting=len(self._waiting))
                        await asyncio.sleep(backoff.next_s())
                        continue
                    backoff.lived(0.0)
                for _ in steps:
                    _, deed = self._waiting.popleft()
                    if deed is not None:
                        deed()
            self._there.clear()
            self._empty.set()

    def _put(self, step: tuple[Change | None, Deed | None]) -> None:
        self._waiting.append(step)
        self._empty.clear()
        self._there.set()


def _all(connection: Connection, changes: list[Change]) -> None:
    for change in changes:
        change(connection)
