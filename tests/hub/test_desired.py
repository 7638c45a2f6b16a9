"""The hub's table of settings from the cloud: trial, proof, rollback, refusal, and what a restart finds."""

from __future__ import annotations

from typing import Any

import pytest

from broker.control import DesiredSettings, SettingsReport
from broker.machine import Wakeup
from config import limits, remote
from hub.desired import (
    NONE,
    SWITCHED_OFF,
    Apply,
    Check,
    Checked,
    Command,
    Deployment,
    Document,
    Event,
    Keep,
    Kept,
    Report,
    ReportAcknowledged,
    Revert,
    RoamingChanged,
    Running,
    SettingsReceived,
    Started,
    StartFailed,
)

TRIAL_S = 300.0
A_SETTINGS: dict[str, Any] = {"log": {"level": "debug"}}
B_SETTINGS: dict[str, Any] = {"log": {"level": "error"}}


def document(version: int, settings: dict[str, Any]) -> Document:
    return Document(version, remote.hash_of(settings), settings)


def received(known: Document) -> SettingsReceived:
    return SettingsReceived(DesiredSettings(known.version, known.hash, 1, known.settings))


def report(known: Document, state: Any, reason: str | None = None) -> SettingsReport:
    return SettingsReport(known.version, known.hash, state, reason)


A, A2, A3 = (document(version, A_SETTINGS) for version in (1, 2, 3))
B2, B3 = (document(version, B_SETTINGS) for version in (2, 3))
EMPTY3 = document(3, {})
UNREACHED = "the cloud could not be reached with them for 300 s, over each path that they change"
ROLLED_B2 = report(B2, "rolled-back", UNREACHED)
REFUSED_B2 = report(B2, "refused", "no such sensor")
BROKEN_B2 = report(B2, "rolled-back", "the hub could not start with them: no")
BROKEN_A = report(A, "refused", "the hub can't start with them any more: no")
OFF_A = report(A, "refused", SWITCHED_OFF)
SAVED_S = limits.SETTINGS_TRIAL_SAVE_S

NEW = [Started(Kept()), Running()]
WITH_A = [Started(Kept(A)), Running()]
TRYING_B = [Started(Kept(A)), Running(), received(B2), Checked(B2)]
ON_TRIAL = [*TRYING_B, Running()]


class Story:
    """The machine, its clock and what it said last."""

    def __init__(self, *events: Event, enabled: bool = True, trial_s: float = TRIAL_S):
        self.now = 1000.0
        self.machine = Deployment(enabled=enabled, trial_s=trial_s)
        self.said: list[Command] = []
        for event in events:
            self.tell(event)

    def tell(self, event: Event, at: float | None = None) -> list[Command]:
        self.now = self.now if at is None else at
        self.said = self.machine.handle(event, self.now)
        return self.said

    def wait(self, seconds: float) -> list[Command]:
        """Let time pass as the runner does, and return all that was said."""
        commands: list[Command] = []
        end = self.now + seconds
        while (due := self.machine.deadline()) is not None and due <= end:
            commands += self.tell(Wakeup(), max(due, self.now))
        self.now = end
        return commands

    def decides(self, seconds: float) -> list[Command]:
        """Let time pass, and return what is more than saving the trial."""
        return [
            command
            for command in self.wait(seconds)
            if not (isinstance(command, Keep) and command.kept.trial is not None)
        ]


