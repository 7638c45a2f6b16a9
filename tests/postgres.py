"""A private PostgreSQL server on loopback, and a fresh database for each test that asks for one.

Import the fixtures by name into a test module: `from tests.postgres import postgres, postgres_server  # noqa: F401`.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from config.local_postgres import USER as ADMINISTRATOR
from config.local_postgres import LocalPostgres, programs
from config.ports import free_ports

T = TypeVar("T")

USER: Final = "service"
"""Whom the databases belong to: no administrator, as in production."""
PASSWORD: Final = "p@ss:word/42"
"""It must be escaped in a URL, and must never be seen in a log."""

_QUIET: Final = {
    # No process of the server's own comes or goes during a test: conftest counts them.
    "autovacuum": "off",
    "max_worker_processes": "0",
    "max_parallel_workers": "0",
    "max_logical_replication_workers": "0",
    "jit": "off",
    "shared_buffers": "64MB",
    "log_min_messages": "warning",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "1GB",
}


def need_postgres() -> Path:
    """Return the folder with the server programs; skip the test where there are none."""
    found = programs()
    if found is None:
        pytest.skip("PostgreSQL's server programs are not installed (Debian: apt install postgresql)")
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL does not run as root, and there is no setpriv to make it somebody else's")
    return found


class Server(LocalPostgres):
    """One server with its own folder and port. `hard`: every commit is synced to the disk, as in production."""

    def __init__(self, *, hard: bool = False):
        need_postgres()
        folder = Path(tempfile.gettempdir(), f"hubline-pg-{secrets.token_hex(6)}")
        synced = "on" if hard else "off"
        super().__init__(folder, *free_ports(1), {**_QUIET, "fsync": synced, "full_page_writes": synced})
        self.used: list[str] = []
        """Databases with empty tables, from tests before."""
        self.made: list[tuple[Any, ...]] = []
        """What is in such a database."""
        self.start()
        quoted = PASSWORD.replace("'", "''")
        self.execute(f"CREATE ROLE {USER} LOGIN PASSWORD '{quoted}'")

    def restart(self) -> None:
        """Kill it if it runs, and start it again."""
        self.kill()
        self.start()

    def close(self) -> None:
        """End it and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str) -> str:
        """Return what `cloud.database` says of one of its databases."""
        return f"postgresql+asyncpg://{USER}:p%40ss%3Aword%2F42@127.0.0.1:{self.port}/{database}"

    def create(self, name: str, *, template: str = "template0") -> str:
        """Create a database that belongs to USER, and return its URL; a template must have no client."""
        self.execute(f'CREATE DATABASE "{name}" OWNER {USER} TEMPLATE "{template}"')
        return self.url(name)

    def drop(self, name: str) -> None:
        """Remove a database, throwing its clients out."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def execute(self, sql: str, database: str = "postgres") -> None:
        """Do something as the server's administrator. Not to be called in an event loop (but in a thread beside it)."""
        asyncio.run(self._execute(sql, database))

    def query(self, sql: str, *parameters: object, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Read rows as the administrator, with the driver alone; works in an event loop too, which it holds up."""
        return _beside(lambda: asyncio.run(self._query(sql, parameters, database)))

    @contextmanager
    def reading(self, database: str) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
        """Return what reads rows as `query` does, all with one connection."""
        loop = asyncio.new_event_loop()  # Runs in one thread after the other.
        connection = _beside(lambda: loop.run_until_complete(self._connect(database)))
        try:
            yield lambda sql: list(map(tuple, _beside(lambda: loop.run_until_complete(connection.fetch(sql)))))
        finally:
            _beside(lambda: loop.run_until_complete(connection.close()))
            loop.close()

    async def _execute(self, sql: str, database: str) -> None:
        connection = await self._connect(database)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    async def _query(self, sql: str, parameters: Sequence[object], database: str) -> list[tuple[Any, ...]]:
        connection = await self._connect(database)
        try:
            return [tuple(row) for row in await connection.fetch(sql, *parameters)]
        finally:
            await connection.close()

    async def _connect(self, database: str) -> Any:
        import asyncpg

        return await asyncpg.connect(
            host="127.0.0.1",
            port=self.port,
            user=ADMINISTRATOR,
            password=self.password,
            database=database,
            timeout=10,
        )


@dataclass(frozen=True, slots=True)
class Postgres:
    """A database of one test, empty at its begin."""

    server: Server
    name: str

    @property
    def url(self) -> str:
        """Return what `cloud.database` says."""
        return self.server.url(self.name)

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Read rows with the driver alone; works in an event loop too, which it holds up."""
        return self.server.query(sql, *parameters, database=self.name)

    @contextmanager
    def reading(self) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
        """Return what reads rows, all with one connection, and otherwise as `query` does."""
        with self.server.reading(self.name) as read:
            yield read


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """One server for all tests of a run that only need a database; it syncs nothing. Don't kill it: make your own."""
    server = Server()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture
def postgres(postgres_server: Server) -> Iterator[Postgres]:
    """Return an empty database of this test's own."""
    name = f"t{secrets.token_hex(6)}"
    postgres_server.create(name)
    try:
        yield Postgres(postgres_server, name)
    finally:
        postgres_server.drop(name)


@pytest.fixture(scope="session")
def prepared_template(postgres_server: Server) -> str:
    """Return the name of a database with the cloud's tables and nothing in them, to be copied."""
    from cloud.postgres_store import PostgresStore
    from tests.cloud.wire import FLEET

    postgres_server.create("prepared")
    store = PostgresStore(postgres_server.url("prepared"), FLEET)
    store.open()
    store.close()
    postgres_server.made = postgres_server.query(_OBJECTS, database="prepared")
    return "prepared"


@pytest.fixture
def prepared_postgres(postgres_server: Server, prepared_template: str) -> Iterator[Postgres]:
    """Return a database of this test's own with the cloud's tables, of the fleet tests.cloud.wire.FLEET."""
    name = postgres_server.used.pop() if postgres_server.used else f"t{secrets.token_hex(6)}"
    if not name.startswith("used_"):
        name = f"used_{name}"
        postgres_server.create(name, template=prepared_template)
    try:
        yield Postgres(postgres_server, name)
    finally:
        if asyncio.run(_emptied(Postgres(postgres_server, name))):
            postgres_server.used.append(name)
        else:
            postgres_server.drop(name)


_OBJECTS: Final = """
SELECT c.relname, c.relkind::text, c.relispartition FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace
    AND c.relkind IN ('r', 'p', 'S', 'v')
UNION ALL SELECT proname, 'f', false FROM pg_proc WHERE pronamespace = 'public'::regnamespace
UNION ALL SELECT tgname, 't', false FROM pg_trigger ORDER BY 1"""


async def _emptied(database: Postgres) -> bool:
    """Empty the tables for the next test, which is many times as fast as a new database; False if they can't be."""
    server = database.server
    connection = await server._connect(database.name)
    try:
        objects = [tuple(row) for row in await connection.fetch(_OBJECTS)]
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()"
        if objects != server.made or await connection.fetchval(others, database.name):
            return False
        kept = ("meta", "alembic_version")
        steps = [
            f"DELETE FROM {name}" for name, kind, part in objects if kind in "rp" and not part and name not in kept
        ]
        steps += [f"SELECT setval('{name}', 1, false)" for name, kind, _ in objects if kind == "S"]
        await connection.execute(";".join(steps))
        return True
    finally:
        await connection.close()


def _beside(work: Callable[[], T]) -> T:
    """Do something in a thread of its own, since this one may have a running event loop."""
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=run, name="postgres-judge")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]
