"""Opens the outbox's file: by one process at a time, whole or set aside, never half-made.

A damaged file is moved away under a name that says so, and a new one begins with a new epoch. So is one that was made on
another machine: what waits in it is still there, and waits there. Whatever happens while a new file is made, what bears its
name is complete.
"""

from __future__ import annotations

import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import psutil

from config import limits
from config.errors import SettingsError, StorageError
from config.files import sync_folder
from hub.outbox_origin import fuller, is_another

SCHEMA_VERSION: Final = 1
APPLICATION_ID: Final = 0x484C4F42
""" "HLOB": tells an outbox from any other SQLite file."""

SEQ_SHIFT: Final = 10
"""A chunk's id is its message's seq and its place in it: one B-tree holds all, in order, with no index beside it."""

_SCHEMA: Final = """
CREATE TABLE chunk (
    id INTEGER PRIMARY KEY,     -- seq << 10 | part
    kind TEXT NOT NULL,
    keep INTEGER NOT NULL,      -- 1: tells of a loss, is never dropped
    entries INTEGER NOT NULL,
    points INTEGER NOT NULL,
    first_ms INTEGER NOT NULL,
    last_ms INTEGER NOT NULL,
    kept_ms INTEGER NOT NULL,   -- the outbox's age when its message began
    crc INTEGER NOT NULL,
    body BLOB NOT NULL          -- entries, joined with commas
);
CREATE TABLE totals (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    epoch TEXT NOT NULL,
    session INTEGER NOT NULL,
    last_seq INTEGER NOT NULL,
    age_ms INTEGER NOT NULL,    -- how long there has been a hub with this outbox
    clock_ms INTEGER NOT NULL,  -- the wall clock when age_ms was last counted on
    messages INTEGER NOT NULL,
    points INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    points_written INTEGER NOT NULL,
    points_lost INTEGER NOT NULL,
    gaps INTEGER NOT NULL
);
CREATE TABLE sensor_state (sensor TEXT PRIMARY KEY, state TEXT NOT NULL) WITHOUT ROWID;
"""
_ORIGIN: Final = "CREATE TABLE IF NOT EXISTS origin (one INTEGER PRIMARY KEY CHECK (one = 1), machine TEXT NOT NULL)"
"""The machine that made the outbox. Of later date than the schema, which older versions read without it."""
_PROBES: Final = (
    "SELECT id, kind, keep, entries, points, first_ms, last_ms, kept_ms, crc, body FROM chunk LIMIT 0",
    "SELECT sensor, state FROM sensor_state LIMIT 0",
)
_PARTS: Final = ("", "-wal", "-shm")
"""SQLite's files beside each other."""
_DAMAGED: Final = "damaged"
_COPIED: Final = "copied"
_ASIDE: Final = r"-(\d{8}T\d{6}Z)-(\d+)(?:-wal)?"
"""What is added to the name of such a file, after the word: when it was found, in UTC, and its number in that second."""


class OutboxDamagedError(StorageError):
    """The file is not what was written: close the outbox and open it again, which sets the file aside."""


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """An outbox file, ready and locked. `damage` says in one line what was found and where it is now.

    `copied` does so for one that was made on another machine.
    """

    connection: sqlite3.Connection
    lock: FileLock
    damage: str | None
    copied: str | None = None

    def close(self) -> None:
        """Let go of the file."""
        try:
            self.connection.close()
        finally:
            self.lock.release()


