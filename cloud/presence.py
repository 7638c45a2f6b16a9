"""Who is there, and why we think so: keeps one true status of every hub, and publishes and logs it when it changes (pure).

Births and wills count in the order in which they were meant, not in which they come. Hubs behind a connector that is out are
"path-down" until they speak or should have spoken. In the grace after an outage of ours nobody gets worse but by its own word.
Records are saved before anything is told of them, so that a restart goes on where the process has ended.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import Final

from msgspec.structs import replace

from broker.machine import Wakeup
from cloud import presence_rules as rules
from cloud.hub_key import HubKey
from cloud.presence_events import (
    Clear,
    Command,
    Connected,
    ConnectorSaid,
    Disconnected,
    Entry,
    Event,
    Forgotten,
    HeartbeatCame,
    HubSaid,
    Log,
    MessageCame,
    ModeChanged,
    Paused,
    PollCame,
    Publish,
    Reported,
    Resumed,
    RosterEntry,
    RosterRead,
    Save,
)
from cloud.presence_facts import STARTED, Record, Status
from cloud.presence_lives import Kind, Word, arrival_ms, hear_state, hear_word, settle_rivals
from cloud.presence_paths import Paths
from cloud.skew import SkewMeter
from config import limits
from config.settings import CloudPresence, Failover

_FOREVER: Final = float("inf")


class Presence:
    """The machine. `started_ms` is the wall clock at `started_at`; `known` are the records that were saved last.

    `outage_s` is after how long an outage hubs go direct.
    """

    def __init__(
        self,
        settings: CloudPresence,
        *,
        started_at: float,
        started_ms: int,
        known: Iterable[Record] = (),
        outage_s: float = Failover().outage_s,
    ):
        self.settings: Final = settings
        self._terms: Final = rules.Terms.of(settings, outage_s)
        self._started_at, self._started_ms = started_at, started_ms
        self._records: Final = {record.key: replace(record, confirmed=False) for record in known}
        self._paths: Final = Paths()
        self._skew: Final = SkewMeter()
        self._connected = False
        self._grace_until_ms = _FOREVER
        self._due: Final[dict[HubKey, float]] = {}
        self._heap: Final[list[tuple[float, HubKey]]] = []
        self._commands: list[Command] = []
        self._unpublished: Final[dict[HubKey, None]] = {}
        self._publish_at = started_at
        self._unsaved: Final[dict[HubKey, None]] = {}
        self._save_at = started_at

    def record(self, key: HubKey) -> Record | None:
        """Return what is known of a hub."""
        return self._records.get(key)

    def status(self, key: HubKey) -> Status | None:
        """Return the status of a hub as it would be published now."""
        record = self._records.get(key)
        if record is None or record.status is None:
            return None
        shown = record.status
        found = rules.Verdict(shown.connection, shown.reason, shown.via, shown.expected_direct_by_ms, record.out)
        evidence = rules.evidence(record, found)
        return replace(shown, last_seen_ms=record.seen_ms, skew_ms=record.skew_ms, evidence=evidence)

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take what has happened and return what to do."""
        at_ms = self._ms(now)
        match event:
            case Connected():
                self._connected_again(at_ms)
            case Disconnected():
                self._lost(at_ms)
            case HubSaid():
                self._hub_said(event, at_ms)
            case ConnectorSaid():
                self._connector_said(event, at_ms)
            case MessageCame(key, epoch, sent_ms, received_ms, _):
                self._word("message", key, epoch, sent_ms, received_ms, None, at_ms)
            case HeartbeatCame(key, epoch, session, ts, received_ms):
                self._word("heartbeat", key, epoch, ts, received_ms, session, at_ms)
            case PollCame(key, epoch, session, ts, received_ms):
                self._word("poll", key, epoch, ts, received_ms, session, at_ms)
            case ModeChanged(key, policy):
                self._change(key, lambda record: replace(record, policy=policy), at_ms)
            case Reported(key, machine):
                self._change(key, lambda record: replace(record, machine=machine), at_ms)
            case Paused(key, by):
                self._change(key, lambda record: replace(record, paused_by=by), at_ms)
            case Resumed(key, _):
                self._change(key, lambda record: replace(record, paused_by=None), at_ms)
            case RosterRead(entries):
                self._roster(entries, at_ms)
            case Forgotten(key) if key not in self._records:
                self._unpublished[key] = None  # Forgotten already; what is retained of it goes once more.
            case Forgotten(key):
                self._forget(key)
            case Wakeup():
                self._wake(at_ms)
        self._save_seen(now)
        self._publish(now)
        commands, self._commands = self._commands, []
        return commands

    def deadline(self) -> float | None:
        """Return when a status may change by itself, or something waits to be saved or published."""
        while self._heap and self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        instants = [self._at(self._heap[0][0])] if self._heap else []
        if self._unpublished and self._connected:
            instants.append(self._publish_at)
        if self._unsaved:
            instants.append(self._save_at)
        return min(instants, default=None)

    # --- Our own connection -----------------------------------------------------------------------------------------

    def _connected_again(self, at_ms: int) -> None:
        if self._connected:
            self._lost(at_ms)
        self._connected = True
        self._grace_until_ms = at_ms + self._terms.grace_ms
        for key in list(self._records):
            self._unpublished[key] = None
            self._judge(self._records[key], at_ms)

    def _lost(self, at_ms: int) -> None:
        self._connected, self._grace_until_ms = False, _FOREVER
        self._paths.doubt()
        for key, record in self._records.items():
            self._records[key] = replace(record, confirmed=False)
        for key in list(self._records):
            self._judge(self._records[key], at_ms)

    # --- What hubs say ----------------------------------------------------------------------------------------------

    def _hub_said(self, said: HubSaid, at_ms: int) -> None:
        key, state = (said.site, said.hub_id), said.state
        before = self._records.get(key)
        if before is None and said.retained and not state.online:
            return  # The last word of a hub that was forgotten, still waiting at the broker.
        arrived_ms = arrival_ms(said.received_ms, at_ms)
        known = before or Record(*key)
        record = hear_state(known, state, arrived_ms, retained=said.retained)
        if record is known:
            return
        life, former = record.life, known.life
        began = life is not None and (former is None or (life.epoch, life.born) != (former.epoch, former.born))
        record = self._paths.settle(record, at_ms, moved="hub" if began else None)
        if record.lives == known.lives and before is not None:
            self._put(record, at_ms, durable=False)  # Heard again: nothing new but that it is still so.
        else:
            self._put(record, at_ms, anew=began and life is not None and life.started)

    def _word(
        self, kind: Kind, key: HubKey, epoch: str, ts: int, received_ms: int, session: int | None, at_ms: int
    ) -> None:
        known = self._records.get(key) or Record(*key)
        skew_ms = self._skew.measure((*key, epoch), ts, received_ms)
        arrived_ms = arrival_ms(received_ms, at_ms)
        record = hear_word(known, Word(kind, epoch, ts, received_ms, arrived_ms, skew_ms, session))
        if record.skew_ms is not None:
            share = limits.CLOCK_MENDED if record.clock_wrong else 1.0
            record = replace(record, clock_wrong=abs(record.skew_ms) > self._terms.skew_max_ms * share)
        record = self._paths.settle(record, at_ms, moved=None)
        durable = record.contact_ms != known.contact_ms or len(record.lives) != len(known.lives)
        self._put(record, at_ms, durable=durable)

    def _connector_said(self, said: ConnectorSaid, at_ms: int) -> None:
        place = (said.site, said.connector_id)
        if not self._paths.hear(place, said.state, at_ms):
            return
        for record in [record for record in self._records.values() if self._paths.place_of(record) == place]:
            self._put(self._paths.settle(record, at_ms, moved="path"), at_ms)

    # --- What people do ---------------------------------------------------------------------------------------------

    def _change(self, key: HubKey, change: Callable[[Record], Record], at_ms: int) -> None:
        known = self._records.get(key)
        if known is not None and (record := change(known)) != known:
            self._put(record, at_ms)

    def _roster(self, entries: tuple[RosterEntry, ...], at_ms: int) -> None:
        for key in self._records.keys() - {entry.key for entry in entries}:
            gone = {"rostered": False, "revoked_ms": None, "not_after_ms": None}
            self._change(key, lambda record, gone=gone: replace(record, **gone), at_ms)  # type: ignore[misc]
        for entry in entries:
            known = self._records.get(entry.key)
            if known is None and (entry.revoked_ms is not None or entry.not_after_ms <= at_ms):
                continue  # It never came, and may not come any more.
            record = replace(
                known or Record(*entry.key),
                rostered=True,
                revoked_ms=entry.revoked_ms,
                not_after_ms=entry.not_after_ms,
            )
            if record != known:
                self._put(record, at_ms)

    def _forget(self, key: HubKey) -> None:
        del self._records[key]
        self._due.pop(key, None)
        self._unsaved.pop(key, None)
        self._unpublished[key] = None

    # --- The status -------------------------------------------------------------------------------------------------

    def _put(self, record: Record, at_ms: int, *, durable: bool = True, anew: bool = False) -> None:
        """Take a record in place of the one before, and tell what has changed. `anew`: the hub has just started."""
        self._records[record.key] = record
        changed = self._judge(record, at_ms, anew=anew)
        if changed or self._records[record.key].status is None:
            return  # Saved already, or nothing is concluded of it yet.
        if durable:
            self._save(self._records[record.key])
        else:
            self._unsaved[record.key] = None

    def _judge(self, record: Record, at_ms: int, *, anew: bool = False) -> bool:
        """Conclude the status of a hub; save, log and publish it if it has changed, and tell whether it has."""
        record = settle_rivals(record, at_ms)
        if rules.is_undecided(record, at_ms):
            self._records[record.key] = record
            self._schedule(record, at_ms)
            return False
        found = rules.verdict(record, at_ms, self._grace_until_ms, self._terms)
        record = record if record.out == found.out else replace(record, out=found.out)
        was = record.status
        anew = anew and found.reason == STARTED
        differs = was is None or (was.connection, was.reason, was.via) != found[:3]
        if anew or differs:
            kept = was is not None and not anew and was.connection == found.connection
            status = Status(
                connection=found.connection,
                since_ms=was.since_ms if kept and was is not None else at_ms,
                reason=found.reason,
                via=found.via,
                last_seen_ms=record.seen_ms,
                expected_direct_by_ms=found.expected_direct_by_ms,
                skew_ms=record.skew_ms,
                evidence=rules.evidence(record, found),
            )
            record = replace(record, status=status)
        hidden = rules.hidden(record, record.machine, at_ms, self.settings)
        hides = hidden != (record.hidden_ms is not None)
        if hides:
            record = replace(record, hidden_ms=at_ms if hidden else None)
        self._records[record.key] = record
        self._schedule(record, at_ms)
        if anew or differs or hides:
            self._save(record)
        if (anew or differs) and record.status is not None:
            told = record.status
            entry = Entry(record.key, at_ms, told.connection, told.reason, told.via, told.evidence)
            self._commands.append(Log(entry))
            self._unpublished[record.key] = None
        return anew or differs or hides

    def _schedule(self, record: Record, at_ms: int) -> None:
        key = record.key
        due = rules.next_change_ms(record, at_ms, self._grace_until_ms, self._terms, self.settings)
        planned = self._due.get(key)
        if due is None:
            self._due.pop(key, None)
        elif planned is None or due < planned:  # A later one is found when the planned one comes.
            self._due[key] = due
            heapq.heappush(self._heap, (due, key))

    def _wake(self, at_ms: int) -> None:
        while self._heap and self._heap[0][0] <= at_ms:
            due, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                del self._due[key]
                self._judge(self._records[key], at_ms)

    def _save(self, record: Record) -> None:
        self._unsaved.pop(record.key, None)
        self._commands.append(Save(record))

    def _save_seen(self, now: float) -> None:
        if self._unsaved and now >= self._save_at:
            for key in list(self._unsaved):
                self._save(self._records[key])
            self._save_at = now + limits.PRESENCE_SAVE_S

    def _publish(self, now: float) -> None:
        if not self._connected or not self._unpublished or now < self._publish_at:
            return
        for key in list(self._unpublished)[: limits.PRESENCE_BURST]:
            del self._unpublished[key]
            status = self.status(key)
            self._commands.append(Clear(key) if status is None else Publish(key, status))
        self._publish_at = now + limits.PRESENCE_INTERVAL_S

    def _ms(self, now: float) -> int:
        return self._started_ms + round((now - self._started_at) * 1000)

    def _at(self, ms: float) -> float:
        return self._started_at + (ms - self._started_ms) / 1000
