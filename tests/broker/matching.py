"""MQTT's matching rule, written as slowly and plainly as possible: what our fast ways are held against."""

from __future__ import annotations


def matches(topic_filter: str, topic: str) -> bool:
    """Tell whether a filter matches a topic (MQTT 3.1.1, 4.7.1)."""
    return _match(topic_filter.split("/"), topic.split("/"))


def _match(wanted: list[str], levels: list[str]) -> bool:
    if wanted == ["#"]:
        return True  # Also for no level at all: "a/#" matches "a".
    if not wanted or not levels:
        return wanted == levels
    return wanted[0] in ("+", levels[0]) and _match(wanted[1:], levels[1:])
