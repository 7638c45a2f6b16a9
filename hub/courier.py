"""What to send next (pure): a bounded window of unacknowledged messages, sent again in time, live before backlog.

A message leaves the courier's books only when the cloud has acknowledged it, or the outbox has dropped it. A path is
just open or closed here: which one it is, is the link's affair, so that a change of path is an end and a beginning.

The time-out is TCP's (RFC 6298): smoothed round trip plus four deviations, doubled with every round that brings nothing,
measured only on messages that were sent once (Karn's rule). A time-out also halves the window, and acknowledgements open
it again: a cloud that has become slow is not asked the same thing faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from broker.machine import Wakeup
from broker.ranges import Ranges, ranges_of
from config import limits

SeqRanges: TypeAlias = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class PathOpened:
    """Messages can be sent. What was in flight on another path is sent again, in order."""


@dataclass(frozen=True, slots=True)
class PathClosed:
    """Nothing can be sent any more."""


@dataclass(frozen=True, slots=True)
class Appended:
    """The outbox has committed messages; repetitions are welcome."""

    ranges: SeqRanges


@dataclass(frozen=True, slots=True)
class Dropped:
    """The outbox has given up messages for good; its gap record tells the cloud."""

    ranges: SeqRanges


@dataclass(frozen=True, slots=True)
class Sent:
    """A message that `Send` asked for is on its way."""

    seq: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The cloud has committed messages of the given epoch."""

    epoch: str
    ranges: SeqRanges


@dataclass(frozen=True, slots=True)
class Send:
    """Load these messages from the outbox and publish them in this order; report each as `Sent` (or `Dropped`)."""

    seqs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """Delete these messages from the outbox: the cloud has them."""

    ranges: SeqRanges


Event: TypeAlias = PathOpened | PathClosed | Appended | Dropped | Sent | Acknowledged | Wakeup
Command: TypeAlias = Send | Forget


@dataclass(slots=True)
class _Flight:
    """A message in the window. Until it is reported as sent, `sent_at` is None and its size unknown."""

    sent_at: float | None
    size_bytes: int
    again: bool


