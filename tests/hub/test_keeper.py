"""The keeper: nothing is said to be kept before it is, and a disk that refuses costs nothing that memory can hold."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import orjson
import pytest

from config import limits
from config.errors import StorageError
from hub.keeper import Keeper, Loaded, Report, Written
from hub.outbox import Entry, Outbox, OutboxDamagedError


def entries(first: int, count: int) -> list[Entry]:
    return [Entry(number, b'{"ts":%d,"values":{"a":%d}}' % (number, number)) for number in range(first, first + count)]


class Kept:
    """A keeper that runs, and what it reports."""

    def __init__(self, outbox: Outbox):
        self.reports: list[Report] = []
        self._news = asyncio.Event()
        self.keeper = Keeper(outbox, self._report)

    def _report(self, report: Report) -> None:
        self.reports.append(report)
        self._news.set()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not true():
                self._news.clear()
                try:
                    await asyncio.wait_for(self._news.wait(), 0.05)
                except TimeoutError:
                    pass


class UnwillingOutbox(Outbox):
    """The real outbox on a disk that can be told to refuse."""

    refuses = False
    broken = False

    def append(self, *arguments, **more):  # type: ignore[no-untyped-def]
        if self.broken:
            raise OutboxDamagedError(self.path, "malformed")
        if self.refuses:
            raise StorageError(self.path, "no space left on device")
        return super().append(*arguments, **more)


def story(tmp_path: Path, tell: Callable[[Kept, UnwillingOutbox], Awaitable[None]]) -> None:
    async def run() -> None:
        outbox = UnwillingOutbox.open(tmp_path / "outbox.db")
        assert isinstance(outbox, UnwillingOutbox)
        kept = Kept(outbox)
        working = asyncio.create_task(kept.keeper.run())
        try:
            await tell(kept, outbox)
        finally:
            working.cancel()
            await asyncio.wait([working])
            await kept.keeper.close()

    asyncio.run(run())


def test_what_is_reported_is_on_the_disk(tmp_path: Path) -> None:
    async def tell(kept: Kept, outbox: UnwillingOutbox) -> None:
        kept.keeper.append("readings", entries(1, 3), {"counter": "3"})
        await kept.keeper.flushed()
        assert kept.reports == [Written(((1, 1),), ())]
        assert kept.keeper.standing.points == 3
        assert outbox.states() == {"counter": "3"}

    story(tmp_path, tell)


def test_what_comes_while_the_disk_is_busy_shares_one_commit(tmp_path: Path) -> None:
    async def tell(kept: Kept, _: UnwillingOutbox) -> None:
        for number in range(1, 51):
            kept.keeper.append("readings", entries(number, 1), {})
        await kept.keeper.flushed()
        assert len(kept.reports) <= 2
        assert kept.keeper.standing.points == 50

    story(tmp_path, tell)


def test_messages_come_in_the_order_asked_for_and_the_gone_are_told(tmp_path: Path) -> None:
    async def tell(kept: Kept, outbox: UnwillingOutbox) -> None:
        for number in (1, 2, 3):
            kept.keeper.append("readings", entries(number, 1), {})
            await kept.keeper.flushed()
            await kept.keeper.call(lambda number=number: outbox.load([number]))  # type: ignore[misc]
        kept.keeper.load([3, 1, 99])
        await kept.keeper.flushed()
        loaded = kept.reports[-1]
        assert isinstance(loaded, Loaded)
        assert loaded.asked == (3, 1, 99)
        assert [orjson.loads(message.body)["points"][0]["ts"] for message in loaded.messages] == [3, 1]

    story(tmp_path, tell)


def test_a_disk_that_refuses_delays_and_loses_nothing(tmp_path: Path) -> None:
    async def tell(kept: Kept, outbox: UnwillingOutbox) -> None:
        outbox.refuses = True
        kept.keeper.append("readings", entries(1, 2), {})
        await kept.until(lambda: kept.keeper.refusal is not None)
        kept.keeper.append("readings", entries(3, 2), {})
        assert kept.reports == []
        outbox.refuses = False
        await kept.keeper.flushed()
        assert kept.keeper.refusal is None
        (message,) = await kept.keeper.call(lambda: outbox.load([1]))
        assert [point["ts"] for point in orjson.loads(message.body)["points"]] == [1, 2, 3, 4]

    story(tmp_path, tell)


def test_beyond_what_memory_holds_the_oldest_become_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OUTBOX_MEMORY_POINTS", 10)

    async def tell(kept: Kept, outbox: UnwillingOutbox) -> None:
        outbox.refuses = True
        for number in range(1, 21):
            kept.keeper.append("readings", entries(number, 1), {})
        await kept.until(lambda: kept.keeper.refusal is not None)
        outbox.refuses = False
        await kept.keeper.flushed()
        standing = kept.keeper.standing
        assert (standing.points, standing.points_lost, standing.points_written) == (10, 10, 20)
        assert standing.gaps >= 1

    story(tmp_path, tell)


def test_what_the_cloud_has_is_deleted_while_appends_are_refused(tmp_path: Path) -> None:
    """On a full disk only the acknowledgements can make room."""

    async def tell(kept: Kept, outbox: UnwillingOutbox) -> None:
        kept.keeper.append("readings", entries(1, 1), {})
        await kept.keeper.flushed()
        kept.keeper.load([1])
        await kept.keeper.flushed()
        outbox.refuses = True
        kept.keeper.append("readings", entries(2, 1), {})
        kept.keeper.forget([(1, 1)])
        await kept.until(lambda: kept.keeper.refusal is not None)
        assert await kept.keeper.call(lambda: outbox.pending_messages) == 0
        outbox.refuses = False
        await kept.keeper.flushed()
        assert kept.keeper.standing.points == 1

    story(tmp_path, tell)


def test_what_is_on_a_full_disk_is_still_sent(tmp_path: Path) -> None:
    """Only the acknowledgements of what is sent make room: without this a full disk would stay full for ever."""

    async def tell(kept: Kept, outbox: UnwillingOutbox) -> None:
        kept.keeper.append("readings", entries(1, 1), {})
        await kept.keeper.flushed()
        outbox.refuses = True
        kept.keeper.append("readings", entries(2, 1), {})
        await kept.until(lambda: kept.keeper.refusal is not None)
        kept.keeper.load([1])
        await kept.until(lambda: isinstance(kept.reports[-1], Loaded))
        kept.keeper.forget([(1, 1)])
        await kept.until(lambda: kept.keeper.standing.points == 0)
        outbox.refuses = False
        await kept.keeper.flushed()
        assert kept.keeper.standing.points == 1

    story(tmp_path, tell)


def test_a_file_that_breaks_while_it_is_open_ends_the_keeper(tmp_path: Path) -> None:
    """Waiting mends nothing: it must be set aside, which the next opening does."""

    async def run() -> None:
        outbox = UnwillingOutbox.open(tmp_path / "outbox.db")
        assert isinstance(outbox, UnwillingOutbox)
        kept = Kept(outbox)
        working = asyncio.create_task(kept.keeper.run())
        outbox.broken = True
        kept.keeper.append("readings", entries(1, 1), {})
        async with asyncio.timeout(20):
            with pytest.raises(OutboxDamagedError):
                await working
        await kept.keeper.close()

    asyncio.run(run())


def test_whoever_asks_is_told_in_which_messages_it_is_once_it_is_on_the_disk(tmp_path: Path) -> None:
    """A report with settings on trial is known by its number when the cloud acknowledges it."""

    async def tell(kept: Kept, outbox: UnwillingOutbox) -> None:
        seqs: list[Sequence[int]] = []
        outbox.refuses = True
        kept.keeper.append("reported", [Entry(1, b"{}")], {}, seqs.append)
        await kept.until(lambda: kept.keeper.refusal is not None)
        assert seqs == []
        kept.keeper.append("readings", entries(1, 1), {})
        kept.keeper.append("reported", [Entry(2, b"{}"), Entry(3, b"{}")], {}, seqs.append)
        outbox.refuses = False
        await kept.keeper.flushed()
        assert seqs == [[1], [3, 4]]

    story(tmp_path, tell)


def test_beyond_what_memory_holds_readings_go_before_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a next reading, but only one result of a task."""
    monkeypatch.setattr(limits, "OUTBOX_MEMORY_POINTS", 10)

    async def tell(kept: Kept, outbox: UnwillingOutbox) -> None:
        outbox.refuses = True
        kept.keeper.append("results", [Entry(0, b'{"task":1}')], {})
        for number in range(1, 21):
            kept.keeper.append("readings", entries(number, 1), {})
        await kept.until(lambda: kept.keeper.refusal is not None)
        outbox.refuses = False
        await kept.keeper.flushed()
        found = await kept.keeper.call(lambda: outbox.load(range(1, outbox.last_seq + 1)))
        assert [message.body for message in found if message.kind == "results"] == [b'{"results":[{"task":1}]}']
        assert kept.keeper.standing.points == 9

    story(tmp_path, tell)
