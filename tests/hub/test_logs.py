"""A hub's log lines on their way to the cloud: bounded, in order, kept while it roams, no loops."""

from __future__ import annotations

import asyncio
import logging as stdlib_logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import structlog

from broker.control import LogRecord, Logs
from config import limits
from config import log as logging
from config.settings import HubLogs, Log
from hub.keeper import Keeper
from hub.log_batches import LogBatches, bounded
from hub.logs import FILE, LogCollector, WaitingLogs
from hub.outbox import Outbox

BOOT = "0123456789abcdef"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leave the process's logging as it was."""
    root, level = stdlib_logging.getLogger(), stdlib_logging.getLogger().level
    before = list(root.handlers)
    yield
    stdlib_logging.captureWarnings(False)
    root.handlers[:], root.level = before, level
    structlog.reset_defaults()


# --- Batches (pure) --------------------------------------------------------------------------------------------------


def offered(batches: LogBatches, count: int, now: float, **fields: object) -> None:
    for number in range(count):
        batches.offer(1000 + number, "warning", "went_wrong", {"number": number, **fields}, now)


def test_lines_come_out_in_order_with_their_numbers() -> None:
    batches = LogBatches(BOOT, 0.0)
    offered(batches, 3, 0.0)
    taken = batches.take()
    assert taken is not None
    assert (taken.boot, taken.dropped) == (BOOT, 0)
    assert [(record.n, record.fields["number"]) for record in taken.records] == [(1, 0), (2, 1), (3, 2)]
    assert batches.take() is None


def test_more_than_the_burst_at_once_is_dropped_counted_and_told_once() -> None:
    """A hub in trouble says the same thing a thousand times a second."""
    batches = LogBatches(BOOT, 0.0)
    offered(batches, limits.LOGS_BURST + 50, 0.0)
    taken = batches.take()
    assert taken is not None
    assert len(taken.records) == limits.LOGS_BURST
    assert taken.dropped == 50
    offered(batches, 1, 10.0)
    later = batches.take()
    assert later is not None
    assert later.dropped == 0
    assert later.records[0].n == limits.LOGS_BURST + 51


def test_in_the_long_run_no_more_than_the_rate_is_sent() -> None:
    batches, sent = LogBatches(BOOT, 0.0), 0
    for second in range(600):
        offered(batches, 40, float(second))
        while (taken := batches.take()) is not None:
            sent += len(taken.records)
    assert sent <= limits.LOGS_BURST + 600 * limits.LOGS_PER_S


def test_a_clock_that_stands_still_or_jumps_back_gives_no_lines_away() -> None:
    batches = LogBatches(BOOT, 100.0)
    offered(batches, limits.LOGS_BURST, 100.0)
    offered(batches, 10, 50.0)
    taken = batches.take()
    assert taken is not None
    assert len(taken.records) == limits.LOGS_BURST


def test_a_batch_stays_within_its_size() -> None:
    batches = LogBatches(BOOT, 0.0)
    offered(batches, limits.LOGS_BURST, 0.0, **{f"text_{number}": "ü" * 400 for number in range(9)})
    count = 0
    while (taken := batches.take()) is not None:
        assert len(msgspec.json.encode(taken)) < limits.LOGS_BATCH_BYTES + 2048
        count += len(taken.records)
    assert count == limits.LOGS_BURST


def test_fields_are_cut_to_what_a_line_may_take() -> None:
    kept, size_bytes = bounded({"short": 1, "long": "x" * 100_000, **{f"n{i}": "y" * 500 for i in range(20)}})
    assert kept["short"] == 1
    assert len(kept["long"]) == 512
    assert size_bytes <= limits.LOG_FIELDS_MAX_BYTES
    assert len(msgspec.json.encode(kept)) <= limits.LOG_FIELDS_MAX_BYTES
    assert bounded({"odd": 2**70, "object": object(), "text": "\ud800"})[0].keys() <= {"object"}


# --- The file --------------------------------------------------------------------------------------------------------


def batch(first: int, count: int = 2) -> Logs:
    return Logs(BOOT, [LogRecord(first + k, 5, "info", "happened") for k in range(count)])


