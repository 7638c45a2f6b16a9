"""The ingest machine, case by case: nothing is acknowledged before it is committed, and everything committed is."""

from __future__ import annotations

from random import Random

import pytest

from broker.backoff import Backoff
from broker.control import Heartbeat, Poll
from broker.machine import Wakeup
from broker.messages import Ack, ConnectorState, HubState, Last, encode
from broker.topics import Topic
from cloud.batch import Batch, ConnectorStateSeen, HubStateSeen, NewestValue, Outcome, Stream
from cloud.ingest import (
    Acknowledge,
    Arrived,
    Command,
    Connected,
    Disconnected,
    Event,
    Heard,
    Ingest,
    NewestRead,
    PublishLast,
    Stopping,
    Store,
    Stored,
    StoreFailed,
)
from config import limits
from tests.cloud.wire import EPOCH, FLEET, OTHER_EPOCH, SITE, T0, message, one, payload, readings, topic

STREAM = Stream(SITE, "pc-1", EPOCH)
DONE = Stored(Outcome())


def machine() -> Ingest:
    """Return a machine that is connected and idle."""
    ingest = Ingest(FLEET, Random(1))
    assert ingest.handle(Connected(), 0.0) == []
    return ingest


def arrived(content: bytes, *, hub_id: str = "pc-1", kind: str = "readings") -> Arrived:
    """Return a hub's message that has just come."""
    return Arrived(topic(hub_id, kind), content, T0)


def ack(*ranges: tuple[int, int], hub_id: str = "pc-1", epoch: str = EPOCH) -> Acknowledge:
    """Return the acknowledgement of one stream."""
    return Acknowledge(str(Topic.down(FLEET, SITE, hub_id, "ack")), Ack(epoch, list(ranges)))


def fed(ingest: Ingest, now: float, *events: Event) -> list[Command]:
    """Feed several events and return all commands."""
    return [command for event in events for command in ingest.handle(event, now)]


# --- Transactions and acknowledgements --------------------------------------------------------------------------------


def test_first_message_is_stored_at_once_and_acknowledged_when_committed() -> None:
    """An idle cloud has no reason to wait."""
    ingest = machine()
    assert ingest.handle(arrived(one(1)), 1.0) == [Store(Batch((message(one(1)),)))]
    assert not ingest.idle
    assert ingest.handle(DONE, 1.5) == [ack((1, 1))]
    assert ingest.idle
    assert ingest.deadline() is None


def test_nothing_is_acknowledged_while_the_database_works_or_refuses() -> None:
    """The hub deletes what is acknowledged: there is no second chance."""
    ingest = machine()
    commands = fed(ingest, 1.0, arrived(one(1)), arrived(one(2)), StoreFailed(), arrived(one(3)), Wakeup())
    assert commands == [Store(Batch((message(one(1)),)))]


def test_what_arrives_meanwhile_becomes_one_batch_and_one_acknowledgement() -> None:
    """One sync for many messages is where the speed comes from."""
    ingest = machine()
    ingest.handle(arrived(one(1)), 1.0)
    assert fed(ingest, 1.1, *(arrived(one(seq)) for seq in (3, 2, 7, 4))) == []
    assert fed(ingest, 1.2, DONE) == [Store(Batch(tuple(message(one(seq)) for seq in (3, 2, 7, 4)))), ack((1, 1))]
    assert fed(ingest, 1.3, DONE) == [ack((2, 4), (7, 7))]


def test_transactions_are_spaced_unless_a_full_batch_waits() -> None:
    """A sync for every message would cost more than all the rest."""
    ingest = machine()
    fed(ingest, 1.0, arrived(one(1)), DONE)
    assert ingest.handle(arrived(one(2)), 1.001) == []
    assert ingest.deadline() == pytest.approx(1.0 + limits.INGEST_INTERVAL_S)
    assert ingest.handle(Wakeup(), 1.019) == []
    assert ingest.handle(Wakeup(), 1.0 + limits.INGEST_INTERVAL_S) == [Store(Batch((message(one(2)),)))]
    ingest.handle(DONE, 1.021)
    many = [arrived(one(seq)) for seq in range(3, 3 + limits.INGEST_BATCH_MESSAGES)]
    [command] = fed(ingest, 1.022, *many)
    assert isinstance(command, Store)
    assert len(command.batch.messages) == limits.INGEST_BATCH_MESSAGES


