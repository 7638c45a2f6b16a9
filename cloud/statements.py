"""Core statements compiled once for each database and handed to its driver with their parameters in order.

Core writes the SQL; its own work for each execution (50 µs, against 4 µs of SQLite's driver) would be most of a transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy import BigInteger, Connection
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import insert as insert  # Its ON CONFLICT clauses compile for both databases.
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import GenericFunction

if TYPE_CHECKING:
    from cloud.postgres_driver import Driver

_DIALECT: Final = sqlite.dialect()


class greater(GenericFunction[Any]):  # noqa: N801
    """The greater of two values, lesser the other: SQLite calls them max and min, PostgreSQL greatest and least."""

    inherit_cache = True
    type = BigInteger()


class lesser(GenericFunction[Any]):  # noqa: N801
    """See `greater`."""

    inherit_cache = True
    type = BigInteger()


_NAMES: Final = {("greater", "sqlite"): "max", ("lesser", "sqlite"): "min", ("greater", "postgresql"): "greatest"}


@compiles(greater)
@compiles(lesser)
def _compile(element: greater | lesser, compiler: SQLCompiler, **options: Any) -> str:
    name = _NAMES.get((type(element).__name__, compiler.dialect.name), "least")
    return f"{name}({compiler.process(element.clauses, **options)})"


class Prepared:
    """One statement. `names` are its parameters in the order in which the tuples give them.

    Executing raises the driver's own errors (sqlite3.Error, postgres_driver.Error).
    """

    def __init__(self, statement: ClauseElement, *names: str):
        compiled = statement.compile(dialect=_DIALECT)
        expected = tuple(getattr(compiled, "positiontup", None) or ())
        assert expected == names, f"parameters in order are {expected}"
        self.sql: Final = str(compiled)
        self._statement: Final = statement
        self._names: Final = names
        self._of_postgres: _OfPostgres | None = None

    def rows(self, connection: Connection, *parameters: object) -> Sequence[Sequence[Any]]:
        """Execute once and return all rows."""
        driver = connection.connection.driver_connection
        if type(driver) is sqlite3.Connection:
            return driver.execute(self.sql, parameters).fetchall()
        return self._postgres().rows(connection, parameters)

    def run(self, connection: Connection, *parameters: object) -> int:
        """Execute once and return the number of rows that it changed."""
        driver = connection.connection.driver_connection
        if type(driver) is sqlite3.Connection:
            return driver.execute(self.sql, parameters).rowcount
        return self._postgres().run(connection, parameters)

    def run_many(self, connection: Connection, parameters: Sequence[tuple[object, ...]]) -> None:
        """Execute for each tuple."""
        if not parameters:
            return
        driver = connection.connection.driver_connection
        if type(driver) is sqlite3.Connection:
            driver.executemany(self.sql, parameters)
        else:
            self._postgres().run_many(connection, parameters)

    def _postgres(self) -> _OfPostgres:
        if self._of_postgres is None:
            self._of_postgres = _OfPostgres(self._statement, self._names)
        return self._of_postgres


class _OfPostgres:
    """The same for PostgreSQL, whose parameters have numbers: a name that comes twice has one."""

    def __init__(self, statement: ClauseElement, names: tuple[str, ...]):
        from cloud.postgres_driver import Dialect, as_sent, stored

        compiled = statement.compile(dialect=Dialect())  # type: ignore[no-untyped-call]
        numbered: Sequence[str] = getattr(compiled, "positiontup", None) or ()
        self._sql: Final = str(compiled)
        self._places: Final = [names.index(name) for name in numbered]
        self._stored, self._as_sent = stored, as_sent

    def rows(self, connection: Connection, parameters: tuple[object, ...]) -> Sequence[Sequence[Any]]:
        driver = _driver(connection)
        return self._as_sent(driver.wait(driver.raw.fetch(self._sql, *self._ordered(parameters))))

    def run(self, connection: Connection, parameters: tuple[object, ...]) -> int:
        driver = _driver(connection)
        status: str = driver.wait(driver.raw.execute(self._sql, *self._ordered(parameters)))
        return int(status.rpartition(" ")[2])

    def run_many(self, connection: Connection, parameters: Sequence[tuple[object, ...]]) -> None:
        driver = _driver(connection)
        driver.wait(driver.raw.executemany(self._sql, [self._ordered(each) for each in parameters]))

    def _ordered(self, parameters: tuple[object, ...]) -> Sequence[object]:
        return self._stored([parameters[place] for place in self._places])


def _driver(connection: Connection) -> Driver:
    return cast("Driver", connection.connection.dbapi_connection)
