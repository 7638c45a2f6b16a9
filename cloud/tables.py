"""What all tables of the cloud's database share: the schema that they are in, its version, and the type of their ids (SQL)."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Identity, Integer, MetaData, PrimaryKeyConstraint, String, Table, Text

SCHEMA_VERSION: Final = 3
"""2 has added the tables of `cloud.fleet_schema` and `messages.skew_ms`; 3 keeps `messages` in partitions on PostgreSQL.

Each has a step of its own in `cloud.migrations.versions`, from OLDEST_VERSION on.
"""

OLDEST_VERSION: Final = 1

SCHEMA: Final = MetaData()
"""Complete once `cloud.schema` and `cloud.fleet_schema` are imported."""

ID: Final = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite makes ids of its own only for a column that is an INTEGER (and nothing else) PRIMARY KEY."""

TEXT: Final = Text().with_variant(Text(collation="C"), "postgresql")
"""Ordered by code points on both databases, as Python and the API's cursors order it."""

META: Final = Table("meta", SCHEMA, Column("name", TEXT, primary_key=True), Column("value", TEXT, nullable=False))
"""`schema_version` and `fleet`: whose database this is, and which Hubline may use it."""

REVISION: Final = Table(
    "alembic_version",
    SCHEMA,
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""The schema's version as alembic keeps it, under its own name; `meta` is what counts."""


ROOM_TO_UPDATE: Final = {"fillfactor": 50}
"""For tables whose rows change with every batch: a new version of a row finds room in its page, and no index is touched."""

SOME_ROOM_TO_UPDATE: Final = {"fillfactor": 70}
"""For rollups: only the newest buckets change."""


def numbered(name: str) -> Column[int]:
    """Return the primary key of a table whose rows the database numbers; a copied row brings its number along."""
    return Column(name, ID, Identity(always=False), primary_key=True)
