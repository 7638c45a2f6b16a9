"""The store when the machine fails it: locked, full, killed. Nothing is half there, and it recovers by itself."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from cloud.store import Store
from config import limits
from config.errors import StorageError
from tests.cloud.stored import content_of, query
from tests.cloud.wire import EPOCH, FLEET, SITE, T0, batch, one, readings

ROOT = Path(__file__).parents[2]
DEADLINE_S = 30.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cloud.db"


@pytest.fixture
def store(file: Path) -> Iterator[Store]:
    made = Store(file, FLEET)
    yield made
    made.close()


def lock(file: Path) -> sqlite3.Connection:
    """Hold the database as a backup program might; closing the connection lets go."""
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    return other


def test_locked_database_is_an_error_that_passes(file: Path) -> None:
    """Somebody looks into the database with a tool and forgets to close it."""
    store = Store(file, FLEET, busy_timeout_s=limits.STORE_BUSY_SLICE_S)
    store.commit(batch(one(1)))
    other = lock(file)
    with pytest.raises(StorageError, match="locked"):
        store.commit(batch(one(2)))
    other.close()
    assert store.commit(batch(one(1), one(2))).messages == 1
    store.close()
    assert len(content_of(file).messages) == 2


def test_lock_that_ends_in_time_is_waited_for(store: Store, file: Path) -> None:
    """A short lock is no failure at all."""
    store.commit(batch(one(1)))
    other = lock(file)
    release = threading.Timer(limits.STORE_BUSY_SLICE_S * 3, other.close)
    release.start()
    assert store.commit(batch(one(2))).messages == 1
    release.join()


def test_stopping_service_does_not_sit_out_a_lock(file: Path) -> None:
    """The service manager waits five seconds, then it kills."""
    store = Store(file, FLEET, busy_timeout_s=3600.0)
    store.commit(batch(one(1)))
    other = lock(file)
    said: list[Exception] = []

    def commit() -> None:
        try:
            store.commit(batch(one(2)))
        except StorageError as exc:
            said.append(exc)

    writing = threading.Thread(target=commit)
    writing.start()
    store.hurry()
    writing.join(DEADLINE_S)
    assert not writing.is_alive()
    assert len(said) == 1
    other.close()
    store.close()


def test_full_database_keeps_what_it_has_and_goes_on_when_there_is_room(store: Store, file: Path) -> None:
    """SQLite's own limit on pages is what a full disk looks like to a transaction."""
    store.commit(batch(one(1)))
    assert store._connection is not None
    driver = store._connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    driver.execute("PRAGMA max_page_count = 1")  # That is: as many as there are.
    large = batch(*(readings(seq, [(T0, {"x": os.urandom(1000).hex()})]) for seq in range(2, 200)))
    with pytest.raises(StorageError, match="full"):
        store.commit(large)
    assert len(content_of(file).messages) == 1
    assert content_of(file).coverage == {(SITE, "pc-1", EPOCH): [(1, 1)]}
    assert store.commit(large).messages == 198


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system of 2 MB."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root on Linux")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"this machine mounts no tmpfs: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(store: Store) -> int:
    """Store messages of 4 kB until the disk is full, and return the last seq that was committed."""
    for seq in range(1, 5000):
        try:
            store.commit(batch(readings(seq, [(T0, {"x": os.urandom(2000).hex()})])))
        except StorageError:
            return seq - 1
    pytest.fail("the disk has never become full")


@pytest.mark.root
def test_full_disk_loses_nothing_and_is_recovered_from(small_disk: Path) -> None:
    """Disks fill up; an administrator makes room while the service runs."""
    file = small_disk / "cloud.db"
    store = Store(file, FLEET)
    try:
        committed = fill(store)
        assert committed > 10
        assert content_of(file).coverage == {(SITE, "pc-1", EPOCH): [(1, committed)]}
        subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
        again = batch(*(readings(seq, [(T0, {"x": "y"})]) for seq in range(1, committed + 2)))
        assert store.commit(again).messages == 1
        assert content_of(file).coverage == {(SITE, "pc-1", EPOCH): [(1, committed + 1)]}
    finally:
        store.close()


def test_killed_writer_has_stored_what_it_has_reported_and_nothing_by_halves(file: Path) -> None:
    """kill -9 at any instant: an acknowledged message is there, and every sum agrees with the messages."""
    random = Random(17)
    reported = 0
    for _ in range(6):
        with subprocess.Popen(
            [sys.executable, "-m", "tests.cloud.endless_writer", str(file), str(reported + 1)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ) as writer:
            assert writer.stdout is not None
            for _ in range(random.randint(1, 25)):
                reported = int(writer.stdout.readline())
            writer.kill()
            reported = max([reported, *map(int, writer.stdout.read().split())])
        last = agreed_last_seq(file)
        assert last >= reported
        reported = last


def agreed_last_seq(file: Path) -> int:
    """Check that everything in the database agrees, and return the last seq."""
    content = content_of(file)
    assert query(file, "PRAGMA integrity_check") == [("ok",)]
    place = (SITE, "pc-1", EPOCH)
    last = len(content.messages)
    assert {seq for *_, seq in content.messages} == set(range(1, last + 1))
    assert content.coverage == {place: [(1, last)]}
    assert content.sums == {place: (last, last, 0)}
    assert content.newest == {
        (SITE, "pc-1", "counter"): (T0 + last * 1000, str(last), last),
        (SITE, "pc-1", "on"): (T0 + last * 1000, "true", last),
    }
    for table in ("rollup_5min", "rollup_1h"):
        counters = [
            rollup for (name, *_, sensor, _), rollup in content.rollups.items() if (name, sensor) == (table, "counter")
        ]
        assert sum(count for count, *_ in counters) == last
        assert sum(total for *_, total in counters) == last * (last + 1) / 2
        assert max(maximum for _, _, maximum, _ in counters) == last
    return last
