"""`hubline cloud copy`: PostgreSQL has all that SQLite had, the service goes on with it; what goes wrong leaves nothing."""

from __future__ import annotations

import re
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import BigInteger, Column, Double, Integer, LargeBinary, SmallInteger, insert, select, text

from cloud.batch import Batch, RefusedMessage, Stream
from cloud.cli import cloud
from cloud.copying import copy_database
from cloud.nul import escape_nul, unescape_nul
from cloud.schema import writer_engine
from cloud.store import Store
from cloud.tables import SCHEMA
from config.errors import HublineError
from tests.cloud.api_desk import filled
from tests.cloud.schemas import connected, in_postgres, older_file
from tests.cloud.stored import query
from tests.cloud.wire import EPOCH, FLEET, OTHER_EPOCH, SITE, T0, batch, one
from tests.fleet import HUBLINE, until
from tests.postgres import (  # noqa: F401
    PASSWORD,
    Postgres,
    postgres,
    postgres_server,
    prepared_postgres,
    prepared_template,
)

ROOT = Path(__file__).parents[2]
WEEK_MS = 604_800_000
EVIL = "a\0b\x1a0c\x1a"
"""NUL, which PostgreSQL refuses in text, and what stands for it there."""


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a database in which every table has rows, messages of several weeks and of a wrong clock among them."""
    made = tmp_path_factory.mktemp("content") / "c.db"
    made.write_bytes(filled())
    store = Store(made, FLEET)
    store.commit(batch(one(20), hub_id="pc-2", received_ms=T0 + WEEK_MS))
    store.commit(batch(one(21), hub_id="pc-2", received_ms=5))
    store.commit(Batch(refused=(RefusedMessage(EVIL, EVIL, b"\0\xff", 2, T0, (Stream(SITE, "pc-2", EPOCH), 22)),)))
    store.close()
    engine = writer_engine(made)
    with engine.connect() as connection, connection.begin():
        for table in SCHEMA.sorted_tables:
            if connection.scalar(select(text("count(*)")).select_from(table)) == 0:
                connection.execute(insert(table).values({column.name: _made_up(column) for column in table.columns}))
    engine.dispose()
    return made.read_bytes()


@pytest.fixture
def file(tmp_path: Path, content: bytes) -> Path:
    """Return a database of this test's own."""
    made = tmp_path / "c.db"
    made.write_bytes(content)
    return made


def _made_up(column: Column[Any]) -> object:
    match column.type:
        case BigInteger() | SmallInteger() | Integer():
            return 7
        case Double():
            return 2.0
        case LargeBinary():
            return b"\0"
        case _:
            return EVIL


def copy(file: Path, url: str, fleet: str = FLEET) -> Result:
    """Run `hubline cloud copy` in this process."""
    return CliRunner().invoke(cloud, ["copy", "-c", str(settings_of(file, fleet)), "--to", url])


def settings_of(file: Path, fleet: str = FLEET) -> Path:
    """Write the settings of a service with this database, and return their file."""
    made = file.with_name("cloud.toml")
    identity = f'[identity]\nfleet = "{fleet}"\nsite = "-"\nname = "cloud-1"\nca = "a"\ncert = "b"\nkey = "c"\n'
    made.write_text(f'{identity}[cloud]\ndatabase = "sqlite:///{file.name}"\n')
    return made


def error_of(result: Result) -> str:
    """Return the one line that a person would see, in which no password may be."""
    assert isinstance(result.exception, HublineError), result.exception
    line = str(result.exception)
    assert "\n" not in line
    assert PASSWORD not in line
    assert "p%40ss" not in line
    return line


def tables_of(database: Postgres) -> list[tuple[Any, ...]]:
    return database.query("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")


def rows_of(file: Path, database: Postgres, name: str) -> tuple[list[str], list[str]]:
    """Return the rows of a table on both sides."""
    columns = ", ".join(SCHEMA.tables[name].columns.keys())
    read = f"SELECT {columns} FROM {name}"
    theirs = [
        tuple(unescape_nul(value) if isinstance(value, str) else value for value in row) for row in database.query(read)
    ]
    return sorted(map(repr, query(file, read))), sorted(map(repr, theirs))


# --- Everything ------------------------------------------------------------------------------------------------------


def test_copy_holds_every_row_of_every_table(file: Path, postgres: Postgres) -> None:  # noqa: F811
    """Nobody would miss a forgotten table before the day it is needed."""
    result = copy(file, postgres.url)
    assert result.exit_code == 0, result.exception
    assert "they agree" in result.output
    for table in SCHEMA.sorted_tables:
        ours, theirs = rows_of(file, postgres, table.name)
        assert ours, f"the test has no rows for {table.name}"
        assert theirs == ours, table.name
    parts = "SELECT DISTINCT tableoid::regclass::text FROM messages"
    assert sorted(name for (name,) in postgres.query(parts)) == ["messages_w0", "messages_w2916", "messages_w2917"]