def test_what_waits_in_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    waiting = WaitingLogs(tmp_path / FILE)
    assert waiting.read() == []
    assert waiting.add(batch(1)) == waiting.add(batch(3)) == 0
    with (tmp_path / FILE).open("ab") as stream:
        stream.write(b'{"boot":"0123')  # Cut off by a crash.
    assert WaitingLogs(tmp_path / FILE).read() == [batch(1), batch(3)]
    waiting.clear()
    waiting.clear()
    assert waiting.read() == []


def test_a_file_that_is_full_gives_up_its_older_half_and_says_how_much(tmp_path: Path) -> None:
    waiting = WaitingLogs(tmp_path / FILE, max_bytes=5_000)
    lost = sum(waiting.add(batch(number, 1)) for number in range(1, 201))
    kept = [record.n for each in waiting.read() for record in each.records]
    assert (tmp_path / FILE).stat().st_size <= 5_000
    assert kept == list(range(200 - len(kept) + 1, 201))
    assert lost == 200 - len(kept)


def test_a_disk_that_refuses_costs_the_lines_only(tmp_path: Path) -> None:
    assert WaitingLogs(tmp_path / "missing" / FILE).add(batch(1)) == 2


# --- The collector ---------------------------------------------------------------------------------------------------


class Collected:
    """A collector on a real outbox."""

    def __init__(self, tmp_path: Path, settings: HubLogs):
        self.outbox = Outbox.open(tmp_path / "outbox.db")
        self.keeper = Keeper(self.outbox, lambda _report: None)
        self.collector = LogCollector(settings, tmp_path, self.keeper)

    async def sent(self) -> list[Logs]:
        """Return the log messages in the outbox."""
        await self.keeper.flushed()
        found = await self.keeper.call(
            lambda: [m for first, last in self.outbox.pending() for m in self.outbox.load(range(first, last + 1))]
        )
        return [msgspec.json.decode(message.body, type=Logs) for message in found if message.kind == "logs"]

    async def events(self) -> list[str]:
        return [record.event for logs in await self.sent() for record in logs.records]


