"""The cloud's table of settings: who is sent what, how often, and when not any more."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

import pytest

from broker.control import SettingsReport
from broker.machine import Wakeup
from cloud.desired import (
    VERSION_MAX,
    Command,
    Connected,
    Desired,
    Disconnected,
    DocumentChanged,
    Event,
    GroupChanged,
    HubForgotten,
    HubKnown,
    KnownHub,
    Polled,
    Reachable,
    Records,
    Reported,
    Save,
    Send,
    Unreachable,
)
from cloud.desired_scopes import Scopes, key_of, name_of
from config import limits, remote

PC, OTHER, PARIS = ("berlin", "pc-1"), ("berlin", "pc-2"), ("paris", "pc-1")
DEBUG: dict[str, Any] = {"log": {"level": "debug"}}
ERROR: dict[str, Any] = {"log": {"level": "error"}}


def fleet_says(content: dict[str, Any], version: int = 1) -> DocumentChanged:
    return DocumentChanged("fleet", "", version, content)


def said(version: int, content: dict[str, Any], state: Any = "applied") -> Reported:
    return Reported(PC, SettingsReport(version, remote.hash_of(content), state))


ALONE = Records((), (KnownHub(PC),))


class Story:
    """The machine, its clock and what it said last. The cloud is connected, and one hub is there."""

    def __init__(self, *events: Event, known: Records = ALONE, seed: int = 1):
        self.now = 100.0
        self.machine = Desired(known, random=Random(seed), started_at=100.0, started_ms=1_000_000)
        for event in (Connected(), Reachable(PC), *events):
            self.tell(event)

    def tell(self, event: Event, at: float | None = None) -> list[Command]:
        self.now = self.now if at is None else at
        return self.machine.handle(event, self.now)

    def wait(self, seconds: float) -> list[Command]:
        """Let time pass as the runner does, and return all that was said."""
        commands: list[Command] = []
        end = self.now + seconds
        while (due := self.machine.deadline()) is not None and due <= end:
            commands += self.tell(Wakeup(), max(due, self.now))
        self.now = end
        return commands


def shape(commands: list[Command]) -> list[tuple[Any, ...]]:
    """Return commands without what is no decision."""
    return [
        ("save", command.key, command.version, command.settings)
        if isinstance(command, Save)
        else ("send", command.key, command.desired.version, command.desired.settings)
        for command in commands
    ]


SAVE, SEND = ("save", PC, 1, DEBUG), ("send", PC, 1, DEBUG)
SECOND = [("save", PC, 2, ERROR), ("send", PC, 2, ERROR)]
AGAIN = [("save", PC, 3, DEBUG), ("send", PC, 3, DEBUG)]


@pytest.mark.parametrize(
    ("before", "event", "commands"),
    [
        ([], fleet_says(DEBUG), [SAVE, SEND]),
        ([], fleet_says({}), []),
        ([], DocumentChanged("site", "berlin", 1, DEBUG), [SAVE, SEND]),
        ([], DocumentChanged("site", "paris", 1, DEBUG), []),
        ([], DocumentChanged("hub", "berlin/pc-1", 1, DEBUG), [SAVE, SEND]),
        ([], DocumentChanged("hub", "berlin/pc-2", 1, DEBUG), []),
        ([], DocumentChanged("group", "lab", 1, DEBUG), []),
        ([GroupChanged(PC, ("lab",))], DocumentChanged("group", "lab", 1, DEBUG), [SAVE, SEND]),
        ([DocumentChanged("group", "lab", 1, DEBUG)], GroupChanged(PC, ("lab",)), [SAVE, SEND]),
        ([fleet_says(DEBUG, 2)], fleet_says(ERROR, 1), []),  # Late.
        ([fleet_says(DEBUG)], fleet_says(DEBUG), []),  # Repeated.
        ([fleet_says(DEBUG)], fleet_says({"log": {"level": "debug"}, "mode": {}}, 2), []),  # Means the same.
        ([fleet_says(DEBUG)], fleet_says(ERROR, 2), SECOND),
        ([Disconnected()], fleet_says(DEBUG), [SAVE]),
        ([Disconnected(), fleet_says(DEBUG)], Connected(), [SEND]),
        ([fleet_says(DEBUG)], Connected(), []),  # Repeated.
        ([Unreachable(PC)], fleet_says(DEBUG), [SAVE]),
        ([Unreachable(PC), fleet_says(DEBUG)], Reachable(PC), [SEND]),
        ([fleet_says(DEBUG)], Reachable(PC), []),  # Repeated: the repetition has its own time.
        ([Unreachable(PC), fleet_says(DEBUG)], Unreachable(PC), []),
        # A hub that polls.
        ([Unreachable(PC), fleet_says(DEBUG)], Polled(PC), [SEND]),
        ([Unreachable(PC), fleet_says(DEBUG)], Polled(PC, remote.EMPTY_HASH), [SEND]),
        (
            [Unreachable(PC), fleet_says(DEBUG)],
            Polled(PC, remote.hash_of(DEBUG)),
            [SEND],
        ),  # It has them, and has not said so.
        ([Unreachable(PC), fleet_says(DEBUG), said(1, DEBUG)], Polled(PC), []),
        ([Unreachable(PC), fleet_says(DEBUG), said(1, DEBUG)], Polled(PC, remote.hash_of(DEBUG)), []),
        (
            [Unreachable(PC), fleet_says(DEBUG), said(1, DEBUG)],
            Polled(PC, remote.EMPTY_HASH),
            [SEND],
        ),  # It has lost them.
        ([Unreachable(PC), fleet_says(DEBUG), said(1, DEBUG, "refused")], Polled(PC, remote.EMPTY_HASH), []),
        ([Unreachable(PC), fleet_says(DEBUG), Disconnected()], Polled(PC), []),
        ([], Polled(PC), []),
        # Reports.
        ([fleet_says(DEBUG)], said(1, DEBUG), []),
        ([fleet_says(DEBUG), said(1, DEBUG, "rolled-back")], fleet_says(ERROR, 2), SECOND),
        ([fleet_says(DEBUG), said(1, DEBUG, "refused"), fleet_says(ERROR, 2)], fleet_says(DEBUG, 3), AGAIN),
        ([fleet_says(DEBUG), said(1, DEBUG), fleet_says(ERROR, 2)], fleet_says(DEBUG, 3), [("save", PC, 3, DEBUG)]),
        ([fleet_says(DEBUG), said(7, DEBUG)], fleet_says(ERROR, 2), [("save", PC, 8, ERROR), ("send", PC, 8, ERROR)]),
        ([], said(7, {}), [("save", PC, 7, {})]),
        ([], said(VERSION_MAX, DEBUG), [("save", PC, VERSION_MAX, {}), ("send", PC, VERSION_MAX, {})]),
        # Hubs come and go.
        ([fleet_says(DEBUG)], HubKnown(PARIS), [("save", PARIS, 1, DEBUG)]),
        ([fleet_says(DEBUG)], Reachable(PARIS), [("save", PARIS, 1, DEBUG), ("send", PARIS, 1, DEBUG)]),
        ([fleet_says(DEBUG)], Unreachable(PARIS), []),
        ([fleet_says(DEBUG)], HubForgotten(PARIS), []),
        ([fleet_says(DEBUG), HubForgotten(PC)], Unreachable(PC), []),
        ([DocumentChanged("hub", "berlin/pc-1", 1, DEBUG), HubForgotten(PC)], Reachable(PC), []),
    ],
)
def test_each_event_leads_to_what_the_table_says(
    before: list[Event], event: Event, commands: list[tuple[Any, ...]]
) -> None:
    """The whole behaviour at one glance: what is saved, and then who is sent what."""
    assert shape(Story(*before).tell(event)) == commands


def test_settings_are_sent_again_and_ever_more_seldom_until_the_hub_reports() -> None:
    """Brokers keep nothing, and a hub that begins anew hears nothing for a while."""
    story = Story(fleet_says(DEBUG))
    sends = []
    for _ in range(600):
        sends += [story.now for _ in story.wait(10.0)]
    waits = [later - earlier for earlier, later in pairwise(sends)]
    assert min(waits) >= limits.SETTINGS_REPEAT_MIN_S - 10.0
    assert max(waits) <= limits.SETTINGS_REPEAT_MIN_S + limits.SETTINGS_REPEAT_MAX_S + 10.0
    assert len(set(waits)) > 3
    assert 20 < len(sends) < 100
    story.tell(said(1, DEBUG, "trial"))
    assert story.machine.deadline() is None


@pytest.mark.parametrize("state", ["refused", "rolled-back"])
def test_what_a_hub_has_refused_or_rolled_back_is_not_sent_again(state: str) -> None:
    """Else settings that cut a hub off would cut it off every five minutes."""
    story = Story(fleet_says(DEBUG), said(1, DEBUG, state))
    assert story.wait(1_000_000.0) == []
    story.tell(Unreachable(PC))
    assert story.tell(Reachable(PC)) == []
    assert story.tell(Reported(PC, SettingsReport(1, remote.hash_of(DEBUG), "refused"))) == []


def test_a_hub_that_has_lost_our_settings_gets_them_again_but_not_at_once_again() -> None:
    """Its disk was replaced. Two machines of one name, of which one has them, must not keep the cloud sending."""
    story = Story(fleet_says(DEBUG), said(1, DEBUG))
    sent = 0
    for _ in range(100):
        sent += len(story.tell(Reported(PC, None))) + len(story.wait(0.05))
        sent += len(story.tell(said(1, DEBUG))) + len(story.wait(0.05))
    assert sent <= 1
    story.wait(60.0)
    story.tell(Reported(PC, None))
    assert shape(story.wait(60.0))[0] == SEND


def test_a_hub_that_knows_a_higher_version_is_outbid() -> None:
    """The cloud's database may be a copy of last week: its hubs must obey again."""
    story = Story(fleet_says(DEBUG))
    commands = story.tell(said(57, ERROR)) + story.wait(60.0)
    assert shape(commands)[:2] == [("save", PC, 58, DEBUG), ("send", PC, 58, DEBUG)]
    story = Story(fleet_says(DEBUG))
    assert shape(story.tell(said(1, ERROR)))[0] == ("save", PC, 2, DEBUG)


