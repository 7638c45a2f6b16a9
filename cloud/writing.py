"""One transaction's work: each message once, and coverage, sums, newest values and rollups to match (SQL).

Its cost depends on what is in the batch, not on what is in the database.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Connection, bindparam, delete, func, select, update
from sqlalchemy.dialects.sqlite import insert

from broker.control import Logs, Reported, Results
from broker.messages import Events
from broker.ranges import Ranges, ranges_of
from cloud.batch import Answered, Batch, Message, Outcome, RefusedMessage, Stream
from cloud.desired_records import apply_reported
from cloud.envelopes import PlainPoint, PlainReadings
from cloud.log_records import apply_logs
from cloud.payloads import PayloadCodec
from cloud.rollups import SensorSummary, summarise
from cloud.schema import COVERAGE, GAPS, HUBS, MESSAGES, QUARANTINE, STREAMS
from cloud.statements import Prepared
from cloud.states import add_hub, write_connector_states, write_hub_states
from cloud.sums import SumsWriter
from cloud.task_records import apply_results
from config import limits

_STREAM: Final = Prepared(
    select(STREAMS.c.stream_no, STREAMS.c.hub_no)
    .join(HUBS, HUBS.c.hub_no == STREAMS.c.hub_no)
    .where(HUBS.c.site == bindparam("site"), HUBS.c.hub == bindparam("hub"), STREAMS.c.epoch == bindparam("epoch")),
    *("site", "hub", "epoch"),
)
_ADD_STREAM: Final = Prepared(
    insert(STREAMS).values(hub_no=bindparam("hub_no"), epoch=bindparam("epoch")).on_conflict_do_nothing(),
    *("hub_no", "epoch"),
)
_COUNT_STREAM: Final = Prepared(
    update(STREAMS)
    .where(STREAMS.c.stream_no == bindparam("no"))
    .values(
        messages=STREAMS.c.messages + bindparam("m"),
        points=STREAMS.c.points + bindparam("p"),
        duplicates=STREAMS.c.duplicates + bindparam("d"),
        refused=STREAMS.c.refused + bindparam("r"),
        last_received_ms=func.max(STREAMS.c.last_received_ms, bindparam("ms")),
    ),
    *("m", "p", "d", "r", "ms", "no"),
)
_before: Final = (
    select(func.max(COVERAGE.c.first_seq))
    .where(COVERAGE.c.stream_no == bindparam("stream"), COVERAGE.c.first_seq < bindparam("low"))
    .scalar_subquery()
)
_NEIGHBOURS: Final = Prepared(
    select(COVERAGE.c.first_seq, COVERAGE.c.last_seq).where(
        COVERAGE.c.stream_no == bindparam("no"),
        COVERAGE.c.first_seq >= func.coalesce(_before, bindparam("from")),
        COVERAGE.c.first_seq <= bindparam("to"),
    ),
    *("no", "stream", "low", "from", "to"),
)
_DROP_INTERVAL: Final = Prepared(
    delete(COVERAGE).where(COVERAGE.c.stream_no == bindparam("no"), COVERAGE.c.first_seq == bindparam("first")),
    *("no", "first"),
)
_interval: Final = insert(COVERAGE).values({name: bindparam(name) for name in ("stream_no", "first_seq", "last_seq")})
_SET_INTERVAL: Final = Prepared(
    _interval.on_conflict_do_update(
        index_elements=["stream_no", "first_seq"], set_={"last_seq": _interval.excluded.last_seq}
    ),
    *("stream_no", "first_seq", "last_seq"),
)
_MESSAGE_NAMES: Final = (
    *("stream_no", "seq", "kind", "sent_ms", "received_ms"),
    *("points", "first_ts", "last_ts", "codec", "payload", "skew_ms"),
)
_ADD_MESSAGE: Final = Prepared(
    insert(MESSAGES).values({name: bindparam(name) for name in _MESSAGE_NAMES}).on_conflict_do_nothing(),
    *_MESSAGE_NAMES,
)
_GAP_NAMES: Final = (
    *("stream_no", "seq", "position", "from_seq", "to_seq", "points"),
    *("first_ts", "last_ts", "reason"),
)
_ADD_GAP: Final = Prepared(
    insert(GAPS).values({name: bindparam(name) for name in _GAP_NAMES}).on_conflict_do_nothing(), *_GAP_NAMES
)
_REFUSED_NAMES: Final = ("received_ms", "topic", "reason", "size_bytes", "payload")
_ADD_REFUSED: Final = Prepared(
    insert(QUARANTINE).values({name: bindparam(name) for name in _REFUSED_NAMES}), *_REFUSED_NAMES
)
_TRIM_REFUSED: Final = Prepared(
    delete(QUARANTINE).where(
        QUARANTINE.c.refused_no <= select(func.max(QUARANTINE.c.refused_no)).scalar_subquery() - bindparam("kept")
    ),
    "kept",
)


def _corrected(points: list[PlainPoint], skew_ms: int) -> list[PlainPoint]:
    """Return points as they would be if the hub's clock had been right."""
    return [PlainPoint(max(0, point.ts - skew_ms), point.values) for point in points]


