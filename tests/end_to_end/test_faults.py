"""Processes die, and nothing is lost or stored twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.conftest import IN_BOTH
from tests.fleet import Fleet, running_fleet, until


@pytest.fixture
def fleet(tmp_path: Path, unique_name: str, bridge: str) -> Iterator[Fleet]:
    with running_fleet(tmp_path, unique_name, bridge=bridge) as this:
        yield this


@IN_BOTH
def test_every_process_can_be_killed_in_turn(fleet: Fleet) -> None:
    """Each is restarted while the others run on under load."""
    for name in ("connector", "site-broker", "cloud-broker", "cloud", "pc-1"):
        fleet.kill(name)
        fleet.start(name)
        fleet.wait_until_flowing()
    fleet.assert_nothing_lost_or_doubled()


def test_everything_can_be_killed_at_once(fleet: Fleet) -> None:
    """A power cut of the whole site and the cloud."""
    for _ in range(3):
        fleet.kill(*fleet.roles)
        fleet.start()
        fleet.wait_until_flowing()
    fleet.assert_nothing_lost_or_doubled()


def test_a_hub_measures_on_while_everything_else_is_away(fleet: Fleet) -> None:
    fleet.kill("cloud-broker", "cloud", "site-broker", "connector")
    written = fleet.status("pc-1")["outbox"]["points_written"]  # type: ignore[index]
    until("it measures on", lambda: fleet.status("pc-1")["outbox"]["points_written"] > written + 100)  # type: ignore[index]
    assert fleet.path("pc-1") == "none"
    fleet.start("cloud-broker", "cloud", "site-broker", "connector")
    fleet.wait_until_flowing()
    fleet.assert_nothing_lost_or_doubled()
