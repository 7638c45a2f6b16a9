"""Readings as the database work wants them (pure): per sensor in a row, not per point.

Decoded points are many small objects; thousands of waiting messages of them would take eight times the memory of their
payloads, and summing them up later would mostly wait for that memory. So they are turned as soon as they are decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter, itemgetter
from typing import Annotated, Final, TypeAlias

from msgspec import Meta, Struct

from broker.messages import UnixMs, ValueText
from config import limits

PlainValue: TypeAlias = bool | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | float | ValueText
"""A `broker.messages.Value`; a larger integer is left to the contract's own reader, which makes a float of it."""


class PlainPoint(Struct, frozen=True, gc=False):
    """A `broker.messages.Point` whose names are checked by us, after it is decoded."""

    ts: UnixMs
    values: Annotated[dict[str, PlainValue], Meta(min_length=1, max_length=limits.VALUES_MAX)]


class Block(Struct, frozen=True, gc=False):
    """Points of one message, in order, that have the same sensors: their ts (Unix ms), and by sensor a value for each."""

    first_ts: int
    last_ts: int
    times: tuple[int, ...]
    columns: dict[str, tuple[PlainValue, ...]]

    def points(self) -> Iterator[tuple[int, dict[str, PlainValue]]]:
        """Return the points as they were: ts and values."""
        names = self.columns.keys()
        for ts, values in zip(self.times, zip(*self.columns.values(), strict=True), strict=True):
            yield ts, dict(zip(names, values, strict=True))


_TS_OF: Final = attrgetter("ts")
_VALUES_OF: Final = attrgetter("values")

Blocks: TypeAlias = tuple[Block, ...]


def blocks_of(points: Sequence[PlainPoint]) -> Blocks:
    """Turn points: most often all of a message have the same sensors."""
    if len(points) == 1:  # A hub that keeps up.
        [point] = points
        columns: dict[str, tuple[PlainValue, ...]] = {name: (value,) for name, value in point.values.items()}
        return (Block(point.ts, point.ts, (point.ts,), columns),)
    times = tuple(map(_TS_OF, points))
    values = list(map(_VALUES_OF, points))
    if len(set(map(len, values))) == 1:
        try:
            return (_block(times, values),)
        except KeyError:
            pass  # As many, but others.
    blocks = []
    begin = 0
    for end in range(1, len(values) + 1):
        if end == len(values) or values[end].keys() != values[begin].keys():
            blocks.append(_block(times[begin:end], values[begin:end]))
            begin = end
    return tuple(blocks)


def corrected(blocks: Blocks, skew_ms: int) -> Blocks:
    """Return what would have been said if the hub's clock had not been ahead by so much."""
    return tuple(_corrected(block, skew_ms) for block in blocks) if skew_ms else blocks


def _corrected(block: Block, skew_ms: int) -> Block:
    times = [ts - skew_ms for ts in block.times]
    if block.first_ts < skew_ms:
        times = [max(0, ts) for ts in times]
    return Block(max(0, block.first_ts - skew_ms), max(0, block.last_ts - skew_ms), tuple(times), block.columns)


def _block(times: tuple[int, ...], values: list[dict[str, PlainValue]]) -> Block:
    """Return a block of points that have equally many sensors. Raises KeyError if they are not the same ones."""
    columns = {name: tuple(map(itemgetter(name), values)) for name in values[0]}
    return Block(min(times), max(times), times, columns)