def test_numbers_go_on_where_they_ended(file: Path, postgres: Postgres) -> None:  # noqa: F811
    """Else the first new hub would take the place of an old one."""
    assert copy(file, postgres.url).exit_code == 0
    for table in SCHEMA.sorted_tables:
        for column in table.primary_key:
            if column.identity is None:
                continue
            highest = query(file, f"SELECT max({column.name}) FROM {table.name}")[0][0]
            given = f"SELECT nextval(pg_get_serial_sequence('{table.name}', '{column.name}'))"
            assert postgres.query(given) == [(highest + 1,)], table.name


def test_service_goes_on_with_the_copy_and_refuses_late_repetitions(file: Path, postgres: Postgres) -> None:  # noqa: F811
    """A hub that was cut off during the move sends everything again; it must be stored once."""
    from cloud.postgres_store import PostgresStore

    assert copy(file, postgres.url).exit_code == 0
    store = PostgresStore(postgres.url, FLEET)
    try:
        outcome = store.commit(batch(one(1, 99), one(20, 99), one(23), hub_id="pc-2"))
        assert (outcome.messages, outcome.duplicates) == (1, 2)
        assert store.commit(batch(one(1, 99, epoch=OTHER_EPOCH), hub_id="pc-2")).duplicates == 1
    finally:
        store.close()
    [(coverage,)] = postgres.query(
        "SELECT array_agg(ARRAY[first_seq, last_seq] ORDER BY first_seq) FROM coverage JOIN streams USING (stream_no)"
        " JOIN hubs USING (hub_no) WHERE hub = 'pc-2' AND streams.epoch = $1",
        EPOCH,
    )
    assert coverage == [[1, 1], [4, 5], [20, 23]]


def test_prepared_but_empty_database_is_filled(file: Path, prepared_postgres: Postgres) -> None:  # noqa: F811
    """Somebody has run `hubline cloud migrate` there first."""
    assert copy(file, prepared_postgres.url).exit_code == 0
    assert rows_of(file, prepared_postgres, "messages")[0] == rows_of(file, prepared_postgres, "messages")[1]


# --- Nothing ---------------------------------------------------------------------------------------------------------


def test_copy_that_lacks_a_row_is_found_and_nothing_of_it_stays(file: Path, prepared_postgres: Postgres) -> None:  # noqa: F811
    """Trust in the new database, and the end of the old one, rest on this."""
    lose = (
        "CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF NEW.seq = 20 THEN RETURN NULL; END IF; RETURN NEW; END $$"
    )
    in_postgres(
        prepared_postgres,
        lambda connection: connection.execute(text(lose)),
        lambda connection: connection.execute(
            text("CREATE TRIGGER lose BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION lose()")
        ),
    )
    assert re.search("not complete: messages has [0-9]+ rows instead of", error_of(copy(file, prepared_postgres.url)))
    assert prepared_postgres.query("SELECT count(*) FROM messages") == [(0,)]


@pytest.mark.parametrize(
    ("table", "change", "said"),
    [
        ("messages", "NEW.points := NEW.points + 1", "the messages, points and bytes of stream 1 differ"),
        ("coverage", "NEW.last_seq := NEW.last_seq + 1", "the coverage of stream 1 differ"),
        ("streams", "NEW.duplicates := 9", "the sums of stream 1 differ"),
    ],
)
def test_copy_with_other_sums_is_found(
    file: Path,
    prepared_postgres: Postgres,  # noqa: F811
    table: str,
    change: str,
    said: str,
) -> None:
    """As many rows, but not the same."""
    alter = (
        f"CREATE FUNCTION alter_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {change}; RETURN NEW; END $$",
        f"CREATE TRIGGER alter_row BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION alter_row()",
    )
    in_postgres(
        prepared_postgres,
        *(lambda connection, sql=sql: connection.exec_driver_sql(sql) for sql in alter),
    )
    assert said in error_of(copy(file, prepared_postgres.url))
    assert prepared_postgres.query("SELECT count(*) FROM streams") == [(0,)]


def test_interrupted_copy_leaves_an_empty_database(file: Path, postgres: Postgres) -> None:  # noqa: F811
    """Whoever tries again begins anew, with nothing half in the way."""
    connection = sqlite3.connect(file)
    connection.execute("UPDATE hubs SET session = 'not a number'")
    connection.commit()
    connection.close()
    assert "hubs" in error_of(copy(file, postgres.url))
    assert tables_of(postgres) == []


