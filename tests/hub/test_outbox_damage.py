"""Files that are not what was written: set aside and told of, and the hub starts. Files of others: left alone."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from config import limits
from config.errors import SettingsError, StorageError
from hub.outbox import Outbox, OutboxDamagedError
from hub.outbox_file import SCHEMA_VERSION
from tests.hub.ledger import point, read_all

NOW_MS = 1_763_798_400_000  # 2025-11-22 08:00:00 UTC


def opened(path: Path) -> Outbox:
    return Outbox.open(path, clock=lambda: NOW_MS)


def written(path: Path, points: int = 2000) -> str:
    """Write an outbox of some hundred pages, and return its epoch."""
    outbox = opened(path)
    with outbox.transaction():
        for number in range(points):
            outbox.append("readings", [point(number, 300)], {"counter": str(number)})
    epoch = outbox.epoch
    outbox.close()
    return epoch


def overwrite(path: Path, position: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def sql(statements: str) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        connection = sqlite3.connect(path)
        connection.executescript(statements)
        connection.close()

    return run


def other_database(path: Path) -> None:
    path.unlink()
    sql("CREATE TABLE something_else (x)")(path)


def lost_but_for_its_log(path: Path) -> None:
    path.unlink()
    path.with_name(path.name + "-wal").write_bytes(b"\x37\x7f\x06\x82" + bytes(5000))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "garbage": lambda path: path.write_bytes(os.urandom(50_000)),
    "text": lambda path: path.write_bytes(b"hello\n"),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": truncate,
    "header": lambda path: overwrite(path, 0, bytes(16)),
    "page": lambda path: overwrite(path, 50 * 4096, bytes(range(256)) * 16),
    "other": other_database,
    "table": sql("DROP TABLE sensor_state"),
    "column": sql("ALTER TABLE chunk RENAME COLUMN crc TO checksum"),
    "totals": sql("DELETE FROM totals"),
    "behind": sql("UPDATE totals SET last_seq = 0"),
    "version": sql("PRAGMA user_version = 0"),
    "log": lost_but_for_its_log,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_set_aside_and_the_hub_starts_anew(tmp_path: Path, damage: str) -> None:
    """The cloud and the operator are told; the new epoch keeps new numbers from being taken for old ones."""
    path = tmp_path / "outbox.db"
    epoch = written(path)
    DAMAGES[damage](path)
    content = path.read_bytes() if path.exists() else None
    outbox = opened(path)
    assert outbox.epoch != epoch
    assert outbox.states() == {}
    aside = tmp_path / "outbox.db.damaged-20251122T080000Z-1"
    assert content is None or len(aside.read_bytes()) == len(content)
    assert outbox.damage is not None
    ledger = read_all(outbox)
    assert ledger.other == [f"outbox-damaged: {outbox.damage}"]
    assert "outbox.db.damaged-20251122T080000Z-1" in outbox.damage
    assert "\n" not in outbox.damage
    outbox.append("readings", [point(1)])
    outbox.close()
    outbox = opened(path)
    assert (outbox.damage, read_all(outbox).readings) == (None, [1])
    outbox.close()


def test_damage_upon_damage_keeps_the_newest_files_only(tmp_path: Path) -> None:
    """A disk that damages its files must not be filled with them."""
    path = tmp_path / "outbox.db"
    for _ in range(limits.OUTBOX_DAMAGED_KEPT + 3):
        opened(path).close()
        path.write_bytes(b"damaged")
    outbox = opened(path)
    outbox.close()
    kept = sorted(file.name for file in tmp_path.glob("outbox.db.damaged-*"))
    newest = limits.OUTBOX_DAMAGED_KEPT + 3
    assert kept == [f"outbox.db.damaged-20251122T080000Z-{newest - n}" for n in range(limits.OUTBOX_DAMAGED_KEPT)][::-1]


def test_a_message_whose_bytes_have_changed_is_given_up_alone(tmp_path: Path) -> None:
    """SQLite sees no wrong byte in a text; the cloud would refuse it for ever, or store a wrong value."""
    path = tmp_path / "outbox.db"
    outbox = opened(path)
    for number in (1, 2, 3):
        outbox.append("readings", [point(number)])
        outbox.load([number])
    outbox.close()
    position = path.read_bytes().index(point(2).body)
    overwrite(path, position + 20, b"7")
    outbox = opened(path)
    assert outbox.damage is None
    ledger = read_all_but_damaged(outbox)
    assert ledger == ([1, 3], [(2, 2, 1, "outbox damaged")])
    assert (outbox.points, outbox.points_lost, outbox.points_written) == (2, 1, 3)
    outbox.close()


def read_all_but_damaged(outbox: Outbox) -> tuple[list[int], list[tuple[int, int, int, str]]]:
    assert [message.seq for message in outbox.load([1, 2, 3])] == [1, 3]
    ledger = read_all(outbox)
    return ledger.readings, ledger.gaps


def test_damage_that_happens_at_work_is_told_from_a_disk_that_refuses(tmp_path: Path) -> None:
    """The one needs the outbox to be opened anew, the other only patience."""
    path = tmp_path / "outbox.db"
    written(path)
    outbox = opened(path)
    truncate(path)
    with pytest.raises(OutboxDamagedError):
        outbox.load(range(outbox.last_seq, 0, -1))
    outbox.close()
    outbox = opened(path)
    assert outbox.damage is not None
    outbox.close()


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    """Who goes back to an older Hubline reads what to do, and loses nothing."""
    path = tmp_path / "outbox.db"
    written(path)
    sql(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")(path)
    content = path.read_bytes()
    with pytest.raises(SettingsError, match="newer Hubline") as raised:
        opened(path)
    assert raised.value.file == path
    assert path.read_bytes() == content
    sql(f"PRAGMA user_version = {SCHEMA_VERSION}")(path)
    outbox = opened(path)
    assert outbox.points == 2000
    outbox.close()


def test_a_half_made_file_does_no_harm(tmp_path: Path) -> None:
    """A hub that was killed in its first moment has left no outbox, and no damage to report."""
    path = tmp_path / "outbox.db"
    path.with_name("outbox.db.new").write_bytes(b"half")
    outbox = opened(path)
    assert (outbox.damage, outbox.last_seq) == (None, 0)
    outbox.close()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file"):
        opened(tmp_path / "file" / "outbox.db")
    (tmp_path / "outbox.db").mkdir()
    with pytest.raises(StorageError, match=r"outbox\.db"):
        opened(tmp_path / "outbox.db")


@pytest.mark.skipif(os.name != "posix", reason="rights of files are kept otherwise on Windows")
def test_only_its_owner_reads_the_file(tmp_path: Path) -> None:
    """What a machine measures is nobody else's business."""
    outbox = opened(tmp_path / "outbox.db")
    outbox.append("readings", [point(1)])
    modes = {file.name: file.stat().st_mode & 0o077 for file in tmp_path.iterdir()}
    assert {"outbox.db", "outbox.db-wal"} <= set(modes)
    assert set(modes.values()) == {0}
    outbox.close()
