"""What tables there are and of what sort, asked of the databases themselves; and databases as older Hublines left them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert

from cloud.migrating import Found, step
from cloud.postgres_engine import engine
from cloud.schema import META
from tests.cloud.wire import FLEET
from tests.postgres import Postgres

Shape = dict[str, Any]

_POSTGRES: dict[str, str] = {
    "columns": """
        SELECT c.relname, row_number() OVER (PARTITION BY c.oid ORDER BY a.attnum), a.attname,
               format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity::text, a.attstorage::text,
               a.attcollation::regcollation::text, pg_get_expr(d.adbin, d.adrelid)
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped AND c.relnamespace = 'public'::regnamespace""",
    "tables": """
        SELECT relname, relkind::text, reloptions, pg_get_expr(relpartbound, oid), pg_get_partkeydef(oid) FROM pg_class
        WHERE relkind IN ('r', 'p', 'v', 'm', 'f') AND relnamespace = 'public'::regnamespace""",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace""",
    "sequences": """
        SELECT c.relname, d.refobjid::regclass::text, d.refobjsubid, s.seqstart, s.seqmax, s.seqincrement
        FROM pg_class c JOIN pg_sequence s ON s.seqrelid = c.oid
        LEFT JOIN pg_depend d ON d.objid = c.oid AND d.refobjsubid > 0 AND d.classid = 'pg_class'::regclass""",
}


def shape_of_postgres(database: Postgres) -> Shape:
    """Return everything about the tables that makes a difference; the places of their columns count, gaps between them don't."""
    return {what: sorted(map(repr, database.query(sql))) for what, sql in _POSTGRES.items()}


def shape_of_sqlite(file: Path) -> Shape:
    """Return everything about the tables that makes a difference."""
    connection = sqlite3.connect(file)

    def rows(sql: str) -> list[Any]:
        return connection.execute(sql).fetchall()

    try:
        tables = [row for row in rows("PRAGMA table_list") if row[1] != "sqlite_schema" and row[0] == "main"]
        made = dict(rows("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
        return {
            name: {
                "sort": (sort, columns, without_rowid, strict, "AUTOINCREMENT" in made.get(name, "")),
                "columns": rows(f"PRAGMA table_xinfo({name})"),
                "indexes": sorted(
                    (*row[1:], " ".join(made.get(row[1], "").split()), repr(rows(f"PRAGMA index_xinfo({row[1]})")))
                    for row in rows(f"PRAGMA index_list({name})")
                ),
            }
            for _, name, sort, columns, without_rowid, strict in tables
        }
    finally:
        connection.close()


def older_file(file: Path, version: int, filled: Path) -> None:
    """Make a file of an old schema, from before alembic, with the rows of a new one as far as it had a place for them."""
    connection = sqlite3.connect(file)
    connection.executescript((Path(__file__).parent / f"schema_{version}.sql").read_text())
    connection.execute("ATTACH ? AS filled", (str(filled),))
    for (name,) in connection.execute("SELECT name FROM main.sqlite_master WHERE type = 'table'").fetchall():
        if name.startswith("sqlite_"):
            continue
        columns = ", ".join(row[1] for row in connection.execute(f"PRAGMA main.table_xinfo({name})"))
        connection.execute(f"INSERT INTO main.{name} ({columns}) SELECT {columns} FROM filled.{name}")
    connection.execute("UPDATE main.meta SET value = ? WHERE name = 'schema_version'", (str(version),))
    connection.commit()
    connection.close()


def older_postgres(connection: Connection, version: int) -> None:
    """Take the first steps only, in an empty database."""
    found = Found("test", FLEET, 0)
    while found.version < version:
        found = step(connection, found)
    rows = [{"name": "schema_version", "value": str(version)}, {"name": "fleet", "value": FLEET}]
    connection.execute(insert(META), rows)


@contextmanager
def connected(database: Postgres) -> Iterator[Connection]:
    """Connect as the service does."""
    made = engine(database.url)
    try:
        with made.connect() as connection:
            yield connection
    finally:
        made.dispose()


def in_postgres(database: Postgres, *works: Callable[[Connection], Any]) -> list[Any]:
    """Do things in a transaction each, and return what they return."""
    found = []
    with connected(database) as connection:
        for work in works:
            with connection.begin():
                found.append(work(connection))
    return found
