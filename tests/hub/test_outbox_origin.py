"""A copied disk: the copy begins an outbox of its own, and the original's messages are neither sent twice nor thrown away."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from hub.outbox import Outbox
from hub.outbox_origin import fuller, is_another, machine_of, this_machine
from tests.hub.ledger import event, point, read_all

ONE, OTHER = machine_of("aaaa", "uuid-1"), machine_of("bbbb", "uuid-2")


@pytest.mark.parametrize(
    ("before", "now", "another"),
    [
        (("a", "1"), ("a", "1"), False),
        (("a", "1"), ("b", "1"), True),
        (("a", "1"), ("a", "2"), True),  # Cloned without a new machine-id: the usual case.
        (("a", ""), ("a", "1"), False),
        (("a", "1"), ("a", ""), False),  # Started without root's rights this time.
        (("", "1"), ("a", ""), False),
        (("", ""), ("a", "1"), False),
        (("a", "1"), ("", ""), False),
        (("A", "1"), ("a\n", "1 "), False),
        (("uninitialized", ""), ("a", ""), False),
    ],
)
def test_what_is_not_known_makes_no_other_machine(before: tuple[str, str], now: tuple[str, str], another: bool) -> None:
    assert is_another(machine_of(*before), machine_of(*now)) is another


def test_what_is_known_of_a_machine_only_grows() -> None:
    assert fuller(machine_of("a", ""), machine_of("", "1")) == machine_of("a", "1")
    assert fuller("", "") == ""
    assert fuller("", ONE) == ONE


def test_the_name_of_this_machine_is_the_same_each_time_and_gives_nothing_away() -> None:
    name = this_machine()
    assert name == this_machine()
    file = Path("/etc/machine-id")
    if file.exists() and file.read_text().strip():
        assert file.read_text().strip() not in name


def test_a_copy_begins_anew_and_keeps_what_it_found(tmp_path: Path) -> None:
    """What waits belongs to the machine that made it: only there can its last message still grow."""
    original = Outbox.open(tmp_path / "outbox.db", machine=ONE)
    original.append("readings", [point(1), point(2)])
    original.append("events", [event(3)])
    epoch = original.epoch
    original.close()
    copy_dir = tmp_path / "copy"
    copy_dir.mkdir()
    for file in tmp_path.glob("outbox.db*"):
        shutil.copy(file, copy_dir)
    copy = Outbox.open(copy_dir / "outbox.db", machine=OTHER)
    assert copy.epoch != epoch
    assert copy.damage is None
    assert copy.copied is not None
    assert "2 waiting messages" in copy.copied
    (message,) = copy.load([1])
    assert message.kind == "events"
    assert b"outbox-copied" in message.body
    copy.close()
    (aside,) = [file for file in copy_dir.iterdir() if ".copied-" in file.name and not file.name.endswith("wal")]
    connection = sqlite3.connect(aside)
    assert connection.execute("SELECT messages FROM totals").fetchone() == (2,)
    connection.close()
    again = Outbox.open(copy_dir / "outbox.db", machine=OTHER)
    assert again.copied is None
    assert again.last_seq == 1
    again.close()


def test_the_original_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    outbox = Outbox.open(tmp_path / "outbox.db", machine=ONE)
    outbox.append("readings", [point(1)])
    epoch = outbox.epoch
    outbox.close()
    again = Outbox.open(tmp_path / "outbox.db", machine=ONE)
    assert (again.epoch, again.copied, again.pending_messages) == (epoch, None, 1)
    again.close()


def test_an_outbox_of_an_older_version_becomes_that_of_the_machine_it_is_on(tmp_path: Path) -> None:
    """It says nothing of where it was made; from now on it does."""
    path = tmp_path / "outbox.db"
    outbox = Outbox.open(path)
    outbox.append("readings", [point(1)])
    epoch = outbox.epoch
    outbox.close()
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'origin'").fetchone() == (0,)
    connection.close()
    signed = Outbox.open(path, machine=ONE)
    assert (signed.epoch, signed.copied) == (epoch, None)
    assert read_all(signed).readings == [1]
    signed.close()
    elsewhere = Outbox.open(path, machine=OTHER)
    assert elsewhere.epoch != epoch
    elsewhere.close()
