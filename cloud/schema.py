"""The tables of the cloud's database, and how it is opened: SQLite, its log synced at every commit (SQL).

A row per message, in order of arrival; beside it what would otherwise need a scan: coverage, newest values, rollups and
sums.
"""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Engine,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    UniqueConstraint,
    create_engine,
    event,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from cloud import fleet_schema as fleet_schema  # So that SCHEMA is complete.
from cloud.migrating import found_in, lock_schema, make_newest, step
from cloud.tables import (
    ID,
    ROOM_TO_UPDATE,
    SCHEMA_VERSION,
    SOME_ROOM_TO_UPDATE,
    TEXT,
    numbered,
)
from cloud.tables import (
    META as META,
)
from cloud.tables import (
    SCHEMA as SCHEMA,
)
from config import limits
from config.errors import SettingsError, StorageError

HUBS: Final = Table(
    "hubs",
    SCHEMA,
    numbered("hub_no"),
    Column("site", TEXT, nullable=False),
    Column("hub", TEXT, nullable=False),
    Column("online", SmallInteger),
    Column("epoch", TEXT),
    Column("session", BigInteger),
    Column("via", TEXT),
    Column("mode", TEXT),
    Column("version", TEXT),
    Column("reason", TEXT),
    Column("state_ts", BigInteger),
    Column("last_seen_ms", BigInteger),
    UniqueConstraint("site", "hub"),
    postgresql_with=ROOM_TO_UPDATE,
)
"""Every hub that was ever heard of, with what it last said of itself; times are Unix ms, `_ms` by the cloud's clock."""

CONNECTORS: Final = Table(
    "connectors",
    SCHEMA,
    Column("site", TEXT, primary_key=True),
    Column("connector", TEXT, primary_key=True),
    Column("online", SmallInteger, nullable=False),
    Column("session", BigInteger, nullable=False),
    Column("upstream", TEXT),
    Column("since_ts", BigInteger),
    Column("reason", TEXT),
    Column("state_ts", BigInteger),
    Column("last_seen_ms", BigInteger, nullable=False),
)

STREAMS: Final = Table(
    "streams",
    SCHEMA,
    numbered("stream_no"),
    Column("hub_no", ID, nullable=False),
    Column("epoch", TEXT, nullable=False),
    Column("messages", BigInteger, nullable=False, server_default=text("0")),
    Column("points", BigInteger, nullable=False, server_default=text("0")),
    Column("pruned_messages", BigInteger, nullable=False, server_default=text("0")),
    Column("pruned_points", BigInteger, nullable=False, server_default=text("0")),
    Column("duplicates", BigInteger, nullable=False, server_default=text("0")),
    Column("refused", BigInteger, nullable=False, server_default=text("0")),
    Column("last_received_ms", BigInteger, nullable=False, server_default=text("0")),
    UniqueConstraint("hub_no", "epoch"),
    postgresql_with=ROOM_TO_UPDATE,
)
"""Sums of everything ever stored; `pruned_…` is how much of it the retention has deleted again."""

COVERAGE: Final = Table(
    "coverage",
    SCHEMA,
    Column("stream_no", ID, primary_key=True),
    Column("first_seq", BigInteger, primary_key=True),
    Column("last_seq", BigInteger, nullable=False),
    sqlite_with_rowid=False,
    postgresql_with=ROOM_TO_UPDATE,
)
"""The seqs ever stored, as intervals that don't touch. Never pruned: a late replay is refused for ever."""

