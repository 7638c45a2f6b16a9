"""One transaction's work in PostgreSQL, in a dozen statements whatever the number of hubs and messages (SQL).

Any number of processes may write for the same hubs at once. Everything that belongs to a hub is written by whoever holds the
lock of its row in `hubs`, and hubs are locked in the order of their numbers; connectors and the quarantine come last. So
nobody ever waits for one who waits for him, and what was read under the lock still holds when it is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Connection, bindparam

from cloud.batch import Batch, Outcome, RefusedMessage, Stream
from cloud.nul import escape_nul
from cloud.payloads import PayloadCodec
from cloud.postgres_driver import Driver, driver
from cloud.schema import QUARANTINE
from cloud.statements import Prepared, insert
from cloud.states import write_connector_states, write_hub_states
from cloud.sums import NOTHING_YET, Known, RollupRow, Sums, new_sensors
from cloud.writing import ADD_GAP, TRIM_REFUSED
from cloud.writing_answers import apply_answers
from cloud.writing_rows import MESSAGE_NAMES, Rows
from config import limits

HubKey = tuple[str, str]

_CONNECTORS_LOCK: Final = 0x686C_0001
_QUARANTINE_LOCK: Final = 0x686C_0002
"""Advisory locks: what they protect has no row that could be locked before it is there."""

_LOCK_HUBS: Final = """
SELECT h.hub_no, h.site, h.hub FROM hubs h JOIN unnest($1::text[], $2::text[]) AS w(site, hub)
    ON h.site = w.site AND h.hub = w.hub
    ORDER BY h.hub_no FOR NO KEY UPDATE OF h"""
_ADD_HUBS: Final = """
INSERT INTO hubs (site, hub) SELECT site, hub FROM unnest($1::text[], $2::text[]) AS w(site, hub) ORDER BY site, hub
    ON CONFLICT DO NOTHING"""
_COVERED: Final = """
SELECT w.hub_no, w.epoch, s.stream_no, c.first_seq, c.last_seq
    FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[]) AS w(hub_no, epoch, low, high)
    LEFT JOIN streams s ON s.hub_no = w.hub_no AND s.epoch = w.epoch
    LEFT JOIN LATERAL (
        SELECT first_seq, last_seq FROM coverage c
        WHERE c.stream_no = s.stream_no AND c.first_seq <= w.high AND c.first_seq >= coalesce(
            (SELECT max(b.first_seq) FROM coverage b WHERE b.stream_no = s.stream_no AND b.first_seq < w.low), w.low)
    ) c ON true"""
_ADD_STREAMS: Final = """
INSERT INTO streams (hub_no, epoch) SELECT hub_no, epoch FROM unnest($1::bigint[], $2::text[]) AS w(hub_no, epoch)
    ON CONFLICT DO NOTHING RETURNING hub_no, epoch, stream_no"""
_SENSORS: Final = """
SELECT hub_no, sensor, sensor_no, ts, seq, value, readings FROM sensors WHERE hub_no = ANY($1::bigint[])"""
_ADD_SENSORS: Final = """
INSERT INTO sensors (hub_no, sensor, ts, seq, value, readings)
    SELECT hub_no, sensor, $3, $4, $5, 0 FROM unnest($1::bigint[], $2::text[]) AS w(hub_no, sensor)
    RETURNING hub_no, sensor, sensor_no"""
_DROP_INTERVALS: Final = """
DELETE FROM coverage c USING unnest($1::bigint[], $2::bigint[]) AS w(stream_no, first_seq)
    WHERE c.stream_no = w.stream_no AND c.first_seq = w.first_seq"""
_SET_INTERVALS: Final = """
INSERT INTO coverage (stream_no, first_seq, last_seq) SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[])
    ON CONFLICT (stream_no, first_seq) DO UPDATE SET last_seq = excluded.last_seq"""
_COUNT_STREAMS: Final = """
UPDATE streams s SET messages = s.messages + w.m, points = s.points + w.p, duplicates = s.duplicates + w.d,
    refused = s.refused + w.r, last_received_ms = greatest(s.last_received_ms, w.ms)
    FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
        AS w(m, p, d, r, ms, stream_no)
    WHERE s.stream_no = w.stream_no"""
_SET_SENSORS: Final = """
UPDATE sensors s SET ts = w.ts, seq = w.seq, value = w.value, readings = s.readings + w.more
    FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bigint[], $5::bigint[]) AS w(ts, seq, value, more, sensor_no)
    WHERE s.sensor_no = w.sensor_no"""


def _add_rollups(table: str) -> str:
    return f"""
