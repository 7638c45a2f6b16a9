"""The world's network: connections with latency, cuts and keep alives, and brokers with MQTT's semantics.

Connections are TCP's: in order, what is sent into a cut waits and arrives after it, unless the connection dies before.
Life signs cost nothing while all is well: only when something stands between two ends, the moments are worked out at
which each of them finds the other silent.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush
from typing import TYPE_CHECKING, Any, TypeAlias

from broker.topics import covers
from config import limits

if TYPE_CHECKING:
    from tests.world import World

LATENCY_MIN_S, LATENCY_SPREAD_S = 0.001, 0.02 - 0.001
HELD_MAX = 20_000  # Packets in the buffers of one direction; beyond it they are dropped, as brokers and clients do.
CLIENT_SILENT_S = 2.0 * limits.KEEP_ALIVE_S  # A ping after one keep alive, given up after another.
SERVER_SILENT_S = limits.KEEP_ALIVE_S * limits.KEEP_ALIVE_GRACE

Publish: TypeAlias = tuple[str, bytes, bool]  # Topic, payload, and whether it is to be retained.


class Process:
    """Something that runs on a host of its own name, and can be killed."""

    def __init__(self, world: World, name: str):
        self.world, self.name = world, name
        self.up = False
        self.life = 0  # Grows with each start: a timer of an earlier life says nothing.

    def start(self) -> None:
        self.up = True
        self.life += 1

    def stop(self) -> None:
        """Be killed: nothing is said, nothing is saved."""
        self.up = False
        self.life += 1

    def later(self, delay_s: float, call: Callable[..., None], *args: object) -> None:
        """Call, unless this life is over by then."""
        world = self.world
        heappush(world.agenda, (world.now + delay_s, next(world.numbers), self._if_alive, self.life, (call, args)))

    def _if_alive(self, life: int, what: tuple[Callable[..., None], tuple[object, ...]]) -> None:
        if life == self.life:
            call, args = what
            call(*args)


class Client:
    """The receiving end of a client's connection: what its owner is told."""

    def opened(self) -> None: ...

    def lost(self, reason: str, alive_at: float | None) -> None: ...

    def received(self, topic: str, payload: bytes) -> None: ...


class Pipe:
    """One direction of a connection. What goes through it is a packet, and who takes it at the other end."""

    __slots__ = ("_last_at", "_world", "held", "source", "target")

    def __init__(self, world: World, source: str, target: str):
        self.source, self.target = source, target
        self._world, self._last_at = world, 0.0
        self.held: list[tuple[Callable[[Any], None], Any]] = []

    def send(self, take: Callable[[Any], None], packet: object) -> None:
        world = self._world
        if self.held or ((world.cuts or world.dark) and not world.reaches(self.source, self.target)):
            if len(self.held) < HELD_MAX:
                self.held.append((take, packet))
            return
        at = world.now + LATENCY_MIN_S + LATENCY_SPREAD_S * world.draw()
        if at < self._last_at:
            at = self._last_at
        self._last_at = at
        heappush(world.agenda, (at, next(world.numbers), self._arrive, take, packet))

    def _arrive(self, take: Callable[[Any], None], packet: object) -> None:
        world = self._world
        if self.held or ((world.cuts or world.dark) and not world.reaches(self.source, self.target)):
            self.held.append((take, packet))
        else:
            take(packet)

    def mended(self) -> None:
        """What was held back goes on, after TCP has noticed."""
        world = self._world
        if self.held and world.reaches(self.source, self.target):
            held, self.held = self.held, []
            self._last_at = max(self._last_at, world.now + world.random.uniform(0.0, 1.0))
            for take, packet in held:
                world.at(self._last_at, self._arrive, take, packet)