def test_a_whole_fleet_is_not_sent_new_settings_in_one_moment() -> None:
    """Every hub that gets some begins anew and connects again."""
    keys = [("berlin", f"pc-{number}") for number in range(100)]
    story = Story(*(Reachable(key) for key in keys))
    first = [command for command in story.tell(fleet_says(DEBUG)) if isinstance(command, Send)]
    assert len(first) <= limits.SETTINGS_BURST
    second = [command for command in story.wait(limits.SETTINGS_BURST_S) if isinstance(command, Send)]
    assert 0 < len(second) <= limits.SETTINGS_BURST
    later = [command for command in story.wait(5.0) if isinstance(command, Send)]
    assert {command.key for command in (*first, *second, *later) if isinstance(command, Send)} == {PC, *keys}
    assert not story.wait(0.0)


def test_a_restart_goes_on_where_the_records_are() -> None:
    """What was committed last, and was not heard of, counts too."""
    report = SettingsReport(3, remote.hash_of(DEBUG), "applied")
    known = Records((fleet_says(DEBUG, 4),), (KnownHub(PC, (), 3, remote.hash_of(DEBUG), report),))
    assert Story(known=known).wait(1000.0) == []
    known = Records((fleet_says(ERROR, 5),), (KnownHub(PC, ("lab",), 3, remote.hash_of(DEBUG), report),))
    machine = Desired(known, random=Random(1), started_at=0.0, started_ms=0)
    assert shape(machine.handle(Connected(), 1.0)) == [("save", PC, 4, ERROR)]
    (send,) = machine.handle(Reachable(PC), 2.5)
    assert isinstance(send, Send)
    assert send.desired.sent == 2500
    assert machine.of_hub(PC) == (4, remote.hash_of(ERROR))
    assert machine.of_hub(PARIS) == (0, remote.EMPTY_HASH)