def test_batches_are_bounded_in_messages_and_bytes() -> None:
    """A transaction that is too large delays every acknowledgement in it."""
    ingest = machine()
    ingest.handle(arrived(one(1)), 1.0)
    fed(ingest, 1.0, *(arrived(one(seq)) for seq in range(2, limits.INGEST_BATCH_MESSAGES + 12)))
    [store, _] = ingest.handle(DONE, 2.0)
    assert isinstance(store, Store)
    assert len(store.batch.messages) == limits.INGEST_BATCH_MESSAGES
    big = [readings(seq, [(T0, {f"n{index}": "x" * 4000 for index in range(50)})]) for seq in range(1, 60)]
    fed(ingest, 2.0, *(arrived(content, hub_id="pc-2") for content in big))
    [store, *_] = ingest.handle(DONE, 3.0)
    assert isinstance(store, Store)
    sizes = [len(taken.payload) for taken in store.batch.messages]
    assert 0 < sum(sizes) <= limits.INGEST_BATCH_BYTES < sum(map(len, big))


def test_each_outbox_of_each_hub_gets_its_own_acknowledgement() -> None:
    """Numbers mean something only within an epoch."""
    ingest = machine()
    ingest.handle(arrived(one(9)), 1.0)
    fed(ingest, 1.0, arrived(one(1)), arrived(one(1, epoch=OTHER_EPOCH)), arrived(one(5), hub_id="pc-2"))
    ingest.handle(DONE, 2.0)
    assert ingest.handle(DONE, 3.0) == [ack((1, 1)), ack((1, 1), epoch=OTHER_EPOCH), ack((5, 5), hub_id="pc-2")]


def test_committed_message_that_comes_again_is_stored_again_and_acknowledged_again() -> None:
    """The acknowledgement was lost: only the database knows that the message is there."""
    ingest = machine()
    fed(ingest, 1.0, arrived(one(1)), DONE)
    assert ingest.handle(arrived(one(1)), 2.0) == [Store(Batch((message(one(1)),)))]
    assert ingest.handle(DONE, 3.0) == [ack((1, 1))]


def test_busy_hub_is_told_of_a_few_messages_at_a_time() -> None:
    """Each acknowledgement passes two brokers and the WAN, as costly as the message itself."""
    ingest = machine()
    fed(ingest, 1.0, arrived(one(1)), DONE)
    for seq in range(2, limits.ACK_MESSAGES + 1):
        assert [type(each) for each in fed(ingest, 1.0 + seq / 20, arrived(one(seq)), DONE)] == [Store]
    last = limits.ACK_MESSAGES + 1
    assert fed(ingest, 1.0 + last / 20, arrived(one(last)), DONE)[1:] == [ack((2, last))]


def test_what_is_held_back_is_told_after_half_a_second() -> None:
    """Fewer may never come: the hub would send again."""
    ingest = machine()
    fed(ingest, 1.0, arrived(one(1)), DONE)
    fed(ingest, 1.1, arrived(one(2)), DONE)
    assert ingest.deadline() == pytest.approx(1.0 + limits.ACK_INTERVAL_S)
    assert ingest.handle(Wakeup(), 1.0 + limits.ACK_INTERVAL_S) == [ack((2, 2))]
    assert ingest.deadline() is None
    assert fed(ingest, 3.0, arrived(one(3)), DONE)[1:] == [ack((3, 3))], "after a pause, at once again"


def test_nothing_is_held_back_by_a_service_that_stops() -> None:
    ingest = machine()
    fed(ingest, 1.0, arrived(one(1)), DONE)
    fed(ingest, 1.1, arrived(one(2)), DONE, arrived(one(3)))
    assert ingest.handle(Stopping(), 1.11) == [Store(Batch((message(one(3)),))), ack((2, 2))]
    assert ingest.handle(DONE, 1.12) == [ack((3, 3))]


