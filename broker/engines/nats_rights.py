"""The contract's rights as NATS knows them: subjects instead of topics, and nothing of what NATS keeps for itself.

Pure. A level's "/" is "." in a subject and a level's own "." is "//" there, as nats-server itself maps MQTT topics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from broker import rights
from broker.topics import UP_KINDS, Topic, hub_filter
from config.principal import CLOUD_SITE, Principal

STREAM: Final = "HUBLINE_UP"
"""The stream in which what hubs send waits for the ingest workers."""

ACCOUNT: Final = "HUBLINE"
"""The account in which all clients of a fleet meet."""

DELIVERIES: Final = "$MQTT.sub.>"
"""From where nats-server hands a session its messages of QoS 1; a client that names it in a SUBSCRIBE is refused all the same."""

DELIVERIES_STREAM: Final = "$MQTT_msgs"
"""The stream of nats-server's own in which messages wait for subscribers with QoS 1."""

RETAINED_STREAM: Final = "$MQTT_rmsgs"
"""The one that holds what is retained, a message for each topic."""

INBOXES: Final = "_INBOX.>"
"""Where answers to requests arrive; only the cloud service speaks NATS, so nobody else's are there."""

INSIDE: Final = ("$JS.>", "$JSC.>", "$KV.>", "$MQTT.>", "$NRG.>", "$O.>", "$SYS.>", "_INBOX.>", "_R_.>")
"""What NATS keeps for itself. nats-server (seen with 2.15.1) takes "$MQTT.>" from any leaf node, if it isn't denied by name."""

LEAF_UP: Final = ("up",)
"""What a site's leaf node carries to the cloud: what is sent in mass, and subscribed to with QoS 0. What is retained at the site
is not retained here, and what has QoS 1 on both sides does not arrive; so the rest is the connector's to bring."""

_STREAM_API: Final = (
    "$JS.API.INFO",
    f"$JS.API.STREAM.*.{STREAM}",
    f"$JS.API.CONSUMER.*.{STREAM}",
    f"$JS.API.CONSUMER.*.{STREAM}.>",
    f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.>",
    f"$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.>",
    f"$JS.ACK.{STREAM}.>",
    *(f"$JS.API.STREAM.{what}.{own}" for own in (DELIVERIES_STREAM, RETAINED_STREAM) for what in ("INFO", "UPDATE")),
)
"""What a worker asks of its stream and its consumer, and to bound two of nats-server's own streams; of no other one, above all
not that of the MQTT sessions."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """What one client may do, as subjects. An empty list means nothing, where NATS itself would take it for everything.

    What is in `denied` is neither, where nats-server would let more pass than it was told.
    """

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    connections: tuple[str, ...]
    denied: tuple[str, ...] = ()

    def publish_rule(self) -> dict[str, list[str]]:
        """Return what may be published, in the words of nats-server."""
        return _rule(self.publish, self.denied)

    def subscribe_rule(self) -> dict[str, list[str]]:
        """Return what may be subscribed, in the words of nats-server."""
        return _rule(self.subscribe, self.denied)


def permissions(principal: Principal, broker_site: str, more: Sequence[str] = ()) -> Permissions | None:
    """Return what a certificate's holder may do at a site's broker (or the cloud broker, site "-"); None: nothing at all.

    `more` are topic filters that it may subscribe to besides.
    """
    publish = [subject for each in rights.publish_filters(principal, broker_site) for subject in subjects_of(each)]
    reads = (*rights.subscribe_filters(principal, broker_site), *more)
    subscribe = [subject for each in reads for subject in subjects_of(each)]
    if not publish and not subscribe:
        return None
    if subscribe:
        subscribe.append(DELIVERIES)
    if principal.role != "cloud":
        return Permissions(tuple(publish), tuple(subscribe), ("MQTT",))
    return Permissions((*publish, *_STREAM_API), (*subscribe, INBOXES), ("MQTT", "STANDARD"))


def leaf_permissions(principal: Principal, broker_site: str) -> Permissions | None:
    """Return what a leaf node with this certificate may say and hear at the cloud broker; None: it may be none."""
    if principal.role != "connector" or broker_site != CLOUD_SITE:
        return None
    fleet, site = principal.fleet, principal.site
    # The kinds also by their names: nats-server (seen with 2.15.1) does not see that "….up.*" is about what "*.….up.*" asks for.
    says = [subject_of(str(Topic.up(fleet, site, "+", kind))) for kind in UP_KINDS]
    says += [subject_of(hub_filter(fleet, site, "+", channel)) for channel in LEAF_UP]
    hears = (subject_of(hub_filter(fleet, site, "+", "down")),)
    return Permissions(tuple(says), hears, ("LEAFNODE",), INSIDE)


def subject_of(topic: str) -> str:
    """Return the subject of an MQTT topic, or of a topic filter without "#"."""
    return topic.replace(".", "\0").replace("/", ".").replace("\0", "//").replace("+", "*")


def subjects_of(topic_filter: str) -> tuple[str, ...]:
    """Return the subjects of a topic filter: "a/#" matches "a" as well, which "a.>" does not."""
    before, hash_sign, _ = topic_filter.rpartition("#")
    if not hash_sign:
        return (subject_of(topic_filter),)
    parent = before.rstrip("/")
    return (subject_of(parent), f"{subject_of(parent)}.>") if parent else (">",)


def topic_of(subject: str) -> str:
    """Return the MQTT topic of a concrete subject."""
    return subject.replace("//", "\0").replace(".", "/").replace("\0", ".")


def _rule(subjects: tuple[str, ...], denied: tuple[str, ...]) -> dict[str, list[str]]:
    if not subjects:
        return {"deny": [">"]}
    return {"allow": list(subjects)} | ({"deny": list(denied)} if denied else {})


def user_permissions(granted: Permissions) -> dict[str, Any]:
    """Return the part of a configured user that says what it may do."""
    return {
        "permissions": {"publish": granted.publish_rule(), "subscribe": granted.subscribe_rule()},
        "allowed_connection_types": list(granted.connections),
    }
