"""Every way to the newest schema leads to the same tables, with all that was in them; whoever is too old is told so."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import text

from cloud.cli import cloud
from cloud.migrating import Found, found_in, lock_schema, make_newest, step
from cloud.partitions import WEEK_MS, ensure_partitions, ensure_weeks, partitions
from cloud.schema import prepare, writer_engine
from cloud.store import Store
from cloud.tables import SCHEMA, SCHEMA_VERSION
from config.errors import SettingsError, StorageError
from tests.cloud.api_desk import filled
from tests.cloud.schemas import (
    connected,
    in_postgres,
    older_file,
    older_postgres,
    shape_of_postgres,
    shape_of_sqlite,
)
from tests.cloud.stored import content_of, query
from tests.cloud.wire import FLEET, SITE, T0, batch, one
from tests.fleet import until
from tests.postgres import PASSWORD, Postgres, postgres, postgres_server  # noqa: F401

ADD_MESSAGES = """
    INSERT INTO messages (stream_no, seq, kind, sent_ms, received_ms, points, codec, payload)
    SELECT 1, n, 'readings', 1, n * CAST(100000000 AS bigint), 1, 0, 'x' FROM generate_series(1, 30) n"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cloud.db"


def settings_file(folder: Path, url: str, fleet: str = FLEET) -> Path:
    made = folder / "cloud.toml"
    identity = f'[identity]\nfleet = "{fleet}"\nsite = "-"\nname = "cloud-1"\nca = "a"\ncert = "b"\nkey = "c"\n'
    made.write_text(f'{identity}[cloud]\ndatabase = "{url}"\n')
    return made


def migrate(folder: Path, url: str, fleet: str = FLEET) -> Result:
    """Run `hubline cloud migrate` in this process."""
    return CliRunner().invoke(cloud, ["migrate", "-c", str(settings_file(folder, url, fleet))])


def fresh(file: Path) -> None:
    store = Store(file, FLEET)
    store.open()
    store.close()


def versions(file: Path) -> list[tuple[str]]:
    return query(file, "SELECT value FROM meta WHERE name = 'schema_version' UNION ALL SELECT * FROM alembic_version")


NEWEST = [(str(SCHEMA_VERSION),), (f"{SCHEMA_VERSION:04d}",)]


# --- Both ways -------------------------------------------------------------------------------------------------------


def test_new_file_has_the_tables_that_all_steps_together_make(tmp_path: Path, file: Path) -> None:
    """Else the second database of a user behaves unlike the first, and nobody finds out why."""
    fresh(file)
    stepwise = tmp_path / "stepwise.db"
    engine = writer_engine(stepwise)
    with engine.connect() as connection:
        found = Found(stepwise, FLEET, 0)
        while found.version < SCHEMA_VERSION:
            with connection.begin():
                found = step(connection, found)
    engine.dispose()
    assert shape_of_sqlite(stepwise) == shape_of_sqlite(file)
    assert query(stepwise, "SELECT * FROM alembic_version") == query(file, "SELECT * FROM alembic_version")


@pytest.mark.parametrize("version", [1, 2])
def test_file_from_before_grows_into_the_tables_of_a_new_one(tmp_path: Path, file: Path, version: int) -> None:
    """What an older Hubline really made, not what our first step makes today, is where users come from."""
    source = tmp_path / "filled.db"
    source.write_bytes(filled())
    older_file(file, version, source)
    before = content_of(file)
    fresh(file)
    new = tmp_path / "new.db"
    fresh(new)
    assert shape_of_sqlite(file) == shape_of_sqlite(new)
    assert versions(file) == NEWEST
    assert content_of(file) == before


@pytest.mark.parametrize("version", [1, 2])
def test_service_goes_on_with_a_file_that_has_grown(tmp_path: Path, file: Path, version: int) -> None:
    """A late repetition is still refused, and what is new is stored."""
    source = tmp_path / "filled.db"
    source.write_bytes(filled())
    older_file(file, version, source)
    store = Store(file, FLEET)
    assert store.commit(batch(one(1, 99), one(9), hub_id="pc-2")).duplicates == 1
    store.close()
    assert (SITE, "pc-2", "9f2c4be1d07a6b53", 9) in content_of(file).messages
    assert query(file, "SELECT count(*) FROM messages WHERE skew_ms IS NOT NULL") == [(0,)]


def test_file_is_left_as_it_was_when_a_step_fails(tmp_path: Path, file: Path) -> None:
    """A full disk in the middle of it must not leave half a schema, which nothing would ever mend."""
    source = tmp_path / "filled.db"
    source.write_bytes(filled())
    older_file(file, 1, source)
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE tokens (mine TEXT)")
    connection.commit()
    connection.close()
    before = shape_of_sqlite(file)
    store = Store(file, FLEET)
    with pytest.raises(StorageError, match="tokens already exists"):
        store.open()
    store.close()
    assert shape_of_sqlite(file) == before
    assert query(file, "SELECT value FROM meta WHERE name = 'schema_version'") == [("1",)]


