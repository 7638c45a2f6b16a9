"""A site whose Mosquitto bridges by itself, with the real watch beside it; and whether what it says of the bridge is true.

The bridge is what was seen of Mosquitto 2.0.11: it keeps nothing while it is not connected, repeats retained states when it
connects, tells (retained) how it is, and may be silent about a loss that it found by its keep alive.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from broker.engines.site_bridge import CONNECTED, notification_topic
from broker.messages import ConnectorState, decode
from broker.rights import UP_SIDE
from broker.topics import covers, hub_filter
from config import limits
from connector import bridge
from connector.bridge import Command, Side
from connector.bridge_watch import CONVICTED, Tell, Unsubscribe, Watch, WatchCommand
from tests.world import DRAIN_S, TICK_S, World, site
from tests.world_network import Broker, Client, Connection, Publish
from tests.world_roles import CLOUD_BROKER, FLEET, SITE, BridgeEnd, ConnectorProcess

if TYPE_CHECKING:
    from collections.abc import Iterable

SAMPLES_S = limits.BRIDGE_SAMPLE_S + 30.0 + limits.BRIDGE_PROOF_S
"""For one message to be followed in vain: until one is looked for, until a hub of the world sends one, and its time."""

KNOWN_S = 2 * TICK_S
"""How long "up" may be said of a bridge that is known to be down: by its notice, or by the connector's own session."""

FALSE_UP_S = limits.BRIDGE_STRIKES_MAX * SAMPLES_S + 2 * TICK_S
"""How long "up" may be said of a bridge that carries nothing, while hubs send over it and the cloud would answer."""

UNANSWERED_S = limits.BRIDGE_UNANSWERED_MAX * (SAMPLES_S + limits.BRIDGE_CARRY_S) + 2 * TICK_S
"""The same while the cloud acknowledges nobody."""

FALSE_DOWN_S = limits.BRIDGE_DOUBT_S + limits.BRIDGE_SAMPLE_S + limits.BRIDGE_CARRY_S + 2 * TICK_S
"""How long "down" may be said while everything is well, unless the bridge has been convicted: then its parole is the bound."""


@dataclass(eq=False)
class BridgeClient(Client):
    """The bridge's session with the cloud broker."""

    broker: BridgingBroker
    connection: Connection = field(init=False)

    def opened(self) -> None:
        self.broker.bridge_opened(self)

    def lost(self, reason: str, alive_at: float | None) -> None:
        self.broker.bridge_lost(self, reason)

    def received(self, topic: str, payload: bytes) -> None:
        self.broker.came_down(self, topic, payload)


class BridgingBroker(Broker):
    """A site's Mosquitto, with the bridge of the connector of the same number. `mute_up`, `mute_down`: connected, in vain."""

    bridges = True
    bridge: BridgeClient | None = None

    def __init__(self, world: World, name: str):
        super().__init__(world, name)
        self.mute_up = self.mute_down = False
        self.connector_id = name.replace("broker", "connector")
        self.notice_topic = notification_topic(self.connector_id)
        self.bridge_since = 0.0
        self._wait_s = float(limits.BRIDGE_RESTART_FIRST_S)
        self._ups = [hub_filter(FLEET, SITE, "+", channel) for channel in UP_SIDE]
        self._crosses: dict[str, bool] = {}

    def start(self) -> None:
        super().start()
        self._notify(b"0")
        self._connect()

    def stop(self) -> None:
        super().stop()
        self.bridge = None

    def mended(self) -> None:
        self.mute_up = self.mute_down = False

    def drop_bridge(self) -> None:
        """Let the cloud broker close the bridge's session, and say so."""
        if self.bridge is not None:
            self.bridge.connection.end_from_server()
            self.bridge.connection.broker.ended(self.bridge.connection, clean=False)

    @property
    def linked(self) -> bool:
        """Tell whether the bridge has a session that works, whatever it carries."""
        return self.bridge is not None and _works(self.bridge.connection)

    # --- The bridge's session ------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        this = self.bridge = BridgeClient(self)
        target = self.world.brokers[CLOUD_BROKER]
        this.connection = Connection(self.world, self, target, this, f"{self.connector_id}.bridge", None)

    def bridge_opened(self, this: BridgeClient) -> None:
        if this is not self.bridge:
            return
        self._wait_s, self.bridge_since = float(limits.BRIDGE_RESTART_FIRST_S), self.world.now
        this.connection.subscribe([hub_filter(FLEET, SITE, "+", "down")])
        for packet in [*self.retained.values()]:
            self._up(packet)
        self._notify(CONNECTED)

    def bridge_lost(self, this: BridgeClient, reason: str) -> None:
        if this is not self.bridge:
            return
        if this.connection.accepted and (reason != "no life sign" or self.world.random.random() < 0.5):
            self._notify(b"0")
        self.bridge = None
        self.later(self._wait_s, self._connect)
        self._wait_s = self.world.random.uniform(
            limits.BRIDGE_RESTART_FIRST_S, min(3 * self._wait_s, limits.BRIDGE_RESTART_MAX_S)
        )

    def _notify(self, payload: bytes) -> None:
        packet: Publish = (self.notice_topic, payload, True)
        self.retained[self.notice_topic] = packet  # It does not come late: it has not gone over any network.
        super().spread(packet)

    # --- What crosses --------------------------------------------------------------------------------------------------

    def spread(self, packet: Publish) -> None:
        super().spread(packet)
        self._up(packet)

    def _up(self, packet: Publish) -> None:
        topic = packet[0]
        crosses = self._crosses.get(topic)
        if crosses is None:
            crosses = self._crosses[topic] = any(covers(one, topic) for one in self._ups)
        if crosses and self.bridge is not None and not self.mute_up:
            self.bridge.connection.publish(*packet)

    def came_down(self, this: BridgeClient, topic: str, payload: bytes) -> None:
        if this is self.bridge and not self.mute_down:
            super().spread((topic, payload, False))


