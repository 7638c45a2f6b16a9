"""A world of sites, brokers, a WAN and a cloud on a clock that jumps: real machines, real codec, one seed, one history.

    world = site(hubs=1, connectors=1, seed=1)
    world.run(10 * MINUTE_S)
    world.kill("connector-1")
    world.run(299)
    assert world.hub(1).path == through("connector-1")

Names: hub-1 …, connector-1 … with its site broker broker-1 …, cloud-broker, cloud. Each is a host of its own, and every
pair of hosts has a link that can be cut. The checks of `world_checks` run at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from math import inf
from pathlib import Path
from random import Random
from typing import Any

from broker.messages import ConnectorState, decode
from broker.topics import Topic
from config import limits
from tests.world_checks import Checks
from tests.world_network import LATENCY_MIN_S, LATENCY_SPREAD_S, Broker, Connection, Process, Publish
from tests.world_outbox import Box, MemoryBox, file_box
from tests.world_roles import CLOUD_BROKER, CloudProcess, ConnectorProcess, HubProcess

MINUTE_S, HOUR_S, DAY_S = 60.0, 3600.0, 86_400.0
START_MS = 1_763_800_000_000  # The world's wall clock at its beginning.
TICK_S = 5.0
STEPS_PER_S_MAX = 50_000  # More, and the world does not advance any more.
DRAIN_S = 15 * MINUTE_S
"""After all is mended everything is drained and every hub is back on a connector's path. Backoffs end within a minute each
(connector, hub), an attempt under way takes 10 s, the hub's look at its connector comes within 75 s, stability and jitter
take 120 s, a retransmission time-out another 60 s; and once more if a late attempt has disturbed the first."""


def through(connector_id: str) -> str:
    """Return the path through a connector."""
    return connector_id


class World:
    """The clock, the hosts and what is between them. `late_states` is how often a state comes twice, and late."""

    def __init__(self, seed: int, *, late_states: float = 0.0, remember_bodies: bool = True):
        self.seed, self.now = seed, 0.0
        self.random = Random(seed)
        self.draw = self.random.random
        self.late_states = late_states
        self.drain_s = DRAIN_S
        self.checks = Checks(self, remember_bodies)
        self.processes: dict[str, Process] = {}
        self.hubs: dict[str, HubProcess] = {}
        self.connectors: dict[str, ConnectorProcess] = {}
        self.brokers: dict[str, Broker] = {}
        self.connections: list[Connection] = []
        self.cuts: set[tuple[str, str]] = set()
        self.dark: set[str] = set()  # Hosts without power: they do not even refuse.
        self.cloud_reachable_since: dict[str, float | None] = {}
        self.steps = 0
        self.numbers = count()
        self.agenda: list[tuple[float, int, Callable[[Any, Any], None], Any, Any]] = []
        self.at(TICK_S, self._tick)

    # --- Time ----------------------------------------------------------------------------------------------------------

    def at(self, when: float, call: Callable[..., None], *args: Any) -> None:
        heappush(self.agenda, (max(when, self.now), next(self.numbers), _spread, call, args))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until, agenda = self.now + seconds, self.agenda
        counted_at, steps = self.now, 0
        while agenda and agenda[0][0] <= until:
            self.now, _, call, one, other = heappop(agenda)
            steps += 1
            if steps == STEPS_PER_S_MAX:
                if self.now - counted_at < 1.0:
                    raise AssertionError(f"seed {self.seed}, {self.now:.3f} s: livelock at {call}, {one}")
                self.steps += steps
                counted_at, steps = self.now, 0
            call(one, other)
        self.steps += steps
        self.now = until

    def run_until(self, condition: Callable[[], bool], within_s: float) -> None:
        """Let time pass until something holds; complain if it takes too long."""
        until = self.now + within_s
        while not condition():
            if self.now >= until:
                raise AssertionError(f"seed {self.seed}, {self.now:.3f} s: not within {within_s:g} s")
            self.run(1.0)

    def _tick(self) -> None:
        self.checks.tick()
        self.at(self.now + TICK_S, self._tick)
        if len(self.connections) > 64:
            self.connections = [one for one in self.connections if one.client_open or one.server_open]

    def wall_ms(self) -> int:
        return START_MS + int(self.now * 1000)

    def latency_s(self) -> float:
        return LATENCY_MIN_S + LATENCY_SPREAD_S * self.draw()

    # --- Who is there --------------------------------------------------------------------------------------------------

    def add(self, process: Process) -> None:
        self.processes[process.name] = process
        match process:
            case HubProcess():
                self.hubs[process.name] = process
            case ConnectorProcess():
                self.connectors[process.name] = process
            case Broker():
                self.brokers[process.name] = process

    def hub(self, number: int) -> HubProcess:
        return self.hubs[f"hub-{number}"]

    @property
    def cloud(self) -> CloudProcess:
        process = self.processes["cloud"]
        assert isinstance(process, CloudProcess)
        return process

    def site_brokers_heard_by(self, hub: HubProcess) -> list[str]:
        """Return the site brokers whose connectors answer a search."""
        return [
            connector.site_broker
            for connector in self.connectors.values()
            if connector.up and self.whole(hub.name, connector.site_broker)
        ]

    # --- Faults --------------------------------------------------------------------------------------------------------

    def reaches(self, source: str, target: str) -> bool:
        return (source, target) not in self.cuts and source not in self.dark and target not in self.dark

    def whole(self, one: str, other: str) -> bool:
        return self.reaches(one, other) and self.reaches(other, one)

    def kill(self, name: str, *, silently: bool = False) -> None:
        """Kill a process; `silently`, as a power cut does: nobody is told."""
        process = self.processes[name]
        if not process.up:
            return
        process.stop()
        self._note_pings()
        self._drop_ends(name, tell=not silently)
        if silently:
            self.dark.add(name)
            self._watch({name})
        self._reachability()

    def start(self, name: str) -> None:
        process = self.processes[name]
        if process.up:
            return
        if name in self.dark:
            self.dark.discard(name)
            for connection in self.connections:
                if name in connection.hosts:  # The next ping, of either side, meets a stranger.
                    self.at(self.now + self.random.uniform(0.0, limits.KEEP_ALIVE_S), connection.reset)
        process.start()
        self._reachability()

    def restart(self, name: str) -> None:
        self.kill(name)
        self.start(name)

    def cut(self, one: str, other: str, *, one_way: bool = False) -> None:
        """Let nothing pass from `one` to `other`, and back; packets vanish without a word."""
        self._note_pings()
        self.cuts |= {(one, other)} if one_way else {(one, other), (other, one)}
        self._watch({one, other}, both=True)
        self._reachability()

    def mend(self, one: str, other: str) -> None:
        self.cuts -= {(one, other), (other, one)}
        for connection in self.connections:
            if set(connection.hosts) == {one, other}:
                connection.mended()
        self._reachability()

    def cut_wan(self) -> None:
        for name in self.wan_ends():
            self.cut(name, CLOUD_BROKER)

    def wan_ends(self) -> list[str]:
        """Return who speaks with the cloud broker from the sites."""
        bridging = [name for name, broker in self.brokers.items() if broker.bridges]
        return [*self.connectors, *self.hubs, *bridging]

    def refuse(self, name: str, refusing: bool = True) -> None:
        """Let a broker refuse further connections, or take them again."""
        self.brokers[name].refusing = refusing
        self._reachability()

    def mend_all(self) -> None:
        """Mend every link, empty every disk, start every process."""
        for one, other in sorted(self.cuts):
            self.mend(one, other)
        self.cloud.disk.full = False
        for hub in self.hubs.values():
            hub.disk.full = False
        for name, broker in self.brokers.items():
            self.refuse(name, False)
            broker.mended()
        for name in self.processes:
            self.start(name)

    def settle(self) -> None:
        """Mend all; then everything must be drained, and every hub on a connector's path, within the bound. Then audit."""
        self.mend_all()
        begun_at = self.now
        self.run_until(
            lambda: all(hub.sending and hub.path in self.connectors for hub in self.hubs.values()), self.drain_s
        )
        marks = {name: hub.points_made for name, hub in self.hubs.items()}
        self.run_until(lambda: all(self._has(name, mark) for name, mark in marks.items()), self.drain_s)
        self.run(max(0.0, self.drain_s - (self.now - begun_at)))
        for hub in self.hubs.values():
            if not (hub.sending and hub.path in self.connectors):
                self.checks.complain(hub.name, "did not stay on its connector's path")
            hub.interval_s = inf
        self.run_until(lambda: all(hub.unacknowledged == 0 for hub in self.hubs.values()), 3 * MINUTE_S)
        self.checks.audit()

    def close(self) -> None:
        """End it: let go of the files."""
        for hub in self.hubs.values():
            hub.stop()

    def _has(self, hub_id: str, mark: int) -> bool:
        ledger = self.checks.ledger(hub_id)
        return not any(
            ledger.stored.missing(first, min(last, mark)) for first, last in ledger.recorded if first <= mark
        ) or (ledger.points_in_gaps > 0)

    def state_published(self, broker: Broker, packet: Publish) -> None:
        """Maybe let a state come once more, late, to those who listen then."""
        if self.late_states and self.random.random() < self.late_states:
            self.at(self.now + self.random.uniform(0.0, 2 * MINUTE_S), self._repeat, broker, broker.life, packet)

    def _repeat(self, broker: Broker, life: int, packet: Publish) -> None:
        topic, payload, _ = packet
        retained = broker.retained.get(topic)
        if broker.life != life or retained is None or packet == retained:
            return
        if Topic.parse(topic).owner == "connector":
            late, newest = decode(payload, ConnectorState), decode(retained[1], ConnectorState)
            if (late.session, not late.online) >= (newest.session, not newest.online):
                return  # Within a session, only the will is told from a birth: two births can't be put in order.
        broker.spread(packet)

    def _drop_ends(self, name: str, *, tell: bool) -> None:
        for connection in self.connections:
            if connection.owner.name == name:
                if tell:
                    connection.vanish()
                connection.client_open = False
            elif connection.broker.name == name:
                if tell:
                    connection.end_from_server()
                connection.server_open = False

    def _note_pings(self) -> None:
        for connection in self.connections:
            connection.note_pings()

    def _watch(self, hosts: set[str], *, both: bool = False) -> None:
        for connection in self.connections:
            if hosts <= set(connection.hosts) if both else hosts & set(connection.hosts):
                connection.watch()

    def _reachability(self) -> None:
        """Note since when each hub could reach the cloud's broker."""
        for name in self.hubs:
            broker = self.brokers[CLOUD_BROKER]
            if broker.refusing or not broker.up or not self.whole(name, CLOUD_BROKER):
                self.cloud_reachable_since[name] = None
            elif self.cloud_reachable_since.get(name) is None:
                self.cloud_reachable_since[name] = self.now


