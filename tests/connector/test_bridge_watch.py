"""The table of the watch over an engine's own bridge: when hubs are told that the way up is open, and what has to show it."""

from __future__ import annotations

from random import Random

import pytest

from broker.engines.mosquitto_bridge import notification_topic
from broker.machine import Wakeup
from broker.messages import encode_envelope
from config import limits
from connector.bridge import Announce, Came, Connect, Ended, Forward, Opened, Side, Started, Subscribe
from connector.bridge_watch import (
    CONVICTED,
    DOUBTED,
    NOT_CONNECTED,
    UNANSWERED,
    UNKNOWN,
    Tell,
    Unsubscribe,
    Watch,
    WatchCommand,
)

NOTICE = notification_topic("berlin-1")
UP = "hl1/acme/berlin/hub/pc-17/up/readings"
ACK = "hl1/acme/berlin/hub/pc-17/down/ack"
UPS = "hl1/acme/berlin/hub/+/up/+"
ACKS = "hl1/acme/berlin/hub/+/down/ack"
EPOCH = "9f2c4be1d07a6b53"
CONNECTED, LOST = Came(Side.SITE, NOTICE, b"1", 0), Came(Side.SITE, NOTICE, b"0", 0)
SITE_UP, SITE_DOWN = Announce(Side.SITE, upstream_up=True), Announce(Side.SITE, upstream_up=False)
CLOUD_UP, CLOUD_DOWN = Announce(Side.CLOUD, upstream_up=True), Announce(Side.CLOUD, upstream_up=False)


def seen(seq: int, side: Side = Side.SITE) -> Came:
    return Came(side, UP, encode_envelope(EPOCH, seq, 1, b"{}"), 0)


def acked(seq: int, side: Side = Side.SITE, epoch: str = EPOCH) -> Came:
    return Came(side, ACK, b'{"epoch":"%b","ranges":[[%d,%d]]}' % (epoch.encode(), seq, seq), 0)


def watch(*open_sides: Side) -> Watch:
    made = Watch("acme", "berlin", "berlin-1", Random(1))
    made.handle(Started(), 0.0)
    for side in open_sides:
        made.handle(Opened(side), 0.0)
    return made


def linked() -> Watch:
    made = watch(Side.SITE, Side.CLOUD)
    made.handle(CONNECTED, 0.0)
    return made


def woken(this: Watch) -> tuple[list[WatchCommand], float]:
    """Let the next deadline come."""
    due_at = this.deadline()
    assert due_at is not None
    return this.handle(Wakeup(), due_at), due_at


def looking() -> tuple[Watch, float]:
    """Return a watch that is subscribed to what goes up, and when."""
    this = linked()
    commands, now = woken(this)
    assert commands == [Subscribe(Side.SITE, ((ACKS, 0), (UPS, 0)))]
    assert now <= limits.BRIDGE_SAMPLE_S
    return this, now


def fail_once(this: Watch, now: float, seq: int = 7) -> tuple[list[WatchCommand], float]:
    """Let a message go up that is acknowledged only after the connector has carried it."""
    this.handle(seen(seq), now)
    carry, now = woken(this)
    assert carry[-1] == Forward(Side.CLOUD, UP, seen(seq).payload, 1, retain=False)
    return this.handle(acked(seq, Side.CLOUD), now), now


def convicted() -> tuple[Watch, float]:
    this, now = looking()
    _, now = fail_once(this, now)
    _, now = woken(this)
    _, now = fail_once(this, now, seq=8)
    assert not this.upstream_up
    return this, now


# --- Our sessions and the notices -------------------------------------------------------------------------------------


def test_a_start_opens_both_sides() -> None:
    fresh = Watch("acme", "berlin", "berlin-1", Random(1))
    assert fresh.handle(Started(), 0.0) == [Connect(Side.SITE, 0), Connect(Side.CLOUD, 0)]