def open_file(path: Path, clock: Callable[[], int], new_epoch: Callable[[], str], machine: str = "") -> OpenedFile:
    """Open or make the outbox at `path`, on the machine of that name ("" if it has none).

    Raises SettingsError if another process has it or a newer Hubline wrote it, StorageError if the disk refuses.
    """
    with translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            damage = copied = None
            log = _beside(path, "-wal")
            found = path.exists() or (log.exists() and log.stat().st_size > 0)
            if found and (problem := _problem_of(path)):
                aside = _set_aside(path, clock(), _DAMAGED)
                damage = f"{path.name} was damaged ({problem}) and is kept as {aside.name}"
            elif found and (waiting := _waiting_elsewhere(path, machine)) is not None:
                aside = _set_aside(path, clock(), _COPIED)
                copied = (
                    f"{path.name} was copied from another machine; its {waiting} waiting messages are for that one to "
                    f"send, and are kept here as {aside.name}"
                )
            if not path.exists():
                _make(path, clock(), new_epoch(), machine)
            connection = _connected(path)
            try:
                _sign(connection, machine)
            except sqlite3.OperationalError:
                pass  # A full disk must not keep what waits from being sent; the next start signs.
            return OpenedFile(connection, lock, damage, copied)
        except BaseException:
            lock.release()
            raise


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn the errors of SQLite and of the file system into StorageError."""
    try:
        yield
    except sqlite3.Error as exc:
        kind = OutboxDamagedError if _is_damage(exc) else StorageError
        raise kind(path, str(exc)) from exc
    except OSError as exc:
        raise StorageError(exc.filename or path, exc.strerror or str(exc)) from exc


def _is_damage(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
    unreadable = code in (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ)
    return unreadable or code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _beside(path: Path, part: str) -> Path:
    return path.with_name(path.name + part)


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=limits.STORE_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        page_size = connection.execute("PRAGMA page_size").fetchone()[0]
        for pragma in (
            f"cache_size = -{limits.OUTBOX_CACHE_BYTES // 1024}",
            "journal_mode = WAL",
            "synchronous = FULL",
            f"wal_autocheckpoint = {limits.OUTBOX_WAL_BYTES // page_size}",
            f"journal_size_limit = {limits.OUTBOX_WAL_BYTES}",
            "secure_delete = OFF",
            "temp_store = MEMORY",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _problem_of(path: Path) -> str | None:
    """Return what is wrong with an existing file, or None. Reads all of it: a second for a gibibyte."""
    if not path.exists():
        return "its log is there without it"
    if path.stat().st_size == 0:
        return "it is empty"
    try:
        connection = _connected(path)
    except sqlite3.Error as exc:
        if _is_damage(exc):
            return str(exc)
        raise
    try:
        return _problem_in(connection, path)
    except sqlite3.Error as exc:
        if _is_damage(exc) or getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR:
            return str(exc)  # SQLITE_ERROR: a table or a column is not there.
        raise
    finally:
        connection.close()


def _problem_in(connection: sqlite3.Connection, path: Path) -> str | None:
    def number(query: str) -> int:
        row = connection.execute(query).fetchone()
        return int(row[0] or 0)

    if number("PRAGMA application_id") != APPLICATION_ID:
        return "it is no outbox"
    version = number("PRAGMA user_version")
    if version > SCHEMA_VERSION:
        raise SettingsError(
            f"was written by a newer Hubline (schema {version}, this one knows {SCHEMA_VERSION}): "
            "install that version again, or give this one another data_dir",
            file=path,
        )
    if version < SCHEMA_VERSION:
        return f"its schema is {version}"
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        return str(found).splitlines()[-1]
    for probe in _PROBES:
        connection.execute(probe)
    if number("SELECT count(*) FROM totals") != 1:
        return "its totals are gone"
    if number("SELECT last_seq FROM totals") < number("SELECT max(id) FROM chunk") >> SEQ_SHIFT:
        return "its last message is unknown to it"
    return None


def _waiting_elsewhere(path: Path, machine: str) -> int | None:
    """Return how many messages wait in an outbox if another machine has made it, else None."""
    connection = _connected(path)
    try:
        made_on = _made_on(connection)
        if not is_another(made_on, machine):
            return None
        return int(connection.execute("SELECT messages FROM totals").fetchone()[0])
    finally:
        connection.close()


def _made_on(connection: sqlite3.Connection) -> str:
    if not connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'origin'").fetchone()[0]:
        return ""
    row = connection.execute("SELECT machine FROM origin").fetchone()
    return "" if row is None else str(row[0])


def _sign(connection: sqlite3.Connection, machine: str) -> None:
    """Note which machine's outbox this is, as far as it is known."""
    made_on = _made_on(connection)
    known = fuller(made_on, machine)
    if known != made_on:
        connection.execute(_ORIGIN)
        connection.execute("INSERT OR REPLACE INTO origin VALUES (1, ?)", (known,))


