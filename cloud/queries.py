"""Reads the database without ever writing to it, beside a running service (SQL).

Every read is a short transaction of bounded size, so that a slow reader neither holds up the service nor fills memory.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
from sqlalchemy import Connection, Row, Select, func, literal_column, select, text, tuple_

from broker.messages import Last, Value
from broker.ranges import Ranges
from cloud.batch import NewestValue
from cloud.blocks import corrected
from cloud.envelopes import EnvelopeReader
from cloud.payloads import PayloadCodec
from cloud.readers import Reader, SqliteReader
from cloud.schema import COVERAGE, GAPS, HUBS, MESSAGES, SENSORS, STREAMS, written_by
from config import limits
from config.errors import ProtocolError, SettingsError, StorageError


@dataclass(frozen=True, slots=True)
class GapRecord:
    """What a hub said it had to drop."""

    from_seq: int | None
    to_seq: int | None
    points: int | None
    first_ts: int | None
    last_ts: int | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class StreamAudit:
    """What was ever stored of one outbox of one hub.

    `missing`: inclusive ranges of seq from 1 to `last_seq` that neither came nor are in a gap record. `points` is the
    durable sum of everything ever stored, which the retention does not lower. `refused` messages took their seq and are
    in the quarantine. `damaged` says what a verification has found wrong, if it was asked for.
    """

    hub_id: str
    site: str
    epoch: str
    first_seq: int | None
    last_seq: int | None
    missing: list[tuple[int, int]]
    messages: int
    points: int
    duplicates_refused: int
    refused: int
    gaps: list[GapRecord]
    damaged: str | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """One value of one sensor, as the hub sent it. `ts` is by the cloud's clock: by the hub's it was `ts + skew_ms`."""

    ts: int
    sensor: str
    value: Value
    epoch: str
    seq: int
    skew_ms: int = 0


@dataclass(frozen=True, slots=True)
class StoredHub:
    """A hub in the database."""

    hub_no: int
    site: str
    hub_id: str


class Archive:
    """The read side. A context manager: it keeps one connection open."""

    def __init__(self, source: Path | Reader):
        """Raises SettingsError if there is no such database or it isn't ours, StorageError if it can't be read."""
        self._source: Reader = source if not isinstance(source, Path) else SqliteReader(source)
        self._codec: Final = PayloadCodec()
        self._reader: Final = EnvelopeReader()
        place = self._source.place
        self._source.check()
        try:
            if self._source.read(lambda connection: written_by(connection, place)) is None:
                raise SettingsError("is empty: the cloud service has not prepared it yet", file=place)
        except BaseException:
            self._source.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._source.close()

    # --- Audit ------------------------------------------------------------------------------------------------------

    def audit(self, *, verify: bool = False) -> Iterator[StreamAudit]:
        """Return one audit per (hub, epoch), by site, hub and age. `verify` decodes every stored payload."""
        query = (
            select(STREAMS, HUBS.c.site, HUBS.c.hub)
            .join(HUBS, HUBS.c.hub_no == STREAMS.c.hub_no)
            .order_by(HUBS.c.site, HUBS.c.hub, STREAMS.c.stream_no)
        )
        for stream in self._source.read(lambda connection: connection.execute(query).all()):
            yield self._audit(stream.stream_no, verify=verify)

    def _audit(self, stream_no: int, *, verify: bool) -> StreamAudit:
        query = select(STREAMS, HUBS.c.site, HUBS.c.hub).join(HUBS, HUBS.c.hub_no == STREAMS.c.hub_no)
        said = select(*(GAPS.c[name] for name in GapRecord.__dataclass_fields__)).where(GAPS.c.stream_no == stream_no)
        coverage = select(COVERAGE.c.first_seq, COVERAGE.c.last_seq).where(COVERAGE.c.stream_no == stream_no)

        def look(connection: Connection) -> tuple[Row[*tuple[Any, ...]], Ranges, list[GapRecord]]:
            stream = connection.execute(query.where(STREAMS.c.stream_no == stream_no)).one()
            covered = Ranges((row.first_seq, row.last_seq) for row in connection.execute(coverage))
            gaps = connection.execute(said.order_by(GAPS.c.seq, GAPS.c.position))
            return stream, covered, [GapRecord(*row) for row in gaps]

        stream, covered, gaps = self._source.read(look)
        explained = Ranges(covered)
        for gap in gaps:
            if gap.from_seq is not None and gap.to_seq is not None:
                explained.add(gap.from_seq, gap.to_seq)
        last = covered.maximum
        return StreamAudit(
            hub_id=stream.hub,
            site=stream.site,
            epoch=stream.epoch,
            first_seq=covered.first_from(1),
            last_seq=last,
            missing=[] if last is None else explained.missing(1, last),
            messages=stream.messages,
            points=stream.points,
            duplicates_refused=stream.duplicates,
            refused=stream.refused,
            gaps=gaps,
            damaged=self._damage(stream, covered) if verify else None,
        )

    def _damage(self, stream: Row[*tuple[Any, ...]], covered: Ranges) -> str | None:
        """Decode everything stored of a stream and return how it differs from the sums, if it does."""
        messages = points = 0
        later: list[int] = []
        for seq, kind, said_points, code, packed in self._packed(stream.stream_no, covered.maximum or 0):
            try:
                epoch, in_payload, _, body = self._reader.read(kind, self._codec.unpack(code, packed))
            except (ProtocolError, StorageError) as exc:
                return f"seq {seq} can't be read: {exc.reason}"
            found = sum(len(block.times) for block in body) if isinstance(body, tuple) else 0
            if (epoch, in_payload) != (stream.epoch, seq) or found != said_points:
                return f"seq {seq} holds another message than its row says"
            if seq not in covered:
                later.append(seq)
                continue
            messages += 1
            points += found
        number = stream.stream_no
        after, covered_after, last = self._source.read(lambda connection: _standing_now(connection, number))
        if last is not None:
            later.append(last)
        if uncovered := [seq for seq in later if seq not in covered_after]:
            return f"seq {uncovered[0]} is stored, but not known to be"
        if not stream.messages - after.pruned_messages <= messages <= stream.messages - stream.pruned_messages:
            return f"{messages} messages are stored, {stream.messages - stream.pruned_messages} are counted"
        if not stream.points - after.pruned_points <= points <= stream.points - stream.pruned_points:
            return f"{points} points are stored, {stream.points - stream.pruned_points} are counted"
        if covered.count() != stream.messages + stream.refused:
            return f"{covered.count()} seqs are covered, {stream.messages + stream.refused} messages came"
        return None

    def _packed(self, stream_no: int, last: int) -> Iterator[tuple[int, str, int, int, bytes]]:
        columns = (MESSAGES.c.seq, MESSAGES.c.kind, MESSAGES.c.points, MESSAGES.c.codec, MESSAGES.c.payload)
        query = select(*columns).where(MESSAGES.c.stream_no == stream_no, MESSAGES.c.seq <= last)
        after = 0
        while page := self._page(query.where(MESSAGES.c.seq > after).order_by(MESSAGES.c.seq)):
            for row in page:
                yield row.seq, row.kind, row.points, row.codec, row.payload
            after = page[-1].seq

    # --- Readings ---------------------------------------------------------------------------------------------------

    def hub_named(self, name: str) -> StoredHub:
        """Find a hub by HUB or SITE/HUB. Raises SettingsError that names what there is instead."""
        site, _, hub_id = name.rpartition("/")
        query = select(HUBS.c.hub_no, HUBS.c.site, HUBS.c.hub).order_by(HUBS.c.hub_no)
        found = self._source.read(lambda connection: connection.execute(query).all())
        matching = [StoredHub(*row) for row in found if row.hub == hub_id and site in ("", row.site)]
        if len(matching) == 1:
            return matching[0]
        if matching:
            names = ", ".join(f"{key.site}/{key.hub_id}" for key in matching)
            raise SettingsError(f"there are several hubs of this name: say which, {names}", key="HUB", value=name)
        known = [f"{row.site}/{row.hub}" if site else row.hub for row in found]
        close = difflib.get_close_matches(name, known, n=3) or known[:3]
        meant = f"; is it {' or '.join(close)}?" if close else "; no hub has sent anything yet"
        raise SettingsError(f"this hub is not in the database{meant}", key="HUB", value=name)

    def readings(self, key: StoredHub, *, sensor: str | None = None, since_ms: int = 0) -> Iterator[Reading]:
        """Return what a hub measured since then by the cloud's clock, outbox after outbox, message by message in order of time.

        `sensor` is the name of a value, or what comes before a dot in it: "cpu" stands for "cpu.percent" too.
        """
        streams = select(STREAMS.c.stream_no).where(STREAMS.c.hub_no == key.hub_no).order_by(STREAMS.c.stream_no)

        def look(connection: Connection) -> tuple[Sequence[int], int]:
            return connection.scalars(streams).all(), _newest_no(connection)

        numbers, newest_no = self._source.read(look)
        for stream_no in numbers:
            for kind, payload, skew_ms in self._messages_since(stream_no, newest_no, since_ms):
                epoch, seq, _, body = self._reader.read(kind, payload)
                assert isinstance(body, tuple)
                for ts, values in (point for block in corrected(body, skew_ms) for point in block.points()):
                    if ts < since_ms:
                        continue
                    for name, value in values.items():
                        if sensor is None or name == sensor or name.startswith(f"{sensor}."):
                            yield Reading(ts, name, value, epoch, seq, skew_ms)

    def _messages_since(self, stream_no: int, newest_no: int, since_ms: int) -> Iterator[tuple[str, bytes, int]]:
        names = ("message_no", "last_ts", "kind", "codec", "payload", "skew_ms")
        columns = [MESSAGES.c[name] for name in names]
        place = tuple_(MESSAGES.c.last_ts, MESSAGES.c.message_no)
        query = (
            select(*columns)
            .where(
                MESSAGES.c.stream_no == stream_no,
                MESSAGES.c.kind == literal_column("'readings'"),  # As the index says it, or it would not be used.
                MESSAGES.c.message_no <= newest_no,
            )
            .order_by(MESSAGES.c.last_ts, MESSAGES.c.message_no)
        )
        after = (since_ms, 0)
        while page := self._page(query.where(place > after)):
            for row in page:
                yield row.kind, self._codec.unpack(row.codec, row.payload), row.skew_ms or 0
            after = (page[-1].last_ts, page[-1].message_no)

    # --- Newest values ----------------------------------------------------------------------------------------------

    def newest(self) -> Iterator[tuple[NewestValue, ...]]:
        """Return the newest value of every sensor, a page at a time."""
        columns = (SENSORS.c.sensor_no, HUBS.c.site, HUBS.c.hub, SENSORS.c.sensor)
        query = (
            select(*columns, SENSORS.c.ts, SENSORS.c.value, SENSORS.c.readings)
            .join(HUBS, HUBS.c.hub_no == SENSORS.c.hub_no)
            .order_by(SENSORS.c.sensor_no)
        )
        after = 0
        while page := self._page(query.where(SENSORS.c.sensor_no > after)):
            yield tuple(
                NewestValue(row.site, row.hub, row.sensor, Last(row.ts, orjson.loads(row.value), row.readings))
                for row in page
            )
            after = page[-1].sensor_no

    # --- The connection ---------------------------------------------------------------------------------------------

    def _page(self, query: Select[*tuple[Any, ...]]) -> Sequence[Row[*tuple[Any, ...]]]:
        return self._source.read(lambda connection: connection.execute(query.limit(limits.READ_PAGE_MESSAGES)).all())


def _newest_no(connection: Connection) -> int:
    """Return a number that no message stored so far exceeds: without it a reader could follow a busy hub for ever."""
    if connection.dialect.name == "postgresql":  # Its parts have no order by number, but the numbers have one source.
        newest = connection.scalar(text("SELECT last_value FROM messages_message_no_seq"))
    else:
        newest = connection.scalar(select(func.max(MESSAGES.c.message_no)))
    return newest or 0


def _standing_now(connection: Connection, stream_no: int) -> tuple[Row[int, int], Ranges, int | None]:
    pruned = select(STREAMS.c.pruned_messages, STREAMS.c.pruned_points).where(STREAMS.c.stream_no == stream_no)
    covered = select(COVERAGE.c.first_seq, COVERAGE.c.last_seq).where(COVERAGE.c.stream_no == stream_no)
    last = connection.scalar(select(func.max(MESSAGES.c.seq)).where(MESSAGES.c.stream_no == stream_no))
    return connection.execute(pruned).one(), Ranges(map(tuple, connection.execute(covered))), last