def test_the_site_hears_that_there_is_no_way_up_until_the_bridge_says_so() -> None:
    this = watch()
    assert this.handle(Opened(Side.SITE), 0.0) == [SITE_DOWN, Subscribe(Side.SITE, ((NOTICE, 1),))]
    assert this.handle(Opened(Side.CLOUD), 0.0) == [SITE_DOWN, CLOUD_DOWN]
    assert this.handle(CONNECTED, 0.0) == [SITE_UP, CLOUD_UP]
    assert this.upstream_up


@pytest.mark.parametrize("sides", [(), (Side.SITE,), (Side.CLOUD,)])
def test_a_notice_alone_opens_no_way_up(sides: tuple[Side, ...]) -> None:
    this = watch(*sides)
    this.handle(CONNECTED, 0.0)
    assert not this.upstream_up


def test_a_bridge_that_is_lost_closes_the_way_at_once_and_opens_it_when_it_is_back() -> None:
    this = linked()
    assert this.handle(LOST, 1.0) == [Tell(NOT_CONNECTED), SITE_DOWN, CLOUD_DOWN]
    assert this.trouble == NOT_CONNECTED
    assert this.handle(CONNECTED, 2.0) == [Tell(None), SITE_UP, CLOUD_UP]


def test_what_is_said_already_is_not_said_again() -> None:
    this = linked()
    assert this.handle(CONNECTED, 1.0) == []


def test_a_broker_that_says_nothing_of_a_bridge_is_told_of() -> None:
    this = watch(Side.SITE, Side.CLOUD)
    commands, now = woken(this)
    assert (commands, now) == ([Tell(UNKNOWN)], limits.BRIDGE_NOTICE_S)
    assert this.handle(CONNECTED, 60.0) == [Tell(None), SITE_UP, CLOUD_UP]


def test_a_broker_that_ends_the_session_which_asks_for_a_bridge_is_told_of() -> None:
    """The embedded engine does so: that topic is none of the contract's."""
    this = watch(Side.SITE)
    assert this.handle(Ended(Side.SITE), 0.1) == [Tell(UNKNOWN)]


def test_the_cloud_hears_that_the_site_broker_is_lost_and_not_that_the_bridge_is() -> None:
    this = linked()
    assert this.handle(Ended(Side.SITE), 1.0) == [CLOUD_UP]
    assert not this.upstream_up
    assert this.trouble is None
    assert CLOUD_DOWN in this.handle(Opened(Side.SITE), 2.0)
    assert this.handle(CONNECTED, 2.1) == [SITE_UP, CLOUD_UP]


@pytest.mark.parametrize("side", list(Side))
def test_a_lost_side_is_opened_again(side: Side) -> None:
    this = linked()
    this.handle(Ended(side), 1.0)
    assert this.handle(Ended(side), 1.0) == []
    commands, now = woken(this)
    assert commands == [Connect(side, 2)]
    assert now <= 1.0 + 2 * limits.BACKOFF_FIRST_S


# --- Doubt ------------------------------------------------------------------------------------------------------------


def doubted() -> Watch:
    """The cloud was out of reach, and is back for the connector."""
    this = linked()
    assert this.handle(Ended(Side.CLOUD), 10.0) == [SITE_DOWN]
    woken(this)
    assert this.handle(Opened(Side.CLOUD), 20.0) == [Tell(DOUBTED), SITE_DOWN, CLOUD_DOWN]
    return this


def test_after_an_outage_the_bridge_is_believed_when_it_connects_anew() -> None:
    """Mosquitto's last notice still says "connected" if the cloud fell silent."""
    assert doubted().handle(CONNECTED, 21.0) == [Tell(None), SITE_UP, CLOUD_UP]


def test_a_bridge_that_connects_first_is_believed_when_the_connector_is_back() -> None:
    this = linked()
    this.handle(Ended(Side.CLOUD), 10.0)
    this.handle(CONNECTED, 11.0)
    assert this.handle(Opened(Side.CLOUD), 12.0) == [SITE_UP, CLOUD_UP]


