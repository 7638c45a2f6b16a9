"""The store in a thread of its own: the event loop never waits for the disk, and whoever asks learns whether it works."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from broker.clock import unix_ms
from broker.runner import monotonic_s
from cloud.batch import Batch, NewestValue, Outcome
from cloud.queries import Archive
from cloud.schema import reader_engine
from cloud.store import Store, Totals
from config import limits, log
from config.errors import SettingsError, StorageError
from config.settings import Retention

T = TypeVar("T")

_log: Final = log.get(__name__)

WORKS: Final = "ok"


class Database:
    """To be used in the running event loop. Calls are carried out one after the other."""

    def __init__(self, file: Path, fleet: str):
        self._file: Final = file
        self._store: Final = Store(file, fleet)
        self._thread: Final = ThreadPoolExecutor(1, "database")
        self._readers: Final = ThreadPoolExecutor(1, "database-reader")
        self._reader: Engine | None = None
        self._loop: Final = asyncio.get_running_loop()
        self._totals: Totals | None = None
        self._failing_since: float | None = None
        self._failures = 0
        self.state = WORKS
        """`WORKS`, or why the last attempt to write has failed."""

    @property
    def totals(self) -> Totals:
        """Return everything stored so far; zeros while the database could not be opened yet."""
        return self._totals or Totals(0, 0, 0, 0)

    async def open(self) -> None:
        """Prepare the database. Raises SettingsError if it can't be used; a passing failure is only noted."""
        try:
            await self._in_thread(self._open)
        except StorageError as exc:
            self._note_failure(exc.reason)

    async def commit(self, batch: Batch) -> Outcome | None:
        """Store a batch and return what that has added, or None if the database refuses for now."""
        try:
            outcome = await self._in_thread(lambda: self._commit(batch))
        except (StorageError, SettingsError) as exc:
            self._note_failure(str(exc))
            return None
        self._note_success()
        return outcome

    async def change(self, work: Callable[[Connection], T]) -> T:
        """Do something in one transaction, in order with the commits.

        Raises StorageError, or whatever `work` raises, and then nothing of it is done.
        """
        try:
            outcome = await self._in_thread(lambda: self._changed(work))
        except StorageError as exc:
            self._note_failure(exc.reason)
            raise
        self._note_success()
        return outcome

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Read in one short transaction, beside whatever is being written. Raises StorageError."""
        return await self._loop.run_in_executor(self._readers, self._reading, work)

    async def prune(self, retention: Retention) -> int:
        """Delete some of what is too old and return how many rows; 0 also if the database refuses for now."""
        try:
            return await self._in_thread(lambda: self._store.prune(retention, unix_ms()))
        except (StorageError, SettingsError) as exc:
            _log.debug("retention_failed", reason=str(exc))
            return 0

    async def newest(self, take: Callable[[tuple[NewestValue, ...]], None]) -> None:
        """Read the newest value of every sensor and hand them over page by page."""
        pages: Iterator[tuple[NewestValue, ...]] | None = None
        try:
            archive = await self._in_thread(lambda: Archive(self._file))
            try:
                pages = archive.newest()
                while page := await self._in_thread(lambda: next(pages, None)):
                    take(page)
            finally:
                await self._in_thread(archive.close)
        except (StorageError, SettingsError) as exc:
            _log.debug("newest_values_not_read", reason=str(exc))

    async def close(self) -> None:
        """Finish what is being written, wait for no lock any more, and close the file."""
        self._store.hurry()
        try:
            await asyncio.wait_for(self._in_thread(self._store.close), limits.STORE_CLOSE_TIMEOUT_S)
        except TimeoutError:
            _log.warning("database_not_closed", file=str(self._file))
        self._thread.shutdown(wait=False)
        self._readers.shutdown(wait=False, cancel_futures=True)
        if self._reader is not None:
            self._reader.dispose()

    # --- In the thread ----------------------------------------------------------------------------------------------

    def _open(self) -> Totals:
        if self._totals is None:
            self._totals = self._store.open()
        return self._totals

    def _commit(self, batch: Batch) -> Outcome:
        before = self._open()
        outcome = self._store.commit(batch)
        self._totals = before.with_outcome(outcome)
        return outcome

    def _changed(self, work: Callable[[Connection], T]) -> T:
        try:
            self._open()
            return self._store.change(work)
        except SettingsError as exc:
            if exc.file != self._file:
                raise  # What was asked for is wrong, not the database.
            raise StorageError(self._file, exc.problem) from exc

    def _reading(self, work: Callable[[Connection], T]) -> T:
        try:
            if self._reader is None:
                self._reader = reader_engine(self._file)
            with self._reader.connect() as connection, connection.begin():
                return work(connection)
        except (DBAPIError, sqlite3.Error) as exc:
            raise StorageError(self._file, str(exc)) from exc

    # --- In the event loop ------------------------------------------------------------------------------------------

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._thread, work)

    def _note_failure(self, reason: str) -> None:
        self._failures += 1
        self.state = reason
        if self._failing_since is None:
            self._failing_since = monotonic_s()
            _log.warning("storage_failed", reason=reason, consequence="nothing is acknowledged until it works again")
        else:
            _log.debug("storage_failed", reason=reason, failures=self._failures)

    def _note_success(self) -> None:
        if self._failing_since is not None:
            failed_s = round(monotonic_s() - self._failing_since, 1)
            _log.info("storage_recovered", failed_s=failed_s, failures=self._failures)
        self._failing_since, self._failures, self.state = None, 0, WORKS
