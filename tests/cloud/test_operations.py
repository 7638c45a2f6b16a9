"""Presence, tasks and settings at work on a real database: what is told is committed, and nobody is asked who must not be."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest

from broker.clock import unix_ms
from broker.control import Heartbeat, ModePolicy, Poll, Protection, Reported, TaskReport
from broker.control import Results as ResultsBody
from broker.messages import HubState
from broker.topics import Topic
from cloud.batch import Batch, HubStateSeen, Message, Stream
from cloud.database import Database, SqliteDatabase
from cloud.desk import Change, UnknownError
from cloud.ingest import Heard
from cloud.lane import Lane
from cloud.operations import Operations
from cloud.service_desk import ServiceDesk
from cloud.verification import verify_connections
from config import limits
from config.errors import SettingsError, StorageError
from config.settings import CloudProcess, CloudSettings, Identity
from tests.cloud.stored import query
from tests.cloud.wire import EPOCH, FLEET, OTHER_EPOCH, SITE

KEY = (SITE, "pc-1")
DEADLINE_S = 20.0
HOUR_MS = 3_600_000


@dataclass
class Place:
    """Operations with a database in a file, a desk, and what was published."""

    file: Path
    database: Database
    operations: Operations
    desk: ServiceDesk
    published: list[tuple[str, bytes]] = field(default_factory=list)

    async def commit(self, batch: Batch) -> None:
        outcome = await self.database.commit(batch)
        assert outcome is not None
        self.operations.committed(batch, outcome)
        await self.operations.lane.done()

    async def born(self, *, epoch: str = EPOCH, session: int = 1, mode: str = "continuous") -> None:
        state = HubState(
            online=True,
            epoch=epoch,
            session=session,
            via="direct",
            mode=mode,
            ts=unix_ms(),
            reason="started",  # type: ignore[arg-type]
        )
        await self.commit(Batch(hub_states=(HubStateSeen(*KEY, state, unix_ms()),)))

    async def said(self, seq: int, kind: str, body: Reported | ResultsBody) -> None:
        now = unix_ms()
        await self.commit(Batch((Message(Stream(*KEY, EPOCH), seq, kind, now, now, b"{}", body),)))

    def down(self, kind: str) -> list[dict[str, object]]:
        topic = str(Topic.down(FLEET, *KEY, kind))
        return [orjson.loads(payload) for to, payload in self.published if to == topic]

    def presence(self) -> dict[str, object]:
        topic = str(Topic.presence(FLEET, *KEY))
        told = [payload for to, payload in self.published if to == topic and payload]
        return orjson.loads(told[-1]) if told else {"reason": None}


@asynccontextmanager
async def working(
    folder: Path, roster: Path | None = None, patience_s: float = limits.LANE_WAIT_S
) -> AsyncIterator[Place]:
    file, published = folder / "cloud.db", list[tuple[str, bytes]]()
    nothing = folder / "nothing.pem"
    settings = CloudSettings(Identity(FLEET, "-", "cloud", nothing, nothing, nothing), CloudProcess(roster=roster))
    database = SqliteDatabase(file, FLEET)
    await database.open()
    operations = Operations(
        settings, database, lambda topic, payload, *_: published.append((topic, payload)), patience_s
    )
    place = Place(file, database, operations, ServiceDesk(operations, database, dict), published)
    running = asyncio.create_task(operations.run())
    try:
        await operations.ready()
        operations.connected()
        yield place
    finally:
        await operations.close()
        running.cancel()
        await asyncio.wait([running])
        await database.close()
        if not running.cancelled():
            running.result()


@contextmanager
def locked(file: Path):  # type: ignore[no-untyped-def]
    """Hold the database's write lock, as a backup that hangs does."""
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        holder.execute("ROLLBACK")
        holder.close()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not true():
            await asyncio.sleep(0.01)


