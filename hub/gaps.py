"""Gap records: what is lost, from when to when, and why (the contract's event "gap")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import orjson

FULL: Final = "outbox full"
OLD: Final = "outbox too old"
DAMAGED: Final = "outbox damaged"
"""Reasons of the outbox itself; `record_loss` takes any other, such as DISK_FULL."""
DISK_FULL: Final = "disk full"

GROWTH_MAX_BYTES: Final = 128
"""How much longer a record can become by merging: the digits of six numbers."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Messages that the cloud will never get, all from `first_seq` to `last_seq`, with `points` readings in them."""

    first_seq: int
    last_seq: int
    points: int
    first_ms: int
    last_ms: int
    reason: str

    def merged(self, later: Gap) -> Gap | None:
        """Return one record for both if `later` follows directly and for the same reason."""
        if later.reason != self.reason or later.first_seq != self.last_seq + 1:
            return None
        return Gap(
            self.first_seq,
            later.last_seq,
            self.points + later.points,
            min(self.first_ms, later.first_ms),
            max(self.last_ms, later.last_ms),
            self.reason,
        )

    def encoded(self, now_ms: int) -> bytes:
        """Return the event as JSON."""
        return orjson.dumps(
            {
                "event": "gap",
                "ts": now_ms,
                "from_seq": self.first_seq,
                "to_seq": self.last_seq,
                "points": self.points,
                "first_ts": self.first_ms,
                "last_ts": self.last_ms,
                "reason": self.reason,
            }
        )