class Connection:
    """A client's session with a broker. Each end lives on until it learns that the other one is gone."""

    def __init__(
        self,
        world: World,
        owner: Process,
        broker: Broker,
        client: Client,
        client_id: str,
        will: Publish | None,
    ):
        self.world, self.owner, self.broker, self.client = world, owner, broker, client
        self.client_id, self.will = client_id, will
        self.client_open = True  # From the first packet on: it also stands for an attempt.
        self.accepted = self.server_open = False
        self.heard_at: float | None = None  # By the client.
        self.server_heard_at = 0.0
        self.filters: list[str] = []
        self.to_server = Pipe(world, owner.name, broker.name)
        self.to_client = Pipe(world, broker.name, owner.name)
        self.dropped = 0
        world.connections.append(self)
        wait_s = 3 * world.latency_s()
        if world.whole(owner.name, broker.name) and (broker.refusing or not broker.up):
            world.at(world.now + wait_s, self._give_up, "connection refused")
        else:
            world.at(world.now + wait_s, self._arrive_at_server, broker.life)
            world.at(world.now + limits.CONNECT_TIMEOUT_S, self._give_up, "no answer")

    # --- What the client does ------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        return len(self.to_server.held)

    def publish(self, topic: str, payload: bytes, retain: bool = False) -> bool:
        if not self.client_open or not self.accepted or len(self.to_server.held) >= limits.SESSION_IN_FLIGHT_MAX:
            self.dropped += 1
            return False
        self.to_server.send(self._publish, (topic, payload, retain))
        return True

    def subscribe(self, filters: list[str]) -> None:
        if self.client_open and self.accepted:
            self.to_server.send(self._subscribe, filters)

    def unsubscribe(self, filters: list[str]) -> None:
        if self.client_open and self.accepted:
            self.to_server.send(self._unsubscribe, filters)

    def close(self) -> None:
        """Say goodbye: the broker forgets the will, if the word gets there."""
        if self.client_open:
            self.client_open = False
            self.to_server.send(self._end_server, True)

    def vanish(self) -> None:
        """The client's process is killed: its system closes the connection without a DISCONNECT."""
        if self.client_open:
            self.client_open = False
            self.to_server.send(self._end_server, False)

    # --- What the broker does ------------------------------------------------------------------------------------------

    def end_from_server(self) -> None:
        """Close it at the broker: its system tells the client, if it can."""
        if self.server_open:
            self.server_open = False
            self.to_client.send(self._lose, "closed by the broker")

    # --- On the way ----------------------------------------------------------------------------------------------------

    def mended(self) -> None:
        """Both ends hear each other again."""
        self.heard_at, self.server_heard_at = (self.heard_at and self.world.now), self.world.now
        self.to_server.mended()
        self.to_client.mended()

    def _arrive_at_server(self, life: int) -> None:
        broker = self.broker
        if not self.client_open or not broker.up or broker.life != life or not self.world.whole(*self.hosts):
            return  # The time-out tells the client.
        self.server_open, self.server_heard_at = True, self.world.now
        broker.accept(self)
        self.to_client.send(self._accept, None)

    def _accept(self, _: None) -> None:
        if self.client_open:
            self.accepted, self.heard_at = True, self.world.now
            self.client.opened()

    def _publish(self, packet: Publish) -> None:
        if self.server_open:
            self.server_heard_at = self.world.now
            if packet[2]:
                self.broker.retain(packet)
            self.broker.spread(packet)

    def _subscribe(self, filters: list[str]) -> None:
        if self.server_open:
            self.server_heard_at = self.world.now
            self.broker.subscribed(self, filters)

    def _unsubscribe(self, filters: list[str]) -> None:
        if self.server_open:
            self.server_heard_at = self.world.now
            self.broker.unsubscribed(self, filters)

    def receive(self, packet: Publish) -> None:
        if self.client_open and self.accepted:
            self.heard_at = self.world.now
            topic, payload, _ = packet
            self.client.received(topic, payload)

    def _end_server(self, clean: bool) -> None:
        if self.server_open:
            self.server_open = False
            self.broker.ended(self, clean)

    def _lose(self, reason: str) -> None:
        if self.client_open:
            self.client_open = False
            self.client.lost(reason, self.world.now)

    def _give_up(self, reason: str) -> None:
        if self.client_open and not self.accepted:
            self.vanish()
            self.client.lost(reason, None)

    # --- Silence -------------------------------------------------------------------------------------------------------

    @property
    def hosts(self) -> tuple[str, str]:
        return self.owner.name, self.broker.name

    def note_pings(self) -> None:
        """Until now, at the latest one keep alive ago, the ends have heard each other's pings."""
        if self.accepted and self.client_open and self.server_open and self.world.whole(*self.hosts):
            period_s = limits.KEEP_ALIVE_S
            assert self.heard_at is not None
            self.heard_at += (self.world.now - self.heard_at) // period_s * period_s
            self.server_heard_at += (self.world.now - self.server_heard_at) // period_s * period_s

    def watch(self) -> None:
        """Something has come between the ends: when will they notice?"""
        if self.client_open and self.accepted:
            assert self.heard_at is not None
            self.world.at(self.heard_at + CLIENT_SILENT_S, self._check_client)
        if self.server_open:
            self.world.at(self.server_heard_at + SERVER_SILENT_S, self._check_server)

    def _check_client(self) -> None:
        if self.client_open and not (self.server_open and self.world.whole(*self.hosts)):
            assert self.heard_at is not None
            if self.world.now - self.heard_at < CLIENT_SILENT_S - 1e-6:
                self.world.at(self.heard_at + CLIENT_SILENT_S, self._check_client)
                return
            self.client_open = False
            self.to_server.send(self._end_server, False)
            self.client.lost("no life sign", self.heard_at)

    def _check_server(self) -> None:
        if self.server_open and not (self.client_open and self.world.reaches(*self.hosts)):
            if self.world.now - self.server_heard_at < SERVER_SILENT_S - 1e-6:
                self.world.at(self.server_heard_at + SERVER_SILENT_S, self._check_server)
                return
            self.server_open = False
            self.to_client.send(self._lose, "closed by the broker")
            self.broker.ended(self, clean=False)

    def reset(self) -> None:
        """An end that came back without its past answers the other one's next packet with a reset."""
        if self.client_open and self.accepted and not self.server_open:
            self.to_client.send(self._lose, "connection reset")
        elif self.server_open and not self.client_open:
            self.to_server.send(self._end_server, False)


