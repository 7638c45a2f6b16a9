"""The database of a large fleet: a PostgreSQL, with the same promises as `cloud.store`, for any number of processes at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from sqlalchemy import Connection
from sqlalchemy.engine import RootTransaction
from sqlalchemy.exc import DBAPIError

from broker.clock import unix_ms
from broker.runner import monotonic_s
from cloud.batch import Batch, Outcome
from cloud.notices import CHANNEL
from cloud.partitions import ensure_partitions
from cloud.payloads import PayloadCodec
from cloud.postgres_driver import Driver, Error, OperationalError, driver
from cloud.postgres_engine import engine, mended, place_of
from cloud.postgres_retention import OldWeeks
from cloud.postgres_writing import PostgresWriting, UnknownHubsError, add_hubs
from cloud.retention import prune
from cloud.schema import prepare
from cloud.store import Totals, totals_in
from config import limits
from config.errors import StorageError
from config.settings import Retention

if TYPE_CHECKING:
    from cloud.database import Announce

T = TypeVar("T")

_NOTIFY: Final = "SELECT pg_notify($1, said) FROM unnest($2::text[]) AS w(said)"

_AGAIN: Final = ("40001", "40P01")
"""serialization_failure, deadlock_detected: nothing was done, and the same may work at once."""


class Link:
    """One connection that is made when it is needed and made anew when it was lost. To be used by one thread at a time."""

    def __init__(self, url: str, *, read_only: bool = False, begin: Callable[[Connection], None] | None = None):
        """`begin` is done once with each new connection, in a transaction of its own. Raises SettingsError for a wrong URL."""
        self.place: Final = place_of(url)
        self._engine: Final = engine(url, read_only=read_only, opening=self._opening)
        self._begin_with: Final = begin
        self._connection: Connection | None = None
        self._driver: Driver | None = None
        self._hurry: Final = threading.Event()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Commit at the end. Raises SettingsError or StorageError."""
        try:
            connection, transaction = self._begin()
            with transaction:
                yield connection
        except (DBAPIError, Error) as exc:
            self.close()
            raise mended(self.place, exc) from exc

    def hurry(self) -> None:
        """Make the running call fail, and every later one. May be called from any thread."""
        self._hurry.set()
        if self._driver is not None:
            self._driver.give_up()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        connection, self._connection, self._driver = self._connection, None, None
        try:
            if connection is not None:
                connection.close()
            self._engine.dispose()
        except (DBAPIError, Error):
            pass  # Nothing of ours is open in it: only committed transactions count.

    def _begin(self) -> tuple[Connection, RootTransaction]:
        """Begin a transaction. A connection that was lost while nothing happened is replaced without a word."""
        if self._connection is not None:
            try:
                return self._connection, self._connection.begin()
            except (DBAPIError, Error):
                self.close()
        if self._hurry.is_set():
            raise OperationalError("is not asked any more, since the process is about to end")
        self._connection = connection = self._engine.connect()
        try:
            if self._begin_with is not None:
                with connection.begin():
                    self._begin_with(connection)
            return connection, connection.begin()
        except BaseException:
            self.close()  # What was to be done with it first has to be done first with the next one.
            raise

    def _opening(self, made: Driver) -> None:
        self._driver = made


class PostgresStore:
    """The write side, with one connection. To be used by one thread at a time; `hurry` may be called from any."""

    def __init__(self, url: str, fleet: str, announce: Announce | None = None):
        self._announce: Final = announce
        self._url: Final = url
        self._link: Final = Link(url, begin=self._prepare)
        self._fleet: Final = fleet
        self._codec: Final = PayloadCodec()
        self._old_weeks: Final = OldWeeks()

    @property
    def place(self) -> str:
        """Return the URL as it may be shown."""
        return self._link.place

    def open(self) -> Totals:
        """Make the database ready. Raises SettingsError if a person must mend it, StorageError if that may pass."""
        with self._link.transaction() as connection:
            return totals_in(connection)

    def commit(self, batch: Batch) -> Outcome:
        """Store a batch, durably and as a whole. Raises StorageError, and then nothing of it is stored.

        When even the commit fails, the batch may be stored all the same; storing it again does no harm.
        """
        writing = PostgresWriting(self._codec, batch)
        for _ in range(limits.POSTGRES_ATTEMPTS):
            try:
                with self._link.transaction() as connection:
                    outcome = writing.write(connection)
                    self._tell(connection, batch, outcome)
                return outcome
            except UnknownHubsError as exc:
                with self._link.transaction() as connection:
                    add_hubs(connection, exc.keys)
            except StorageError as exc:
                if not _may_work_at_once(exc):
                    raise
        raise StorageError(self.place, f"others were in the way {limits.POSTGRES_ATTEMPTS} times")

    def change(self, work: Callable[[Connection], T]) -> T:
        """Do something in one transaction, durably and as a whole. Raises StorageError, and then nothing of it is done."""
        with self._link.transaction() as connection:
            return work(connection)

    def prune(self, retention: Retention, now_ms: int) -> int:
        """Delete some of what is too old and return how many rows; 0 when nothing is left to do. Raises StorageError."""
        with self._link.transaction() as connection:
            deleted = prune(connection, retention, now_ms)
        if deleted >= limits.RETENTION_BATCH:
            return deleted  # More of it is waiting: a week that can't come or go yet must not be in the way.
        with self._link.transaction() as connection:
            ensure_partitions(connection, now_ms)
        until_at = monotonic_s() + limits.RETENTION_WEEKS_S
        while True:
            with self._link.transaction() as connection:
                some = self._old_weeks.step(connection, retention, now_ms)
            if some is None:
                return deleted
            deleted += some
            if monotonic_s() >= until_at:
                return max(1, deleted)  # There is more to do.

    def reader(self) -> PostgresReader:
        """Return a read side of the same database."""
        return PostgresReader(self._url)

    def hurry(self) -> None:
        """Wait for nothing any more: the process is about to end."""
        self._link.hurry()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._link.close()

    def _tell(self, connection: Connection, batch: Batch, outcome: Outcome) -> None:
        texts = () if self._announce is None else self._announce(batch, outcome)
        if texts:
            link = driver(connection)
            link.wait(link.raw.execute(_NOTIFY, CHANNEL, list(texts)))

    def _prepare(self, connection: Connection) -> None:
        prepare(connection, self.place, self._fleet)
        ensure_partitions(connection, unix_ms())


class PostgresReader:
    """The read side, with one connection. To be used by one thread at a time; `hurry` may be called from any."""

    def __init__(self, url: str):
        self._link: Final = Link(url, read_only=True)
        self.place: Final[Path | str] = self._link.place

    def check(self) -> None:
        """Do nothing: connecting tells."""

    def read(self, work: Callable[[Connection], T]) -> T:
        """Do something in one transaction that sees one moment. Raises SettingsError or StorageError."""
        with self._link.transaction() as connection:
            return work(connection)

    def hurry(self) -> None:
        """Wait for nothing any more."""
        self._link.hurry()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        self._link.close()


def _may_work_at_once(exc: StorageError) -> bool:
    cause = exc.__cause__
    cause = cause.orig if isinstance(cause, DBAPIError) else cause
    return isinstance(cause, Error) and cause.sqlstate in _AGAIN
