"""The contract of the pure cores: events in, commands out, time as an argument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

Event = TypeVar("Event", contravariant=True)
Command = TypeVar("Command")


class Machine(Protocol[Event, Command]):
    """Decides; does no I/O and reads no clock. Equal histories give equal commands."""

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take what has happened and return what to do, in order, the durable first; `now` is monotonic seconds."""
        ...

    def deadline(self) -> float | None:
        """Return when the machine wants a `Wakeup` at the latest, as monotonic seconds, or None while nothing is due."""
        ...


@dataclass(frozen=True, slots=True)
class Wakeup:
    """The event that a deadline has come. It says nothing else; a machine that has nothing due does nothing."""
