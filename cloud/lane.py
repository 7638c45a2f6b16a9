"""The order of things: what must be durable is committed before anything that was asked for after it is done."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
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


@dataclass(slots=True, eq=False)
class _Step:
    """A change or a deed. A change that others of its kind replace has their `name`."""

    change: Change | None = None
    deed: Deed | None = None
    name: Hashable = None


class Lane:
    """Takes changes of the database and deeds that may follow them; neighbours share a transaction.

    While the database refuses, everything waits, up to LANE_MAX: beyond, what is only told is left out, the oldest first.
    """

    def __init__(self, database: Database, patience_s: float = limits.LANE_WAIT_S):
        self._database: Final = database
        self._patience_s: Final = patience_s
        self._waiting: Final[deque[_Step]] = deque()
        self._named: Final[dict[Hashable, _Step]] = {}
        self._there: Final = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Return how many changes and deeds wait."""
        return len(self._waiting)

    def change(self, change: Change, *, name: Hashable = None) -> None:
        """Commit a change. One that waits with the same name is replaced: it keeps its place, and the newest counts."""
        if name is not None and (known := self._named.get(name)) is not None:
            known.change = change
            return
        step = _Step(change=change, name=name)
        if name is not None:
            self._named[name] = step
        self._put(step)

    def then(self, deed: Deed) -> None:
        """Do something once all changes before it are committed."""
        self._put(_Step(deed=deed))

    async def done(self) -> None:
        """Wait until what was asked for so far is committed and done. Raises StorageError if that takes too long."""
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.then(lambda: None if over.done() else over.set_result(None))
        try:
            async with asyncio.timeout(self._patience_s):
                await over
        except TimeoutError as exc:
            reason = "the database does not take it now; it will be done as soon as it does"
            raise StorageError("database", reason) from exc

    async def run(self) -> None:
        """Carry everything out, for ever."""
        backoff = Backoff(SystemRandom(), max_s=limits.STORE_RETRY_MAX_S, stable_s=0.0)
        while True:
            await self._there.wait()
            while self._waiting:
                steps = self._take()
                changes = [step.change for step in steps if step.change is not None]
                while changes:
                    try:
                        await self._database.change(lambda connection, changes=changes: _all(connection, changes))  # type: ignore[misc]
                    except StorageError as exc:
                        _log.debug("changes_wait", reason=exc.reason, waiting=len(self._waiting))
                        await asyncio.sleep(backoff.next_s())
                    else:
                        backoff.lived(0.0)
                        break
                for step in steps:
                    if step.deed is not None:
                        step.deed()
            self._there.clear()

    def _take(self) -> list[_Step]:
        """Take the next steps out: what comes for the same name from now on is another change."""
        steps = [self._waiting.popleft() for _ in range(min(len(self._waiting), limits.LANE_BATCH))]
        for step in steps:
            self._named.pop(step.name, None)
        return steps

    def _put(self, step: _Step) -> None:
        self._waiting.append(step)
        self._there.set()
        if len(self._waiting) > limits.LANE_MAX:
            self._leave_out()

    def _leave_out(self) -> None:
        """Make room: what is only told can be read from the database later, what is to be committed can't."""
        changes = [step for step in self._waiting if step.deed is None]
        kept = changes[-limits.LANE_MAX // 2 :]
        for step in changes[: len(changes) - len(kept)]:
            self._named.pop(step.name, None)
        _log.error(
            "changes_given_up", changes=len(changes) - len(kept), announcements=len(self._waiting) - len(changes)
        )
        self._waiting.clear()
        self._waiting.extend(kept)


def _all(connection: Connection, changes: list[Change]) -> None:
    for change in changes:
        change(connection)
