"""A set of whole numbers kept as inclusive ranges: millions of message numbers in a few pairs."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class Ranges:
    """A mutable set of integers. Its cost grows with the number of holes, never with the number of members."""

    __slots__ = ("_first", "_last")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()):
        self._first: list[int] = []
        self._last: list[int] = []
        for first, last in ranges:
            self.add(first, last)

    def add(self, first: int, last: int) -> None:
        """Take in every number from `first` to `last`, inclusive; nothing if last < first."""
        if last < first:
            return
        if not self._last or first > self._last[-1] + 1:  # Beyond all others, as new numbers are,
            self._first.append(first)
            self._last.append(last)
            return
        if first >= self._first[-1]:  # or at the end of the last ones.
            self._last[-1] = max(last, self._last[-1])
            return
        begin = bisect_left(self._last, first - 1)
        end = bisect_right(self._first, last + 1)
        if begin < end:
            first, last = min(first, self._first[begin]), max(last, self._last[end - 1])
        self._first[begin:end] = [first]
        self._last[begin:end] = [last]

    def remove(self, first: int, last: int) -> None:
        """Leave out every number from `first` to `last`, inclusive."""
        if last < first or not self._last:
            return
        begin = bisect_left(self._last, first)
        end = bisect_right(self._first, last)
        if begin >= end:
            return
        low, high = self._first[begin], self._last[end - 1]
        firsts: list[int] = []
        lasts: list[int] = []
        if low < first:
            firsts.append(low)
            lasts.append(first - 1)
        if high > last:
            firsts.append(last + 1)
            lasts.append(high)
        self._first[begin:end], self._last[begin:end] = firsts, lasts

    def within(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the members from `first` to `last` as ranges, in order."""
        begin, end = bisect_left(self._last, first), bisect_right(self._first, last)
        return [(max(first, self._first[i]), min(last, self._last[i])) for i in range(begin, end)]

    def missing(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return what is not a member from `first` to `last`, as ranges, in order."""
        begin = bisect_left(self._last, last)
        if begin < len(self._last) and self._first[begin] <= first:
            return []
        holes, next_number = [], first
        for low, high in self.within(first, last):
            if low > next_number:
                holes.append((next_number, low - 1))
            next_number = high + 1
        if next_number <= last:
            holes.append((next_number, last))
        return holes

    def first_from(self, number: int) -> int | None:
        """Return the smallest member that is not below `number`."""
        index = bisect_left(self._last, number)
        return max(number, self._first[index]) if index < len(self._last) else None

    @property
    def maximum(self) -> int | None:
        """Return the largest member."""
        return self._last[-1] if self._last else None

    def count(self) -> int:
        """Return the number of members (len() is too small for what may be in here)."""
        return sum(self._last) - sum(self._first) + len(self._first)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._first, self._last, strict=True))

    def __contains__(self, number: object) -> bool:
        if not isinstance(number, int):
            return False
        index = bisect_left(self._last, number)
        return index < len(self._last) and self._first[index] <= number

    def __bool__(self) -> bool:
        return bool(self._first)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and self._first == other._first and self._last == other._last

    __hash__ = None  # type: ignore[assignment]  # It changes.

    def __repr__(self) -> str:
        return f"Ranges({list(self)})"


def ranges_of(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return numbers, in any order and with repetitions, as the fewest inclusive ranges in order."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(set(numbers)):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges
