"""One process is active, another takes over: however the first one ends, and never both at once."""

# ruff: noqa: F811 (fixtures are imported by name)
from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import asyncpg
import pytest

from broker.clock import unix_ms
from broker.control import Reported, Results
from broker.messages import Last
from cloud.batch import Answered, NewestValue
from cloud.database import open_database
from cloud.dedicated import Dedicated
from cloud.following import Following
from cloud.notices import Word, announcements
from cloud.standby import Lead, lock_key
from cloud.status_slot import status_slot
from config import limits
from config.errors import StorageError
from tests.cloud.divided import until
from tests.cloud.wire import FLEET, batch, one, payload
from tests.postgres import Postgres, postgres, postgres_server  # noqa: F401


def test_the_second_one_waits_and_takes_over_when_the_first_one_leaves(postgres: Postgres) -> None:
    """Two active ones would tell hubs two different things."""

    async def story() -> None:
        first, second, stranger = Lead(postgres.url, "acme"), Lead(postgres.url, "acme"), Lead(postgres.url, "other")
        await first.win()
        await stranger.win()
        waiting = asyncio.create_task(second.win())
        await until("the second one has asked", lambda: second._connection is not None)
        assert not second.active
        await first.close()
        await until("the second one is active", lambda: second.active)
        await waiting
        for lead in (second, stranger):
            await lead.close()

    asyncio.run(story())


def test_who_loses_its_connection_stops_at_once_and_the_next_one_takes_over(postgres: Postgres) -> None:
    """The lock has gone with the connection: somebody else may be active already."""

    async def story() -> None:
        first, second = Lead(postgres.url, "acme"), Lead(postgres.url, "acme")
        await first.win()
        keeping = asyncio.create_task(first.keep())
        waiting = asyncio.create_task(second.win())
        await until("the second one has asked", lambda: second._connection is not None)
        postgres.query("select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted")
        with pytest.raises(StorageError, match="not the active one any more"):
            await asyncio.wait_for(keeping, 2.0)
        assert not first.active
        await waiting
        assert second.active
        for lead in (first, second):
            await lead.close()

    asyncio.run(story())


def test_a_connection_that_is_being_closed_lets_no_cancellation_get_lost(postgres: Postgres) -> None:
    """Who has lost the lead just then would go on acting for ever."""

    async def story() -> None:
        for turns in range(20):  # At some of them the connection is closed in the same turn.
            connection = await Dedicated.open(postgres.url)
            connection.abort()
            closing = asyncio.create_task(connection.close())
            for _ in range(turns):
                await asyncio.sleep(0)
            accepted = closing.cancel()
            await asyncio.wait([closing])
            assert closing.cancelled() == accepted, turns

    asyncio.run(story())


def test_keys_are_different_for_different_fleets_and_fit_into_64_bits() -> None:
    """Fleets may share a database server, and by mistake a database."""
    keys = {lock_key(f"fleet-{number}") for number in range(1000)}
    assert len(keys) == 1000
    assert all(-(2**63) <= key < 2**63 for key in keys)


def test_each_process_in_a_folder_has_a_status_file_of_its_own(tmp_path: Path) -> None:
    """Nobody has to name them, and none overwrites another's."""
    with contextlib.ExitStack() as held:
        parts = ("ingest", "ingest", "operations", None)
        names = [held.enter_context(status_slot(tmp_path, part)) for part in parts]
        assert names == ["status-ingest-1.json", "status-ingest-2.json", "status-operations-1.json", "status.json"]
    with status_slot(tmp_path, "ingest") as again:
        assert again == "status-ingest-1.json"


def test_following_understands_only_notices(postgres: Postgres) -> None:
    """Somebody's own NOTIFY on the channel must not stop the cloud."""
    following = Following(postgres.url, None, lambda words, answers: None, lambda values: None)  # type: ignore[arg-type]
    following._hear("rubbish")
    following._hear('{"r":[["berlin","pc-1"]]}')
    assert following._renewed == {("berlin", "pc-1"): None}