def test_after_an_outage_a_proof_is_as_good_as_a_notice() -> None:
    this = doubted()
    _, now = woken(this)
    assert now == 20.0
    this.handle(seen(5), now)
    assert this.handle(acked(5), now + 1) == [Tell(None), SITE_UP, CLOUD_UP, Unsubscribe(Side.SITE, (ACKS,))]


@pytest.mark.parametrize("order", [(Side.CLOUD, Side.SITE), (Side.SITE, Side.CLOUD)])
def test_what_was_retained_before_an_outage_ends_no_doubt(order: tuple[Side, Side]) -> None:
    """Both sessions were lost: what the site broker says at first may be of the time before."""
    this = linked()
    for side in order:
        this.handle(Ended(side), 1.0)
    for side in Side:
        this.handle(Opened(side), 2.0)
    this.handle(CONNECTED, 2.1)
    assert not this.upstream_up
    this.handle(CONNECTED, 3.0)
    assert this.upstream_up


def test_a_bridge_with_a_short_keep_alive_is_doubted_for_a_shorter_time() -> None:
    """It waits less before it connects again."""
    this = Watch("acme", "berlin", "berlin-1", Random(1), keep_alive_s=5)
    for event in (Started(), Opened(Side.SITE), Opened(Side.CLOUD), CONNECTED):
        this.handle(event, 0.0)
    this.handle(Ended(Side.CLOUD), 10.0)
    woken(this)
    this.handle(Opened(Side.CLOUD), 20.0)
    woken(this)
    assert woken(this)[1] == 20.0 + limits.BRIDGE_DOUBT_S - limits.BRIDGE_RESTART_MAX_S + 5


def test_after_an_outage_a_silent_bridge_on_a_silent_site_is_believed_in_time() -> None:
    """Only the connector's own session may have been lost: then no notice comes."""
    this = doubted()
    woken(this)
    commands, now = woken(this)
    assert (commands, now) == ([Tell(None), SITE_UP, CLOUD_UP], 20.0 + limits.BRIDGE_DOUBT_S)


# --- Samples ----------------------------------------------------------------------------------------------------------


def test_one_message_is_followed_and_everything_else_left_alone() -> None:
    """What the connector reads costs a site with many hubs as much as a hub more."""
    this, now = looking()
    assert this.handle(seen(7), now) == [Unsubscribe(Side.SITE, (UPS,))]
    assert this.handle(seen(8), now) == []
    assert this.handle(acked(7), now + 1) == [Unsubscribe(Side.SITE, (ACKS,))]
    assert this.counters == {"samples_proven": 1}
    assert this.deadline() == now + 1 + limits.BRIDGE_SAMPLE_S


def test_a_silent_site_proves_nothing_and_blames_nobody() -> None:
    this, _ = looking()
    assert this.deadline() is None
    assert this.upstream_up


@pytest.mark.parametrize(
    "other", [acked(6), acked(7, epoch="0" * 16), acked(7, Side.CLOUD), Came(Side.SITE, ACK, b"{", 0)]
)
def test_another_acknowledgement_is_no_proof(other: Came) -> None:
    this, now = looking()
    this.handle(seen(7), now)
    assert this.handle(other, now) == []
    assert this.deadline() == now + limits.BRIDGE_PROOF_S


@pytest.mark.parametrize(
    "other", [Came(Side.SITE, UP, b"{", 0), Came(Side.SITE, "something/else", b"{}", 0), seen(7, Side.CLOUD)]
)
def test_what_is_no_message_of_a_hub_is_not_followed(other: Came) -> None:
    this, now = looking()
    assert this.handle(other, now) == []
    assert this.deadline() is None


def test_what_is_not_acknowledged_is_brought_to_the_cloud_by_hand() -> None:
    this, now = looking()
    this.handle(seen(7), now)
    commands, due_at = woken(this)
    assert due_at == now + limits.BRIDGE_PROOF_S
    assert commands == [Subscribe(Side.CLOUD, ((ACK, 0),)), Forward(Side.CLOUD, UP, seen(7).payload, 1, retain=False)]
    assert this.upstream_up