def test_new_postgresql_has_the_tables_that_all_steps_together_make(postgres: Postgres) -> None:  # noqa: F811
    """As for SQLite: types, keys, indexes, storage, collation and sequences."""
    in_postgres(postgres, lambda connection: prepare(connection, "test", FLEET))
    at_once = shape_of_postgres(postgres)
    rows = postgres.query("SELECT * FROM meta ORDER BY name"), postgres.query("SELECT * FROM alembic_version")
    in_postgres(
        postgres,
        lambda connection: connection.execute(text("DROP SCHEMA public CASCADE")),
        lambda connection: connection.execute(text("CREATE SCHEMA public")),
        lambda connection: older_postgres(connection, SCHEMA_VERSION),
    )
    assert shape_of_postgres(postgres) == at_once
    assert (postgres.query("SELECT * FROM meta ORDER BY name"), postgres.query("SELECT * FROM alembic_version")) == rows


def test_postgresql_has_every_table_and_column_that_the_statements_name(postgres: Postgres) -> None:  # noqa: F811
    """The table in parts is written by hand: it must not fall behind."""
    in_postgres(postgres, lambda connection: prepare(connection, "test", FLEET))
    columns = "SELECT column_name FROM information_schema.columns WHERE table_name = $1 ORDER BY ordinal_position"
    for table in SCHEMA.sorted_tables:
        assert [name for (name,) in postgres.query(columns, table.name)] == [column.name for column in table.columns]


# --- PostgreSQL ------------------------------------------------------------------------------------------------------


def test_older_postgresql_is_refused_by_the_service_and_brought_up_to_date_by_migrate(
    postgres: Postgres,  # noqa: F811
    tmp_path: Path,
) -> None:
    """With several processes none may change tables under the others: a person chooses the moment."""
    in_postgres(
        postgres,
        lambda connection: older_postgres(connection, 1),
        lambda connection: connection.execute(text(ADD_MESSAGES)),
    )
    with pytest.raises(SettingsError, match=r"was written by an older Hubline.*run `hubline cloud migrate -c"):
        in_postgres(postgres, lambda connection: prepare(connection, "test", FLEET))
    result = migrate(tmp_path, postgres.url)
    assert result.output.splitlines() == ["schema 1 -> 2", "schema 2 -> 3", "done"]
    in_postgres(postgres, lambda connection: prepare(connection, "test", FLEET))
    spread = dict(postgres.query("SELECT tableoid::regclass::text, count(*) FROM messages GROUP BY 1"))
    assert spread == {"messages_w0": 6, "messages_w1": 6, "messages_w2": 6, "messages_w3": 6, "messages_w4": 6}
    in_postgres(postgres, lambda connection: connection.execute(text(ADD_MESSAGES.replace("SELECT 1,", "SELECT 2,"))))
    assert postgres.query("SELECT count(DISTINCT message_no), max(message_no) FROM messages") == [(60, 60)]


def test_steps_of_an_older_postgresql_end_in_the_tables_of_a_new_one(postgres: Postgres, tmp_path: Path) -> None:  # noqa: F811
    """Moving the messages must leave nothing behind."""
    in_postgres(postgres, lambda connection: make_newest(connection, FLEET), lambda c: ensure_weeks(c, range(5)))
    expected = shape_of_postgres(postgres)
    in_postgres(
        postgres,
        lambda connection: connection.execute(text("DROP SCHEMA public CASCADE")),
        lambda connection: connection.execute(text("CREATE SCHEMA public")),
        lambda connection: older_postgres(connection, 2),
        lambda connection: connection.execute(text(ADD_MESSAGES)),
    )
    assert migrate(tmp_path, postgres.url).exit_code == 0
    assert shape_of_postgres(postgres) == expected


def test_migrate_makes_the_tables_of_an_empty_postgresql_and_then_has_nothing_to_do(
    postgres: Postgres,  # noqa: F811
    tmp_path: Path,
) -> None:
    """It may stand in any script."""
    assert "in an empty database" in migrate(tmp_path, postgres.url).output
    assert migrate(tmp_path, postgres.url).output.startswith("nothing to do: the schema is 3")


