"""The checks of the world do complain: machines with a bug of each kind, and the complaint that each must cause."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pytest

from broker.machine import Wakeup
from broker.messages import Ack, ConnectorState, encode
from broker.ranges import ranges_of
from broker.topics import Topic
from cloud import ingest
from hub import courier, link
from hub.courier import Courier, Forget, Send, Sent
from hub.entries import Entry
from hub.link import ConnectorHeard, Link, SessionEnded
from hub.outbox import OutboxMessage
from tests.world import HOUR_S, MINUTE_S, World, site
from tests.world_outbox import MemoryBox
from tests.world_roles import CLOUD_BROKER, FLEET, CloudProcess, HubProcess


class ForgettingCourier(Courier):
    """Deletes what it has sent: the next hop's word was enough for it."""

    def handle(self, event: courier.Event, now: float) -> list[courier.Command]:
        forget = [Forget(((event.seq, event.seq),))] if isinstance(event, Sent) else []
        return [*super().handle(event, now), *forget]


class OnceOnlyCourier(Courier):
    """Never sends anything again while a path is open."""

    def deadline(self) -> float | None:
        return None


class DroppingCourier(Courier):
    """Forgets one of every fifty messages on its books."""

    def handle(self, event: courier.Event, now: float) -> list[courier.Command]:
        commands = super().handle(event, now)
        return [
            Send(tuple(seq for seq in command.seqs if seq % 50)) if isinstance(command, Send) else command
            for command in commands
        ]


class ClockRestartingLink(Link):
    """Takes every failed attempt for the beginning of the outage."""

    def handle(self, event: link.Event, now: float) -> list[link.Command]:
        commands = super().handle(event, now)
        if isinstance(event, SessionEnded) and self.out_at is not None:
            self.out_at = now
        return commands


class HastyLink(Link):
    """Waits four seconds less than it should."""

    @property
    def switch_at(self) -> float | None:
        at = super().switch_at
        return None if at is None else at - 8.0


class BreakingLink(Link):
    """Takes a path for proven as soon as it is open."""

    def handle(self, event: link.Event, now: float) -> list[link.Command]:
        commands = super().handle(event, now)
        if self.using is not None:
            self.using.proven = True
        return [*commands, *super().handle(Wakeup(), now)]


class StormingLink(Link):
    """Has lost its patience: tries without a pause."""

    def _new_round(self, now: float) -> None:
        super()._new_round(now)
        self._site_next_at = now


class EagerLink(Link):
    """Goes back to a connector as soon as it sees it."""

    def handle(self, event: link.Event, now: float) -> list[link.Command]:
        self._return_wait_s = 0.0
        commands = super().handle(event, now)
        self._return_wait_s = 0.0
        return commands


class CredulousLink(Link):
    """Believes every will, however late."""

    def handle(self, event: link.Event, now: float) -> list[link.Command]:
        if isinstance(event, ConnectorHeard) and not event.state.online:
            event = ConnectorHeard(event.session, event.connector_id, ConnectorState(online=False, session=2**50))
        return super().handle(event, now)


class StayingLink(Link):
    """Never looks for its connector again once it is direct."""

    def _try_site(self, now: float) -> list[link.Command]:
        return [] if self.using is not None else super()._try_site(now)

    def _next_site_try(self) -> float | None:
        return None if self.using is not None else super()._next_site_try()


class UnsealedBox(MemoryBox):
    """Lets a message grow after it was handed out."""

    def load(self, seqs: Iterable[int]) -> list[OutboxMessage]:
        newest = self._open
        loaded = super().load(seqs)
        self._open = newest if self._last_seq % 10 else None
        return loaded


class DoublingBox(MemoryBox):
    """Writes a point into two messages."""

    def append(self, kind: str, entries: Sequence[Entry]) -> list[int]:
        seqs = super().append(kind, entries)
        self._open = None
        return [*seqs, *super().append(kind, entries)]


class PromisingCloud(CloudProcess):
    """Acknowledges first and commits then."""

    def _execute(self, command: ingest.Command) -> None:
        if isinstance(command, ingest.Store) and self.end.connection is not None:
            for message in command.batch.messages:
                topic = str(Topic.down(FLEET, message.stream.site, message.stream.hub_id, "ack"))
                self.end.connection.publish(topic, encode(Ack(message.stream.epoch, ranges_of([message.seq]))))
        super()._execute(command)


