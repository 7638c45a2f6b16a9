"""The contract's table of rights, cell by cell: a wrong cell lets one machine speak for another."""

from __future__ import annotations

import pytest

from broker.rights import Rights, may_publish, may_subscribe, publish_filters
from broker.topics import HUB_CHANNELS, LEAF_CHANNELS, Topic, covers
from config.principal import Principal, Role

SITE = "hl1/acme/berlin"
HUB = f"{SITE}/hub/pc-1"
CLOUD = "-"


def who(role: Role, name: str, site: str) -> Principal:
    return Principal("acme", site, role, name)


PC_1 = who("hub", "pc-1", "berlin")
CONNECTOR = who("connector", "berlin-1", "berlin")
SERVICE = who("cloud", "cloud-1", CLOUD)
READER = who("reader", "r", CLOUD)
LOCAL_READER = who("reader", "r", "berlin")

UP = ("up/readings", "up/events", "up/a-kind-of-tomorrow", "state", "heartbeat", "poll")
DOWN = ("down/ack", "down/task")
CLOUDS = ("presence", "last/cpu.percent")


@pytest.mark.parametrize("at", ["berlin", CLOUD])
@pytest.mark.parametrize("channel", UP + DOWN + CLOUDS)
def test_a_hub_publishes_its_own_up_side_and_nothing_else(at: str, channel: str) -> None:
    assert may_publish(PC_1, at, f"{HUB}/{channel}") == (channel in UP)
    assert not may_publish(PC_1, at, f"{SITE}/hub/pc-2/{channel}")
    assert not may_publish(PC_1, at, f"hl1/acme/munich/hub/pc-1/{channel}")
    assert not may_publish(PC_1, at, f"hl1/other/berlin/hub/pc-1/{channel}")


@pytest.mark.parametrize("channel", UP + DOWN + CLOUDS)
def test_a_connector_carries_down_at_its_site_and_up_at_the_cloud(channel: str) -> None:
    assert may_publish(CONNECTOR, "berlin", f"{HUB}/{channel}") == (channel in DOWN)
    assert may_publish(CONNECTOR, CLOUD, f"{HUB}/{channel}") == (channel in UP)
    assert not may_publish(CONNECTOR, CLOUD, f"hl1/acme/munich/hub/pc-1/{channel}")


@pytest.mark.parametrize("at", ["berlin", CLOUD])
def test_a_connector_publishes_its_own_state_and_no_other_connectors(at: str) -> None:
    assert may_publish(CONNECTOR, at, f"{SITE}/connector/berlin-1/state")
    assert not may_publish(CONNECTOR, at, f"{SITE}/connector/berlin-2/state")
    assert not may_publish(PC_1, at, f"{SITE}/connector/berlin-1/state")


@pytest.mark.parametrize("channel", UP + DOWN + CLOUDS)
def test_the_cloud_publishes_down_presence_and_last_of_its_fleet(channel: str) -> None:
    assert may_publish(SERVICE, CLOUD, f"{HUB}/{channel}") == (channel in DOWN + CLOUDS)
    assert not may_publish(SERVICE, CLOUD, f"hl1/other/berlin/hub/pc-1/{channel}")


@pytest.mark.parametrize("channel", UP + DOWN + CLOUDS)
def test_readers_and_brokers_publish_nothing(channel: str) -> None:
    for principal in (READER, LOCAL_READER, who("broker", "broker-1", "berlin")):
        assert not may_publish(principal, "berlin", f"{HUB}/{channel}")
        assert not may_publish(principal, CLOUD, f"{HUB}/{channel}")


@pytest.mark.parametrize(
    "topic",
    ["", "/", "#", f"{HUB}/up/+", f"{HUB}/up/#", f"{HUB}/up", f"{HUB}/up/a/b", "$SYS/x", f"{SITE}/hub//up/readings",
     f"{SITE}/hub/PC-1/up/readings", f"{HUB}/up/", f"{HUB}/up/readings/", f" {HUB}/up/readings"],
)  # fmt: skip
def test_nobody_publishes_where_the_contract_has_no_topic(topic: str) -> None:
    """A `+` right of a connector would otherwise let through names that no certificate can hold."""
    for principal in (PC_1, CONNECTOR, SERVICE):
        assert not may_publish(principal, "berlin", topic)
        assert not may_publish(principal, CLOUD, topic)


@pytest.mark.parametrize(("channel", "kept"), [("state", True), ("up/readings", False), ("heartbeat", False)])
def test_only_what_the_contract_retains_can_be_retained(channel: str, kept: bool) -> None:
    """Otherwise one hub could fill every broker with messages that are never read."""
    assert Rights(PC_1, "berlin").may_publish(f"{HUB}/{channel}")
    assert Rights(PC_1, "berlin").may_publish(f"{HUB}/{channel}", retain=True) == kept