def play(story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(story(), 3 * DEADLINE_S)

    asyncio.run(bounded())


async def ordered(place: Place, action: str = "ping") -> str:
    return await place.desk.create_task([KEY], action, {}, expires_s=600, skip_if_offline=False, by="ann")


def test_a_task_goes_to_a_hub_that_is_online_and_its_report_ends_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with working(tmp_path) as place:
            await place.born()
            task = await ordered(place)
            await until(lambda: place.down("task"))
            assert place.down("task")[0]["id"] == task
            await place.said(1, "results", ResultsBody([TaskReport(task, "done", unix_ms())]))
            assert query(place.file, "SELECT state FROM task_targets") == [("done",)]
            assert place.presence()["connection"] == "online"

    play(story)


def test_nothing_is_started_on_a_paused_hub_even_if_its_clock_is_wrong_too(tmp_path: Path) -> None:
    """Of several reasons only one is shown; all of them count."""

    async def story() -> None:
        async with working(tmp_path) as place:
            await place.born()
            await place.desk.pause(KEY, by="ann")
            ahead = unix_ms() + HOUR_MS
            place.operations.heard(Heard(*KEY, Heartbeat(EPOCH, 1, ahead), unix_ms()))
            task = await ordered(place, "restart-hub")
            await place.operations.lane.done()
            assert place.desk.presence(KEY).reason == "rejected: clock"  # type: ignore[union-attr]
            assert place.down("task") == []
            await place.desk.resume(KEY, by="ann")
            await until(lambda: [sent["id"] for sent in place.down("task")] == [task])

    play(story)


def test_nothing_is_handed_to_a_polling_hub_while_two_machines_have_its_name(tmp_path: Path) -> None:
    """Whichever polls would take what was meant for the other."""

    async def story() -> None:
        async with working(tmp_path) as place:
            now = unix_ms() - 60_000  # What comes now may have been sent some seconds ago.
            first = HubState(online=True, epoch=EPOCH, session=1, via="direct", mode="polling", ts=now - 1)
            await place.commit(Batch(hub_states=(HubStateSeen(*KEY, first, now - 1),)))
            task = await ordered(place)
            for number, epoch in enumerate((EPOCH, OTHER_EPOCH, EPOCH)):
                later = now + 11_000 * number  # By the hubs' clocks, which count here.
                state = HubState(online=True, epoch=epoch, session=number + 1, via="direct", mode="polling", ts=later)
                await place.commit(Batch(hub_states=(HubStateSeen(*KEY, state, later),)))
                place.operations.heard(Heard(*KEY, Poll(epoch, number + 1, later), later))
            record = place.operations.record(KEY)
            assert record is not None
            assert record.rivals is not None
            before = len(place.down("task"))
            place.operations.heard(Heard(*KEY, Poll(OTHER_EPOCH, 9, now + 44_000), now + 44_000))
            await place.operations.lane.done()
            assert len(place.down("task")) == before
            assert {sent["id"] for sent in place.down("task")} == {task}

    play(story)


def test_two_machines_that_poll_every_half_hour_are_named_too(tmp_path: Path) -> None:
    """They never speak within the same ten minutes."""

    async def story() -> None:
        async with working(tmp_path) as place:
            began = unix_ms() - 55 * 60_000
            for number, epoch in enumerate((EPOCH, OTHER_EPOCH, EPOCH, OTHER_EPOCH)):
                at = began + number * 15 * 60_000
                state = HubState(online=True, epoch=epoch, session=number + 1, via="direct", mode="polling", ts=at)
                await place.commit(Batch(hub_states=(HubStateSeen(*KEY, state, at),)))
                place.operations.heard(Heard(*KEY, Poll(epoch, number + 1, at), at))
                left = HubState(online=False, epoch=epoch, session=number + 1, ts=at + 9_000, reason="polling")
                await place.commit(Batch(hub_states=(HubStateSeen(*KEY, left, at + 9_000),)))
            assert place.desk.presence(KEY).reason == "rejected: duplicate identity"  # type: ignore[union-attr]

    play(story)


def test_a_command_says_so_when_the_database_refuses_and_is_done_later(tmp_path: Path) -> None:
    async def story() -> None:
        async with working(tmp_path, patience_s=0.5) as place:
            await place.born()
            with locked(place.file), pytest.raises(StorageError, match="does not take it now"):
                await place.desk.pause(KEY, by="ann")
            await until(lambda: place.presence()["reason"] == "paused")

    play(story)


def test_saves_of_one_hub_wait_in_one_place_while_the_database_refuses(tmp_path: Path) -> None:
    """An hour of a locked database must not fill the memory."""

    async def story() -> None:
        async with working(tmp_path) as place:
            await place.born()
            with locked(place.file):
                for number in range(500):
                    place.operations.heard(Heard(*KEY, Heartbeat(EPOCH, 1, unix_ms() + number), unix_ms()))
                assert place.operations.lane.waiting < 20

    play(story)


def test_a_lane_gives_up_what_is_only_told_before_what_must_be_kept(tmp_path: Path) -> None:
    async def story() -> None:
        database = SqliteDatabase(tmp_path / "cloud.db", FLEET)
        lane, told = Lane(database), list[int]()
        for number in range(limits.LANE_MAX + 1):
            lane.then(lambda number=number: told.append(number))  # type: ignore[misc]
        assert lane.waiting < limits.LANE_MAX
        running = asyncio.create_task(lane.run())
        kept = list[int]()
        lane.change(lambda _: kept.append(1))
        await lane.done()
        running.cancel()
        await database.close()
        assert kept == [1]

    play(story)


def test_a_change_that_waits_is_replaced_in_its_place_and_deeds_follow_it(tmp_path: Path) -> None:
    async def story() -> None:
        database = SqliteDatabase(tmp_path / "cloud.db", FLEET)
        await database.open()
        lane, done = Lane(database), list[str]()
        lane.change(lambda _: done.append("old"), name="hub")
        lane.then(lambda: done.append("told"))
        lane.change(lambda _: done.append("new"), name="hub")
        running = asyncio.create_task(lane.run())
        await lane.done()
        running.cancel()
        await database.close()
        assert done == ["new", "told"]

    play(story)


def test_a_forgotten_hub_stays_forgotten_though_something_of_it_waited_to_be_saved(tmp_path: Path) -> None:
    async def story() -> None:
        async with working(tmp_path) as place:
            await place.born()
            heard = place.desk.changes()
            place.operations.heard(Heard(*KEY, Heartbeat(EPOCH, 1, unix_ms()), unix_ms()))
            await place.desk.forget(KEY, by="ann")
            await place.operations.lane.done()
            assert query(place.file, "SELECT hub FROM hubs") == []
            assert query(place.file, "SELECT * FROM presence") == []
            with pytest.raises(UnknownError):
                await place.desk.pause(KEY, by="ann")
            kinds = list[Change]()
            async for change in heard:
                kinds.append(change)
                if change.kind == "forgotten":
                    break
            assert (str(Topic.presence(FLEET, *KEY)), b"") in place.published

    play(story)


def test_presence_is_told_again_only_if_the_protection_that_was_reported_changes_it(tmp_path: Path) -> None:
    async def story() -> None:
        async with working(tmp_path) as place:
            await place.born()
            reported = Reported("1", "pc", "Linux", [], "continuous")
            await place.said(1, "reported", reported)
            before = len(place.published)
            await place.said(2, "reported", reported)
            assert len(place.published) == before
            bad = Protection("conventional", "old", "enabled", "reachable")
            await place.said(3, "reported", Reported("1", "pc", "Linux", [], "continuous", protection=bad))
            await until(lambda: place.presence()["icon"] == "online-warning")

    play(story)


def test_a_hub_is_judged_by_the_rules_that_it_says_are_in_force(tmp_path: Path) -> None:
    """They may be from its own file, or it may have refused those that are desired of it."""

    async def story() -> None:
        async with working(tmp_path) as place:
            await place.born(mode="polling")
            policy = ModePolicy("off", 10, 1440, 4320)
            await place.said(1, "reported", Reported("1", "pc", "Linux", [], "polling", policy=policy))
            record = place.operations.record(KEY)
            assert record is not None
            assert (record.policy.heartbeat, record.policy.offline_after_min) == ("off", 4320)

    play(story)


def test_a_roster_that_could_not_be_read_is_read_when_it_is_mended(tmp_path: Path) -> None:
    file = tmp_path / "roster.json"
    file.write_text("garbage")

    async def story() -> None:
        async with working(tmp_path, file) as place:
            file.write_text('{"hubs":[{"site":"berlin","hub":"pc-1","not_after":"2030-01-01T00:00:00Z"}]}')
            place.operations.read_roster()
            await until(lambda: place.presence()["reason"] == "never seen")

    play(story)


def test_settings_are_kept_only_if_they_can_hold(tmp_path: Path) -> None:
    async def story() -> None:
        async with working(tmp_path) as place:
            await place.born()
            with pytest.raises(SettingsError, match="poll_min"):
                await place.desk.put_settings("fleet", "", {"mode": {"poll_min": 0}}, expected_version=None, by="ann")
            version, _ = await place.desk.put_settings(
                "site", SITE, {"logs": {"level": "debug"}}, expected_version=0, by="ann"
            )
            assert version == 1
            await until(lambda: place.down("settings"))
            assert place.down("settings")[0]["settings"] == {"logs": {"level": "debug"}}

    play(story)


def test_a_database_that_became_another_fleets_is_a_failure_that_may_pass(tmp_path: Path) -> None:
    """The service must go on waiting, not end with a traceback."""

    async def story() -> None:
        other = tmp_path / "other"
        other.mkdir()
        foreign = SqliteDatabase(other / "cloud.db", "other-fleet")
        await foreign.open()
        await foreign.close()
        async with working(tmp_path) as place:
            await place.born()
            for end in ("", "-wal", "-shm"):
                place.file.with_name(f"cloud.db{end}").unlink()
            (other / "cloud.db").rename(place.file)
            with pytest.raises(StorageError):
                await place.database.change(lambda _: None)
            with pytest.raises(StorageError, match="other-fleet"):
                await place.database.change(lambda _: None)

    play(story)


def test_connections_are_verified_by_a_ping_to_all_that_are_there(tmp_path: Path) -> None:
    """The client-server connection is verified daily, and that leaves a log."""

    async def story() -> None:
        async with working(tmp_path) as place:
            await place.born()
            verifying = asyncio.create_task(verify_connections(place.operations, place.desk, every_h=0.5 / 3600))
            await until(lambda: place.down("task"))
            verifying.cancel()
            assert place.down("task")[0]["action"] == "ping"
            assert query(place.file, "SELECT created_by FROM tasks")[0] == ("verification",)

    play(story)
