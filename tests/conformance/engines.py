"""What every engine must do at each of the checks, and where one does otherwise: why that harms nobody, and what proves it.

A test asks `expected` what to see and compares; so an engine that changes, for better or worse, makes the table wrong.
docs/engines.md shows the same table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal, TypeAlias, get_args

EngineName: TypeAlias = Literal["amqtt", "mosquitto", "nats"]
ENGINES: Final[tuple[EngineName, ...]] = get_args(EngineName)
TITLES: Final[Mapping[EngineName, str]] = {"amqtt": "embedded", "mosquitto": "Mosquitto", "nats": "NATS"}
PROGRAMS: Final[Mapping[EngineName, str | None]] = {"amqtt": None, "mosquitto": "mosquitto", "nats": "nats-server"}
"""What must be installed."""


class Check(Enum):
    """What engines may differ in; the value is what the rule is, as docs/engines.md says it."""

    FORBIDDEN_PUBLISH = "a publish beyond the rights"
    FORBIDDEN_SUBSCRIBE = "a subscription beyond the rights"
    FORBIDDEN_WILL = "a will beyond the rights"
    CLIENT_ID = "a client id that is not the certificate's"
    RETAINED_ELSEWHERE = "a retained message on a channel that retains none"
    ODD_KIND = "a kind or sensor that the contract has no name for"
    NO_RIGHTS = "a member that has nothing to do at this broker"
    TOO_LARGE = "a message that is one byte too large"
    LONG_TOPIC = "a topic of more than 512 bytes"
    LONG_CLIENT_ID = "a client id with a suffix of more than 32 characters"
    MANY_SESSIONS = "more than 16 sessions of one certificate"
    PERSISTENT_SESSION = "a session that is not clean"
    QOS_2 = "a message of QoS 2"
    HEARD_QOS = "what is subscribed to with QoS 1 or 2"
    OTHER_VERSION = "another version of MQTT (3.1, 5)"
    LATE_CONNECT = "a connection without CONNECT"
    REVOKED = "a revoked certificate"
    TAKEN_OVER = "the will of a session that a newer one of the same client has ended"
    SHARES = "shared subscriptions"


RULE: Final[Mapping[Check, str]] = {
    Check.FORBIDDEN_PUBLISH: "ends the session",
    Check.FORBIDDEN_SUBSCRIBE: "is refused and ends the session",
    Check.FORBIDDEN_WILL: "is refused at CONNECT",
    Check.CLIENT_ID: "is refused at CONNECT",
    Check.RETAINED_ELSEWHERE: "is refused",
    Check.ODD_KIND: "is refused",
    Check.NO_RIGHTS: "is refused at CONNECT",
    Check.TOO_LARGE: "is refused",
    Check.LONG_TOPIC: "is refused",
    Check.LONG_CLIENT_ID: "is refused at CONNECT",
    Check.MANY_SESSIONS: "are refused",
    Check.PERSISTENT_SESSION: "is refused at CONNECT",
    Check.QOS_2: "ends the session",
    Check.HEARD_QOS: "comes with QoS 0",
    Check.OTHER_VERSION: "is refused at CONNECT",
    Check.LATE_CONNECT: "is closed within 15 s",
    Check.REVOKED: "is refused in the handshake",
    Check.TAKEN_OVER: "is sent",
    Check.SHARES: "are not served",
}
"""What the embedded engine does, and what counts where no difference is named."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What an engine does instead, why that harms nobody, and the test that proves it ("file::test")."""

    instead: str
    harmless: str
    proof: str


_HERE: Final = "tests/conformance"
_RIGHTS: Final = f"{_HERE}/test_rights.py"
_SESSIONS: Final = f"{_HERE}/test_sessions.py"
_REFUSED_BY_THE_CLOUD: Final = (
    "tests/end_to_end/test_refusals.py::test_messages_that_the_contract_refuses_are_counted_and_kept_aside"
)

_DROPPED: Final = Difference(
    "is acknowledged and dropped",
    "no acknowledgement between hops deletes anything: a hub keeps its messages until the cloud has stored them",
    "tests/hub/test_courier.py::test_every_message_is_acknowledged_at_last_whatever_is_lost",
)
_UNHEARD_WILL: Final = Difference(
    "is accepted, and never sent",
    "nobody ever hears it, retained or not",
    f"{_SESSIONS}::test_a_will_beyond_the_rights_never_arrives_retained_or_not",
)
_KEPT: Final = "it is the hub's own, and the cloud stores it once; heartbeats and polls that were kept it ignores"
_NODE: Final = "tests/broker/test_nats_node.py"
_ODD: Final = Difference(
    "is delivered",
    "it is still the hub's own channel; the cloud sets aside what it cannot read, and connectors drop it",
    "tests/cloud/test_ingest.py::test_what_can_not_be_read_is_set_aside_and_never_acknowledged",
)
_MANY: Final = Difference(
    "are served",
    "each costs what any session costs, all together no more than the engine's limits; revoking it silences them all",
    f"{_HERE}/test_trust.py::test_revocation_and_new_members_count_without_a_restart_and_disturb_nobody",
)
_HEARD_QOS: Final = Difference(
    "comes with QoS 1 if it was published so",
    "no acknowledgement between hops deletes anything, so nobody relies on either",
    "tests/hub/test_courier.py::test_every_message_is_acknowledged_at_last_whatever_is_lost",
)
_UNASKED: Final = "none of our clients asks for one, and nothing relies on what a broker keeps"