def test_what_is_held_back_waits_for_the_session() -> None:
    """Without one it would be lost, and a busy hub would send a window again."""
    ingest = machine()
    fed(ingest, 1.0, arrived(one(1)), DONE)
    fed(ingest, 1.1, arrived(one(2)), DONE, Disconnected())
    assert ingest.handle(Wakeup(), 2.0) == []
    assert ingest.handle(Connected(), 3.0) == [ack((2, 2))]


def test_copies_of_a_waiting_message_are_dropped_and_counted() -> None:
    """While the database refuses, hubs repeat: that must not fill the memory."""
    ingest = machine()
    fed(ingest, 1.0, arrived(one(1)), *[arrived(one(1))] * 2, arrived(one(2)), arrived(one(2)))
    assert ingest.waiting == 2
    assert ingest.handle(DONE, 2.0) == [Store(Batch((message(one(2)),), copies=((STREAM, 3),))), ack((1, 1))]
    assert fed(ingest, 3.0, DONE) == [ack((2, 2))]
    assert ingest.handle(arrived(one(3)), 4.0) == [Store(Batch((message(one(3)),)))], "copies are counted once"


def test_long_list_of_ranges_is_sent_as_several_acknowledgements() -> None:
    """The contract bounds a message; today's batches stay below that, tomorrow's may not."""
    wide = machine()._acknowledge([(STREAM, list(range(1, 2 * limits.ACK_RANGES_MAX + 2, 2)))])
    assert [len(command.ack.ranges) for command in wide if isinstance(command, Acknowledge)] == [
        limits.ACK_RANGES_MAX,
        1,
    ]


# --- The database refuses --------------------------------------------------------------------------------------------


def test_refused_batch_is_tried_again_as_it_is_until_it_is_committed() -> None:
    """Nothing that was taken is given up, and what came later waits behind it."""
    ingest = machine()
    [store] = ingest.handle(arrived(one(1)), 1.0)
    now, waits = 1.0, []
    for _ in range(12):
        assert ingest.handle(StoreFailed(), now) == []
        retry_at = ingest.deadline()
        assert retry_at is not None
        waits.append(retry_at - now)
        assert ingest.handle(arrived(one(2)), (now + retry_at) / 2) == []
        assert ingest.handle(Wakeup(), retry_at) == [store]
        assert ingest.deadline() is None
        now = retry_at
    assert max(waits) <= limits.STORE_RETRY_MAX_S < sum(waits)
    assert fed(ingest, now, DONE)[-1] == ack((1, 1))


def test_waits_start_short_again_after_a_success() -> None:
    """The next failure is another one."""
    ingest, same = machine(), Backoff(Random(1), max_s=limits.STORE_RETRY_MAX_S)
    for now in (1.0, 100.0):
        ingest.handle(arrived(one(1)), now)
        for _ in range(5):
            ingest.handle(StoreFailed(), now)
            assert ingest.deadline() == pytest.approx(now + same.next_s())
            now += 20.0
            ingest.handle(Wakeup(), now)
        ingest.handle(DONE, now)
        same.failures = 0


def test_waiting_messages_are_bounded_and_the_newest_are_dropped_and_come_again() -> None:
    """A database that is away for an hour must not take the memory of the machine."""
    ingest = machine()
    ingest.handle(arrived(one(1)), 1.0)
    for seq in range(2, limits.INGEST_WAITING_MAX + 12):
        ingest.handle(arrived(one(seq)), 1.0)
    assert ingest.counts.dropped == 10
    assert ingest.waiting == limits.INGEST_WAITING_MAX + 1
    ingest.handle(DONE, 2.0)
    ingest.handle(arrived(one(limits.INGEST_WAITING_MAX + 11)), 2.0)
    assert ingest.counts.dropped == 10, "there is room again"


