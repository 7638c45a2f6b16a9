"""The failover rule of the contract, point by point, as stories on the clock that jumps."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from broker.messages import DIRECT
from config import limits
from tests.world import HOUR_S, MINUTE_S, World, site, through
from tests.world_faults import FLAP_S
from tests.world_outbox import quick_folder
from tests.world_roles import CLOUD_BROKER

OUTAGE_S = 300
SWITCH_S = 1 + limits.SWITCH_JITTER_S  # What is given to the switch after the outage has lasted long enough.


def _calm(hubs: int = 1, connectors: int = 1, seed: int = 1) -> World:
    world = site(hubs=hubs, connectors=connectors, seed=seed)
    world.run(10 * MINUTE_S)
    return world


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as path:
        yield path


def _paths(world: World) -> set[str | None]:
    return {hub.path for hub in world.hubs.values()}


# --- 1: five minutes ---------------------------------------------------------------------------------------------------


def test_hub_goes_to_the_cloud_five_minutes_after_the_will() -> None:
    """The promise of the project in four lines."""
    world = _calm()
    world.kill("connector-1")
    world.run(OUTAGE_S - 1)
    assert world.hub(1).path == through("connector-1")
    assert not world.hub(1).sending
    world.run(1 + SWITCH_S)
    assert world.hub(1).path == DIRECT
    world.settle()


def test_a_power_cut_of_connector_and_broker_counts_from_the_last_sign_of_life() -> None:
    """No will comes when the whole host is gone; the outage began with the last packet, not with its detection."""
    world = _calm()
    world.kill("connector-1", silently=True)
    world.kill("broker-1", silently=True)
    world.run(OUTAGE_S - limits.KEEP_ALIVE_S - 1)
    assert world.hub(1).path == through("connector-1")
    world.run(limits.KEEP_ALIVE_S + SWITCH_S)
    assert world.hub(1).path == DIRECT
    world.settle()


def test_a_lost_upstream_is_an_outage_too() -> None:
    """The connector lives, its own way to the cloud does not; the hub's does."""
    world = _calm()
    world.cut("connector-1", CLOUD_BROKER)
    world.run(OUTAGE_S)
    assert world.hub(1).path == through("connector-1")
    world.run(2 * limits.KEEP_ALIVE_S + SWITCH_S)  # Until the connector itself has noticed.
    assert world.hub(1).path == DIRECT
    world.settle()


