"""The world's processes: the real machines, wired as the agents wire them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf
from random import Random
from typing import TYPE_CHECKING, Any, Final

from broker import messages
from broker.backoff import Backoff
from broker.machine import Machine, Wakeup
from broker.messages import Ack, ConnectorState, HubState, encode_envelope
from broker.topics import Topic, connector_filter, hub_filter
from cloud import ingest
from cloud.batch import Batch
from cloud.ingest import Ingest
from config import limits
from config.errors import StorageError
from config.settings import Failback, Failover
from connector import bridge
from connector.bridge import Bridge, Side
from connector.bridge_watch import Watch
from hub import courier, link
from hub.courier import Courier
from hub.entries import Entry
from hub.link import Kind, Link, Surroundings
from hub.outbox import Changes, OutboxMessage
from tests.world_network import Client, Connection, Process
from tests.world_outbox import Box, Desk, Disk

if TYPE_CHECKING:
    from tests.world import World

FLEET, SITE = "acme", "berlin"
CLOUD_BROKER: Final = "cloud-broker"
SEARCH_S = 1.5


class Driver:
    """What the runner is to a machine: feeds it, carries out its commands in order, and wakes it at its deadline."""

    def __init__(self, process: Process, machine: Machine[Any, Any], execute: Callable[[Any], None]):
        self.machine, self._process, self._execute = machine, process, execute
        self._world, self._handle, self._deadline = process.world, machine.handle, machine.deadline
        self._waiting: deque[Any] = deque()
        self._busy = False
        self._armed_at: float | None = None

    def feed(self, event: object) -> None:
        if self._busy:
            self._waiting.append(event)
            return
        self._busy = True
        now = self._world.now
        try:
            for command in self._handle(event, now):
                self._execute(command)
            while self._waiting:
                for command in self._handle(self._waiting.popleft(), now):
                    self._execute(command)
        finally:
            self._busy = False
        deadline = self._deadline()
        if deadline is not None and (self._armed_at is None or deadline < self._armed_at):
            self._arm(deadline)

    def _arm(self, deadline: float) -> None:
        now = self._world.now
        self._armed_at = max(now, deadline)
        self._process.later(self._armed_at - now, self._wake, self._armed_at)

    def _wake(self, at: float) -> None:
        if at != self._armed_at:
            return  # An earlier deadline has taken its place.
        self._armed_at = None
        deadline = self._deadline()
        if deadline is None:
            return
        if deadline <= self._world.now:
            self.feed(Wakeup())
        else:
            self._arm(deadline)


@dataclass(eq=False)
class Carrier(Client):
    """One session of a hub."""

    hub: HubProcess
    number: int
    kind: Kind
    session: int | None  # None for an observer.
    connection: Connection = field(init=False)

    def opened(self) -> None:
        self.hub.session_opened(self)

    def lost(self, reason: str, alive_at: float | None) -> None:
        self.hub.session_lost(self, reason, alive_at)

    def received(self, topic: str, payload: bytes) -> None:
        self.hub.received(self, topic, payload)


class HubProcess(Process):
    """A hub: link, courier and outbox are real. What it must not lose is kept outside of its life."""

    make_link: type[Link] = Link
    make_courier: type[Courier] = Courier
    failover, failback = Failover(), Failback()

    def __init__(self, world: World, name: str, open_box: Callable[[HubProcess], Box], interval_s: float, grouped: int):
        super().__init__(world, name)
        self._open_box = open_box
        self.interval_s, self.grouped = interval_s, grouped
        self.configured: tuple[str, ...] = ()
        self.discovery = True
        self.remembered: tuple[str, ...] = ()  # These two are its path memory, on disk.
        self.outage_ms: int | None = None
        self.disk = Disk()
        self.clock_was_steady = True  # When it was killed: what was saved of the outage was saved after the last step.
        self.clock_step_ms = 0
        self.clock_stepped_at = -inf
        self.points_made = 0
        self.random = Random(world.random.random())
        self.box: Box | None = None
        self.started_at = 0.0
        self.state_topic = str(Topic.hub_state(FLEET, SITE, name))
        self._parse = lru_cache(limits.TOPICS_REMEMBERED_MAX)(Topic.parse)
        self.up_topics = {kind: str(Topic.up(FLEET, SITE, name, kind)) for kind in ("readings", "events")}

    # --- As a test sees it ---------------------------------------------------------------------------------------------

    @property
    def path(self) -> str | None:
        """Return the `via` of the path that was taken last, which an outage alone does not change."""
        return self.world.checks.ledger(self.name).via

    @property
    def sending(self) -> bool:
        """Tell whether messages go out now."""
        return self.up and self.using is not None

    @property
    def unacknowledged(self) -> int:
        return self.courier.unacknowledged

    # --- Life ----------------------------------------------------------------------------------------------------------

    def wall_ms(self) -> int:
        return self.world.wall_ms() + self.clock_step_ms

    def step_clock(self, seconds: float) -> None:
        self.clock_step_ms += int(seconds * 1000)
        self.clock_stepped_at = self.world.now

    def start(self) -> None:
        super().start()
        now = self.started_at = self.world.now
        self.box = self._open_box(self)
        self.last_session = 0
        self.desk = Desk(self.box, self.disk, self._written, self._loaded, self.later)
        self.courier = self.make_courier(self.box.epoch, tuple(self.box.pending()))
        self.courier_driver = Driver(self, self.courier, self._execute_courier)
        outage_at = None
        if self.outage_ms is not None:
            outage_at = now - min(max(0.0, (self.wall_ms() - self.outage_ms) / 1000), self.failover.outage_s)
        surroundings = Surroundings(
            cached=self.remembered,
            configured=self.configured,
            cloud=(CLOUD_BROKER,),
            discovery=self.discovery,
            outage_at=outage_at,
        )
        self.link = self.make_link(
            self.name, self.failover, self.failback, surroundings, random=self.random, started_at=now
        )
        self.link_driver = Driver(self, self.link, self._execute_link)
        self.carriers: dict[int, Carrier] = {}
        self.using: Carrier | None = None
        self.unproven = True  # No acknowledgement has come over the path in use.
        self.world.checks.hub_started(self)
        self.link_driver.feed(Wakeup())
        self.later(self.random.uniform(0, self.interval_s), self._sample)

    def stop(self) -> None:
        self.clock_was_steady = self.up and self.world.now - self.clock_stepped_at > limits.OUTAGE_SAVE_S
        super().stop()
        if self.box is not None:
            close = getattr(self.box, "close", None)
            if close is not None:
                close()
        self.using, self.carriers = None, {}

    def _sample(self) -> None:
        self.later(self.interval_s * self.grouped, self._sample)
        now_ms, entries = self.wall_ms(), []
        for _ in range(self.grouped):
            self.points_made += 1
            entries.append(Entry(now_ms, b'{"ts":%d,"values":{"n":%d}}' % (now_ms, self.points_made)))
        self.desk.append(entries)

    # --- Outbox and courier --------------------------------------------------------------------------------------------

    def _written(self, changes: Changes, entries: Sequence[Entry]) -> None:
        first = int(entries[0].body.rpartition(b":")[2][:-2])
        self.world.checks.recorded(self, first, first + len(entries) - 1)
        if dropped := tuple(changes.dropped):
            self.courier_driver.feed(courier.Dropped(dropped))
        self.courier_driver.feed(courier.Appended(tuple(changes.appended)))

    def _loaded(self, loaded: list[OutboxMessage], gone: set[int]) -> None:
        for message in loaded:
            if self.using is not None:
                payload = encode_envelope(self.courier.epoch, message.seq, self.wall_ms(), message.body)
                self.using.connection.publish(self.up_topics[message.kind], payload)
            self.courier_driver.feed(courier.Sent(message.seq, message.size_bytes))
        if gone:
            self.courier_driver.feed(courier.Dropped(tuple((seq, seq) for seq in sorted(gone))))

    def _execute_courier(self, command: courier.Command) -> None:
        match command:
            case courier.Send(seqs):
                self.desk.load(seqs)
            case courier.Forget(ranges):
                self.world.checks.forgotten(self, ranges)
                self.desk.forget(ranges)

    # --- Paths ---------------------------------------------------------------------------------------------------------

    def _execute_link(self, command: link.Command) -> None:
        checks = self.world.checks
        match command:
            case link.Connect(number, kind, endpoint, carrying):
                checks.connects(self)
                self._connect(number, kind, endpoint, carrying)
            case link.Disconnect(number):
                carrier = self.carriers.pop(number)
                checks.disconnects(self, carrier)
                carrier.connection.close()
            case link.Use(number, via):
                self.using, self.unproven = self.carriers[number], True
                checks.uses(self, self.using, via)
                self._birth(self.using, via)
                self.courier_driver.feed(courier.PathOpened())
            case link.Halt():
                self.using = None
                checks.halts(self)
                self.courier_driver.feed(courier.PathClosed())
            case link.Search():
                checks.searches(self)
                for endpoint in self.world.site_brokers_heard_by(self):
                    self.later(self.random.uniform(0.0, 1.0), self._found, endpoint)
                self.later(SEARCH_S, self._search_ended)
            case link.Remember(endpoints):
                self.remembered = endpoints
            case link.SaveOutage(since):
                age_ms = None if since is None else int((self.world.now - since) * 1000)
                self.outage_ms = None if age_ms is None else self.wall_ms() - age_ms

    def _found(self, endpoint: str) -> None:
        self.link_driver.feed(link.ConnectorFound(endpoint))

    def _search_ended(self) -> None:
        self.link_driver.feed(link.SearchEnded())

    def _next_session(self) -> int:
        try:
            self.last_session = max(self.last_session + 1, self.desk.next_session())
        except StorageError:
            self.last_session += 1
        return self.last_session

    def _connect(self, number: int, kind: Kind, endpoint: str, carrying: bool) -> None:
        session = self._next_session() if carrying else None
        carrier = Carrier(self, number, kind, session)
        will = None
        if session is not None:
            state = HubState(online=False, epoch=self.courier.epoch, session=session)
            will = (self.state_topic, messages.encode(state), True)
        self.carriers[number] = carrier
        client_id = self.name if carrying else f"{self.name}.observer"
        carrier.connection = Connection(self.world, self, self.world.brokers[endpoint], carrier, client_id, will)

    def _birth(self, carrier: Carrier, via: str) -> None:
        assert carrier.session is not None
        state = HubState(
            online=True,
            epoch=self.courier.epoch,
            session=carrier.session,
            via=via,
            mode="continuous",
            ts=self.wall_ms(),
        )
        carrier.connection.publish(self.state_topic, messages.encode(state), retain=True)

    def session_opened(self, carrier: Carrier) -> None:
        filters = [] if carrier.session is None else [hub_filter(FLEET, SITE, self.name, "down")]
        if carrier.kind is Kind.CONNECTOR:
            filters.append(connector_filter(FLEET, SITE))
        carrier.connection.subscribe(filters)
        self.link_driver.feed(link.SessionOpened(carrier.number))

    def session_lost(self, carrier: Carrier, reason: str, alive_at: float | None) -> None:
        if self.carriers.pop(carrier.number, None) is None:
            return
        if self.using is carrier:
            self.using = None  # What is published from here on would be lost; the link is told at once.
        self.world.checks.session_lost(self, carrier, alive_at)
        self.link_driver.feed(link.SessionEnded(carrier.number, reason, alive_at))

    def received(self, carrier: Carrier, text: str, payload: bytes) -> None:
        topic = self._parse(text)
        if topic.owner == "connector":
            state = messages.decode(payload, ConnectorState)
            self.world.checks.heard(self, carrier, topic.name, state)
            self.link_driver.feed(link.ConnectorHeard(carrier.number, topic.name, state))
            return
        ack = messages.decode(payload, Ack)
        self.world.checks.acknowledged(self, ack)
        before = self.courier.unacknowledged if self.unproven else 0
        self.courier_driver.feed(courier.Acknowledged(ack.epoch, tuple(ack.ranges)))
        if self.unproven and carrier is self.using and self.courier.unacknowledged < before:
            self.unproven = False  # As in the agent, the link is told once.
            self.world.checks.proven(self, carrier)
            self.link_driver.feed(link.CloudAcknowledged(carrier.number))


@dataclass(eq=False)
class BridgeEnd(Client):
    """One of a connector's two sessions."""

    connector: ConnectorProcess
    side: Side
    session: int
    connection: Connection = field(init=False)

    def __post_init__(self) -> None:
        self.other_side = self.side.other

    def opened(self) -> None:
        self.connector.feed(self, bridge.Opened(self.side))

    def lost(self, reason: str, alive_at: float | None) -> None:
        self.connector.feed(self, bridge.Ended(self.side))

    def received(self, topic: str, payload: bytes) -> None:
        other = self.connector.ends.get(self.other_side)
        in_flight = 0 if other is None else len(other.connection.to_server.held)
        self.connector.driver.feed(bridge.Came(self.side, topic, payload, in_flight))


