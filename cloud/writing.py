"""One transaction's work in SQLite: each message once, and coverage, sums, newest values and rollups to match (SQL).

Its cost depends on what is in the batch, not on what is in the database.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, bindparam, delete, func, select, update

from cloud.batch import Batch, Outcome, Stream
from cloud.payloads import PayloadCodec
from cloud.schema import COVERAGE, GAPS, HUBS, MESSAGES, QUARANTINE, STREAMS
from cloud.statements import Prepared, greater, insert
from cloud.states import add_hub, write_connector_states, write_hub_states
from cloud.sums import SumsWriter
from cloud.writing_answers import apply_answers
from cloud.writing_rows import MESSAGE_NAMES, Rows
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
        last_received_ms=greater(STREAMS.c.last_received_ms, bindparam("ms")),
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
_ADD_MESSAGE: Final = Prepared(
    insert(MESSAGES).values({name: bindparam(name) for name in MESSAGE_NAMES}).on_conflict_do_nothing(),
    *MESSAGE_NAMES,
)
_GAP_NAMES: Final = (
    *("stream_no", "seq", "position", "from_seq", "to_seq", "points"),
    *("first_ts", "last_ts", "reason"),
)
ADD_GAP: Final = Prepared(
    insert(GAPS).values({name: bindparam(name) for name in _GAP_NAMES}).on_conflict_do_nothing(), *_GAP_NAMES
)
_REFUSED_NAMES: Final = ("received_ms", "topic", "reason", "size_bytes", "payload")
_ADD_REFUSED: Final = Prepared(
    insert(QUARANTINE).values({name: bindparam(name) for name in _REFUSED_NAMES}), *_REFUSED_NAMES
)
TRIM_REFUSED: Final = Prepared(
    delete(QUARANTINE).where(
        QUARANTINE.c.refused_no <= select(func.max(QUARANTINE.c.refused_no)).scalar_subquery() - bindparam("kept")
    ),
    "kept",
)


class Writing:
    """One transaction: looks up what it needs for each stream, collects rows, and writes them table by table."""

    def __init__(self, connection: Connection, codec: PayloadCodec, batch: Batch):
        self._connection = connection
        self._batch = batch
        self._rows = Rows(batch, codec.pack([message.payload for message in batch.messages]))

    def write(self) -> Outcome:
        """Do all of it."""
        connection, rows = self._connection, self._rows
        for stream, arrivals in rows.arrivals.items():
            stream_no, hub_no = self._place(stream)
            covered = [
                interval
                for low, high in arrivals.neighbourhood()
                for interval in _NEIGHBOURS.rows(connection, stream_no, stream_no, low, low, high)
            ]
            rows.take(stream, stream_no, hub_no, covered)
        sums = SumsWriter(connection)
        for hub_no, of_hub in rows.of_hubs.items():
            if of_hub.summaries:
                sums.add(of_hub.site, of_hub.hub_id, hub_no, of_hub.summaries)
        _ADD_MESSAGE.run_many(connection, rows.messages)
        _DROP_INTERVAL.run_many(connection, rows.dropped_intervals)
        _SET_INTERVAL.run_many(connection, rows.intervals)
        _COUNT_STREAM.run_many(connection, rows.counts)
        ADD_GAP.run_many(connection, rows.gaps)
        sums.write()
        told = apply_answers(connection, rows.answers)
        write_hub_states(connection, self._batch.hub_states)
        write_connector_states(connection, self._batch.connector_states)
        self._write_quarantine()
        counts = (len(rows.messages), rows.points, rows.duplicates, len(rows.quarantine))
        return Outcome(*counts, tuple(sums.newest), told)

    def _place(self, stream: Stream) -> tuple[int, int]:
        found = _STREAM.rows(self._connection, *stream)
        if not found:
            hub_no = add_hub(self._connection, stream.site, stream.hub_id)
            _ADD_STREAM.run(self._connection, hub_no, stream.epoch)
            found = _STREAM.rows(self._connection, *stream)
        stream_no, hub_no = found[0]
        return stream_no, hub_no

    def _write_quarantine(self) -> None:
        refused = self._rows.quarantine
        _ADD_REFUSED.run_many(
            self._connection,
            [(item.received_ms, item.topic, item.reason, item.size_bytes, item.payload) for item in refused],
        )
        if refused:
            TRIM_REFUSED.run(self._connection, limits.QUARANTINE_MAX)
