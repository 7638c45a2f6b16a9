"""Decides whether an engine that runs still lives: it is asked again and again, and has to answer now and then.

One that is asked BOUNDS.unanswered_max times in a row, and says nothing, hangs. Three things guard whoever is merely busy: a
question may wait long for its answer; what nobody could have answered, since we ourselves did not run, does not count; and an
engine that has never answered since its start may be out of our reach, so it is reported and left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from broker.machine import Wakeup
from config import limits


@dataclass(frozen=True, slots=True)
class Bounds:
    """How often an engine is asked, how long each answer may take, and how many may be missing in a row."""

    interval_s: float = limits.ENGINE_PROBE_INTERVAL_S
    timeout_s: float = limits.ENGINE_PROBE_TIMEOUT_S
    unanswered_max: int = limits.ENGINE_PROBES_UNANSWERED_MAX
    late_s: float = limits.ENGINE_PROBE_LATE_S


@dataclass(frozen=True, slots=True)
class Answered:
    """It has answered, if only by hanging up."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Nobody listens at its address, though it has said that it serves."""


@dataclass(frozen=True, slots=True)
class NotAsked:
    """It could not be asked: its address isn't this machine's any more, or we have no socket left."""


@dataclass(frozen=True, slots=True)
class Spoke:
    """It has done something that only an engine can do which still serves."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask it, and say what came of it."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Wait no longer for the answer to what was asked."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """Say that it can't be watched: it has never answered."""

    unanswered: int


@dataclass(frozen=True, slots=True)
class Condemn:
    """It hangs: nobody can be served by it any more."""

    unanswered: int
    silent_s: float


Event: TypeAlias = Answered | Refused | NotAsked | Spoke
Command: TypeAlias = Ask | GiveUp | Doubt | Condemn


class Liveness:
    """One life of an engine, from when it said that it serves. The first question is due at once."""

    def __init__(self, bounds: Bounds, now: float):
        self.unanswered = 0
        self.has_answered = False
        self._bounds = bounds
        self._asked_at: float | None = None
        self._next_at = now
        self._seen_at = now
        self._condemned = False

    def handle(self, event: Event | Wakeup, now: float) -> list[Command]:
        """Take what has happened, and return what to do."""
        if self._condemned:
            return []
        match event:
            case Wakeup():
                return self._wake(now)
            case Answered():
                self.has_answered = True
                self._lives(now)
                self._asked_at = None
            case Spoke():
                self._lives(now)
            case NotAsked():
                self._asked_at = None
            case Refused():
                self._asked_at = None
                return self._missed(now)
        return []

    def deadline(self) -> float | None:
        """Return when the next question, or the end of our patience with the last one, is due."""
        if self._condemned:
            return None
        return self._next_at if self._asked_at is None else self._asked_at + self._bounds.timeout_s

    def _wake(self, now: float) -> list[Command]:
        due_at = self.deadline()
        if due_at is None or now < due_at:
            return []
        waited = self._asked_at is not None
        if now > due_at + self._bounds.late_s:  # We did not run, so perhaps it did not either.
            self._lives(now)
            return [GiveUp(), *self._ask(now)] if waited else self._ask(now)
        if not waited:
            return self._ask(now)
        self._asked_at = None
        commands: list[Command] = [GiveUp(), *self._missed(now)]
        if not self._condemned and self._next_at <= now:
            commands += self._ask(now)
        return commands

    def _ask(self, now: float) -> list[Command]:
        self._asked_at, self._next_at = now, now + self._bounds.interval_s
        return [Ask()]

    def _missed(self, now: float) -> list[Command]:
        self.unanswered += 1
        if self.unanswered < self._bounds.unanswered_max:
            return []
        if self.has_answered:
            self._condemned = True
            return [Condemn(self.unanswered, round(now - self._seen_at, 1))]
        return [Doubt(self.unanswered)] if self.unanswered == self._bounds.unanswered_max else []

    def _lives(self, now: float) -> None:
        self.unanswered, self._seen_at = 0, now
