"""How entries become messages: which kinds are lists, how much fits into one, and what its body looks like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from broker.messages import encode_envelope
from config import limits
from hub.gaps import GROWTH_MAX_BYTES

_BODY_MAX_BYTES: Final = limits.MESSAGE_MAX_BYTES - len(encode_envelope("0" * 16, 2**53, 2**53, b""))
ENTRY_MAX_BYTES: Final = _BODY_MAX_BYTES - len(b'{"results":[]}')
"""The longest entry that fits into a message."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One point, event or other body as JSON, and its moment in Unix milliseconds."""

    ts_ms: int
    body: bytes


@dataclass(frozen=True, slots=True)
class OutboxMessage:
    """A message as it is sent: `body` is the envelope's body. It never changes."""

    seq: int
    kind: str
    body: bytes
    points: int
    first_ms: int
    last_ms: int

    @property
    def size_bytes(self) -> int:
        """Return the length of the body."""
        return len(self.body)


@dataclass(frozen=True, slots=True)
class Lane:
    """What goes into the same messages: entries of one kind, between `before` and `after`, with commas."""

    name: str
    kind: str
    before: bytes = b""
    after: bytes = b""
    entries_max: int = 1
    size_max: int = _BODY_MAX_BYTES
    keep: bool = False


READINGS: Final = Lane("readings", "readings", b'{"points":[', b"]}", limits.POINTS_MAX)
EVENTS: Final = Lane("events", "events", b'{"events":[', b"]}", limits.EVENTS_MAX)
RESULTS: Final = Lane("results", "results", b'{"results":[', b"]}", limits.EVENTS_MAX)
GAPS: Final = Lane(
    "gaps",
    "events",
    EVENTS.before,
    EVENTS.after,
    limits.EVENTS_MAX,
    _BODY_MAX_BYTES - limits.EVENTS_MAX * GROWTH_MAX_BYTES,  # They grow when they merge.
    keep=True,
)
"""Gap records are events, but have messages of their own: these are never dropped."""


def lane_of(kind: str) -> Lane:
    """Return the lane of a kind. A message of a kind that is no list is one entry, and ends with it: reported, logs."""
    return {"readings": READINGS, "events": EVENTS, "results": RESULTS}.get(kind) or Lane(kind, kind)


@dataclass(frozen=True, slots=True)
class OpenMessage:
    """A message that was not handed out yet and may grow. `size_bytes` counts a comma with each entry."""

    seq: int
    kept_ms: int
    size_bytes: int
    parts: int = 0
    entries: int = 0

    def room_for(self, lane: Lane, entries: Sequence[Entry]) -> int:
        """Return how many of the entries, from the first on, fit in as well."""
        size_bytes = self.size_bytes
        for count, entry in enumerate(entries):
            if self.entries + count >= lane.entries_max or size_bytes + len(entry.body) > lane.size_max:
                return count
            size_bytes += len(entry.body) + 1
        return len(entries)

    def grown(self, entries: int, size_bytes: int) -> OpenMessage:
        """Return it with one more part of joined entries."""
        return OpenMessage(
            self.seq, self.kept_ms, self.size_bytes + size_bytes + 1, self.parts + 1, self.entries + entries
        )
