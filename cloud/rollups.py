"""Sums up readings in memory, so that a transaction writes a row per sensor and bucket, not one per reading (pure).

Numbers and booleans are summed up, a boolean as 0 or 1, so that its mean is the share of readings that were true.
Texts count as readings and can be newest, but have no rollups. Buckets are by the hub's clock, whatever the order of
arrival.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final, TypeAlias, cast

import orjson

from cloud.envelopes import PlainPoint, PlainValue
from config import limits

BUCKET_MS: Final = 300_000
"""The finer resolution: five minutes."""

BUCKETS_PER_HOUR: Final = 12

Rank: TypeAlias = tuple[int, int, str]
"""ts, seq, value as JSON: of two readings the greater is the newer one, in whatever order they come."""

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


def summarise(messages: Iterable[tuple[int, Sequence[PlainPoint]]]) -> dict[str, SensorSummary]:
    """Sum up (seq, points) of one stream by sensor."""
    columns: dict[int, defaultdict[str, list[PlainValue]]] = {}
    moments: list[tuple[int, int, int, dict[str, PlainValue]]] = []
    for seq, points in messages:
        for position, point in enumerate(points):
            ts, values = point.ts, point.values
            moments.append((ts, seq, position, values))
            bucket = ts // BUCKET_MS
            column = columns.get(bucket)
            if column is None:
                columns[bucket] = column = defaultdict(list)
            for name, value in values.items():
                column[name].append(value)
    result = {name: SensorSummary(0, rank) for name, rank in _newest(moments).items()}
    for bucket, column in columns.items():
        for name, values_of_name in column.items():
            summary = result[name]
            summary.count += len(values_of_name)
            rollup = _rollup(values_of_name)
            if rollup is not None:
                summary.buckets[bucket] = rollup
    return result


def _newest(moments: list[tuple[int, int, int, dict[str, PlainValue]]]) -> dict[str, Rank]:
    moments.sort(key=itemgetter(0, 1, 2), reverse=True)
    newest: dict[str, Rank] = {}
    for ts, seq, _, values in moments:
        if values.keys() <= newest.keys():
            continue
        for name in values.keys() - newest.keys():
            newest[name] = (ts, seq, orjson.dumps(values[name]).decode())
    return newest


def _rollup(values: list[PlainValue]) -> Rollup | None:
    if len(values) == 1:  # Most often so while a hub keeps up; the rest is for its backlog.
        [value] = values
        if isinstance(value, str):
            return None
        number = float(value)
        return Rollup(1, number, number, max(-_CAP, min(_CAP, number)))
    numbers = cast(list[float], values)
    if str in set(map(type, values)):
        numbers = [value for value in values if not isinstance(value, str)]
    if not numbers:
        return None
    low, high = float(min(numbers)), float(max(numbers))
    if low < -_CAP or high > _CAP:
        return Rollup(len(numbers), low, high, float(sum(max(-_CAP, min(_CAP, number)) for number in numbers)))
    return Rollup(len(numbers), low, high, float(sum(numbers)))
