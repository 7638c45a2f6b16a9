"""From topics and payloads to transactions, and from transactions to acknowledgements: what is acknowledged is committed.

One batch is with the database at a time; what arrives meanwhile becomes the next one, so that many messages share a commit.
A batch that the database refuses is kept and tried again. Nothing is acknowledged before it is committed, and what does not
fit into the bounds is dropped: its hub sends it again.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from random import Random
from typing import Final, TypeAlias

from msgspec import Struct

from broker.backoff import Backoff
from broker.control import Heartbeat, Poll
from broker.machine import Wakeup
from broker.messages import Ack, ConnectorState, HubState, Last, decode
from broker.ranges import ranges_of
from broker.topics import UP_KINDS, Topic
from cloud.acknowledging import Acknowledging, Due
from cloud.batch import (
    Batch,
    ConnectorStateSeen,
    HubStateSeen,
    Message,
    NewestValue,
    Outcome,
    RefusedMessage,
    Stream,
)
from cloud.blocks import corrected
from cloud.envelopes import EnvelopeReader, RefusedBodyError
from cloud.skew import SkewMeter
from config import limits
from config.errors import ProtocolError

# --- Events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connected:
    """The cloud broker has accepted our session: what we publish can arrive."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The session has ended."""


class Arrived(Struct, frozen=True, gc=False):
    """A message has come in. `received_ms` is the cloud's wall clock. A Struct for the same reason as `Message`.

    Whoever gives a `receipt` (not 0) hears exactly once what became of it: `Settle` or `GiveBack`.
    """

    topic: str
    payload: bytes
    received_ms: int
    retained: bool = False
    receipt: int = 0


@dataclass(frozen=True, slots=True)
class Stored:
    """The batch that was handed out last is committed."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class StoreFailed:
    """The database has refused the batch that was handed out last."""


@dataclass(frozen=True, slots=True)
class NewestRead:
    """Newest values that the database holds, which the broker may have forgotten; `fresh` ones others have just stored."""

    newest: tuple[NewestValue, ...]
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Stopping:
    """The service is about to end: what waits is stored, nothing new is taken."""


Event: TypeAlias = Connected | Disconnected | Arrived | Stored | StoreFailed | NewestRead | Stopping | Wakeup

# --- Commands -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Store:
    """Commit the batch; `Stored` or `StoreFailed` has to follow."""

    batch: Batch


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Tell a hub what is committed."""

    topic: str
    ack: Ack


@dataclass(frozen=True, slots=True)
class PublishLast:
    """Renew the retained newest value of a sensor."""

    topic: str
    last: Last


@dataclass(frozen=True, slots=True)
class Heard:
    """A hub gave a life sign or asked for what waits for it; nothing of it is stored. `received_ms` as in `Arrived`."""

    site: str
    hub_id: str
    signal: Heartbeat | Poll
    received_ms: int


@dataclass(frozen=True, slots=True)
class Settle:
    """What these receipts stand for is done with: committed, or found to be worth nothing."""

    receipts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GiveBack:
    """What these receipts stand for was not taken: it has to come again, later or to somebody else."""

    receipts: tuple[int, ...]


Command: TypeAlias = Store | Acknowledge | PublishLast | Heard | Settle | GiveBack


@dataclass(slots=True)
class Counts:
    """What has happened since the start. `dropped` came when too much was waiting, `unknown` had a kind we don't know."""

    arrived: int = 0
    dropped: int = 0
    refused: int = 0
    unknown: int = 0


