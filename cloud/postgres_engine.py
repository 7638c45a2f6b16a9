"""How a PostgreSQL is reached: its URL, what is told to its server, and what its refusals mean to a person.

A password is never part of a message.
"""

from __future__ import annotations

import os
import re
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import URL, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from config import limits
from config.errors import SettingsError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    import asyncpg

    from cloud.postgres_driver import Driver

_KEY: Final = "cloud.database"
_MISSING: Final = "needs asyncpg, which is not installed: pip install 'hubline[postgresql]'"
_DRIVERS: Final = ("postgresql", "postgresql+asyncpg")
_QUERY: Final = frozenset({"ssl", "sslmode", "host"})

_ERRNO: Final = re.compile(r"\[Errno -?\d+\] ")
_NO_URL: Final = "is no URL: a special character in a password is written like %40"

READ: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
WRITE: Final = "BEGIN"

_REFUSED: Final = {
    "28P01": "the server refuses the user or the password",
    "28000": "the server refuses the user: see its pg_hba.conf",
    "3D000": "there is no such database on the server: make it with createdb --owner=USER NAME",
    "42501": "the user may not do what is needed: it must own the database (ALTER DATABASE NAME OWNER TO USER)",
}
"""What a person must mend, by SQLSTATE (PostgreSQL, appendix A)."""


def is_postgres(url: str) -> bool:
    """Tell whether this is the URL of a PostgreSQL."""
    return url.startswith("postgresql")


def place_of(url: str) -> str:
    """Return a database's URL as it may be shown."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return url.partition(":")[0] + "://…"
    if "@" in (parsed.host or ""):  # What follows the first @ of a password.
        return f"{parsed.drivername}://…"
    return parsed.render_as_string(hide_password=True)


def engine(
    url: str,
    *,
    read_only: bool = False,
    statement_timeout_s: float = limits.POSTGRES_STATEMENT_TIMEOUT_S,
    opening: Callable[[Driver], None] | None = None,
) -> Engine:
    """Return an engine with one connection, for one thread at a time, in which no event loop runs.

    It connects with its first use. Raises SettingsError for a URL that can't be; what a use raises, `mended` translates.
    `statement_timeout_s` 0: none. `opening` is told of each connection before it is made.
    """
    parsed = require_driver(url)
    from cloud.postgres_driver import make_engine

    return make_engine(parsed, partial(connect, url, statement_timeout_s), READ if read_only else WRITE, opening)


def require_driver(url: str) -> URL:
    """Return a URL in parts. Raises SettingsError if it can't be, or without the package that it needs."""
    parsed = checked(url)
    if find_spec("asyncpg") is None:
        raise SettingsError(_MISSING, key=_KEY, value=place_of(url))
    return parsed


def checked(url: str) -> URL:
    """Return a URL in parts. Raises SettingsError if it isn't one of a PostgreSQL with what we know."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as exc:
        raise SettingsError(_NO_URL, key=_KEY) from exc
    if "@" in (parsed.host or ""):
        raise SettingsError(_NO_URL, key=_KEY, value=place_of(url))
    if parsed.drivername not in _DRIVERS:
        problem = 'must be a URL like "postgresql+asyncpg://user:password@host/name"'
        raise SettingsError(problem, key=_KEY, value=place_of(url))
    if not parsed.database:
        raise SettingsError("must name the database: …@host/NAME", key=_KEY, value=place_of(url))
    if unknown := sorted(parsed.query.keys() - _QUERY):
        problem = f"has an unknown part {', '.join(unknown)}; known are {', '.join(sorted(_QUERY))}"
        raise SettingsError(problem, key=_KEY, value=place_of(url))
    return parsed


async def connect(url: str, statement_timeout_s: float = limits.POSTGRES_STATEMENT_TIMEOUT_S) -> asyncpg.Connection:
    """Connect with asyncpg alone, in the running event loop. Raises SettingsError, or what asyncpg raises."""
    import asyncpg

    parsed = checked(url)
    milliseconds = {
        "statement_timeout": statement_timeout_s,
        "lock_timeout": limits.POSTGRES_LOCK_TIMEOUT_S,
        "idle_in_transaction_session_timeout": limits.POSTGRES_IDLE_TIMEOUT_S,
    }
    tls: Any = parsed.query.get("ssl", parsed.query.get("sslmode"))
    connection = await asyncpg.connect(
        host=parsed.query.get("host", parsed.host),
        port=parsed.port,
        user=parsed.username,
        password=parsed.password,
        database=parsed.database,
        ssl=tls,
        timeout=limits.POSTGRES_CONNECT_TIMEOUT_S,
        # The server's own limit is heard first, unless the server is gone.
        command_timeout=statement_timeout_s + limits.POSTGRES_GOODBYE_TIMEOUT_S if statement_timeout_s else None,
        statement_cache_size=limits.POSTGRES_STATEMENTS_MAX,
        server_settings={
            "application_name": "hubline",
            "jit": "off",
            **{name: str(int(seconds * 1000)) for name, seconds in milliseconds.items()},
        },
    )
    try:
        if (found := connection.get_server_version().major) < limits.POSTGRES_VERSION_MIN:
            problem = f"is PostgreSQL {found}: Hubline needs {limits.POSTGRES_VERSION_MIN} or newer"
            raise SettingsError(problem, file=place_of(url))
        # What is acknowledged must survive a power cut, whatever the server's default is.
        await connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
    except BaseException:
        connection.terminate()  # Nobody else knows of it.
        raise
    return connection


def mended(place: str, exc: Exception) -> SettingsError | StorageError:
    """Translate what a use has raised: SettingsError if a person must mend it, StorageError if it may mend itself."""
    cause = exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc
    problem = _REFUSED.get(str(getattr(cause, "sqlstate", None)))
    if problem is not None:
        return SettingsError(problem, file=place)
    origin = cause.__cause__ if isinstance(cause.__cause__, OSError) else cause
    if isinstance(origin, OSError) and not isinstance(origin, TimeoutError):
        return StorageError(place, f"the server can't be reached: {_of_network(origin)}")
    return StorageError(place, " ".join(str(cause).split()))


def _of_network(exc: OSError) -> str:
    """Return why a server can't be reached, as a person says it."""
    if isinstance(exc, ConnectionError) and exc.errno is None and "connection_lost" in str(exc):
        return "what is there ended the connection at once; is it a PostgreSQL?"  # asyncpg names its own method.
    if exc.errno is not None and exc.errno > 0:
        return os.strerror(exc.errno).lower()
    return _ERRNO.sub("", " ".join(str(exc).split())) or type(exc).__name__
