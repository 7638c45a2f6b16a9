"""Brings a database to the newest schema, a step at a time; an empty one gets the newest tables at once (SQL).

`meta.schema_version` counts, also for databases from before alembic; alembic's own table follows it. alembic is imported for a
step only: a start with nothing to do does not pay for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, delete, func, insert, inspect, select, text, update
from sqlalchemy.exc import DBAPIError

from cloud.partitions import create_messages
from cloud.tables import META, OLDEST_VERSION, REVISION, SCHEMA, SCHEMA_VERSION
from config.errors import SettingsError

_LOCK: Final = 0x68756231
"""Of PostgreSQL's advisory locks, the one of whoever makes or changes tables."""

_SCRIPTS: Final = "cloud:migrations"


@dataclass(frozen=True, slots=True)
class Found:
    """Whose database it is, and which schema it has: one from OLDEST_VERSION to SCHEMA_VERSION. `place` is for messages."""

    place: Path | str
    fleet: str
    version: int

    def must_be(self, fleet: str) -> None:
        """Raise SettingsError if it holds another fleet."""
        if self.fleet != fleet:
            problem = f"holds the fleet {self.fleet}, not {fleet}: give every fleet its own database"
            raise SettingsError(problem, file=self.place)

    def must_be_newest(self) -> None:
        """Raise SettingsError if it has to be migrated first."""
        if self.version != SCHEMA_VERSION:
            problem = f"{_age(self.version)}: run `hubline cloud migrate -c cloud.toml`"
            raise SettingsError(problem, file=self.place)


def found_in(connection: Connection, place: Path | str) -> Found | None:
    """Return what a database holds, or None if it is empty. Raises SettingsError if it isn't ours, or not for this Hubline."""
    if _is_empty(connection):
        return None
    try:
        if not inspect(connection).has_table("meta"):
            raise KeyError("meta")
        meta = {row.name: row.value for row in connection.execute(select(META))}
        version, fleet = int(meta["schema_version"]), str(meta["fleet"])
    except (DBAPIError, KeyError, ValueError) as exc:
        raise SettingsError("is a database, but not one of Hubline's cloud", file=place) from exc
    if not OLDEST_VERSION <= version <= SCHEMA_VERSION:
        raise SettingsError(_age(version), file=place)
    return Found(place, fleet, version)


def lock_schema(connection: Connection) -> None:
    """Let nobody else make or change tables until the transaction ends; SQLite's transactions do so by themselves."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))


def make_newest(connection: Connection, fleet: str) -> None:
    """Create all tables in an empty database."""
    if connection.dialect.name == "postgresql":
        tables = [table for table in SCHEMA.sorted_tables if table.name != "messages"]
        SCHEMA.create_all(connection, tables=tables)
        create_messages(connection)
    else:
        SCHEMA.create_all(connection)
    rows = [{"name": "schema_version", "value": str(SCHEMA_VERSION)}, {"name": "fleet", "value": fleet}]
    connection.execute(insert(META), rows)
    _stamp(connection, SCHEMA_VERSION)


def step(connection: Connection, found: Found) -> Found:
    """Take one step towards the newest schema, in the caller's transaction, and return what there is then."""
    from alembic import command
    from alembic.config import Config

    _stamp(connection, found.version)
    version = found.version + 1
    settings = Config(attributes={"connection": connection})
    settings.set_main_option("script_location", _SCRIPTS)
    command.upgrade(settings, revision(version))
    connection.execute(update(META).where(META.c.name == "schema_version").values(value=str(version)))
    return Found(found.place, found.fleet, version)


def revision(version: int) -> str:
    """Return alembic's name of a version."""
    return f"{version:04d}"


def _stamp(connection: Connection, version: int) -> None:
    REVISION.create(connection, checkfirst=True)
    connection.execute(delete(REVISION))
    if version:
        connection.execute(insert(REVISION).values(version_num=revision(version)))


def _is_empty(connection: Connection) -> bool:
    if connection.dialect.name == "sqlite":
        return connection.scalar(select(func.count()).select_from(text("sqlite_master"))) == 0
    tables = "SELECT count(*) FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v')"
    return bool(connection.scalar(text(tables)) == 0)


def _age(version: int) -> str:
    age = "a newer" if version > SCHEMA_VERSION else "an older"
    return f"was written by {age} Hubline: its schema is {version}, this one knows {SCHEMA_VERSION}"
