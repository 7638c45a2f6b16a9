"""Which states a session asks for again, so that none is missed, and which copies it must not hear then (pure).

NATS sends a subscriber what was retained before it began with the SUBSCRIBE, and what is published once it has finished: a state
that is published in between comes neither way. And what it has read from the disk meanwhile it may give to everybody as the
retained state, for two minutes. So whoever subscribes to states does it again when the first time is over, and once more when
that memory has gone. What comes then is mostly known, and may be older than what has come live.
"""

from __future__ import annotations

from collections.abc import Sequence

from broker.topics import covers, is_of_state
from config import limits


class States:
    """The states that one session wants, and what it has heard of them, by topic. `waits_s`: see SUBSCRIBE_AGAIN_S."""

    def __init__(self, waits_s: tuple[float, ...]):
        self._all_waits_s = waits_s
        self._waits_s: tuple[float, ...] = ()
        self._filters: dict[str, int] = {}
        self._asked: set[int] = set()
        self._live: set[str] = set()
        self._copies: dict[str, int] = {}

    def asked(self, packet_id: int, filters: Sequence[tuple[str, int]]) -> None:
        """Take note of a SUBSCRIBE, after which everything that is retained is wanted (again)."""
        of_states = {topic_filter: qos for topic_filter, qos in filters if is_of_state(topic_filter)}
        if of_states:
            self._filters |= of_states
            self._asked.add(packet_id)
        for topic in [*self._live, *self._copies]:
            if any(covers(topic_filter, topic) for topic_filter, _ in filters):
                self._live.discard(topic)
                self._copies.pop(topic, None)

    def left(self, topic_filters: Sequence[str]) -> None:
        """Take note that these are not wanted any more."""
        for topic_filter in topic_filters:
            self._filters.pop(topic_filter, None)

    def granted(self, packet_id: int) -> float | None:
        """Return in how many seconds to `ask_again`, instead of any earlier plan; None if that SUBSCRIBE changes nothing."""
        if packet_id not in self._asked:
            return None
        self._asked.remove(packet_id)
        return self._next_wait_s(self._all_waits_s)

    def ask_again(self) -> tuple[list[tuple[str, int]], float | None]:
        """Return what to subscribe to once more, and in how many seconds to come back."""
        return list(self._filters.items()), self._next_wait_s(self._waits_s)

    def heard(self, topic: str, payload: bytes, retain: bool) -> bool:
        """Take note of a message that has come, and return whether it is news.

        It is not if it is a retained copy of a state that is known already, or of one of which a newer word has come live.
        """
        if not self._filters or not is_of_state(topic):
            return True
        if len(self._live) + len(self._copies) >= limits.STATES_REMEMBERED:
            return True
        if not retain:
            self._live.add(topic)
            return True
        known, self._copies[topic] = self._copies.get(topic), hash(payload)
        return topic not in self._live and known != self._copies[topic]

    def _next_wait_s(self, waits_s: tuple[float, ...]) -> float | None:
        self._waits_s = waits_s[1:]
        return waits_s[0] if waits_s else None
