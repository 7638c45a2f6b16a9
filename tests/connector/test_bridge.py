"""The bridge's table: what crosses, what does not, and what is said when a side opens or is lost."""

from __future__ import annotations

from random import Random

import pytest

from broker.machine import Wakeup
from config import limits
from connector.bridge import Announce, Bridge, Came, Command, Connect, Ended, Forward, Opened, Side, Started, Subscribe

UP = "hl1/acme/berlin/hub/pc-17/up/readings"
STATE = "hl1/acme/berlin/hub/pc-17/state"
ACK = "hl1/acme/berlin/hub/pc-17/down/ack"
TASK = "hl1/acme/berlin/hub/pc-17/down/task"


def bridge(*open_sides: Side) -> Bridge:
    made = Bridge("acme", "berlin", Random(1))
    made.handle(Started(), 0.0)
    for side in open_sides:
        made.handle(Opened(side), 0.0)
    return made


def both() -> Bridge:
    return bridge(Side.SITE, Side.CLOUD)


def test_a_start_opens_both_sides() -> None:
    assert Bridge("acme", "berlin", Random(1)).handle(Started(), 0.0) == [Connect(Side.SITE, 0), Connect(Side.CLOUD, 0)]


def test_the_site_alone_hears_that_there_is_no_way_up() -> None:
    commands = bridge().handle(Opened(Side.SITE), 0.0)
    assert Announce(Side.SITE, upstream_up=False) in commands


def test_the_site_is_subscribed_to_all_that_goes_up_and_nothing_else() -> None:
    (subscribe,) = [c for c in bridge().handle(Opened(Side.SITE), 0.0) if isinstance(c, Subscribe)]
    assert [topic_filter for topic_filter, _ in subscribe.filters] == [
        "hl1/acme/berlin/hub/+/up/+",
        "hl1/acme/berlin/hub/+/heartbeat",
        "hl1/acme/berlin/hub/+/poll",
        "hl1/acme/berlin/hub/+/state",
    ]


def test_when_the_way_up_opens_states_are_repeated_before_the_hubs_hear_of_it() -> None:
    """Their births must be at the cloud before the retransmission that the word sets off."""
    commands = bridge(Side.SITE).handle(Opened(Side.CLOUD), 1.0)
    assert commands == [
        Subscribe(Side.CLOUD, (("hl1/acme/berlin/hub/+/down/+", 0),)),
        Announce(Side.CLOUD, upstream_up=True),
        Subscribe(Side.SITE, (("hl1/acme/berlin/hub/+/state", 1),)),
        Announce(Side.SITE, upstream_up=True),
    ]


def test_when_the_site_opens_second_it_hears_that_all_is_well() -> None:
    assert Announce(Side.SITE, upstream_up=True) in bridge(Side.CLOUD).handle(Opened(Side.SITE), 1.0)


def test_the_site_hears_at_once_that_the_way_up_is_lost() -> None:
    assert both().handle(Ended(Side.CLOUD), 5.0) == [Announce(Side.SITE, upstream_up=False)]


def test_an_attempt_that_failed_is_no_news_to_the_site() -> None:
    assert bridge(Side.SITE).handle(Ended(Side.CLOUD), 5.0) == []


def test_the_cloud_hears_that_the_site_broker_is_lost_and_that_it_is_back() -> None:
    """Its hubs' wills have died with it: nobody else can tell the cloud."""
    this = both()
    assert this.handle(Ended(Side.SITE), 5.0) == [Announce(Side.CLOUD, upstream_up=True)]
    assert not this.is_open(Side.SITE)
    assert this.handle(Opened(Side.SITE), 9.0)[-1] == Announce(Side.CLOUD, upstream_up=True)
    assert this.is_open(Side.SITE)


def test_further_attempts_at_a_lost_site_broker_are_no_news_to_the_cloud() -> None:
    this = both()
    this.handle(Ended(Side.SITE), 5.0)
    assert this.handle(Ended(Side.SITE), 9.0) == []
    assert bridge().handle(Ended(Side.SITE), 1.0) == []


@pytest.mark.parametrize(
    ("topic", "retain"),
    [(UP, False), (STATE, True), ("hl1/acme/berlin/hub/pc-17/heartbeat", False), ("hl1/acme/berlin/hub/a/poll", False)],
)
def test_what_hubs_say_goes_up_as_it_is(topic: str, retain: bool) -> None:
    assert both().handle(Came(Side.SITE, topic, b"{}", 0), 1.0) == [Forward(Side.CLOUD, topic, b"{}", 1, retain)]


@pytest.mark.parametrize(("topic", "qos"), [(ACK, 0), (TASK, 1)])
def test_what_the_cloud_says_goes_down_as_it_is(topic: str, qos: int) -> None:
    assert both().handle(Came(Side.CLOUD, topic, b"{}", 0), 1.0) == [Forward(Side.SITE, topic, b"{}", qos, False)]


