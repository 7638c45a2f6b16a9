"""What must hold in the world after every step. The checks know only what happened in the world, never what a machine thinks.

Complaints are AssertionErrors that name the hub, the moment and the seed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from broker.messages import Ack, ConnectorState, Events
from broker.ranges import Ranges
from cloud.batch import Batch, Message, Outcome
from config import limits
from hub.courier import SeqRanges
from hub.link import Kind

if TYPE_CHECKING:
    from tests.world import World
    from tests.world_roles import Carrier, HubProcess

SWITCH_LATE_S = 5.0
"""The goal: the switch comes at most this long after the configured time, if the cloud could be reached all the while."""

REACH_LATE_S = limits.CONNECT_TIMEOUT_S + limits.BACKOFF_MAX_S + SWITCH_LATE_S
"""After the cloud has become reachable: an attempt that is under way fails, the longest wait follows, and then the switch."""

UNUSED_S = 2 * limits.BACKOFF_MAX_S
"""A good path that is only watched is used within this time, when there is no other."""

CONNECTS_PER_MINUTE, CONNECTS_PER_HOUR = 40, 300
SEARCHES_PER_MINUTE, SEARCHES_PER_HOUR = 20, 200
"""For one process. Full jitter doubles from 1 s to 60 s: in its first minute a path sees about eight rounds, later two a
minute; a round tries two site brokers and searches once, and the cloud is another path. Each stable minute begins anew."""

SESSIONS_MAX = 8
"""Open sessions of one hub: the four of the link and a few that are leaving."""


class Rate:
    """Counts what happens in a minute and in an hour, and complains of too much."""

    def __init__(self, what: str, per_minute: int, per_hour: int):
        self._what, self._per_minute, self._per_hour = what, per_minute, per_hour
        self._times: deque[float] = deque()
        self.most_per_minute = self.most_per_hour = 0

    def restart(self) -> None:
        """Forget: a new process knows nothing of the attempts of the one before."""
        self._times.clear()

    def count(self, now: float) -> str | None:
        self._times.append(now)
        while self._times[0] < now - 3600:
            self._times.popleft()
        in_minute = 0
        for at in reversed(self._times):
            if at < now - 60:
                break
            in_minute += 1
        self.most_per_minute = max(self.most_per_minute, in_minute)
        self.most_per_hour = max(self.most_per_hour, len(self._times))
        if in_minute > self._per_minute or len(self._times) > self._per_hour:
            return f"{in_minute} {self._what} in a minute, {len(self._times)} in an hour"
        return None


@dataclass(slots=True)
class Ledger:
    """What is known of one hub."""

    started_at: float
    good_until: float  # When its path through a connector was last known to be good.
    recorded: Ranges = field(default_factory=Ranges)
    stored: Ranges = field(default_factory=Ranges)
    seqs: dict[str, Ranges] = field(default_factory=dict)
    bodies: dict[tuple[str, int], int] = field(default_factory=dict)
    points_in_gaps: int = 0
    duplicates: int = 0
    via: str | None = None
    kind: Kind | None = None  # Of the path that was taken last in this life.
    current: int | None = None
    idle_since: float = 0.0
    proven: bool = False
    entitled: bool = False  # It went direct rightly, and no connector's path has carried an acknowledgement since.
    taken: set[int] = field(default_factory=set)
    never_good: bool = True
    good_since: float | None = None
    states: dict[int, dict[str, ConnectorState]] = field(default_factory=dict)
    connects: Rate = field(default_factory=lambda: Rate("connects", CONNECTS_PER_MINUTE, CONNECTS_PER_HOUR))
    searches: Rate = field(default_factory=lambda: Rate("searches", SEARCHES_PER_MINUTE, SEARCHES_PER_HOUR))
    switches: list[tuple[float, float]] = field(default_factory=list)  # When it went direct, and how late that was.

    @property
    def seqs_stored(self) -> int:
        """Return how many messages are stored."""
        return sum(seqs.count() for seqs in self.seqs.values())

    def is_good(self, session: int | None = None) -> bool:
        """Tell whether a session (or any) hears of a good connector."""
        return any(
            state.online and state.upstream == "up"
            for number, states in self.states.items()
            if session in (None, number)
            for state in states.values()
        )


class Checks:
    """All of the world's checks. `remember_bodies` also compares repeated messages, which takes memory."""

    def __init__(self, world: World, remember_bodies: bool):
        self._world, self._remember_bodies = world, remember_bodies
        self._ledgers: dict[str, Ledger] = {}

    def ledger(self, hub_id: str) -> Ledger:
        return self._ledgers[hub_id]

    def complain(self, hub_id: str, problem: str) -> None:
        raise AssertionError(f"seed {self._world.seed}, {self._world.now:.3f} s, {hub_id}: {problem}")

    # --- Data ----------------------------------------------------------------------------------------------------------

    def recorded(self, hub: HubProcess, first: int, last: int) -> None:
        self._ledgers[hub.name].recorded.add(first, last)

    def commit(self, batch: Batch) -> Outcome:
        """Be the database: what is new is stored, what is not is counted."""
        if batch.refused:
            self.complain(batch.refused[0].topic, f"sent what the contract refuses: {batch.refused[0].reason}")
        return Outcome(duplicates=sum([not self._store(message) for message in batch.messages]))

    def _store(self, message: Message) -> bool:
        hub_id, epoch, seq = message.stream.hub_id, message.stream.epoch, message.seq
        ledger = self._ledgers[hub_id]
        seqs = ledger.seqs.get(epoch)
        if seqs is None:
            seqs = ledger.seqs[epoch] = Ranges()
        fresh = seq not in seqs
        if isinstance(message.body, Events):
            if fresh:
                ledger.points_in_gaps += sum(event.points or 0 for event in message.body.events)
            numbers: tuple[int, ...] = ()
        else:
            assert isinstance(message.body, tuple)
            numbers = tuple([int(number) for block in message.body for number in block.columns["n"]])
        if self._remember_bodies and ledger.bodies.setdefault((epoch, seq), hash(numbers)) != hash(numbers):
            self.complain(hub_id, f"message {seq} has changed after it was sent")
        if not fresh:
            ledger.duplicates += 1
            return False
        seqs.add(seq, seq)
        for number in numbers:
            if number in ledger.stored:
                self.complain(hub_id, f"point {number} is stored twice, now in message {seq}")
            ledger.stored.add(number, number)
        return True

    def acknowledged(self, hub: HubProcess, ack: Ack) -> None:
        self._in_store(hub, ack.epoch, tuple(ack.ranges), "acknowledged")

    def forgotten(self, hub: HubProcess, ranges: SeqRanges) -> None:
        self._in_store(hub, hub.courier.epoch, ranges, "forgotten by its hub")

    def _in_store(self, hub: HubProcess, epoch: str, ranges: SeqRanges, what: str) -> None:
        stored = self._ledgers[hub.name].seqs.get(epoch) or Ranges()
        for first, last in ranges:
            if missing := stored.missing(first, last):
                self.complain(hub.name, f"messages {missing} were {what} but are not stored")

    # --- Paths ---------------------------------------------------------------------------------------------------------

    def hub_started(self, hub: HubProcess) -> None:
        now = self._world.now
        ledger = self._ledgers.setdefault(hub.name, Ledger(now, now))
        if ledger.is_good():
            ledger.good_until = now  # Nobody saw it end: for the hub it ends with its start.
        ledger.started_at, ledger.never_good, ledger.good_since = now, True, None
        ledger.states, ledger.taken = {}, set()
        ledger.kind = ledger.current = None
        ledger.idle_since = now
        ledger.connects.restart()
        ledger.searches.restart()
        ledger.proven = ledger.entitled = False

    def connects(self, hub: HubProcess) -> None:
        if len(hub.carriers) >= SESSIONS_MAX:
            self.complain(hub.name, f"{len(hub.carriers)} sessions at once")
        if problem := self._ledgers[hub.name].connects.count(self._world.now):
            self.complain(hub.name, problem)

    def searches(self, hub: HubProcess) -> None:
        if problem := self._ledgers[hub.name].searches.count(self._world.now):
            self.complain(hub.name, problem)

    def heard(self, hub: HubProcess, carrier: Carrier, connector_id: str, state: ConnectorState) -> None:
        """Note a connector's state, unless it is late: of an older session, or a birth after the will of its session."""
        ledger = self._ledgers[hub.name]
        states = ledger.states.setdefault(carrier.number, {})
        known = states.get(connector_id)
        if known is not None and (state.session, not state.online) < (known.session, not known.online):
            return
        was_good = ledger.is_good(carrier.number)
        states[connector_id] = state
        self._note(ledger, was_good and not ledger.is_good(carrier.number), self._world.now)

    def session_lost(self, hub: HubProcess, carrier: Carrier, alive_at: float | None) -> None:
        self._close(hub, carrier, self._world.now if alive_at is None else alive_at)

    def _close(self, hub: HubProcess, carrier: Carrier, alive_at: float) -> None:
        ledger = self._ledgers[hub.name]
        was_good = ledger.is_good(carrier.number)
        ledger.states.pop(carrier.number, None)
        self._note(ledger, was_good, alive_at)
        if ledger.current == carrier.number:
            ledger.current, ledger.idle_since = None, self._world.now

    def _note(self, ledger: Ledger, has_ended: bool, until: float) -> None:
        if has_ended:
            ledger.good_until = max(ledger.good_until, until)
        if not ledger.is_good():
            ledger.good_since = None
            return
        ledger.never_good = False
        if ledger.good_since is None:
            ledger.good_since = self._world.now

    def proven(self, hub: HubProcess, carrier: Carrier) -> None:
        ledger = self._ledgers[hub.name]
        if ledger.current == carrier.number:
            ledger.proven = True
            ledger.entitled = ledger.entitled and carrier.kind is Kind.DIRECT

    def halts(self, hub: HubProcess) -> None:
        ledger = self._ledgers[hub.name]
        ledger.idle_since = self._world.now

    def uses(self, hub: HubProcess, carrier: Carrier, via: str) -> None:
        ledger = self._ledgers[hub.name]
        if carrier.kind is Kind.DIRECT and not ledger.entitled:
            self._switched(hub, ledger)
            ledger.entitled = True
        if carrier.kind is Kind.CONNECTOR and ledger.kind is Kind.DIRECT and ledger.proven:
            self._returned(hub, ledger)
        if ledger.current != carrier.number:
            ledger.current, ledger.proven = carrier.number, False
        ledger.taken.add(carrier.number)
        ledger.kind, ledger.via = carrier.kind, via

    def _switched(self, hub: HubProcess, ledger: Ledger) -> None:
        now = self._world.now
        good_until = now if ledger.is_good() else ledger.good_until
        out_s, up_s = now - good_until, now - ledger.started_at
        of_start = ledger.never_good and up_s >= hub.failover.start_grace_s
        guessed = ledger.good_until <= ledger.started_at and not hub.clock_was_steady
        if out_s < hub.failover.outage_s - 0.002 and not of_start and not guessed:  # Two roundings to milliseconds.
            self.complain(hub.name, f"went direct after {out_s:.3f} s of outage, {up_s:.3f} s after its start")
        due_at = self._due_at(hub, ledger)
        if now > due_at:
            self.complain(hub.name, f"went direct {now - due_at:.3f} s later than it may take")
        if not of_start:
            ledger.switches.append((now, out_s - hub.failover.outage_s))

    def _returned(self, hub: HubProcess, ledger: Ledger) -> None:
        """From a cloud that works, a hub comes back only to a connector that has been good for long enough."""
        good_s = 0.0 if ledger.good_since is None else self._world.now - ledger.good_since
        if ledger.current is not None and good_s < hub.failback.stable_s:
            self.complain(hub.name, f"came back to a connector that has been good for {good_s:.1f} s only")

    def _due_at(self, hub: HubProcess, ledger: Ledger) -> float:
        """Return when the hub has to be direct at the latest, inf while the cloud can't be reached."""
        reachable_since = self._world.cloud_reachable_since.get(hub.name)
        if reachable_since is None:
            return inf
        switch_at = ledger.good_until + hub.failover.outage_s
        if (
            ledger.good_until < ledger.started_at
        ):  # What was before, only the wall clock tells, which may have been set.
            switch_at = max(switch_at, ledger.started_at + hub.failover.start_grace_s)
        return max(switch_at + SWITCH_LATE_S, max(reachable_since, ledger.started_at) + REACH_LATE_S)

    def disconnects(self, hub: HubProcess, carrier: Carrier) -> None:
        ledger = self._ledgers[hub.name]
        assert carrier.connection is not None
        replaced = ledger.current not in (None, carrier.number) and ledger.proven
        if carrier.number in ledger.taken and carrier.connection.client_open and not replaced:
            self.complain(hub.name, "dropped a path before another one has carried an acknowledgement")
        self._close(hub, carrier, self._world.now)

    # --- From time to time ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Look for what should have happened and has not."""
        now = self._world.now
        for hub in self._world.hubs.values():
            if not hub.up or hub.sending:
                continue
            ledger = self._ledgers[hub.name]
            if any(
                ledger.is_good(number) and carrier.connection is not None and carrier.connection.broker.refusing
                for number, carrier in hub.carriers.items()
            ):
                ledger.idle_since = now  # What it watches is good, but takes no session that could carry anything.
            elif ledger.is_good():
                unused_s = now - max(ledger.good_since or 0.0, ledger.idle_since)
                if unused_s > UNUSED_S:
                    self.complain(hub.name, f"has no path, though one has been good for {unused_s:.0f} s")
            elif now > self._due_at(hub, ledger):
                self.complain(
                    hub.name, f"has no path, and the cloud could be reached; out for {now - ledger.good_until:.0f} s"
                )

    def audit(self) -> None:
        """All has been drained: every point that was recorded is stored once, or a gap record tells of it."""
        for name, ledger in self._ledgers.items():
            missing = [hole for first, last in ledger.recorded for hole in ledger.stored.missing(first, last)]
            lost = sum(last - first + 1 for first, last in missing)
            if lost > ledger.points_in_gaps:
                self.complain(
                    name, f"{lost} points are lost, gap records tell of {ledger.points_in_gaps}: {missing[:5]}"
                )
