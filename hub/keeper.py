"""The outbox in a thread of its own: whatever asks for the disk at the same time shares one commit.

What is handed over is written in order, and kept in memory (bounded) while the disk refuses; nothing is said to be
appended before it is on the disk.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import structlog

from config import limits
from config.errors import StorageError
from hub.outbox import Changes, Entry, Outbox, OutboxDamagedError, OutboxMessage
from hub.reserve import Reserve

log = structlog.get_logger(__name__)
T = TypeVar("T")
Kept: TypeAlias = Callable[[Sequence[int]], None]
"""Called in the event loop with the numbers of the messages that hold what was appended, once it is on the disk."""


@dataclass(frozen=True, slots=True)
class Written:
    """What a commit did: messages begun or grown, and messages given up, as inclusive ranges of seq."""

    appended: tuple[tuple[int, int], ...]
    dropped: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Messages that were asked for, in that order; those of `asked` that are not among them are gone for good."""

    messages: list[OutboxMessage]
    asked: tuple[int, ...]


Report: TypeAlias = Written | Loaded


@dataclass(frozen=True, slots=True)
class _Append:
    kind: str
    entries: Sequence[Entry]
    states: Mapping[str, str]
    kept: Kept | None


@dataclass(frozen=True, slots=True)
class _Loss:
    points: int
    first_ms: int
    last_ms: int


@dataclass(frozen=True, slots=True)
class Standing:
    """What the outbox holds, as of the last commit. `oldest_ms` is the moment of the oldest message that waits."""

    last_seq: int
    size_bytes: int
    oldest_ms: int | None
    gaps: int
    points: int
    points_written: int
    points_lost: int


def standing_of(outbox: Outbox) -> Standing:
    """Read what an outbox holds; in its thread."""
    return Standing(
        outbox.last_seq,
        outbox.size_bytes,
        outbox.oldest_ms,
        outbox.gaps,
        outbox.points,
        outbox.points_written,
        outbox.points_lost,
    )