class WatchingConnector(ConnectorProcess):
    """A connector that lets its site's broker bridge: the watch is real, and held to the truth from time to time."""

    make_watch: type[Watch] = Watch

    def start(self) -> None:
        self._since: dict[str, float] = {}
        self._cloud_lost_at = self._cloud_opened_at = -inf
        super().start()
        self.later(TICK_S, self._look)

    def new_bridge(self) -> Watch:
        return self.make_watch(FLEET, SITE, self.name, self.random)

    def feed(self, end: BridgeEnd, event: bridge.Event) -> None:
        match event:
            case bridge.Opened(Side.CLOUD):
                self._cloud_opened_at = self.world.now
            case bridge.Ended(Side.CLOUD):
                if self.watch.is_open(Side.CLOUD):
                    self._cloud_lost_at = self.world.now
        super().feed(end, event)

    @property
    def watch(self) -> Watch:
        assert isinstance(self.bridge, Watch)
        return self.bridge

    @property
    def broker(self) -> BridgingBroker:
        found = self.world.brokers[self.site_broker]
        assert isinstance(found, BridgingBroker)
        return found

    def _execute(self, command: Command | WatchCommand) -> None:
        match command:
            case Unsubscribe(side, filters):
                self._connection(side).unsubscribe([*filters])
            case Tell():
                pass
            case _:
                super()._execute(command)

    # --- Whether it tells the truth --------------------------------------------------------------------------------------

    @property
    def says_up(self) -> bool:
        """Tell what the site's hubs hear."""
        return self._heard(self.site_broker)

    def _heard(self, broker: str) -> bool:
        packet = self.world.brokers[broker].retained.get(self.state_topic)
        if packet is None:
            return False
        state = decode(packet[1], ConnectorState)
        return state.online and state.upstream == "up"

    def _look(self) -> None:
        self.later(TICK_S, self._look)
        broker, says_up, answers = self.broker, self.says_up, self._cloud_answers()
        carries = broker.linked and not broker.mute_up and not broker.mute_down
        tells = _works(self.ends[Side.SITE].connection)
        known = self.ends[Side.CLOUD].connection
        in_vain = says_up and not carries and tells and any(self._used_by())
        well = carries and answers and tells and _works(known)
        is_down = broker.retained.get(broker.notice_topic, ("", b"0", True))[1] != CONNECTED
        self._bound(KNOWN_S, '"up", though the bridge says "0"', says_up and tells and is_down)
        self._bound(KNOWN_S, '"up" without a session of its own', says_up and tells and not known.accepted)
        self._bound(FALSE_UP_S, '"up", though nothing is carried', in_vain and answers, broker.bridge_since)
        self._bound(UNANSWERED_S, '"up", though nobody answers', in_vain, broker.bridge_since)
        well_s = FALSE_DOWN_S + (limits.BRIDGE_PAROLE_S if self.watch.trouble == CONVICTED else 0.0)
        self._bound(well_s, '"down", though all is well', well and not says_up, key="down")
        differs = self.watch.upstream_up != self._heard(CLOUD_BROKER)
        self._bound(KNOWN_S, "something else to the cloud", differs and tells and _works(known))
        self._believes_too_early(says_up and tells)

    def _bound(self, bound_s: float, what: str, holds: bool, believed_at: float = -inf, key: str = "") -> None:
        """Complain of what has held for too long. Each new session of the bridge is believed anew."""
        now = self.world.now
        if not holds:
            self._since.pop(key or what, None)
        elif now - max(self._since.setdefault(key or what, now), believed_at) > bound_s:
            self.world.checks.complain(self.name, f"says {what} ({self.watch.trouble})")

    def _believes_too_early(self, says_up: bool) -> None:
        """Complain of a belief in a bridge that was lost together with the own session, and is not back as that is."""
        now = self.world.now
        if self.broker.linked:
            self._since.pop("lost", None)
            return
        lost_at = self._since.setdefault("lost", now)
        opened_s = now - self._cloud_opened_at
        if says_up and lost_at < self._cloud_lost_at and TICK_S < opened_s < limits.BRIDGE_DOUBT_S - TICK_S:
            self.world.checks.complain(self.name, 'says "up" of a bridge that has not shown that it is back')

    def _cloud_answers(self) -> bool:
        service = self.world.cloud
        return service.up and not service.disk.full and _works(service.end.connection)

    def _used_by(self) -> Iterable[bool]:
        for hub in self.world.hubs.values():
            if hub.up and hub.using is not None and hub.using.connection.broker is self.broker:
                yield _works(hub.using.connection) and not hub.disk.full


def _works(connection: Connection) -> bool:
    return (
        connection.accepted
        and connection.client_open
        and connection.server_open
        and connection.world.whole(*connection.hosts)
    )


def bridged_site(
    *,
    hubs: int,
    connectors: int,
    seed: int,
    folder: Path | None = None,
    interval_s: float = 10.0,
    late_states: float = 0.0,
    connector_type: type[WatchingConnector] = WatchingConnector,
) -> World:
    """Return a world like `world.site` does, whose site brokers bridge by themselves."""
    world = site(
        hubs=hubs,
        connectors=connectors,
        seed=seed,
        folder=folder,
        interval_s=interval_s,
        late_states=late_states,
        broker_type=BridgingBroker,
        connector_type=connector_type,
    )
    world.drain_s = DRAIN_S + limits.BRIDGE_PAROLE_S  # The last fault may have convicted a bridge.
    return world