INSERT INTO {table} AS r (bucket, sensor_no, count, min, max, sum)
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::float8[], $5::float8[], $6::float8[])
    ON CONFLICT (bucket, sensor_no) DO UPDATE SET count = r.count + excluded.count, min = least(r.min, excluded.min),
        max = greatest(r.max, excluded.max), sum = r.sum + excluded.sum"""  # noqa: S608


_ADD_5MIN: Final = _add_rollups("rollup_5min")
_ADD_1H: Final = _add_rollups("rollup_1h")

_REFUSED_NAMES: Final = ("refused_no", "received_ms", "topic", "reason", "size_bytes", "payload")
_ADD_REFUSED: Final = Prepared(
    insert(QUARANTINE).values({name: bindparam(name) for name in _REFUSED_NAMES}), *_REFUSED_NAMES
)


class UnknownHubsError(Exception):
    """Some hubs of a batch are to be made known first, in a transaction of its own: nobody waits for others there."""

    def __init__(self, keys: set[HubKey]):
        self.keys = keys
        super().__init__(f"{len(keys)} hubs are new")


def add_hubs(connection: Connection, keys: Iterable[HubKey]) -> None:
    """Make hubs known."""
    link = driver(connection)
    link.wait(link.raw.execute(_ADD_HUBS, *_columns(sorted(keys), 2)))


class PostgresWriting:
    """The work of one batch; what can be done without the database is done at once. `write` may be called again."""

    def __init__(self, codec: PayloadCodec, batch: Batch):
        self._batch = batch
        self._packed = codec.pack([message.payload for message in batch.messages])

    def write(self, connection: Connection) -> Outcome:
        """Do all of it in the running transaction. Raises UnknownHubsError, and then nothing was done."""
        rows, sums, link = Rows(self._batch, self._packed), Sums(), driver(connection)
        hubs = self._lock_hubs(link, rows)
        self._take_streams(link, rows, hubs)
        self._add_sums(link, rows, sums)
        if rows.messages:
            names = list(MESSAGE_NAMES)
            link.wait(link.raw.copy_records_to_table("messages", records=_clean(rows.messages), columns=names))
        for statement, of_table, width in (
            (_DROP_INTERVALS, rows.dropped_intervals, 2),
            (_SET_INTERVALS, rows.intervals, 3),
            (_COUNT_STREAMS, rows.counts, 6),
            (_SET_SENSORS, sums.sensors, 5),
            (_ADD_5MIN, _sorted(sums.five_minutes), 6),
            (_ADD_1H, _sorted(sums.hours), 6),
        ):
            if of_table:
                link.wait(link.raw.execute(statement, *_columns(of_table, width)))
        ADD_GAP.run_many(connection, rows.gaps)
        told = apply_answers(connection, rows.answers)
        write_hub_states(connection, self._batch.hub_states)
        if self._batch.connector_states:
            _lock(link, _CONNECTORS_LOCK)
            write_connector_states(connection, self._batch.connector_states)
        self._write_quarantine(connection, rows.quarantine)
        counts = (len(rows.messages), rows.points, rows.duplicates, len(rows.quarantine))
        return Outcome(*counts, tuple(sums.newest), told)

    def _lock_hubs(self, link: Driver, rows: Rows) -> dict[HubKey, int]:
        keys = {(stream.site, stream.hub_id) for stream in rows.arrivals}
        keys |= {(seen.site, seen.hub_id) for seen in self._batch.hub_states}
        if not keys:
            return {}
        locked = link.wait(link.raw.fetch(_LOCK_HUBS, *_columns(sorted(keys), 2)))
        hubs = {(site, hub_id): hub_no for hub_no, site, hub_id in locked}
        if missing := keys - hubs.keys():
            raise UnknownHubsError(missing)
        return hubs

    def _take_streams(self, link: Driver, rows: Rows, hubs: dict[HubKey, int]) -> None:
        if not rows.arrivals:
            return
        of_streams = {(hubs[stream.site, stream.hub_id], stream.epoch): stream for stream in rows.arrivals}
        # One with nothing but copies asks for its number only.
        wanted = [
            (*place, *near)
            for place, stream in of_streams.items()
            for near in rows.arrivals[stream].neighbourhood() or [(0, -1)]
        ]
        covered: defaultdict[Stream, list[tuple[int, int]]] = defaultdict(list)
        numbers: dict[Stream, int] = {}
        for hub_no, epoch, stream_no, first, last in link.wait(link.raw.fetch(_COVERED, *_columns(wanted, 4))):
            if stream_no is not None:
                stream = of_streams[hub_no, epoch]
                numbers[stream] = stream_no
                if first is not None:
                    covered[stream].append((first, last))
        if missing := [place for place, stream in of_streams.items() if stream not in numbers]:
            for hub_no, epoch, stream_no in link.wait(link.raw.fetch(_ADD_STREAMS, *_columns(missing, 2))):
                numbers[of_streams[hub_no, epoch]] = stream_no
        for (hub_no, _), stream in of_streams.items():
            rows.take(stream, numbers[stream], hub_no, covered[stream])

    def _add_sums(self, link: Driver, rows: Rows, sums: Sums) -> None:
        of_hubs = {hub_no: of_hub for hub_no, of_hub in rows.of_hubs.items() if of_hub.summaries}
        if not of_hubs:
            return
        known: dict[int, Known] = {hub_no: {} for hub_no in of_hubs}
        found = link.wait(link.raw.fetch(_SENSORS, list(of_hubs)))
        for hub_no, sensor, sensor_no, ts, seq, value, count in found:
            known[hub_no][sensor] = (sensor_no, (ts, seq, value), count)
        missing = [
            (hub_no, name) for hub_no in of_hubs for name in new_sensors(known[hub_no], of_hubs[hub_no].summaries)
        ]
        if missing:
            added = link.wait(link.raw.fetch(_ADD_SENSORS, *_columns(missing, 2), *NOTHING_YET))
            for hub_no, sensor, sensor_no in added:
                known[hub_no][sensor] = (sensor_no, NOTHING_YET, 0)
        for hub_no, of_hub in of_hubs.items():
            sums.add(of_hub.site, of_hub.hub_id, known[hub_no], of_hub.summaries)

    def _write_quarantine(self, connection: Connection, refused: Sequence[RefusedMessage]) -> None:
        """Number the refused messages without a hole: the highest number is how many there ever were."""
        if not refused:
            return
        link = driver(connection)
        _lock(link, _QUARANTINE_LOCK)
        highest = link.wait(link.raw.fetchval("SELECT coalesce(max(refused_no), 0) FROM quarantine"))
        _ADD_REFUSED.run_many(
            connection,
            [
                (no, item.received_ms, item.topic, item.reason, item.size_bytes, item.payload)
                for no, item in enumerate(refused, highest + 1)
            ],
        )
        TRIM_REFUSED.run(connection, limits.QUARANTINE_MAX)


def _lock(link: Driver, number: int) -> None:
    link.wait(link.raw.execute("SELECT pg_advisory_xact_lock($1)", number))


def _columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[tuple[Any, ...]]:
    return list(zip(*rows, strict=True)) if rows else [()] * width


def _sorted(rows: list[RollupRow]) -> list[RollupRow]:
    """Put rows in the order of the table's key: neighbours share pages."""
    return sorted(rows)


def _clean(messages: list[tuple[object, ...]]) -> list[tuple[object, ...]]:
    """Return the rows with a kind that PostgreSQL takes."""
    kind = MESSAGE_NAMES.index("kind")
    if all(escape_nul(each) == each for each in {str(row[kind]) for row in messages}):
        return messages
    return [(*row[:kind], escape_nul(str(row[kind])), *row[kind + 1 :]) for row in messages]