class Courier:
    """The books of one outbox. `pending` is what it held at the start, before anything is appended."""

    def __init__(self, epoch: str, pending: SeqRanges = ()):
        self.epoch = epoch
        self.open = False
        self._waiting = Ranges(pending)  # Unacknowledged and not in flight.
        self._flights: dict[int, _Flight] = {}  # Those that were sent are in the order of their times.
        self._flight_bytes = 0
        self._sent_before = Ranges()  # Were in flight once: their round trip says nothing.
        self._live_from = 1 + (self._waiting.maximum or 0)  # Messages from here on are live, those before are backlog.
        self._live_turns = 0
        self._window = float(limits.WINDOW_MESSAGES)
        self._window_held = 0.0  # Up to this it opens quickly again: half of what it was before a silence.
        self._round_trip_s: float | None = None
        self._deviation_s = 0.0
        self._patience = 1  # Doubles with every round of time-outs;
        self._round_from = 0.0  # a round is what was sent since the last one.

    @property
    def unacknowledged(self) -> int:
        """Return how many messages the cloud has not acknowledged yet."""
        return self._waiting.count() + len(self._flights)

    @property
    def oldest(self) -> int | None:
        """Return the number of the oldest message that the cloud has not acknowledged, or None."""
        return min((seq for seq in (self._waiting.first_from(1), *self._flights) if seq is not None), default=None)

    @property
    def timeout_s(self) -> float:
        """Return how long an acknowledgement may take before its message is sent again."""
        if self._round_trip_s is None:
            measured_s = limits.RETRANSMIT_FIRST_S
        else:
            measured_s = max(limits.RETRANSMIT_MIN_S, self._round_trip_s + 4 * self._deviation_s)
        return min(
            limits.RETRANSMIT_MAX_S, max(measured_s, min(limits.RETRANSMIT_PROBE_S, measured_s * self._patience))
        )

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take an event and return what to do; see Machine."""
        match event:
            case PathOpened():
                self._land()
                self.open = True
                self._live_from = 1 + (self._waiting.maximum or self._live_from - 1)
                self._round_trip_s, self._patience = None, 1
                self._window, self._window_held = float(limits.WINDOW_MESSAGES), 0.0
                return self._fill()
            case PathClosed():
                self.open = False
                self._land()
                return []
            case Appended(ranges):
                for first, last in ranges:
                    self._append(first, last)
                return self._fill()
            case Dropped(ranges):
                self._strike(ranges)
                return self._fill()
            case Sent(seq, size_bytes):
                self._took_off(seq, size_bytes, now)
                return self._fill()
            case Acknowledged(epoch, _) if epoch != self.epoch:
                return []  # About an outbox that was set aside.
            case Acknowledged(_, ranges):
                return self._acknowledge(ranges, now)
            case Wakeup():
                return self._time_out(now)

    def deadline(self) -> float | None:
        """Return when the oldest message in flight is to be sent again."""
        for flight in self._flights.values():
            if flight.sent_at is not None:
                return flight.sent_at + self.timeout_s
        return None

    # --- The books --------------------------------------------------------------------------------------------------

    def _append(self, first: int, last: int) -> None:
        """Book new messages; those in flight already (an outbox may repeat itself) stay there."""
        self._waiting.add(first, last)
        for seq in self._flights:
            if first <= seq <= last:
                self._waiting.remove(seq, seq)

    def _strike(self, ranges: SeqRanges) -> list[tuple[int, int]]:
        """Take messages off the books, and return those that were on them."""
        known: list[int] = []
        found: list[tuple[int, int]] = []
        for first, last in ranges:
            found += self._waiting.within(first, last)
            self._waiting.remove(first, last)
            self._sent_before.remove(first, last)
            if last - first < len(self._flights):
                known += [seq for seq in range(first, last + 1) if seq in self._flights]
            else:
                known += [seq for seq in self._flights if first <= seq <= last]
        for seq in known:
            self._flight_bytes -= self._flights.pop(seq).size_bytes
        return list(Ranges(found + ranges_of(known))) if found else ranges_of(known)

    def _land(self) -> None:
        """Put everything in flight back among what waits."""
        for seq in self._flights:
            self._waiting.add(seq, seq)
            self._sent_before.add(seq, seq)
        self._flights.clear()
        self._flight_bytes = 0

    def _took_off(self, seq: int, size_bytes: int, now: float) -> None:
        flight = self._flights.pop(seq, None)
        if flight is None:
            return  # Acknowledged by an earlier copy, or from before the path changed.
        self._flight_bytes += size_bytes - flight.size_bytes
        self._flights[seq] = _Flight(now, size_bytes, flight.again)

    # --- Time and flow ----------------------------------------------------------------------------------------------

    def _acknowledge(self, ranges: SeqRanges, now: float) -> list[Command]:
        samples = [
            now - flight.sent_at
            for first, last in ranges
            for seq, flight in self._flights.items()
            if first <= seq <= last and flight.sent_at is not None and not flight.again
        ]
        struck = self._strike(ranges)
        if not struck:
            return []  # A repeated acknowledgement.
        if samples:
            self._measure(max(samples))
        self._patience = 1
        if self._window < self._window_held:  # Slow start (RFC 5681, 3.1): what one message has found open is open.
            self._window = min(self._window_held, self._window + sum(last - first + 1 for first, last in struck))
        else:
            self._window = min(float(limits.WINDOW_MESSAGES), self._window + max(1, len(samples)) / self._window)
        return [Forget(tuple(struck)), *self._fill()]

    def _measure(self, sample_s: float) -> None:
        """RFC 6298, 2.2 and 2.3."""
        if self._round_trip_s is None:
            self._round_trip_s, self._deviation_s = sample_s, sample_s / 2
        else:
            self._deviation_s += (abs(self._round_trip_s - sample_s) - self._deviation_s) / 4
            self._round_trip_s += (sample_s - self._round_trip_s) / 8

    def _time_out(self, now: float) -> list[Command]:
        timeout_s = self.timeout_s
        late = [
            seq
            for seq, flight in self._flights.items()
            if flight.sent_at is not None and flight.sent_at + timeout_s <= now
        ]
        if not late:
            return []
        newest_at = max(self._flights[seq].sent_at or 0.0 for seq in late)
        for seq in late:
            self._flight_bytes -= self._flights.pop(seq).size_bytes
            self._waiting.add(seq, seq)
            self._sent_before.add(seq, seq)
        if newest_at >= self._round_from:  # Sent since the last round: those sent before it are of the same silence.
            self._round_from = now
            if self._patience == 1:
                self._window_held = self._window / 2
            self._patience = min(self._patience * 2, 64)
            self._window = max(float(limits.WINDOW_MIN_MESSAGES), self._window / 2)
        return self._fill()

    def _fill(self) -> list[Command]:
        """Ask for as many messages as the window takes; those that are not loaded yet will be as large as those in flight."""
        if not self.open or not self._waiting:
            return []
        loading = sum(flight.sent_at is None for flight in self._flights.values())
        in_flight = len(self._flights)
        # After two rounds of silence one message asks for all: the first acknowledgement opens the window again.
        window = 1 if self._patience > 2 else int(self._window)
        free = min(window - in_flight, limits.SEND_BATCH_MESSAGES - loading)
        likely_bytes = self._flight_bytes / (in_flight - loading) if in_flight > loading else 0.0
        room_bytes = limits.WINDOW_BYTES - self._flight_bytes - loading * likely_bytes
        chosen: list[int] = []
        while len(chosen) < free and room_bytes - len(chosen) * likely_bytes > 0:
            seq = self._choose()
            if seq is None:
                break
            self._waiting.remove(seq, seq)
            self._flights[seq] = _Flight(None, 0, seq in self._sent_before)
            chosen.append(seq)
        return [Send(tuple(chosen))] if chosen else []

    def _choose(self) -> int | None:
        """Return the next message: fresh ones first, but every fourth one from the backlog while both wait."""
        oldest = self._waiting.first_from(1)
        if oldest is None or oldest >= self._live_from:
            return oldest
        live = self._waiting.first_from(self._live_from)
        if live is None:
            return oldest
        if self._waiting.maximum is not None and self._waiting.maximum - live >= limits.LIVE_MAX_MESSAGES:
            self._live_from = self._waiting.maximum + 1  # It has become backlog itself.
            return oldest
        self._live_turns += 1
        return oldest if self._live_turns % (limits.LIVE_PER_BACKLOG + 1) == 0 else live