MESSAGES: Final = Table(
    "messages",
    SCHEMA,
    numbered("message_no"),
    Column("stream_no", ID, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("kind", TEXT, nullable=False),
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
    numbered("sensor_no"),
    Column("hub_no", ID, nullable=False),
    Column("sensor", TEXT, nullable=False),
    Column("ts", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("value", TEXT, nullable=False),
    Column("readings", BigInteger, nullable=False),
    UniqueConstraint("hub_no", "sensor"),
    postgresql_with=ROOM_TO_UPDATE,
)
"""The newest value (JSON) of each sensor by the hub's clock, and how many of its readings were ever stored."""


def _rollup_table(name: str) -> Table:
    return Table(
        name,
        SCHEMA,
        Column("bucket", BigInteger, primary_key=True),
        Column("sensor_no", ID, primary_key=True),
        Column("count", BigInteger, nullable=False),
        Column("min", Double, nullable=False),
        Column("max", Double, nullable=False),
        Column("sum", Double, nullable=False),
        sqlite_with_rowid=False,
        postgresql_with=SOME_ROOM_TO_UPDATE,
    )


ROLLUP_5MIN: Final = _rollup_table("rollup_5min")
"""`bucket` is ts // 5 min. It comes first: all sensors' current buckets are neighbours, in few pages to write."""

ROLLUP_1H: Final = _rollup_table("rollup_1h")

GAPS: Final = Table(
    "gaps",
    SCHEMA,
    Column("stream_no", ID, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("from_seq", BigInteger),
    Column("to_seq", BigInteger),
    Column("points", BigInteger),
    Column("first_ts", BigInteger),
    Column("last_ts", BigInteger),
    Column("reason", TEXT),
    sqlite_with_rowid=False,
)
"""What hubs said they had to drop; `seq` and `position` are those of the record."""

QUARANTINE: Final = Table(
    "quarantine",
    SCHEMA,
    numbered("refused_no"),
    Column("received_ms", BigInteger, nullable=False),
    Column("topic", TEXT, nullable=False),
    Column("reason", TEXT, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
"""The newest refused messages; the highest `refused_no` is how many there ever were."""


def database_file(url: str) -> Path:
    """Return the file of a `sqlite:///` URL. Raises SettingsError for any other database."""
    found = re.fullmatch(r"sqlite(?:\+[a-z0-9]+)?:///(?![:]|file:)([^?]+)", url)
    if not found:
        shown = re.sub("://[^/]*@", "://…@", url)  # There may be a password in it.
        raise SettingsError("must be sqlite:///FILE here", key="cloud.database", value=shown)
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
        # For one thread at a time; the one that closes it is another.
        return sqlite3.connect(
            uri, uri=True, timeout=limits.STORE_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )

    engine = create_engine("sqlite://", creator=connect, poolclass=StaticPool)
    event.listen(engine, "begin", _begin)
    return engine


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def prepare(connection: Connection, place: Path | str, fleet: str) -> None:
    """Create the tables in an empty database, bring an older SQLite file up to date, or check that this one is ours.

    In a transaction of the caller's; several may do it at once. `place` is how messages call the database. Raises
    SettingsError if it is not ours or not this fleet's, and for an older PostgreSQL: `hubline cloud migrate` is for that.
    """
    in_files = connection.dialect.name == "sqlite"
    if not in_files:
        lock_schema(connection)
    found = found_in(connection, place)
    if found is None:
        make_newest(connection, fleet)
        return
    found.must_be(fleet)
    if found.version < SCHEMA_VERSION and in_files:
        while found.version < SCHEMA_VERSION:
            found = step(connection, found)
    found.must_be_newest()


def written_by(connection: Connection, place: Path | str) -> str | None:
    """Return the fleet whose database this is, or None if it is empty. Raises SettingsError if this Hubline can't read it."""
    found = found_in(connection, place)
    if found is None:
        return None
    found.must_be_newest()
    return found.fleet


def storage_error(file: Path, exc: DBAPIError | sqlite3.Error | OSError) -> StorageError | SettingsError:
    """Translate what the driver raised: SettingsError if a person must mend it, StorageError if it may mend itself."""
    cause = exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc
    reason = str(cause)
    if "file is not a database" in reason:
        return SettingsError("is not a database", file=file)
    return StorageError(file, reason)