def _set_aside(path: Path, now_ms: int, why: str) -> Path:
    """Move a file away, and return its new name; keep only the newest few."""
    pattern = rf"{re.escape(path.name)}\.{why}{_ASIDE}"
    names = (re.fullmatch(pattern, file.name) for file in path.parent.iterdir())
    old = sorted({(found[1], int(found[2])) for found in names if found})
    for then, number in old[: max(0, len(old) - limits.OUTBOX_DAMAGED_KEPT + 1)]:
        for part in _PARTS:
            _beside(path, f".{why}-{then}-{number}{part}").unlink(missing_ok=True)
    moment = datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
    number = 1 + max((number for then, number in old if then == moment), default=0)
    aside = _beside(path, f".{why}-{moment}-{number}")
    for part in reversed(_PARTS):  # The log first: it must never be read into a new file.
        if _beside(path, part).exists():
            os.replace(_beside(path, part), _beside(aside, part))
    sync_folder(path.parent)
    return aside


def _make(path: Path, now_ms: int, epoch: str, machine: str) -> None:
    """Write an empty outbox under another name, and give it its name when it is whole."""
    fresh = _beside(path, ".new")
    for part in ("", "-journal"):
        _beside(fresh, part).unlink(missing_ok=True)
    for part in _PARTS[1:]:
        _beside(path, part).unlink(missing_ok=True)
    os.close(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # SQLite gives its log the same rights.
    connection = sqlite3.connect(fresh, isolation_level=None)
    try:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(
            f"BEGIN; {_SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT"
        )
        connection.execute("INSERT INTO totals VALUES (1, ?, 0, 0, 0, ?, 0, 0, 0, 0, 0, 0)", (epoch, now_ms))
        _sign(connection, machine)
    finally:
        connection.close()
    os.replace(fresh, path)
    sync_folder(path.parent)


def holder_of(path: Path) -> int | None:
    """Return the process that has taken the outbox's lock, without touching the lock, or None."""
    lock = _beside(path, ".lock")
    try:
        number = int(lock.read_bytes()[:20])
        taken_s = lock.stat().st_mtime
        # One that is younger has only got the number of the one that was.
        return number if psutil.Process(number).create_time() <= taken_s + 1.0 else None
    except (OSError, ValueError, psutil.Error):
        return None


class FileLock:
    """A lock on the outbox that the system releases when its process ends, however it ends."""

    def __init__(self, path: Path):
        """Take the lock. Raises SettingsError naming the process that has it."""
        place = _beside(path, ".lock")
        self._descriptor = os.open(place, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
        try:
            _lock(self._descriptor)
        except OSError as exc:
            owner = os.pread(self._descriptor, 20, 0) if os.name == "posix" else place.read_bytes()[:20]
            os.close(self._descriptor)
            who = f"process {owner.decode('ascii', 'replace').strip()}" if owner.strip() else "another process"
            raise SettingsError(
                f"is in use by {who}: only one hub can run on a data_dir; stop the other, or give this one its own",
                file=path,
            ) from exc
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, b"%d\n" % os.getpid())

    def release(self) -> None:
        """Give the lock up. Its file stays: to delete it would let two processes lock two files of one name."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


if sys.platform == "win32":
    import msvcrt

    _LOCKED_BYTE: Final = 1 << 30
    """Far behind the text: what is locked can't be read on Windows."""

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