def test_failed_attempts_do_not_restart_the_clock() -> None:
    """The site broker comes and goes all the time; its connector does not come back."""
    world = _calm()
    world.kill("connector-1")
    for _ in range(OUTAGE_S // 30):
        world.restart("broker-1")
        world.run(30)
    world.run(SWITCH_S)
    assert world.hub(1).path == DIRECT
    world.settle()


def test_a_restart_of_the_hub_in_an_outage_keeps_the_clock() -> None:
    """And takes the cloud after its start grace at the latest."""
    world = _calm()
    world.kill("connector-1")
    world.run(OUTAGE_S - 20)
    world.restart("hub-1")
    world.run(19)
    assert world.hub(1).path == through("connector-1")
    world.run(1 + SWITCH_S)
    assert world.hub(1).path == DIRECT
    world.settle()


@pytest.mark.parametrize("step_s", [7200.0, -7200.0])
def test_a_step_of_the_wall_clock_neither_hastens_nor_delays_the_switch(step_s: float) -> None:
    """Also if the hub is restarted afterwards: what is saved is saved again by the new clock."""
    world = _calm()
    world.kill("connector-1")
    world.run(100)
    world.hub(1).step_clock(step_s)
    world.run(limits.OUTAGE_SAVE_S + 1)
    world.restart("hub-1")
    world.run(55)
    assert world.hub(1).path == through("connector-1")
    world.run(5 + SWITCH_S)  # The start grace.
    assert world.hub(1).path == DIRECT
    world.settle()


def test_a_connector_that_is_back_in_time_is_used_again_at_once() -> None:
    """Restarting a connector costs seconds; no hub leaves, none restarts."""
    world = _calm(hubs=5)
    lives = [hub.life for hub in world.hubs.values()]
    world.kill("connector-1")
    world.run(200)
    world.start("connector-1")
    world.run(5)
    assert all(hub.sending for hub in world.hubs.values())
    assert _paths(world) == {through("connector-1")}
    world.run(10 * MINUTE_S)
    assert _paths(world) == {through("connector-1")}
    assert [hub.life for hub in world.hubs.values()] == lives
    world.settle()


def test_a_restarted_site_broker_is_ridden_through() -> None:
    """All sessions, retained states and wills are gone; everything is back within seconds."""
    world = _calm(hubs=5)
    world.restart("broker-1")
    world.run(30)
    assert all(hub.sending for hub in world.hubs.values())
    assert _paths(world) == {through("connector-1")}
    world.settle()


# --- 2: another connector ----------------------------------------------------------------------------------------------


def test_a_second_connector_is_taken_at_once() -> None:
    """No need to wait for five minutes, and nobody needs the cloud."""
    world = _calm(hubs=6, connectors=2)
    assert _paths(world) == {through("connector-1"), through("connector-2")}
    world.kill("connector-1")
    world.run(30)
    assert _paths(world) == {through("connector-2")}
    assert all(hub.sending for hub in world.hubs.values())
    world.start("connector-1")
    world.run(10 * MINUTE_S)
    assert _paths(world) == {through("connector-1"), through("connector-2")}  # The load is shared again.
    world.settle()


def test_a_second_connector_is_also_taken_when_the_first_falls_silent() -> None:
    world = _calm(hubs=6, connectors=2)
    for name in ("connector-1", "broker-1"):
        world.kill(name, silently=True)
    world.run(2 * limits.KEEP_ALIVE_S + limits.CONNECT_TIMEOUT_S + 30)
    assert _paths(world) == {through("connector-2")}
    world.settle()


# --- 3: the start ------------------------------------------------------------------------------------------------------


def test_a_cold_start_with_nothing_reachable_begins_to_measure_at_once() -> None:
    """Everything joins later, without a restart, and nothing that was measured meanwhile is lost."""
    world = site(hubs=2, connectors=1, seed=1)
    for name in ("hub-1", "hub-2", "connector-1", "broker-1", "cloud", CLOUD_BROKER):
        world.kill(name)
    world.start("hub-1")
    world.start("hub-2")
    world.run(2 * HOUR_S)
    assert all(hub.points_made > 700 for hub in world.hubs.values())
    assert not any(hub.sending for hub in world.hubs.values())
    world.start(CLOUD_BROKER)
    world.start("cloud")
    world.run(2 * MINUTE_S)
    assert _paths(world) == {DIRECT}
    world.settle()
    assert _paths(world) == {through("connector-1")}


def test_a_start_without_a_connector_goes_to_the_cloud_after_its_grace() -> None:
    world = site(hubs=1, connectors=1, seed=1)
    world.kill("connector-1")
    world.kill("hub-1")
    world.hub(1).outage_ms = None
    world.start("hub-1")
    world.run(59)
    assert world.hub(1).path is None
    world.run(1 + SWITCH_S)
    assert world.hub(1).path == DIRECT
    world.settle()


def test_a_restarted_hub_needs_no_search() -> None:
    """What worked is remembered; SSDP may be blocked altogether."""
    world = _calm()
    world.hub(1).discovery = False
    world.restart("hub-1")
    world.run(1)
    assert world.hub(1).sending
    assert world.hub(1).path == through("connector-1")
    world.settle()


# --- 4: the return -----------------------------------------------------------------------------------------------------


def test_hubs_return_once_the_connector_is_stable_and_not_all_at_once() -> None:
    world = _calm(hubs=20)
    world.kill("connector-1")
    world.run(OUTAGE_S + SWITCH_S)
    assert _paths(world) == {DIRECT}
    world.start("connector-1")
    world.run(60)
    assert _paths(world) == {DIRECT}
    back = []
    for _ in range(240):
        world.run(1)
        back.append(sum(hub.path == through("connector-1") for hub in world.hubs.values()))
    assert back[-1] == 20
    assert max(now - before for before, now in pairwise(back)) <= 5
    world.settle()


def test_a_flapping_connector_does_not_draw_direct_hubs_back() -> None:
    """It is never good for a minute, so nobody trusts it; and it causes no storm (the checks count)."""
    world = _calm(hubs=3)
    world.kill("connector-1")
    world.run(OUTAGE_S + SWITCH_S)
    for _ in range(60):
        world.start("connector-1")
        world.run(FLAP_S)
        assert _paths(world) == {DIRECT}
        world.kill("connector-1")
        world.run(FLAP_S)
        assert _paths(world) == {DIRECT}
    world.settle()


def test_a_connector_that_flaps_before_five_minutes_are_over_is_still_used() -> None:
    """Every birth starts the clock anew: the site path works, if only by half, and the data flow through it."""
    world = _calm(hubs=3)
    for _ in range(60):
        world.kill("connector-1")
        world.run(FLAP_S)
        world.start("connector-1")
        world.run(FLAP_S)
    assert _paths(world) == {through("connector-1")}
    assert all(hub.unacknowledged <= 2 for hub in world.hubs.values())
    world.settle()


def test_a_direct_hub_whose_cloud_restarts_goes_back_to_it_although_the_connector_flickers() -> None:
    """A moment of a good connector, only seen from afar, must not cost another five minutes without any path."""
    world = _calm()
    world.kill("connector-1")
    world.run(OUTAGE_S + SWITCH_S)
    world.start("connector-1")
    world.run(100)  # By now it is watched.
    world.kill("connector-1")
    world.run(1)
    assert world.hub(1).path == DIRECT
    world.restart(CLOUD_BROKER)
    world.run(30)
    assert world.hub(1).sending
    assert world.hub(1).path == DIRECT
    world.settle()


# --- 5: make before break ----------------------------------------------------------------------------------------------


def test_a_cloud_that_stores_nothing_does_not_cost_the_old_path() -> None:
    """It takes sessions but acknowledges nothing; the connector's session is still there when it is good again."""
    world = _calm()
    world.cloud.disk.full = True
    world.kill("connector-1")
    world.run(OUTAGE_S + SWITCH_S)
    assert world.hub(1).path == DIRECT
    world.start("connector-1")
    world.run(10)
    assert world.hub(1).path == through("connector-1")  # The session was kept, so no watch was needed.
    world.settle()


def test_a_return_that_brings_no_acknowledgement_keeps_the_cloud() -> None:
    """The connector looks good but nothing crosses it: its will takes the hub back to the session it has kept."""
    world = _calm()
    world.kill("connector-1")
    world.run(OUTAGE_S + MINUTE_S)
    world.start("connector-1")
    world.cloud.disk.full = True
    world.run_until(lambda: world.hub(1).path == through("connector-1"), 5 * MINUTE_S)
    world.kill("connector-1")
    world.run(1)
    assert world.hub(1).path == DIRECT
    assert world.hub(1).sending
    world.settle()


# --- 6: neither works --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["connector", "cloud"])
def test_if_neither_path_works_whichever_comes_first_is_taken(first: str) -> None:
    world = _calm(hubs=3)
    world.kill("connector-1")
    world.kill(CLOUD_BROKER)
    world.run(3 * HOUR_S)
    assert not any(hub.sending for hub in world.hubs.values())
    if first == "cloud":
        world.start(CLOUD_BROKER)
    else:
        world.start("connector-1")
        world.start(CLOUD_BROKER)
    world.run(2 * limits.BACKOFF_MAX_S + limits.CONNECT_TIMEOUT_S)
    assert all(hub.sending for hub in world.hubs.values())
    world.settle()


# --- Wills, clocks, disks ----------------------------------------------------------------------------------------------


def test_late_and_repeated_wills_change_nothing() -> None:
    """A will of an older session, or a birth after the will of its session, is news of yesterday."""
    world = site(hubs=3, connectors=1, seed=2, late_states=1.0)
    world.run(10 * MINUTE_S)
    for _ in range(5):
        world.kill("connector-1")
        world.run(40)
        world.start("connector-1")
        world.run(20)
        for _ in range(24):
            world.run(5)
            assert all(hub.sending for hub in world.hubs.values())
    world.restart("connector-1")
    world.run(10)
    world.kill("connector-1")  # The birth just before it comes once more, after the will.
    world.run(OUTAGE_S - 1)
    assert not any(hub.sending for hub in world.hubs.values())
    world.run(1 + SWITCH_S)
    assert _paths(world) == {DIRECT}
    world.settle()


def test_a_return_that_is_refused_is_tried_with_backoff() -> None:
    """The watched broker keeps the sessions it has and takes no further ones: no reason to ask it without a pause."""
    world = _calm()
    world.kill("connector-1")
    world.run(OUTAGE_S + MINUTE_S)
    world.start("connector-1")
    world.run(100)  # It is watched.
    world.refuse("broker-1")
    world.run(10 * MINUTE_S)
    assert world.hub(1).path == DIRECT
    world.settle()


def test_nothing_is_lost_when_disks_fill_and_processes_are_killed_at_the_worst_moment(folder: Path) -> None:
    """The real outbox: a full disk at the hub and at the cloud, the cloud killed between commit and acknowledgement."""
    world = site(hubs=2, connectors=1, seed=3, folder=folder, interval_s=2.0)
    world.run(MINUTE_S)
    world.hub(1).disk.full = True
    world.run(5 * MINUTE_S)
    world.hub(1).disk.full = False
    world.cloud.disk.full = True
    world.run(5 * MINUTE_S)
    world.cloud.disk.full = False
    for _ in range(60):
        world.run(world.random.uniform(0.5, 4))
        world.restart(world.random.choice(["cloud", "hub-1", "hub-2", "connector-1"]))
    world.settle()
    world.close()


def test_what_an_outbox_that_is_too_small_gives_up_is_told_by_gap_records(folder: Path) -> None:
    """Everything is cut for longer than the outbox can hold: what is stored and what is told of make up all that was."""
    world = site(hubs=1, connectors=1, seed=4, folder=folder, interval_s=30.0, outbox_max_bytes=64 * 1024)
    world.run(MINUTE_S)
    world.cut("hub-1", "broker-1")
    world.cut("hub-1", CLOUD_BROKER)
    world.run(8 * HOUR_S)
    world.settle()
    ledger = world.checks.ledger("hub-1")
    assert ledger.points_in_gaps > 0
    assert ledger.stored.count() + ledger.points_in_gaps == ledger.recorded.count()
    world.close()
