"""What an outbox holds, read the way the cloud would read it, for the outbox's tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from broker.messages import Events, Readings, decode, encode_envelope
from broker.ranges import Ranges
from config import limits
from hub.outbox import Entry, Outbox, OutboxMessage


def point(number: int, size_bytes: int = 0) -> Entry:
    """Return a reading that can be told from every other; an unknown field makes it as long as is wanted."""
    padding = b',"pad":"%b"' % (b"x" * size_bytes) if size_bytes else b""
    return Entry(1_000 + number, b'{"ts":%d,"values":{"n.value":%d}%b}' % (1_000 + number, number, padding))


def event(number: int) -> Entry:
    """Return an event that can be told from every other."""
    return Entry(1_000 + number, b'{"event":"test","ts":%d,"message":"%d"}' % (1_000 + number, number))


@dataclass(slots=True)
class Ledger:
    """The content of messages: numbers of readings and of events in order, gap records, and the seqs of all."""

    readings: list[int] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    gaps: list[tuple[int, int, int, str]] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    seqs: Ranges = field(default_factory=Ranges)

    def take(self, messages: Iterable[OutboxMessage]) -> None:
        """Read messages, each of which must keep the contract."""
        for message in messages:
            envelope = encode_envelope("0" * 16, message.seq, 2**53, message.body)
            assert len(envelope) <= limits.MESSAGE_MAX_BYTES
            assert message.seq not in self.seqs
            self.seqs.add(message.seq, message.seq)
            if message.kind == "readings":
                values = [found.values["n.value"] for found in decode(message.body, Readings).points]
                assert message.points == len(values)
                self.readings += [int(value) for value in values]
            elif message.kind == "events":
                self._take_events(message)

    def _take_events(self, message: OutboxMessage) -> None:
        assert message.points == 0
        for found in decode(message.body, Events).events:
            if found.event == "test":
                self.events.append(int(found.message or ""))
            elif found.event == "gap":
                assert found.from_seq is not None
                assert found.to_seq is not None
                assert found.points is not None
                self.gaps.append((found.from_seq, found.to_seq, found.points, str(found.reason)))
            else:
                self.other.append(f"{found.event}: {found.message}")


def read_all(outbox: Outbox) -> Ledger:
    """Return everything that waits. It is sealed by that."""
    ledger = Ledger()
    for first, last in outbox.pending():
        for seq in range(first, last + 1):
            ledger.take(outbox.load([seq]))
    assert list(ledger.seqs) == outbox.pending()
    return ledger
