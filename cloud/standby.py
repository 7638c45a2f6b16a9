"""One process of a fleet is active: it holds a lock of the database; the others stand by, and one takes over when it is free.

The lock belongs to a connection. Who loses that stops acting when it is told so, or LEAD_CHECK_S + LEAD_ANSWER_S later if the
network has swallowed that; only where the server let go at once (a session ended by its administrator, a replica promoted
meanwhile) another one may be active for so long. It does no lasting harm: both write in transactions of one database, hubs run
a task once by its id and take settings by their version. What comes and goes may be logged twice, an older newest value told.
"""

from __future__ import annotations

import asyncio
import hashlib
from random import SystemRandom
from typing import Final

from broker.backoff import Backoff
from cloud.dedicated import Dedicated
from config import limits, log
from config.errors import StorageError

_log: Final = log.get(__name__)


def lock_key(fleet: str) -> int:
    """Return the key of a fleet's advisory lock: 64 bits with a sign (PostgreSQL, 9.27.10)."""
    digest = hashlib.sha256(f"hubline operations {fleet}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


class Lead:
    """The claim of this process to be the active one."""

    def __init__(self, url: str, fleet: str):
        self.active = False
        self._url: Final = url
        self._key: Final = lock_key(fleet)
        self._connection: Dedicated | None = None

    async def win(self) -> None:
        """Wait until no other process is active, however long that takes."""
        backoff = Backoff(SystemRandom(), max_s=limits.STORE_RETRY_MAX_S, stable_s=0.0)
        told = failing = False
        while not self.active:
            try:
                if self._connection is None:
                    self._connection = await Dedicated.open(self._url)
                self.active = bool(await self._connection.ask("SELECT pg_try_advisory_lock($1)", self._key))
            except StorageError as exc:
                (_log.debug if failing else _log.warning)("lock_not_asked_for", reason=exc.reason)
                failing = True
                await self.close()
                await asyncio.sleep(backoff.next_s())
                continue
            if failing:
                _log.info("lock_asked_for_again")
            failing = False
            backoff.lived(0.0)
            if not self.active:
                if not told:
                    _log.info("standby_waiting")
                    told = True
                await asyncio.sleep(limits.STANDBY_POLL_S)
        _log.info("standby_took_over", waited=told)

    async def keep(self) -> None:
        """Watch over the lock while this process is active. Raises StorageError when it may be somebody else's: stop then."""
        assert self._connection is not None
        try:
            await self._connection.watch(limits.LEAD_CHECK_S)
        except StorageError as exc:
            self.active = False
            reason = f"this process is not the active one any more: {exc.reason}; started again, it stands by"
            raise StorageError(exc.place, reason) from exc

    async def close(self) -> None:
        """Give the lock back."""
        connection, self._connection, self.active = self._connection, None, False
        if connection is not None:
            await connection.close()
