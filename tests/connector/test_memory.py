"""A connector's numbers only grow, whatever happens to its disk."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from config.errors import StorageError
from connector.memory import Memory


def test_session_numbers_grow_over_restarts(tmp_path: Path) -> None:
    file = tmp_path / "connector.json"
    first = Memory(file, fallback_session=1000)
    assert [first.next_session(), first.next_session()] == [1, 2]
    again = Memory(file, fallback_session=1000)
    assert again.next_session() == 3
    assert again.uuid == first.uuid


def test_the_client_id_stays_over_restarts_and_nobody_guesses_it(tmp_path: Path) -> None:
    """A broker ends the older half-open session of the same id; with engines that bind no ids, a stranger could as well."""
    first, other = (Memory(tmp_path / name, fallback_session=1).client_id("berlin-1") for name in ("a.json", "b.json"))
    assert Memory(tmp_path / "a.json", fallback_session=1).client_id("berlin-1") == first
    assert re.fullmatch(r"berlin-1_[0-9a-f]{16}", first)
    assert other != first


@pytest.mark.parametrize("more", ["", ',"secret":"x\\ny"', ',"secret":"ab"'])
def test_a_file_without_a_usable_secret_gets_one_and_keeps_the_rest(tmp_path: Path, more: str) -> None:
    """As an earlier version has left it, or a hand has changed it."""
    file = tmp_path / "connector.json"
    file.write_text('{"uuid":"12345678-1234-5678-1234-567812345678","session":6' + more + "}")
    memory = Memory(file, fallback_session=1000)
    assert re.fullmatch(r"b_[0-9a-f]{16}", memory.client_id("b"))
    assert (str(memory.uuid), memory.next_session()) == ("12345678-1234-5678-1234-567812345678", 7)
    assert Memory(file, fallback_session=1000).client_id("b") == memory.client_id("b")


def test_a_damaged_file_begins_above_every_number_before(tmp_path: Path) -> None:
    """Else a will of long ago would override the new births."""
    file = tmp_path / "connector.json"
    file.write_bytes(b"{")
    assert Memory(file, fallback_session=1000).next_session() == 1001


def test_a_number_that_cannot_be_kept_is_not_given(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"connector\.json"):
        Memory(tmp_path / "missing" / "connector.json", fallback_session=1)
