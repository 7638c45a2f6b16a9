"""Settings in a real database: versions, conflicts, origins, and which word of a hub is its newest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select, update

from broker.control import Reported, SettingsReport
from cloud import desired_groups, desired_records, following_records, presence_records
from cloud.desired import Connected, Desired, KnownHub, Save
from cloud.desired_records import VersionConflictError
from cloud.fleet_schema import REPORTED, SETTINGS_DOCUMENTS, SETTINGS_OF_HUBS
from cloud.schema import HUBS, SCHEMA, STREAMS, writer_engine
from cloud.states import add_hub
from config import limits, remote
from config.errors import SettingsError

PC = ("berlin", "pc-1")
DEBUG: dict[str, Any] = {"log": {"level": "debug"}}
ERROR: dict[str, Any] = {"log": {"level": "error"}}
OLD, NEW = "0" * 16, "f" * 16


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    """Return a connection to a database with one hub, berlin/pc-1, in a transaction."""
    engine = writer_engine(tmp_path / "cloud.db")
    with engine.begin() as opened:
        SCHEMA.create_all(opened)
        add_hub(opened, *PC)
        yield opened
    engine.dispose()


def said(settings: SettingsReport | None) -> Reported:
    return Reported("1.0", "pc", "Linux", ["192.0.2.1"], "continuous", settings=settings)


def report(version: int, content: dict[str, Any], state: Any = "applied", reason: str | None = None) -> SettingsReport:
    return SettingsReport(version, remote.hash_of(content), state, reason)


def save(connection: Connection, version: int, content: dict[str, Any]) -> None:
    desired_records.save(connection, Save(PC, version, remote.hash_of(content), content), 1000 + version)


def put(connection: Connection, scope: Any, name: str, content: dict[str, Any], expected: int | None = None) -> int:
    return desired_records.put_document(connection, scope, name, content, "ann", 77, expected).version


# --- Documents -----------------------------------------------------------------------------------------------------


def test_every_version_of_a_document_is_kept_with_who_and_when(connection: Connection) -> None:
    """Who set this, and what was there before?"""
    assert desired_records.document(connection, "fleet", "").version == 0
    assert put(connection, "fleet", "", DEBUG) == 1
    assert put(connection, "fleet", "", ERROR) == 2
    assert put(connection, "fleet", "", ERROR) == 2  # The same again is no change.
    assert put(connection, "site", "berlin", {}) == 1
    newest, first = desired_records.history(connection, "fleet", "")
    assert (newest.version, newest.content, newest.created_by, newest.created_ms) == (2, ERROR, "ann", 77)
    assert first.changed.content == DEBUG
    assert desired_records.history(connection, "fleet", "", before=2, limit=5) == [first]
    assert desired_records.document(connection, "fleet", "", 1) == first
    assert [(each.scope, each.version) for each in desired_records.documents(connection)] == [("fleet", 2), ("site", 1)]


def test_two_writers_do_not_overwrite_each_other_unseen(connection: Connection) -> None:
    """Both have the console open."""
    assert put(connection, "fleet", "", DEBUG, 0) == 1
    with pytest.raises(VersionConflictError, match="of version 1 by now, not 0: read them again") as conflict:
        put(connection, "fleet", "", ERROR, 0)
    assert conflict.value.current == 1
    assert put(connection, "fleet", "", ERROR, 1) == 2


@pytest.mark.parametrize(
    ("scope", "name", "content", "words"),
    [
        ("fleet", "acme", DEBUG, "name = 'acme': must be empty"),
        ("site", "", DEBUG, "name: must be the name of a site|name = ''"),
        ("site", "berlin/pc-1", DEBUG, "must be the name of a site"),
        ("hub", "berlin", DEBUG, "must be SITE/HUB"),
        ("hub", "berlin/pc-1/x", DEBUG, "must be SITE/HUB"),
        ("hub", "berlin/'; DROP TABLE hubs", DEBUG, "must be SITE/HUB"),
        ("planet", "x", DEBUG, "scope = 'planet': must be one of fleet, site, group, hub"),
        ("fleet", "", {"log": {"level": "loud"}}, "log.level = 'loud': must be one of"),
        ("fleet", "", {"identity": {"name": "x"}}, "only be set in the hub's own file"),
    ],
)
def test_what_can_not_be_desired_is_not_stored(
    connection: Connection, scope: str, name: str, content: dict[str, Any], words: str
) -> None:
    """A wrong document would be refused by every hub in turn."""
    with pytest.raises(SettingsError, match=words):
        put(connection, scope, name, content)
    assert desired_records.documents(connection) == []


def test_the_history_of_a_document_is_bounded(connection: Connection) -> None:
    """A script that puts settings every minute must not fill the database."""
    row = {"scope": "fleet", "name": "", "created_ms": 1, "created_by": "ann", "content": "{}"}
    rows = [{**row, "version": version} for version in range(1, limits.SETTINGS_HISTORY_MAX + 1)]
    connection.execute(insert(SETTINGS_DOCUMENTS), rows)
    put(connection, "fleet", "", DEBUG)
    versions = connection.scalars(select(SETTINGS_DOCUMENTS.c.version).order_by(SETTINGS_DOCUMENTS.c.version)).all()
    assert versions == list(range(2, limits.SETTINGS_HISTORY_MAX + 2))


def test_all_documents_that_can_hold_for_a_hub_fit_into_a_message() -> None:
    """Else a hub in many groups would never get its settings."""
    documents = limits.SETTINGS_GROUPS_MAX + 3
    assert documents * limits.SETTINGS_DOCUMENT_MAX_BYTES + 1024 <= limits.MESSAGE_MAX_BYTES


# --- Groups --------------------------------------------------------------------------------------------------------


def test_groups_are_filled_and_emptied_and_say_who_is_new(connection: Connection) -> None:
    """Only hubs that really changed their groups concern the machine."""
    other = add_hub(connection, "berlin", "pc-2")
    assert desired_groups.add_to_group(connection, "lab", [1, other]) == [1, other]
    assert desired_groups.add_to_group(connection, "lab", [1]) == []
    assert desired_groups.add_to_group(connection, "art", [1]) == [1]
    assert desired_groups.groups(connection) == {"art": 1, "lab": 2}
    assert desired_groups.groups_of(connection, 1) == ("art", "lab")
    assert desired_groups.members(connection, "lab") == [1, other]
    assert desired_groups.all_groups(connection) == {1: ("art", "lab"), other: ("lab",)}
    assert desired_groups.remove_from_group(connection, "lab", [1, 99]) == [1]
    with pytest.raises(SettingsError, match="group = 'A B'"):
        desired_groups.add_to_group(connection, "A B", [1])
    for number in range(1, limits.SETTINGS_GROUPS_MAX):
        desired_groups.add_to_group(connection, f"g{number}", [other])
    with pytest.raises(SettingsError, match=f"can be in {limits.SETTINGS_GROUPS_MAX} groups"):
        desired_groups.add_to_group(connection, "one-too-many", [other])


# --- What holds for a hub ------------------------------------------------------------------------------------------


def test_each_value_says_from_which_document_it_comes(connection: Connection) -> None:
    """ "Why does this hub do that?" is answered by one look."""
    put(connection, "fleet", "", {"log": {"level": "info", "format": "json"}, "failover": {"outage_s": 60.0}})
    put(connection, "site", "berlin", DEBUG)
    put(connection, "group", "lab", {"failback": {"stable_s": 9.0}, "failover": {"outage_s": None}})
    put(connection, "hub", "berlin/pc-1", {"sensors": {"cpu": {"interval_s": 5.0}}})
    desired_groups.add_to_group(connection, "lab", [1])
    effective = desired_records.effective(connection, 1)
    assert effective.content == {
        "log": {"level": "debug", "format": "json"},
        "failback": {"stable_s": 9.0},
        "sensors": {"cpu": {"interval_s": 5.0}},
    }
    assert effective.hash == remote.hash_of(effective.content)
    assert effective.origins == {
        "log.level": ("site", "berlin"),
        "log.format": ("fleet", ""),
        "failback.stable_s": ("group", "lab"),
        "sensors.cpu.interval_s": ("hub", "berlin/pc-1"),
    }


def test_the_machine_finds_after_a_restart_what_was_committed(connection: Connection) -> None:
    """Documents, groups, versions and reports are all that it needs."""
    put(connection, "fleet", "", DEBUG)
    put(connection, "fleet", "", ERROR)
    desired_groups.add_to_group(connection, "lab", [1])
    save(connection, 4, DEBUG)
    told = report(4, DEBUG)
    assert desired_records.apply_reported(connection, 1, said(told), OLD, 1, 5)
    add_hub(connection, "berlin", "pc-2")
    records = desired_records.load(connection)
    assert [each.content for each in records.documents] == [ERROR]
    assert records.hubs == (
        KnownHub(PC, ("lab",), 4, remote.hash_of(DEBUG), told),
        KnownHub(("berlin", "pc-2"), (), 0, remote.EMPTY_HASH, None),
    )
    machine = Desired(records, random=Random(1), started_at=0.0, started_ms=0)
    assert Save(PC, 5, remote.hash_of(ERROR), ERROR) in machine.handle(Connected(), 0.0)


def test_a_saved_version_never_goes_back(connection: Connection) -> None:
    """Two services on one database, or a repeated command: a version names one content for ever."""
    save(connection, 2, ERROR)
    save(connection, 1, DEBUG)
    assert desired_records.standing(connection, 1).version == 2
    desired_records.save(connection, Save(("berlin", "gone"), 1, remote.EMPTY_HASH, {}), 1)
    assert connection.execute(select(SETTINGS_OF_HUBS.c.hub_no)).scalars().all() == [1]


def test_the_standing_of_a_hub_tells_what_it_does_not_have_yet(connection: Connection) -> None:
    """An administrator sees at one glance which hubs lag behind, and in what."""
    stands = desired_records.standing(connection, 1)
    assert (stands.version, stands.in_sync, stands.changes, stands.desired_ms) == (0, True, [], None)
    save(connection, 1, DEBUG)
    stands = desired_records.standing(connection, 1)
    assert (stands.in_sync, stands.changes) == (False, [("log.level", None, "debug")])
    desired_records.apply_reported(connection, 1, said(report(1, DEBUG, "trial")), OLD, 1, 5)
    assert not desired_records.standing(connection, 1).in_sync
    desired_records.apply_reported(connection, 1, said(report(1, DEBUG)), OLD, 2, 6)
    stands = desired_records.standing(connection, 1)
    assert (stands.in_sync, stands.changes, stands.reported_ms, stands.desired_ms) == (True, [], 6, 1001)
    save(connection, 2, ERROR)
    desired_records.apply_reported(connection, 1, said(report(2, ERROR, "rolled-back", "cut off")), OLD, 3, 7)
    stands = desired_records.standing(connection, 1)
    assert stands.report == report(2, ERROR, "rolled-back", "cut off")
    assert (stands.in_sync, stands.changes) == (False, [("log.level", "debug", "error")])
    desired_records.apply_reported(connection, 1, said(report(1, {"log": {"level": "info"}})), OLD, 4, 8)
    assert desired_records.standing(connection, 1).changes is None  # It has something that we don't know any more.
    desired_records.apply_reported(connection, 1, said(None), OLD, 5, 9)
    assert desired_records.standing(connection, 1).changes == [("log.level", None, "error")]


def test_only_the_newest_word_of_a_hub_counts(connection: Connection) -> None:
    """Messages come late and twice; one that was overtaken must not undo what is known."""

    def tell(epoch: str, seq: int) -> bool:
        return desired_records.apply_reported(connection, 1, said(report(seq, DEBUG)), epoch, seq, 1)

    def begins(epoch: str) -> None:
        connection.execute(insert(STREAMS).values(hub_no=1, epoch=epoch))

    begins(OLD)
    assert tell(OLD, 5)
    assert not tell(OLD, 5)
    assert not tell(OLD, 4)
    assert connection.scalar(select(REPORTED.c.seq)) == 5
    begins(NEW)  # Another outbox.
    assert tell(NEW, 1)
    connection.execute(update(HUBS).values(epoch=NEW))
    assert not tell(OLD, 6)  # A message that was still under way when the outbox was lost.
    assert tell(NEW, 2)
    connection.execute(update(HUBS).values(epoch=OLD))
    assert tell(OLD, 7)  # A clone has had its say, and the first machine is back.


def test_a_forgotten_hub_leaves_nothing_behind(connection: Connection) -> None:
    """A later machine of the same name must not inherit."""
    put(connection, "hub", "berlin/pc-1", DEBUG)
    put(connection, "fleet", "", ERROR)
    desired_groups.add_to_group(connection, "lab", [1])
    save(connection, 1, DEBUG)
    desired_records.apply_reported(connection, 1, said(None), OLD, 1, 1)
    assert presence_records.forget(connection, 1)
    assert desired_groups.groups(connection) == {}
    assert connection.execute(select(SETTINGS_OF_HUBS)).first() is None
    assert [each.scope for each in desired_records.documents(connection)] == ["fleet"]
    assert connection.execute(select(REPORTED)).first() is None


@pytest.mark.parametrize("body", ['{"settings": {"version": "x"}}', "{"])
def test_a_report_that_this_version_cannot_read_does_not_hide_the_others(connection: Connection, body: str) -> None:
    """It would be read again at every start: the active process must not end by it."""
    for number in (1, add_hub(connection, "berlin", "pc-2")):
        desired_records.apply_reported(connection, number, said(None), OLD, 1, 1)
    connection.execute(update(REPORTED).where(REPORTED.c.hub_no == 1).values(body=body))
    answers, cursor = following_records.reported_since(connection, 0, None)
    assert ([answer.hub_id for answer in answers], cursor) == (["pc-2"], None)
