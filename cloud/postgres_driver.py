"""PostgreSQL for synchronous SQLAlchemy over asyncpg: one connection, with an event loop that only runs while it is waited for.

So the same functions of a `Connection` serve both databases, and COPY and arrays of asyncpg are within reach. To be used by
one thread at a time, in which no event loop runs. Text may hold NUL, which PostgreSQL doesn't store: `cloud.nul` escapes it.
"""

from __future__ import annotations

import asyncio
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import asyncpg
from sqlalchemy import URL, Connection, Engine, StaticPool, create_engine, event
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.dialects.postgresql.base import PGDialect, PGExecutionContext

from cloud.nul import escape_nul, unescape_nul
from config import limits

if TYPE_CHECKING:
    from asyncpg.prepared_stmt import PreparedStatement

T = TypeVar("T")

apilevel: Final = "2.0"
threadsafety: Final = 1
paramstyle: Final = "numeric_dollar"
Binary: Final = bytes


class Error(Exception):
    """What the server or the way to it has refused; `sqlstate` as in PostgreSQL's appendix A, if the server has said one."""

    sqlstate: str | None = None


class InterfaceError(Error):
    """Something could not even be asked for."""


class DatabaseError(Error):
    """The server has refused."""


class OperationalError(DatabaseError):
    """The connection is lost, or could not be made in time."""


class IntegrityError(DatabaseError):
    """A key is there already."""


class ProgrammingError(DatabaseError):
    """The statement is wrong, or its user may not do that."""


class DataError(DatabaseError):
    """A value does not fit."""


class InternalError(DatabaseError):
    """The server has failed."""


class NotSupportedError(DatabaseError):
    """The server can't do that."""


_CLASSES: Final[dict[str, type[DatabaseError]]] = {
    "08": OperationalError,
    "0A": NotSupportedError,
    "22": DataError,
    "23": IntegrityError,
    "40": OperationalError,
    "42": ProgrammingError,
    "53": OperationalError,
    "55": OperationalError,
    "57": OperationalError,
    "XX": InternalError,
}
"""By the first two characters of the SQLSTATE."""

FAILURES: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError)
"""What asyncpg raises where the server refuses or the connection is lost; a time-out is an OSError."""

_DDL: Final = ("CREATE", "ALTER", "DROP")
_TEXTS: Final = frozenset({"text", "varchar", "name", "bpchar"})


def translated(exc: BaseException) -> Error:
    """Return what DB-API 2.0 calls an error of asyncpg, in one line without the values that it was about."""
    text = (
        " ".join(str(getattr(exc, "message", None) or exc).split()) or type(exc).__name__
    )  # Not its detail: that has values.
    sqlstate = getattr(exc, "sqlstate", None)
    if isinstance(sqlstate, str):
        kind: type[Error] = _CLASSES.get(sqlstate[:2], DatabaseError)
    elif isinstance(exc, ValueError):
        kind = DataError
    elif isinstance(exc, asyncpg.InterfaceError):
        kind = InterfaceError
    else:
        kind = OperationalError
        text = "does not answer in time" if isinstance(exc, TimeoutError) else text
    error = kind(text)
    error.sqlstate = sqlstate if isinstance(sqlstate, str) else None
    return error


