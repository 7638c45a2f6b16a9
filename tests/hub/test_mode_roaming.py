"""Roaming is a person's word: it needs the privilege, survives restarts, and ends when the privilege does."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from config import remote
from config.errors import SettingsError
from config.settings import HubSettings
from hub.desired import Document, Kept
from hub.desired_file import NAME, write_kept
from hub.mode_roaming import in_force, is_roaming, set_roaming
from tests.hub.test_reporting import settings_of


def test_a_hub_roams_from_the_word_on_until_the_next_one(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "[privileges]\nroam = true\n")
    assert not is_roaming(settings)
    assert [set_roaming(settings, True), set_roaming(settings, True)] == [True, False]
    assert is_roaming(settings)
    assert [set_roaming(settings, False), set_roaming(settings, False)] == [True, False]
    assert not is_roaming(settings)


def test_without_the_privilege_nobody_roams(tmp_path: Path) -> None:
    settings = settings_of(tmp_path)
    with pytest.raises(SettingsError, match=r"privileges\.roam"):
        set_roaming(settings, True)
    assert not is_roaming(settings)
    assert not set_roaming(settings, False)


def test_a_privilege_that_is_taken_away_ends_the_roaming(tmp_path: Path) -> None:
    allowed = settings_of(tmp_path, "[privileges]\nroam = true\n")
    set_roaming(allowed, True)
    assert not is_roaming(settings_of(tmp_path))
    assert is_roaming(allowed)


@pytest.mark.parametrize("taken", [True, False])
def test_the_privilege_may_come_from_the_cloud(tmp_path: Path, taken: bool) -> None:
    """The administrator grants it there; the command asks the same settings that the hub works with."""
    settings: HubSettings = settings_of(tmp_path, f"[remote]\nsettings = {str(taken).lower()}\n")
    settings.hub.data_dir.mkdir()
    content = {"privileges": {"roam": True}}
    write_kept(settings.hub.data_dir / NAME, Kept(Document(1, remote.hash_of(content), content)))
    assert in_force(tmp_path / "hub.toml").privileges.roam is taken
    assert msgspec.structs.replace(settings) == settings