def leave_unanswered(this: Watch, now: float, seq: int) -> tuple[list[WatchCommand], float]:
    """Let a message go up that is not even acknowledged when the connector has carried it; the next may come then."""
    this.handle(seen(seq), now)
    woken(this)
    commands, _ = woken(this)
    assert commands[-2:] == [Unsubscribe(Side.SITE, (ACKS,)), Unsubscribe(Side.CLOUD, (ACK,))]
    _, now = woken(this)
    return commands, now


def test_a_cloud_that_acknowledges_nobody_for_minutes_does_not_convict_the_bridge() -> None:
    """The database is away: the way over the cloud broker itself would be no better."""
    this, began = looking()
    now = began
    for seq in range(1, limits.BRIDGE_UNANSWERED_MAX):
        _, now = leave_unanswered(this, now, seq)
    assert this.upstream_up
    assert now - began > 120.0
    this.handle(seen(99), now)
    this.handle(acked(99), now)
    assert this.upstream_up


def test_rights_that_bridge_and_connector_lack_close_the_way_in_bounded_time() -> None:
    """They have one certificate: some engines drop what it may not publish, and say nothing. Hubs can go around that."""
    this, began = looking()
    now = began
    for seq in range(1, limits.BRIDGE_UNANSWERED_MAX):
        _, now = leave_unanswered(this, now, seq)
    commands, now = close_unanswered(this, now)
    assert commands[:3] == [Tell(UNANSWERED), SITE_DOWN, CLOUD_DOWN]
    assert now - began < 300.0


def close_unanswered(this: Watch, now: float, seq: int = 99) -> tuple[list[WatchCommand], float]:
    """Let the message go up without which the way would still be open."""
    this.handle(seen(seq), now)
    woken(this)
    return woken(this)


def unanswered() -> tuple[Watch, float]:
    this, now = looking()
    for seq in range(1, limits.BRIDGE_UNANSWERED_MAX):
        _, now = leave_unanswered(this, now, seq)
    _, now = close_unanswered(this, now)
    assert not this.upstream_up
    return this, now


def test_a_cloud_that_answers_again_opens_the_way_though_the_hubs_are_silent() -> None:
    """Told that there is no way up, they send nothing: only the connector can find out, and asks until it knows."""
    this, _ = unanswered()
    for _ in range(3):
        commands, now = woken(this)
        assert commands == [Forward(Side.CLOUD, UP, seen(99).payload, 1, retain=False)]
    assert this.handle(acked(99, Side.CLOUD), now + 1.0)[:3] == [Tell(None), SITE_UP, CLOUD_UP]
    commands, _ = woken(this)
    assert commands == [Subscribe(Side.SITE, ((ACKS, 0), (UPS, 0)))]


def test_a_message_that_nobody_acknowledges_does_not_keep_the_way_closed_for_ever() -> None:
    """Of a hub that has been removed, for instance: after the parole another one is looked for."""
    this, began = unanswered()
    now = began
    while not this.upstream_up:
        commands, now = woken(this)
    assert now == began + limits.BRIDGE_PAROLE_S
    assert commands[-2:] == [Unsubscribe(Side.SITE, (ACKS,)), Unsubscribe(Side.CLOUD, (ACK,))]
    woken(this)
    commands, _ = close_unanswered(this, now, seq=100)
    assert commands[0] == Tell(UNANSWERED)


def test_another_session_with_the_cloud_may_find_one_that_answers() -> None:
    this, now = unanswered()
    this.handle(Ended(Side.CLOUD), now)
    this.handle(Opened(Side.CLOUD), now + 1.0)
    assert this.handle(Wakeup(), now + 1.0 + limits.BRIDGE_DOUBT_S)[:3] == [Tell(None), SITE_UP, CLOUD_UP]


