"""The database: what `commit` has returned is on the disk, once, with coverage, newest values and rollups to match.

The SQL of the cloud is in this module and its neighbours, those whose first line says so, and nowhere else.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ENOENT
from pathlib import Path
from typing import Final, TypeVar

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import DBAPIError, OperationalError

from broker.runner import monotonic_s
from cloud.batch import Batch, Outcome
from cloud.payloads import PayloadCodec
from cloud.readers import SqliteReader
from cloud.retention import prune
from cloud.schema import QUARANTINE, STREAMS, prepare, storage_error, writer_engine
from cloud.writing import Writing
from config import limits
from config.files import inode_of
from config.settings import Retention

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Totals:
    """Everything that the database has ever stored or refused."""

    messages: int
    points: int
    duplicates: int
    quarantined: int

    def with_outcome(self, outcome: Outcome) -> Totals:
        """Return the totals after one more transaction."""
        return Totals(
            self.messages + outcome.messages,
            self.points + outcome.points,
            self.duplicates + outcome.duplicates,
            self.quarantined + outcome.quarantined,
        )


def totals_in(connection: Connection) -> Totals:
    """Return the totals of a database."""
    sums = (func.coalesce(func.sum(STREAMS.c[name]), 0) for name in ("messages", "points", "duplicates"))
    messages, points, duplicates = map(int, connection.execute(select(*sums)).one())
    quarantined = connection.scalar(select(func.max(QUARANTINE.c.refused_no))) or 0
    return Totals(messages, points, duplicates, quarantined)


class Store:
    """The write side, with one connection. To be used by one thread at a time; `hurry` may be called from any."""

    def __init__(self, file: Path, fleet: str, *, busy_timeout_s: float = limits.STORE_BUSY_TIMEOUT_S):
        self.file: Final = file
        self._fleet: Final = fleet
        self._busy_timeout_s: Final = busy_timeout_s
        self._codec: Final = PayloadCodec()
        self._connection: Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._hurry: Final = threading.Event()

    def open(self) -> Totals:
        """Make the database ready. Raises SettingsError if a person must mend it, StorageError if that may pass."""
        with self._transaction() as connection:
            return totals_in(connection)

    def commit(self, batch: Batch) -> Outcome:
        """Store a batch, durably and as a whole. Raises StorageError, and then nothing of it is stored.

        When even the commit fails, the batch may be stored all the same; storing it again does no harm.
        """
        with self._transaction() as connection:
            return Writing(connection, self._codec, batch).write()

    def change(self, work: Callable[[Connection], T]) -> T:
        """Do something in one transaction, durably and as a whole. Raises StorageError, and then nothing of it is done."""
        with self._transaction() as connection:
            return work(connection)

    def prune(self, retention: Retention, now_ms: int) -> int:
        """Delete some of what is too old and return how many rows; 0 when nothing is left to do. Raises StorageError."""
        with self._transaction() as connection:
            return prune(connection, retention, now_ms)

    @property
    def place(self) -> Path:
        """Return the file."""
        return self.file

    def reader(self) -> SqliteReader:
        """Return a read side of the same database."""
        return SqliteReader(self.file)

    def hurry(self) -> None:
        """Wait for no lock any more: the process is about to end."""
        self._hurry.set()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
                connection.engine.dispose()
            except DBAPIError:
                pass  # Nothing of ours is open in it: only committed transactions count.

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """Hold the database's write lock; commit at the end. Raises SettingsError or StorageError."""
        try:
            connection = self._connect()
            with self._begin(connection):
                yield connection
                if inode_of(self.file) != self._inode:
                    raise FileNotFoundError(ENOENT, "was removed or replaced while it was in use", str(self.file))
        except (DBAPIError, sqlite3.Error, OSError) as exc:
            self.close()
            raise storage_error(self.file, exc) from exc

    def _connect(self) -> Connection:
        if self._connection is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._connection = writer_engine(self.file).connect()
            with self._begin(self._connection):
                prepare(self._connection, self.file, self._fleet)
            self._inode = inode_of(self.file)
        return self._connection

    @contextmanager
    def _begin(self, connection: Connection) -> Iterator[None]:
        give_up_at = monotonic_s() + self._busy_timeout_s
        while True:
            try:
                transaction = connection.begin()
            except OperationalError:
                connection.rollback()
                if self._hurry.is_set() or monotonic_s() >= give_up_at:
                    raise
            else:
                break
        with transaction:
            yield
