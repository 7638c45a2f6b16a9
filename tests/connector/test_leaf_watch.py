"""The table of the watch over a bridge that names its connection and carries only what is sent in mass: a leaf node of NATS."""

from __future__ import annotations

from random import Random

import pytest

from broker.engines.site_bridge import Notice, notification_topic
from broker.machine import Wakeup
from broker.messages import encode_envelope
from config import limits
from connector.bridge import Announce, Came, Ended, Forward, Opened, Side, Started, Subscribe
from connector.bridge_watch import CONVICTED, NOT_CONNECTED, UNKNOWN, Tell, Unsubscribe, Watch, WatchCommand

NOTICE = notification_topic("berlin-1")
STATE = "hl1/acme/berlin/hub/pc-17/state"
BESIDE = Subscribe(
    Side.SITE, tuple((f"hl1/acme/berlin/hub/+/{channel}", 1) for channel in ("state", "heartbeat", "poll"))
)
SITE_UP, SITE_DOWN = Announce(Side.SITE, upstream_up=True), Announce(Side.SITE, upstream_up=False)
CLOUD_UP, CLOUD_DOWN = Announce(Side.CLOUD, upstream_up=True), Announce(Side.CLOUD, upstream_up=False)


def said(connected: bool, link: str | None = "a-1") -> Came:
    return Came(Side.SITE, NOTICE, Notice(connected, link).encode(), 0)


def watch(*open_sides: Side) -> Watch:
    made = Watch("acme", "berlin", "berlin-1", Random(1))
    made.handle(Started(), 0.0)
    for side in open_sides:
        made.handle(Opened(side), 0.0)
    return made


def linked() -> Watch:
    made = watch(Side.SITE, Side.CLOUD)
    assert made.handle(said(True), 0.0) == [SITE_UP, CLOUD_UP, BESIDE]
    return made


@pytest.mark.parametrize("notice", [Notice(True), Notice(False), Notice(True, "x-7"), Notice(False, "x-0")])
def test_notices_are_read_as_they_were_written(notice: Notice) -> None:
    """One side is the broker's supervisor, the other the connector: "1" and "0" alone are Mosquitto's own."""
    assert Notice.parse(notice.encode()) == notice


@pytest.mark.parametrize("payload", [b"", b"yes", b"10", b"\xff\xfe \xff"])
def test_what_is_no_notice_opens_nothing(payload: bytes) -> None:
    """Hubs would wait behind a bridge of which nobody knows anything."""
    this = watch(Side.SITE, Side.CLOUD)
    this.handle(Came(Side.SITE, NOTICE, payload, 0), 0.0)
    assert not this.upstream_up


def test_a_repetition_is_no_news() -> None:
    """It comes every second: as news it would acquit a bridge that carries nothing."""
    this = linked()
    assert this.handle(said(True), 1.0) == []
    this.handle(said(False), 2.0)
    assert this.handle(said(False), 3.0) == []


def convicted() -> tuple[Watch, float]:
    """Let two samples only come through by the connector's own hand."""
    this, now = linked(), 0.0
    for seq in (1, 2):
        now = wait_for(Subscribe, this, now)
        up, ack = "hl1/acme/berlin/hub/pc-17/up/readings", "hl1/acme/berlin/hub/pc-17/down/ack"
        this.handle(Came(Side.SITE, up, encode_envelope("9f2c4be1d07a6b53", seq, 1, b"{}"), 0), now)
        now = wait_for(Forward, this, now)
        done = b'{"epoch":"9f2c4be1d07a6b53","ranges":[[%d,%d]]}' % (seq, seq)
        this.handle(Came(Side.CLOUD, ack, done, 0), now)
    assert this.trouble == CONVICTED
    return this, now


def wait_for(kind: type[WatchCommand], this: Watch, now: float) -> float:
    """Repeat the notice, and let come what is due, until it wants something of this kind."""
    while True:
        now += 0.5
        if any(isinstance(each, kind) for each in (*this.handle(said(True), now), *this.handle(Wakeup(), now))):
            return now


def test_a_convicted_bridge_is_not_acquitted_by_saying_the_same_again() -> None:
    this, now = convicted()
    this.handle(said(True), now + 1)
    assert not this.upstream_up


def test_a_convicted_bridge_is_believed_when_it_has_another_connection() -> None:
    this, now = convicted()
    assert this.handle(said(True, "a-2"), now + 1)[:3] == [Tell(None), SITE_UP, CLOUD_UP]


