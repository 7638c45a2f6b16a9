"""Who may publish and subscribe where, from the certificate alone (the contract's "Rights"); all else is refused.

Pure. `Rights` is made once per session; the gate remembers its answers, since they are asked for with every message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from broker.topics import Topic, connector_filter, covers, everything_filter, hub_filter
from config.errors import ProtocolError
from config.principal import CLOUD_SITE, Principal

UP_SIDE: Final = ("up", "state", "heartbeat", "poll")
"""The channels by which a hub speaks to the cloud."""

RETAINED: Final = frozenset(("state", "presence", "last"))
"""The channels whose newest message the contract keeps for later subscribers."""

_Rule: TypeAlias = Callable[[Topic], bool]


class Rights:
    """What one session may do at the broker of `broker_site` ("-" for the cloud broker)."""

    __slots__ = ("_may_publish", "_topic_filters")

    def __init__(self, principal: Principal, broker_site: str):
        self._may_publish = _publish_rule(principal, broker_site)
        self._topic_filters = subscribe_filters(principal, broker_site)

    @property
    def none(self) -> bool:
        """Tell whether the holder has nothing to do at this broker at all."""
        return self._may_publish is None and not self._topic_filters

    def may_publish(self, topic: str, *, retain: bool = False) -> bool:
        """Tell whether the holder may publish to a topic; only some channels have messages that are retained."""
        if self._may_publish is None:
            return False
        try:
            parsed = Topic.parse(topic)
        except ProtocolError:
            return False
        return self._may_publish(parsed) and (not retain or parsed.channel in RETAINED)

    def may_subscribe(self, topic_filter: str) -> bool:
        """Tell whether every topic that a well-formed filter matches may be read by the holder."""
        return any(covers(right, topic_filter) for right in self._topic_filters)


def may_publish(principal: Principal, broker_site: str, topic: str) -> bool:
    """Tell whether a certificate's holder may publish to a topic at a site's broker (or the cloud broker, site "-")."""
    return Rights(principal, broker_site).may_publish(topic)


def may_subscribe(principal: Principal, broker_site: str, topic_filter: str) -> bool:
    """Tell whether a certificate's holder may subscribe to a topic filter there."""
    return Rights(principal, broker_site).may_subscribe(topic_filter)


def publish_filters(principal: Principal, broker_site: str) -> tuple[str, ...]:
    """Return topic filters that match exactly what the holder may publish to: for engines that know rights only so."""
    fleet, site, name = principal.fleet, principal.site, principal.name
    at_cloud = broker_site == CLOUD_SITE
    if principal.role in ("hub", "connector") and not at_cloud and site != broker_site:
        return ()
    match principal.role:
        case "hub":
            return tuple(hub_filter(fleet, site, name, channel) for channel in UP_SIDE)
        case "connector":
            carried = UP_SIDE if at_cloud else ("down",)
            return (
                str(Topic.connector_state(fleet, site, name)),
                *(hub_filter(fleet, site, "+", channel) for channel in carried),
            )
        case "cloud":
            return tuple(hub_filter(fleet, "+", "+", channel) for channel in ("down", "presence", "last"))
        case "reader" | "broker":
            return ()


def _publish_rule(principal: Principal, broker_site: str) -> _Rule | None:
    """Return what tells whether a topic may be published to, or None for someone who publishes nothing."""
    fleet, site, name = principal.fleet, principal.site, principal.name
    at_cloud = broker_site == CLOUD_SITE
    if principal.role in ("hub", "connector") and not at_cloud and site != broker_site:
        return None
    match principal.role:
        case "hub":
            own = (fleet, site, "hub", name)
            return lambda topic: (topic.fleet, topic.site, topic.owner, topic.name) == own and topic.channel in UP_SIDE
        case "connector":
            state = Topic.connector_state(fleet, site, name)
            carried = UP_SIDE if at_cloud else ("down",)
            return lambda topic: (
                topic == state
                or ((topic.fleet, topic.site, topic.owner) == (fleet, site, "hub") and topic.channel in carried)
            )
        case "cloud":
            return lambda topic: topic.fleet == fleet and topic.channel in ("down", "presence", "last")
        case "reader" | "broker":
            return None


def subscribe_filters(principal: Principal, broker_site: str) -> tuple[str, ...]:
    """Return the widest topic filters that the holder may subscribe to."""
    fleet, site, name = principal.fleet, principal.site, principal.name
    at_cloud = broker_site == CLOUD_SITE
    if principal.role in ("hub", "connector") and not at_cloud and site != broker_site:
        return ()
    match principal.role:
        case "hub":
            return hub_filter(fleet, site, name, "down"), connector_filter(fleet, site)
        case "connector":
            return tuple(hub_filter(fleet, site, "+", channel) for channel in (("down",) if at_cloud else UP_SIDE))
        case "cloud":
            return (everything_filter(fleet),)
        case "reader":
            return (everything_filter(fleet, None if site == CLOUD_SITE else site),)
        case "broker":
            return ()
