"""A connector's numbers only grow, whatever happens to its disk."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from config.errors import StorageError
from config.settings import Identity
from connector.memory import Memory


def identity(folder: Path, key: str) -> Identity:
    """Return who the connector is, with a key of its own."""
    file = folder / f"{key}.pem"
    file.write_text(key)
    return Identity("acme", "berlin", "berlin-1", folder / "ca.pem", folder / "cert.pem", file)


def test_session_numbers_grow_over_restarts(tmp_path: Path) -> None:
    file = tmp_path / "connector.json"
    first = Memory(file, fallback_session=1000)
    assert [first.next_session(), first.next_session()] == [1, 2]
    again = Memory(file, fallback_session=1000)
    assert again.next_session() == 3
    assert again.uuid == first.uuid


def test_the_client_id_stays_over_restarts_and_nobody_guesses_it(tmp_path: Path) -> None:
    """A broker ends the older half-open session of the same id; with engines that bind no ids, a stranger could as well.

    The uuid is announced to the whole network, so it takes the key as well; and a machine that was cloned has the same key,
    so it takes the uuid as well.
    """
    mine, strangers = (identity(tmp_path, key) for key in ("mine", "another"))
    first = Memory(tmp_path / "a.json", fallback_session=1).client_id(mine)
    again = Memory(tmp_path / "a.json", fallback_session=1)
    assert again.client_id(mine) == first
    assert re.fullmatch(r"berlin-1_[0-9a-f]{16}", first)
    assert again.client_id(strangers) != first
    assert Memory(tmp_path / "b.json", fallback_session=1).client_id(mine) != first


def test_a_file_of_an_earlier_version_keeps_what_it_has(tmp_path: Path) -> None:
    """It kept one thing more, which is not needed."""
    file = tmp_path / "connector.json"
    file.write_text('{"uuid":"12345678-1234-5678-1234-567812345678","session":6,"secret":"0123456789abcdef"}')
    memory = Memory(file, fallback_session=1000)
    assert (str(memory.uuid), memory.next_session()) == ("12345678-1234-5678-1234-567812345678", 7)


def test_a_damaged_file_begins_above_every_number_before(tmp_path: Path) -> None:
    """Else a will of long ago would override the new births."""
    file = tmp_path / "connector.json"
    file.write_bytes(b"{")
    assert Memory(file, fallback_session=1000).next_session() == 1001


def test_a_number_that_cannot_be_kept_is_not_given(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"connector\.json"):
        Memory(tmp_path / "missing" / "connector.json", fallback_session=1)