def _hub_with(make_link: type[Link] = Link, make_courier: type[Courier] = Courier) -> type[HubProcess]:
    return type("BuggyHub", (HubProcess,), {"make_link": make_link, "make_courier": make_courier})


def _suffer(world: World) -> None:
    """One of everything that these bugs need to be seen."""
    world.run(10 * MINUTE_S)
    world.kill("broker-1")
    world.kill("connector-1")
    world.run(6 * MINUTE_S)
    world.kill("cloud")
    world.run(MINUTE_S)
    world.start("cloud")
    world.start("broker-1")
    world.start("connector-1")
    world.run(10 * MINUTE_S)
    world.cloud.disk.full = True
    world.run(2 * MINUTE_S)
    world.kill("connector-1")
    world.run(10 * MINUTE_S)
    world.cloud.disk.full = False
    world.start("connector-1")
    world.run(10 * MINUTE_S)
    for _ in range(10):
        world.restart("connector-1")
        world.run(5 * MINUTE_S)
    world.kill("cloud")
    world.run(MINUTE_S)
    world.start("cloud")
    world.settle()


LINKS = [
    (ClockRestartingLink, "could be reached|later than it may"),
    (HastyLink, "went direct after"),
    (BreakingLink, "dropped a path before"),
    (StormingLink, "in a minute|livelock"),
    (EagerLink, "came back to a connector"),
    (CredulousLink, "though one has been good"),
    (StayingLink, "not within"),
]
COURIERS = [
    (ForgettingCourier, "not stored"),
    (OnceOnlyCourier, "not within"),
    (DroppingCourier, "not within"),
]
BOXES = [(UnsealedBox, "has changed after it was sent|stored twice"), (DoublingBox, "is stored twice")]


@pytest.mark.parametrize(("make_link", "complaint"), LINKS)
def test_a_link_with_a_bug_is_caught(make_link: type[Link], complaint: str) -> None:
    world = site(hubs=2, connectors=1, seed=1, hub_type=_hub_with(make_link=make_link))
    with pytest.raises(AssertionError, match=complaint):
        _suffer(world)


@pytest.mark.parametrize(("make_courier", "complaint"), COURIERS)
def test_a_courier_with_a_bug_is_caught(make_courier: type[Courier], complaint: str) -> None:
    world = site(hubs=2, connectors=1, seed=1, hub_type=_hub_with(make_courier=make_courier))
    with pytest.raises(AssertionError, match=complaint):
        _suffer(world)


@pytest.mark.parametrize(("box_type", "complaint"), BOXES)
def test_an_outbox_with_a_bug_is_caught(box_type: type[MemoryBox], complaint: str) -> None:
    world = site(hubs=2, connectors=1, seed=1, box_type=box_type)
    with pytest.raises(AssertionError, match=complaint):
        _suffer(world)


def test_a_cloud_that_promises_what_it_has_not_stored_is_caught() -> None:
    world = site(hubs=2, connectors=1, seed=1, cloud_type=PromisingCloud)
    with pytest.raises(AssertionError, match="acknowledged but are not stored"):
        _suffer(world)


def test_without_a_bug_nothing_is_complained_of() -> None:
    """The same sufferings, the machines as they are."""
    _suffer(site(hubs=2, connectors=1, seed=1))


def test_a_world_that_does_not_advance_is_ended() -> None:
    """A machine that always wants to be woken now would hang a test for ever."""
    world = site(hubs=1, connectors=1, seed=1)

    def again(call: Callable[..., None]) -> None:
        world.at(world.now, call, call)

    world.at(5.0, again, again)
    with pytest.raises(AssertionError, match="livelock"):
        world.run(HOUR_S)


def test_a_broker_that_is_cut_off_is_not_reachable() -> None:
    """The measure of lateness itself: only while the cloud can be reached, a hub can be late."""
    world = site(hubs=1, connectors=1, seed=1)
    assert world.cloud_reachable_since["hub-1"] == 0.0
    world.cut("hub-1", CLOUD_BROKER, one_way=True)
    assert world.cloud_reachable_since["hub-1"] is None