def _spread(call: Callable[..., None], args: tuple[Any, ...]) -> None:
    call(*args)


def site(
    *,
    hubs: int,
    connectors: int,
    seed: int,
    folder: Path | None = None,
    interval_s: float = 10.0,
    grouped: int = 1,
    late_states: float = 0.0,
    outbox_max_bytes: int = limits.OUTBOX_MAX_BYTES,
    hub_type: type[HubProcess] = HubProcess,
    connector_type: type[ConnectorProcess] = ConnectorProcess,
    broker_type: type[Broker] = Broker,
    cloud_type: type[CloudProcess] = CloudProcess,
    box_type: type[MemoryBox] = MemoryBox,
    remember_bodies: bool = True,
) -> World:
    """Return a world with one site, all started: with outboxes in files of `folder`, or in memory without one.

    Each hub makes a point every `interval_s`, and writes `grouped` of them at once.
    """
    world = World(seed, late_states=late_states, remember_bodies=remember_bodies)
    kept: dict[str, MemoryBox] = {}

    def open_box(hub: HubProcess) -> Box:
        epoch = f"{int(hub.name.rpartition('-')[2]):016x}"
        if folder is None:
            return kept.setdefault(hub.name, box_type(epoch))
        return file_box(folder / f"{hub.name}.db", epoch, hub.wall_ms, outbox_max_bytes)

    world.add(Broker(world, CLOUD_BROKER))
    world.add(cloud_type(world, "cloud"))
    for number in range(1, connectors + 1):
        world.add(broker_type(world, f"broker-{number}"))
        world.add(connector_type(world, f"connector-{number}", f"broker-{number}"))
    for number in range(1, hubs + 1):
        world.add(hub_type(world, f"hub-{number}", open_box, interval_s, grouped))
    for name in world.processes:
        world.start(name)
    return world
