"""Builds and parses topics; the only place that joins with "/" (the contract's "Topics")."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from config import limits
from config.errors import ProtocolError

ROOT: Final = "hl1"
UP_KINDS: Final = ("readings", "events", "logs", "results", "reported", "requests")
DOWN_KINDS: Final = ("ack", "task", "settings", "component")
HUB_CHANNELS: Final = ("up", "state", "heartbeat", "poll", "down", "presence", "last")
LEAF_CHANNELS: Final = ("up", "down", "last")

_LABEL: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LEAF: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


def is_label(text: str) -> bool:
    """Tell whether `text` may be an id: a DNS label of lower-case letters, digits and hyphens."""
    return _LABEL.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class Topic:
    """One concrete topic of ours.

    `owner` is "hub" or "connector", `name` its id, `channel` one of HUB_CHANNELS (for a connector only "state"), and
    `leaf` the kind (of `up` and `down`) or the sensor (of `last`); it is None for the other channels.
    """

    fleet: str
    site: str
    owner: str
    name: str
    channel: str
    leaf: str | None = None

    @classmethod
    def up(cls, fleet: str, site: str, hub_id: str, kind: str) -> Topic:
        """Return the topic of a hub's sequenced messages of one kind."""
        return cls(fleet, site, "hub", hub_id, "up", kind)

    @classmethod
    def down(cls, fleet: str, site: str, hub_id: str, kind: str) -> Topic:
        """Return the topic of the cloud's messages of one kind to a hub."""
        return cls(fleet, site, "hub", hub_id, "down", kind)

    @classmethod
    def hub_state(cls, fleet: str, site: str, hub_id: str) -> Topic:
        """Return the topic of a hub's birth, clean stop and last will."""
        return cls(fleet, site, "hub", hub_id, "state")

    @classmethod
    def heartbeat(cls, fleet: str, site: str, hub_id: str) -> Topic:
        """Return the topic of a hub's life signs."""
        return cls(fleet, site, "hub", hub_id, "heartbeat")

    @classmethod
    def poll(cls, fleet: str, site: str, hub_id: str) -> Topic:
        """Return the topic by which a hub asks for tasks and settings."""
        return cls(fleet, site, "hub", hub_id, "poll")

    @classmethod
    def connector_state(cls, fleet: str, site: str, connector_id: str) -> Topic:
        """Return the topic of a connector's state and last will."""
        return cls(fleet, site, "connector", connector_id, "state")

    @classmethod
    def presence(cls, fleet: str, site: str, hub_id: str) -> Topic:
        """Return the topic of a hub's one status, as the cloud sees it."""
        return cls(fleet, site, "hub", hub_id, "presence")

    @classmethod
    def last(cls, fleet: str, site: str, hub_id: str, sensor: str) -> Topic:
        """Return the topic of a sensor's newest value."""
        return cls(fleet, site, "hub", hub_id, "last", sensor)

    @classmethod
    def parse(cls, text: str) -> Topic:
        """Read a topic. Raises ProtocolError if the contract has none like it."""
        levels = text.split("/")
        if len(levels) not in (6, 7) or levels[0] != ROOT:
            raise ProtocolError("not a topic of the contract", topic=text[: limits.TOPIC_MAX_BYTES])
        _, fleet, site, owner, name, channel, *rest = levels
        leaf = rest[0] if rest else None
        fits = (
            all(_LABEL.fullmatch(label) for label in (fleet, site, name))
            and channel in (HUB_CHANNELS if owner == "hub" else ("state",) if owner == "connector" else ())
            and (leaf is not None) == (channel in LEAF_CHANNELS)
            and (leaf is None or _LEAF.fullmatch(leaf))
        )
        if not fits:
            raise ProtocolError("not a topic of the contract", topic=text[: limits.TOPIC_MAX_BYTES])
        return cls(fleet, site, owner, name, channel, leaf)

    def __str__(self) -> str:
        levels = (ROOT, self.fleet, self.site, self.owner, self.name, self.channel)
        return "/".join(levels if self.leaf is None else (*levels, self.leaf))


def hub_filter(fleet: str, site: str, hub_id: str, channel: str) -> str:
    """Return the topic filter of one channel; `site` and `hub_id` may be "+" for all. Leaf channels get a "+" at their end."""
    levels = [ROOT, fleet, site, "hub", hub_id, channel]
    return "/".join([*levels, "+"] if channel in LEAF_CHANNELS else levels)


def connector_filter(fleet: str, site: str, connector_id: str = "+") -> str:
    """Return the topic filter of connectors' states; `site` may be "+"."""
    return "/".join((ROOT, fleet, site, "connector", connector_id, "state"))


def shared_filter(share: str, topic_filter: str) -> str:
    """Return the filter by which all subscribers of the same share get each message once together (MQTT 5, 4.8.2)."""
    return "/".join(("$share", share, topic_filter))


def everything_filter(fleet: str, site: str | None = None) -> str:
    """Return the topic filter of all of a fleet's topics, or of one site's."""
    return "/".join((ROOT, fleet, "#") if site is None else (ROOT, fleet, site, "#"))


def is_of_state(text: str) -> bool:
    """Tell whether a topic is one on which somebody says how he is, or a filter asks for nothing else."""
    return text.endswith("/state")


def levels_of(text: str) -> tuple[str, ...]:
    """Return the levels of a topic or topic filter (MQTT 3.1.1, 4.7)."""
    return tuple(text.split("/"))


def is_topic(text: str) -> bool:
    """Tell whether `text` may be published to: not empty, no wildcard, no NUL, not of the server's "$" tree."""
    return bool(text) and not text.startswith("$") and not any(char in text for char in "+#\0")


def is_topic_filter(text: str) -> bool:
    """Tell whether `text` is a well-formed topic filter (MQTT 3.1.1, 4.7.1)."""
    if not text or "\0" in text:
        return False
    *before, last = text.split("/")
    return all(level == "+" or not any(char in level for char in "+#") for level in before) and (
        last in ("+", "#") or not any(char in last for char in "+#")
    )


def covers(outer: str, inner: str) -> bool:
    """Tell whether every topic that the filter (or topic) `inner` matches is matched by the filter `outer` too."""
    outer_levels, inner_levels = outer.split("/"), inner.split("/")
    for position, level in enumerate(outer_levels):
        if level == "#":
            return position <= len(inner_levels)  # "#" stands for its parent level, too.
        if position >= len(inner_levels):
            return False
        other = inner_levels[position]
        if level != other and (level != "+" or other == "#"):
            return False
    return len(outer_levels) == len(inner_levels)
