"""`hubline cloud migrate`: brings the database of a URL up to date, each step in a transaction, whoever else does the same."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from cloud.migrating import found_in, lock_schema, make_newest, step
from cloud.postgres_engine import engine, is_postgres, mended, place_of
from cloud.schema import database_file, storage_error, writer_engine
from cloud.tables import SCHEMA_VERSION
from config import limits
from config.errors import SettingsError


def migrate(url: str, fleet: str) -> Iterator[tuple[int, int]]:
    """Take one step after the other and return the versions before and after each: (0, newest) for what was empty.

    Nothing is returned for a database that is up to date. Raises SettingsError and StorageError; the steps before stay done.
    """
    with _opened(url) as (connection, place):
        while True:
            with connection.begin():
                lock_schema(connection)
                found = found_in(connection, place)  # Anew each time: somebody else may have taken the step meanwhile.
                if found is None:
                    make_newest(connection, fleet)
                    before, after = 0, SCHEMA_VERSION
                else:
                    found.must_be(fleet)
                    if found.version == SCHEMA_VERSION:
                        return
                    before, after = found.version, step(connection, found).version
            yield before, after


@contextmanager
def _opened(url: str) -> Iterator[tuple[Connection, Path | str]]:
    if is_postgres(url):
        place = place_of(url)
        try:
            with _connected(engine(url, statement_timeout_s=0)) as connection:
                with connection.begin():
                    connection.execute(text("SET lock_timeout = 0"))  # Others may be busy with a long step.
                yield connection, place
        except DBAPIError as exc:
            raise mended(place, exc) from exc
    else:
        file = database_file(url)
        if not file.is_file():
            raise SettingsError("there is no such database yet: the cloud service makes it when it starts", file=file)
        try:
            with _connected(writer_engine(file)) as connection:
                timeout = f"PRAGMA busy_timeout = {int(limits.STORE_BUSY_TIMEOUT_S * 1000)}"
                _sqlite(connection).execute(timeout)  # Outside of a transaction, where SQLAlchemy would begin one.
                yield connection, file
        except (DBAPIError, sqlite3.Error, OSError) as exc:
            raise storage_error(file, exc) from exc


@contextmanager
def _connected(made: Engine) -> Iterator[Connection]:
    try:
        with made.connect() as connection:
            yield connection
    finally:
        made.dispose()


def _sqlite(connection: Connection) -> sqlite3.Connection:
    driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver
