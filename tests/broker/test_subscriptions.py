"""The index must find exactly what MQTT's matching rule finds, and what it costs must not grow with the fleet."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.subscriptions import SubscriptionIndex, TopicTree
from tests.broker.matching import matches

levels = st.sampled_from(["a", "b", "c", ""])
topics = st.lists(levels, min_size=1, max_size=4).map("/".join).filter(bool)
filters = st.builds(
    lambda before, last: "/".join([*before, last]),
    st.lists(st.sampled_from(["a", "b", "+", ""]), max_size=3),
    st.sampled_from(["a", "b", "+", "#"]),
)


def test_a_filter_matches_as_the_standard_says() -> None:
    """The examples of MQTT 3.1.1, 4.7.1."""
    index: SubscriptionIndex[str] = SubscriptionIndex()
    for topic_filter in ("sport/tennis/player1/#", "sport/#", "#", "sport/tennis/+", "sport/+", "+/+", "/+", "+"):
        index.add(topic_filter, topic_filter)
    assert set(index.subscribers("sport/tennis/player1")) == {
        "sport/tennis/player1/#", "sport/#", "#", "sport/tennis/+"
    }  # fmt: skip
    assert set(index.subscribers("sport")) == {"sport/#", "#", "+"}
    assert set(index.subscribers("sport/")) == {"sport/#", "#", "sport/+", "+/+"}
    assert set(index.subscribers("/finance")) == {"#", "+/+", "/+"}


@given(st.lists(filters, max_size=8), topics)
def test_the_index_finds_what_the_matching_rule_finds(wanted: list[str], topic: str) -> None:
    index: SubscriptionIndex[str] = SubscriptionIndex()
    for topic_filter in wanted:
        index.add(topic_filter, topic_filter)
    assert set(index.subscribers(topic)) == {one for one in wanted if matches(one, topic)}


@given(st.lists(filters, max_size=8), st.lists(filters, max_size=4), topics)
def test_what_is_removed_is_found_no_more_and_leaves_nothing_behind(
    wanted: list[str], removed: list[str], topic: str
) -> None:
    """A session that has ended must neither get messages nor cost memory."""
    index: SubscriptionIndex[str] = SubscriptionIndex()
    for topic_filter in wanted:
        index.add(topic_filter, topic_filter)
    index.subscribers(topic)
    for topic_filter in removed:
        index.remove(topic_filter, topic_filter)
    assert set(index.subscribers(topic)) == {one for one in wanted if matches(one, topic)} - set(removed)
    for topic_filter in wanted:
        index.remove(topic_filter, topic_filter)
    assert not index


def test_a_subscriber_with_two_matching_filters_gets_a_message_once() -> None:
    index: SubscriptionIndex[str] = SubscriptionIndex()
    index.add("a/#", "s")
    index.add("a/+", "s")
    assert index.subscribers("a/b") == ("s",)
    index.remove("a/#", "s")
    assert index.subscribers("a/b") == ("s",)


class Counting(dict[str, object]):
    """Counts how often it is asked."""

    asked = 0

    def get(self, *args: object) -> object:  # type: ignore[override]
        Counting.asked += 1
        return super().get(*args)  # type: ignore[arg-type]


def test_a_search_costs_the_same_among_ten_and_ten_thousand_subscriptions() -> None:
    """Stock amqtt scans them all: 6 ms a message with 2000."""

    def lookups(hubs: int) -> int:
        index: SubscriptionIndex[int] = SubscriptionIndex()
        for number in range(hubs):
            index.add(f"hl1/acme/berlin/hub/pc-{number}/down/+", number)
        branches = [index._root]
        while branches:
            branch = branches.pop()
            branches.extend(branch.below.values())
            branch.below = Counting(branch.below)  # type: ignore[assignment]
        Counting.asked = 0
        assert index.subscribers("hl1/acme/berlin/hub/pc-7/down/ack") == (7,)
        return Counting.asked

    assert lookups(10) == lookups(10_000) < 50


@given(st.sets(topics, max_size=8), filters)
def test_retained_topics_are_found_by_filter(present: set[str], topic_filter: str) -> None:
    tree = TopicTree()
    for topic in present:
        tree.add(topic)
    assert sorted(tree.matching(topic_filter)) == sorted(one for one in present if matches(topic_filter, one))


@given(st.sets(topics, max_size=8), st.sets(topics, max_size=4))
def test_a_removed_topic_is_gone_with_all_that_led_to_it(present: set[str], removed: set[str]) -> None:
    tree = TopicTree()
    for topic in present:
        tree.add(topic)
    for topic in removed:
        tree.remove(topic)
    assert set(tree.matching("#")) == present - removed
    for topic in present:
        tree.remove(topic)
    assert not tree
