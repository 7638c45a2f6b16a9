"""Sites whose Mosquitto bridges by itself, under the faults of any other: the same promises, and the truth about the way up."""

from __future__ import annotations

import pytest

from broker.messages import DIRECT
from config import limits
from connector import bridge
from connector.bridge import Announce, Came, Ended, Side
from connector.bridge_watch import UNANSWERED, Watch, WatchCommand
from tests.world import MINUTE_S, World, through
from tests.world_bridge import FALSE_UP_S, BridgingBroker, WatchingConnector, bridged_site
from tests.world_faults import suffer
from tests.world_roles import CLOUD_BROKER

OUTAGE_S = 300
SWITCH_S = 1 + limits.SWITCH_JITTER_S
SEEDS = range(1, 21)
FOUND = {
    9: "a cloud service that was away for minutes: the way stayed closed though it answered again, since hubs were silent",
    195: "a hub brought over another path what it had just sent here: its acknowledgement looked like a proof",
    13: "a retained notice from before the outage ended the doubt when the site broker was reached again",
}
"""Seeds that have shown a bug, and which; they stay."""


def _world(seed: int, connector_type: type[WatchingConnector] = WatchingConnector) -> World:
    return bridged_site(
        hubs=2 + seed % 3,
        connectors=1 + seed % 2,
        seed=seed,
        interval_s=30.0,
        late_states=0.2,
        connector_type=connector_type,
    )


@pytest.mark.parametrize("seed", sorted({*SEEDS, *FOUND}))
def test_nothing_is_lost_or_doubled_and_the_watch_tells_the_truth(seed: int) -> None:
    """Everything that can go wrong with any site, and with such a bridge; each step is held to what hubs are told."""
    world = suffer(_world(seed), hours=2.0)
    assert sum(world.checks.ledger(name).recorded.count() for name in world.hubs) > 100 * len(world.hubs)


@pytest.mark.soak
@pytest.mark.parametrize("first", range(1000, 3000, 100))
def test_many_more_seeds(first: int) -> None:
    for seed in range(first, first + 100):
        suffer(_world(seed), hours=4.0)


# --- Stories -----------------------------------------------------------------------------------------------------------


def _calm(hubs: int = 3) -> tuple[World, WatchingConnector, BridgingBroker]:
    world = bridged_site(hubs=hubs, connectors=1, seed=1)
    world.run(10 * MINUTE_S)
    connector = world.connectors["connector-1"]
    assert isinstance(connector, WatchingConnector)
    return world, connector, connector.broker


def _paths(world: World) -> set[str | None]:
    return {hub.path for hub in world.hubs.values()}


def _stays_up(world: World, connector: WatchingConnector, seconds: int) -> None:
    for _ in range(seconds):
        world.run(1)
        assert connector.says_up


def test_a_calm_site_is_never_told_that_the_way_is_down() -> None:
    """Also when its hubs fall silent one after the other: where nothing is sent, nothing is proven, and nobody blamed."""
    world, connector, _ = _calm()
    _stays_up(world, connector, 1800)
    assert connector.watch.counters["samples_proven"] > 60
    for name in world.hubs:
        world.kill(name)
        _stays_up(world, connector, 900)
    assert set(connector.watch.counters) == {"samples_proven"}
    world.settle()


def test_a_bridge_that_the_cloud_broker_closes_is_back_before_anybody_leaves() -> None:
    world, connector, broker = _calm()
    broker.drop_bridge()
    world.run(0.5)
    assert not connector.says_up
    world.run(5)
    assert connector.says_up
    assert _paths(world) == {through("connector-1")}
    world.settle()


def test_hubs_go_around_a_bridge_that_fell_silent_and_come_back() -> None:
    """Only its own connection is cut, and Mosquitto may never say so: samples tell."""
    world, connector, broker = _calm()
    world.cut(broker.name, CLOUD_BROKER)
    world.run_until(lambda: not connector.says_up, FALSE_UP_S)
    world.run(OUTAGE_S - 2)
    assert _paths(world) == {through("connector-1")}
    world.run(2 + SWITCH_S)
    assert _paths(world) == {DIRECT}
    world.settle()


@pytest.mark.parametrize("way", ["mute_up", "mute_down"])
def test_hubs_go_around_a_bridge_that_carries_nothing_until_its_parole(way: str) -> None:
    """It is connected, and loses what it should carry: rights that are missing look like this."""
    world, connector, broker = _calm()
    setattr(broker, way, True)
    world.run_until(lambda: not connector.says_up, FALSE_UP_S)
    world.run(OUTAGE_S + SWITCH_S)
    assert _paths(world) == {DIRECT}
    setattr(broker, way, False)
    world.run(limits.BRIDGE_PAROLE_S - OUTAGE_S - SWITCH_S - 2)
    assert not connector.says_up
    world.settle()