class Keeper:
    """Carries out what is asked of one outbox. `report` is called in the event loop once it is done."""

    def __init__(self, outbox: Outbox, report: Callable[[Report], None]):
        self.outbox = outbox
        self.standing = standing_of(outbox)
        self.refusal: str | None = None
        self._report = report
        self._appends: deque[_Append] = deque()
        self._entries_waiting = 0
        self._losses: deque[_Loss] = deque()
        self._forgets: list[tuple[int, int]] = []
        self._asked: list[int] = []
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outbox")
        self._reserve = Reserve(outbox.path.with_name(f"{outbox.path.name}.reserve"))
        self._reserve.hold()

    def append(self, kind: str, entries: Sequence[Entry], states: Mapping[str, str], kept: Kept | None = None) -> None:
        """Write entries and sensors' states together. Beyond OUTBOX_MEMORY_POINTS that wait, the oldest become a gap.

        Of what waits, readings go before all else: there is only one result of a task.
        """
        self._appends.append(_Append(kind, entries, states, kept))
        self._entries_waiting += len(entries)
        while self._entries_waiting > limits.OUTBOX_MEMORY_POINTS and len(self._appends) > 1:
            place = next((at for at, each in enumerate(self._appends) if each.kind == "readings"), 0)
            lost = self._appends[place]
            del self._appends[place]
            self._lose(lost)
        self._stir()

    def forget(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Delete messages that the cloud has."""
        self._forgets += ranges
        self._stir()

    def load(self, seqs: Sequence[int]) -> None:
        """Ask for messages; they come in a `Loaded`."""
        self._asked += seqs
        self._stir()

    async def run(self) -> None:
        """Work until cancelled. Raises OutboxDamagedError if the file breaks while it is open."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            steps = (self._forget_some, self._load_some, self._append_some, self._look)
            refused = [await self._tried(step) for step in steps]
            if any(refused):
                asyncio.get_running_loop().call_later(limits.OUTBOX_RETRY_S, self._wake.set)
                continue
            if self.refusal is not None:
                log.info("outbox_recovered", reason=self.refusal)
                self.refusal = None
            if not self._wake.is_set():
                self._idle.set()

    async def flushed(self) -> None:
        """Wait until nothing is left to be done."""
        await self._idle.wait()

    async def call(self, function: Callable[[], T]) -> T:
        """Run something short in the outbox's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def close(self) -> None:
        """Let go of the outbox, once what is being written is done."""
        await self.call(self.outbox.close)
        self._thread.shutdown(wait=False)

    async def _tried(self, step: Callable[[], Awaitable[None]]) -> bool:
        """Take a step, and tell whether the disk has refused it.

        One refusal does not keep the other steps from being taken: on a full disk, what can still be read must be sent,
        since only its acknowledgements make room.
        """
        try:
            await step()
        except OutboxDamagedError:
            raise  # No waiting mends it: the file must be set aside.
        except StorageError as exc:
            self._refused(exc)
            return True
        return False

    def _stir(self) -> None:
        self._idle.clear()
        self._wake.set()

    def _refused(self, exc: StorageError) -> None:
        if self.refusal is None:
            log.warning("outbox_refused", reason=exc.reason)
        self.refusal = exc.reason

    def _lose(self, append: _Append) -> None:
        self._entries_waiting -= len(append.entries)
        if append.kind != "readings":
            return
        self._losses.append(_Loss(len(append.entries), append.entries[0].ts_ms, append.entries[-1].ts_ms))
        if len(self._losses) > limits.OUTBOX_LOSSES_MAX:
            first, second = self._losses.popleft(), self._losses.popleft()
            self._losses.appendleft(_Loss(first.points + second.points, first.first_ms, second.last_ms))

    async def _forget_some(self) -> None:
        """Delete, in a commit of its own: it makes the room that an append may need on a full disk."""
        if not self._forgets:
            return
        forgets, self._forgets = self._forgets, []
        try:
            await self.call(lambda: self._forget(forgets))
        except StorageError:
            self._forgets = forgets + self._forgets
            raise

    def _forget(self, ranges: list[tuple[int, int]]) -> None:
        """In the outbox's thread: delete, with the room of the reserve if there is no other."""
        try:
            self.outbox.forget(ranges)
        except OutboxDamagedError:
            raise
        except StorageError:
            if not self._reserve.held:
                raise
            self._reserve.release()
            self.outbox.forget(ranges)

    async def _append_some(self) -> None:
        if not self._appends and not self._losses:
            return
        appends, losses = tuple(self._appends), tuple(self._losses)

        def write() -> tuple[Changes, list[list[int]]]:
            with self.outbox.transaction() as changes:
                for loss in losses:
                    self.outbox.record_loss(loss.points, loss.first_ms, loss.last_ms)
                seqs = [self.outbox.append(append.kind, append.entries, append.states) for append in appends]
            return changes, seqs

        # Meanwhile they must not be lost to the bound, nor counted again: they are taken out, and put back on failure.
        waiting, self._entries_waiting = self._entries_waiting, 0
        self._appends.clear()
        self._losses.clear()
        try:
            changes, seqs = await self.call(write)
        except StorageError:
            self._appends.extendleft(reversed(appends))
            self._losses.extendleft(reversed(losses))
            self._entries_waiting += waiting
            raise
        for append, numbers in zip(appends, seqs, strict=True):
            if append.kept is not None:
                append.kept(numbers)
        self._report(Written(tuple(changes.appended), tuple(changes.dropped)))

    async def _look(self) -> None:
        """Note what the outbox holds now; and while the disk takes everything, hold the reserve."""
        self.standing = await self.call(lambda: standing_of(self.outbox))
        if self.refusal is None and not self._reserve.held:
            await self.call(self._reserve.hold)

    async def _load_some(self) -> None:
        if not self._asked:
            return
        asked, self._asked = tuple(self._asked), []
        try:
            loaded = await self.call(lambda: self.outbox.load(asked))
        except StorageError:
            self._asked = [*asked, *self._asked]
            raise
        self._report(Loaded(loaded, asked))
