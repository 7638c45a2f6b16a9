"""The durable queue of a hub: what is appended stays until the cloud has it, or a gap record says what was given up.

After a crash at any moment, every committed message is there, whole, under the number that it had, and no number is ever
given twice. The file is bounded in size and age: the oldest readings go first. A message that was handed out never changes.

All is synchronous, without threads or clocks of its own: use it from one thread at a time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from types import MappingProxyType

import orjson

from broker.clock import unix_ms
from broker.ranges import Ranges
from config import limits
from config.errors import ProtocolError, StorageError
from config.files import inode_of
from hub import totals
from hub.chunks import Chunk, Chunks, Cursors
from hub.entries import ENTRY_MAX_BYTES, GAPS, READINGS, Entry, Lane, OpenMessage, OutboxMessage, lane_of
from hub.gaps import DAMAGED, DISK_FULL, FULL, OLD, Gap
from hub.outbox_file import OpenedFile, OutboxDamagedError, open_file, translated
from hub.totals import Totals

__all__ = ["ENTRY_MAX_BYTES", "Changes", "Entry", "Freed", "Outbox", "OutboxDamagedError", "OutboxMessage"]


@dataclass(frozen=True, slots=True)
class Freed:
    """What was deleted."""

    messages: int
    points: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What a transaction did, valid once it is committed: messages begun or grown, and messages given up."""

    appended: Ranges
    dropped: Ranges


@dataclass(frozen=True, slots=True)
class _LastGap:
    """The newest gap record, and where it is."""

    seq: int
    part: int
    size_bytes: int
    gap: Gap


@dataclass(frozen=True, slots=True)
class _Memory:
    """All that a rollback has to restore."""

    totals: Totals
    open: dict[str, OpenMessage]
    last_gap: _LastGap | None
    cursors: Cursors


