"""Copies a service's SQLite database into an empty PostgreSQL: all of it, proven by counts and sums, or nothing at all.

One transaction holds the tables, the rows, the numbers that the database gives next, and the proof, so whatever interrupts a
copy leaves an empty database behind, and there is no state in between that a resumed copy would have to understand. Rows go
from one cursor into COPY: memory stays bounded. The file is held exclusively all the while: nothing is acknowledged meanwhile
that the copy would lack.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Select,
    Table,
    Text,
    cast,
    create_engine,
    exists,
    func,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from cloud.migrating import found_in, lock_schema, make_newest
from cloud.nul import escape_nul
from cloud.partitions import WEEK_MS, ensure_weeks
from cloud.postgres_engine import engine, mended, place_of
from cloud.schema import COVERAGE, MESSAGES, STREAMS, storage_error
from cloud.tables import META, REVISION, SCHEMA
from config import limits
from config.errors import SettingsError, StorageError

if TYPE_CHECKING:
    from cloud.postgres_driver import Driver

Seen: TypeAlias = Callable[[str, int, int], None]
"""Told the name of a table, how many of its rows are copied, and how many there are."""

_TABLES: Final = [table for table in SCHEMA.sorted_tables if table not in (META, REVISION)]


def _sum(column: ColumnElement[int]) -> ColumnElement[int]:
    return cast(func.sum(column), BigInteger)


_SUMS: Final[dict[str, Select[*tuple[Any, ...]]]] = {
    "messages, points and bytes": select(
        MESSAGES.c.stream_no,
        func.count(),
        func.min(MESSAGES.c.seq),
        func.max(MESSAGES.c.seq),
        _sum(MESSAGES.c.points),
        _sum(func.length(MESSAGES.c.payload)),
    )
    .group_by(MESSAGES.c.stream_no)
    .order_by(MESSAGES.c.stream_no),
    "coverage": select(
        COVERAGE.c.stream_no,
        func.count(),
        func.min(COVERAGE.c.first_seq),
        func.max(COVERAGE.c.last_seq),
        _sum(COVERAGE.c.last_seq - COVERAGE.c.first_seq + 1),
    )
    .group_by(COVERAGE.c.stream_no)
    .order_by(COVERAGE.c.stream_no),
    "sums": select(STREAMS).order_by(STREAMS.c.stream_no),
}
"""What must read the same on both sides, stream by stream."""


def copy_database(file: Path, fleet: str, url: str, seen: Seen) -> dict[str, int]:
    """Copy everything and return how many rows of each table.

    Raises SettingsError if a person must do something first (stop the service, migrate, choose another database), and
    StorageError if a database fails or the copy is not the same; then nothing of it stays.
    """
    if not file.is_file():
        raise SettingsError("there is no such database to copy", file=file)
    target, place = _engine_of(url), place_of(url)
    try:
        with (
            _opened(file, fleet) as source,
            _translated(place, file),
            target.connect() as connection,
            connection.begin(),
        ):
            return _copied(source, connection, place, fleet, seen)
    except (sqlite3.Error, OSError) as exc:
        raise storage_error(file, exc) from exc
    finally:
        target.dispose()


def verify(source: Connection, target: Connection, place: str) -> None:
    """Raise StorageError unless both hold the same number of rows in each table, and the same messages, points and coverage."""
    for table in _TABLES:
        expected, found = _count(source, table), _count(target, table)
        if found != expected:
            raise StorageError(place, f"the copy is not complete: {table.name} has {found} rows instead of {expected}")
    for what, query in _SUMS.items():
        theirs = _rows(target, query)
        for row in _rows(source, query):
            if next(theirs, None) != row:
                raise StorageError(place, f"the copy is not the same: the {what} of stream {row[0]} differ")


def _count(connection: Connection, table: Table) -> int:
    return connection.scalar(select(func.count()).select_from(table)) or 0


def _rows(connection: Connection, query: Select[*tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    for page in connection.execute(query).yield_per(limits.COPY_CHUNK_ROWS).partitions():
        yield from map(tuple, page)


# --- The source ------------------------------------------------------------------------------------------------------


@contextmanager
def _opened(file: Path, fleet: str) -> Iterator[Connection]:
    """Open a database, and keep everybody else out meanwhile. Raises SettingsError if somebody is in, or it is not ours."""
    uri = f"{file.absolute().as_uri()}?mode=rw"
    driver = sqlite3.connect(uri, uri=True, timeout=limits.STORE_BUSY_SLICE_S, isolation_level=None)
    with closing(driver):
        try:
            driver.execute("PRAGMA locking_mode = EXCLUSIVE")
            driver.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise
            problem = "is in use: stop the cloud service, and whatever else reads the file, then copy"
            raise SettingsError(problem, file=file) from exc
        driver.execute("COMMIT")  # What is locked exclusively once stays so until it is closed, transaction or not.
        with create_engine("sqlite://", creator=lambda: driver, poolclass=StaticPool).connect() as connection:
            found = found_in(connection, file)
            if found is None:
                raise SettingsError("is empty: there is nothing to copy", file=file)
            found.must_be(fleet)
            found.must_be_newest()
            yield connection


# --- The target ------------------------------------------------------------------------------------------------------


def _engine_of(url: str) -> Engine:
    try:
        return engine(url, statement_timeout_s=0)
    except SettingsError as exc:  # It is not the database of the settings.
        raise SettingsError(exc.problem, key="--to", value=exc.value) from exc


def _copied(source: Connection, target: Connection, place: str, fleet: str, seen: Seen) -> dict[str, int]:
    target.execute(text("SET LOCAL lock_timeout = 0"))
    target.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
    lock_schema(target)
    _make_ready(target, place, fleet)
    ensure_weeks(target, source.scalars(select(MESSAGES.c.received_ms // WEEK_MS).distinct()))
    counts = {table.name: _copy_table(source, target, table, seen) for table in _TABLES}
    _copy_meta(source, target)
    for table in _TABLES:
        _set_next_number(source, target, table)
    verify(source, target, place)
    return counts


def _make_ready(target: Connection, place: str, fleet: str) -> None:
    found = found_in(target, place)
    if found is None:
        make_newest(target, fleet)
        return
    found.must_be(fleet)
    found.must_be_newest()
    names = ", ".join(table.name for table in _TABLES)
    target.execute(text(f"LOCK TABLE {names} IN SHARE ROW EXCLUSIVE MODE"))  # Nobody else writes from here on.
    for table in _TABLES:
        if target.scalar(select(exists().select_from(table))):
            problem = f"is not empty: there are rows in {table.name}; copy into a new database"
            raise SettingsError(problem, file=place)


def _copy_table(source: Connection, target: Connection, table: Table, seen: Seen) -> int:
    from cloud.postgres_driver import driver

    columns = list(table.columns)
    names = [column.name for column in columns]
    total = _count(source, table)
    rows = _rows(source, select(table).order_by(*table.primary_key))
    connection: Driver = driver(target)
    seen(table.name, 0, total)
    records = _seen(_as_stored(rows, columns), table.name, total, seen)
    try:
        connection.wait(connection.raw.copy_records_to_table(table.name, columns=names, records=records))
    except (TypeError, ValueError, OverflowError) as exc:  # SQLite lets any column hold anything.
        raise StorageError(table.name, f"holds a value that its column can't have in PostgreSQL: {exc}") from exc
    return total


def _as_stored(rows: Iterator[tuple[Any, ...]], columns: list[Column[Any]]) -> Iterator[tuple[Any, ...]]:
    """Return rows as PostgreSQL takes them: without NUL in text."""
    texts = [position for position, column in enumerate(columns) if isinstance(column.type, Text)]
    if not texts:
        yield from rows
        return
    for row in rows:
        changed = list(row)
        for position in texts:
            if changed[position] is not None:
                changed[position] = escape_nul(changed[position])
        yield tuple(changed)


def _seen(rows: Iterator[tuple[Any, ...]], name: str, total: int, seen: Seen) -> Iterator[tuple[Any, ...]]:
    for number, row in enumerate(rows, 1):
        yield row
        if number % limits.COPY_REPORT_ROWS == 0 or number == total:
            seen(name, number, total)


def _copy_meta(source: Connection, target: Connection) -> None:
    target.execute(META.delete())
    target.execute(META.insert(), [row._asdict() for row in source.execute(select(META))])


def _set_next_number(source: Connection, target: Connection, table: Table) -> None:
    """Let the numbers go on where SQLite's would have."""
    column = next((column for column in table.primary_key if column.identity is not None), None)
    if column is None:
        return
    highest = source.scalar(select(func.max(column))) or 0
    if table.dialect_options["sqlite"]["autoincrement"]:
        used = text("SELECT seq FROM sqlite_sequence WHERE name = :name")
        highest = max(highest, source.scalar(used, {"name": table.name}) or 0)
    sequence = "pg_get_serial_sequence(CAST(:table AS text), CAST(:column AS text))"
    target.execute(
        text(f"SELECT setval({sequence}, :next, false)"),
        {"table": table.name, "column": column.name, "next": highest + 1},
    )


@contextmanager
def _translated(place: str, file: Path) -> Iterator[None]:
    from cloud.postgres_driver import Error

    try:
        yield
    except (DBAPIError, Error) as exc:
        if isinstance(exc, DBAPIError) and isinstance(exc.orig, sqlite3.Error):
            raise storage_error(file, exc) from exc
        raise mended(place, exc) from exc
