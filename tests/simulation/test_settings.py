"""Settings on their way: both machines over a channel that loses, delays, doubles and reorders, and restarts at every step.

The world knows what nobody in it does: which settings cut a hub off, keep it from starting, or kill it. Whatever happens, a
hub comes back from them, the cloud learns how it ended, and no version ever names two contents.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, Engine, text

from broker.control import DesiredSettings, Reported, SettingsReport
from broker.machine import Wakeup
from cloud import desired, desired_groups, desired_records, fleet_schema
from cloud.desired import Desired
from cloud.desired_scopes import Scope
from cloud.hub_key import HubKey
from cloud.schema import SCHEMA, writer_engine
from cloud.states import add_hub
from hub import desired as here
from hub.desired import Deployment, Document, Kept
from hub.desired_file import decode

assert fleet_schema.SETTINGS_OF_HUBS.metadata is SCHEMA

TRIAL_S = 300.0
EPOCH = "0123456789abcdef"
CONTINUOUS, POLLING = ("berlin", "pc-1"), ("berlin", "pc-2")
HUBS = (CONTINUOUS, POLLING, ("paris", "pc-3"))
GOOD: tuple[dict[str, Any], ...] = (
    {},
    {"log": {"level": "debug"}},
    {"log": {"level": "error"}, "failover": {"outage_s": 120.0}},
    {"failback": {"stable_s": 5.0}},
    {"log": {"level": None}},
)
CUT_OFF: dict[str, Any] = {"cloud": {"endpoints": ["nowhere.invalid:1"]}, "connector": {"discovery": False}}
DEADLY: dict[str, Any] = {"mode": {"poll_min": 13}}
UNSTARTABLE: dict[str, Any] = {"mode": {"poll_min": 66}}
INVALID: dict[str, Any] = {"sensors": {"no-such": {"enabled": True}}}
BAD = (CUT_OFF, DEADLY, UNSTARTABLE, INVALID)


def has(content: dict[str, Any], marks: dict[str, Any]) -> bool:
    return all(
        content.get(section, {}).get(key) == value for section, keys in marks.items() for key, value in keys.items()
    )


@dataclass
class World:
    """The clock, what is under way, and how bad the weather is."""

    random: Random
    loss: float = 0.25
    crashes: float = 0.02
    now: float = 0.0
    queue: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    number: int = 0

    def at(self, delay_s: float, act: Callable[[], None]) -> None:
        self.number += 1
        heapq.heappush(self.queue, (self.now + delay_s, self.number, act))

    def carry(self, act: Callable[[], None]) -> None:
        """Lose, double, delay and thereby reorder."""
        for _ in range(1 + (self.random.random() < 0.2)):
            if self.random.random() >= self.loss:
                self.at(self.random.choice((0.05, 0.3, 2.0, 25.0)) * self.random.random(), act)

    def crash_now(self) -> bool:
        return self.random.random() < self.crashes

    def run(self, seconds: float) -> None:
        end, steps = self.now + seconds, 0
        while self.queue and self.queue[0][0] <= end:
            self.now, _, act = heapq.heappop(self.queue)
            act()
            steps += 1
            assert steps < 200_000, "nobody ever rests"
        self.now = end


class Cloud:
    """The machine, the real records, and crashes between any two commands."""

    def __init__(self, world: World, engine: Engine):
        self.world, self.engine = world, engine
        self.hubs: dict[HubKey, Hub] = {}
        self.contents: dict[tuple[HubKey, int], str] = {}
        self.versions: dict[HubKey, int] = {}
        self.lives = 0
        with engine.begin() as connection:
            SCHEMA.create_all(connection)
            self.numbers = {key: add_hub(connection, *key) for key in HUBS}
        self.start()

    def start(self) -> None:
        self.lives += 1
        with self.engine.begin() as connection:
            records = desired_records.load(connection)
        self.machine = Desired(records, random=self.world.random, started_at=self.world.now, started_ms=10**12)
        self.up = True
        life = self.lives
        self.world.at(1.0, lambda: self.tell(desired.Connected()) if life == self.lives else None)
        for found in list(self.hubs.values()):
            self.world.at(2.0, found.say_presence)

    def crash(self) -> None:
        self.up = False
        self.lives += 1
        self.world.at(self.world.random.choice((0.5, 40.0)), self.start)

    def tell(self, event: desired.Event) -> None:
        if not self.up:
            return
        for command in self.machine.handle(event, self.world.now):
            if self.world.crash_now():
                self.crash()
                return
            self.execute(command)
        due, life = self.machine.deadline(), self.lives
        if due is not None:
            wake = lambda: self.tell(Wakeup()) if life == self.lives else None  # noqa: E731
            self.world.at(max(0.0, due - self.world.now), wake)

    def execute(self, command: desired.Command) -> None:
        match command:
            case desired.Save(key, version):
                assert version > self.versions.get(key, 0), "a version went back"
                self.versions[key] = version
                with self.engine.begin() as connection:
                    desired_records.save(connection, command, 1)
            case desired.Send(key, wanted):
                known = self.contents.setdefault((key, wanted.version), wanted.hash)
                assert known == wanted.hash, "one version names two contents"
                assert self.versions[key] >= wanted.version, "sent before it was saved"
                self.world.carry(lambda: self.hubs[key].receive(wanted))

    def write(self, work: Callable[[Connection], desired.Event | None]) -> None:
        """Commit something, and perhaps die before the machine hears of it."""
        if not self.up:
            return
        with self.engine.begin() as connection:
            event = work(connection)
        if self.world.crash_now():
            self.crash()
        elif event is not None:
            self.tell(event)

    def put(self, scope: Scope, name: str, content: dict[str, Any]) -> None:
        self.write(lambda connection: desired_records.put_document(connection, scope, name, content, "ann", 1).changed)

    def regroup(self, key: HubKey, joins: bool) -> None:
        def work(connection: Connection) -> desired.Event:
            change = desired_groups.add_to_group if joins else desired_groups.remove_from_group
            change(connection, "lab", [self.numbers[key]])
            return desired.GroupChanged(key, desired_groups.groups_of(connection, self.numbers[key]))

        self.write(work)

    def hear(self, key: HubKey, seq: int, report: SettingsReport | None) -> None:
        if not self.up:
            return

        def work(connection: Connection) -> desired.Event | None:
            said = Reported("1", "pc", "Linux", [], "continuous", settings=report)
            if desired_records.apply_reported(connection, self.numbers[key], said, EPOCH, seq, 1):
                return desired.Reported(key, report)
            return None

        self.write(work)
        self.world.carry(lambda: self.hubs[key].acknowledge(seq))

    def standing(self, key: HubKey) -> desired_records.Standing:
        with self.engine.begin() as connection:
            return desired_records.standing(connection, self.numbers[key])


class Hub:
    """The machine, its file, its outbox, and what its settings really do to it."""

    def __init__(self, world: World, cloud_side: Cloud, key: HubKey):
        self.world, self.cloud_side, self.key = world, cloud_side, key
        self.file = msgspec.json.encode(Kept())
        self.outbox: dict[int, SettingsReport | None] = {}
        self.last_seq = 0
        self.lives = 0
        self.network = True
        self.roaming = False
        self.in_use: dict[str, Any] | None = None
        self.suffered_s = 0.0
        self.checked_at = 0.0
        self.newest = 0
        self.start()
        self.retransmit()
        if key == POLLING:
            self.poll()

    # --- Life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.machine = Deployment(enabled=True, trial_s=TRIAL_S)
        self.tell(here.Started(decode(self.file)), fresh=True)
        if self.in_use is None:
            self.begin()

    def begin(self) -> None:
        """Start the agent with what is in force, or give that up."""
        life = self.lives
        self.leave()
        while has(self.machine.in_force.settings, UNSTARTABLE):
            self.tell(here.StartFailed("no"), fresh=True)
            if life != self.lives:
                return
        content = self.machine.in_force.settings

        def work() -> None:
            if life != self.lives or self.in_use is not None:
                return
            if content != self.machine.in_force.settings:
                self.begin()
                return
            self.count()
            self.in_use = content
            self.tell(here.RoamingChanged(self.roaming))
            self.tell(here.Running())
            if life == self.lives and self.machine.standing is None:
                self.append(None)
            self.say_presence()
            if has(content, DEADLY):
                self.world.at(0.5, lambda: self.crash() if life == self.lives else None)

        self.world.at(1.5, work)

    def leave(self) -> None:
        self.count()
        self.in_use = None
        self.say_presence()

    def crash(self) -> None:
        self.leave()
        self.lives += 1
        life = self.lives
        self.world.at(self.world.random.choice((1.0, 10.0)), lambda: self.start() if life == self.lives else None)

    def count(self) -> None:
        """Add up how long bad settings have been in use, so that nobody can be stuck with them."""
        if self.in_use is not None and any(has(self.in_use, bad) for bad in BAD):
            self.suffered_s += self.world.now - self.checked_at
            assert self.suffered_s <= TRIAL_S + 1.0, "stuck with bad settings"
        self.checked_at = self.world.now

    @property
    def online(self) -> bool:
        return self.network and self.in_use is not None and not has(self.in_use, CUT_OFF)

    def say_presence(self) -> None:
        if self.key != POLLING:
            seen = desired.Reachable(self.key) if self.online and not self.roaming else desired.Unreachable(self.key)
            self.cloud_side.tell(seen)

    # --- The machine --------------------------------------------------------------------------------------------------

    def tell(self, event: here.Event, *, fresh: bool = False) -> None:
        life = self.lives
        if not fresh and self.in_use is None and not isinstance(event, Wakeup | here.Checked):
            return
        for command in self.machine.handle(event, self.world.now):
            if self.world.crash_now():
                self.crash()
                return
            self.execute(command)
            if life != self.lives:
                return
        standing = self.machine.standing
        version = 0 if standing is None else standing.version
        assert version >= self.newest, "the hub went back to an older version"
        self.newest = version
        due = self.machine.deadline()
        if due is not None:
            wake = lambda: self.tell(Wakeup()) if life == self.lives else None  # noqa: E731
            self.world.at(max(0.0, due - self.world.now), wake)

    def execute(self, command: here.Command) -> None:
        match command:
            case here.Keep(kept):
                self.file = msgspec.json.encode(kept)
                self.count()
                if kept.trial is None or kept.trial.version > self.newest:
                    self.suffered_s = 0.0
            case here.Check(document):
                life, problem = self.lives, "no such sensor" if has(document.settings, INVALID) else None
                answer = here.Checked(document, problem)
                self.world.at(0.0, lambda: self.tell(answer) if life == self.lives else None)
            case here.Apply(document) | here.Revert(document):
                assert decode(self.file) == self.machine.kept, "promised before it was kept"
                assert not isinstance(command, here.Revert) or not has(document.settings, CUT_OFF), (
                    "back to bad settings"
                )
                if self.in_use is not None:
                    assert isinstance(command, here.Revert) or not self.roaming, "deployed while roaming"
                    self.begin()
            case here.Report(report):
                self.append(report)

    # --- The line -----------------------------------------------------------------------------------------------------

    def append(self, report: SettingsReport | None) -> None:
        self.last_seq += 1
        self.outbox[self.last_seq] = report
        self.send(self.last_seq)

    def send(self, seq: int) -> None:
        if self.online and seq in self.outbox:
            report = self.outbox[seq]
            self.world.carry(lambda: self.cloud_side.hear(self.key, seq, report))

    def retransmit(self) -> None:
        for seq in list(self.outbox):
            self.send(seq)
        self.world.at(5.0, self.retransmit)

    def poll(self) -> None:
        if self.online and not self.roaming:
            in_force = self.machine.in_force.hash
            self.world.carry(lambda: self.cloud_side.tell(desired.Polled(self.key, in_force)))
        self.world.at(30.0, self.poll)

    def receive(self, wanted: DesiredSettings) -> None:
        if self.online:
            self.tell(here.SettingsReceived(wanted))

    def acknowledge(self, seq: int) -> None:
        if self.online and seq in self.outbox:
            del self.outbox[seq]
            self.tell(here.ReportAcknowledged())

    def set_network(self, works: bool) -> None:
        self.network = works
        self.say_presence()

    def roam(self, roams: bool) -> None:
        self.roaming = roams
        self.tell(here.RoamingChanged(roams))
        self.say_presence()


def play(seed: int) -> None:
    """Half an hour of changes and faults, then an hour of calm; then everything must be as somebody has said it is."""
    world = World(Random(seed))
    engine = writer_engine(Path(":memory:"))
    try:
        side = Cloud(world, engine)
        side.hubs = {key: Hub(world, side, key) for key in HUBS}
        random = world.random
        for _ in range(random.randint(5, 30)):
            scope, name = random.choice(
                (("fleet", ""), ("site", "berlin"), ("group", "lab"), ("hub", "berlin/pc-1"), ("hub", "berlin/pc-2"))
            )
            found = side.hubs[random.choice(HUBS)]
            match random.randrange(9):
                case 0 | 1 | 2 | 3:
                    side.put(scope, name, random.choice(GOOD if random.random() < 0.5 else BAD))  # type: ignore[arg-type]
                case 4:
                    side.regroup(found.key, random.random() < 0.5)
                case 5:
                    found.set_network(not found.network)
                case 6:
                    found.roam(not found.roaming)
                case 7:
                    found.crash()
                case 8:
                    side.crash()
            world.run(random.choice((0.0, 1.0, 8.0, 60.0, 400.0)))
        world.loss, world.crashes = 0.1, 0.0
        for found in side.hubs.values():
            found.set_network(True)
            found.roam(False)
        world.run(2400.0)
        for key, found in side.hubs.items():
            settle(side, found, key)
    finally:
        engine.dispose()


def settle(side: Cloud, found: Hub, key: HubKey) -> None:
    """Check that one hub's story has ended, and that what the cloud believes is true."""
    found.count()
    stands = side.standing(key)
    with side.engine.begin() as connection:
        effective = desired_records.effective(connection, side.numbers[key])
        versions = connection.execute(text("SELECT count(*) FROM settings_of_hubs")).scalar()
    assert versions == len(HUBS)
    assert found.online, "cut off"
    assert found.machine.kept.trial is None
    assert found.outbox == {}
    assert stands.report == found.machine.standing, "the cloud believes something else"
    assert stands.hash == effective.hash == side.machine.of_hub(key)[1]
    bad = any(has(effective.content, each) for each in BAD)
    if stands.report is None:
        assert effective.content == {}
    else:
        assert stands.report.hash == stands.hash, "the hub was never told, or never answered"
        assert stands.report.state in (("refused", "rolled-back") if bad else ("applied", "rolled-back"))
    if stands.in_sync:
        assert found.in_use == effective.content
        assert stands.changes == []
    else:
        assert stands.report is not None
        assert stands.report.reason


@pytest.mark.parametrize("seed", range(60))
def test_every_hub_gets_its_settings_or_says_why_not(seed: int) -> None:
    """A wrong setting for a whole fleet must cost minutes, not a journey to every machine."""
    play(seed)


def test_the_document_that_is_kept_is_the_one_that_was_sent() -> None:
    """The world compares hashes; so these must name contents."""
    assert Document().settings == {}
