"""What settings on trial have to show before they count as proven."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from config.settings import HubSettings
from hub.link import Kind, Link
from hub.trial import Trial
from tests.hub.test_reporting import settings_of

OWN = '[cloud]\nendpoints = ["cloud.example:8883"]\n'
OTHER_CLOUD = '[cloud]\nendpoints = ["other.example:8883"]\n'
OTHER_SITE = OWN + '[connector]\nendpoints = ["10.0.0.1:8883"]\n'
OTHER_PACE = OWN + "[failback]\nstable_s = 7\n"


def link(kind: Kind | None, *, proven: bool = True) -> Link:
    using = None if kind is None else SimpleNamespace(kind=kind, proven=proven)
    return cast(Link, SimpleNamespace(using=using))


def trial(tmp_path: Path, text: str, *, had_connector: bool = True, on: bool = True) -> Trial:
    def read(name: str, content: str) -> HubSettings:
        (tmp_path / name).mkdir()
        return settings_of(tmp_path / name, content)

    own, tried = read("own", OWN), read("tried", text)
    return Trial(tried, own if on else None, "e" * 16, had_connector=had_connector)


def test_without_a_trial_or_a_change_of_the_paths_nothing_has_to_be_shown(tmp_path: Path) -> None:
    """The cloud's acknowledgement alone proves a sensor's interval."""
    assert trial(tmp_path, OTHER_PACE).look(None)


def test_settings_in_force_have_nothing_to_show(tmp_path: Path) -> None:
    """Else a hub that was switched off for a while could never confirm anything."""
    assert trial(tmp_path, OTHER_SITE, on=False).look(None)


@pytest.mark.parametrize(
    ("changed", "proof", "other"),
    [(OTHER_CLOUD, Kind.DIRECT, Kind.CONNECTOR), (OTHER_SITE, Kind.CONNECTOR, Kind.DIRECT)],
    ids=["cloud", "connector"],
)
def test_a_path_is_proven_by_itself_alone(tmp_path: Path, changed: str, proof: Kind, other: Kind) -> None:
    """An acknowledgement over the other path, or none yet over this one, shows nothing of it; once shown, it stays so."""
    tried = trial(tmp_path, changed)
    assert not tried.look(None)
    assert not tried.look(link(None))
    assert not tried.look(link(other))
    assert not tried.look(link(proof, proven=False))
    assert tried.look(link(proof))
    assert tried.look(link(other))


def test_a_hub_without_a_connector_need_not_find_one(tmp_path: Path) -> None:
    """A laptop on a journey takes the fleet's settings for sites all the same."""
    tried = trial(tmp_path, OTHER_SITE, had_connector=False)
    assert tried.distrusts_memory
    assert tried.look(link(Kind.DIRECT))