class ConnectorProcess(Process):
    """A connector: the bridge is real; its session number is on its disk."""

    make_bridge: type[Bridge] = Bridge

    def __init__(self, world: World, name: str, site_broker: str):
        super().__init__(world, name)
        self.site_broker = site_broker
        self.session = 0
        self.random = Random(world.random.random())
        self.state_topic = str(Topic.connector_state(FLEET, SITE, name))

    def start(self) -> None:
        super().start()
        self.ends: dict[Side, BridgeEnd] = {}
        self.bridge = self.new_bridge()
        self.driver = Driver(self, self.bridge, self._execute)
        self.driver.feed(bridge.Started())

    def new_bridge(self) -> Bridge | Watch:
        return self.make_bridge(FLEET, SITE, self.random)

    def feed(self, end: BridgeEnd, event: bridge.Event) -> None:
        if self.up and self.ends.get(end.side) is end:
            self.driver.feed(event)

    def _execute(self, command: bridge.Command) -> None:
        match command:
            case bridge.Forward(side, topic, payload, _, retain):
                self._connection(side).publish(topic, payload, retain)
            case bridge.Connect(side, _):
                self._connect(side)
            case bridge.Subscribe(side, filters):
                self._connection(side).subscribe([one for one, _ in filters])
            case bridge.Announce(side, upstream_up):
                state = ConnectorState(
                    online=True,
                    session=self.ends[side].session,
                    upstream="up" if upstream_up else "down",
                    since=self.world.wall_ms(),
                    ts=self.world.wall_ms(),
                )
                self._connection(side).publish(self.state_topic, messages.encode(state), retain=True)

    def _connection(self, side: Side) -> Connection:
        return self.ends[side].connection

    def _connect(self, side: Side) -> None:
        self.session += 1
        end = self.ends[side] = BridgeEnd(self, side, self.session)
        will = (self.state_topic, messages.encode(ConnectorState(online=False, session=self.session)), True)
        target = self.world.brokers[self.site_broker if side is Side.SITE else CLOUD_BROKER]
        end.connection = Connection(self.world, self, target, end, self.name, will)