def test_copy_that_is_interrupted_in_the_middle_of_a_table_leaves_an_empty_database(
    file: Path,
    postgres: Postgres,  # noqa: F811
) -> None:
    """Ctrl-C may come while the driver asks for the next row."""

    def seen(table: str, rows: int, total: int) -> None:
        if table == "messages" and rows:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_database(file, FLEET, postgres.url, seen)
    assert tables_of(postgres) == []


def test_ctrl_c_while_the_server_works_ends_with_one_line(file: Path, prepared_postgres: Postgres) -> None:  # noqa: F811
    """A person who has thought better of it sees no traceback, and a script sees that it was a person."""
    command = [*HUBLINE, "cloud", "copy", "-c", str(settings_of(file)), "--to", prepared_postgres.url]
    blocked = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with connected(prepared_postgres) as other, other.begin():
        other.exec_driver_sql("LOCK TABLE hubs")
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            until("it waits for the server", lambda: bool(prepared_postgres.query(blocked)))
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.strip()) == (130, "hubline: interrupted")
    assert prepared_postgres.query("SELECT count(*) FROM hubs") == [(0,)]


def test_running_service_is_in_the_way_and_stays_unharmed(file: Path, postgres: Postgres) -> None:  # noqa: F811
    """What it acknowledges during the copy would be missing in it."""
    store = Store(file, FLEET)
    store.open()
    try:
        assert "is in use: stop the cloud service" in error_of(copy(file, postgres.url))
        assert store.commit(batch(one(30), hub_id="pc-2")).messages == 1
    finally:
        store.close()
    assert tables_of(postgres) == []


def test_service_cannot_acknowledge_while_a_copy_is_made(file: Path, postgres: Postgres) -> None:  # noqa: F811
    """A service manager may start it again too early."""
    refused: list[str] = []

    def seen(table: str, rows: int, total: int) -> None:
        if table == "messages" and rows == 0:
            store = Store(file, FLEET, busy_timeout_s=0)
            with pytest.raises(HublineError, match="locked") as failure:
                store.commit(batch(one(30), hub_id="pc-2"))
            store.close()
            refused.append(str(failure.value))

    copy_database(file, FLEET, postgres.url, seen)
    assert len(refused) == 1
    store = Store(file, FLEET)
    assert store.commit(batch(one(30), hub_id="pc-2")).messages == 1
    store.close()


def test_database_that_is_not_empty_is_refused(file: Path, postgres: Postgres) -> None:  # noqa: F811
    """Two fleets' rows in one table can't be told apart again."""
    assert copy(file, postgres.url).exit_code == 0
    before = postgres.query("SELECT count(*) FROM messages")
    assert "is not empty: there are rows in" in error_of(copy(file, postgres.url))
    assert postgres.query("SELECT count(*) FROM messages") == before


def test_what_cannot_be_copied_is_named(file: Path, tmp_path: Path, postgres: Postgres) -> None:  # noqa: F811
    """Each with what to do."""
    assert "holds the fleet acme, not other" in error_of(copy(file, postgres.url, "other"))
    older = tmp_path / "older.db"
    older_file(older, 2, file)
    assert "run `hubline cloud migrate -c" in error_of(copy(older, postgres.url))
    assert "no such database to copy" in error_of(copy(tmp_path / "none.db", postgres.url))
    assert "there is no such database on the server" in error_of(copy(file, postgres.url + "x"))
    assert "--to = 'sqlite:///other.db': must be a URL like" in error_of(copy(file, "sqlite:///other.db"))
    in_postgres(postgres, lambda connection: connection.exec_driver_sql("CREATE TABLE mine (x int)"))
    assert "not one of Hubline's cloud" in error_of(copy(file, postgres.url))


def test_damaged_file_is_named_and_not_the_new_database(file: Path, postgres: Postgres) -> None:  # noqa: F811
    """Whoever reads the line must look for the damage where it is."""
    page, content = 4096, bytearray(file.read_bytes())
    with closing(sqlite3.connect(file)) as connection:
        [(root,)] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'messages'")
    content[(root - 1) * page : root * page] = b"\xff" * page
    file.write_bytes(content)
    said = error_of(copy(file, postgres.url))
    assert str(file) in said
    assert "malformed" in said
    assert "postgresql" not in said


# --- NUL -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["", "abc", "a\0b", "\0\0", "\x1a", "\x1a0", "\x1a1\0", EVIL, "ü\x1a\0€"])
def test_text_with_nul_comes_back_as_it_was(written: str) -> None:
    """A hub may send any text, and has to get the same back."""
    assert "\0" not in escape_nul(written)
    assert unescape_nul(escape_nul(written)) == written


def test_different_texts_stay_different() -> None:
    """Else two sensors would become one."""
    texts = ["\0", "\x1a0", "\x1a", "\x1a1", "0", "1", "\x1a\0"]
    assert len({escape_nul(each) for each in texts}) == len(texts)