class Driver:
    """A connection as DB-API 2.0 has it (`raw` is asyncpg's). Transactions begin where "BEGIN" is executed."""

    raw: asyncpg.Connection

    def __init__(self) -> None:
        # The selector loop: nothing here needs a child process or a signal, and Windows' proactor warns when it is closed.
        self._loop: Final = asyncio.SelectorEventLoop()
        self._waiting: asyncio.Task[Any] | None = None
        self._prepared: Final[OrderedDict[str, PreparedStatement[Any]]] = OrderedDict()

    def open(self, connect: Callable[[], Coroutine[Any, Any, asyncpg.Connection]]) -> None:
        """Connect, once. Raises `Error`."""
        try:
            self.raw = self.wait(connect())
        except BaseException:
            self._end_loop()
            raise

    def wait(self, work: Awaitable[T]) -> T:
        """Run something of asyncpg to its end. Raises `Error`."""
        try:
            self._waiting = cast("asyncio.Task[T]", asyncio.ensure_future(work, loop=self._loop))
            return self._loop.run_until_complete(self._waiting)
        except FAILURES as exc:
            raise translated(exc) from exc
        except asyncio.CancelledError as exc:
            raise OperationalError("was given up, since the process is about to end") from exc
        except KeyboardInterrupt:
            self._give_up_now()
            raise
        finally:
            self._waiting = None

    def give_up(self) -> None:
        """Make the running call fail at once. May be called from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._drop)
        except RuntimeError:
            pass  # It is closed already.

    def _give_up_now(self) -> None:
        """End what Ctrl-C has left in the middle, and the connection with it: the server undoes the transaction."""
        self._drop()
        if self._waiting is not None:
            self._loop.run_until_complete(asyncio.wait([self._waiting]))
            if not self._waiting.cancelled():
                self._waiting.exception()  # Nobody else will ask for it.

    def _drop(self) -> None:
        if self._waiting is not None:
            raw = getattr(self, "raw", None)
            if raw is not None:
                raw.terminate()
            self._waiting.cancel()

    def prepare(self, sql: str) -> PreparedStatement[Any]:
        """Return a statement that the server has read, from the ones of before if possible."""
        found = self._prepared.get(sql)
        if found is None:
            found = self.wait(self.raw.prepare(sql))
            self._prepared[sql] = found
            if len(self._prepared) > limits.POSTGRES_STATEMENTS_MAX:
                self._prepared.popitem(last=False)
        else:
            self._prepared.move_to_end(sql)
        return found

    def forget_prepared(self) -> None:
        """Have every statement read anew: what it is about has changed."""
        self._prepared.clear()

    # --- DB-API 2.0 -------------------------------------------------------------------------------------------------

    def cursor(self) -> Cursor:
        """Return a cursor, of which there may be many."""
        return Cursor(self)

    def commit(self) -> None:
        """End the transaction, if one is open; when this raises, nobody knows how it has ended."""
        if self.raw.is_closed():
            raise OperationalError("the connection was lost before the commit")
        if self.raw.is_in_transaction():
            self.wait(self.raw.execute("COMMIT"))

    def rollback(self) -> None:
        """Undo the transaction, if one is open."""
        if not self.raw.is_closed() and self.raw.is_in_transaction():
            self.wait(self.raw.execute("ROLLBACK"))

    def close(self) -> None:
        """Say goodbye, shortly."""
        if self._loop.is_closed():
            return
        try:
            if not self.raw.is_closed():
                self.wait(self.raw.close(timeout=limits.POSTGRES_GOODBYE_TIMEOUT_S))
        except Error:
            self.raw.terminate()
        self._prepared.clear()
        self._end_loop()

    terminate = close

    def _end_loop(self) -> None:
        self._loop.run_until_complete(asyncio.sleep(0))  # Transports close in the next turn.
        self._loop.close()


class Cursor:
    """A cursor as DB-API 2.0 has it; it holds all rows of a result."""

    arraysize = 1

    def __init__(self, connection: Driver):
        self._connection: Final = connection
        self._rows: Sequence[Any] = ()
        self._next = 0
        self.description: list[tuple[Any, ...]] | None = None
        self.rowcount = -1

    def execute(self, operation: str, parameters: Sequence[object] = ()) -> None:
        """Execute once."""
        statement = self._connection.prepare(operation)

        async def fetched() -> tuple[Sequence[Any], Sequence[Any], str]:
            # All of these raise at once, not when awaited, where the connection is lost.
            rows = await statement.fetch(*stored(parameters))
            return rows, statement.get_attributes(), statement.get_statusmsg()

        rows, attributes, status = self._connection.wait(fetched())
        self.description = [(each.name, each.type.oid, None, None, None, None, None) for each in attributes] or None
        texts = [position for position, each in enumerate(attributes) if each.type.name in _TEXTS]
        self._rows, self._next = _as_sent(rows, texts) if texts else rows, 0
        last = status.rpartition(" ")[2]
        self.rowcount = int(last) if last.isdigit() else -1
        if status.startswith(_DDL):
            self._connection.forget_prepared()

    def executemany(self, operation: str, parameters: Sequence[Sequence[object]]) -> None:
        """Execute for each."""
        many = [stored(each) for each in parameters]
        self._connection.wait(self._connection.raw.executemany(operation, many))
        self.rowcount = -1

    def fetchone(self) -> Sequence[Any] | None:
        """Return the next row."""
        if self._next >= len(self._rows):
            return None
        self._next += 1
        return cast(Sequence[Any], self._rows[self._next - 1])

    def fetchmany(self, size: int | None = None) -> Sequence[Any]:
        """Return the next rows."""
        begin, self._next = self._next, min(len(self._rows), self._next + (size or self.arraysize))
        return self._rows[begin : self._next]

    def fetchall(self) -> Sequence[Any]:
        """Return all other rows."""
        rows = self._rows[self._next :] if self._next else self._rows
        self._next = len(self._rows)
        return rows

    def setinputsizes(self, *_: object) -> None:
        """Do nothing: the statement says its types."""

    def close(self) -> None:
        """Let go of the rows."""
        self._rows = ()


def stored(parameters: Sequence[object]) -> Sequence[object]:
    """Return parameters as PostgreSQL takes them: no NUL in a text."""
    return [escape_nul(each) if type(each) is str else each for each in parameters]


def as_sent(rows: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return rows with the texts as they were before `stored`."""
    return [tuple(unescape_nul(each) if type(each) is str else each for each in row) for row in rows]


