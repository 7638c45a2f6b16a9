"""A connector's numbers only grow, whatever happens to its disk."""

from __future__ import annotations

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


def test_a_damaged_file_begins_above_every_number_before(tmp_path: Path) -> None:
    """Else a will of long ago would override the new births."""
    file = tmp_path / "connector.json"
    file.write_bytes(b"{")
    assert Memory(file, fallback_session=1000).next_session() == 1001


def test_a_number_that_cannot_be_kept_is_not_given(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"connector\.json"):
        Memory(tmp_path / "missing" / "connector.json", fallback_session=1)