def test_several_migrates_at_once_take_each_step_once(postgres: Postgres, tmp_path: Path) -> None:  # noqa: F811
    """Every machine's deployment runs the same script."""
    in_postgres(postgres, lambda connection: older_postgres(connection, 1))
    made = settings_file(tmp_path, postgres.url)
    command = [sys.executable, "-c", "from config.cli import main; main()", "cloud", "migrate", "-c", str(made)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said = [process.communicate(timeout=60) for process in running]
    assert [error for _, error in said] == ["", "", ""]
    assert sorted(line for out, _ in said for line in out.splitlines() if "->" in line) == [
        "schema 1 -> 2",
        "schema 2 -> 3",
    ]
    in_postgres(postgres, lambda connection: prepare(connection, "test", FLEET))


def test_migrate_waits_for_whoever_is_at_it(postgres: Postgres, tmp_path: Path) -> None:  # noqa: F811
    """Two that change tables at once would meet each other's locks."""
    in_postgres(postgres, lambda connection: older_postgres(connection, 2))
    said: list[str] = []
    other = threading.Thread(target=lambda: said.append(migrate(tmp_path, postgres.url).output))
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with connected(postgres) as connection, connection.begin():
        lock_schema(connection)
        other.start()
        until("the other one waits", lambda: postgres.query(waiting) == [(1,)], 20)
        older = found_in(connection, "test")
        assert older is not None
        step(connection, older)
    other.join(60)
    assert said == ["nothing to do: the schema is 3, the newest that this Hubline knows\n"]


def test_several_processes_prepare_an_empty_postgresql_at_once(postgres: Postgres) -> None:  # noqa: F811
    """All workers of a new fleet start together."""
    failed: list[BaseException] = []
    ready = threading.Barrier(4)

    def start() -> None:
        try:
            with connected(postgres) as connection:
                with connection.begin():
                    connection.execute(text("SELECT 1"))
                ready.wait(20)
                with connection.begin():
                    prepare(connection, "test", FLEET)
                with connection.begin():
                    ensure_partitions(connection, T0)
        except BaseException as exc:
            failed.append(exc)
            raise

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert in_postgres(postgres, partitions) == [[T0 // WEEK_MS + ahead for ahead in range(3)]]


# --- Databases that are none of ours ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        (
            "UPDATE meta SET value = '4' WHERE name = 'schema_version'",
            "was written by a newer Hubline: its schema is 4",
        ),
        (
            "UPDATE meta SET value = '0' WHERE name = 'schema_version'",
            "was written by an older Hubline: its schema is 0",
        ),
        ("UPDATE meta SET value = 'other' WHERE name = 'fleet'", "holds the fleet other, not acme"),
        ("DROP TABLE meta", "not one of Hubline's cloud"),
        ("ALTER TABLE meta RENAME value TO worth", "not one of Hubline's cloud"),
    ],
)
def test_database_that_is_not_ours_is_named_and_left_alone(
    postgres: Postgres,  # noqa: F811
    tmp_path: Path,
    file: Path,
    sql: str,
    said: str,
) -> None:
    """An operator who mixes up databases or versions gets a line, without a password in it."""
    fresh(file)
    connection = sqlite3.connect(file)
    connection.execute(sql)
    connection.commit()
    connection.close()
    in_postgres(postgres, lambda made: prepare(made, "test", FLEET), lambda made: made.execute(text(sql)))
    for url in (f"sqlite:///{file}", postgres.url):
        result = migrate(tmp_path, url)
        assert isinstance(result.exception, SettingsError)
        assert said in str(result.exception)
        assert PASSWORD not in str(result.exception)
        assert "p%40ss" not in str(result.exception)


def test_migrate_says_where_a_file_is_missing_and_makes_none(tmp_path: Path, file: Path) -> None:
    """A file that an administrator's command has made may belong to the wrong user."""
    result = migrate(tmp_path, f"sqlite:///{file}")
    assert "there is no such database yet" in str(result.exception)
    assert not file.exists()


def test_migrate_brings_an_older_file_up_to_date(tmp_path: Path, file: Path) -> None:
    """For those who want to see it happen; the service would do the same."""
    source = tmp_path / "filled.db"
    source.write_bytes(filled())
    older_file(file, 1, source)
    assert migrate(tmp_path, f"sqlite:///{file}").output.splitlines() == ["schema 1 -> 2", "schema 2 -> 3", "done"]
    assert versions(file) == NEWEST


# --- Parts -----------------------------------------------------------------------------------------------------------


def test_message_without_a_part_moves_into_it_when_it_is_made(postgres: Postgres) -> None:  # noqa: F811
    """A clock that was wrong for an hour must not cost a message, nor block the part of its week for ever."""
    add = text(ADD_MESSAGES)
    made, again = in_postgres(
        postgres,
        lambda connection: prepare(connection, "test", FLEET),
        lambda connection: connection.execute(add),
        lambda connection: ensure_weeks(connection, [2, 1]),
        lambda connection: ensure_weeks(connection, [1, 2]),
    )[2:]
    assert (made, again) == (["messages_w1", "messages_w2"], [])
    spread = "SELECT tableoid::regclass::text, min(seq), max(seq) FROM messages GROUP BY 1 ORDER BY 1"
    assert postgres.query(spread) == [("messages_default", 1, 30), ("messages_w1", 7, 12), ("messages_w2", 13, 18)]


def test_start_with_nothing_to_do_does_not_import_alembic(tmp_path: Path) -> None:
    """It would take longer than all the rest of the database's part in a start."""
    code = (
        "import sys; from pathlib import Path; from cloud.store import Store\n"
        f"for _ in range(2): store = Store(Path({str(tmp_path / 'c.db')!r}), 'acme'); store.open(); store.close()\n"
        "assert not {'alembic', 'asyncpg'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