@pytest.mark.parametrize(
    ("before", "event", "commands"),
    [
        # The start.
        ([], Started(Kept()), []),
        ([], Started(Kept(A)), []),
        ([], Started(Kept(A, B2, 100.0)), [Keep(Kept(A, B2, 100.0 + SAVED_S))]),
        ([], Started(Kept(A, B2, 299.0)), [Keep(Kept(A, B2, TRIAL_S))]),
        ([], Started(Kept(A, B2, TRIAL_S)), [Keep(Kept(A, declined=ROLLED_B2))]),
        ([Started(Kept())], Running(), []),
        ([Started(Kept(A))], Running(), [Report(report(A, "applied"))]),
        ([Started(Kept(A, B2, 1.0))], Running(), [Report(report(B2, "trial"))]),
        ([Started(Kept(A, declined=ROLLED_B2))], Running(), [Report(ROLLED_B2)]),
        # New settings.
        (NEW, received(A), [Check(A)]),
        ([*NEW, received(A)], Checked(A), [Keep(Kept(NONE, A, SAVED_S)), Apply(A)]),
        ([*NEW, received(A), Checked(A)], Running(), [Report(report(A, "trial"))]),
        ([*WITH_A, received(B2)], Checked(B2), [Keep(Kept(A, B2, SAVED_S)), Apply(B2)]),
        ([*NEW, received(A), received(B2)], Checked(A), []),  # Not wanted any more.
        ([*NEW, received(A), Checked(A)], Checked(A), []),  # Repeated.
        # Invalid ones.
        (
            [*WITH_A, received(B2)],
            Checked(B2, "no such sensor"),
            [Keep(Kept(A, declined=REFUSED_B2)), Report(REFUSED_B2)],
        ),
        ([*WITH_A, received(B2), Checked(B2, "no such sensor")], received(B2), [Report(REFUSED_B2)]),
        ([*WITH_A, received(B2), Checked(B2, "no such sensor")], received(B3), [Check(B3)]),  # Changed in between.
        (
            [*WITH_A, received(B2), Checked(B2, "no such sensor")],
            received(A3),
            [Keep(Kept(A3)), Report(report(A3, "applied"))],
        ),
        # The same again, and late ones.
        (WITH_A, received(A), [Report(report(A, "applied"))]),
        (WITH_A, received(A2), [Keep(Kept(A2)), Report(report(A2, "applied"))]),
        ([Started(Kept(B3)), Running()], received(A2), [Report(report(B3, "applied"))]),
        ([Started(Kept(B2)), Running()], received(A2), [Report(report(B2, "applied"))]),  # The cloud will outbid us.
        (ON_TRIAL, received(B2), [Report(report(B2, "trial"))]),
        (ON_TRIAL, received(A), [Report(report(B2, "trial"))]),
        (ON_TRIAL, received(B3), [Keep(Kept(A, B3, SAVED_S)), Report(report(B3, "trial"))]),
        (ON_TRIAL, received(A3), [Keep(Kept(A3)), Revert(A3)]),
        (ON_TRIAL, received(EMPTY3), [Check(EMPTY3)]),
        (NEW, received(EMPTY3), [Keep(Kept(EMPTY3)), Report(report(EMPTY3, "applied"))]),
        (TRYING_B, received(B2), []),  # The next life tells.
        # A crash comes before or after a Keep, never in between; proof belongs to the life that works with the settings.
        (WITH_A, ReportAcknowledged(), []),
        (TRYING_B, ReportAcknowledged(), []),
        (ON_TRIAL, ReportAcknowledged(), []),  # It has only just begun.
        # What can't work.
        (TRYING_B, StartFailed("no"), [Keep(Kept(A, declined=BROKEN_B2)), Revert(A)]),
        ([Started(Kept(A))], StartFailed("no"), [Keep(Kept(declined=BROKEN_A)), Revert(NONE)]),
        ([Started(Kept(A, declined=REFUSED_B2))], StartFailed("no"), [Keep(Kept(declined=REFUSED_B2)), Revert(NONE)]),
        ([Started(Kept())], StartFailed("no"), []),
        # Roaming.
        ([*WITH_A, RoamingChanged(True)], received(B2), []),
        ([*WITH_A, received(B2), RoamingChanged(True)], Checked(B2), []),
        ([*WITH_A, RoamingChanged(True), RoamingChanged(False)], received(B2), [Check(B2)]),
        (WITH_A, RoamingChanged(True), []),
        (WITH_A, Wakeup(), []),
        (ON_TRIAL, Wakeup(), []),
    ],
)
def test_each_event_leads_to_what_the_table_says(before: list[Event], event: Event, commands: list[Command]) -> None:
    """The whole behaviour at one glance; what must be durable comes first."""
    assert Story(*before).tell(event) == commands


def test_a_document_whose_hash_names_something_else_is_refused() -> None:
    """Whoever compares hashes must be able to rely on them."""
    wrong = DesiredSettings(2, A.hash, 1, B_SETTINGS)
    kept, told = Story(*WITH_A).tell(SettingsReceived(wrong))
    assert isinstance(kept, Keep)
    assert isinstance(told, Report)
    assert (told.report.state, told.report.version, told.report.hash) == ("refused", 2, A.hash)
    assert kept.kept.good == A


def test_settings_stay_when_the_cloud_is_reached_and_the_hub_stays_alive_with_them() -> None:
    """Settings that bring a hub down do so in its first seconds, after its first report perhaps."""
    story = Story(*ON_TRIAL)
    story.tell(ReportAcknowledged())
    assert story.decides(limits.SETTINGS_STABLE_S - 1.0) == []
    assert story.decides(1.0) == [Keep(Kept(B2)), Report(report(B2, "applied"))]
    assert story.machine.deadline() is None
    assert story.tell(ReportAcknowledged()) == []  # Late.
    story = Story(*ON_TRIAL)
    assert story.decides(100.0) == []
    assert story.tell(ReportAcknowledged()) == [Keep(Kept(B2)), Report(report(B2, "applied"))]


