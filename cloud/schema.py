"""The tables of the cloud's database, and how it is opened: SQLite, its log synced at every commit (SQL).

A row per message, in order of arrival; beside it what would otherwise need a scan: coverage, newest values, rollups and
sums.
"""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from config import limits
from config.errors import SettingsError, StorageError

SCHEMA_VERSION: Final = 2
"""2 has added the tables of `cloud.fleet_schema` and `messages.skew_ms`; nothing that 1 had was changed."""

_GROWS_FROM: Final = 1

SCHEMA: Final = MetaData()

# SQLite makes ids of its own only for a column that is an INTEGER (and nothing else) PRIMARY KEY.
_ID: Final = BigInteger().with_variant(Integer(), "sqlite")

META: Final = Table("meta", SCHEMA, Column("name", Text, primary_key=True), Column("value", Text, nullable=False))

HUBS: Final = Table(
    "hubs",
    SCHEMA,
    Column("hub_no", _ID, primary_key=True),
    Column("site", Text, nullable=False),
    Column("hub", Text, nullable=False),
    Column("online", SmallInteger),
    Column("epoch", Text),
    Column("session", BigInteger),
    Column("via", Text),
    Column("mode", Text),
    Column("version", Text),
    Column("reason", Text),
    Column("state_ts", BigInteger),
    Column("last_seen_ms", BigInteger),
    UniqueConstraint("site", "hub"),
)
"""Every hub that was ever heard of, with what it last said of itself; times are Unix ms, `_ms` by the cloud's clock."""

CONNECTORS: Final = Table(
    "connectors",
    SCHEMA,
    Column("site", Text, primary_key=True),
    Column("connector", Text, primary_key=True),
    Column("online", SmallInteger, nullable=False),
    Column("session", BigInteger, nullable=False),
    Column("upstream", Text),
    Column("since_ts", BigInteger),
    Column("reason", Text),
    Column("state_ts", BigInteger),
    Column("last_seen_ms", BigInteger, nullable=False),
)

STREAMS: Final = Table(
    "streams",
    SCHEMA,
    Column("stream_no", _ID, primary_key=True),
    Column("hub_no", _ID, nullable=False),
    Column("epoch", Text, nullable=False),
    Column("messages", BigInteger, nullable=False, server_default=text("0")),
    Column("points", BigInteger, nullable=False, server_default=text("0")),
    Column("pruned_messages", BigInteger, nullable=False, server_default=text("0")),
    Column("pruned_points", BigInteger, nullable=False, server_default=text("0")),
    Column("duplicates", BigInteger, nullable=False, server_default=text("0")),
    Column("refused", BigInteger, nullable=False, server_default=text("0")),
    Column("last_received_ms", BigInteger, nullable=False, server_default=text("0")),
    UniqueConstraint("hub_no", "epoch"),
)
"""Sums of everything ever stored; `pruned_…` is how much of it the retention has deleted again."""

