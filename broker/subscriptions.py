"""Finds the subscribers of a topic, and the topics of a filter, by their levels: the cost is that of what is found.

Pure (MQTT 3.1.1, 4.7). Topics of the server's "$" tree are never published, so no rule for them is needed here.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from broker.topics import levels_of
from config import limits

S = TypeVar("S")

_ONE: Final = "+"
_REST: Final = "#"


class _Branch(Generic[S]):
    """What begins with the same levels of a filter."""

    __slots__ = ("below", "subscribers")

    def __init__(self) -> None:
        self.below: dict[str, _Branch[S]] = {}
        self.subscribers: dict[S, None] = {}


class SubscriptionIndex(Generic[S]):
    """Topic filters and who subscribed to them. Subscribers are hashable and equal only to themselves."""

    def __init__(self) -> None:
        self._root: _Branch[S] = _Branch()
        self._known: dict[str, tuple[S, ...]] = {}

    def add(self, topic_filter: str, subscriber: S) -> None:
        """Note that a subscriber wants what a well-formed filter matches; twice is once."""
        branch = self._root
        for level in levels_of(topic_filter):
            branch = branch.below.setdefault(level, _Branch())
        branch.subscribers[subscriber] = None
        self._known.clear()

    def remove(self, topic_filter: str, subscriber: S) -> None:
        """Forget one subscription, if it is there, and the branches that only led to it."""
        way: list[tuple[_Branch[S], str]] = []
        branch = self._root
        for level in levels_of(topic_filter):
            way.append((branch, level))
            found = branch.below.get(level)
            if found is None:
                return
            branch = found
        branch.subscribers.pop(subscriber, None)
        for parent, level in reversed(way):
            child = parent.below[level]
            if child.subscribers or child.below:
                break
            del parent.below[level]
        self._known.clear()

    def subscribers(self, topic: str) -> tuple[S, ...]:
        """Return who gets a message, each once, however many of its filters match."""
        known = self._known.get(topic)
        if known is None:
            found: dict[S, None] = {}
            _collect(self._root, levels_of(topic), 0, found)
            known = tuple(found)
            if len(self._known) >= limits.TOPICS_REMEMBERED_MAX:
                self._known.clear()
            self._known[topic] = known
        return known

    def __bool__(self) -> bool:
        return bool(self._root.below)


def _collect(branch: _Branch[S], levels: tuple[str, ...], depth: int, found: dict[S, None]) -> None:
    rest = branch.below.get(_REST)
    if rest is not None:
        found.update(rest.subscribers)  # "#" includes the level above it (4.7.1.2).
    if depth == len(levels):
        found.update(branch.subscribers)
        return
    for level in (levels[depth], _ONE):
        below = branch.below.get(level)
        if below is not None:
            _collect(below, levels, depth + 1, found)


class _Level:
    """What begins with the same levels of a topic."""

    __slots__ = ("below", "topic")

    def __init__(self) -> None:
        self.below: dict[str, _Level] = {}
        self.topic: str | None = None


class TopicTree:
    """A set of topics that is searched by topic filter."""

    def __init__(self) -> None:
        self._root = _Level()

    def add(self, topic: str) -> None:
        """Take a topic into the set."""
        level = self._root
        for name in levels_of(topic):
            level = level.below.setdefault(name, _Level())
        level.topic = topic

    def remove(self, topic: str) -> None:
        """Take a topic out of the set, and the levels that only led to it."""
        way: list[tuple[_Level, str]] = []
        level = self._root
        for name in levels_of(topic):
            way.append((level, name))
            found = level.below.get(name)
            if found is None:
                return
            level = found
        level.topic = None
        for parent, name in reversed(way):
            child = parent.below[name]
            if child.topic is not None or child.below:
                break
            del parent.below[name]

    def matching(self, topic_filter: str) -> list[str]:
        """Return the topics that a well-formed filter matches."""
        found: list[str] = []
        _search(self._root, levels_of(topic_filter), 0, found)
        return found

    def __bool__(self) -> bool:
        return bool(self._root.below)


def _search(level: _Level, wanted: tuple[str, ...], depth: int, found: list[str]) -> None:
    if depth == len(wanted):
        if level.topic is not None:
            found.append(level.topic)
    elif wanted[depth] == _REST:
        if level.topic is not None:
            found.append(level.topic)  # "#" includes the level above it (4.7.1.2).
        for below in level.below.values():
            _search(below, wanted, depth, found)
    elif wanted[depth] == _ONE:
        for below in level.below.values():
            _search(below, wanted, depth + 1, found)
    else:
        exact = level.below.get(wanted[depth])
        if exact is not None:
            _search(exact, wanted, depth + 1, found)
