"""Which states a session asks for again, so that none is missed, and which copies it must not hear then (pure).

NATS sends a subscriber what was retained before it began with the SUBSCRIBE, and what is published once it has finished: a state
that is published in between comes neither way. And what it has read from the disk meanwhile it may give to everybody as the
retained state, for two minutes. So whoever subscribes to states does it again when the first time is over, and once more when
that memory has gone. What comes then is mostly known, and may be older than what has come live.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker.topics import covers
from config import limits

STATE_LEVEL: Final = "/state"
"""The end of every topic on which a member or a bridge says how it is: retained, and only once."""


class States:
    """The states that one session wants, and what it has heard of them, by topic."""

    def __init__(self) -> None:
        self._filters: dict[str, int] = {}
        self._asked: set[int] = set()
        self._waits: Sequence[float] = ()
        self._again = False
        self._live: set[str] = set()
        self._copies: dict[str, int] = {}

    def asked(self, number: int, filters: Sequence[tuple[str, int]]) -> None:
        """Take note of a SUBSCRIBE with this packet id, after which everything that is retained is wanted (again)."""
        of_states = {topic_filter: qos for topic_filter, qos in filters if topic_filter.endswith(STATE_LEVEL)}
        if not of_states:
            return
        self._filters |= of_states
        self._asked.add(number)
        for topic in [*self._live, *self._copies]:
            if any(covers(topic_filter, topic) for topic_filter in of_states):
                self._live.discard(topic)
                self._copies.pop(topic, None)

    def left(self, topic_filters: Sequence[str]) -> None:
        """Take note that these are not wanted any more."""
        for topic_filter in topic_filters:
            self._filters.pop(topic_filter, None)

    def granted(self, number: int) -> float | None:
        """Return in how many seconds to `ask_again`, instead of any earlier plan; None if that SUBSCRIBE changes nothing."""
        if number not in self._asked:
            return None
        self._asked.remove(number)
        first, *self._waits = limits.SUBSCRIBE_AGAIN_S
        return first

    def ask_again(self) -> tuple[list[tuple[str, int]], float | None]:
        """Return what to subscribe to once more, and in how many seconds to come back. From now on known copies may come."""
        self._again = True
        wait_s, self._waits = (self._waits[0], self._waits[1:]) if self._waits else (None, ())
        return list(self._filters.items()), wait_s

    def is_stale(self, topic: str, payload: bytes, retain: bool) -> bool:
        """Tell whether a message that has just come is a copy which says nothing new, or less than what has come live."""
        if not topic.endswith(STATE_LEVEL):
            return False
        if not retain:
            self._live.add(topic)
            return False
        known, self._copies[topic] = self._copies.get(topic), hash(payload)
        return topic in self._live or (self._again and known == self._copies[topic])
