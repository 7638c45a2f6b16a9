"""Ranges against Python's own set."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.ranges import Ranges, ranges_of

STEPS = st.lists(st.tuples(st.booleans(), st.integers(1, 40), st.integers(0, 12)), max_size=40)


@given(STEPS, st.integers(1, 45), st.integers(0, 45))
def test_ranges_hold_what_a_set_would(steps: list[tuple[bool, int, int]], begin: int, length: int) -> None:
    ranges, model = Ranges(), set[int]()
    for add, first, more in steps:
        numbers = range(first, first + more + 1)
        if add:
            ranges.add(first, first + more)
            model.update(numbers)
        else:
            ranges.remove(first, first + more)
            model.difference_update(numbers)
    assert list(ranges) == ranges_of(model)
    assert ranges == Ranges(ranges_of(model))
    assert ranges.count() == len(model)
    assert ranges.maximum == max(model, default=None)
    assert bool(ranges) == bool(model)
    assert all((number in ranges) == (number in model) for number in range(60))
    end = begin + length
    inside = {number for number in model if begin <= number <= end}
    assert ranges.within(begin, end) == ranges_of(inside)
    assert ranges.missing(begin, end) == ranges_of(set(range(begin, end + 1)) - inside)
    assert ranges.first_from(begin) == min((number for number in model if number >= begin), default=None)


def test_an_empty_range_changes_nothing() -> None:
    ranges = Ranges([(1, 3)])
    ranges.add(9, 8)
    ranges.remove(3, 2)
    assert list(ranges) == [(1, 3)]


def test_neighbours_become_one_range() -> None:
    assert list(Ranges([(1, 2), (5, 6), (3, 4)])) == [(1, 6)]
