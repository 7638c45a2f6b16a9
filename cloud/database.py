"""The store in a thread of its own: the event loop never waits for the database, and whoever asks learns whether it works."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Protocol, TypeAlias, TypeVar

from sqlalchemy import Connection

from broker.clock import unix_ms
from broker.runner import monotonic_s
from cloud.batch import Batch, NewestValue, Outcome
from cloud.queries import Archive
from cloud.readers import Reader
from cloud.schema import database_file
from cloud.store import Store, Totals
from config import limits, log
from config.errors import SettingsError, StorageError
from config.settings import Retention

T = TypeVar("T")

_log: Final = log.get(__name__)

WORKS: Final = "ok"

Announce: TypeAlias = Callable[[Batch, Outcome], Sequence[str]]
"""What a commit tells the other processes, each text short enough for a notice of PostgreSQL. It never fails."""


class WriteSide(Protocol):
    """What stores, in SQLite or PostgreSQL: see `cloud.store.Store`."""

    @property
    def place(self) -> Path | str:
        """Return the name of the database, for messages."""

    def open(self) -> Totals:
        """Make the database ready."""

    def commit(self, batch: Batch) -> Outcome:
        """Store a batch."""

    def change(self, work: Callable[[Connection], T]) -> T:
        """Do something in one transaction."""

    def prune(self, retention: Retention, now_ms: int) -> int:
        """Delete some of what is too old."""

    def reader(self) -> Reader:
        """Return a read side of the same database."""

    def hurry(self) -> None:
        """Wait for no lock any more."""

    def close(self) -> None:
        """Close the connection."""


def open_database(url: str, fleet: str, *, announce: Announce | None = None) -> Database:
    """Return the database of a URL, in the running event loop. Raises SettingsError for a URL that can't be.

    `announce` says what other processes are to hear of a commit; SQLite has no others.
    """
    if url.startswith("postgresql"):
        from cloud.postgres import PostgresDatabase

        return PostgresDatabase(url, fleet, announce)
    return SqliteDatabase(database_file(url), fleet)


def open_archive(url: str) -> Archive:
    """Return the read side of the database of a URL. Raises SettingsError or StorageError."""
    if url.startswith("postgresql"):
        from cloud.postgres import reader_of

        return Archive(reader_of(url))
    return Archive(database_file(url))


class Database:
    """To be used in the running event loop. Writes are carried out one after the other, reads beside them."""

    def __init__(self, store: WriteSide, readers: int):
        """`readers` is how many reads there may be at once."""
        self._store: Final = store
        self._thread: Final = ThreadPoolExecutor(1, "database")
        self._readers: Final = ThreadPoolExecutor(readers, "database-reader")
        self._of_thread: Final = threading.local()
        self._open_readers: Final[list[Reader]] = []
        self._loop: Final = asyncio.get_running_loop()
        self._totals: Totals | None = None
        self._failing_since: float | None = None
        self._failures = 0
        self._keeping_since: float | None = None
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
            deleted = await self._in_thread(lambda: self._store.prune(retention, unix_ms()))
        except (StorageError, SettingsError) as exc:
            if self._keeping_since is None:
                self._keeping_since = monotonic_s()
                _log.warning(
                    "retention_failed", reason=str(exc), consequence="what is too old stays, and the disk fills"
                )
            else:
                _log.debug("retention_failed", reason=str(exc))
            return 0
        if self._keeping_since is not None:
            _log.info("retention_recovered", failed_s=round(monotonic_s() - self._keeping_since, 1))
            self._keeping_since = None
        return deleted

    async def newest(self, take: Callable[[tuple[NewestValue, ...]], None]) -> None:
        """Read the newest value of every sensor and hand them over page by page."""
        pages: Iterator[tuple[NewestValue, ...]] | None = None
        try:
            archive = await self._in_thread(lambda: Archive(self._store.reader()))
            try:
                pages = archive.newest()
                while page := await self._in_thread(lambda: next(pages, None)):
                    take(page)
            finally:
                await self._in_thread(archive.close)
        except (StorageError, SettingsError) as exc:
            _log.debug("newest_values_not_read", reason=str(exc))

    async def close(self) -> None:
        """Finish what is being written, wait for no lock any more, and close the connections."""
        self._store.hurry()
        for reader in self._open_readers:
            reader.hurry()
        try:
            async with asyncio.timeout(limits.STORE_CLOSE_TIMEOUT_S):
                await self._in_thread(self._store.close)
        except TimeoutError:
            _log.warning("database_not_closed", database=str(self._store.place))
        self._thread.shutdown(wait=False)
        self._readers.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._close_readers)

    def _close_readers(self) -> None:
        self._readers.shutdown(wait=True)
        for reader in self._open_readers:
            reader.close()

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
            if exc.file != self._store.place:
                raise  # What was asked for is wrong, not the database.
            raise StorageError(self._store.place, exc.problem) from exc

    def _reading(self, work: Callable[[Connection], T]) -> T:
        reader: Reader | None = getattr(self._of_thread, "reader", None)
        try:
            if reader is None:
                reader = self._of_thread.reader = self._store.reader()
                self._open_readers.append(reader)
            return reader.read(work)
        except SettingsError as exc:
            if exc.file != self._store.place:
                raise
            raise StorageError(self._store.place, exc.problem) from exc

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


class SqliteDatabase(Database):
    """A file of SQLite, which one process writes at a time."""

    def __init__(self, file: Path, fleet: str):
        super().__init__(Store(file, fleet), readers=1)
