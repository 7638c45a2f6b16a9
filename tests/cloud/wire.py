"""Messages as hubs send them, for the tests of the cloud; and a database written the way the service writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson

from broker.messages import Value
from broker.topics import Topic
from cloud.batch import Batch, Message, Stream
from cloud.envelopes import EnvelopeReader

FLEET = "acme"
SITE = "berlin"
EPOCH = "9f2c4be1d07a6b53"
OTHER_EPOCH = "00000000000000aa"
T0 = 1_763_798_400_000
"""The start of an hour, and so of a bucket: Unix ms."""

Values = Mapping[str, Value]


def topic(hub_id: str, kind: str = "readings", *, site: str = SITE, fleet: str = FLEET) -> str:
    """Return the topic of a hub's messages."""
    return str(Topic.up(fleet, site, hub_id, kind))


def payload(body: object, seq: object, *, epoch: object = EPOCH, sent: object = T0) -> bytes:
    """Return an envelope, whether the contract allows it or not."""
    return orjson.dumps({"epoch": epoch, "seq": seq, "sent": sent, "body": body})


def readings(seq: int, points: Sequence[tuple[int, Values]], *, epoch: str = EPOCH, sent: int = T0) -> bytes:
    """Return the payload of a message of readings: (ts, values) each."""
    return payload(
        {"points": [{"ts": ts, "values": dict(values)} for ts, values in points]}, seq, epoch=epoch, sent=sent
    )


def one(seq: int, value: Value = 1, *, epoch: str = EPOCH, sent: int = T0) -> bytes:
    """Return the payload of a message with a single reading, a second later for each seq."""
    return readings(seq, [(T0 + min(seq, 10**9) * 1000, {"counter": value})], epoch=epoch, sent=sent)


def gap(seq: int, from_seq: int, to_seq: int, *, epoch: str = EPOCH) -> bytes:
    """Return the payload of a gap record."""
    record = {"event": "gap", "from_seq": from_seq, "to_seq": to_seq, "points": 7, "reason": "outbox full"}
    return payload({"events": [{**record, "first_ts": T0, "last_ts": T0 + 5}]}, seq, epoch=epoch)


def message(
    content: bytes, *, hub_id: str = "pc-1", kind: str = "readings", site: str = SITE, received_ms: int = T0
) -> Message:
    """Return what ingest makes of a payload."""
    epoch, seq, sent_ms, body = EnvelopeReader().read(kind, content)
    return Message(Stream(site, hub_id, epoch), seq, kind, sent_ms, received_ms, content, body)


def batch(*contents: bytes, hub_id: str = "pc-1", kind: str = "readings", received_ms: int = T0) -> Batch:
    """Return a batch of one hub's messages of one kind."""
    return Batch(tuple(message(content, hub_id=hub_id, kind=kind, received_ms=received_ms) for content in contents))
