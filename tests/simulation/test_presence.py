"""The presence machine against a fleet whose truth is known: delays, repetitions, disorder, losses and restarts of everything."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import pytest

from broker.machine import Wakeup
from broker.messages import ConnectorState, HubState
from cloud.hub_key import HubKey
from cloud.presence import Presence
from cloud.presence_events import (
    Clear,
    Connected,
    ConnectorSaid,
    Disconnected,
    Event,
    HeartbeatCame,
    HubSaid,
    Log,
    MessageCame,
    ModeChanged,
    Publish,
    Save,
)
from cloud.presence_facts import Policy, Record, Status
from config.settings import CloudPresence

T0 = 1_763_798_400_000
SITE = "berlin"
OUTAGE_S = 300.0
CHAOS_S, CALM_S = 2.5 * 3600.0, 3000.0
GOOD = ("online", "roaming", "unreachable-online")


@dataclass
class Hub:
    """One machine. A copy of it has the same name and another epoch."""

    name: str
    epoch: str
    home: str
    skew_s: float
    polls: bool = False
    running: bool = False
    where: str | None = None
    generation: int = 0
    session: int = 0
    first: bool = False
    mode: str = "continuous"
    out_since: float | None = None
    back_since: float | None = None
    good_since: float = 0.0
    ended: str | None = None
    told: bool = False
    heard: bool = False
    undo: Callable[[], None] | None = None


@dataclass
class Site:
    """A connector and the broker that it bridges, with what that broker retains."""

    name: str
    alive: bool = False
    broker: bool = True
    session: int = 0
    generation: int = 0
    cloud_generation: int = 0
    retained: dict[str, HubState] = field(default_factory=dict)
    undo: Callable[[], None] | None = None


class Fleet:
    """Everything, on a clock that jumps."""

    def __init__(self, seed: int):
        self.random = Random(seed)
        self.now = 0.0
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.sites = {name: Site(name) for name in ("c-1", "c-2")}
        homes = ("c-1", "c-1", "c-2", "c-2", "c-1")
        self.hubs = [
            Hub(f"pc-{n}", f"{n:016x}", home, self.random.uniform(-20, 1.5), polls=n == 4)
            for n, home in enumerate(homes)
        ]
        self.copy = Hub("pc-0", "f" * 16, "c-1", self.random.uniform(-20, 1.5))
        self.broker_up, self.generation = True, 1
        self.retained_hubs: dict[str, HubState] = {}
        self.retained_connectors: dict[str, ConnectorState] = {}
        self.saved: dict[HubKey, Record] = {}
        self.log: list[tuple[HubKey, str, str, str | None]] = []
        self.published: dict[HubKey, Status] = {}
        self.link = 0
        self.connected = False
        self.copied_at = float("-inf")
        self.machine = self.start_cloud()

    # --- Time -------------------------------------------------------------------------------------------------------

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.queue, (self.now + delay_s, self.count, action))

    def run(self, seconds: float) -> None:
        end, turns = self.now + seconds, 0
        while True:
            deadline = self.machine.deadline()
            at = min(self.queue[0][0] if self.queue else end, end)
            if deadline is not None and max(deadline, self.now) <= at:
                turns += 1
                assert turns < 1_000_000, "livelock"
                self.now = max(self.now, deadline)
                self.feed(Wakeup())
            elif self.queue and self.queue[0][0] <= end:
                self.now, _, action = heapq.heappop(self.queue)
                action()
            else:
                self.now = end
                return

    # --- The cloud --------------------------------------------------------------------------------------------------

    def start_cloud(self) -> Presence:
        return Presence(
            CloudPresence(), started_at=self.now, started_ms=self.ms(), known=self.saved.values(), outage_s=OUTAGE_S
        )

    def ms(self) -> int:
        return T0 + round(self.now * 1000)

    def feed(self, event: Event) -> None:
        commands = self.machine.handle(event, self.now)
        if self.random.random() < 0.003 and not isinstance(event, Disconnected):
            self.restart_cloud()  # Killed before anything of this step was done.
            return
        for command in commands:
            match command:
                case Save(record):
                    self.saved[record.key] = record
                case Log(entry):
                    self.log.append((entry.key, entry.connection, entry.reason, entry.via))
                    self.check(entry.key, entry.connection)
                case Publish(key, status):
                    assert self.connected
                    self.published[key] = status
                case Clear(key):
                    self.published.pop(key, None)

    def restart_cloud(self) -> None:
        self.connected, self.link = False, self.link + 1
        self.machine = self.start_cloud()
        self.later(self.random.uniform(0, 400 if self.random.random() < 0.2 else 5), self.connect)

    def connect(self) -> None:
        if self.connected or not self.broker_up:
            return
        self.connected, self.link = True, self.link + 1
        self.feed(Connected())
        waiting: list[Callable[[], Event]] = [
            lambda name=name, state=state: HubSaid(SITE, name, state, self.ms(), True)  # type: ignore[misc]
            for name, state in self.retained_hubs.items()
        ]
        waiting += [
            lambda name=name, state=state: ConnectorSaid(SITE, name, state, self.ms(), True)  # type: ignore[misc]
            for name, state in self.retained_connectors.items()
        ]
        for event in waiting:
            self.deliver(event)
        policy = Policy(heartbeat="unreachable", offline_after_min=30)
        self.later(4, lambda: self.feed(ModeChanged((SITE, "pc-4"), policy)))

    def deliver(self, event: Callable[[], Event], loss: float = 0.0) -> None:
        """Let something arrive once or twice, soon or a little later, unless our session ends before."""
        if not self.connected or self.random.random() < loss:
            return
        link = self.link
        for _ in range(2 if self.random.random() < 0.1 else 1):
            delay_s = self.random.choice((0.0, 0.05, self.random.uniform(0, 3)))
            self.later(delay_s, lambda: self.feed(event()) if self.link == link and self.connected else None)

    def restart_broker(self, down_s: float) -> None:
        self.broker_up, self.generation = False, self.generation + 1
        self.shake(*self.sites.values())
        self.retained_hubs.clear()
        self.retained_connectors.clear()
        self.published.clear()
        if self.connected:
            self.connected, self.link = False, self.link + 1
            self.feed(Disconnected())

        def up() -> None:
            self.broker_up = True
            self.later(self.random.uniform(0, 10), self.connect)

        self.later(down_s, up)

    # --- Connectors and sites ---------------------------------------------------------------------------------------

    def say_connector(self, site: Site, state: ConnectorState) -> None:
        self.retained_connectors[site.name] = state
        self.deliver(lambda: ConnectorSaid(SITE, site.name, state, self.ms()))

    def start_connector(self, site: Site) -> None:
        if site.undo is not None:
            site.undo()
        site.alive, site.session, site.cloud_generation = True, site.session + 1, self.generation
        self.announce(site)

    def announce(self, site: Site) -> None:
        state = ConnectorState(True, site.session, "up", ts=self.ms(), site="up" if site.broker else "down")
        self.say_connector(site, state)
        for name, kept in list(site.retained.items()):
            self.at_cloud(name, kept)

    def shake(self, *sites: Site) -> None:
        """Note that the hubs of some sites are not reachable at this moment."""
        for hub in (*self.hubs, self.copy):
            if any(hub.home == site.name for site in sites):
                hub.good_since = self.now

    def kill_connector(self, site: Site) -> None:
        self.shake(site)
        site.alive = False
        state, generation = ConnectorState(False, site.session), self.generation
        self.will(site, lambda: self.say_connector(site, state) if self.generation == generation else None)

    def kill_site_broker(self, site: Site) -> None:
        self.shake(site)
        site.broker, site.generation = False, site.generation + 1
        site.retained.clear()
        if self.bridges(site, broker=False):
            self.announce(site)

        def up() -> None:
            site.broker = True
            if self.bridges(site):
                self.announce(site)

        self.later(self.random.choice((2.0, 60.0, 900.0)), up)

    def bridges(self, site: Site, *, broker: bool = True) -> bool:
        reached = site.alive and self.broker_up and site.cloud_generation == self.generation
        return reached and (site.broker or not broker)

    def will(self, owner: Hub | Site, publish: Callable[[], None]) -> None:
        """Publish a will when the broker notices, or when somebody takes the session's place."""
        done = False

        def once() -> None:
            nonlocal done
            if not done:
                done = True
                publish()

        owner.undo = once
        self.later(self.random.uniform(0, 30), once)

    # --- Hubs -------------------------------------------------------------------------------------------------------

    def at_cloud(self, name: str, state: HubState) -> None:
        self.retained_hubs[name] = state
        self.deliver(lambda: HubSaid(SITE, name, state, self.ms()))

    def say(self, hub: Hub, state: HubState, where: str) -> bool:
        """Publish a state at the broker where a hub is, and tell whether the cloud's broker has it."""
        if where == "direct":
            self.at_cloud(hub.name, state)
            return True
        site = self.sites[where]
        site.retained[hub.name] = state
        if self.bridges(site):
            self.at_cloud(hub.name, state)
        return self.bridges(site)

    def join(self, hub: Hub, where: str) -> None:
        if hub.undo is not None:
            hub.undo()
        hub.where, hub.session, hub.out_since, hub.back_since = where, hub.session + 1, None, None
        hub.generation = self.generation if where == "direct" else self.sites[where].generation
        reason, hub.first = ("started" if hub.first else None), False
        hub.heard = self.say(hub, self.birth(hub, reason), where) or hub.heard

    def birth(self, hub: Hub, reason: str | None = None) -> HubState:
        ts, mode = self.ms() + round(hub.skew_s * 1000), "polling" if hub.polls else hub.mode
        return HubState(True, hub.epoch, hub.session, hub.where, mode, "1.0", ts, reason, hub.name)  # type: ignore[arg-type]

    def end(self, hub: Hub, how: str) -> None:
        hub.running, hub.ended, hub.told = False, how, False
        where, hub.where = hub.where, None
        if where is None:
            return
        ts = self.ms() + round(hub.skew_s * 1000)
        if how == "stopped":
            hub.told = self.say(hub, HubState(False, hub.epoch, hub.session, ts=ts, reason="stopped"), where)
            return
        state, generation = HubState(False, hub.epoch, hub.session), hub.generation
        current = (lambda: self.generation) if where == "direct" else (lambda: self.sites[where].generation)
        self.will(hub, lambda: self.say(hub, state, where) if current() == generation else None)  # type: ignore[func-returns-value]

    def tick(self, hub: Hub) -> None:
        self.later(self.random.uniform(3, 7), lambda: self.tick(hub))
        if not hub.running:
            return
        if hub is self.copy:
            self.copied_at = self.now
        home = self.sites[hub.home]
        up, generation = (self.broker_up, self.generation) if hub.where == "direct" else (home.broker, home.generation)
        if not up or hub.generation != generation:
            hub.where = None
        speaks = hub.where == "direct" or (hub.where is not None and self.bridges(home))
        if not speaks:
            hub.out_since = self.now if hub.out_since is None else hub.out_since
            hub.good_since = self.now
        if hub.where is None and home.broker:
            outage = hub.out_since
            self.join(hub, hub.home)
            hub.out_since = outage
        elif (
            not speaks and self.broker_up and self.now - (hub.out_since or 0.0) >= OUTAGE_S + self.random.uniform(0, 4)
        ):
            self.join(hub, "direct")
        elif hub.where == "direct" and self.bridges(home):
            hub.back_since = self.now if hub.back_since is None else hub.back_since
            if self.now - hub.back_since > 120:
                self.join(hub, hub.home)
        elif speaks:
            hub.out_since = None
            self.talk(hub)

    def talk(self, hub: Hub) -> None:
        key, sent = (SITE, hub.name), self.ms() + round(hub.skew_s * 1000)
        if hub.polls and self.random.random() < 0.02:
            self.deliver(lambda: HeartbeatCame(key, hub.epoch, hub.session, sent, self.ms()))
        elif not hub.polls and self.random.random() < 0.3:
            self.deliver(lambda: MessageCame(key, hub.epoch, sent, self.ms(), "readings"), loss=0.2)

    # --- Chaos ------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        self.connect()
        for site in self.sites.values():
            self.start_connector(site)
            self.watch(site)
        for hub in (*self.hubs, self.copy):
            self.tick(hub)
        for hub in self.hubs:
            self.start(hub)

    def start(self, hub: Hub) -> None:
        hub.running, hub.first, hub.heard = True, True, False
        hub.out_since, hub.good_since = None, self.now

    def watch(self, site: Site) -> None:
        """Let a connector come back to a broker that was restarted."""
        self.later(self.random.uniform(1, 30), lambda: self.watch(site))
        if site.alive and self.broker_up and site.cloud_generation != self.generation:
            self.start_connector(site)

    def disturb(self) -> None:
        site, hub = self.random.choice(list(self.sites.values())), self.random.choice(self.hubs)
        match self.random.randrange(11):
            case 0 | 1:
                self.start_connector(site) if not site.alive else self.kill_connector(site)
            case 2 if site.broker:
                self.kill_site_broker(site)
            case 3:
                self.restart_cloud()
            case 4 if self.broker_up:
                self.restart_broker(self.random.choice((1.0, 30.0, 600.0)))
            case 5 | 6 if hub.running:
                self.end(hub, self.random.choice(("killed", "stopped")))
            case 7 if self.random.random() < 0.5:
                self.end(self.copy, "killed") if self.copy.running else self.start(self.copy)
            case 8 if hub.running and hub.where is not None and not hub.polls:
                hub.mode = "roaming" if hub.mode == "continuous" else "continuous"
                self.say(hub, self.birth(hub), hub.where)
            case _ if not hub.running:
                self.start(hub)

    # --- Judging ----------------------------------------------------------------------------------------------------

    def check(self, key: HubKey, connection: str) -> None:
        """Nobody who was reachable all the time is called lost: not for an outage of ours, nor for disorder on the way."""
        if connection not in ("offline", "path-down"):
            return
        if key[1] == self.copy.name and self.now - self.copied_at < 700.0:
            return  # While two machines take turns, the end of the one that spoke last is believed for a moment.
        here = [hub for hub in self.hubs if hub.name == key[1] and hub.running and hub.where is not None]
        reachable_s = max((self.now - hub.good_since for hub in here), default=0.0)
        assert reachable_s < 400.0, f"{key} called {connection}, reachable since {reachable_s} s"

    def truth(self, hub: Hub) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return which connections and reasons are true of a hub, long after the last change."""
        if hub.name == self.copy.name and hub is not self.copy and self.copy.session:
            if hub.running and self.copy.running:
                return ("online", "roaming"), ("rejected: duplicate identity",)
            if self.copy.running:
                return self.truth(self.copy)
            if not hub.running:  # Which of the two spoke last is a matter of seconds.
                return ("offline", "roaming"), ("lost contact", "stopped cleanly")
        if not hub.running:
            reasons = ("stopped cleanly",) if hub.told else ("lost contact", "stopped cleanly")
            if hub.polls:
                return ("unreachable-offline",), ("stopped cleanly",) if hub.told else (
                    "heartbeat missed",
                    "stopped cleanly",
                )
            return ("offline", "roaming"), reasons if hub.ended == "stopped" or not hub.heard else ("lost contact",)
        connection = "unreachable-online" if hub.polls else "roaming" if hub.mode == "roaming" else "online"
        return (connection,), ("started", "connected")

    def judge(self) -> None:
        for hub in self.hubs:
            key = (SITE, hub.name)
            status = self.machine.status(key)
            assert status is not None
            connections, reasons = self.truth(hub)
            assert status.connection in connections, (hub, status)
            assert status.reason in reasons, (hub, status)
            told = self.published[key]
            assert (told.connection, told.reason, told.via) == (status.connection, status.reason, status.via)
            lines = [line[1:] for line in self.log if line[0] == key]
            assert lines[-1] == (status.connection, status.reason, status.via)
            for before, after in pairwise(lines):
                assert before != after or after[1] == "started", "told twice"


def scenario(seed: int) -> Iterator[Fleet]:
    """Let chaos rule, then calm, several times."""
    fleet = Fleet(seed)
    fleet.begin()
    fleet.run(60)
    for _ in range(2):
        end = fleet.now + CHAOS_S
        while fleet.now < end:
            fleet.run(fleet.random.expovariate(1 / 240))
            fleet.disturb()
        fleet.run(1000)
        for site in fleet.sites.values():
            if not site.alive and fleet.random.random() < 0.5:
                fleet.start_connector(site)
        fleet.run(CALM_S)
        yield fleet


@pytest.mark.parametrize("seed", range(24))
def test_status_is_the_truth_when_things_have_settled(seed: int) -> None:
    """Whatever is late, repeated, in disorder or lost, and whoever is restarted when: each hub ends with its true status."""
    for fleet in scenario(seed):
        fleet.judge()
