"""The hub's durable list of tasks: a small SQLite file of its own, so that no delivery runs twice, even across a crash.

A file that can't be understood is set aside under a name that says so, and an empty one begins.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
import structlog

from config import limits
from config.errors import StorageError
from hub.tasks import TaskRecord

SCHEMA_VERSION: Final = 1
_SCHEMA: Final = "CREATE TABLE task (place INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, record BLOB NOT NULL)"
_PARTS: Final = ("", "-wal", "-shm")
"""SQLite's files beside each other."""

log = structlog.get_logger(__name__)


class TaskJournal:
    """To be used by one thread at a time. Raises StorageError where the disk refuses; the next call tries again."""

    def __init__(self, file: Path):
        self._file = file
        self._connection: sqlite3.Connection | None = None

    def load(self) -> list[TaskRecord]:
        """Return all records, the oldest first. What is damaged is set aside, and then there are none."""
        with _translated(self._file):
            try:
                return self._read()
            except (sqlite3.DatabaseError, msgspec.DecodeError, UnicodeDecodeError) as exc:
                if isinstance(exc, sqlite3.DatabaseError) and not _is_damage(exc):
                    raise
                self.close()
                aside = self._set_aside()
                log.error("task_list_damaged", reason=str(exc), kept_as=aside.name)
                return self._read()

    def save(self, records: Sequence[TaskRecord], forgotten: Sequence[str]) -> None:
        """Make all of this durable, or nothing of it: first what is forgotten goes, then the records come."""
        with _translated(self._file):
            connection = self._open()
            try:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("DELETE FROM task WHERE id = ?", [(task_id,) for task_id in forgotten])
                connection.executemany(
                    "INSERT INTO task (id, record) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record",
                    [(record.id, msgspec.json.encode(record)) for record in records],
                )
                connection.execute("COMMIT")
            except sqlite3.Error:
                self.close()  # Also rolls back; a connection whose disk has failed is not used again.
                raise

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error:
                pass  # Only committed transactions count, and those are on the disk.

    def _read(self) -> list[TaskRecord]:
        rows = self._open().execute("SELECT record FROM task ORDER BY place").fetchall()
        return [msgspec.json.decode(record, type=TaskRecord) for (record,) in rows]

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(
                self._file, timeout=limits.STORE_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute(f"PRAGMA journal_size_limit = {limits.OUTBOX_WAL_BYTES}")
                if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.execute(_SCHEMA)
                    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                    connection.execute("COMMIT")
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _set_aside(self) -> Path:
        """Move the file away, in the place of an older one that was damaged; return where it is now."""
        aside = self._file.with_name(f"{self._file.name}.damaged")
        for part in _PARTS:
            found = self._file.with_name(self._file.name + part)
            if found.exists():
                os.replace(found, aside.with_name(aside.name + part))
        return aside


@contextmanager
def _translated(file: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        raise StorageError(file, str(exc)) from exc
    except OSError as exc:
        raise StorageError(exc.filename or file, exc.strerror or str(exc)) from exc


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "no such" in str(error)
