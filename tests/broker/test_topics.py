"""Topics are where identities become names that everyone can see: what parses must be exactly what was built."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import topics
from broker.topics import Topic, covers
from config.errors import ProtocolError
from tests.broker.matching import matches

labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
leaves = st.from_regex(r"[A-Za-z0-9._-]{1,128}", fullmatch=True)
some_topics = st.one_of(
    st.builds(Topic.up, labels, labels, labels, st.sampled_from(topics.UP_KINDS)),
    st.builds(Topic.down, labels, labels, labels, st.sampled_from(topics.DOWN_KINDS)),
    st.builds(Topic.hub_state, labels, labels, labels),
    st.builds(Topic.connector_state, labels, labels, labels),
    st.builds(Topic.last, labels, labels, labels, leaves),
)
parts = st.sampled_from(["a", "b", "", "+", "#"])
any_filter = st.lists(parts, min_size=1, max_size=4).map("/".join).filter(topics.is_topic_filter)
any_topic = st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=4).map("/".join).filter(topics.is_topic)


@given(some_topics)
def test_a_topic_that_was_built_parses_to_itself(topic: Topic) -> None:
    assert Topic.parse(str(topic)) == topic
    assert topics.is_topic(str(topic))


@pytest.mark.parametrize(
    ("topic", "text"),
    [
        (Topic.up("acme", "berlin", "pc-1", "readings"), "hl1/acme/berlin/hub/pc-1/up/readings"),
        (Topic.down("acme", "berlin", "pc-1", "ack"), "hl1/acme/berlin/hub/pc-1/down/ack"),
        (Topic.hub_state("acme", "berlin", "pc-1"), "hl1/acme/berlin/hub/pc-1/state"),
        (Topic.connector_state("acme", "berlin", "b-1"), "hl1/acme/berlin/connector/b-1/state"),
        (Topic.last("acme", "berlin", "pc-1", "cpu.percent"), "hl1/acme/berlin/hub/pc-1/last/cpu.percent"),
    ],
)
def test_the_topics_are_those_of_the_contract(topic: Topic, text: str) -> None:
    """Subscribers outside Hubline rely on these very texts."""
    assert str(topic) == text


@pytest.mark.parametrize(
    "text",
    ["", "hl1", "hl2/acme/berlin/hub/pc-1/state", "hl1/acme/berlin/hub/pc-1", "hl1/acme/berlin/hub/pc-1/up",
     "hl1/acme/berlin/hub/pc-1/up/", "hl1/acme/berlin/hub/pc-1/up/a b", "hl1/acme/berlin/hub/pc-1/state/x",
     "hl1/acme/berlin/hub/pc-1/nothing", "hl1/acme/berlin/hub/PC-1/state", "hl1/acme/berlin/hub/-pc/state",
     "hl1/acme/berlin/hub/pc-1\n/state", "hl1/acme/berlin/reader/pc-1/state", "hl1/acme/berlin/connector/b-1/up/readings",
     "hl1/acme/-/hub/pc-1/state", "hl1/acme/berlin/hub/+/state", "hl1/acme/berlin/hub/pc-1/up/readings/x",
     f"hl1/acme/berlin/hub/{'a' * 64}/state"],
)  # fmt: skip
def test_what_is_not_a_topic_of_the_contract_does_not_parse(text: str) -> None:
    with pytest.raises(ProtocolError):
        Topic.parse(text)


def test_filters_are_those_of_the_contract() -> None:
    assert topics.hub_filter("acme", "berlin", "+", "up") == "hl1/acme/berlin/hub/+/up/+"
    assert topics.hub_filter("acme", "+", "pc-1", "state") == "hl1/acme/+/hub/pc-1/state"
    assert topics.connector_filter("acme", "berlin") == "hl1/acme/berlin/connector/+/state"
    assert topics.everything_filter("acme") == "hl1/acme/#"
    assert topics.everything_filter("acme", "berlin") == "hl1/acme/berlin/#"


@pytest.mark.parametrize(
    ("text", "well_formed"),
    [("#", True), ("+", True), ("a/#", True), ("a/+/b", True), ("/", True), ("a//b", True), ("", False), ("a#", False),
     ("#/a", False), ("a/b+", False), ("+a/b", False), ("a/#/b", False), ("a\0b", False), ("+/+", True)],
)  # fmt: skip
def test_a_topic_filter_is_well_formed_as_the_standard_says(text: str, well_formed: bool) -> None:
    assert topics.is_topic_filter(text) == well_formed


@pytest.mark.parametrize("text", ["", "$SYS", "$SYS/x", "a/+", "a/#", "a\0"])
def test_what_cannot_be_published_to_is_not_a_topic(text: str) -> None:
    assert not topics.is_topic(text)


@given(any_filter, any_filter, any_topic)
def test_a_filter_that_covers_another_matches_all_that_it_matches(outer: str, inner: str, topic: str) -> None:
    """Rights rest on this: a subscription is allowed if a right covers it."""
    if covers(outer, inner) and matches(inner, topic):
        assert matches(outer, topic)


@given(any_filter)
def test_a_filter_covers_itself(topic_filter: str) -> None:
    assert covers(topic_filter, topic_filter)


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("a/+", "a/b", True),
        ("a/+", "a/#", False),
        ("a/+", "a/+/b", False),
        ("a/#", "a", True),
        ("a/#", "a/+/#", True),
        ("a/#", "#", False),
        ("+/b", "#", False),
        ("a/b", "a/+", False),
        ("a", "a/b", False),
        ("a/b", "a", False),
    ],
)
def test_covering_is_decided_level_by_level(outer: str, inner: str, expected: bool) -> None:
    assert covers(outer, inner) == expected
