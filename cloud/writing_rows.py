"""What one transaction's batch comes to (pure): each message once, and the rows of all tables to match.

It must be told what the database holds; both databases then write the same rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from broker.control import Logs, Reported, Results
from broker.messages import Events
from broker.ranges import Ranges, ranges_of
from cloud.batch import Batch, Message, RefusedMessage, Stream
from cloud.blocks import Blocks
from cloud.rollups import SensorSummary, summarise

Row: TypeAlias = tuple[object, ...]

MESSAGE_NAMES: Final = (
    *("stream_no", "seq", "kind", "sent_ms", "received_ms"),
    *("points", "first_ts", "last_ts", "codec", "payload", "skew_ms"),
)

_ANSWERS: Final = (Results, Reported, Logs)


@dataclass(slots=True)
class Arrivals:
    """What a batch brings for one stream, by seq; of two with one seq the first counts."""

    items: dict[int, Message | RefusedMessage] = field(default_factory=dict)
    copies: int = 0
    seqs: list[int] = field(default_factory=list)
    """In order; and `runs`, the intervals of them. Both by `arrange`, when everything is in."""
    runs: list[tuple[int, int]] = field(default_factory=list)

    def add(self, seq: int, item: Message | RefusedMessage) -> None:
        """Take one in."""
        if seq in self.items:
            self.copies += 1
        else:
            self.items[seq] = item

    def arrange(self) -> None:
        """Put the seqs in order."""
        self.seqs = sorted(self.items)
        self.runs = list(ranges_of(self.seqs))

    def neighbourhood(self) -> list[tuple[int, int]]:
        """Return the (low, high) between which the coverage must be known, and the interval that begins before low."""
        return [(first - 1, last + 1) for first, last in self.runs]


@dataclass(slots=True)
class HubSums:
    """What a batch says of the sensors of one hub."""

    site: str
    hub_id: str
    summaries: dict[str, SensorSummary] = field(default_factory=dict)


class Rows:
    """The rows of one transaction, table by table. `packed` is what to keep of each message's payload: code and bytes."""

    def __init__(self, batch: Batch, packed: Sequence[tuple[int, bytes]]):
        self._packed = {id(message): each for message, each in zip(batch.messages, packed, strict=True)}
        self.messages: list[Row] = []
        """In the order of MESSAGE_NAMES."""
        self.gaps: list[Row] = []
        self.counts: list[Row] = []
        """messages, points, duplicates, refused, received_ms, stream_no."""
        self.intervals: list[tuple[int, int, int]] = []
        self.dropped_intervals: list[tuple[int, int]] = []
        self.quarantine: list[RefusedMessage] = []
        self.answers: list[tuple[int, Message]] = []
        self.of_hubs: dict[int, HubSums] = {}
        self.points = self.duplicates = 0
        self.arrivals: dict[Stream, Arrivals] = self._by_stream(batch)
        """By stream, in order."""

    def _by_stream(self, batch: Batch) -> dict[Stream, Arrivals]:
        streams: defaultdict[Stream, Arrivals] = defaultdict(Arrivals)
        for message in batch.messages:
            streams[message.stream].add(message.seq, message)
        for item in batch.refused:
            if item.place is None:
                self.quarantine.append(item)
            else:
                stream, seq = item.place
                streams[stream].add(seq, item)
        for stream, count in batch.copies:
            streams[stream].copies += count
        for arrivals in streams.values():
            arrivals.arrange()
        return dict(sorted(streams.items()))

    def take(self, stream: Stream, stream_no: int, hub_no: int, covered: Sequence[Sequence[int]]) -> None:
        """Add what the batch brings for one stream, which had these intervals in its neighbourhood."""
        arrivals = self.arrivals[stream]
        before = self._cover(stream_no, arrivals.runs, covered)
        fresh = [arrivals.items[seq] for seq in arrivals.seqs if seq not in before]
        messages = [item for item in fresh if isinstance(item, Message)]
        refused = [item for item in fresh if isinstance(item, RefusedMessage)]
        readings = list[tuple[int, Blocks]]()
        points = sum(self._take_message(stream_no, message, readings) for message in messages)
        duplicates = arrivals.copies + len(arrivals.seqs) - len(fresh)
        received_ms = max((item.received_ms for item in arrivals.items.values()), default=0)
        self.answers += [(hub_no, message) for message in messages if isinstance(message.body, _ANSWERS)]
        self.quarantine += refused
        self.points += points
        self.duplicates += duplicates
        self.counts.append((len(messages), points, duplicates, len(refused), received_ms, stream_no))
        of_hub = self.of_hubs.setdefault(hub_no, HubSums(stream.site, stream.hub_id))
        for name, summary in summarise(readings).items():
            known = of_hub.summaries.setdefault(name, summary)
            if known is not summary:
                known.add(summary)

    def _cover(self, stream_no: int, runs: list[tuple[int, int]], covered: Sequence[Sequence[int]]) -> Ranges:
        """Add intervals to the coverage and return what it held near them before."""
        before = Ranges((first, last) for first, last in covered)
        known = set(before)
        after = set(Ranges((*known, *runs)))
        kept = {first for first, _ in after}
        self.dropped_intervals += [(stream_no, first) for first, _ in known - after if first not in kept]
        self.intervals += [(stream_no, *interval) for interval in after - known]
        return before

    def _take_message(self, stream_no: int, message: Message, readings: list[tuple[int, Blocks]]) -> int:
        """Add the rows of a message, and to `readings` what it has of them; return how many points it has."""
        points, times, skew_ms = 0, list[int](), message.skew_ms
        match message.body:
            case tuple() as blocks:
                points = sum(len(block.times) for block in blocks)
                times = [ts for block in blocks for ts in (block.first_ts, block.last_ts)]
                readings.append((message.seq, blocks))
            case Events(events=events):
                times = [max(0, event.ts - skew_ms) for event in events if event.ts is not None]
                for position, event in enumerate(events):
                    if event.is_gap:
                        said = (event.from_seq, event.to_seq, event.points, event.first_ts, event.last_ts, event.reason)
                        self.gaps.append((stream_no, message.seq, position, *said))
            case Results() | Reported() | Logs() | None:
                pass
        span = (min(times), max(times)) if times else (None, None)
        packed = self._packed[id(message)]
        self.messages.append(
            (
                stream_no,
                message.seq,
                message.kind,
                message.sent_ms,
                message.received_ms,
                points,
                *span,
                *packed,
                skew_ms or None,
            )
        )
        return points
