"""Says when the stream of a cluster fills: what it refuses, or lets go as too old, stays with the hubs, but that must not last.

Pure but for the log. A line when it has got worse, and one when it is well again; what was said is not said twice.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from broker.engines.nats_stream import StreamState
from config import limits, log

_log: Final = log.get(__name__)


class Level(Enum):
    """How it is with the stream. Each is worse than the one before."""

    WELL = 0
    BEHIND = 1
    FULL = 2


class StreamWatch:
    """What is known of the stream from the looks at it."""

    def __init__(self) -> None:
        self.level = Level.WELL
        self._worst_at = 0.0

    def look(self, seen: StreamState, now: float) -> None:
        """Take what was seen at an instant (monotonic), and say what an operator should know of it."""
        level = level_of(seen)
        before, self.level = self.level, level
        if level == before:
            return
        seen_as = {"messages": seen.messages, "size_bytes": seen.size_bytes, "oldest_s": round(seen.oldest_s)}
        if level is Level.WELL:
            _log.info("stream_caught_up", after_s=round(now - self._worst_at), **seen_as)
            return
        if before is Level.WELL:
            self._worst_at = now
        if level is Level.FULL:
            does = "hubs keep what is refused: start more workers, or see why the database is slow"
            _log.warning("stream_full", size_max_bytes=seen.size_max_bytes, what_to_do=does, **seen_as)
        elif before is Level.WELL:
            does = "workers store less than hubs send: start more of them, or see why the database is slow"
            _log.warning("stream_behind", size_max_bytes=seen.size_max_bytes, what_to_do=does, **seen_as)


def level_of(seen: StreamState) -> Level:
    """Return how it is with a stream. One that has no limit (0 or less) is never full."""
    limited = seen.size_max_bytes > 0
    if limited and seen.size_bytes + limits.PACKET_MAX_BYTES > seen.size_max_bytes:
        return Level.FULL
    many = limited and seen.size_bytes > seen.size_max_bytes * limits.JETSTREAM_BEHIND_SHARE
    return Level.BEHIND if many or seen.oldest_s > limits.JETSTREAM_BEHIND_S else Level.WELL