def test_what_the_connector_has_carried_is_no_sample_again() -> None:
    """Its hub sends it again, and the answer to our own hand comes down through the bridge: that would look like a proof."""
    this, now = looking()
    _, now = fail_once(this, now)
    _, now = woken(this)
    assert this.handle(seen(7), now) == []
    assert this.handle(acked(7), now) == []
    assert "samples_proven" not in this.counters
    assert this.handle(seen(8), now) == [Unsubscribe(Side.SITE, (UPS,))]


def test_after_a_conviction_hubs_get_time_to_leave() -> None:
    """What they have just sent here they bring over another path, and its acknowledgement comes down here, too."""
    this, now = convicted()
    assert this.handle(seen(9), now) == []
    assert this.deadline() == now + limits.BRIDGE_SAMPLE_S


def test_an_answer_in_between_begins_the_count_anew() -> None:
    this, now = looking()
    for seq in range(1, limits.BRIDGE_UNANSWERED_MAX):
        _, now = leave_unanswered(this, now, seq)
    _, now = fail_once(this, now, seq=50)
    _, now = woken(this)
    leave_unanswered(this, now, 51)
    assert this.upstream_up


def test_a_single_failure_does_not_convict_it() -> None:
    this, now = looking()
    fail_once(this, now)
    assert this.upstream_up


def test_a_proof_between_two_failures_clears_it() -> None:
    this, now = looking()
    _, now = fail_once(this, now)
    _, now = woken(this)
    this.handle(seen(8), now)
    this.handle(acked(8), now)
    _, now = woken(this)
    fail_once(this, now, seq=9)
    assert this.upstream_up


def test_an_acknowledgement_at_the_site_of_what_we_carried_ourselves_proves_nothing() -> None:
    this, now = looking()
    this.handle(seen(7), now)
    _, now = woken(this)
    assert this.handle(acked(7), now) == []
    assert "samples_proven" not in this.counters


def test_a_bridge_that_is_connected_and_carries_nothing_closes_the_way_in_bounded_time() -> None:
    this, began = looking()
    _, now = fail_once(this, began)
    _, now = woken(this)
    commands, now = fail_once(this, now, seq=8)
    assert commands[:3] == [Tell(CONVICTED), SITE_DOWN, CLOUD_DOWN]
    assert now - began <= 2 * (limits.BRIDGE_PROOF_S + limits.BRIDGE_CARRY_S)


def test_a_convicted_bridge_is_believed_after_a_proof() -> None:
    this, now = convicted()
    _, now = woken(this)
    this.handle(seen(9), now)
    assert this.handle(acked(9), now)[:3] == [Tell(None), SITE_UP, CLOUD_UP]


def test_a_convicted_bridge_is_believed_when_it_connects_anew() -> None:
    this, now = convicted()
    assert this.handle(CONNECTED, now)[:3] == [Tell(None), SITE_UP, CLOUD_UP]


def test_a_convicted_bridge_without_hubs_gets_another_chance_and_only_one() -> None:
    this, now = convicted()
    woken(this)
    commands, due_at = woken(this)
    assert (commands, due_at) == ([Tell(None), SITE_UP, CLOUD_UP], now + limits.BRIDGE_PAROLE_S)
    commands, _ = fail_once(this, due_at, seq=9)
    assert commands[0] == Tell(CONVICTED)


def test_nothing_is_followed_while_the_bridge_is_not_linked() -> None:
    this, now = looking()
    assert Unsubscribe(Side.SITE, (UPS,)) in this.handle(LOST, now)
    assert this.handle(seen(7), now) == []
    assert this.deadline() is None


def test_subscriptions_that_ended_with_their_session_are_not_ended_again() -> None:
    this, now = looking()
    this.handle(seen(7), now)
    _, now = woken(this)
    ended = this.handle(Ended(Side.CLOUD), now)
    assert [command for command in ended if isinstance(command, Unsubscribe)] == [Unsubscribe(Side.SITE, (ACKS,))]