class Broker(Process):
    """Clean sessions, retained messages, last wills; all of it is lost with the process."""

    bridges = False

    def __init__(self, world: World, name: str):
        super().__init__(world, name)
        self.refusing = False  # Overloaded: those that are there may stay, nobody else comes in.
        self.retained: dict[str, Publish] = {}
        self.sessions: dict[str, Connection] = {}
        self._routes: dict[str, tuple[Connection, ...]] = {}

    def stop(self) -> None:
        super().stop()
        self.retained, self.sessions, self._routes = {}, {}, {}

    def mended(self) -> None:
        """Take back whatever a test has done to it."""

    def accept(self, connection: Connection) -> None:
        older = self.sessions.get(connection.client_id)
        if older is not None:  # The same client again: the older session ends, and its will is published.
            older.end_from_server()
            self.ended(older, clean=False)
        self.sessions[connection.client_id] = connection

    def subscribed(self, connection: Connection, filters: list[str]) -> None:
        connection.filters += [one for one in filters if one not in connection.filters]
        self._routes.clear()
        for topic, packet in self.retained.items():
            if any(covers(one, topic) for one in filters):
                connection.to_client.send(connection.receive, packet)

    def unsubscribed(self, connection: Connection, filters: list[str]) -> None:
        connection.filters = [one for one in connection.filters if one not in filters]
        self._routes.clear()

    def retain(self, packet: Publish) -> None:
        self.retained[packet[0]] = packet
        self.world.state_published(self, packet)

    def spread(self, packet: Publish) -> None:
        """Deliver to whoever has subscribed by now."""
        topic = packet[0]
        routes = self._routes.get(topic)
        if routes is None:
            routes = tuple(
                session for session in self.sessions.values() if any(covers(one, topic) for one in session.filters)
            )
            self._routes[topic] = routes
        for session in routes:
            session.to_client.send(session.receive, packet)

    def ended(self, connection: Connection, clean: bool) -> None:
        if self.sessions.get(connection.client_id) is connection:
            del self.sessions[connection.client_id]
        self._routes.clear()
        if not clean and connection.will is not None and self.up:
            self.retain(connection.will)
            self.spread(connection.will)
