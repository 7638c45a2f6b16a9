"""What presence keeps in the database, and that forgetting a hub leaves nothing of it behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import BigInteger, Column, Connection, Integer, Text, insert, select, text

from broker.messages import HubState
from cloud import presence_records as records
from cloud.batch import Batch, HubStateSeen, RefusedMessage
from cloud.fleet_schema import PRESENCE, SETTINGS_DOCUMENTS
from cloud.presence_events import Log
from cloud.schema import SCHEMA
from cloud.states import add_hub
from cloud.store import Store
from tests.cloud.presence_play import KEY, Play
from tests.cloud.stored import query
from tests.cloud.test_presence import cloned
from tests.cloud.wire import FLEET, SITE, T0, batch, gap, one, topic


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "cloud.db", FLEET)
    yield made
    made.close()


def test_record_comes_back_as_it_was_saved(store: Store) -> None:
    """A restart goes on where the process has ended, with everything that has led to a status."""
    play = cloned().message().heartbeat().run(120)
    play.born(1, hub_id="pc-2").connector(1, online=False).leaves(1, hub_id="pc-2")
    kept = list(play.saved.values())
    store.change(lambda connection: records.save(connection, kept[:1]))
    store.change(lambda connection: records.save(connection, kept))
    assert store.change(records.load) == kept
    assert query(store.file, "SELECT connection, reason FROM presence ORDER BY hub_no") == [
        play.shown(),
        play.shown("pc-2"),
    ]


def test_record_that_cannot_be_read_does_not_stop_the_cloud(store: Store) -> None:
    """Its hub is made known by its next word; every other one must not wait for that."""
    play = Play().born(1).born(1, hub_id="pc-2")
    store.change(lambda connection: records.save(connection, play.saved.values()))
    store.change(lambda connection: connection.execute(text("UPDATE presence SET record = '{' WHERE hub_no = 1")))
    assert [record.key for record in store.change(records.load)] == [(SITE, "pc-2")]


def test_connection_log_is_read_from_the_newest_back(store: Store) -> None:
    """A page begins where the last one has ended, even if more has happened meanwhile."""
    play = Play().connector(1)
    for session in range(1, 6):
        play.born(session).run(10).dies(session).run(10)
    play.born(1, hub_id="pc-2")
    entries = [command.entry for command in play.commands if isinstance(command, Log)]
    store.change(lambda connection: records.log(connection, entries))
    first = store.change(lambda connection: records.connection_log(connection, 1, None, 4))
    rest = store.change(lambda connection: records.connection_log(connection, 1, first[-1].entry_no, 100))
    assert [(line.connection, line.reason) for line in reversed([*first, *rest])] == play.history()
    assert first[0].evidence["word"] == "will"
    assert first[0].via == "c-1"


def test_hubs_are_listed_page_by_page_without_the_hidden_ones(store: Store) -> None:
    """Who scrolls through a fleet sees each hub once."""
    play = Play()
    for number in range(7):
        play.born(1, hub_id=f"pc-{number}").dies(1, hub_id=f"pc-{number}")
    play.run(10 * 86_400).born(2, hub_id="pc-3").born(2, hub_id="pc-5")
    store.change(lambda connection: records.save(connection, play.saved.values()))
    seen = store.change(lambda connection: records.page(connection, None, 10))
    assert [record.hub_id for _, record in seen] == ["pc-3", "pc-5"]
    names, after = [], None
    while found := store.change(lambda connection, after=after: records.page(connection, after, 3, with_hidden=True)):  # type: ignore[misc]
        names += [record.hub_id for _, record in found]
        after = found[-1][1].key
    assert names == [f"pc-{number}" for number in range(7)]


def rows_of(store: Store) -> dict[str, int]:
    """Return how many rows each table has."""
    return {table: query(store.file, f"SELECT count(*) FROM {table}")[0][0] for table in SCHEMA.tables}


def fill(store: Store, hub_id: str) -> None:
    """Give a hub something in every table that holds something of a hub."""
    for number in range(3):
        store.commit(batch(one(number + 1), hub_id=hub_id))
    store.commit(batch(gap(9, 4, 8), hub_id=hub_id, kind="events"))
    refused = RefusedMessage(topic(hub_id), "broken", b"secret of the hub", 17, T0)
    state = HubStateSeen(SITE, hub_id, HubState(online=True, epoch="9f2c4be1d07a6b53", session=1), T0)
    store.commit(Batch(refused=(refused,), hub_states=(state,)))
    play = Play().born(1, hub_id=hub_id)
    entries = [command.entry for command in play.commands if isinstance(command, Log)]

    def write(connection: Connection) -> None:
        number = add_hub(connection, SITE, hub_id)
        records.save(connection, play.saved.values())
        records.log(connection, entries)
        document = {"scope": "hub", "name": f"{SITE}/{hub_id}", "version": 1, "created_ms": 1, "created_by": "a"}
        connection.execute(insert(SETTINGS_DOCUMENTS).values(content="{}", **document))
        for table in SCHEMA.sorted_tables:
            if "hub_no" in table.c and not connection.execute(select(table).where(table.c.hub_no == number)).first():
                values = {column: some(column, number) for column in table.c}
                said = {
                    column: value for column, value in values.items() if value is not None
                }  # Numbers give themselves.
                connection.execute(insert(table).values(said))

    store.change(write)


def some(column: Column[Any], number: int) -> object:
    """Return a value that a column can hold, other for every hub; ids are left to the database."""
    if column.name == "hub_no":
        return number
    if column.primary_key and isinstance(column.type, Integer | BigInteger):
        return None
    return f"{column.name} {number}" if isinstance(column.type, Text) else number


def test_forgetting_a_hub_leaves_nothing_of_it_and_everything_of_others(store: Store) -> None:
    """ "Deleted" must be true, and only of the one that was meant."""
    fill(store, "pc-1")
    one_hub = rows_of(store)
    fill(store, "pc-10")
    assert sum(rows_of(store).values()) > sum(one_hub.values()) + 10
    number = query(store.file, "SELECT hub_no FROM hubs WHERE hub = 'pc-10'")[0][0]
    assert store.change(lambda connection: records.forget(connection, number))
    assert rows_of(store) == {**one_hub, "quarantine": 2}
    assert query(store.file, "SELECT topic, payload FROM quarantine ORDER BY refused_no") == [
        (topic("pc-1"), b"secret of the hub"),
        ("", b""),
    ]
    assert store.change(lambda connection: connection.scalars(select(PRESENCE.c.hub_no)).all()) == [1]
    assert store.change(lambda connection: records.forget(connection, number))
    assert store.open().quarantined == 2


def test_forgetting_a_hub_with_much_takes_several_steps(store: Store) -> None:
    """Acknowledgements to all other hubs must not wait for one deletion."""
    for number in range(5):
        store.commit(batch(one(number + 1)))
    steps = 0
    while not store.change(lambda connection: records.forget(connection, 1, 2)):
        steps += 1
    assert steps == 2
    assert query(store.file, "SELECT count(*) FROM messages") == [(0,)]


def test_hub_that_comes_back_after_it_was_forgotten_is_a_new_one(store: Store) -> None:
    """Forgetting is no ban; its new life begins with nothing."""
    fill(store, "pc-1")
    assert store.change(lambda connection: records.forget(connection, 1))
    store.commit(batch(one(1)))
    assert query(store.file, "SELECT messages, duplicates FROM streams") == [(1, 0)]
    assert KEY not in {record.key for record in store.change(records.load)}