def test_the_innermost_scope_wins_key_by_key_and_groups_count_by_name() -> None:
    """fleet < site < groups < hub; null takes a value away that was set further out."""
    scopes = Scopes()
    scopes.put(fleet_says({"log": {"level": "info", "format": "json"}, "failover": {"outage_s": 1.0}}))
    scopes.put(DocumentChanged("site", "berlin", 1, {"log": {"level": "debug"}, "failback": {"jitter_s": 2.0}}))
    scopes.put(DocumentChanged("group", "b", 1, {"failback": {"jitter_s": 4.0}}))
    scopes.put(DocumentChanged("group", "a", 1, {"failback": {"jitter_s": 3.0, "probe_s": 9.0}}))
    scopes.put(DocumentChanged("hub", "berlin/pc-1", 1, {"failover": {"outage_s": None}}))
    name, content = scopes.of_hub(PC, ("b", "a"))
    assert content == {"log": {"level": "debug", "format": "json"}, "failback": {"jitter_s": 4.0, "probe_s": 9.0}}
    assert name == remote.hash_of(content)
    assert scopes.of_hub(OTHER, ())[1]["failover"] == {"outage_s": 1.0}
    assert "failback" not in scopes.of_hub(PARIS, ())[1]


def test_the_name_of_a_hubs_document_tells_the_hub() -> None:
    """One name serves database, API and machine."""
    assert name_of(PC) == "berlin/pc-1"
    assert key_of("berlin/pc-1") == PC