COVERAGE: Final = Table(
    "coverage",
    SCHEMA,
    Column("stream_no", _ID, primary_key=True),
    Column("first_seq", BigInteger, primary_key=True),
    Column("last_seq", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
"""The seqs ever stored, as intervals that don't touch. Never pruned: a late replay is refused for ever."""

MESSAGES: Final = Table(
    "messages",
    SCHEMA,
    Column("message_no", _ID, primary_key=True),
    Column("stream_no", _ID, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("sent_ms", BigInteger, nullable=False),
    Column("received_ms", BigInteger, nullable=False),
    Column("points", Integer, nullable=False),
    Column("first_ts", BigInteger),
    Column("last_ts", BigInteger),
    Column("codec", SmallInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("skew_ms", BigInteger),
    UniqueConstraint("stream_no", "seq"),
)
"""`first_ts` and `last_ts` are by the cloud's clock; `skew_ms` is by how much the hub's, as in the payload, is ahead of it."""
Index("messages_by_age", MESSAGES.c.kind, MESSAGES.c.received_ms)
Index(
    "readings_by_time",
    MESSAGES.c.stream_no,
    MESSAGES.c.last_ts,
    sqlite_where=MESSAGES.c.kind == "readings",
    postgresql_where=MESSAGES.c.kind == "readings",
)

SENSORS: Final = Table(
    "sensors",
    SCHEMA,
    Column("sensor_no", _ID, primary_key=True),
    Column("hub_no", _ID, nullable=False),
    Column("sensor", Text, nullable=False),
    Column("ts", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("value", Text, nullable=False),
    Column("readings", BigInteger, nullable=False),
    UniqueConstraint("hub_no", "sensor"),
)
"""The newest value (JSON) of each sensor by the hub's clock, and how many of its readings were ever stored."""


def _rollup_table(name: str) -> Table:
    return Table(
        name,
        SCHEMA,
        Column("bucket", BigInteger, primary_key=True),
        Column("sensor_no", _ID, primary_key=True),
        Column("count", BigInteger, nullable=False),
        Column("min", Double, nullable=False),
        Column("max", Double, nullable=False),
        Column("sum", Double, nullable=False),
        sqlite_with_rowid=False,
    )


ROLLUP_5MIN: Final = _rollup_table("rollup_5min")
"""`bucket` is ts // 5 min. It comes first: all sensors' current buckets are neighbours, in few pages to write."""

ROLLUP_1H: Final = _rollup_table("rollup_1h")

GAPS: Final = Table(
    "gaps",
    SCHEMA,
    Column("stream_no", _ID, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("from_seq", BigInteger),
    Column("to_seq", BigInteger),
    Column("points", BigInteger),
    Column("first_ts", BigInteger),
    Column("last_ts", BigInteger),
    Column("reason", Text),
    sqlite_with_rowid=False,
)
"""What hubs said they had to drop; `seq` and `position` are those of the record."""

QUARANTINE: Final = Table(
    "quarantine",
    SCHEMA,
    Column("refused_no", _ID, primary_key=True),
    Column("received_ms", BigInteger, nullable=False),
    Column("topic", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
"""The newest refused messages; the highest `refused_no` is how many there ever were."""


def database_file(url: str) -> Path:
    """Return the file of a `sqlite:///` URL. Raises SettingsError for any other database."""
    found = re.fullmatch(r"sqlite(?:\+[a-z0-9]+)?:///(?![:]|file:)([^?]+)", url)
    if not found:
        raise SettingsError("must be sqlite:///FILE, the only database so far", key="cloud.database", value=url)
    return Path(found[1])


def writer_engine(file: Path) -> Engine:
    """Return an engine with one connection, for one thread; each transaction takes the lock at its begin."""

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            file, timeout=limits.STORE_BUSY_SLICE_S, isolation_level=None, check_same_thread=False
        )
        try:
            for pragma in (
                "journal_mode = WAL",
                "synchronous = FULL",
                f"cache_size = {-limits.STORE_CACHE_BYTES // 1024}",
                f"wal_autocheckpoint = {limits.STORE_CHECKPOINT_PAGES}",
                "temp_store = MEMORY",
            ):
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=StaticPool)
    event.listen(engine, "begin", _begin_immediate)
    return engine


def reader_engine(file: Path) -> Engine:
    """Return an engine that can't write; it works beside a running service."""
    uri = f"{file.absolute().as_uri()}?mode=ro"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(uri, uri=True, timeout=limits.STORE_BUSY_TIMEOUT_S, isolation_level=None)

    engine = create_engine("sqlite://", creator=connect, poolclass=StaticPool)
    event.listen(engine, "begin", _begin)
    return engine


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def prepare(connection: Connection, file: Path, fleet: str) -> None:
    """Create the tables in an empty database or an older one, or check that this one is ours. Raises SettingsError if not."""
    from cloud import fleet_schema  # It adds its tables to SCHEMA, and needs SCHEMA for that.

    assert fleet_schema.PRESENCE.metadata is SCHEMA
    found = written_by(connection, file, oldest=_GROWS_FROM)
    if found is not None and found == fleet:
        SCHEMA.create_all(connection)
        if "skew_ms" not in {row.name for row in connection.execute(text("PRAGMA table_info(messages)"))}:
            connection.execute(text("ALTER TABLE messages ADD COLUMN skew_ms BIGINT"))
        connection.execute(update(META).where(META.c.name == "schema_version").values(value=str(SCHEMA_VERSION)))
    elif found is None:
        SCHEMA.create_all(connection)
        rows = [{"name": "schema_version", "value": str(SCHEMA_VERSION)}, {"name": "fleet", "value": fleet}]
        connection.execute(insert(META), rows)
    elif found != fleet:
        raise SettingsError(f"holds the fleet {found}, not {fleet}: give every fleet its own database", file=file)


def written_by(connection: Connection, file: Path, *, oldest: int = SCHEMA_VERSION) -> str | None:
    """Return the fleet whose database this is, or None if it is empty. Raises SettingsError if it isn't one of ours."""
    tables = select(func.count()).select_from(text("sqlite_master"))
    if connection.scalar(tables) == 0:
        return None
    meta: dict[str, Any]
    try:
        meta = {row.name: row.value for row in connection.execute(select(META))}
        version, fleet = int(meta["schema_version"]), str(meta["fleet"])
    except (DBAPIError, KeyError, ValueError) as exc:
        raise SettingsError("is a database, but not one of Hubline's cloud", file=file) from exc
    if not oldest <= version <= SCHEMA_VERSION:
        age = "a newer" if version > SCHEMA_VERSION else "an older"
        problem = f"was written by {age} Hubline: its schema is {version}, this one knows {SCHEMA_VERSION}"
        raise SettingsError(problem, file=file)
    return fleet


def storage_error(file: Path, exc: DBAPIError | sqlite3.Error | OSError) -> StorageError | SettingsError:
    """Translate what the driver raised: SettingsError if a person must mend it, StorageError if it may mend itself."""
    cause = exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc
    reason = str(cause)
    if "file is not a database" in reason:
        return SettingsError("is not a database", file=file)
    return StorageError(file, reason)