def test_a_wan_that_falls_silent_for_a_while_costs_no_hub_its_path() -> None:
    world, connector, _ = _calm()
    world.cut_wan()
    world.run_until(lambda: not connector.says_up, 3 * limits.KEEP_ALIVE_S)
    world.run(MINUTE_S)
    for name in world.wan_ends():
        world.mend(name, CLOUD_BROKER)
    world.run_until(lambda: connector.says_up, 2 * limits.BACKOFF_MAX_S + limits.BRIDGE_DOUBT_S)
    assert _paths(world) == {through("connector-1")}
    world.settle()


def test_a_cloud_service_that_is_away_for_minutes_costs_no_hub_its_path() -> None:
    """The way closes, since nobody answers; it must open when somebody does, though nobody at the site sends by then."""
    world, connector, _ = _calm()
    world.kill("cloud")
    world.run_until(lambda: connector.watch.trouble == UNANSWERED, 6 * MINUTE_S)
    world.run(MINUTE_S)
    assert not connector.says_up
    world.start("cloud")
    world.run(limits.BRIDGE_SAMPLE_S + 5)
    assert connector.says_up
    assert all(hub.sending for hub in world.hubs.values())
    assert _paths(world) == {through("connector-1")}
    world.settle()


# --- The checks do complain --------------------------------------------------------------------------------------------


class DeafWatch(Watch):
    """Takes every notice for good."""

    def handle(self, event: bridge.Event, now: float) -> list[WatchCommand]:
        if isinstance(event, Came) and event.topic == self._notice_topic:
            event = Came(event.side, event.topic, b"1", event.in_flight)
        return super().handle(event, now)


class BlindWatch(Watch):
    """Forgets that it has a session with the cloud of its own."""

    @property
    def _linked(self) -> bool:
        return self.is_open(Side.SITE) and self._connected is True


class LazyWatch(Watch):
    """Follows no message."""

    def _begin(self, now: float) -> None:
        return


class ForgivingWatch(Watch):
    """Counts no failure."""

    def _convict(self, verdict: str, now: float) -> None:
        return


class TrustingWatch(Watch):
    """Doubts nothing."""

    def handle(self, event: bridge.Event, now: float) -> list[WatchCommand]:
        commands = super().handle(event, now)
        self._doubted, self._doubt_ends_at = False, None
        return commands


class DespairingWatch(Watch):
    """Its doubts never end by themselves."""

    def handle(self, event: bridge.Event, now: float) -> list[WatchCommand]:
        commands = super().handle(event, now)
        self._doubt_ends_at = None
        return commands


class OneSidedWatch(Watch):
    """Tells bad news to the site only."""

    def handle(self, event: bridge.Event, now: float) -> list[WatchCommand]:
        return [command for command in super().handle(event, now) if command != Announce(Side.CLOUD, upstream_up=False)]


class ForgetfulWatch(Watch):
    """Does not open a lost session again."""

    def handle(self, event: bridge.Event, now: float) -> list[WatchCommand]:
        commands = super().handle(event, now)
        if isinstance(event, Ended) and event.side is Side.CLOUD:
            self._lines._next_at.pop(Side.CLOUD, None)
        return commands


class ResignedWatch(Watch):
    """Waits for hubs to show that the cloud answers again, which have been told to wait."""

    @property
    def _asking(self) -> bool:
        return False


BUGS = [
    (DeafWatch, 'the bridge says "0"'),
    (BlindWatch, "without a session of its own"),
    (LazyWatch, "nothing is carried|nobody answers"),
    (ForgivingWatch, "nothing is carried|nobody answers"),
    (TrustingWatch, "has not shown that it is back"),
    (DespairingWatch, '"down", though all is well'),
    (OneSidedWatch, "something else to the cloud"),
    (ForgetfulWatch, "not within"),
    (ResignedWatch, '"down", though all is well'),
]


@pytest.mark.parametrize(("make_watch", "complaint"), BUGS)
def test_a_watch_with_a_bug_is_caught(make_watch: type[Watch], complaint: str) -> None:
    buggy = type("BuggyConnector", (WatchingConnector,), {"make_watch": make_watch})
    with pytest.raises(AssertionError, match=complaint):
        _suffer_all(buggy)


def _suffer_all(connector_type: type[WatchingConnector]) -> None:
    for seed in SEEDS:
        suffer(_world(seed, connector_type), hours=2.0)