@pytest.mark.parametrize(
    ("side", "topic"),
    [
        (Side.SITE, ACK),  # Would come back from the cloud for ever.
        (Side.CLOUD, UP),
        (Side.CLOUD, STATE),
        (Side.SITE, "hl1/acme/hamburg/hub/pc-17/up/readings"),
        (Side.SITE, "hl1/other/berlin/hub/pc-17/up/readings"),
        (Side.SITE, "hl1/acme/berlin/connector/berlin-1/state"),
        (Side.SITE, "hl1/acme/berlin/hub/pc-17/presence"),
        (Side.SITE, "something/else"),
    ],
)
def test_nothing_else_crosses(side: Side, topic: str) -> None:
    this = both()
    assert this.handle(Came(side, topic, b"{}", 0), 1.0) == []
    assert this.counters[f"to_{side.other.value}_dropped_foreign"] == 1


@pytest.mark.parametrize(("side", "topic"), [(Side.SITE, UP), (Side.CLOUD, ACK)])
def test_nothing_is_kept_for_a_side_that_is_closed(side: Side, topic: str) -> None:
    this = bridge(side)
    assert this.handle(Came(side, topic, b"{}", 0), 1.0) == []
    assert this.counters[f"to_{side.other.value}_dropped_closed"] == 1


def test_what_waits_for_the_other_side_is_bounded() -> None:
    this = both()
    assert this.handle(Came(Side.SITE, UP, b"{}", limits.BRIDGE_IN_FLIGHT_MAX - 1), 1.0) != []
    assert this.handle(Came(Side.SITE, UP, b"{}", limits.BRIDGE_IN_FLIGHT_MAX), 1.0) == []
    assert this.handle(Came(Side.CLOUD, TASK, b"{}", limits.BRIDGE_DOWN_IN_FLIGHT_MAX), 1.0) == []
    assert this.counters["to_cloud_dropped_full"] == this.counters["to_site_dropped_full"] == 1


def test_births_and_wills_cross_however_much_waits() -> None:
    """Nobody sends them again: the cloud would believe a wrong state until the next session."""
    assert both().handle(Came(Side.SITE, STATE, b"{}", limits.BRIDGE_IN_FLIGHT_MAX), 1.0) != []
    assert limits.BRIDGE_IN_FLIGHT_MAX < limits.SESSION_IN_FLIGHT_MAX


def test_a_message_above_the_contracts_size_does_not_cross() -> None:
    this = both()
    assert this.handle(Came(Side.SITE, UP, b" " * (limits.MESSAGE_MAX_BYTES + 1), 0), 1.0) == []
    assert this.counters["to_cloud_dropped_too_large"] == 1


@pytest.mark.parametrize("side", list(Side))
def test_a_lost_side_is_opened_again_after_a_wait_that_grows(side: Side) -> None:
    this = both()
    now, waits = 10.0, []
    for turn in range(1, 12):
        this.handle(Ended(side), now)
        due = this.deadline()
        assert due is not None
        assert this.handle(Wakeup(), due - 1e-6) == []
        assert this.handle(Wakeup(), due) == [Connect(side, turn)]
        assert this.deadline() is None
        waits.append(due - now)
        now = due
    assert waits[0] <= limits.BACKOFF_FIRST_S
    assert limits.BACKOFF_FIRST_S < max(waits) <= limits.BACKOFF_MAX_S


def test_only_a_stable_session_makes_the_wait_short_again() -> None:
    this = bridge()
    now = 0.0
    for _ in range(10):
        this.handle(Ended(Side.CLOUD), now)
        this.handle(Wakeup(), this.deadline() or 0.0)
    this.handle(Opened(Side.CLOUD), now)
    this.handle(Ended(Side.CLOUD), now + limits.BACKOFF_STABLE_S)
    assert (this.deadline() or 0.0) <= now + limits.BACKOFF_STABLE_S + limits.BACKOFF_FIRST_S


def test_one_side_lost_leaves_the_other_alone() -> None:
    this = both()
    commands: list[Command] = this.handle(Ended(Side.SITE), 1.0)
    assert commands == [Announce(Side.CLOUD, upstream_up=True)]
    assert this.is_open(Side.CLOUD)
    assert not this.is_open(Side.SITE)


def test_the_next_node_of_a_cluster_is_tried_soon_however_often_others_have_failed() -> None:
    """One of three nodes is dead: a site must not wait a minute for one of the other two."""
    this, now = Bridge("acme", "berlin", Random(1), nodes=3), 0.0
    this.handle(Started(), now)
    waits: list[float] = []
    for _ in range(30):
        this.handle(Ended(Side.CLOUD), now)
        deadline = this.deadline()
        assert deadline is not None
        waits.append(deadline - now)
        now = deadline
        this.handle(Wakeup(), now)
    assert all(wait <= limits.BACKOFF_FIRST_S for position, wait in enumerate(waits, 1) if position % 3)
    assert max(waits) > limits.BACKOFF_FIRST_S, "when all have failed in turn, it waits longer and longer"