def test_waiting_bytes_are_bounded() -> None:
    """Large messages fill memory long before their number does."""
    ingest = machine()
    ingest.handle(arrived(one(1)), 1.0)
    large = [readings(seq, [(T0, {f"n{index}": "x" * 4000 for index in range(60)})]) for seq in (2, 3)]
    room = limits.INGEST_WAITING_MAX_BYTES // len(large[0])
    for seq in range(2, room + 12):
        ingest.handle(arrived(large[0].replace(b'"seq":2,', b'"seq":%d,' % seq)), 1.0)
    dropped = ingest.counts.dropped
    assert dropped >= 10
    assert ingest.waiting <= room + 1
    while not ingest.idle:
        ingest.handle(DONE, 2.0)
        ingest.handle(Wakeup(), 3.0)
    ingest.handle(arrived(large[1]), 4.0)
    assert (ingest.waiting, ingest.counts.dropped) == (1, dropped), "there is room again"


# --- What the contract does not allow ---------------------------------------------------------------------------------


def test_message_whose_body_is_refused_is_set_aside_and_acknowledged() -> None:
    """Else it would come for ever, and block everything behind it in its hub's window."""
    ingest = machine()
    bad = payload({"points": []}, 4)
    [store] = ingest.handle(arrived(bad), 1.0)
    assert isinstance(store, Store)
    [refused] = store.batch.refused
    assert (refused.topic, refused.payload, refused.size_bytes, refused.place) == (
        topic("pc-1"),
        bad,
        len(bad),
        (STREAM, 4),
    )
    assert ingest.counts.refused == 1
    assert ingest.handle(DONE, 2.0) == [ack((4, 4))]
    assert fed(ingest, 3.0, arrived(bad), DONE) == [store, ack((4, 4))], "its acknowledgement was lost"


@pytest.mark.parametrize(
    ("where", "content", "reason"),
    [
        (topic("pc-1"), b"no json", "not JSON"),
        (topic("pc-1"), payload({"points": []}, 0), "seq"),
        (topic("pc-1"), b"x" * (limits.MESSAGE_MAX_BYTES + 1), "bytes"),
        (topic("pc-1", fleet="other"), one(1), "another fleet"),
        ("some/topic", one(1), "not a topic"),
        (str(Topic(FLEET, SITE, "hub", "pc-1", "presence")), one(1), "not asked for presence"),
        (str(Topic.hub_state(FLEET, SITE, "pc-1")), b"{}", "missing"),
        (str(Topic.connector_state(FLEET, SITE, "c-1")), b'{"online": 1}', "online"),
    ],
)
def test_what_can_not_be_read_is_set_aside_and_never_acknowledged(where: str, content: bytes, reason: str) -> None:
    """The operator can look at it; whoever sent it has not got rid of it."""
    ingest = machine()
    [store] = ingest.handle(Arrived(where, content, T0), 1.0)
    assert isinstance(store, Store)
    [refused] = store.batch.refused
    assert reason in refused.reason
    assert (refused.place, refused.size_bytes) == (None, len(content))
    assert len(refused.payload) <= limits.QUARANTINE_PAYLOAD_MAX_BYTES
    assert ingest.handle(DONE, 2.0) == []
    assert ingest.idle


def test_flood_of_rubbish_leaves_room_for_messages() -> None:
    """One hub gone mad must not drown the others."""
    ingest = machine()
    ingest.handle(arrived(one(1)), 1.0)
    for _ in range(limits.INGEST_WAITING_MAX * 2):
        ingest.handle(Arrived("rubbish", b"x", T0), 1.0)
    ingest.handle(arrived(one(2)), 1.0)
    [store, _] = ingest.handle(DONE, 2.0)
    assert isinstance(store, Store)
    assert len(store.batch.refused) == limits.QUARANTINE_WAITING_MAX
    assert [taken.seq for taken in store.batch.messages] == [2]
    assert ingest.counts.refused == limits.INGEST_WAITING_MAX * 2
    for _ in range(limits.QUARANTINE_WAITING_MAX + 1):
        ingest.handle(Arrived("rubbish", b"x", T0), 2.0)
    [store, _] = ingest.handle(DONE, 3.0)
    assert isinstance(store, Store)
    assert len(store.batch.refused) == limits.QUARANTINE_WAITING_MAX, "there is room again"