_ANSWERS: Final = (Results, Reported, Logs)


@dataclass(slots=True)
class _Arrivals:
    """What a batch brings for one stream, by seq; of two with one seq the first counts."""

    items: dict[int, Message | RefusedMessage] = field(default_factory=dict)
    copies: int = 0

    def add(self, seq: int, item: Message | RefusedMessage) -> None:
        if seq in self.items:
            self.copies += 1
        else:
            self.items[seq] = item


class Writing:
    """One transaction: looks up what it needs for each stream, collects rows, and writes them table by table."""

    def __init__(self, connection: Connection, codec: PayloadCodec, batch: Batch):
        self._connection = connection
        self._codec = codec
        self._batch = batch
        self._rows: list[tuple[object, ...]] = []
        self._gaps: list[tuple[object, ...]] = []
        self._counts: list[tuple[object, ...]] = []
        self._intervals: list[tuple[object, ...]] = []
        self._dropped_intervals: list[tuple[object, ...]] = []
        self._quarantine: list[RefusedMessage] = []
        self._answers: list[tuple[int, Message]] = []
        self._told: list[Answered] = []
        self._sums = SumsWriter(connection)
        self._points = self._duplicates = 0

    def write(self) -> Outcome:
        """Do all of it."""
        self._take_streams()
        connection = self._connection
        _ADD_MESSAGE.run_many(connection, self._rows)
        _DROP_INTERVAL.run_many(connection, self._dropped_intervals)
        _SET_INTERVAL.run_many(connection, self._intervals)
        _COUNT_STREAM.run_many(connection, self._counts)
        _ADD_GAP.run_many(connection, self._gaps)
        self._sums.write()
        self._apply_answers()
        write_hub_states(connection, self._batch.hub_states)
        write_connector_states(connection, self._batch.connector_states)
        self._write_quarantine()
        counts = (len(self._rows), self._points, self._duplicates, len(self._quarantine))
        return Outcome(*counts, tuple(self._sums.newest), tuple(self._told))

    def _take_streams(self) -> None:
        of_hubs: dict[tuple[str, str, int], dict[str, SensorSummary]] = {}
        for stream, arrivals in sorted(self._by_stream().items()):
            stream_no, hub_no = self._place(stream)
            of_hub = of_hubs.setdefault((stream.site, stream.hub_id, hub_no), {})
            for name, summary in self._take_stream(stream_no, hub_no, arrivals).items():
                known = of_hub.setdefault(name, summary)
                if known is not summary:
                    known.add(summary)
        for (site, hub_id, hub_no), of_hub in of_hubs.items():
            if of_hub:
                self._sums.add(site, hub_id, hub_no, of_hub)

    def _by_stream(self) -> dict[Stream, _Arrivals]:
        streams: defaultdict[Stream, _Arrivals] = defaultdict(_Arrivals)
        for message in self._batch.messages:
            streams[message.stream].add(message.seq, message)
        for item in self._batch.refused:
            if item.place is None:
                self._quarantine.append(item)
            else:
                stream, seq = item.place
                streams[stream].add(seq, item)
        for stream, count in self._batch.copies:
            streams[stream].copies += count
        return streams

    def _take_stream(self, stream_no: int, hub_no: int, arrivals: _Arrivals) -> dict[str, SensorSummary]:
        seqs = sorted(arrivals.items)
        before = self._cover(stream_no, seqs)
        fresh = [arrivals.items[seq] for seq in seqs if seq not in before]
        messages = [item for item in fresh if isinstance(item, Message)]
        refused = [item for item in fresh if isinstance(item, RefusedMessage)]
        points = sum(self._take_message(stream_no, message) for message in messages)
        duplicates = arrivals.copies + len(seqs) - len(fresh)
        received_ms = max((item.received_ms for item in arrivals.items.values()), default=0)
        self._answers += [(hub_no, message) for message in messages if isinstance(message.body, _ANSWERS)]
        self._quarantine += refused
        self._points += points
        self._duplicates += duplicates
        self._counts.append((len(messages), points, duplicates, len(refused), received_ms, stream_no))
        readings = ((message, message.body) for message in messages)
        return summarise(
            (message.seq, body.points if not message.skew_ms else _corrected(body.points, message.skew_ms))
            for message, body in readings
            if isinstance(body, PlainReadings)
        )

    def _place(self, stream: Stream) -> tuple[int, int]:
        found = _STREAM.rows(self._connection, *stream)
        if not found:
            hub_no = add_hub(self._connection, stream.site, stream.hub_id)
            _ADD_STREAM.run(self._connection, hub_no, stream.epoch)
            found = _STREAM.rows(self._connection, *stream)
        stream_no, hub_no = found[0]
        return stream_no, hub_no

    def _cover(self, stream_no: int, seqs: list[int]) -> Ranges:
        """Add seqs to the coverage and return what it held near them before."""
        before = Ranges()
        runs = ranges_of(seqs)
        for first, last in runs:
            low, high = first - 1, last + 1
            for from_seq, to_seq in _NEIGHBOURS.rows(self._connection, stream_no, stream_no, low, low, high):
                before.add(from_seq, to_seq)
        known = set(before)
        after = set(Ranges((*known, *runs)))
        kept = {first for first, _ in after}
        self._dropped_intervals += [(stream_no, first) for first, _ in known - after if first not in kept]
        self._intervals += [(stream_no, *interval) for interval in after - known]
        return before

    def _take_message(self, stream_no: int, message: Message) -> int:
        points, times = 0, list[int]()
        match message.body:
            case PlainReadings(points=of_body):
                points, times = len(of_body), [point.ts for point in of_body]
            case Events(events=events):
                times = [event.ts for event in events if event.ts is not None]
                for position, event in enumerate(events):
                    if event.is_gap:
                        said = (event.from_seq, event.to_seq, event.points, event.first_ts, event.last_ts, event.reason)
                        self._gaps.append((stream_no, message.seq, position, *said))
            case Results() | Reported() | Logs() | None:
                pass
        skew_ms = message.skew_ms
        span = (max(0, min(times) - skew_ms), max(0, max(times) - skew_ms)) if times else (None, None)
        packed = self._codec.pack(message.payload)
        self._rows.append(
            (
                stream_no,
                message.seq,
                message.kind,
                message.sent_ms,
                message.received_ms,
                points,
                *span,
                *packed,
                skew_ms or None,
            )
        )
        return points

    def _apply_answers(self) -> None:
        """Keep what hubs answer and tell of themselves: once, since only messages that are new get here."""
        for hub_no, message in self._answers:
            newest = True
            match message.body:
                case Results() as body:
                    apply_results(self._connection, hub_no, body, message.received_ms)
                case Reported() as body:
                    place = (message.stream.epoch, message.seq)
                    newest = apply_reported(self._connection, hub_no, body, *place, message.received_ms)
                case Logs() as body:
                    apply_logs(self._connection, hub_no, body, message.received_ms)
                case _:
                    raise AssertionError(message.kind)
            if newest:
                self._told.append(Answered(message.stream.site, message.stream.hub_id, body))

    def _write_quarantine(self) -> None:
        _ADD_REFUSED.run_many(
            self._connection,
            [(item.received_ms, item.topic, item.reason, item.size_bytes, item.payload) for item in self._quarantine],
        )
        if self._quarantine:
            _TRIM_REFUSED.run(self._connection, limits.QUARANTINE_MAX)