class CloudProcess(Process, Client):
    """The cloud service: ingest is real, the database is the checks' store."""

    def __init__(self, world: World, name: str):
        super().__init__(world, name)
        self.random = Random(world.random.random())
        self.disk = Disk()
        self._parts: dict[int, CloudEnd] = {}

    def start(self) -> None:
        super().start()
        self.ingest = Ingest(FLEET, self.random)
        self.driver = Driver(self, self.ingest, self._execute)
        self.backoff = Backoff(self.random)
        self._connect()

    def _connect(self) -> None:
        self.end = CloudEnd(self, self.world.now)
        self.end.connection = Connection(self.world, self, self.world.brokers[CLOUD_BROKER], self.end, self.name, None)

    def session_lost(self, end: CloudEnd) -> None:
        if end is self.end and self.up:
            self.backoff.lived(self.world.now - end.since)
            self.driver.feed(ingest.Disconnected())
            self.later(self.backoff.next_s(), self._connect)

    def _execute(self, command: ingest.Command) -> None:
        match command:
            case ingest.Store(batch):
                self.later(self.random.uniform(0.002, 0.02), self._commit, batch)
            case ingest.Acknowledge(topic, ack):
                self.end.connection.publish(topic, messages.encode(ack))
            case ingest.PublishLast():
                raise AssertionError("the world's store reports no newest values")

    def _commit(self, batch: Batch) -> None:
        if self.disk.full:
            self.driver.feed(ingest.StoreFailed())
            return
        outcome = self.world.checks.commit(batch)
        # The commit holds even if the service is killed before it can tell of it.
        self.later(self.random.uniform(0.0, 0.01), self._tell, ingest.Stored(outcome))

    def _tell(self, event: ingest.Event) -> None:
        self.driver.feed(event)


@dataclass(eq=False)
class CloudEnd(Client):
    """The cloud service's session with its broker."""

    service: CloudProcess
    since: float
    connection: Connection = field(init=False)

    def opened(self) -> None:
        self.since = self.service.world.now
        filters = [hub_filter(FLEET, "+", "+", channel) for channel in ("up", "state")]
        self.connection.subscribe([*filters, connector_filter(FLEET, "+")])
        self.service.driver.feed(ingest.Connected())

    def lost(self, reason: str, alive_at: float | None) -> None:
        self.service.session_lost(self)

    def received(self, topic: str, payload: bytes) -> None:
        self.service.driver.feed(ingest.Arrived(topic, payload, self.service.world.wall_ms()))