def _as_sent(rows: Sequence[Any], texts: Sequence[int]) -> list[tuple[Any, ...]]:
    found = []
    for row in rows:
        values = list(row)
        for position in texts:
            if values[position] is not None:
                values[position] = unescape_nul(values[position])
        found.append(tuple(values))
    return found


class Dialect(PGDialect):
    """PostgreSQL's SQL with asyncpg's types and parameters, on the synchronous driver of this module."""

    driver = "hubline"
    supports_statement_cache = True
    render_bind_cast = True
    default_paramstyle = "numeric_dollar"
    supports_sane_multi_rowcount = False
    execution_ctx_cls = PGExecutionContext
    colspecs = PGDialect_asyncpg.colspecs

    @classmethod
    def import_dbapi(cls) -> Any:
        """Return this module."""
        return sys.modules[__name__]

    def is_disconnect(self, e: object, connection: object, cursor: object) -> bool:
        """Tell whether the connection is of no use any more."""
        return isinstance(connection, Driver) and connection.raw.is_closed()


def make_engine(
    url: URL,
    connect: Callable[[], Coroutine[Any, Any, asyncpg.Connection]],
    begin: str,
    opening: Callable[[Driver], None] | None = None,
) -> Engine:
    """Return an engine with one connection that is made with the first use; each transaction starts with `begin`.

    `opening` is told of a connection before it is made: who knows it can give it up.
    """
    registry.register("postgresql.hubline", __name__, "Dialect")

    def creator() -> Driver:
        made = Driver()
        if opening is not None:
            opening(made)
        made.open(connect)
        return made

    made = create_engine(
        URL.create("postgresql+hubline", host=url.host, database=url.database),
        creator=creator,
        poolclass=StaticPool,
        hide_parameters=True,
    )
    event.listen(made, "begin", lambda connection: connection.exec_driver_sql(begin))
    return made


def driver(connection: Connection) -> Driver:
    """Return the driver's connection behind SQLAlchemy's."""
    return cast(Driver, connection.connection.dbapi_connection)
