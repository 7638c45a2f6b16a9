"""PostgreSQL under what only a server can suffer: many writers at once, its own death, strangers, text that it refuses."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from structlog.testing import capture_logs

from broker.control import LogRecord, Logs
from broker.messages import ConnectorState, HubState, Value
from cloud import api_archive, api_orders, api_queries, task_records
from cloud.api_archive import Span
from cloud.api_queries import AuditFilter, HubFilter, LineFilter, LogFilter, Window
from cloud.batch import Batch, ConnectorStateSeen, HubStateSeen, Outcome, RefusedMessage
from cloud.database import WORKS, Database, open_archive, open_database
from cloud.log_records import apply_logs
from cloud.partitions import WEEK_MS, ensure_partitions, ensure_weeks, partition_name, partitions
from cloud.postgres_store import PostgresStore
from cloud.queries import Archive
from cloud.states import add_hub
from cloud.store import Store
from cloud.task_standing import TaskOrder
from cloud.upgrading import migrate
from config import limits
from config.errors import SettingsError, StorageError
from config.settings import Retention
from tests.cloud.postgres_writer import BATCH, HUBS
from tests.cloud.stored import content_of
from tests.cloud.wire import EPOCH, FLEET, OTHER_EPOCH, SITE, T0, batch, gap, message, one, payload, readings
from tests.fleet import until
from tests.postgres import (  # noqa: F401
    PASSWORD,
    Postgres,
    Server,
    postgres,
    postgres_server,
    prepared_postgres,
    prepared_template,
)

DAY_MS = 86_400_000


@pytest.fixture
def store(prepared_postgres: Postgres) -> Iterator[PostgresStore]:  # noqa: F811
    made = PostgresStore(prepared_postgres.url, FLEET)
    yield made
    made.close()


# --- Many writers ----------------------------------------------------------------------------------------------------


def writer(url: str, first: int, steps: int) -> subprocess.Popen[str]:
    """Start another process that stores seqs from `first` on."""
    program = [sys.executable, "-m", "tests.cloud.postgres_writer", url, str(first), str(steps)]
    return subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def check_complete(database: Postgres, last: int) -> None:
    """Check that each hub's messages 1 to `last` are there once, and that everything else says so too."""
    content = content_of(database)
    assert len(content.messages) == HUBS * last
    for number in range(HUBS):
        place = (SITE, f"pc-{number}", EPOCH)
        assert content.coverage[place] == [(1, last)]
        assert content.sums[place] == (last, last, 0)
        assert content.newest[(SITE, f"pc-{number}", "counter")] == (T0 + last * 1000, str(last), last)
        for table in ("rollup_5min", "rollup_1h"):
            buckets = [rollup for key, rollup in content.rollups.items() if key[:4] == (table, *place[:2], "counter")]
            assert sum(rollup[0] for rollup in buckets) == last
            assert sum(rollup[3] for rollup in buckets) == last * (last + 1) / 2