def test_another_connection_between_two_repetitions_ends_a_doubt() -> None:
    """It was lost and came back within a second: nothing else tells of it."""
    this = linked()
    this.handle(Ended(Side.CLOUD), 1.0)
    this.handle(Opened(Side.CLOUD), 2.0)
    assert not this.upstream_up
    this.handle(said(True), 2.5)
    assert not this.upstream_up
    this.handle(said(True, "a-2"), 3.0)
    assert this.upstream_up


def test_a_lost_connection_closes_the_way_at_once() -> None:
    assert linked().handle(said(False, "a-0"), 1.0) == [Tell(NOT_CONNECTED), SITE_DOWN, CLOUD_DOWN]


def test_silence_closes_the_way_in_bounded_time_and_a_word_opens_it() -> None:
    """Who tells of the bridge may be gone while the bridge's own end is not seen by anybody."""
    this = linked()
    this.handle(said(True), 4.0)
    commands: list[WatchCommand] = []
    now = 4.0
    while not commands or SITE_DOWN not in commands:
        due_at = this.deadline()
        assert due_at is not None
        commands, now = this.handle(Wakeup(), due_at), due_at
    assert now == 4.0 + limits.BRIDGE_NOTICE_S
    assert commands[:3] == [Tell(UNKNOWN), SITE_DOWN, CLOUD_DOWN]
    assert this.handle(said(True), now + 1) == [Tell(None), SITE_UP, CLOUD_UP]


def test_a_mosquitto_that_speaks_once_is_not_taken_for_silent_and_carries_everything_itself() -> None:
    this = watch(Side.SITE, Side.CLOUD)
    assert this.handle(said(True, None), 0.0) == [SITE_UP, CLOUD_UP]
    due_at = this.deadline()
    assert due_at is not None
    this.handle(Wakeup(), limits.BRIDGE_NOTICE_S)
    assert this.upstream_up
    assert this.handle(Came(Side.SITE, STATE, b"{}", 0), 1.0) == []


@pytest.mark.parametrize(("channel", "retain"), [("state", True), ("heartbeat", False), ("poll", False)])
@pytest.mark.parametrize("payload", [b"{}", b""])
def test_what_the_leaf_leaves_is_brought_as_our_own_bridge_does(channel: str, retain: bool, payload: bytes) -> None:
    """An empty retained message takes the older one away, there as here."""
    topic = f"hl1/acme/berlin/hub/pc-17/{channel}"
    assert linked().handle(Came(Side.SITE, topic, payload, 0), 1.0) == [Forward(Side.CLOUD, topic, payload, 1, retain)]


@pytest.mark.parametrize(
    ("side", "topic"),
    [
        (Side.SITE, "hl1/acme/berlin/hub/pc-17/up/readings"),
        (Side.SITE, "hl1/acme/rome/hub/pc-17/state"),
        (Side.SITE, "hl1/acme/berlin/connector/berlin-1/state"),
        (Side.CLOUD, STATE),
    ],
)
def test_nothing_else_is_brought(side: Side, topic: str) -> None:
    """What the leaf carries would come twice, and what comes from the cloud would go round."""
    assert linked().handle(Came(side, topic, b"{}", 0), 1.0) == []


def test_too_large_a_state_and_one_without_a_cloud_are_dropped_and_counted() -> None:
    this = linked()
    assert this.handle(Came(Side.SITE, STATE, bytes(limits.MESSAGE_MAX_BYTES + 1), 0), 1.0) == []
    this.handle(Ended(Side.CLOUD), 2.0)
    assert this.handle(Came(Side.SITE, STATE, b"{}", 0), 2.0) == []
    assert this.counters == {"beside_dropped_too_large": 1, "beside_dropped_closed": 1}


def test_what_is_retained_is_asked_for_again_whenever_a_side_is_back() -> None:
    """The cloud broker may have lost everything, and a will may have come while it was out of reach."""
    this = linked()
    this.handle(Ended(Side.CLOUD), 1.0)
    assert BESIDE in this.handle(Opened(Side.CLOUD), 2.0)
    this.handle(Ended(Side.SITE), 3.0)
    assert BESIDE not in this.handle(Opened(Side.SITE), 4.0)
    assert BESIDE in this.handle(said(True), 4.5)


def test_a_site_is_asked_only_when_there_is_a_cloud_to_bring_it_to() -> None:
    this = watch(Side.SITE)
    assert BESIDE not in this.handle(said(True), 1.0)
    assert BESIDE in this.handle(Opened(Side.CLOUD), 2.0)


def test_a_bridge_that_is_lost_leaves_no_subscription_to_a_sample_behind() -> None:
    this = linked()
    now = wait_for(Subscribe, this, 0.0)
    ended = this.handle(said(False, "a-0"), now)
    assert len([each for each in ended if isinstance(each, Unsubscribe)]) == 2
