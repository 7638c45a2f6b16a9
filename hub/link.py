"""Which path a hub takes, and when it changes (pure): the contract's "Which path a hub takes", all six points.

What the link knows are facts: which sessions are open, what the connectors say on them, and since when no connector's
path has been good. What it does follows from the facts alone: `_plans` lists every step that is due now or will be, with
its time. An event changes facts; then all steps whose time has come are taken, and the earliest of the rest is the
deadline. So nothing is ever scheduled, and nothing has to be cancelled.

Sessions and what they are for (each at most once):
- current   the session to a site broker that carries messages, or will as soon as its connector is good;
- trial     another site broker, tried because the current one is not good, or because it has proven itself stable;
- observer  a silent session (no birth, no will) that watches whether a connector is stable enough to go back to;
- cloud     the session to the cloud broker;
- leaving   sessions that are no longer used, kept until the new path has carried an acknowledgement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf
from random import Random
from typing import Final

from broker.backoff import Backoff
from broker.machine import Wakeup
from config import limits
from config.settings import Failback, Failover
from hub.link_candidates import Candidates, Step
from hub.link_events import (
    CloudAcknowledged,
    Command,
    Connect,
    ConnectorFound,
    ConnectorHeard,
    Disconnect,
    Event,
    Halt,
    Kind,
    Remember,
    SaveOutage,
    Search,
    SearchEnded,
    SessionEnded,
    SessionOpened,
    Use,
)
from hub.link_session import LinkSession

__all__ = [
    "CloudAcknowledged",
    "Command",
    "Connect",
    "ConnectorFound",
    "ConnectorHeard",
    "Disconnect",
    "Event",
    "Halt",
    "Kind",
    "Link",
    "Remember",
    "SaveOutage",
    "Search",
    "SearchEnded",
    "SessionEnded",
    "SessionOpened",
    "Surroundings",
    "Use",
]

STEPS_MAX: Final = 64
"""Steps after one event; more would be a livelock."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the hub knows when it starts.

    `cached` are site brokers of earlier runs, the best first; `outage_at` (monotonic, may lie before the start) is since
    when the run before saw no good path, or None; `away` says that the network is not the one of the cache.
    """

    cached: tuple[str, ...] = ()
    configured: tuple[str, ...] = ()
    cloud: tuple[str, ...] = ()
    discovery: bool = True
    away: bool = False
    outage_at: float | None = None


class Link:
    """The path of one hub. `hub_id` spreads hubs over connectors, `random` over time, the switch over `switch_jitter_s`."""

    def __init__(
        self,
        hub_id: str,
        failover: Failover,
        failback: Failback,
        surroundings: Surroundings,
        *,
        random: Random,
        started_at: float,
        switch_jitter_s: float = limits.SWITCH_JITTER_S,
    ):
        self.hub_id = hub_id
        self.failover, self.failback, self.surroundings = failover, failback, surroundings
        self.using: LinkSession | None = None
        self.using_since = started_at
        self.using_via: str | None = None
        self.out_at: float | None = surroundings.outage_at if surroundings.outage_at is not None else started_at
        self.failures: dict[Kind, str] = {}
        grace_s = failover.away_grace_s if surroundings.away else failover.start_grace_s
        self._start_grace_until = started_at + grace_s
        self._never_good = True
        self._good_until = -inf  # When a connector's path was last known to be good, of those that are not any more.
        self._entitled = False  # To the cloud at once: it was there, and no connector's path is proven since.
        self._outage_saved_at = started_at
        self._random = random
        self._numbers = 0
        self._current: LinkSession | None = None
        self._trial: LinkSession | None = None
        self._observer: LinkSession | None = None
        self._cloud: LinkSession | None = None
        self._leaving: list[LinkSession] = []
        self.candidates: Final = Candidates(
            hub_id, surroundings.cached, surroundings.configured, discovery=surroundings.discovery
        )
        self._site_next_at = -inf  # When the next site broker may be tried.
        self._cloud_next_at = -inf
        self._cloud_turn = 0
        self._return_wait_s = 0.0
        self._jitter_s = switch_jitter_s
        self._switch_wait_s = random.uniform(0.0, switch_jitter_s)
        self._site_backoff = Backoff(random)
        self._cloud_backoff = Backoff(random)

    @property
    def switch_at(self) -> float | None:
        """Return when the hub goes, or was free to go, to the cloud; None while a connector's path is good."""
        if not self.surroundings.cloud or (self.using is not None and self.using.kind is Kind.CONNECTOR):
            return None
        if self._entitled:
            return self.using_since
        if self.out_at is None:
            return None
        at = self.out_at + self.failover.outage_s
        # A whole site is cut off at the same moment, and must not arrive at the cloud at the same moment.
        return self._switch_wait_s + (min(at, self._start_grace_until) if self._never_good else at)

    @property
    def watched(self) -> tuple[str, float | None] | None:
        """Return the site broker that is watched for the way back, and when it is to be taken (None: not good yet)."""
        observer = self._observer
        if observer is None:
            return None
        return observer.endpoint, None if observer.good_at is None else observer.good_at + self._return_wait_s

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take an event and return what to do; see Machine."""
        commands: list[Command] = []
        match event:
            case SessionOpened(number):
                if (session := self._session(number)) is not None:  # Else it was given up already.
                    session.opened_at = now
            case SessionEnded(number, reason, alive_at):
                if (session := self._session(number)) is not None:
                    commands += self._ended(session, reason, now if alive_at is None else alive_at, now)
            case ConnectorHeard(number, connector_id, state):
                if (session := self._session(number)) is not None:
                    session.hear(connector_id, state)
            case CloudAcknowledged(number):
                if (session := self._session(number)) is not None and session is self.using:
                    session.proven = True
                    self._entitled = session.kind is Kind.DIRECT
            case ConnectorFound(endpoint):
                self.candidates.found(endpoint)
            case SearchEnded():
                self.candidates.search_ended()
            case Wakeup():
                pass  # Time is a fact too: what is due is found below.
        return commands + self._settle(now)

    def deadline(self) -> float | None:
        """Return when the next step is due."""
        at = min((at for at, _ in self._plans()), default=inf)
        return None if at == inf else at

    # --- Facts ------------------------------------------------------------------------------------------------------

    def _all(self) -> list[LinkSession]:
        slots = (self._current, self._trial, self._observer, self._cloud, *self._leaving)
        return [session for session in slots if session is not None]

    def _session(self, number: int) -> LinkSession | None:
        return next((session for session in self._all() if session.number == number), None)

    def _release(self, session: LinkSession) -> None:
        """Take a session out of its place."""
        if session is self._current:
            self._current = None
        elif session is self._trial:
            self._trial = None
        elif session is self._observer:
            self._observer = None
        elif session is self._cloud:
            self._cloud = None
        else:
            self._leaving.remove(session)

    def _ended(self, session: LinkSession, reason: str, alive_at: float, now: float) -> list[Command]:
        self.failures[session.kind] = f"{session.endpoint}: {reason}"
        was_leaving = session in self._leaving
        if session is self._trial and self._observer is not None:
            # The return has failed; what is watched is still good.
            self._site_next_at = now + self._site_backoff.next_s()
        self._release(session)
        self._credit(session, now)
        if session.kind is Kind.DIRECT:
            self._cloud_turn += 1
            if not was_leaving:
                self._cloud_next_at = now + self._cloud_wait_s()
        elif session.opened_at is not None and not was_leaving and session is not self.using:
            self._new_round(now)
        was_good, session.good_at = session.good_at is not None, None
        return self._went_bad(alive_at, now) if was_good and session.kind is Kind.CONNECTOR else []

    def _cloud_wait_s(self) -> float:
        """Return how long to wait for the next attempt at the cloud: longer only with each round of all its endpoints.

        Of a cluster that has lost a node the others serve soon; to each of them a hub comes no more often than to a single one.
        """
        if self._cloud_turn % max(1, len(self.surroundings.cloud)):
            return self._random.uniform(0.0, limits.BACKOFF_FIRST_S)
        return self._cloud_backoff.next_s()

    def _went_bad(self, until: float, now: float) -> list[Command]:
        """Note until when a connector's path was good; if no other is, the outage has begun when the last one ended."""
        self._good_until = max(self._good_until, until)
        if self._site_is_good():
            return []
        self.out_at, self._outage_saved_at = self._good_until, now
        self._switch_wait_s = self._random.uniform(0.0, self._jitter_s)
        return [SaveOutage(self.out_at)]

    def _credit(self, session: LinkSession, now: float) -> None:
        """Forget earlier failures if the session that ends was stable."""
        if session.opened_at is not None:
            backoff = self._cloud_backoff if session.kind is Kind.DIRECT else self._site_backoff
            backoff.lived(now - session.opened_at)

    def _site_is_good(self) -> bool:
        return any(session.kind is Kind.CONNECTOR and session.good_at is not None for session in self._all())

    # --- Steps ------------------------------------------------------------------------------------------------------

    def _settle(self, now: float) -> list[Command]:
        """Bring everything in line with the facts: first what is in use, then every step that is due."""
        commands: list[Command] = []
        for _ in range(STEPS_MAX):
            commands += self._judge(now)
            commands += self._choose(now)
            due = next((step for at, step in self._plans() if at <= now), None)
            if due is None:
                return commands
            commands += due(now)
        raise AssertionError(f"livelock: {commands}")

    def _judge(self, now: float) -> list[Command]:
        """Note which sessions are good, and what that means for the outage."""
        commands: list[Command] = []
        for session in self._all():
            if session.via is None:
                was_good, session.good_at = session.good_at is not None, None
                if was_good:
                    commands += self._went_bad(now, now)
            elif session.good_at is None:
                session.good_at = now
                if session is self._observer:
                    self._return_wait_s = self.failback.stable_s + self._random.uniform(0, self.failback.jitter_s)
        if not self._site_is_good():
            if self.out_at is None:  # The last good one was left by ourselves.
                commands += self._went_bad(now, now)
        elif self.out_at is not None or self._never_good:
            self.out_at, self._never_good = None, False
            commands.append(SaveOutage(None))
        return commands

    def _choose(self, now: float) -> list[Command]:
        """Use the best session that is good; the one before stays until the new one is proven."""
        using_site = self.using if self.using is not None and self.using.kind is Kind.CONNECTOR else None
        order = [self._trial, using_site, self._current]
        order += [session for session in self._leaving if session.kind is Kind.CONNECTOR]
        order += [self._cloud, *self._leaving]
        best = next((session for session in order if session is not None and session.good_at is not None), None)
        via = None if best is None else best.via
        if best is self.using and via == self.using_via:
            return []
        before, self.using, self.using_via, self.using_since = self.using, best, via, now
        self._new_round(now)
        if best is None or via is None:
            return [Halt()]
        if best is not before:
            self._take_place(best, before)
        return [Use(best.number, via), *self._remember(best)]

    def _remember(self, used: LinkSession) -> list[Command]:
        """Put the site broker that works at the head of the known ones."""
        endpoints = self.candidates.remember(used.endpoint if used.kind is Kind.CONNECTOR else None)
        return [] if endpoints is None else [Remember(endpoints)]

    def _take_place(self, best: LinkSession, before: LinkSession | None) -> None:
        """Put the session that is used now into the place of its kind, and what it replaces among the leaving."""
        best.used, best.proven = True, False
        self._entitled = self._entitled or best.kind is Kind.DIRECT
        self._release(best)
        replaced = [self._current] if best.kind is Kind.CONNECTOR else [self._cloud, self._current]
        if best.kind is Kind.CONNECTOR and before is not None and before is self._cloud:
            replaced.append(self._cloud)
        for session in replaced:
            if session is not None and session is not best:
                self._release(session)
                self._leaving.append(session)
        if best.kind is Kind.CONNECTOR:
            self._current = best
        else:
            self._cloud = best

    def _plans(self) -> Iterator[tuple[float, Callable[[float], list[Command]]]]:
        """Yield every step to take, with its time; -inf is at once."""
        using = self.using
        through_site = using is not None and using.kind is Kind.CONNECTOR
        if using is not None and using.proven and self._leaving:
            yield -inf, self._drop_leaving
        if self._cloud is None and not through_site and (at := self.switch_at) is not None:
            yield max(at, self._cloud_next_at), self._try_cloud
        if self.out_at is not None and self._outage_saved_at < self.out_at + self.failover.outage_s:
            yield self._outage_saved_at + limits.OUTAGE_SAVE_S, self._save_outage
        if self._cloud is not None and using is not None and through_site and (using.proven or not self._cloud.used):
            yield -inf, self._drop_cloud
        if self._trial is not None and using is not None and using.kind is Kind.DIRECT and using.proven:
            trusted = self._observer is not None and self._observer.good_at is not None
            if not trusted:  # Begun in the outage, or what was watched has gone bad.
                yield -inf, self._drop_trial
        for session, step in ((self._trial, self._drop_trial), (self._observer, self._drop_observer)):
            if session is not None and session.opened_at is not None and session.good_at is None:
                yield session.opened_at + limits.STATE_WAIT_S, step
        observer = self._observer
        if observer is not None and through_site and using is not None and using.endpoint == observer.endpoint:
            yield -inf, self._drop_observer
        elif observer is not None and observer.good_at is not None:
            if self._trial is None:
                stable_at = -inf if using is None else observer.good_at + self._return_wait_s
                yield max(stable_at, self._site_next_at), self._return
        elif (at := self._next_site_try()) is not None:
            yield max(at, self._site_next_at), self._try_site

    def _next_site_try(self) -> float | None:
        """Return from when on a (further) site broker is to be tried; None without a reason, or while one is under way."""
        if self._trial is not None or self._observer is not None:
            return None
        if self.candidates.wait:
            return None
        if self.using is not None:
            is_wanted = self.using.kind is Kind.DIRECT or self.candidates.know_better(self.using.endpoint)
            return -inf if is_wanted else None
        if self._current is None:
            return -inf
        return None if self._current.opened_at is None else self._current.opened_at + limits.STATE_WAIT_S

    # --- What the plans do ------------------------------------------------------------------------------------------

    def _connect(self, kind: Kind, endpoint: str, carrying: bool, now: float) -> tuple[LinkSession, list[Command]]:
        self._numbers += 1
        session = LinkSession(self._numbers, kind, endpoint, carrying, now)
        return session, [Connect(session.number, kind, endpoint, carrying)]

    def _try_cloud(self, now: float) -> list[Command]:
        endpoints = self.surroundings.cloud
        self._cloud, commands = self._connect(
            Kind.DIRECT, endpoints[self._cloud_turn % len(endpoints)], carrying=True, now=now
        )
        return commands

    def _try_site(self, now: float) -> list[Command]:
        """Take the next step of the round of site brokers, or wait for another round."""
        using = self.using if self.using is not None and self.using.kind is Kind.CONNECTOR else None
        step = self.candidates.next(
            better_than=None if using is None else using.endpoint,
            but=None if self._current is None else self._current.endpoint,
        )
        match step:
            case Step.SEARCH:
                return [Search()]
            case Step.WAIT:
                return []
            case Step.BEGIN_ANEW:
                self._new_round(now)
                return []
            case endpoint:
                return self._try_endpoint(endpoint, now)

    def _try_endpoint(self, endpoint: str, now: float) -> list[Command]:
        if self.using is not None:
            self._observer, commands = self._connect(Kind.CONNECTOR, endpoint, carrying=False, now=now)
        elif self._current is None:
            self._current, commands = self._connect(Kind.CONNECTOR, endpoint, carrying=True, now=now)
        else:
            self._trial, commands = self._connect(Kind.CONNECTOR, endpoint, carrying=True, now=now)
        return commands

    def _new_round(self, now: float) -> None:
        self.candidates.begin_round()
        if self.using is None:
            self._site_next_at = now + self._site_backoff.next_s()
        else:
            self._site_next_at = now + self.failback.probe_s * self._random.uniform(0.75, 1.25)

    def _return(self, now: float) -> list[Command]:
        assert self._observer is not None
        self._trial, commands = self._connect(Kind.CONNECTOR, self._observer.endpoint, carrying=True, now=now)
        return commands

    def _save_outage(self, now: float) -> list[Command]:
        """Keep the outage on disk anew: by then the wall clock, all that the next run has, may have been set."""
        self._outage_saved_at = now
        return [SaveOutage(self.out_at)]

    def _drop_leaving(self, now: float) -> list[Command]:
        return [command for session in list(self._leaving) for command in self._drop(session, now)]

    def _drop_cloud(self, now: float) -> list[Command]:
        return self._drop(self._cloud, now)

    def _drop_trial(self, now: float) -> list[Command]:
        return self._drop(self._trial, now)

    def _drop_observer(self, now: float) -> list[Command]:
        return self._drop(self._observer, now)

    def _drop(self, session: LinkSession | None, now: float) -> list[Command]:
        assert session is not None
        if session.kind is Kind.CONNECTOR and session.good_at is not None:
            self._good_until = max(self._good_until, now)
        self._credit(session, now)
        self._release(session)
        return [Disconnect(session.number)]
