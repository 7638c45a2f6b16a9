"""The reserve: there while there is room, and gone when the room is needed."""

from __future__ import annotations

from pathlib import Path

from hub.reserve import Reserve


def test_the_room_is_really_taken_and_really_given_up(tmp_path: Path) -> None:
    file = tmp_path / "reserve"
    reserve = Reserve(file, 100_000)
    reserve.hold()
    assert reserve.held
    assert file.stat().st_blocks * 512 >= 100_000
    reserve.release()
    assert not file.exists()
    assert not reserve.held


def test_where_there_is_no_room_nothing_is_left_lying_about(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "missing-folder" / "reserve", 100)
    reserve.hold()
    assert not reserve.held


def test_it_can_be_held_again(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path / "reserve", 100)
    for _ in range(2):
        reserve.hold()
        reserve.hold()
        assert reserve.held
        reserve.release()
        reserve.release()
