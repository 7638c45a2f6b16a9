"""What a commit tells the other processes, in texts that fit into notices of the database (pure).

A notice names what has changed, and its reader looks in the database for the rest: it is small, whatever was committed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeAlias

import msgspec
from msgspec import Struct

from broker.control import Reported, Results
from cloud.batch import Batch, Outcome
from config import limits
from config.errors import ProtocolError

CHANNEL: Final = "hubline"
"""Where the notices go; a fleet has a database of its own, and so this name for itself."""


class Word(Struct, frozen=True, array_like=True, gc=False):
    """The newest message of a stream in one transaction."""

    site: str
    hub_id: str
    epoch: str
    sent_ms: int
    received_ms: int
    kind: str


class Place(Struct, frozen=True, array_like=True, gc=False):
    """Where a message with something that operations must know can be read."""

    site: str
    hub_id: str
    epoch: str
    seq: int
    received_ms: int


class Renewed(Struct, frozen=True, array_like=True, gc=False):
    """A hub with sensors that have newer values."""

    site: str
    hub_id: str


class Notice(Struct, frozen=True, omit_defaults=True):
    """What one text tells. `more`: something could not be told, so what was committed lately has to be looked through."""

    words: tuple[Word, ...] = msgspec.field(default=(), name="w")
    answers: tuple[Place, ...] = msgspec.field(default=(), name="a")
    renewed: tuple[Renewed, ...] = msgspec.field(default=(), name="r")
    more: bool = msgspec.field(default=False, name="m")


_Item: TypeAlias = Word | Place | Renewed
_FIELD: Final[dict[type[_Item], str]] = {Word: "words", Place: "answers", Renewed: "renewed"}
_FRAME_BYTES: Final = len(b'{"w":[],"a":[],"r":[],"m":true}')


def words_of(batch: Batch) -> tuple[Word, ...]:
    """Return the newest message of each stream."""
    newest = {message.stream: message for message in batch.messages}
    return tuple(Word(*stream, said.sent_ms, said.received_ms, said.kind) for stream, said in newest.items())


def announcements(batch: Batch, outcome: Outcome) -> Sequence[str]:
    """Return the texts that tell of a transaction, each at most NOTICE_MAX_BYTES, at most NOTICES_PER_COMMIT."""
    said_in = {id(message.body): message for message in batch.messages}
    places: list[Place] = []
    untold = False
    for answer in outcome.answers:
        if not isinstance(answer.body, (Results, Reported)):
            continue  # Logs are read from the database by whoever wants them.
        message = said_in.get(id(answer.body))
        if message is None:
            untold = True
        else:
            places.append(Place(*message.stream, message.seq, message.received_ms))
    renewed = (Renewed(*key) for key in dict.fromkeys((value.site, value.hub_id) for value in outcome.newest))
    texts = list(_packed([*words_of(batch), *places, *renewed]))
    if untold or len(texts) > limits.NOTICES_PER_COMMIT:
        texts = [*texts[: limits.NOTICES_PER_COMMIT - 1], encode(Notice(more=True))]
    return texts


def encode(notice: Notice) -> str:
    """Return a notice as text."""
    return msgspec.json.encode(notice).decode()


def decode(text: str) -> Notice:
    """Read a notice. Raises ProtocolError for anything else that somebody has sent to the channel."""
    try:
        return msgspec.json.decode(text, type=Notice)
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as exc:
        raise ProtocolError(f"is no notice: {exc}") from exc


def _packed(items: Iterable[_Item]) -> Iterator[str]:
    """Put items into as few texts as hold them, in order."""
    taken: list[_Item] = []
    size_bytes = _FRAME_BYTES
    for item in items:
        item_bytes = len(msgspec.json.encode(item)) + 1
        if taken and size_bytes + item_bytes > limits.NOTICE_MAX_BYTES:
            yield encode(_notice(taken))
            taken, size_bytes = [], _FRAME_BYTES
        taken.append(item)
        size_bytes += item_bytes
    if taken:
        yield encode(_notice(taken))


def _notice(items: Iterable[_Item]) -> Notice:
    fields: dict[str, list[_Item]] = {name: [] for name in _FIELD.values()}
    for item in items:
        fields[_FIELD[type(item)]].append(item)
    return Notice(**{name: tuple(found) for name, found in fields.items()})  # type: ignore[arg-type]