def test_unknown_kind_is_stored_and_counted() -> None:
    """A newer hub is no fault."""
    ingest = machine()
    content = payload({"x": 1}, 1)
    assert ingest.handle(arrived(content, kind="tomorrow"), 1.0) == [Store(Batch((message(content, kind="tomorrow"),)))]
    assert ingest.counts.unknown == 1
    assert ingest.handle(DONE, 2.0) == [ack((1, 1))]


# --- States ----------------------------------------------------------------------------------------------------------


def test_states_are_stored_in_order_and_not_acknowledged() -> None:
    """Which of them holds is decided where the known one is: in the database."""
    ingest = machine()
    born, died = (
        HubState(online=True, epoch=EPOCH, session=1, via="direct"),
        HubState(online=False, epoch=EPOCH, session=1),
    )
    of_connector = ConnectorState(online=True, session=3, upstream="up")
    where = str(Topic.hub_state(FLEET, SITE, "pc-1"))
    [first] = ingest.handle(Arrived(where, encode(born), T0), 1.0)
    assert first == Store(Batch(hub_states=(HubStateSeen(SITE, "pc-1", born, T0),)))
    fed(ingest, 1.1, Arrived(where, encode(died), T0 + 1), Arrived(where, encode(born), T0 + 2))
    ingest.handle(Arrived(str(Topic.connector_state(FLEET, SITE, "c-1")), encode(of_connector), T0), 1.2)
    assert ingest.handle(DONE, 2.0) == [
        Store(
            Batch(
                hub_states=(HubStateSeen(SITE, "pc-1", died, T0 + 1), HubStateSeen(SITE, "pc-1", born, T0 + 2)),
                connector_states=(ConnectorStateSeen(SITE, "c-1", of_connector, T0),),
            )
        )
    ]
    assert ingest.handle(DONE, 3.0) == []


@pytest.mark.parametrize("signal", [Heartbeat(EPOCH, 7, T0), Poll(EPOCH, 7, T0)], ids=["heartbeat", "poll"])
def test_a_life_sign_that_was_retained_says_nothing(signal: Heartbeat | Poll) -> None:
    """Some engines keep one if its hub says so; else a dead hub would live again at each connection of the cloud service."""
    channel = Topic.heartbeat if isinstance(signal, Heartbeat) else Topic.poll
    where, content = str(channel(FLEET, SITE, "pc-1")), encode(signal)
    assert machine().handle(Arrived(where, content, T0, retained=True), 1.0) == []
    assert machine().handle(Arrived(where, content, T0), 1.0) == [Heard(SITE, "pc-1", signal, T0)]


# --- Newest values ---------------------------------------------------------------------------------------------------


def new(sensor: str, value: int) -> NewestValue:
    """Return a newest value."""
    return NewestValue(SITE, "pc-1", sensor, Last(T0, value, 1))


def last(sensor: str, value: int) -> PublishLast:
    """Return its publication."""
    return PublishLast(str(Topic.last(FLEET, SITE, "pc-1", sensor)), Last(T0, value, 1))


def stored(*newest: NewestValue) -> Stored:
    """Return the end of a transaction that has changed newest values."""
    return Stored(Outcome(newest=newest))


def test_newest_values_are_published_after_the_commit_and_at_most_once_per_interval() -> None:
    """A fast sensor would otherwise cost more to show than to store."""
    ingest = machine()
    ingest.handle(arrived(one(1)), 1.0)
    assert ingest.handle(stored(new("x", 1)), 1.0) == [ack((1, 1)), last("x", 1)]
    ingest.handle(arrived(one(2)), 1.1)
    assert ingest.handle(stored(new("x", 2)), 1.1) == []
    ingest.handle(arrived(one(3)), 1.2)
    ingest.handle(stored(new("x", 3), new("y", 1)), 1.2)
    assert ingest.handle(Wakeup(), 1.0 + limits.ACK_INTERVAL_S) == [ack((2, 3))]
    assert ingest.deadline() == pytest.approx(1.0 + limits.LAST_INTERVAL_S)
    assert ingest.handle(Wakeup(), 1.0 + limits.LAST_INTERVAL_S) == [last("x", 3), last("y", 1)]
    assert ingest.deadline() is None