@pytest.mark.parametrize("at", ["berlin", CLOUD])
@pytest.mark.parametrize(
    ("topic_filter", "allowed"),
    [
        (f"{HUB}/down/+", True),
        (f"{HUB}/down/ack", True),
        (f"{SITE}/connector/+/state", True),
        (f"{SITE}/connector/berlin-1/state", True),
        (f"{HUB}/down/#", False),
        (f"{HUB}/#", False),
        (f"{HUB}/up/+", False),
        (f"{HUB}/presence", False),
        (f"{SITE}/hub/+/down/+", False),
        (f"{SITE}/hub/pc-2/down/ack", False),
        ("hl1/acme/+/connector/+/state", False),
        (f"{SITE}/connector/#", False),
        ("#", False),
        ("+/+/+/+/+/+/+", False),
    ],
)
def test_a_hub_reads_its_own_down_side_and_its_sites_connectors(at: str, topic_filter: str, allowed: bool) -> None:
    assert may_subscribe(PC_1, at, topic_filter) == allowed


@pytest.mark.parametrize("channel", ["up/+", "state", "heartbeat", "poll", "down/+", "presence", "last/+"])
def test_a_connector_reads_up_at_its_site_and_down_at_the_cloud(channel: str) -> None:
    up = channel in ("up/+", "state", "heartbeat", "poll")
    assert may_subscribe(CONNECTOR, "berlin", f"{SITE}/hub/+/{channel}") == up
    assert may_subscribe(CONNECTOR, CLOUD, f"{SITE}/hub/+/{channel}") == (channel == "down/+")
    assert not may_subscribe(CONNECTOR, CLOUD, f"hl1/acme/+/hub/+/{channel}")


@pytest.mark.parametrize(
    ("principal", "topic_filter", "allowed"),
    [
        (SERVICE, "hl1/acme/#", True),
        (SERVICE, "hl1/acme/+/hub/+/up/+", True),
        (SERVICE, "hl1/other/#", False),
        (SERVICE, "hl1/#", False),
        (SERVICE, "#", False),
        (READER, "hl1/acme/#", True),
        (READER, "hl1/+/berlin/#", False),
        (LOCAL_READER, "hl1/acme/berlin/#", True),
        (LOCAL_READER, f"{HUB}/last/+", True),
        (LOCAL_READER, "hl1/acme/munich/#", False),
        (LOCAL_READER, "hl1/acme/#", False),
        (LOCAL_READER, "hl1/acme/+/hub/pc-1/presence", False),
        (who("broker", "broker-1", "berlin"), f"{SITE}/#", False),
    ],
)
def test_cloud_and_readers_read_their_fleet_or_their_site(
    principal: Principal, topic_filter: str, allowed: bool
) -> None:
    assert may_subscribe(principal, CLOUD, topic_filter) == allowed


@pytest.mark.parametrize(
    ("principal", "at", "nothing"),
    [
        (PC_1, "berlin", False),
        (PC_1, CLOUD, False),
        (PC_1, "munich", True),
        (CONNECTOR, "munich", True),
        (CONNECTOR, CLOUD, False),
        (who("broker", "broker-1", "berlin"), "berlin", True),
        (LOCAL_READER, CLOUD, False),
        (SERVICE, CLOUD, False),
    ],
)
def test_who_belongs_to_another_site_has_nothing_to_do_here(principal: Principal, at: str, nothing: bool) -> None:
    assert Rights(principal, at).none == nothing


@pytest.mark.parametrize("at", ["berlin", "munich", CLOUD])
@pytest.mark.parametrize(
    "principal",
    [PC_1, CONNECTOR, SERVICE, READER, LOCAL_READER, who("broker", "broker-1", "berlin"), who("hub", "pc-3", "munich")],
    ids=str,
)
def test_rights_as_filters_allow_the_very_topics_that_the_rule_allows(principal: Principal, at: str) -> None:
    """Engines that know rights only as topic filters must not be told of others than the embedded broker keeps."""
    places = [(fleet, site) for fleet in ("acme", "other") for site in ("berlin", "munich")]
    topics = [
        Topic(fleet, site, "hub", name, channel, leaf)
        for fleet, site in places
        for name in ("pc-1", "pc-2", "pc-3", "berlin-1")
        for channel in HUB_CHANNELS
        for leaf in (("readings", "a.B_c") if channel in LEAF_CHANNELS else (None,))
    ]
    topics += [Topic.connector_state(*place, name) for place in places for name in ("berlin-1", "berlin-2", "pc-1")]
    filters = publish_filters(principal, at)
    for topic in map(str, topics):
        assert any(covers(each, topic) for each in filters) == may_publish(principal, at, topic), topic