DIFFERENCES: Final[Mapping[EngineName, Mapping[Check, Difference]]] = {
    "amqtt": {},
    "mosquitto": {
        Check.FORBIDDEN_PUBLISH: _DROPPED,
        Check.FORBIDDEN_SUBSCRIBE: Difference(
            "is granted, and brings nothing beyond the rights",
            "every message is checked again before it is delivered",
            f"{_RIGHTS}::test_what_is_subscribed_to_brings_all_of_it_if_allowed_and_nothing_beyond_the_rights",
        ),
        Check.FORBIDDEN_WILL: _UNHEARD_WILL,
        Check.CLIENT_ID: Difference(
            "is accepted",
            "our own ids end in what strangers cannot guess; who is thrown out all the same comes back and sends again",
            "tests/hub/test_courier.py::test_a_closed_path_takes_back_what_was_in_flight",
        ),
        Check.RETAINED_ELSEWHERE: Difference(
            "is kept",
            f"{_KEPT}; topics made up without end fill the memory, which MemoryMax= of the unit bounds and a restart empties",
            "tests/cloud/test_ingest.py::test_a_life_sign_that_was_retained_says_nothing",
        ),
        Check.ODD_KIND: _ODD,
        Check.NO_RIGHTS: Difference(
            "is let in",
            "it can neither say nor hear anything",
            f"{_RIGHTS}::test_who_has_nothing_to_do_at_a_broker_gets_nothing_there",
        ),
        Check.LONG_TOPIC: _ODD,
        Check.LONG_CLIENT_ID: Difference(
            "is served",
            "the length of a stranger's own id harms nobody: a packet is bounded",
            f"{_HERE}/test_messages.py::test_names_that_are_too_long_are_refused_or_go_no_further",
        ),
        Check.MANY_SESSIONS: _MANY,
        Check.PERSISTENT_SESSION: Difference(
            "is served",
            f"{_UNASKED}; what waits for it is bounded, and after an hour it is forgotten",
            "tests/end_to_end/test_faults.py::test_every_process_can_be_killed_in_turn",
        ),
        Check.QOS_2: Difference(
            "is served",
            "it arrives as one of QoS 0 or 1 would: subscribers of ours ask for no more",
            f"{_HERE}/test_messages.py::test_qos_2_is_not_part_of_the_contract",
        ),
        Check.HEARD_QOS: _HEARD_QOS,
        Check.OTHER_VERSION: Difference(
            "is served",
            "identity, rights and limits are the same in every version",
            f"{_SESSIONS}::test_another_version_of_mqtt_gives_no_other_rights",
        ),
        Check.LATE_CONNECT: Difference(
            "is closed within 2 minutes",
            "there is a bound of connections, and a client that never connects costs nothing but its place",
            f"{_HERE}/test_messages.py::test_a_flood_of_connections_stalls_nobody_for_long",
        ),
        Check.SHARES: Difference(
            "lose what falls to a stranger who knows their name",
            "its end is a digest of the cloud's key, which nobody else can know; and hubs send again what no worker has stored",
            f"{_RIGHTS}::test_the_share_of_the_ingest_workers_is_joined_by_nobody_else",
        ),
    },
    "nats": {
        Check.FORBIDDEN_PUBLISH: _DROPPED,
        Check.FORBIDDEN_SUBSCRIBE: Difference(
            "is refused",
            "the session goes on without it",
            f"{_RIGHTS}::test_what_is_subscribed_to_brings_all_of_it_if_allowed_and_nothing_beyond_the_rights",
        ),
        Check.FORBIDDEN_WILL: _UNHEARD_WILL,
        Check.RETAINED_ELSEWHERE: Difference(
            "is kept",
            f"{_KEPT}; topics made up without end get 1 GiB of disk, beyond which only known ones are renewed",
            f"{_NODE}::test_a_hub_that_makes_up_topics_without_end_fills_no_disk",
        ),
        Check.ODD_KIND: _ODD,
        Check.TOO_LARGE: Difference(
            "passes",
            "the engine counts the whole packet: up to 528 bytes more than a message may have; the cloud refuses them",
            _REFUSED_BY_THE_CLOUD,
        ),
        Check.LONG_TOPIC: _ODD,
        Check.MANY_SESSIONS: _MANY,
        Check.PERSISTENT_SESSION: Difference(
            "is served",
            f"{_UNASKED}; after an hour it is forgotten, and all that waits for sessions with QoS 1 is 1 GiB at most",
            f"{_NODE}::test_a_subscriber_that_never_comes_back_fills_no_disk",
        ),
        Check.HEARD_QOS: _HEARD_QOS,
        Check.REVOKED: Difference(
            "is refused at CONNECT",
            "nats-server knows no revocation list; Hubline answers it for each connection",
            f"{_HERE}/test_trust.py::test_the_old_certificate_of_a_reinstated_member_stays_revoked",
        ),
        Check.TAKEN_OVER: Difference(
            "is not sent",
            "the newer session's birth says all: sessions are numbered, and a will of an older one would change nothing",
            "tests/cloud/test_presence.py::test_births_and_wills_count_in_the_order_of_their_sessions",
        ),
    },
}


def expected(engine: EngineName, check: Check) -> str:
    """Return what must be seen at an engine."""
    found = DIFFERENCES[engine].get(check)
    return RULE[check] if found is None else found.instead
