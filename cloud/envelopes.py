"""Reads the sequenced messages of hubs. `broker.messages` and `broker.control` decide what the contract allows.

This only says yes faster: readings, nearly everything that comes, are decoded in one pass, and the names of values are
looked up instead of matched one by one: a third of the time. What the fast way does not accept at once is judged by them.
These structs hold no cycles, so the garbage collector is told to leave thousands of waiting ones alone (`gc=False`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, Struct

from broker.control import Logs, Reported, Results, decode_body
from broker.messages import Envelope, Epoch, Events, Readings, Seq, UnixMs, ValueName, decode
from cloud.blocks import Blocks, PlainPoint, blocks_of
from config import limits
from config.errors import ProtocolError


class PlainReadings(Struct, frozen=True, gc=False):
    """The body of `up/readings`."""

    points: Annotated[list[PlainPoint], Meta(min_length=1, max_length=limits.POINTS_MAX)]


class ReadingsEnvelope(Struct, frozen=True, gc=False):
    """An envelope of readings, decoded in one pass."""

    epoch: Epoch
    seq: Seq
    sent: UnixMs
    body: PlainReadings


Body: TypeAlias = Blocks | Events | Results | Reported | Logs | None
"""A body, readings as blocks; None for a kind that this version does not know."""


class RefusedBodyError(ProtocolError):
    """The envelope can be read, its body can't: the message takes its place in the stream all the same."""

    def __init__(self, envelope: Envelope, reason: str):
        self.envelope = envelope
        super().__init__(reason)


class EnvelopeReader:
    """Reads payloads of `up/{kind}`. It remembers the names of values that it has found to be allowed."""

    def __init__(self) -> None:
        self._readings: Final = msgspec.json.Decoder(ReadingsEnvelope)
        self._names: set[str] = set()

    def read(self, kind: str, payload: bytes) -> tuple[str, int, int, Body]:
        """Return epoch, seq, sent (Unix ms) and the body.

        Raises RefusedBodyError, or any other ProtocolError if not even the envelope can be read.
        """
        if kind == "readings" and len(payload) <= limits.MESSAGE_MAX_BYTES:
            try:
                if not payload.isascii():
                    payload.decode()  # What is ignored must be UTF-8 too; msgspec does not look at it.
                quick = self._readings.decode(payload)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass  # Not a verdict: the contract's own reader gives it.
            else:
                blocks = blocks_of(quick.body.points)
                if all(block.columns.keys() <= self._names or self._learn(block.columns) for block in blocks):
                    return quick.epoch, quick.seq, quick.sent, blocks
        return self._judge(kind, payload)

    def _learn(self, names: Iterable[str]) -> bool:
        fresh = set(names) - self._names
        try:
            for name in fresh:
                msgspec.convert(name, ValueName)
        except msgspec.ValidationError:
            return False
        if len(self._names) + len(fresh) > limits.VALUE_NAMES_REMEMBERED:
            self._names.clear()
        self._names |= fresh
        return True

    def _judge(self, kind: str, payload: bytes) -> tuple[str, int, int, Body]:
        envelope = decode(payload, Envelope)
        try:
            body = decode_body(kind, envelope)
        except ProtocolError as exc:
            raise RefusedBodyError(envelope, exc.reason) from exc
        if isinstance(body, Readings):
            blocks = blocks_of([PlainPoint(point.ts, dict(point.values)) for point in body.points])
            return envelope.epoch, envelope.seq, envelope.sent, blocks
        return envelope.epoch, envelope.seq, envelope.sent, body
