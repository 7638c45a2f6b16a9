"""Sums up readings in memory, so that a transaction writes a row per sensor and bucket, not one per reading (pure).

Numbers and booleans are summed up, a boolean as 0 or 1, so that its mean is the share of readings that were true.
Texts count as readings and can be newest, but have no rollups. Buckets are by the hub's clock, whatever the order of
arrival.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, TypeAlias, cast

import orjson

from cloud.blocks import Blocks, PlainValue
from config import limits

BUCKET_MS: Final = 300_000
"""The finer resolution: five minutes."""

BUCKETS_PER_HOUR: Final = 12

Rank: TypeAlias = tuple[int, int, str]
"""ts, seq, value as JSON: of two readings the greater is the newer one, in whatever order they come."""

_Newest: TypeAlias = tuple[tuple[int, int, int, int], PlainValue]
"""Of a sensor's newest reading ts, seq, number of the block and place in it; and its value."""

_CAP: Final = limits.ROLLUP_VALUE_MAX


@dataclass(slots=True)
class Rollup:
    """The numeric readings of one sensor in one bucket."""

    count: int
    minimum: float
    maximum: float
    total: float

    def add(self, other: Rollup) -> None:
        """Take in what another part of the same bucket holds."""
        self.count += other.count
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)
        self.total += other.total


@dataclass(slots=True)
class SensorSummary:
    """What a batch says of a sensor: how many readings, which is newest, and rollups by bucket (ts // BUCKET_MS)."""

    count: int
    newest: Rank
    buckets: dict[int, Rollup] = field(default_factory=dict)

    def add(self, other: SensorSummary) -> None:
        """Take in what another stream says of the same sensor."""
        self.count += other.count
        self.newest = max(self.newest, other.newest)
        for bucket, rollup in other.buckets.items():
            mine = self.buckets.get(bucket)
            if mine is None:
                self.buckets[bucket] = rollup
            else:
                mine.add(rollup)

    def hours(self) -> dict[int, Rollup]:
        """Return the rollups by hour (ts // (BUCKET_MS x BUCKETS_PER_HOUR)), for reading only."""
        if len(self.buckets) == 1:
            return {bucket // BUCKETS_PER_HOUR: rollup for bucket, rollup in self.buckets.items()}
        result: dict[int, Rollup] = {}
        for bucket, part in self.buckets.items():
            hour = bucket // BUCKETS_PER_HOUR
            mine = result.get(hour)
            if mine is None:
                result[hour] = Rollup(part.count, part.minimum, part.maximum, part.total)
            else:
                mine.add(part)
        return result


def summarise(messages: Iterable[tuple[int, Blocks]]) -> dict[str, SensorSummary]:
    """Sum up (seq, blocks) of one stream by sensor."""
    columns: dict[int, defaultdict[str, list[PlainValue]]] = defaultdict(lambda: defaultdict(list))
    newest: dict[str, _Newest] = {}
    for seq, blocks in messages:
        for number, block in enumerate(blocks):
            times, last, bucket = block.times, block.last_ts, block.first_ts // BUCKET_MS
            at = len(times) - 1
            while times[at] != last:
                at -= 1
            place = (last, seq, number, at)
            for name, values in block.columns.items():
                known = newest.get(name)
                if known is None or known[0] < place:
                    newest[name] = (place, values[at])
            if bucket == last // BUCKET_MS:
                column = columns[bucket]
                for name, values in block.columns.items():
                    column[name] += values
            else:
                for name, values in block.columns.items():
                    for ts, value in zip(times, values, strict=True):
                        columns[ts // BUCKET_MS][name].append(value)
    result = {
        name: SensorSummary(0, (place[0], place[1], orjson.dumps(value).decode()))
        for name, (place, value) in newest.items()
    }
    for bucket, column in columns.items():
        for name, values_of_name in column.items():
            summary = result[name]
            summary.count += len(values_of_name)
            rollup = _rollup(values_of_name)
            if rollup is not None:
                summary.buckets[bucket] = rollup
    return result


def _rollup(values: list[PlainValue]) -> Rollup | None:
    if len(values) == 1:  # Most often so while a hub keeps up; the rest is for its backlog.
        [value] = values
        if isinstance(value, str):
            return None
        number = float(value)
        return Rollup(1, number, number, max(-_CAP, min(_CAP, number)))
    numbers = cast(list[float], values)
    try:
        low, high = min(numbers), max(numbers)
    except TypeError:  # Texts among numbers can't be compared.
        numbers = [value for value in numbers if not isinstance(value, str)]
        low, high = min(numbers), max(numbers)
    if isinstance(low, str):
        return None
    low, high = float(low), float(high)
    if low < -_CAP or high > _CAP:
        return Rollup(len(numbers), low, high, float(sum(max(-_CAP, min(_CAP, number)) for number in numbers)))
    return Rollup(len(numbers), low, high, float(sum(numbers)))