def test_a_connection_that_cannot_be_made_ready_is_closed(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits tries again every few seconds: a server would soon have no connection left for anybody."""
    monkeypatch.setattr(limits, "LEAD_PROBES_S", ("no number", 2, 3))

    async def story() -> None:
        for _ in range(3):
            with pytest.raises(StorageError):
                await Dedicated.open(postgres.url)
        left = "select count(*) from pg_stat_activity where datname = $1 and application_name = 'hubline'"
        await until("they are closed", lambda: postgres.query(left, postgres.name) == [(0,)])

    asyncio.run(story())


def shown(hub_id: str, ts: int, count: int) -> NewestValue:
    return NewestValue("berlin", hub_id, "counter", Last(ts, 1, count))


def test_a_forgotten_hub_that_comes_back_is_told_though_it_counts_the_same(postgres: Postgres) -> None:
    """It starts at one again: whoever watches would see nothing of it."""
    told: list[tuple[NewestValue, ...]] = []
    following = Following(postgres.url, None, lambda words, answers: None, told.append)  # type: ignore[arg-type]
    before, after = shown("pc-1", 1000, 1), shown("pc-1", 9000, 1)
    for value in (before, before, after, after):
        following._tell_changed([value])
    assert told == [(before,), (after,)]


def test_more_hubs_than_can_wait_are_read_all_at_once(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is away must not cost memory without end."""
    monkeypatch.setattr(limits, "NEWEST_HUBS_WAITING_MAX", 3)
    following = Following(postgres.url, None, lambda words, answers: None, lambda values: None)  # type: ignore[arg-type]
    for number in range(3):
        following._hear(f'{{"r":[["berlin","pc-{number}"]]}}')
    assert (len(following._renewed), following._all_newest) == (3, False)
    following._hear('{"r":[["berlin","pc-3"]]}')
    assert (len(following._renewed), following._all_newest) == (0, True)


def test_what_was_committed_while_the_notices_were_cut_off_is_learnt_afterwards(postgres: Postgres) -> None:
    """A lost connection must cost no result and no newest value: nobody would tell them again."""

    async def story() -> None:
        worker = open_database(postgres.url, FLEET, announce=announcements)
        reader = open_database(postgres.url, FLEET)
        for database in (worker, reader):
            await database.open()
        words: list[Word] = []
        answers: list[Answered] = []
        lasts: dict[str, int] = {}

        def told(of_words: Iterable[Word], of_answers: Iterable[Answered]) -> None:
            words.extend(of_words)
            answers.extend(of_answers)

        def tell_newest(values: tuple[NewestValue, ...]) -> None:
            lasts.update({value.hub_id: value.last.count for value in values})

        following = Following(postgres.url, reader, told, tell_newest)
        running = asyncio.create_task(following.run())
        try:
            await until("it listens", lambda: following.listening)
            now = unix_ms()
            assert await worker.commit(batch(one(1, sent=now), hub_id="pc-1", received_ms=now)) is not None
            await until("a notice has come", lambda: {word.hub_id for word in words} == {"pc-1"})
            await until("and the newest value", lambda: lasts == {"pc-1": 1})
            listening = "select pid from pg_stat_activity where query like 'LISTEN%' or query = 'SELECT 1'"
            pids = [
                pid for (pid,) in postgres.query(listening)
            ]  # It may be back before anybody looks, over another one.
            assert pids
            postgres.query("select pg_terminate_backend(pid) from unnest($1::int[]) as w(pid)", pids)
            alive = "select pid from pg_stat_activity where pid = any($1::int[])"
            await until("it is cut off", lambda: not postgres.query(alive, pids))
            body = {"results": [{"task": "00000000000000aa", "state": "done", "ts": now}]}
            result = batch(payload(body, 1, sent=now), hub_id="pc-2", kind="results", received_ms=now)
            reported = {"version": "1", "host": "h", "system": "s", "addresses": [], "mode": "continuous"}
            report = batch(payload(reported, 2, sent=now), hub_id="pc-2", kind="reported", received_ms=now)
            for each in (result, report, batch(one(2, sent=now), hub_id="pc-1", received_ms=now)):
                assert await worker.commit(each) is not None
            await until(
                "the answers are learnt", lambda: {type(answer.body) for answer in answers} == {Results, Reported}
            )
            await until("and who spoke", lambda: "pc-2" in {word.hub_id for word in words})
            await until("and the newest value", lambda: lasts == {"pc-1": 2})
        finally:
            running.cancel()
            await asyncio.wait([running])
            for database in (worker, reader):
                await database.close()

    asyncio.run(story())


def test_a_client_that_has_lost_count_is_given_up_as_a_lost_connection() -> None:
    """The server was killed in the middle of an answer, as was seen once: the standby must come again, not end in a traceback."""

    class Confused:
        terminated = False

        def add_termination_listener(self, _: object) -> None:
            pass

        async def fetchval(self, *_: object) -> object:
            raise asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress")

        def is_closed(self) -> bool:
            return self.terminated

        def terminate(self) -> None:
            self.terminated = True

    async def story() -> bool:
        confused = Confused()
        dedicated = Dedicated("postgresql+asyncpg://service@127.0.0.1/hubline", cast(asyncpg.Connection, confused))
        with pytest.raises(StorageError, match="another operation"):
            await dedicated.ask("SELECT 1")
        return confused.terminated

    assert asyncio.run(story())
