"""Where a hub of the world keeps its points: the real outbox, or a stand-in in memory for very long runs; and disks that fill."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from broker.ranges import Ranges
from config import limits
from config.errors import StorageError
from hub.entries import Entry
from hub.outbox import Changes, Outbox, OutboxMessage


class Box(Protocol):
    """What the world needs of an outbox."""

    @property
    def epoch(self) -> str: ...

    def pending(self) -> list[tuple[int, int]]: ...

    def transaction(self) -> AbstractContextManager[Changes]: ...

    def append(self, kind: str, entries: Sequence[Entry]) -> list[int]: ...

    def forget(self, ranges: Iterable[tuple[int, int]]) -> object: ...

    def load(self, seqs: Iterable[int]) -> list[OutboxMessage]: ...

    def next_session(self) -> int: ...


class MemoryBox:
    """An outbox in memory, which survives the hub's process as a file would. Unbounded, readings only."""

    def __init__(self, epoch: str):
        self.epoch = epoch
        self._points: dict[int, list[Entry]] = {}
        self._last_seq = self._session = 0
        self._open: int | None = None
        self._changes = Changes(Ranges(), Ranges())

    def pending(self) -> list[tuple[int, int]]:
        return list(Ranges((seq, seq) for seq in self._points))

    def transaction(self) -> AbstractContextManager[Changes]:
        self._changes = Changes(Ranges(), Ranges())
        return nullcontext(self._changes)

    def append(self, kind: str, entries: Sequence[Entry]) -> list[int]:
        assert kind == "readings"
        if self._open is None or len(self._points[self._open]) + len(entries) > limits.POINTS_MAX:
            self._last_seq += 1
            self._open = self._last_seq
            self._points[self._open] = []
        self._points[self._open] += entries
        self._changes.appended.add(self._open, self._open)
        return [self._open]

    def forget(self, ranges: Iterable[tuple[int, int]]) -> None:
        for first, last in ranges:
            for seq in range(first, last + 1):
                if seq != self._open:
                    self._points.pop(seq, None)

    def load(self, seqs: Iterable[int]) -> list[OutboxMessage]:
        loaded = []
        for seq in seqs:
            points = self._points.get(seq)
            if points is None:
                continue
            if seq == self._open:
                self._open = None
            body = b'{"points":[' + b",".join(point.body for point in points) + b"]}"
            loaded.append(OutboxMessage(seq, "readings", body, len(points), points[0].ts_ms, points[-1].ts_ms))
        return loaded

    def next_session(self) -> int:
        self._session += 1
        return self._session


@contextmanager
def quick_folder() -> Iterator[Path]:
    """Give a folder for real files, in memory where there is such a place: that syncs are kept is tested elsewhere."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(prefix="hubline-", dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def file_box(path: Path, epoch: str, wall_ms: Callable[[], int], max_bytes: int) -> Outbox:
    """Open the real outbox at `path`."""
    return Outbox.open(path, max_bytes=max_bytes, clock=wall_ms, new_epoch=lambda: epoch)


@dataclass(slots=True)
class Disk:
    """Refuses to write while it is full; what is on it can be read."""

    full: bool = False

    def check(self) -> None:
        if self.full:
            raise StorageError("the world's disk", "no space left on device")


class Desk:
    """What the keeper does, without its thread: in order, kept in memory while the disk refuses, and tried again."""

    def __init__(
        self,
        box: Box,
        disk: Disk,
        written: Callable[[Changes, Sequence[Entry]], None],
        loaded: Callable[[list[OutboxMessage], set[int]], None],
        later: Callable[..., None],
    ):
        self.box, self._disk = box, disk
        self._written, self._loaded, self._later = written, loaded, later
        self._appends: deque[Entry] = deque()
        self._forgets: list[tuple[int, int]] = []
        self._asked: list[int] = []
        self._busy = self._retrying = False

    def append(self, entries: Sequence[Entry]) -> None:
        self._appends.extend(entries)
        self._work()

    def forget(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._forgets += ranges
        self._work()

    def load(self, seqs: Sequence[int]) -> None:
        self._asked += seqs
        self._work()

    def next_session(self) -> int:
        self._disk.check()
        return self.box.next_session()

    def _work(self) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            while self._asked or (not self._retrying and (self._forgets or self._appends)):
                if self._forgets:
                    self._try(self._forget_some)
                if self._asked:
                    self._try(self._load_some)
                if self._appends:
                    self._try(self._append_some)
        finally:
            self._busy = False

    def _try(self, step: Callable[[], None]) -> None:
        """Take a step; if the disk refuses it, the next ones are taken all the same."""
        try:
            step()
        except StorageError:
            if not self._retrying:
                self._retrying = True
                self._later(limits.OUTBOX_RETRY_S, self._retry)

    def _retry(self) -> None:
        self._retrying = False
        self._work()

    def _forget_some(self) -> None:
        self._disk.check()
        forgets, self._forgets = self._forgets, []
        self.box.forget(forgets)

    def _load_some(self) -> None:
        asked, self._asked = self._asked, []
        messages = self.box.load(asked)
        self._loaded(messages, set(asked) - {message.seq for message in messages})

    def _append_some(self) -> None:
        self._disk.check()
        entries = list(self._appends)
        with self.box.transaction() as changes:
            self.box.append("readings", entries)
        self._appends.clear()
        self._written(changes, entries)
