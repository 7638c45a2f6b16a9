"""Which settings each hub is to have, and that it gets them (pure): fleet < site < groups by name < hub.

What holds for a hub is one document; each change of its content gets a higher version. It is sent again (jittered, backed
off) to a hub that can be reached until the hub reports it: applied, on trial, refused or rolled back. What a hub has
refused or rolled back is not sent again before it is changed. To hubs that poll, or roam, or are away, nothing is sent but
at a poll. Versions are saved before they are sent; a hub that knows a higher one than ours (our database is an older copy)
is outbid, so that it obeys again.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Final, TypeAlias

from broker.backoff import Backoff
from broker.control import DesiredSettings, SettingsReport
from broker.machine import Wakeup
from cloud.desired_scopes import Content, DocumentChanged, Scope, Scopes, key_of, name_of
from cloud.hub_key import HubKey
from config import limits, remote

VERSION_MAX: Final = 2**53
"""Of the contract. Only a hub that lies about its version could bring us here."""

# --- Events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HubKnown:
    """There is this hub, and these are its groups."""

    key: HubKey
    groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupChanged:
    """A hub is now in these groups and in no others."""

    key: HubKey
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HubForgotten:
    """A hub is no longer of the fleet; its rows are gone."""

    key: HubKey


@dataclass(frozen=True, slots=True)
class Reachable:
    """The cloud may send settings to this hub: it is online and continuous."""

    key: HubKey


@dataclass(frozen=True, slots=True)
class Unreachable:
    """It may not: the hub is offline, roams, polls, or its path is down."""

    key: HubKey


@dataclass(frozen=True, slots=True)
class Polled:
    """A hub asks for what waits; `settings` is the hash of those in force, if it tells."""

    key: HubKey
    settings: str | None = None


@dataclass(frozen=True, slots=True)
class Reported:
    """What a hub says of its settings (None: it has none of ours), in the order in which it said it.

    `desired_records.apply_reported` has put it into the database, and tells which reports are late: those are not fed.
    """

    key: HubKey
    report: SettingsReport | None


@dataclass(frozen=True, slots=True)
class Connected:
    """The cloud broker has accepted our session."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """Our session has ended: nothing can be sent."""


Event: TypeAlias = (
    DocumentChanged
    | HubKnown
    | GroupChanged
    | HubForgotten
    | Reachable
    | Unreachable
    | Polled
    | Reported
    | Connected
    | Disconnected
    | Wakeup
)

# --- Commands -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Save:
    """Commit what a hub is to have before any `Send` that follows: no version may ever name two contents."""

    key: HubKey
    version: int
    hash: str
    settings: Content


@dataclass(frozen=True, slots=True)
class Send:
    """Publish on the hub's `down/settings`. It may get lost."""

    key: HubKey
    desired: DesiredSettings


Command: TypeAlias = Save | Send

# --- What is known at the start -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KnownHub:
    """A hub as the database has it: what it is to have, and what it said last."""

    key: HubKey
    groups: tuple[str, ...] = ()
    version: int = 0
    hash: str = remote.EMPTY_HASH
    report: SettingsReport | None = None


@dataclass(frozen=True, slots=True)
class Records:
    """All that the machine must know after a restart."""

    documents: tuple[DocumentChanged, ...] = ()
    hubs: tuple[KnownHub, ...] = ()


# --- The machine ----------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Hub:
    key: HubKey
    groups: tuple[str, ...]
    version: int
    hash: str
    report: SettingsReport | None
    backoff: Backoff
    reachable: bool = False
    due_at: float = inf  # Of its only valid entry in the heap.
    sent_at: float = -inf

    @property
    def settled(self) -> bool:
        """Tell whether there is nothing to send: the hub has these settings, or has said no to this version of them."""
        if self.report is None:
            return self.hash == remote.EMPTY_HASH
        if self.report.hash != self.hash:
            return False
        return self.report.state in ("applied", "trial") or self.report.version >= self.version

    @property
    def declined(self) -> bool:
        return self.settled and self.report is not None and self.report.state in ("refused", "rolled-back")


@dataclass(slots=True)
class _Step:
    """What one event has led to; saves come before sends."""

    now: float
    saves: dict[HubKey, Save] = field(default_factory=dict)
    sends: list[Command] = field(default_factory=list)

    def commands(self) -> list[Command]:
        return [*self.saves.values(), *self.sends]


