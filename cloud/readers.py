"""Reading connections: short transactions beside whoever writes (SQL)."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from cloud.schema import reader_engine, storage_error
from config.errors import SettingsError

T = TypeVar("T")


class Reader(Protocol):
    """The read side of a database, for one thread at a time; `hurry` may be called from any."""

    @property
    def place(self) -> Path | str:
        """Return the name of the database, for messages."""

    def check(self) -> None:
        """Raise SettingsError if there is no such database."""

    def read(self, work: Callable[[Connection], T]) -> T:
        """Do something in one transaction that sees one moment. Raises SettingsError or StorageError."""

    def hurry(self) -> None:
        """Wait for nothing any more."""

    def close(self) -> None:
        """Close the connection; the next call opens another."""


class SqliteReader:
    """Reads a file of SQLite."""

    def __init__(self, file: Path):
        self.place: Final[Path | str] = file
        self._file: Final = file
        self._engine: Engine | None = None

    def check(self) -> None:
        """Raise SettingsError if there is no such file."""
        if not self._file.is_file():
            problem = "there is no such database: has the cloud service run with these settings?"
            raise SettingsError(problem, file=self._file)

    def read(self, work: Callable[[Connection], T]) -> T:
        """Do something in one transaction that sees one moment. Raises SettingsError or StorageError."""
        try:
            if self._engine is None:
                self._engine = reader_engine(self._file)
            with self._engine.connect() as connection, connection.begin():
                return work(connection)
        except (DBAPIError, sqlite3.Error) as exc:
            raise storage_error(self._file, exc) from exc

    def hurry(self) -> None:
        """Do nothing: a reader waits for no lock here."""

    def close(self) -> None:
        """Close the connection."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None
