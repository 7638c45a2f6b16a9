"""The contract's rights as NATS knows them: subjects instead of topics, and nothing of what NATS keeps for itself.

Pure. A level's "/" is "." in a subject and a level's own "." is "//" there, as nats-server itself maps MQTT topics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from broker import rights
from config.principal import Principal

STREAM: Final = "HUBLINE_UP"
"""The stream in which what hubs send waits for the ingest workers."""

ACCOUNT: Final = "HUBLINE"
"""The account in which all clients of a fleet meet."""

DELIVERIES: Final = "$MQTT.sub.>"
"""From where nats-server hands a session its messages of QoS 1; a client that names it in a SUBSCRIBE is refused all the same."""

INBOXES: Final = "_INBOX.>"
"""Where answers to requests arrive; only the cloud service speaks NATS, so nobody else's are there."""

_STREAM_API: Final = (
    "$JS.API.INFO",
    f"$JS.API.STREAM.*.{STREAM}",
    f"$JS.API.CONSUMER.*.{STREAM}",
    f"$JS.API.CONSUMER.*.{STREAM}.>",
    f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.>",
    f"$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.>",
    f"$JS.ACK.{STREAM}.>",
)
"""What a worker asks of its stream and its consumer; no other stream, above all none of the MQTT sessions'."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """What one client may do, as subjects. An empty list means nothing, where NATS itself would take it for everything."""

    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    connections: tuple[str, ...]

    def publish_rule(self) -> dict[str, list[str]]:
        """Return what may be published, in the words of nats-server."""
        return _rule(self.publish)

    def subscribe_rule(self) -> dict[str, list[str]]:
        """Return what may be subscribed, in the words of nats-server."""
        return _rule(self.subscribe)


def permissions(principal: Principal, broker_site: str) -> Permissions | None:
    """Return what a certificate's holder may do at a site's broker (or the cloud broker, site "-"); None: nothing at all."""
    publish = [subject for each in rights.publish_filters(principal, broker_site) for subject in subjects_of(each)]
    subscribe = [subject for each in rights.subscribe_filters(principal, broker_site) for subject in subjects_of(each)]
    if not publish and not subscribe:
        return None
    if subscribe:
        subscribe.append(DELIVERIES)
    if principal.role != "cloud":
        return Permissions(tuple(publish), tuple(subscribe), ("MQTT",))
    return Permissions((*publish, *_STREAM_API), (*subscribe, INBOXES), ("MQTT", "STANDARD"))


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


def _rule(subjects: tuple[str, ...]) -> dict[str, list[str]]:
    return {"allow": list(subjects)} if subjects else {"deny": [">"]}


def user_permissions(granted: Permissions) -> dict[str, Any]:
    """Return the part of a configured user that says what it may do."""
    return {
        "permissions": {"publish": granted.publish_rule(), "subscribe": granted.subscribe_rule()},
        "allowed_connection_types": list(granted.connections),
    }
