"""What the API reads of stored measurements: raw, summed up, newest values, and the audit of the storage (SQL).

Every page has a bound on what it decodes or looks up, not only on what it returns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import orjson
from sqlalchemy import BigInteger, Connection, Table, func, literal, literal_column, select, tuple_

from broker.ranges import Ranges
from cloud import api_models as models
from cloud.api_cursor import Number, Text, cursor_of, cut, place_of
from cloud.api_queries import Window, hub_no
from cloud.blocks import corrected
from cloud.envelopes import EnvelopeReader
from cloud.hub_key import HubKey
from cloud.payloads import PayloadCodec
from cloud.rollups import BUCKET_MS, BUCKETS_PER_HOUR
from cloud.schema import COVERAGE, GAPS, HUBS, MESSAGES, ROLLUP_1H, ROLLUP_5MIN, SENSORS, STREAMS
from config import limits
from config.errors import SettingsError

_Place: TypeAlias = tuple[Number, Number, Number, Number]
"""The stream, time and number of a message, and how many of its readings were returned."""

_UNITS_MS: Final = {"min": 60_000, "h": 3_600_000, "d": 86_400_000}
_HOUR_MS: Final = BUCKET_MS * BUCKETS_PER_HOUR


@dataclass(frozen=True, slots=True)
class Span:
    """Readings of a hub by the cloud's clock, Unix ms, `until_ms` exclusive.

    `sensor` is the name of a value, or what comes before a dot in it.
    """

    key: HubKey
    sensor: str | None
    since_ms: int
    until_ms: int


# --- Raw -------------------------------------------------------------------------------------------------------------


def readings(connection: Connection, sees: str | None, span: Span, window: Window) -> models.Page[models.Reading]:
    """Return what a hub measured, outbox after outbox, message by message in order of time."""
    number = hub_no(connection, sees, span.key)
    place = (0, 0, 0, 0) if window.cursor is None else place_of(window.cursor, tuple[Number, Number, Number, Number])
    items: list[models.Reading] = []
    scanned = 0
    for row in _messages(connection, number, span, place):
        skip = place[3] if (row.stream_no, row.last_ts, row.message_no) == place[:3] else 0
        for position, reading in enumerate(_readings_of(row, span), 1):
            if position <= skip:
                continue
            if len(items) == window.limit:
                here = cursor_of(row.stream_no, row.last_ts, row.message_no, position - 1)
                return models.Page(items=items, next=here)
            items.append(reading)
        scanned += 1
        if scanned == limits.API_SCAN_MESSAGES:
            # All of this message was returned, however many readings it had.
            return models.Page(items=items, next=cursor_of(row.stream_no, row.last_ts, row.message_no, 2**62))
    return models.Page(items=items)


def _messages(connection: Connection, number: int, span: Span, place: _Place) -> Iterator[Any]:
    streams = select(STREAMS.c.stream_no).where(STREAMS.c.hub_no == number, STREAMS.c.stream_no >= place[0])
    columns = (MESSAGES.c.stream_no, MESSAGES.c.message_no, MESSAGES.c.last_ts)
    order = tuple_(MESSAGES.c.last_ts, MESSAGES.c.message_no)
    left = limits.API_SCAN_MESSAGES
    for stream_no in connection.scalars(streams.order_by(STREAMS.c.stream_no)).all():
        after = place[1:3] if stream_no == place[0] else (span.since_ms, 0)
        query = (
            select(*columns, MESSAGES.c.kind, MESSAGES.c.codec, MESSAGES.c.payload, MESSAGES.c.skew_ms)
            .where(
                MESSAGES.c.stream_no == stream_no,
                MESSAGES.c.kind == literal_column("'readings'"),  # As the index says it, or it would not be used.
                MESSAGES.c.first_ts < span.until_ms,
                order >= after,
            )
            .order_by(MESSAGES.c.last_ts, MESSAGES.c.message_no)
            .limit(left)
        )
        for row in connection.execute(query):
            left -= 1
            yield row
        if left == 0:
            return


def _readings_of(row: Any, span: Span) -> Iterator[models.Reading]:
    epoch, seq, _, body = EnvelopeReader().read(row.kind, PayloadCodec().unpack(row.codec, row.payload))
    assert isinstance(body, tuple)
    skew_ms = row.skew_ms or 0
    for ts, values in (point for block in corrected(body, skew_ms) for point in block.points()):
        if span.since_ms <= ts < span.until_ms:
            for name, value in values.items():
                if span.sensor is None or name == span.sensor or name.startswith(f"{span.sensor}."):
                    yield models.Reading(ts=ts, skew_ms=skew_ms, sensor=name, value=value, epoch=epoch, seq=seq)


# --- Summed up -------------------------------------------------------------------------------------------------------


def interval_ms(text: str) -> int:
    """Return the length of an interval like "5min", "1h" or "7d". Raises SettingsError."""
    found = re.fullmatch("([1-9][0-9]{0,4})(min|h|d)", text)
    length = int(found[1]) * _UNITS_MS[found[2]] if found else 0
    if not found or length % BUCKET_MS or length > limits.API_INTERVAL_MAX_DAYS * _UNITS_MS["d"]:
        days = limits.API_INTERVAL_MAX_DAYS
        raise SettingsError(f"must be 5min or a multiple of it, like 15min, 1h or 7d, at most {days}d", key="interval")
    return length


def sums(
    connection: Connection, sees: str | None, span: Span, length_ms: int, window: Window
) -> models.Page[models.Sum]:
    """Return count, minimum, mean and maximum of one sensor by interval, oldest first; empty intervals are left out."""
    number = hub_no(connection, sees, span.key)
    sensor_no = connection.scalar(
        select(SENSORS.c.sensor_no).where(SENSORS.c.hub_no == number, SENSORS.c.sensor == span.sensor)
    )
    if sensor_no is None:
        return models.Page(items=[])
    table, bucket_ms = (ROLLUP_1H, _HOUR_MS) if length_ms % _HOUR_MS == 0 else (ROLLUP_5MIN, BUCKET_MS)
    per_interval = length_ms // bucket_ms
    oldest, newest = (connection.scalar(select(edge(table.c.bucket))) for edge in (func.min, func.max))
    if oldest is None or newest is None:
        return models.Page(items=[])
    # Whole intervals, aligned to the epoch: a shift of the window does not change a sum.
    first = max(span.since_ms // length_ms, oldest // per_interval)
    last = min((span.until_ms - 1) // length_ms, newest // per_interval)
    if window.cursor is not None:
        first = max(first, place_of(window.cursor, tuple[Number])[0])
    end = min(last, first + max(1, min(window.limit, limits.API_SCAN_BUCKETS // per_interval)) - 1)
    if first > last:
        return models.Page(items=[])
    rows = _sums(connection, table, sensor_no, per_interval, (first, end))
    items = [_sum(row, length_ms) for row in rows]
    return models.Page(items=items, next=cursor_of(end + 1) if end < last else None)


def _sum(row: Any, length_ms: int) -> models.Sum:
    count = int(row.count)  # PostgreSQL adds whole numbers up to a decimal one.
    return models.Sum(ts=row.interval * length_ms, count=count, min=row.min, mean=row.sum / count, max=row.max)


def _sums(
    connection: Connection, table: Table, sensor_no: int, per_interval: int, intervals: tuple[int, int]
) -> Iterable[Any]:
    """Look every bucket up by its key: the table is sorted by bucket first, so a range would read the whole fleet's."""
    first, last = intervals[0] * per_interval, (intervals[1] + 1) * per_interval - 1
    buckets = select(literal(first, BigInteger).label("bucket")).cte("buckets", recursive=True)
    buckets = buckets.union_all(select(buckets.c.bucket + 1).where(buckets.c.bucket < last))
    interval = (buckets.c.bucket // per_interval).label("interval")
    query = (
        select(
            interval,
            func.sum(table.c.count).label("count"),
            func.min(table.c.min).label("min"),
            func.max(table.c.max).label("max"),
            func.sum(table.c.sum).label("sum"),
        )
        .select_from(buckets.join(table, table.c.bucket == buckets.c.bucket))
        .where(table.c.sensor_no == sensor_no)
        .group_by(interval)
        .order_by(interval)
    )
    return connection.execute(query).all()


# --- Newest values ---------------------------------------------------------------------------------------------------


def values(connection: Connection, sees: str | None, key: HubKey, window: Window) -> models.Page[models.NewestValue]:
    """Return the newest value of each sensor of a hub, by name."""
    query = select(SENSORS).where(SENSORS.c.hub_no == hub_no(connection, sees, key))
    if window.cursor is not None:
        query = query.where(SENSORS.c.sensor > place_of(window.cursor, tuple[Text])[0])
    rows, more = cut(connection.execute(query.order_by(SENSORS.c.sensor).limit(window.limit + 1)).all(), window.limit)
    items = [
        models.NewestValue(sensor=row.sensor, ts=row.ts, value=orjson.loads(row.value), count=row.readings)
        for row in rows
    ]
    return models.Page(items=items, next=cursor_of(rows[-1].sensor) if more else None)


# --- The storage -----------------------------------------------------------------------------------------------------


def storage(
    connection: Connection, sees: str | None, site: str | None, hub_id: str | None, window: Window
) -> models.Page[models.Stored]:
    """Return what was ever stored of each outbox of each hub, and what is missing, by site, hub and age."""
    query = select(STREAMS, HUBS.c.site, HUBS.c.hub).join(HUBS, HUBS.c.hub_no == STREAMS.c.hub_no)
    for column, value in ((HUBS.c.site, sees), (HUBS.c.site, site), (HUBS.c.hub, hub_id)):
        if value is not None:
            query = query.where(column == value)
    place = tuple_(HUBS.c.site, HUBS.c.hub, STREAMS.c.stream_no)
    if window.cursor is not None:
        query = query.where(place > place_of(window.cursor, tuple[Text, Text, Number]))
    query = query.order_by(HUBS.c.site, HUBS.c.hub, STREAMS.c.stream_no).limit(window.limit + 1)
    rows, more = cut(connection.execute(query).all(), window.limit)
    items = [_stored(connection, row) for row in rows]
    here = cursor_of(rows[-1].site, rows[-1].hub, rows[-1].stream_no) if more else None
    return models.Page(items=items, next=here)


def _stored(connection: Connection, row: Any) -> models.Stored:
    intervals = select(COVERAGE.c.first_seq, COVERAGE.c.last_seq).where(COVERAGE.c.stream_no == row.stream_no)
    covered = Ranges((entry.first_seq, entry.last_seq) for entry in connection.execute(intervals))
    said = select(*(GAPS.c[name] for name in models.Gap.model_fields)).where(GAPS.c.stream_no == row.stream_no)
    gaps = [models.Gap(**entry._mapping) for entry in connection.execute(said.order_by(GAPS.c.seq, GAPS.c.position))]
    explained = Ranges(covered)
    for gap in gaps:
        if gap.from_seq is not None and gap.to_seq is not None:
            explained.add(gap.from_seq, gap.to_seq)
    last = covered.maximum
    return models.Stored(
        site=row.site,
        hub=row.hub,
        epoch=row.epoch,
        first_seq=covered.first_from(1),
        last_seq=last,
        missing=[] if last is None else explained.missing(1, last),
        messages=row.messages,
        points=row.points,
        duplicates_refused=row.duplicates,
        refused=row.refused,
        gaps=gaps,
    )