class Ingest:
    """The machine. `random` spreads the attempts while the database refuses.

    Without `tells_newest` it leaves `last/` to whoever reads the database, so that of several machines none tells an older
    value after a newer one.
    """

    def __init__(self, fleet: str, random: Random, *, tells_newest: bool = True):
        self.counts: Final = Counts()
        self._fleet: Final = fleet
        self._reader: Final = EnvelopeReader()
        self._skew: Final = SkewMeter()
        self._parse: Final = lru_cache(limits.TOPICS_REMEMBERED)(Topic.parse)
        self._ack_topic: Final = lru_cache(limits.TOPICS_REMEMBERED)(self._make_ack_topic)
        self._connected = False
        self._stopping = False
        self._waiting: deque[Message | RefusedMessage] = deque()
        self._waiting_bytes = 0
        self._unreadable = 0
        self._receipts: Final[dict[tuple[Stream, int], list[int]]] = {}
        self._unreadable_receipts: Final[deque[int]] = deque()
        self._in_flight_receipts: list[int] = []
        self._tells_newest: Final = tells_newest
        self._states: deque[HubStateSeen | ConnectorStateSeen] = deque()
        self._pending: set[tuple[Stream, int]] = set()
        self._copies: Counter[Stream] = Counter()
        self._in_flight: Batch | None = None
        self._next_store_at = float("-inf")
        self._retry_at: float | None = None
        self._backoff: Final = Backoff(random, max_s=limits.STORE_RETRY_MAX_S, stable_s=0.0)
        self._acknowledging: Final = Acknowledging()
        self._lasts: dict[tuple[str, str, str], Last] = {}
        self._next_lasts_at = float("-inf")

    @property
    def idle(self) -> bool:
        """Tell whether everything that was taken is committed."""
        return self._in_flight is None and not self._has_waiting()

    @property
    def waiting(self) -> int:
        """Return how many messages are not committed yet."""
        return len(self._pending)

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take what has happened and return what to do."""
        commands: list[Command] = []
        match event:
            case Arrived(receipt=receipt) if self._stopping:  # Not acknowledged, so it comes again.
                commands += [GiveBack((receipt,))] if receipt else []
            case Arrived():
                self.counts.arrived += 1
                commands += self._take(event)
            case Stored(outcome):
                commands = self._committed(outcome, now)
            case StoreFailed():
                assert self._in_flight is not None
                self._retry_at = now + self._backoff.next_s()
            case NewestRead(newest, fresh):
                self._remember(newest, fresh=fresh)
            case Connected():
                self._connected = True
            case Disconnected():
                self._connected = False
            case Stopping():
                self._stopping = True
                commands = self._acknowledge(self._acknowledging.all())
            case Wakeup():
                pass
        return [*self._store(now), *commands, *self._due(now)]

    def deadline(self) -> float | None:
        """Return when a transaction may begin or be tried again, or something may be published."""
        instants = []
        if self._connected:
            if self._lasts:
                instants.append(self._next_lasts_at)
            if (due_at := self._acknowledging.deadline()) is not None:
                instants.append(due_at)
        if self._retry_at is not None:
            instants.append(self._retry_at)
        elif self._in_flight is None and self._has_waiting():
            instants.append(self._next_store_at)
        return min(instants, default=None)

    # --- What arrives -----------------------------------------------------------------------------------------------

    def _take(self, arrived: Arrived) -> list[Command]:
        text, payload, received_ms, retained = arrived.topic, arrived.payload, arrived.received_ms, arrived.retained
        try:
            topic = self._parse(text)
            if topic.fleet != self._fleet:
                raise ProtocolError("of another fleet")
            match topic.channel:
                case "up":
                    return self._take_message(topic, arrived)
                case "state" if topic.owner == "hub":
                    hub_state = decode(payload, HubState)
                    self._take_state(HubStateSeen(topic.site, topic.name, hub_state, received_ms, retained))
                case "state":
                    connector_state = decode(payload, ConnectorState)
                    self._take_state(ConnectorStateSeen(topic.site, topic.name, connector_state, received_ms, retained))
                case "heartbeat" | "poll" if retained:
                    pass  # Only an engine that can't refuse the flag keeps one: it says nothing of now.
                case "heartbeat":
                    signal: Heartbeat | Poll = decode(payload, Heartbeat)
                    return [Heard(topic.site, topic.name, signal, received_ms), *_settled(arrived)]
                case "poll":
                    signal = decode(payload, Poll)
                    return [Heard(topic.site, topic.name, signal, received_ms), *_settled(arrived)]
                case channel:
                    raise ProtocolError(f"the cloud has not asked for {channel}")
        except ProtocolError as exc:
            return self._refuse(arrived, exc.reason)
        return _settled(arrived)

    def _take_message(self, topic: Topic, arrived: Arrived) -> list[Command]:
        assert topic.leaf is not None
        payload, received_ms = arrived.payload, arrived.received_ms
        try:
            epoch, seq, sent_ms, body = self._reader.read(topic.leaf, payload)
        except RefusedBodyError as exc:
            place = (Stream(topic.site, topic.name, exc.envelope.epoch), exc.envelope.seq)
            return self._refuse(arrived, exc.reason, place)
        stream = Stream(topic.site, topic.name, epoch)
        skew_ms = self._skew.measure(stream, sent_ms, received_ms)
        if skew_ms and isinstance(body, tuple):
            body = corrected(body, skew_ms)
        message = Message(stream, seq, topic.leaf, sent_ms, received_ms, payload, body, skew_ms)
        if self._admit(message.key, len(payload)):
            self._waiting.append(message)
            self.counts.unknown += topic.leaf not in UP_KINDS
        return self._keep_receipt(message.key, arrived.receipt)

    def _refuse(self, arrived: Arrived, reason: str, place: tuple[Stream, int] | None = None) -> list[Command]:
        self.counts.refused += 1
        payload = arrived.payload
        kept = payload[: limits.QUARANTINE_PAYLOAD_MAX_BYTES]
        topic = arrived.topic[: limits.TOPIC_MAX_BYTES]
        item = RefusedMessage(topic, reason, kept, len(payload), arrived.received_ms, place)
        if place is not None:
            if self._admit(place, len(kept)):
                self._waiting.append(item)
            return self._keep_receipt(place, arrived.receipt)
        if self._unreadable < limits.QUARANTINE_WAITING_MAX:
            self._unreadable += 1
            self._unreadable_receipts.append(arrived.receipt)
            self._waiting_bytes += len(kept)
            self._waiting.append(item)
            return []
        return _settled(arrived)  # It is counted, and would never be better.

    def _keep_receipt(self, key: tuple[Stream, int], receipt: int) -> list[Command]:
        """Remember whom to tell of a commit; what was dropped is given back at once."""
        if not receipt:
            return []
        if key not in self._pending:
            return [GiveBack((receipt,))]
        self._receipts.setdefault(key, []).append(receipt)
        return []

    def _admit(self, key: tuple[Stream, int], size_bytes: int) -> bool:
        if key in self._pending:
            self._copies[key[0]] += 1  # The commit of the first one acknowledges both.
            return False
        full = len(self._waiting) >= limits.INGEST_WAITING_MAX
        if full or self._waiting_bytes + size_bytes > limits.INGEST_WAITING_MAX_BYTES:
            self.counts.dropped += 1
            return False
        self._pending.add(key)
        self._waiting_bytes += size_bytes
        return True

    def _take_state(self, seen: HubStateSeen | ConnectorStateSeen) -> None:
        if len(self._states) < limits.INGEST_WAITING_MAX:
            self._states.append(seen)
        else:
            self.counts.dropped += 1

    # --- Transactions -----------------------------------------------------------------------------------------------

    def _has_waiting(self) -> bool:
        return bool(self._waiting or self._states)

    def _store(self, now: float) -> list[Command]:
        if self._in_flight is not None:
            if self._retry_at is None or now < self._retry_at:
                return []
            self._retry_at = None
            return [Store(self._in_flight)]
        full = len(self._waiting) >= limits.INGEST_BATCH_MESSAGES or self._waiting_bytes >= limits.INGEST_BATCH_BYTES
        if not self._has_waiting() or not (full or self._stopping or now >= self._next_store_at):
            return []
        self._in_flight = self._next_batch()
        self._next_store_at = now + limits.INGEST_INTERVAL_S
        return [Store(self._in_flight)]

    def _next_batch(self) -> Batch:
        messages: list[Message] = []
        refused: list[RefusedMessage] = []
        size_bytes = 0
        while self._waiting and len(messages) + len(refused) < limits.INGEST_BATCH_MESSAGES:
            item = self._waiting[0]
            if size_bytes and size_bytes + len(item.payload) > limits.INGEST_BATCH_BYTES:
                break
            self._waiting.popleft()
            size_bytes += len(item.payload)
            if isinstance(item, Message):
                messages.append(item)
            else:
                refused.append(item)
                if item.place is None:
                    self._unreadable -= 1
                    self._in_flight_receipts.append(self._unreadable_receipts.popleft())
        self._waiting_bytes -= size_bytes
        hub_states: list[HubStateSeen] = []
        connector_states: list[ConnectorStateSeen] = []
        while self._states and len(hub_states) + len(connector_states) < limits.INGEST_BATCH_MESSAGES:
            state = self._states.popleft()
            if isinstance(state, HubStateSeen):
                hub_states.append(state)
            else:
                connector_states.append(state)
        copies = tuple(self._copies.items())
        self._copies.clear()
        return Batch(tuple(messages), tuple(refused), tuple(hub_states), tuple(connector_states), copies)

    def _committed(self, outcome: Outcome, now: float) -> list[Command]:
        batch, self._in_flight = self._in_flight, None
        assert batch is not None
        self._retry_at = None
        self._backoff.lived(0.0)
        seqs: dict[Stream, list[int]] = {}
        receipts, self._in_flight_receipts = [receipt for receipt in self._in_flight_receipts if receipt], []
        for message in batch.messages:
            self._pending.discard(message.key)
            receipts += self._receipts.pop(message.key, ())
            seqs.setdefault(message.stream, []).append(message.seq)
        for place in (refused.place for refused in batch.refused):
            if place is not None:
                self._pending.discard(place)
                receipts += self._receipts.pop(place, ())
                seqs.setdefault(place[0], []).append(place[1])
        if self._tells_newest:
            self._remember(outcome.newest, fresh=True)
        settled: list[Command] = [Settle(tuple(receipts))] if receipts else []
        if not self._connected:
            return settled
        told = [
            due for stream, of_stream in seqs.items() for due in self._acknowledging.committed(stream, of_stream, now)
        ]
        if self._stopping:
            told += self._acknowledging.all()
        return settled + self._acknowledge(told)

    def _acknowledge(self, told: Due) -> list[Command]:
        if not self._connected:
            return []
        step = limits.ACK_RANGES_MAX
        return [
            Acknowledge(self._ack_topic(stream.site, stream.hub_id), Ack(stream.epoch, ranges[start : start + step]))
            for stream, ranges in ((stream, ranges_of(seqs)) for stream, seqs in told)
            for start in range(0, len(ranges), step)
        ]

    def _due(self, now: float) -> list[Command]:
        """Return what is to be published now; without a session it would be lost."""
        if not self._connected:
            return []
        return [*self._acknowledge(self._acknowledging.due(now)), *self._publish_lasts(now)]

    def _make_ack_topic(self, site: str, hub_id: str) -> str:
        return str(Topic.down(self._fleet, site, hub_id, "ack"))

    # --- Newest values ----------------------------------------------------------------------------------------------

    def _remember(self, newest: tuple[NewestValue, ...], *, fresh: bool) -> None:
        for value in newest:
            key = (value.site, value.hub_id, value.sensor)
            if key in self._lasts:
                if fresh:
                    self._lasts[key] = value.last
            elif len(self._lasts) < limits.LAST_WAITING_MAX:
                self._lasts[key] = value.last

    def _publish_lasts(self, now: float) -> list[Command]:
        if not self._lasts or now < self._next_lasts_at:
            return []
        keys = list(islice(self._lasts, limits.LAST_BURST))
        commands: list[Command] = [
            PublishLast(str(Topic.last(self._fleet, *key)), self._lasts.pop(key)) for key in keys
        ]
        self._next_lasts_at = now + (limits.INGEST_INTERVAL_S if self._lasts else limits.LAST_INTERVAL_S)
        return commands


def _settled(arrived: Arrived) -> list[Command]:
    return [Settle((arrived.receipt,))] if arrived.receipt else []
