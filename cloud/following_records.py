"""What the active process reads of what workers have committed (SQL)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import orjson
from sqlalchemy import Connection, Row, func, select, true, tuple_

from broker.clock import unix_ms
from broker.control import Reported, Results
from broker.messages import Last, convert
from cloud.batch import Answered, NewestValue
from cloud.envelopes import EnvelopeReader
from cloud.fleet_schema import PRESENCE, REPORTED
from cloud.hub_key import HubKey
from cloud.notices import Place, Word
from cloud.payloads import PayloadCodec
from cloud.schema import HUBS, MESSAGES, SENSORS, STREAMS
from config import limits, log
from config.errors import ProtocolError, StorageError

_log: Final = log.get(__name__)

Cursor: TypeAlias = tuple[int, ...]
"""Where the next page goes on."""


def last_word_ms(connection: Connection) -> int:
    """Return until when whoever was active before us has surely heard everything (Unix ms)."""
    return int(connection.scalar(select(func.max(PRESENCE.c.last_seen_ms))) or unix_ms())


def words_since(connection: Connection, since_ms: int, after_stream: int) -> list[tuple[int, Word]]:
    """Return the newest message of streams (number, word) that had any since then, by number, from behind `after_stream` on."""
    newest = (
        select(MESSAGES.c.sent_ms, MESSAGES.c.received_ms, MESSAGES.c.kind)
        .where(MESSAGES.c.stream_no == STREAMS.c.stream_no, MESSAGES.c.received_ms >= since_ms)
        .order_by(MESSAGES.c.seq.desc())
        .limit(1)
        .lateral("newest")
    )
    query = (
        select(STREAMS.c.stream_no, HUBS.c.site, HUBS.c.hub, STREAMS.c.epoch, newest)
        .join(HUBS, HUBS.c.hub_no == STREAMS.c.hub_no)
        .join(newest, true())
        .where(STREAMS.c.stream_no > after_stream, STREAMS.c.last_received_ms >= since_ms)
        .order_by(STREAMS.c.stream_no)
        .limit(limits.READ_PAGE_MESSAGES)
    )
    return [(number, Word(*said)) for number, *said in connection.execute(query)]


def answers_at(connection: Connection, places: Sequence[Place]) -> list[Answered]:
    """Return what hubs have answered in these messages, as far as they are still there."""
    codec, reader = PayloadCodec(), EnvelopeReader()
    found = []
    for place in places:
        query = _STORED.where(
            HUBS.c.site == place.site,
            HUBS.c.hub == place.hub_id,
            STREAMS.c.epoch == place.epoch,
            MESSAGES.c.seq == place.seq,
            MESSAGES.c.received_ms == place.received_ms,
        )
        found += [answer for row in connection.execute(query) if (answer := _answered(row, codec, reader)) is not None]
    return found


def results_since(connection: Connection, since_ms: int, after: Cursor | None) -> tuple[list[Answered], Cursor | None]:
    """Return a page of what hubs have told of their tasks since then, in order of arrival; the cursor is None at the end."""
    order = (MESSAGES.c.received_ms, MESSAGES.c.stream_no, MESSAGES.c.seq)
    query = _STORED.where(MESSAGES.c.kind == "results", MESSAGES.c.received_ms >= since_ms)
    if after is not None:
        query = query.where(tuple_(*order) > after)
    rows = connection.execute(query.order_by(*order).limit(limits.READ_PAGE_MESSAGES)).all()
    codec, reader = PayloadCodec(), EnvelopeReader()
    answers = [answer for row in rows if (answer := _answered(row, codec, reader)) is not None]
    full = len(rows) == limits.READ_PAGE_MESSAGES
    return answers, (rows[-1].received_ms, rows[-1].stream_no, rows[-1].seq) if full else None


def reported_since(connection: Connection, since_ms: int, after: Cursor | None) -> tuple[list[Answered], Cursor | None]:
    """Return a page of what hubs that have reported since then have reported last."""
    query = (
        select(REPORTED.c.hub_no, HUBS.c.site, HUBS.c.hub, REPORTED.c.body)
        .join(HUBS, HUBS.c.hub_no == REPORTED.c.hub_no)
        .where(REPORTED.c.received_ms >= since_ms, REPORTED.c.hub_no > (after or (0,))[0])
        .order_by(REPORTED.c.hub_no)
        .limit(limits.READ_PAGE_MESSAGES)
    )
    rows = connection.execute(query).all()
    answers = [answer for row in rows if (answer := _report(row)) is not None]
    return answers, (rows[-1].hub_no,) if len(rows) == limits.READ_PAGE_MESSAGES else None


def newest_of(connection: Connection, keys: Sequence[HubKey]) -> list[NewestValue]:
    """Return the newest value of each sensor of these hubs."""
    query = (
        select(HUBS.c.site, HUBS.c.hub, SENSORS.c.sensor, SENSORS.c.ts, SENSORS.c.value, SENSORS.c.readings)
        .join(SENSORS, SENSORS.c.hub_no == HUBS.c.hub_no)
        .where(tuple_(HUBS.c.site, HUBS.c.hub).in_(list(keys)))
    )
    return [
        NewestValue(row.site, row.hub, row.sensor, Last(row.ts, orjson.loads(row.value), row.readings))
        for row in connection.execute(query)
    ]


_STORED: Final = (
    select(
        *(HUBS.c.site, HUBS.c.hub, MESSAGES.c.stream_no, MESSAGES.c.seq, MESSAGES.c.kind),
        *(MESSAGES.c.received_ms, MESSAGES.c.codec, MESSAGES.c.payload),
    )
    .join(STREAMS, STREAMS.c.stream_no == MESSAGES.c.stream_no)
    .join(HUBS, HUBS.c.hub_no == STREAMS.c.hub_no)
)


def _answered(row: Row[*tuple[Any, ...]], codec: PayloadCodec, reader: EnvelopeReader) -> Answered | None:
    """Return what a stored message answers; nothing if it is damaged, which an audit finds."""
    try:
        *_, body = reader.read(row.kind, codec.unpack(row.codec, bytes(row.payload)))
    except (StorageError, ProtocolError) as exc:
        _log.warning("answer_not_read", site=row.site, hub=row.hub, seq=row.seq, reason=exc.reason)
        return None
    return Answered(row.site, row.hub, body) if isinstance(body, (Results, Reported)) else None


def _report(row: Row[*tuple[Any, ...]]) -> Answered | None:
    """Return what a hub has reported last; nothing if this version can't read it, which must not stop the active process."""
    try:
        return Answered(row.site, row.hub, convert(orjson.loads(row.body), Reported))
    except (ProtocolError, orjson.JSONDecodeError) as exc:
        _log.warning("report_not_read", site=row.site, hub=row.hub, reason=str(exc))
        return None