def story(tmp_path: Path, settings: HubLogs, tell: Callable[[Collected], Awaitable[None]]) -> None:
    async def run() -> None:
        this = Collected(tmp_path, settings)
        working = asyncio.create_task(this.keeper.run())
        try:
            await tell(this)
        finally:
            this.collector.close()
            working.cancel()
            await asyncio.wait([working])
            await this.keeper.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("settings", "events"),
    [
        (HubLogs("warning", connection=False), ["went_wrong", "broke"]),
        (HubLogs("warning", connection=True), ["path_taken", "went_wrong", "broke"]),
        (HubLogs("info", connection=False), ["path_taken", "happened", "went_wrong", "broke"]),
        (HubLogs("debug", connection=False), ["noted", "path_taken", "happened", "went_wrong", "broke"]),
        (HubLogs("error", connection=False), ["broke"]),
        (HubLogs("off", connection=True), ["path_taken"]),
        (HubLogs("off", connection=False), []),
    ],
)
@pytest.mark.parametrize("shown", ["debug", "error"])
def test_what_is_sent_follows_from_its_own_level_not_from_what_is_shown(
    tmp_path: Path, settings: HubLogs, events: list[str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The journal of the machine and the cloud have different readers."""
    logging.set_up(Log(level=shown, format="json"))  # type: ignore[arg-type]

    async def tell(this: Collected) -> None:
        log = logging.get("hub.test")
        log.debug("noted")
        log.info("path_taken", via="direct")
        log.info("happened")
        log.warning("went_wrong", count=3)
        log.error("broke")
        await this.collector.pass_on(roaming=False)
        assert await this.events() == events

    story(tmp_path, settings, tell)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (5 if shown == "debug" else 1)


def test_lines_logged_soon_after_each_other_share_a_message(tmp_path: Path) -> None:
    logging.set_up(Log())

    async def tell(this: Collected) -> None:
        log = logging.get("hub.test")
        for turn in range(5):
            log.warning("went_wrong", turn=turn)
            await this.collector.pass_on(roaming=False)
        assert len(await this.sent()) == 1
        await this.collector.pass_on(roaming=False, at_once=True)
        assert [len(logs.records) for logs in await this.sent()] == [1, 4]

    story(tmp_path, HubLogs("warning"), tell)


def test_sending_lines_makes_no_lines(tmp_path: Path) -> None:
    """At the lowest level of all, too: else a hub would talk about its own talking for ever."""
    logging.set_up(Log())

    async def tell(this: Collected) -> None:
        logging.get("hub.test").debug("noted")
        for roaming in (True, False, True, False):
            for _ in range(5):
                await this.collector.pass_on(roaming=roaming, at_once=True)
                await this.keeper.flushed()
        logging.get("hub.logs").error("not_collected")
        await this.collector.pass_on(roaming=False, at_once=True)
        assert await this.events() == ["noted"]

    story(tmp_path, HubLogs("debug"), tell)


def test_while_roaming_lines_wait_on_the_disk_and_come_in_order_afterwards(tmp_path: Path) -> None:
    logging.set_up(Log())

    async def tell(this: Collected) -> None:
        log = logging.get("hub.test")
        for turn in range(3):
            log.warning("went_wrong", turn=turn)
            await this.collector.pass_on(roaming=True, at_once=True)
        assert await this.sent() == []
        assert (tmp_path / FILE).exists()
        log.warning("went_wrong", turn=3)
        for _ in range(3):
            await this.collector.pass_on(roaming=False, at_once=True)
            await this.keeper.flushed()
        sent = await this.sent()
        assert [record.fields["turn"] for logs in sent for record in logs.records] == [0, 1, 2, 3]
        assert not (tmp_path / FILE).exists()

    story(tmp_path, HubLogs("warning"), tell)


def test_what_an_earlier_run_left_is_sent_under_its_own_boot(tmp_path: Path) -> None:
    """The hub was switched off while it roamed."""
    logging.set_up(Log())
    WaitingLogs(tmp_path / FILE).add(batch(7))

    async def tell(this: Collected) -> None:
        for _ in range(2):
            await this.collector.pass_on(roaming=False, at_once=True)
            await this.keeper.flushed()
        (left,) = await this.sent()
        assert left == batch(7)
        assert not (tmp_path / FILE).exists()

    story(tmp_path, HubLogs("warning"), tell)


def test_a_crash_between_the_outbox_and_the_file_repeats_lines_that_can_be_told(tmp_path: Path) -> None:
    """The file goes only after its lines are in the outbox: never the other way round."""
    logging.set_up(Log())
    WaitingLogs(tmp_path / FILE).add(batch(7))

    async def tell(this: Collected) -> None:
        await this.collector.pass_on(roaming=False, at_once=True)
        await this.keeper.flushed()
        assert (tmp_path / FILE).exists()

    story(tmp_path, HubLogs("warning"), tell)

    async def after(this: Collected) -> None:
        for _ in range(2):
            await this.collector.pass_on(roaming=False, at_once=True)
            await this.keeper.flushed()
        assert await this.sent() == [batch(7), batch(7)]

    story(tmp_path, HubLogs("warning"), after)


def test_the_newest_lines_can_be_collected_whether_sent_or_not(tmp_path: Path) -> None:
    logging.set_up(Log())

    async def tell(this: Collected) -> None:
        for turn in range(limits.LOGS_WAITING_MAX + 20):
            logging.get("hub.test").info("happened", turn=turn)
        recent = this.collector.recent_logs(3)
        assert [record.fields["turn"] for record in recent] == [limits.LOGS_WAITING_MAX + k for k in (17, 18, 19)]
        assert len(this.collector.recent_logs(10_000)) == limits.LOGS_WAITING_MAX
        assert this.collector.recent_logs(0) == []

    story(tmp_path, HubLogs("off", connection=False), tell)


def test_lines_of_many_threads_all_come_once(tmp_path: Path) -> None:
    logging.set_up(Log(level="error"))

    async def tell(this: Collected) -> None:
        def shout(thread: int) -> None:
            for turn in range(20):
                logging.get("hub.test").warning("went_wrong", key=f"{thread}-{turn}")

        await asyncio.gather(*(asyncio.to_thread(shout, thread) for thread in range(8)))
        await this.collector.pass_on(roaming=False, at_once=True)
        records = [record for logs in await this.sent() for record in logs.records]
        assert len({record.fields["key"] for record in records}) == 160
        assert sorted(record.n for record in records) == list(range(1, 161))

    story(tmp_path, HubLogs("warning"), tell)
