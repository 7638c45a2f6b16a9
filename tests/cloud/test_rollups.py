"""What is summed up in memory equals what a plain loop over every reading says."""

from __future__ import annotations

import math

import orjson
from hypothesis import given
from hypothesis import strategies as st

from broker.messages import Value
from cloud.blocks import PlainPoint, blocks_of
from cloud.rollups import BUCKET_MS, Rollup, SensorSummary, summarise
from config import limits
from tests.cloud.wire import T0

VALUES = st.one_of(st.booleans(), st.integers(-1000, 1000), st.floats(-1e6, 1e6), st.text("ab", max_size=2))
POINTS = st.tuples(
    st.integers(T0 - 2 * BUCKET_MS, T0 + 2 * BUCKET_MS), st.dictionaries(st.sampled_from("xyz"), VALUES, min_size=1)
)
STREAM = st.dictionaries(st.integers(1, 50), st.lists(POINTS, min_size=1, max_size=4), max_size=6)
Stream = dict[int, list[tuple[int, dict[str, Value]]]]


def summed(stream: Stream) -> dict[str, SensorSummary]:
    """Sum up with the code under test."""
    return summarise(
        (seq, blocks_of([PlainPoint(ts, values) for ts, values in points])) for seq, points in stream.items()
    )


@given(STREAM)
def test_summary_equals_a_plain_loop(stream: Stream) -> None:
    """Columns and shortcuts are for speed; what they say must be what every reading says."""
    every = [
        (name, ts, seq, place, value)
        for seq, points in stream.items()
        for place, (ts, values) in enumerate(points)
        for name, value in values.items()
    ]
    summaries = summed(stream)
    assert summaries.keys() == {name for name, *_ in every}
    for name, summary in summaries.items():
        mine = [entry for entry in every if entry[0] == name]
        assert summary.count == len(mine)
        _, ts, seq, _, value = max(mine, key=lambda entry: entry[1:4])
        assert summary.newest[:2] == (ts, seq)
        assert summary.newest[2] == orjson.dumps(value).decode()
        for buckets, width in ((summary.buckets, BUCKET_MS), (summary.hours(), 12 * BUCKET_MS)):
            numbers: dict[int, list[float]] = {}
            for _, ts, _, _, value in mine:
                if not isinstance(value, str):
                    numbers.setdefault(ts // width, []).append(float(value))
            assert buckets.keys() == numbers.keys()
            for bucket, expected in numbers.items():
                found = buckets[bucket]
                assert (found.count, found.minimum, found.maximum) == (len(expected), min(expected), max(expected))
                assert math.isclose(found.total, math.fsum(expected), abs_tol=1e-3)


def test_boolean_has_the_share_of_true_as_its_mean() -> None:
    """Availability over a month is the mean of a boolean."""
    summary = summed({1: [(T0 + n, {"up": n != 0}) for n in range(4)]})["up"]
    assert summary.buckets == {T0 // BUCKET_MS: Rollup(4, 0.0, 1.0, 3.0)}


def test_text_counts_and_is_newest_but_has_no_rollup() -> None:
    """The output of a script has no mean."""
    summary = summed({1: [(T0, {"state": "ok"})]})["state"]
    assert (summary.count, summary.newest, summary.buckets) == (1, (T0, 1, '"ok"'), {})


def test_no_sum_can_become_infinite() -> None:
    """Infinity minus infinity is no number: the database would refuse that row for ever."""
    summary = summed({1: [(T0, {"x": 1.7e308}), (T0, {"x": 1.7e308}), (T0, {"x": -1.7e308})]})["x"]
    rollup = summary.buckets[T0 // BUCKET_MS]
    assert (rollup.minimum, rollup.maximum) == (-1.7e308, 1.7e308)
    assert rollup.total == limits.ROLLUP_VALUE_MAX


def test_of_two_values_at_one_moment_the_later_in_order_is_newest() -> None:
    """A fast counter stamps several readings with one millisecond; "9" is greater than "10" as text."""
    assert summed({1: [(T0, {"n": 9}), (T0, {"n": 10})]})["n"].newest == (T0, 1, "10")
    assert summed({2: [(T0, {"n": 10})], 1: [(T0, {"n": 9})]})["n"].newest == (T0, 2, "10")


def test_adding_two_streams_of_one_sensor_adds_their_buckets() -> None:
    """A hub with a new outbox goes on with the same sensors."""
    first, second = (
        summed({1: [(T0, {"x": 1})]})["x"],
        summed({1: [(T0, {"x": 5})], 2: [(T0 + BUCKET_MS, {"x": 7})]})["x"],
    )
    first.add(second)
    assert first.count == 3
    assert first.newest == (T0 + BUCKET_MS, 2, "7")
    assert first.buckets == {
        T0 // BUCKET_MS: Rollup(2, 1.0, 5.0, 6.0),
        T0 // BUCKET_MS + 1: Rollup(1, 7.0, 7.0, 7.0),
    }
    assert first.hours() == {T0 // BUCKET_MS // 12: Rollup(3, 1.0, 7.0, 13.0)}