def test_writers_of_the_same_hubs_double_nothing_lose_nothing_and_do_not_block_each_other(
    prepared_postgres: Postgres,  # noqa: F811
) -> None:
    """Three workers take the same messages in orders of their own, as after a change of paths, and new hubs among them."""
    steps = 12
    writers = [writer(prepared_postgres.url, first, steps) for first in (1, 1, 1 + BATCH * steps // 2)]
    for process in writers:
        process.communicate(timeout=60)
    assert [process.returncode for process in writers] == [0, 0, 0]
    check_complete(prepared_postgres, BATCH * (steps + steps // 2))
    [(deadlocks,)] = prepared_postgres.query(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )
    assert deadlocks == 0


def test_states_answers_and_refused_messages_of_concurrent_writers_are_all_kept(
    prepared_postgres: Postgres,  # noqa: F811
) -> None:
    """The numbers of the quarantine count what was refused, so two workers must not take the same one."""
    count = 15

    def write(name: str) -> None:
        mine = PostgresStore(prepared_postgres.url, FLEET)
        try:
            for session in range(1, count + 1):
                born = HubState(online=True, epoch=EPOCH, session=session, via=name)
                up = ConnectorState(online=True, session=session, upstream="up", ts=session)
                mine.commit(
                    Batch(
                        refused=(RefusedMessage("hl1/x", "broken", b"", 0, T0),),
                        hub_states=(HubStateSeen(SITE, "pc-1", born, T0), HubStateSeen(SITE, "pc-2", born, T0)),
                        connector_states=(ConnectorStateSeen(SITE, "berlin-1", up, T0),),
                    )
                )
        finally:
            mine.close()

    threads = [threading.Thread(target=write, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert prepared_postgres.query("SELECT max(refused_no), count(*) FROM quarantine") == [(2 * count, 2 * count)]
    assert (
        prepared_postgres.query("SELECT session FROM hubs UNION ALL SELECT session FROM connectors") == [(count,)] * 3
    )


# --- The server dies -------------------------------------------------------------------------------------------------


def test_server_that_is_killed_in_the_middle_of_commits_loses_and_doubles_nothing() -> None:
    """What a writer was told to be committed is there after kill -9; the rest comes again and is stored once."""
    server = Server(hard=True)
    try:
        server.create("fleet")
        database = Postgres(server, "fleet")
        process = writer(database.url, 1, 20)
        assert process.stdout is not None
        acknowledged = 0
        for _ in range(2):
            for _ in range(4):
                acknowledged = int(process.stdout.readline())
            server.kill()
            server.start()
            stored = database.query(
                "SELECT min(last_seq) FROM coverage JOIN streams USING (stream_no) WHERE first_seq = 1"
            )
            assert stored[0][0] >= acknowledged
            assert database.query("SELECT count(*) % $1::int FROM messages", BATCH * HUBS) == [(0,)], "all or nothing"
        process.communicate(timeout=60)
        assert process.returncode == 0
        check_complete(database, 20 * BATCH)
    finally:
        server.close()


def test_service_goes_on_with_a_server_that_was_away() -> None:
    """Nothing is committed meanwhile, nobody has to restart anything, and a reading that was idle does not even notice."""

    async def story(server: Server) -> None:
        database = open_database(server.url("fleet"), FLEET)
        try:
            await database.open()
            assert await database.commit(batch(one(1))) is not None
            assert await database.read(lambda connection: connection.exec_driver_sql("SELECT 7").scalar()) == 7
            await asyncio.to_thread(server.restart)
            assert await database.commit(batch(one(2))) == Outcome(1, 1, 0, 0, (await newest(database),))
            assert await database.read(lambda connection: connection.exec_driver_sql("SELECT 7").scalar()) == 7
            await asyncio.to_thread(server.kill)
            assert await database.commit(batch(one(3))) is None
            assert database.state != WORKS
            assert PASSWORD not in database.state
            with pytest.raises(StorageError):
                await database.read(lambda connection: connection.exec_driver_sql("SELECT 7").scalar())
            with pytest.raises(StorageError):
                await database.change(lambda connection: add_hub(connection, SITE, "pc-9"))
            await asyncio.to_thread(server.start)
            assert await database.commit(batch(one(3))) is not None
            assert (database.state, database.totals.messages) == (WORKS, 3)
        finally:
            await database.close()

    server = Server()
    try:
        server.create("fleet")
        asyncio.run(story(server))
    finally:
        server.close()


async def newest(database: Database) -> Any:
    found: list[Any] = []
    await database.newest(found.extend)
    return found[0]


def test_closing_does_not_wait_for_a_lock_that_somebody_holds(prepared_postgres: Postgres) -> None:  # noqa: F811
    """A service that is told to stop stops; what it could not commit was not acknowledged."""

    async def story() -> Outcome | None:
        database = open_database(prepared_postgres.url, FLEET)
        await database.open()
        await database.commit(batch(one(1)))
        other = PostgresStore(prepared_postgres.url, FLEET)
        held, done = threading.Event(), threading.Event()

        def hold(connection: Any) -> None:
            connection.exec_driver_sql("SELECT 1 FROM hubs FOR UPDATE")
            held.set()
            assert done.wait(30)

        holding = asyncio.create_task(asyncio.to_thread(other.change, hold))
        await asyncio.to_thread(held.wait)
        waiting = asyncio.create_task(database.commit(batch(one(2))))
        blocked = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        await asyncio.to_thread(until, "it waits for the lock", lambda: prepared_postgres.query(blocked))
        await database.close()
        outcome = await waiting
        done.set()
        await holding
        await asyncio.to_thread(other.close)
        return outcome

    assert asyncio.run(story()) is None
    assert content_of(prepared_postgres).coverage[(SITE, "pc-1", EPOCH)] == [(1, 1)]


# --- What a person must mend -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("p%40ss", "wrong"), "the server refuses the user or the password"),
        (("/NAME", "/nowhere"), "there is no such database on the server"),
        (("/NAME", "/NAME?sslrootcert=x"), "has an unknown part sslrootcert"),
        (("/NAME", ""), "must name the database"),
        (("postgresql+asyncpg", "postgresql+psycopg"), "must be a URL like"),
        (("p%40ss", "a@p%40ss"), "a special character in a password is written like %40"),
    ],
)
def test_database_that_cannot_be_used_is_named_without_its_password(
    prepared_postgres: Postgres,  # noqa: F811
    change: tuple[str, str],
    said: str,
) -> None:
    """An operator gets a line that can be passed on."""
    old, new = (part.replace("NAME", prepared_postgres.name) for part in change)

    async def story() -> None:
        database = open_database(prepared_postgres.url.replace(old, new), FLEET)
        try:
            await database.open()
        finally:
            await database.close()

    with pytest.raises(SettingsError, match=said) as caught:
        asyncio.run(story())
    assert "p%40ss" not in str(caught.value)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("127.0.0.1:1", "the server can't be reached: connection refused"),
        ("localhost:1", "the server can't be reached: connection refused"),
        ("nowhere.invalid:1", "the server can't be reached: "),
    ],
)
def test_server_that_is_not_there_is_named_as_a_person_says_it(where: str, said: str) -> None:
    """It is the first line that an operator sees of a wrong address, and what status.json says during an outage."""
    url = f"postgresql+asyncpg://hubline:secret@{where}/acme"
    with pytest.raises(StorageError) as caught:
        next(migrate(url, FLEET))
    assert str(caught.value).startswith(f"postgresql+asyncpg://hubline:***@{where}/acme: {said}")
    assert "Errno" not in str(caught.value)


def test_server_that_is_too_old_is_refused(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """Else an operator learns of it from the name of an unknown setting, again and again."""
    monkeypatch.setattr(limits, "POSTGRES_VERSION_MIN", 99)
    with pytest.raises(SettingsError, match=r"is PostgreSQL \d+: Hubline needs 99 or newer"):
        next(migrate(postgres.url, FLEET))


def test_what_is_no_postgresql_is_named_as_such() -> None:
    """A wrong port leads to another program, which hangs up; asyncpg would name a method of its own."""
    with socket.create_server(("127.0.0.1", 0)) as other, ThreadPoolExecutor(1) as beside:
        other.settimeout(10)
        beside.submit(lambda: other.accept()[0].close())
        url = f"postgresql+asyncpg://hubline:x@127.0.0.1:{other.getsockname()[1]}/acme"
        with pytest.raises(StorageError, match=r"can't be reached: (what is there ended|connection reset)"):
            next(migrate(url, FLEET))


def test_database_of_another_fleet_or_program_is_refused(postgres: Postgres) -> None:  # noqa: F811
    """Two fleets in one database would share hubs of the same name."""
    store = PostgresStore(postgres.url, FLEET)
    store.open()
    store.close()
    other = PostgresStore(postgres.url, "other")
    with pytest.raises(SettingsError, match="holds the fleet acme, not other"):
        other.open()
    other.close()


def test_empty_database_is_named_when_it_is_read(postgres: Postgres) -> None:  # noqa: F811
    """As with SQLite, reading prepares nothing."""
    with pytest.raises(SettingsError, match="is empty"):
        open_archive(postgres.url)


# --- Text ------------------------------------------------------------------------------------------------------------


def test_nul_in_what_a_hub_says_stops_nothing_and_comes_back(store: PostgresStore, prepared_postgres: Postgres) -> None:  # noqa: F811
    """PostgreSQL refuses the character, and the hub would send the message for ever."""
    said = "a\0b\x1ac"
    gaps = {"event": "gap", "from_seq": 1, "to_seq": 2, "points": 1, "first_ts": T0, "last_ts": T0, "reason": said}
    logs = {"boot": EPOCH, "records": [{"n": 1, "ts": T0, "level": "info", "event": said, "fields": {"x": said}}]}
    born = HubState(online=True, epoch=EPOCH, session=1, via="berlin-1", version=said, reason=said)
    store.commit(
        Batch(
            (
                message(readings(3, [(T0, {"name": said})])),
                message(payload({"events": [gaps]}, 4), kind="events"),
                message(payload(logs, 5), kind="logs"),
                message(payload({}, 6), kind="x\0y"),
            ),
            refused=(RefusedMessage("hl1/x", said, b"\0", 1, T0),),
            hub_states=(HubStateSeen(SITE, "pc-1", born, T0),),
        )
    )
    archive = Archive(store.reader())
    try:
        [audit] = archive.audit(verify=True)
        assert (audit.damaged, audit.messages, audit.gaps[0].reason) == (None, 4, said)
        assert next(archive.newest())[0].last.value == said
        page = store.change(lambda c: api_queries.logs(c, None, (SITE, "pc-1"), LineFilter(text="A\0B"), Window(5)))
        assert [(line.event, line.fields) for line in page.items] == [(said, {"x": said})]
    finally:
        archive.close()


# --- Retention -------------------------------------------------------------------------------------------------------


def test_old_weeks_are_dropped_as_a_whole_and_what_is_kept_longer_stays(
    store: PostgresStore,
    prepared_postgres: Postgres,  # noqa: F811
) -> None:
    """A dropped table leaves no holes; the sums must know what went with it, and events stay their own time."""
    store.open()
    week = T0 // WEEK_MS
    store.change(lambda connection: ensure_weeks(connection, [week, week + 1]))
    event = message(payload({"events": [{"event": "x"}]}, 3), kind="events")
    later = message(one(4), received_ms=(week + 1) * WEEK_MS)
    store.commit(Batch((message(one(1)), message(one(2)), event, later)))
    kept, now_ms = Retention(readings_days=30, events_days=400), (week + 1) * WEEK_MS + 30 * DAY_MS
    assert store.prune(kept, now_ms - 1) == 0
    assert store.prune(kept, now_ms) == 2
    assert week not in store.change(partitions)
    assert {seq for *_, seq in content_of(prepared_postgres).messages} == {3, 4}
    assert prepared_postgres.query("SELECT pruned_messages, pruned_points FROM streams") == [(2, 2)]
    archive = Archive(store.reader())
    [audit] = archive.audit(verify=True)
    archive.close()
    assert (audit.damaged, audit.missing) == (None, [])
    assert store.commit(batch(one(1))).duplicates == 1


def an_old_week(store: PostgresStore) -> tuple[Retention, int]:
    """Store 40 readings and three events in a week of many pages; return how long they are kept, and a time when it may go."""
    store.open()
    week = T0 // WEEK_MS
    now_ms = (week + 1) * WEEK_MS + 30 * DAY_MS
    store.change(lambda connection: ensure_weeks(connection, [week, week + 1]))
    store.change(lambda connection: ensure_partitions(connection, now_ms))
    part = text(f"ALTER TABLE {partition_name(week)} SET (fillfactor = 10)")
    store.change(lambda connection: connection.execute(part))
    events = [message(payload({"events": [{"event": "x"}]}, seq), kind="events") for seq in range(41, 44)]
    store.commit(Batch((*(message(one(seq)) for seq in range(1, 41)), *events)))
    return Retention(readings_days=30, events_days=400), now_ms


def check_dropped(store: PostgresStore, database: Postgres) -> None:
    """Check that the readings are gone and counted once, and the events there."""
    assert {seq for *_, seq in content_of(database).messages} == {41, 42, 43}
    assert database.query("SELECT pruned_messages, pruned_points FROM streams") == [(40, 40)]
    assert database.query("SELECT relname FROM pg_class WHERE relname = $1", partition_name(T0 // WEEK_MS)) == []
    archive = Archive(store.reader())
    assert [audit.damaged for audit in archive.audit(verify=True)] == [None]
    archive.close()


def test_a_week_that_is_too_large_for_one_step_goes_in_many(
    store: PostgresStore,
    prepared_postgres: Postgres,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A large fleet's week is counted and moved piece by piece: one statement for all of it would never end in its time."""
    kept, now_ms = an_old_week(store)
    size = "SELECT pg_relation_size($1::text::regclass) / 8192"
    [(pages,)] = prepared_postgres.query(size, partition_name(T0 // WEEK_MS))
    monkeypatch.setattr(limits, "RETENTION_COUNT_PAGES", 1)
    monkeypatch.setattr(limits, "RETENTION_WEEKS_S", 0.0)
    monkeypatch.setattr(limits, "RETENTION_BATCH", 2)
    steps = 0
    while store.prune(kept, now_ms):
        steps += 1
    assert pages > 3
    assert steps > pages
    check_dropped(store, prepared_postgres)


def test_a_week_whose_readings_went_row_by_row_is_not_counted_again(
    store: PostgresStore,
    prepared_postgres: Postgres,  # noqa: F811
) -> None:
    """Readings that are kept for days only don't wait for their week, and its table goes all the same."""
    _, now_ms = an_old_week(store)
    assert store.prune(Retention(readings_days=10, events_days=400), now_ms) == 40
    check_dropped(store, prepared_postgres)


def test_what_a_process_leaves_undone_of_an_old_week_the_next_one_finishes(
    store: PostgresStore,
    prepared_postgres: Postgres,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whenever it ends, nothing may be counted twice and nothing that is to be kept may stay out of reach."""
    kept, now_ms = an_old_week(store)
    monkeypatch.setattr(limits, "RETENTION_WEEKS_S", 0.0)
    monkeypatch.setattr(limits, "RETENTION_BATCH", 2)
    steps = 0
    done = 1
    while done:
        other = PostgresStore(prepared_postgres.url, FLEET)
        try:
            # Two steps each: who begins counts anew, and then takes the week away.
            done = other.prune(kept, now_ms)
            other.prune(kept, now_ms)
        finally:
            other.close()
        steps += 1
    assert steps >= 2
    check_dropped(store, prepared_postgres)


def test_a_week_that_cannot_go_yet_holds_up_nothing_else(
    store: PostgresStore,
    prepared_postgres: Postgres,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody may read for hours: logs and rollups still leave, and the disk does not fill with them as well."""
    kept, now_ms = an_old_week(store)
    monkeypatch.setattr(limits, "POSTGRES_TABLE_LOCK_TIMEOUT_S", 0.1)
    line = message(
        payload({"boot": EPOCH, "records": [{"n": 1, "ts": T0, "level": "info", "event": "x"}]}, 44), kind="logs"
    )
    store.commit(Batch((line,)))
    reader = store.reader()

    def read(connection: Connection) -> None:
        connection.execute(text("SELECT count(*) FROM messages"))
        for _ in range(2):  # What was counted is not counted again.
            with pytest.raises(StorageError, match="lock timeout"):
                store.prune(kept, now_ms)

    reader.read(read)
    reader.close()
    assert prepared_postgres.query("SELECT count(*) FROM messages WHERE kind = 'logs'") == [(0,)]
    assert store.prune(kept, now_ms) == 0
    assert prepared_postgres.query("SELECT count(*) FROM messages") == [(3,)]
    assert prepared_postgres.query("SELECT pruned_messages, pruned_points FROM streams") == [(41, 40)]


def test_a_retention_that_fails_is_told_once_and_its_recovery_too(postgres: Postgres) -> None:  # noqa: F811
    """Else a disk fills in silence."""

    async def story() -> None:
        database = open_database(postgres.url, FLEET)
        await database.open()
        with capture_logs() as logs:
            postgres.query("ALTER TABLE rollup_1h RENAME TO away")
            assert [await database.prune(Retention()) for _ in range(2)] == [0, 0]
            postgres.query("ALTER TABLE away RENAME TO rollup_1h")
            assert [await database.prune(Retention()) for _ in range(2)] == [0, 0]
        await database.close()
        told = [(line["event"], line["log_level"]) for line in logs if line["event"].startswith("retention")]
        warned, again, recovered = (
            ("retention_failed", "warning"),
            ("retention_failed", "debug"),
            ("retention_recovered", "info"),
        )
        assert told == [warned, again, recovered]

    asyncio.run(story())


# --- The same answers ------------------------------------------------------------------------------------------------


def fill(store: Store | PostgresStore) -> None:
    """Store a bit of everything."""
    store.open()
    for hub_id in ("pc-1", "pc-2", "pc-10"):
        for seq in range(1, 8):
            values: dict[str, Value] = {"counter": seq, "cpu.percent": seq / 2, "on": seq % 2 == 0, "name": f"n{seq}"}
            points = [(T0 + seq * 200_000 + step, values) for step in range(3)]
            store.commit(batch(readings(seq, points), hub_id=hub_id, received_ms=T0 + seq))
        store.commit(batch(one(12), hub_id=hub_id))
        store.commit(batch(gap(13, 8, 11), hub_id=hub_id, kind="events"))
        store.commit(batch(one(1, epoch=OTHER_EPOCH), hub_id=hub_id))

    def more(connection: Any) -> None:
        numbers = [add_hub(connection, SITE, name) for name in ("pc-1", "pc-2")]
        lines = [LogRecord(n, T0 + n, "warning" if n % 2 else "info", f"Event_{n}", {"N": n}) for n in range(6)]
        apply_logs(connection, numbers[0], Logs(EPOCH, lines), T0)
        for number in range(3):
            order = TaskOrder(f"{number:016x}", "ping", {"a": number}, T0 + number, T0 + 100)
            task_records.create(connection, order, "ann", numbers)

    store.change(more)


def answers(connection: Any) -> dict[str, Any]:
    """Return what the API would answer."""
    key, window = (SITE, "pc-1"), Window(2)
    first_hubs = api_queries.hubs(connection, None, HubFilter(hidden="all"), window)
    spans = Span(key, None, 0, 2**53), Span(key, "cpu.percent", 0, 2**53)
    first_readings = api_archive.readings(connection, None, spans[0], Window(10))
    first_log = api_queries.logs(connection, None, key, LineFilter(level="info"), window)
    tasks = api_orders.tasks(connection, None, api_orders.TaskFilter(site=SITE), window)
    return {
        "hubs": [first_hubs, api_queries.hubs(connection, None, HubFilter(), Window(2, first_hubs.next))],
        "found": api_queries.keys(connection, SITE, HubFilter(text="ERLIN/PC-1", hidden="all")),
        "hub": api_queries.hub(connection, None, key),
        "counts": api_queries.hub_counts(connection, None),
        "connections": api_queries.connection_log(connection, None, LogFilter(site=SITE), window),
        "readings": [first_readings, api_archive.readings(connection, None, spans[0], Window(99, first_readings.next))],
        "sums": [api_archive.sums(connection, None, spans[1], length, window) for length in (300_000, 3_600_000)],
        "values": api_archive.values(connection, None, key, window),
        "storage": api_archive.storage(connection, None, SITE, None, window),
        "log": [
            first_log,
            api_queries.logs(connection, None, key, LineFilter(), Window(2, first_log.next)),
            api_queries.logs(connection, None, key, LineFilter(text="event_", after=2), window),
        ],
        "newest line": api_queries.newest_line(connection, None, key),
        "groups": api_queries.groups(connection, None, window),
        "audit": api_queries.audit(connection, AuditFilter(), window),
        "tasks": [
            tasks,
            api_orders.tasks(connection, SITE, api_orders.TaskFilter(unended=True), Window(2, tasks.next)),
        ],
        "task": api_orders.task(connection, None, f"{1:016x}", window),
        "open": api_orders.tasks_open(connection, SITE),
        "settings": api_orders.history(connection, "fleet", "", window),
    }


def test_api_and_command_line_say_the_same_of_both_databases(
    store: PostgresStore,
    prepared_postgres: Postgres,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Who moves to PostgreSQL sees no difference."""
    small = Store(tmp_path / "cloud.db", FLEET)
    fill(small)
    fill(store)
    expected, found = small.change(answers), store.change(answers)
    for question, answer in expected.items():
        assert found[question] == answer, question
    small.close()
    shown = []
    for url in (f"sqlite:///{tmp_path / 'cloud.db'}", prepared_postgres.url):
        with open_archive(url) as archive:
            key = archive.hub_named("pc-2")
            kept = list(archive.readings(key, sensor="cpu", since_ms=T0 + 500_000))
            shown.append((list(archive.audit(verify=True)), kept, list(archive.newest())))
    assert shown[0] == shown[1]


def test_what_is_announced_is_heard_with_the_commit_only(store: PostgresStore, prepared_postgres: Postgres) -> None:  # noqa: F811
    """The other processes look into the database for what they hear of: it must be there."""
    from cloud.notices import CHANNEL
    from cloud.postgres_engine import connect

    async def story() -> list[str]:
        heard: asyncio.Queue[str] = asyncio.Queue()
        listening = await connect(prepared_postgres.url)
        await listening.add_listener(CHANNEL, lambda *said: heard.put_nowait(said[-1]))
        database = open_database(prepared_postgres.url, FLEET, announce=lambda b, o: [f"{o.messages} new", "x"])
        await database.open()
        await database.commit(batch(one(1), one(2)))
        found = [await asyncio.wait_for(heard.get(), 10) for _ in range(2)]
        await database.close()
        await listening.close()
        return found

    assert asyncio.run(story()) == ["2 new", "x"]