def test_many_newest_values_are_published_in_small_portions() -> None:
    """Thirty thousand publications in one go would hold up every acknowledgement."""
    ingest = machine()
    ingest.handle(arrived(one(1)), 1.0)
    many = [new(f"s{index}", 1) for index in range(limits.LAST_BURST + 3)]
    assert len(ingest.handle(stored(*many), 1.0)) == 1 + limits.LAST_BURST
    assert ingest.deadline() == pytest.approx(1.0 + limits.INGEST_INTERVAL_S)
    assert len(ingest.handle(Wakeup(), 1.0 + limits.INGEST_INTERVAL_S)) == 3


def test_values_read_after_a_reconnect_do_not_replace_newer_ones() -> None:
    """The read may have begun before the commit."""
    ingest = machine()
    fed(ingest, 1.0, Disconnected(), arrived(one(1)), stored(new("x", 2)))
    assert ingest.handle(NewestRead((new("x", 1), new("y", 1))), 1.0) == []
    assert ingest.handle(Connected(), 2.0) == [last("x", 2), last("y", 1)]


def test_newest_values_that_wait_are_bounded() -> None:
    """A broker that is away for a week must not fill the memory, whatever the size of the fleet."""
    ingest = machine()
    ingest.handle(Disconnected(), 1.0)
    ingest.handle(NewestRead(tuple(new(f"s{index}", 1) for index in range(limits.LAST_WAITING_MAX + 5))), 1.0)
    assert len(ingest._lasts) == limits.LAST_WAITING_MAX


# --- The broker is away, the service stops ----------------------------------------------------------------------------


def test_without_a_broker_the_rest_is_stored_and_nothing_is_published() -> None:
    """Acknowledgements would go nowhere; the hub repeats, and then it is acknowledged."""
    ingest = machine()
    fed(ingest, 1.0, arrived(one(1)), arrived(one(2)), Disconnected())
    assert ingest.handle(stored(new("x", 1)), 2.0) == [Store(Batch((message(one(2)),)))]
    assert ingest.handle(DONE, 3.0) == []
    assert ingest.deadline() is None
    assert ingest.handle(Connected(), 4.0) == [last("x", 1)]


def test_stopping_service_stores_what_waits_at_once_and_takes_nothing_new() -> None:
    """What has come is not made to come again for nothing, and the end is in sight."""
    ingest = machine()
    fed(ingest, 1.0, arrived(one(1)), DONE, arrived(one(2)))
    assert ingest.handle(Stopping(), 1.001) == [Store(Batch((message(one(2)),)))]
    assert ingest.handle(arrived(one(3)), 1.002) == []
    assert ingest.handle(DONE, 1.003) == [ack((2, 2))]
    assert ingest.idle


def test_stopping_service_goes_on_trying_while_it_may() -> None:
    """A short lock at the very end costs nothing."""
    ingest = machine()
    [store] = ingest.handle(arrived(one(1)), 1.0)
    fed(ingest, 1.0, StoreFailed(), Stopping())
    retry_at = ingest.deadline()
    assert retry_at is not None
    assert ingest.handle(Wakeup(), retry_at) == [store]


def test_equal_histories_give_equal_commands() -> None:
    """One seed, one history: what a simulation has found can be found again."""

    def history() -> list[Command]:
        ingest = Ingest(FLEET, Random(5))
        events = [
            Connected(),
            arrived(one(1)),
            StoreFailed(),
            Wakeup(),
            arrived(one(2)),
            Wakeup(),
            DONE,
            Wakeup(),
            DONE,
        ]
        return [command for step, event in enumerate(events) for command in ingest.handle(event, step * 20.0)]

    assert history() == history()
