"""What passes between the ingest machine and the database: the messages of one transaction, and what it has changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from msgspec import Struct

from broker.control import Logs, Reported, Results
from broker.messages import ConnectorState, HubState, Last
from cloud.envelopes import Body


class Stream(NamedTuple):
    """The messages of one outbox of one hub. A tuple, because it is hashed for every message."""

    site: str
    hub_id: str
    epoch: str


class Message(Struct, frozen=True, gc=False):
    """A message that the contract allows. `body` is None for a kind that this version does not know.

    `skew_ms` is how far its hub's clock was ahead, as far as that could be told; in blocks the times are right already.

    A Struct, because one is made for every message, and a frozen dataclass costs ten times as much to make.
    """

    stream: Stream
    seq: int
    kind: str
    sent_ms: int
    received_ms: int
    payload: bytes
    body: Body
    skew_ms: int = 0

    @property
    def key(self) -> tuple[Stream, int]:
        """Return what makes the message unique: it is stored once."""
        return self.stream, self.seq


@dataclass(frozen=True, slots=True)
class RefusedMessage:
    """A message that the contract does not allow, for the quarantine. `payload` may be cut, `size_bytes` is not.

    If its envelope could be read, `place` says which seq it takes: it counts as received, or it would come for ever.
    """

    topic: str
    reason: str
    payload: bytes
    size_bytes: int
    received_ms: int
    place: tuple[Stream, int] | None = None


@dataclass(frozen=True, slots=True)
class HubStateSeen:
    """What a hub, or its last will, said of itself. `retained`: it was waiting at the broker when we subscribed (again)."""

    site: str
    hub_id: str
    state: HubState
    received_ms: int
    retained: bool = False


@dataclass(frozen=True, slots=True)
class ConnectorStateSeen:
    """What a connector, or its last will, said of itself."""

    site: str
    connector_id: str
    state: ConnectorState
    received_ms: int
    retained: bool = False


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction commits. `copies` counts, by stream, repetitions that were dropped while waiting."""

    messages: tuple[Message, ...] = ()
    refused: tuple[RefusedMessage, ...] = ()
    hub_states: tuple[HubStateSeen, ...] = ()
    connector_states: tuple[ConnectorStateSeen, ...] = ()
    copies: tuple[tuple[Stream, int], ...] = ()


@dataclass(frozen=True, slots=True)
class NewestValue:
    """The newest value of a sensor and how many of its readings are stored; a transaction has changed at least the number."""

    site: str
    hub_id: str
    sensor: str
    last: Last


@dataclass(frozen=True, slots=True)
class Answered:
    """What a hub answers or tells of itself, stored for the first time."""

    site: str
    hub_id: str
    body: Results | Reported | Logs


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a transaction has added to the database."""

    messages: int = 0
    points: int = 0
    duplicates: int = 0
    quarantined: int = 0
    newest: tuple[NewestValue, ...] = ()
    answers: tuple[Answered, ...] = ()
