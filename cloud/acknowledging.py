"""When to acknowledge what is committed (pure): the first message of a while at once, a busy hub's a few at a time.

A hub that sends often gets an acknowledgement for every few messages or every half a second, as in TCP (RFC 9293, 3.8.6.3):
each one passes two brokers and the WAN. Half a second is well below a hub's retransmission time-out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from cloud.batch import Stream
from config import limits

Due: TypeAlias = list[tuple[Stream, list[int]]]
"""What is to be acknowledged now: seqs by stream."""


@dataclass(slots=True)
class _Held:
    """What a stream was not told yet; at `due_at` it is."""

    due_at: float
    seqs: list[int] = field(default_factory=list)


class Acknowledging:
    """The acknowledgements that are held back. Those of the last half second are remembered, of each stream."""

    def __init__(self) -> None:
        self._held: dict[Stream, _Held] = {}  # In the order of due_at.

    def committed(self, stream: Stream, seqs: list[int], now: float) -> Due:
        """Take what was committed for a stream, and return what to tell it of at once."""
        held = self._held.get(stream)
        if held is not None:
            held.seqs += seqs
            if len(held.seqs) < limits.ACK_MESSAGES and now < held.due_at:
                return []
            seqs = held.seqs
            del self._held[stream]
        self._held[stream] = _Held(now + limits.ACK_INTERVAL_S)
        return [(stream, seqs)]

    def due(self, now: float) -> Due:
        """Return what was held back for long enough."""
        found: Due = []
        for stream, held in self._until(now):
            del self._held[stream]
            if held.seqs:
                found.append((stream, held.seqs))
                self._held[stream] = _Held(now + limits.ACK_INTERVAL_S)
        return found

    def all(self) -> Due:
        """Return all that is held back: nothing is held back any more."""
        found = [(stream, held.seqs) for stream, held in self._held.items() if held.seqs]
        self._held.clear()
        return found

    def deadline(self) -> float | None:
        """Return when something held back is due."""
        return next((held.due_at for held in self._held.values() if held.seqs), None)

    def _until(self, now: float) -> list[tuple[Stream, _Held]]:
        found = []
        for stream, held in self._held.items():
            if held.due_at > now:
                break
            found.append((stream, held))
        return found