class Desired:
    """The settings of all hubs. `started_at` is monotonic, `started_ms` the wall clock at the same moment.

    Until word comes, the cloud's session is closed and every hub unreachable.
    """

    def __init__(self, records: Records, *, random: Random, started_at: float, started_ms: int):
        self._random = random
        self._started_at, self._started_ms = started_at, started_ms
        self._connected = False
        self._scopes = Scopes()
        self._hubs: dict[HubKey, _Hub] = {}
        self._heap: list[tuple[float, int, _Hub]] = []
        self._pushes = 0
        self._burst_at = -inf
        self._burst_left = limits.SETTINGS_BURST
        for document in records.documents:
            self._scopes.put(document)
        for known in records.hubs:
            self._add(known)

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take what has happened and return what to do."""
        step = _Step(now)
        match event:
            case DocumentChanged(scope, name):
                if self._scopes.put(event):
                    for each in self._affected(scope, name):
                        self._renew(each, step)
            case HubKnown(key, groups) | GroupChanged(key, groups):
                found = self._hub(key, step)
                found.groups = tuple(sorted(groups))
                self._renew(found, step)
            case HubForgotten(key):
                self._scopes.drop("hub", name_of(key))
                gone = self._hubs.pop(key, None)
                if gone is not None:
                    gone.due_at = inf
            case Reachable(key):
                self._reach(self._hub(key, step), step)
            case Unreachable(key) if key not in self._hubs:
                pass  # It was forgotten before it left.
            case Unreachable(key):
                away = self._hubs[key]
                away.reachable, away.due_at = False, inf
            case Polled(key, settings):
                self._answer_poll(self._hub(key, step), settings, step)
            case Reported(key, report):
                self._take_report(self._hub(key, step), report, step)
            case Connected() if self._connected:
                pass  # Repeated.
            case Connected():
                self._connected = True
                for each in self._hubs.values():
                    self._renew(each, step)  # A document may have been committed just before we stopped.
                    self._plan(each, now)
            case Disconnected():
                self._connected = False
            case Wakeup():
                pass
        self._send_due(step)
        return step.commands()

    def deadline(self) -> float | None:
        """Return when the next delivery is due."""
        while self._heap and self._heap[0][0] != self._heap[0][2].due_at:
            heapq.heappop(self._heap)  # Planned anew, or called off.
        if not self._heap or not self._connected:
            return None
        due_at = self._heap[0][0]
        return due_at if self._burst_left else max(due_at, self._burst_at + limits.SETTINGS_BURST_S)

    def of_hub(self, key: HubKey) -> tuple[int, str]:
        """Return version and hash of what a hub is to have."""
        found = self._hubs.get(key)
        return (0, remote.EMPTY_HASH) if found is None else (found.version, found.hash)

    # --- The hubs -----------------------------------------------------------------------------------------------------

    def _affected(self, scope: Scope, name: str) -> list[_Hub]:
        match scope:
            case "fleet":
                return list(self._hubs.values())
            case "site":
                return [each for each in self._hubs.values() if each.key[0] == name]
            case "group":
                return [each for each in self._hubs.values() if name in each.groups]
            case "hub":
                found = self._hubs.get(key_of(name))
                return [] if found is None else [found]

    def _hub(self, key: HubKey, step: _Step) -> _Hub:
        """Return a hub; one that was unknown gets what holds for it."""
        found = self._hubs.get(key)
        if found is None:
            found = self._add(KnownHub(key))
            self._renew(found, step)
        return found

    def _add(self, known: KnownHub) -> _Hub:
        backoff = Backoff(
            self._random, first_s=limits.SETTINGS_REPEAT_FIRST_S, max_s=limits.SETTINGS_REPEAT_MAX_S, stable_s=0.0
        )
        groups = tuple(sorted(known.groups))
        added = self._hubs[known.key] = _Hub(known.key, groups, known.version, known.hash, known.report, backoff)
        return added

    # --- Changes ------------------------------------------------------------------------------------------------------

    def _renew(self, each: _Hub, step: _Step) -> None:
        """Work out what a hub is to have; new content is a new version, and is sent soon."""
        name, content = self._scopes.of_hub(each.key, each.groups)
        if name == each.hash:
            return
        each.hash = name
        self._raise(each, each.version + 1, content, step)
        each.backoff.lived(0.0)
        self._plan(each, step.now)

    def _raise(self, each: _Hub, version: int, content: Content, step: _Step) -> None:
        each.version = min(version, VERSION_MAX)
        step.saves[each.key] = Save(each.key, each.version, each.hash, content)

    def _take_report(self, each: _Hub, report: SettingsReport | None, step: _Step) -> None:
        each.report = report
        if report is not None:
            other = report.hash != each.hash
            if report.version > each.version or (report.version == each.version and other):
                self._raise(each, report.version + other, self._scopes.of_hub(each.key, each.groups)[1], step)
        if each.settled:
            each.due_at = inf
            each.backoff.lived(0.0)
        elif each.due_at == inf:  # Not sooner: two machines of one name would keep us sending.
            self._plan(each, max(step.now, each.sent_at + limits.SETTINGS_REPEAT_MIN_S))

    def _reach(self, each: _Hub, step: _Step) -> None:
        if not each.reachable:
            each.reachable = True
            each.backoff.lived(0.0)
            self._plan(each, step.now)

    # --- Sending ------------------------------------------------------------------------------------------------------

    def _answer_poll(self, each: _Hub, in_force: str | None, step: _Step) -> None:
        """Send at once: the hub listens for a moment only. What it says is in force counts more than an older report."""
        lost = in_force is not None and in_force != each.hash and not each.declined
        if self._connected and (lost or not each.settled):
            self._send(each, step)

    def _plan(self, each: _Hub, due_at: float) -> None:
        each.due_at = inf
        if each.reachable and not each.settled:
            each.due_at = due_at
            self._pushes += 1
            heapq.heappush(self._heap, (due_at, self._pushes, each))

    def _send_due(self, step: _Step) -> None:
        if step.now >= self._burst_at + limits.SETTINGS_BURST_S:
            self._burst_at, self._burst_left = step.now, limits.SETTINGS_BURST
        while (due_at := self.deadline()) is not None and due_at <= step.now and self._burst_left:
            self._burst_left -= 1
            self._send(self._heap[0][2], step)

    def _send(self, each: _Hub, step: _Step) -> None:
        """Send, and plan the next time for a hub that stays reachable."""
        content = self._scopes.of_hub(each.key, each.groups)[1]
        sent_ms = self._started_ms + max(0, round((step.now - self._started_at) * 1000.0))
        step.sends.append(Send(each.key, DesiredSettings(each.version, each.hash, sent_ms, content)))
        each.sent_at = step.now
        self._plan(each, step.now + limits.SETTINGS_REPEAT_MIN_S + each.backoff.next_s())