class Outbox:
    """One hub's queue in one SQLite file; see `Outbox.open`."""

    def __init__(self, path: Path, file: OpenedFile, max_bytes: int, max_age_s: float, clock: Callable[[], int]):
        self.path = path
        self.max_bytes, self.max_age_ms = max_bytes, int(max_age_s * 1000)
        self._clock, self._file, self._sql = clock, file, file.connection
        self._chunks = Chunks(file.connection)
        self._totals = totals.load(self._sql)
        self._page_bytes = self._number("PRAGMA page_size")
        self._inode = inode_of(path)
        self._open: dict[str, OpenMessage] = {}  # After a restart none: every message may have been sent.
        self._last_gap: _LastGap | None = None
        self._changes: Changes | None = None  # Not None while in a transaction.
        self._failed = self._freed = False

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        max_bytes: int = limits.OUTBOX_MAX_BYTES,
        max_age_s: float = limits.OUTBOX_MAX_AGE_S,
        clock: Callable[[], int] = unix_ms,
        new_epoch: Callable[[], str] = lambda: token_hex(8),
        machine: str = "",
    ) -> Outbox:
        """Open the outbox at `path`, or make one; a damaged one is set aside, and an event in the new one tells of it.

        So is one that another `machine` (see `outbox_origin`) has made. `clock` gives Unix milliseconds. Raises
        SettingsError if another process uses the file or a newer Hubline wrote it, StorageError if the disk refuses.
        """
        file = open_file(path, clock, new_epoch, machine)
        try:
            with translated(path):
                outbox = cls(path, file, max_bytes, max_age_s, clock)
                for name, what in (("outbox-damaged", file.damage), ("outbox-copied", file.copied)):
                    if what is not None:
                        now_ms = clock()
                        event = {"event": name, "ts": now_ms, "message": what[: limits.VALUE_TEXT_MAX]}
                        outbox.append("events", [Entry(now_ms, orjson.dumps(event))])
        except BaseException:
            file.close()
            raise
        return outbox

    @property
    def epoch(self) -> str:
        """Return the identity of this file: 16 hex digits, new with a new file."""
        return self._totals.epoch

    @property
    def damage(self) -> str | None:
        """Return what was wrong with the file that was set aside at the opening, or None."""
        return self._file.damage

    @property
    def copied(self) -> str | None:
        """Return what was found if the file was copied from another machine, and set aside at the opening, or None."""
        return self._file.copied

    @property
    def last_seq(self) -> int:
        """Return the newest number that was given, 0 before the first."""
        return self._totals.last_seq

    @property
    def session(self) -> int:
        """Return the number that `next_session` gave last."""
        return self._totals.session

    @property
    def pending_messages(self) -> int:
        """Return how many messages wait for the cloud."""
        return self._totals.messages

    @property
    def points(self) -> int:
        """Return how many readings wait for the cloud."""
        return self._totals.points

    @property
    def size_bytes(self) -> int:
        """Return the length of all that waits for the cloud."""
        return self._totals.bytes

    @property
    def disk_bytes(self) -> int:
        """Return how much of the file is in use: what `max_bytes` bounds."""
        return (self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count")) * self._page_bytes

    @property
    def gaps(self) -> int:
        """Return how many gap records were ever written in this epoch."""
        return self._totals.gaps

    @property
    def points_written(self) -> int:
        """Return how many readings this epoch has seen: those at the cloud, those waiting, and `points_lost`."""
        return self._totals.points_written

    @property
    def points_lost(self) -> int:
        """Return how many readings of this epoch gap records tell of."""
        return self._totals.points_lost

    @property
    def oldest_ms(self) -> int | None:
        """Return the moment of the oldest message that waits, or None."""
        with translated(self.path):
            first = self._chunks.first()
        return None if first is None else first[0]

    def states(self) -> dict[str, str]:
        """Return the sensors' states as stored with their newest points."""
        with translated(self.path):
            return dict(self._sql.execute("SELECT sensor, state FROM sensor_state"))

    def pending(self) -> list[tuple[int, int]]:
        """Return the messages that wait, as inclusive ranges. Walks over all of them: for the start."""
        found = Ranges()
        with translated(self.path):
            for seq in self._chunks.seqs():
                found.add(seq, seq)
        return list(found)

    def close(self) -> None:
        """Let go of the file. What is committed is safe without it, too."""
        self._file.close()

    # --- Writing -------------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[Changes]:
        """Do all inside as one commit: when it ends without an error, everything is on the disk.

        On any error nothing has happened, here or on the disk. Every writing method opens its own if there is none.
        Raises StorageError, also for an error of a writing method inside that was caught there.
        """
        if self._changes is not None:  # Joins the one that is open.
            try:
                with translated(self.path):
                    yield self._changes
            except BaseException:
                self._failed = True
                raise
            return
        memory = _Memory(replace(self._totals), dict(self._open), self._last_gap, self._chunks.cursors)
        self._changes = Changes(Ranges(), Ranges())
        self._failed = self._freed = False
        try:
            with translated(self.path):
                self._sql.execute("BEGIN IMMEDIATE")
                self._grow_older()
                yield self._changes
                if self._failed:
                    raise StorageError(self.path, "something in this transaction failed")
                self._keep_bounds()
                totals.store(self._sql, self._totals)
                self._look_that_it_is_there()
                self._sql.execute("COMMIT")
        except BaseException:
            self._totals, self._open, self._last_gap = memory.totals, memory.open, memory.last_gap
            self._chunks.cursors = memory.cursors
            if self._sql.in_transaction:
                try:
                    self._sql.execute("ROLLBACK")
                except sqlite3.Error:
                    pass  # SQLite has rolled back by itself; the first error is the one to tell.
            raise
        finally:
            self._changes = None
        if self._freed:
            self._shrink()

    def append(
        self, kind: str, entries: Sequence[Entry], states: Mapping[str, str] = MappingProxyType({})
    ) -> list[int]:
        """Add entries to the open message of their kind, or to new ones, and store sensors' states with them.

        Returns the numbers of the messages that they are in. Raises ProtocolError, before anything is written, for an
        entry that fits into no message; StorageError if the disk refuses.
        """
        for entry in entries:
            if len(entry.body) > ENTRY_MAX_BYTES:
                raise ProtocolError(f"an entry of {len(entry.body)} bytes, at most {ENTRY_MAX_BYTES} are allowed")
        with self.transaction():
            seqs = self._append(lane_of(kind), entries)
            for sensor, state in states.items():
                self._sql.execute("INSERT OR REPLACE INTO sensor_state VALUES (?, ?)", (sensor, state))
        return seqs

    def forget(self, ranges: Iterable[tuple[int, int]]) -> Freed:
        """Delete what the cloud has committed. A message that was never handed out stays, whatever `ranges` say."""
        messages = points = size_bytes = 0
        with self.transaction():
            unsent = [message.seq for message in self._open.values()]
            for first, last in ranges:
                sent = Ranges([(max(1, first), min(last, self.last_seq))])
                for seq in unsent:
                    sent.remove(seq, seq)
                for low, high in sent:
                    deleted = self._chunks.delete(low, high)
                    messages += deleted.messages
                    points += deleted.points
                    size_bytes += deleted.size_bytes
            self._totals.went(messages, points, size_bytes)
            self._freed = self._freed or messages > 0
        return Freed(messages, points, size_bytes)

    def record_loss(self, points: int, first_ms: int, last_ms: int, reason: str = DISK_FULL) -> int:
        """Write a gap record for readings that never came in here; returns the number that stands for them."""
        with self.transaction():
            self._totals.last_seq += 1
            self._totals.points_written += points
            seq = self._totals.last_seq
            self._record(Gap(seq, seq, points, first_ms, last_ms, reason))
        return seq

    def next_session(self) -> int:
        """Return a number greater by one than the last, also after a crash."""
        with self.transaction():
            self._totals.session += 1
        return self._totals.session

    # --- Reading -------------------------------------------------------------------------------------------------------

    def load(self, seqs: Iterable[int], max_bytes: int | None = None) -> list[OutboxMessage]:
        """Return messages, in the order asked for; they are sealed now, and never change again.

        One that is not there (any more) is left out. With `max_bytes`, stops before the message that would exceed it,
        but not before the first. One whose bytes are not what was written is given up, with a gap record.
        """
        assert self._changes is None, "a message must be committed before it is handed out"
        loaded: list[OutboxMessage] = []
        size_bytes = 0
        for seq in seqs:
            with translated(self.path):
                chunks = self._chunks.load(seq)
            if chunks is None:
                with self.transaction():
                    self._drop(seq, DAMAGED)
            if not chunks:
                continue
            message = _message_of(chunks)
            size_bytes += message.size_bytes
            if loaded and max_bytes is not None and size_bytes > max_bytes:
                break
            self._seal(seq)
            loaded.append(message)
        return loaded

    def _seal(self, seq: int) -> None:
        for lane, message in self._open.items():
            if message.seq == seq:
                del self._open[lane]
                return

    # --- Messages that grow --------------------------------------------------------------------------------------------

    def _append(self, lane: Lane, entries: Sequence[Entry]) -> list[int]:
        seqs = []
        while entries:
            message = self._open.get(lane.name)
            if message is None or not message.room_for(lane, entries[:1]) or self._is_old(message):
                message = self._begun(lane)
            count = message.room_for(lane, entries)
            self._write(lane, message, entries[:count])
            seqs.append(message.seq)
            entries = entries[count:]
        return seqs

    def _is_old(self, message: OpenMessage) -> bool:
        """Tell whether a message, which is dropped as a whole, would hold both what is still new and what is not."""
        return self._totals.age_ms - message.kept_ms > self.max_age_ms * limits.OUTBOX_TRIM_SHARE

    def _begun(self, lane: Lane) -> OpenMessage:
        self._totals.last_seq += 1
        self._totals.messages += 1
        return OpenMessage(self._totals.last_seq, self._totals.age_ms, len(lane.before) + len(lane.after))

    def _write(self, lane: Lane, message: OpenMessage, entries: Sequence[Entry]) -> None:
        """Store entries as one more chunk of a message."""
        assert self._changes is not None
        body = b",".join(entry.body for entry in entries)
        times = [entry.ts_ms for entry in entries]
        points = len(entries) if lane is READINGS else 0
        self._chunks.insert(
            Chunk(
                seq=message.seq,
                part=message.parts,
                kind=lane.kind,
                keep=lane.keep,
                entries=len(entries),
                points=points,
                first_ms=min(times),
                last_ms=max(times),
                kept_ms=message.kept_ms,
                body=body,
            )
        )
        self._open[lane.name] = message.grown(len(entries), len(body))
        self._totals.points += points
        self._totals.points_written += points
        self._totals.bytes += len(body)
        self._changes.appended.add(message.seq, message.seq)

    # --- What is given up ----------------------------------------------------------------------------------------------

    def _drop(self, seq: int, reason: str) -> int:
        """Give a message up, with a gap record; returns the bytes freed."""
        assert self._changes is not None
        self._seal(seq)
        deleted = self._chunks.delete(seq, seq)
        self._totals.went(deleted.messages, deleted.points, deleted.size_bytes)
        self._changes.appended.remove(seq, seq)
        self._changes.dropped.add(seq, seq)
        self._record(Gap(seq, seq, deleted.points, deleted.first_ms, deleted.last_ms, reason))
        return deleted.size_bytes

    def _record(self, gap: Gap) -> None:
        """Write a gap record, or let the last one tell of this, too, while its message may still grow."""
        self._totals.points_lost += gap.points
        now_ms = self._clock()
        last, carrier = self._last_gap, self._open.get(GAPS.name)
        if last is not None and carrier is not None and last.seq == carrier.seq and (both := last.gap.merged(gap)):
            body = both.encoded(now_ms)
            self._chunks.rewrite(last.seq, last.part, both.first_ms, both.last_ms, body)
            self._totals.bytes += len(body) - last.size_bytes
            self._last_gap = _LastGap(last.seq, last.part, len(body), both)
            return
        body = gap.encoded(now_ms)
        (seq,) = self._append(GAPS, [Entry(now_ms, body)])
        self._totals.gaps += 1
        self._last_gap = _LastGap(seq, self._open[GAPS.name].parts - 1, len(body), gap)

    # --- Bounds --------------------------------------------------------------------------------------------------------

    def _grow_older(self) -> None:
        """Count on the age by which messages expire; a jump of the wall clock counts as a day at most."""
        now_ms = self._clock()
        step_ms = min(now_ms - self._totals.clock_ms, int(limits.OUTBOX_AGE_STEP_MAX_S * 1000))
        self._totals.age_ms += max(0, step_ms)
        self._totals.clock_ms = now_ms

    def _keep_bounds(self) -> None:
        first = self._chunks.first()
        if first is not None and self._totals.age_ms - first[1] > self.max_age_ms:
            self._drop_older(self._totals.age_ms - int(self.max_age_ms * (1 - limits.OUTBOX_TRIM_SHARE)))
        if self.disk_bytes > self.max_bytes:
            self._drop_down_to(int(self.max_bytes * (1 - limits.OUTBOX_TRIM_SHARE)))
            self._freed = True

    def _drop_older(self, newest_ms: int) -> None:
        for oldest_of in (self._chunks.oldest_readings, self._chunks.oldest_others):
            while (oldest := oldest_of(self.last_seq)) is not None and oldest[1] < newest_ms:
                self._drop(oldest[0], OLD)

    def _drop_down_to(self, allowed_bytes: int) -> None:
        """Drop as much as is needed by the size of the entries, see what the file says to that, and so on."""
        while (surplus_bytes := self.disk_bytes - allowed_bytes) > 0:
            while surplus_bytes > 0:
                oldest = self._chunks.oldest_readings(self.last_seq) or self._chunks.oldest_others(self.last_seq)
                if oldest is None:
                    raise StorageError(self.path, f"nothing more can make room within {self.max_bytes} bytes")
                surplus_bytes -= self._drop(oldest[0], FULL)

    def _shrink(self) -> None:
        """Give free pages back to the disk after a large backlog, a few at a time; what was committed does not need it."""
        try:
            free, pages = self._number("PRAGMA freelist_count"), self._number("PRAGMA page_count")
            idle = free * self._page_bytes > limits.OUTBOX_SLACK_BYTES and 2 * free > pages
            if idle or pages * self._page_bytes > self.max_bytes:
                # Of its kind `execute` would take one step, a page.
                self._sql.executescript(f"PRAGMA incremental_vacuum({limits.OUTBOX_SHRINK_PAGES})")
        except (sqlite3.Error, StorageError):
            pass  # The next commit meets the same trouble, and tells of it.

    def _look_that_it_is_there(self) -> None:
        """Raise OutboxDamagedError if the file was removed: what is committed into it now, the next start would not find."""
        if inode_of(self.path) != self._inode:
            raise OutboxDamagedError(self.path, "was removed or replaced while it was in use")

    def _number(self, query: str) -> int:
        with translated(self.path):
            return int(self._sql.execute(query).fetchone()[0])


def _message_of(chunks: Sequence[Chunk]) -> OutboxMessage:
    lane = lane_of(chunks[0].kind)
    return OutboxMessage(
        chunks[0].seq,
        chunks[0].kind,
        lane.before + b",".join(chunk.body for chunk in chunks) + lane.after,
        sum(chunk.points for chunk in chunks),
        min(chunk.first_ms for chunk in chunks),
        max(chunk.last_ms for chunk in chunks),
    )