def test_proof_of_an_earlier_life_does_not_count_for_the_next() -> None:
    """A hub that dies ten times must not have its trial confirmed by the one good second of each life."""
    story = Story(*ON_TRIAL)
    story.tell(ReportAcknowledged())
    again = Story(Started(story.machine.kept), Running())
    assert again.decides(TRIAL_S)[-1] == Revert(A)
    story = Story(*WITH_A)
    story.wait(100.0)
    story.tell(received(B2))
    story.tell(Checked(B2))
    assert story.tell(ReportAcknowledged()) == []  # Of what was sent with the settings before.
    story.tell(Running())
    assert story.decides(limits.SETTINGS_STABLE_S) == []


def test_without_proof_the_last_good_settings_come_back_and_the_cloud_is_told_why() -> None:
    """A hub that new settings cut off comes back by itself."""
    story = Story(*ON_TRIAL)
    assert story.decides(TRIAL_S - 1.0) == []
    assert story.decides(1.0) == [Keep(Kept(A, declined=ROLLED_B2)), Revert(A)]
    assert story.tell(ReportAcknowledged()) == []  # Too late.
    assert story.machine.in_force == A
    assert story.tell(Running()) == [Report(ROLLED_B2)]
    assert story.tell(received(B2)) == [Report(ROLLED_B2)]
    assert story.tell(received(B3)) == [Check(B3)]
    assert story.machine.deadline() is None


@pytest.mark.parametrize("life_s", [0.0, 0.5, 7.0, 60.0])
def test_restarts_do_not_prolong_a_trial(life_s: float) -> None:
    """Settings that crash the hub at once would otherwise never be given up."""
    kept, lives, lived_s = Kept(A, B2, SAVED_S), 0, 0.0
    while kept.trial is not None:
        story = Story(Started(kept), Running())
        story.wait(life_s)
        kept, lives, lived_s = story.machine.kept, lives + 1, lived_s + life_s
        assert lives <= TRIAL_S / SAVED_S + 1
        assert lived_s <= TRIAL_S
    assert kept == Kept(A, declined=ROLLED_B2)


def test_what_is_saved_of_a_trial_is_never_less_than_what_has_elapsed() -> None:
    """A crash at any moment may shorten the trial a little, and never lengthens it."""
    story = Story(*ON_TRIAL)
    for _ in range(250):
        story.wait(1.0)
        assert story.now - 1000.0 <= story.machine.kept.elapsed_s <= story.now - 1000.0 + SAVED_S


def test_a_short_trial_is_not_used_up_by_a_restart() -> None:
    """Who sets trial_s to some seconds still has a trial after a restart."""
    kept = Story(Started(Kept(A, B2)), trial_s=2.0).machine.kept
    assert kept.elapsed_s == pytest.approx(0.2)


def test_a_refusal_during_a_trial_is_told_and_the_trial_goes_on() -> None:
    """Two changes in a row, and the second is wrong: the first still has to prove itself."""
    story = Story(*ON_TRIAL)
    bad = document(3, {"log": {"level": "info"}})
    refused = report(bad, "refused", "no")
    story.tell(received(bad))
    kept, told = story.tell(Checked(bad, "no"))
    assert isinstance(kept, Keep)
    assert (kept.kept.good, kept.kept.trial, kept.kept.declined) == (A, B2, refused)
    assert told == Report(refused)
    story.tell(ReportAcknowledged())
    assert story.decides(limits.SETTINGS_STABLE_S) == [Keep(Kept(B2, declined=refused)), Report(refused)]
    story = Story(*ON_TRIAL, received(bad), Checked(bad, "no"))
    assert story.decides(TRIAL_S) == [Keep(Kept(A, declined=refused)), Revert(A)]


def test_a_hub_that_takes_no_settings_says_so_and_gives_up_what_it_had() -> None:
    """Its own people decide; the cloud must know that it waits in vain."""
    story = Story(Started(Kept()), Running(), enabled=False)
    assert story.tell(received(A)) == [Keep(Kept(declined=OFF_A)), Report(OFF_A)]
    assert story.tell(received(A)) == [Report(OFF_A)]
    story = Story(enabled=False)
    assert story.tell(Started(Kept(A))) == [Keep(Kept(declined=OFF_A))]
    assert story.machine.in_force == NONE
    assert story.tell(Running()) == [Report(OFF_A)]
    assert Story(enabled=False).tell(Started(Kept(declined=OFF_A))) == []
    story = Story()
    assert story.tell(Started(Kept(declined=OFF_A))) == [Keep(Kept())]  # Switched on again.
    assert story.machine.standing is None


def test_the_first_known_hash_is_that_of_no_settings() -> None:
    """A poll of a hub without settings from the cloud says that it has none."""
    assert Story(*NEW).machine.in_force.hash == remote.EMPTY_HASH
