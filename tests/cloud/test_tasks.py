"""The cloud's task machine, case by case: what each event leads to in each state."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from broker.control import Task, TaskReport
from broker.machine import Wakeup
from cloud.task_events import (
    CancelAsked,
    Command,
    Connected,
    Created,
    Disconnected,
    Event,
    HubForgotten,
    Polled,
    Reachable,
    Reported,
    Save,
    Send,
    Unreachable,
)
from cloud.task_standing import FINAL, OPEN, OpenTarget, Standing, TargetChange, TargetState, TaskOrder, merged
from cloud.tasks import Tasks
from config import limits

T0 = 1_763_798_400_000
KEY, OTHER = ("berlin", "pc-17"), ("berlin", "pc-18")
ID = "00000000000000aa"
ORDER = TaskOrder(ID, "run-check", {"name": "raid"}, T0, T0 + 600_000)
SKIP = TaskOrder(ID, "ping", {}, T0, T0 + 600_000, skip_if_offline=True)
DELIVERY = Task(ID, T0, "run-check", {"name": "raid"}, T0 + 600_000)
CANCEL = Task(ID, T0, expires=T0 + 600_000, cancel=True)


def change(state: TargetState, message: str | None = None, *, presumed: bool = False, cancel: bool = False) -> Save:
    return Save((TargetChange(ID, KEY, Standing(state, None, message, presumed=presumed), cancel),))


def report(state: TargetState, progress: int | None = None) -> Reported:
    return Reported(KEY, TaskReport(ID, state, T0, progress))  # type: ignore[arg-type]


class Story:
    """A machine and its clock."""

    def __init__(self, *events: Event, known: tuple[OpenTarget, ...] = ()):
        self.now = 0.0
        self.tasks = Tasks(known, random=Random(1), started_at=0.0, started_ms=T0)
        for event in events:
            self.tell(event)

    def tell(self, event: Event, at: float | None = None) -> list[Command]:
        self.now = self.now if at is None else at
        return self.tasks.handle(event, self.now)

    def wait(self, until: float) -> list[tuple[float, Command]]:
        """Let time pass as the runner does, and return what was said when."""
        said: list[tuple[float, Command]] = []
        for _ in range(10_000):
            due = self.tasks.deadline()
            if due is None or due > until:
                self.now = until
                return said
            self.now = max(self.now, due)
            said += [(self.now, command) for command in self.tell(Wakeup())]
        raise AssertionError("it never rests")

    def sends(self, until: float) -> list[float]:
        return [at for at, command in self.wait(until) if isinstance(command, Send)]


HERE = (Connected(), Reachable(KEY))


def in_state(state: TargetState) -> Story:
    """Return a story whose task stands so, at t = 0, with the hub in reach."""
    story = Story(Created(ORDER, (KEY,))) if state == "queued" else Story(*HERE, Created(ORDER, (KEY,)))
    if state not in ("queued", "sent"):
        story.tell(report(state))
    return story


# --- Delivering ------------------------------------------------------------------------------------------------------


def test_a_task_for_a_hub_in_reach_is_saved_as_sent_and_then_sent() -> None:
    """Saved first: after a crash it must not look as if it could still be taken back in silence."""
    assert Story(*HERE).tell(Created(ORDER, (KEY,))) == [change("sent"), Send(KEY, DELIVERY)]


@pytest.mark.parametrize("missing", [(), (Connected(),), (Reachable(KEY),), (Connected(), Reachable(OTHER))])
def test_a_task_waits_while_the_hub_is_not_in_reach(missing: tuple[Event, ...]) -> None:
    story = Story(*missing)
    assert story.tell(Created(ORDER, (KEY,))) == []
    assert story.wait(500.0) == []


@pytest.mark.parametrize("word", [Reachable(KEY), Connected()])
def test_what_waits_is_sent_when_the_hub_comes_with_the_time_that_is_left(word: Event) -> None:
    """The hub counts from the receipt, by its own clock, so it must be told what is left and not what was given."""
    before = Connected() if isinstance(word, Reachable) else Reachable(KEY)
    story = Story(before, Created(ORDER, (KEY,)))
    said = story.tell(word, 250.0)
    assert said == [change("sent"), Send(KEY, Task(ID, T0 + 250_000, "run-check", {"name": "raid"}, T0 + 600_000))]


def test_a_delivery_is_repeated_with_growing_waits_until_it_is_answered() -> None:
    """The broker keeps nothing: a delivery into a session that is just breaking is gone."""
    story = in_state("sent")
    sends = story.sends(300.0)
    assert 4 <= len(sends) <= 60
    assert min(b - a for a, b in pairwise(sends)) >= limits.TASK_REPEAT_MIN_S
    story.tell(report("accepted"))
    assert story.sends(300.0 + limits.TASK_ASK_S - 1) == []


def test_nothing_is_repeated_while_the_hub_is_out_of_reach() -> None:
    story = in_state("sent")
    story.tell(Unreachable(KEY))
    assert story.sends(500.0) == []
    assert [type(said) for said in story.tell(Reachable(KEY))] == [Send]


def test_a_flapping_path_does_not_make_deliveries_more_frequent() -> None:
    story = in_state("sent")
    sends = 0
    for second in range(60):
        sends += len(story.tell(Unreachable(KEY), float(second)))
        sends += len(story.tell(Reachable(KEY), second + 0.5))
    assert sends <= 60 / limits.TASK_REPEAT_MIN_S


def test_a_task_for_the_whole_fleet_is_sent_in_bursts_in_order() -> None:
    """A thousand messages at once would push births and acknowledgements out of the session."""
    keys = tuple(("berlin", f"pc-{number:04}") for number in range(1000))
    story = Story(Connected(), *(Reachable(key) for key in keys))
    first = story.tell(Created(ORDER, keys))
    assert isinstance(first[0], Save)
    assert [said.key for said in first[1:] if isinstance(said, Send)] == list(keys[: limits.TASK_BURST])
    sends = [(at, said.key) for at, said in story.wait(30.0) if isinstance(said, Send)]
    firsts = list(dict.fromkeys(key for _, key in sends))
    assert [key for key in firsts if key not in keys[: limits.TASK_BURST]] == list(keys[limits.TASK_BURST :])
    for begin, _ in sends:
        assert sum(begin <= at < begin + limits.TASK_BURST_S for at, _ in sends) <= 2 * limits.TASK_BURST


def test_a_poll_brings_what_waits_once_and_no_more_until_the_next() -> None:
    """A polling hub listens for a moment; the cloud starts nothing toward it."""
    story = Story(Connected(), Created(ORDER, (KEY, OTHER)))
    assert story.tell(Polled(KEY)) == [change("sent"), Send(KEY, DELIVERY)]
    assert story.wait(300.0) == []
    assert [said.key for said in story.tell(Polled(KEY)) if isinstance(said, Send)] == [KEY]
    story.tell(report("done"))
    assert story.tell(Polled(KEY)) == []


def test_a_poll_that_came_before_our_session_ended_brings_nothing() -> None:
    story = Story(Created(ORDER, (KEY,)))
    assert story.tell(Polled(KEY)) == []


# --- Deadlines and absent hubs ---------------------------------------------------------------------------------------


def test_a_task_that_could_not_be_sent_before_its_deadline_is_expired() -> None:
    story = in_state("queued")
    ((at, said),) = story.wait(10_000.0)
    assert (at, said) == (600.0, change("expired", "its deadline came before the hub could be reached"))
    assert story.tell(Reachable(KEY)) == []


def test_a_task_that_skips_absent_hubs_is_refused_at_once_where_the_hub_is_absent() -> None:
    story = Story(*HERE)
    (save, send) = story.tell(Created(SKIP, (OTHER, KEY)))
    assert isinstance(save, Save)
    assert {change.key: change.standing for change in save.changes} == {
        OTHER: Standing("refused", None, "skipped: offline"),
        KEY: Standing("sent"),
    }
    assert isinstance(send, Send)
    assert send.key == KEY


def test_after_a_start_a_task_that_skips_waits_for_word_of_who_is_there() -> None:
    """The cloud knows nobody at first; that is no reason to skip everybody."""
    known = (OpenTarget(SKIP, KEY, Standing(), T0),)
    story = Story(Connected(), known=known)
    assert story.wait(limits.TASK_START_GRACE_S - 1) == []
    assert [type(said) for said in story.tell(Reachable(KEY))] == [Save, Send]
    absent = Story(Connected(), known=known).wait(1000.0)
    assert absent == [(limits.TASK_START_GRACE_S, change("refused", "skipped: offline"))]


def test_a_task_without_any_answer_is_presumed_expired_a_little_after_its_deadline() -> None:
    """Presumed: the hub may have begun it in time, and a result that comes later is the truth."""
    said = in_state("sent").wait(10_000.0)
    assert said[-1] == (
        600.0 + limits.TASK_MARGIN_S,
        change("expired", "the hub has not answered before the deadline", presumed=True),
    )
    late = [command.task for at, command in said if isinstance(command, Send) and at >= 600.0]
    assert late
    assert all(task.expires is not None and task.expires <= task.sent for task in late)


# --- Progress --------------------------------------------------------------------------------------------------------


def test_a_running_task_whose_hub_is_silent_is_asked_for_and_then_lost() -> None:
    """Asked with no time left: a hub that does not remember it must not begin it now."""
    story = in_state("running")
    said = story.wait(1000.0)
    asked = [command.task for _, command in said if isinstance(command, Send)]
    assert said[0][0] == limits.TASK_ASK_S
    assert all(task.sent == task.expires and not task.cancel for task in asked)
    assert said[-1] == (limits.TASK_PROGRESS_MAX_S, change("failed", "no progress for 60 s", presumed=True))


def test_progress_keeps_a_running_task_alive() -> None:
    story = in_state("running")
    for second in range(25, 1000, 25):
        assert story.wait(float(second)) == []
        story.tell(report("running", second // 10))
    assert story.tasks.open_targets == 1


def test_silence_does_not_count_while_the_path_is_down_or_our_session_closed() -> None:
    """A path that changes takes minutes, and the reports come after it."""
    for away, back in ((Unreachable(KEY), Reachable(KEY)), (Disconnected(), Connected())):
        story = in_state("running")
        story.tell(away, 50.0)
        assert story.wait(900.0) == []
        story.tell(back)
        assert all(isinstance(said, Send) for _, said in story.wait(900.0 + limits.TASK_PROGRESS_MAX_S - 1))
        assert story.tasks.open_targets == 1


def test_a_hub_that_comes_back_is_asked_at_once_how_its_tasks_stand() -> None:
    """It may have been restarted meanwhile, or have ended them."""
    story = in_state("running")
    story.tell(Unreachable(KEY), 5.0)
    assert [type(said) for said in story.tell(Reachable(KEY), 10.0)] == [Send]


def test_an_accepted_task_may_wait_in_silence_until_its_deadline() -> None:
    """It waits for its turn at the hub."""
    story = in_state("accepted")
    assert all(isinstance(said, Send) for _, said in story.wait(600.0 + limits.TASK_PROGRESS_MAX_S - 1))
    ((_, lost),) = [entry for entry in story.wait(10_000.0) if isinstance(entry[1], Save)]
    assert isinstance(lost, Save)
    assert lost.changes[0].standing.presumed


@pytest.mark.parametrize("state", ["accepted", "running"])
def test_a_hub_that_never_comes_back_does_not_leave_a_task_open_for_ever(state: TargetState) -> None:
    story = in_state(state)
    story.tell(Unreachable(KEY))
    ((at, _),) = story.wait(10 * limits.TASK_SILENCE_MAX_S)
    assert at == 600.0 + limits.TASK_SILENCE_MAX_S


# --- Cancelling ------------------------------------------------------------------------------------------------------


def test_a_task_that_was_not_sent_is_cancelled_at_once() -> None:
    story = in_state("queued")
    said = story.tell(CancelAsked(ID))
    assert said == [change("cancelled", "before it was sent", cancel=True)]
    assert story.tell(Reachable(KEY)) == story.tell(Connected()) == []


@pytest.mark.parametrize("state", ["sent", "accepted", "running"])
def test_a_task_at_the_hub_is_cancelled_there_and_asked_again_until_it_answers(state: TargetState) -> None:
    """A cancellation gets lost like any delivery; that it was asked for survives a restart of the cloud."""
    story = in_state(state)
    said = story.tell(CancelAsked(ID, (KEY,)))
    assert said == [change(state, cancel=True), Send(KEY, CANCEL)]
    assert story.tell(CancelAsked(ID)) == []
    assert len(story.sends(40.0)) >= 2
    repeated = 0
    for second in range(50, 300, 10):  # Progress is no answer to a cancellation.
        story.tell(report("running"))
        repeated += len(story.sends(float(second)))
    assert repeated >= 2
    story.tell(report("cancelled"))
    assert story.wait(10_000.0) == []


def test_a_cancellation_of_what_has_ended_or_never_was_does_nothing() -> None:
    story = in_state("sent")
    story.tell(report("done"))
    assert story.tell(CancelAsked(ID)) == []
    assert story.tell(CancelAsked("00000000000000bb")) == []


def test_a_cancellation_can_be_for_some_hubs_only() -> None:
    story = Story(Created(ORDER, (KEY, OTHER)))
    story.tell(CancelAsked(ID, (KEY,)))
    assert story.tasks.open_targets == 1


# --- Late, repeated, foreign ----------------------------------------------------------------------------------------


def test_late_repeated_and_foreign_events_change_nothing() -> None:
    story = in_state("sent")
    assert story.tell(Created(ORDER, (KEY,))) == []
    assert story.tell(Connected()) == story.tell(Reachable(KEY)) == []
    assert story.tell(Unreachable(OTHER)) == []
    assert story.tell(Reported(OTHER, TaskReport(ID, "done", T0))) == []
    story.tell(report("done"))
    assert story.tell(report("done")) == story.tell(report("running")) == []
    assert story.tasks.open_targets == 0
    assert story.wait(10_000.0) == []


def test_a_forgotten_hub_has_no_tasks() -> None:
    story = Story(*HERE, Created(ORDER, (KEY, OTHER)))
    assert story.tell(HubForgotten(KEY)) == []
    assert story.tasks.open_targets == 1
    assert story.tell(HubForgotten(KEY)) == []


# --- Bounds and restarts ---------------------------------------------------------------------------------------------


def test_a_hub_gets_no_more_open_tasks_than_it_would_take() -> None:
    story = Story()
    for number in range(limits.TASKS_PER_HUB_MAX):
        story.tell(Created(TaskOrder(f"{number:016x}", "ping", {}, T0, T0 + 600_000), (KEY,)))
    ((target,),) = [said.changes for said in story.tell(Created(ORDER, (KEY,))) if isinstance(said, Save)]
    assert target.standing.state == "refused"
    assert "64 tasks of this hub are open already" in (target.standing.message or "")
    assert story.tasks.open_targets == limits.TASKS_PER_HUB_MAX


def test_after_a_restart_the_cloud_goes_on_where_the_database_stands() -> None:
    known = (
        OpenTarget(ORDER, KEY, Standing("sent"), T0 - 5000),
        OpenTarget(ORDER, OTHER, Standing("running", 40), T0 - 5000, cancel_asked=True),
    )
    story = Story(known=known)
    assert story.tell(Connected()) == []
    assert story.tell(Reachable(KEY)) == [Send(KEY, DELIVERY)]
    assert story.tell(Reachable(OTHER)) == [Send(OTHER, CANCEL)]


def test_restarts_do_not_put_off_the_end_of_a_task_that_nobody_hears_of() -> None:
    """What counts is when the hub was last heard of, not when the cloud last started."""
    order = TaskOrder(ID, "ping", {}, T0 - 90_000_000, T0 - 80_000_000)
    story = Story(known=(OpenTarget(order, KEY, Standing("running"), T0 - 86_000_000),))
    ((at, _),) = story.wait(limits.TASK_SILENCE_MAX_S)
    assert at == limits.TASK_SILENCE_MAX_S - 80_000.0


# --- What a report changes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", ["accepted", "running", *FINAL])
@pytest.mark.parametrize("known", [*OPEN, *FINAL])
def test_states_only_go_forward(known: TargetState, told: TargetState) -> None:
    """Reports come late and in any order."""
    states = [*OPEN, "end"]
    after = merged(Standing(known), TaskReport(ID, told, T0))  # type: ignore[arg-type]
    forward = known not in FINAL and states.index(told if told in OPEN else "end") > states.index(known)
    if known == "running" and told in ("expired", "refused"):
        assert after == Standing("failed", None, "the hub has no record of it any more")
    else:
        assert after == (Standing(told) if forward else None)


@pytest.mark.parametrize("told", ["accepted", "running", *FINAL])
def test_a_presumed_end_is_corrected_by_the_true_one_only(told: TargetState) -> None:
    lost = Standing("failed", 40, "no progress for 60 s", presumed=True)
    after = merged(lost, TaskReport(ID, told, T0))  # type: ignore[arg-type]
    assert after == (Standing(told) if told in FINAL else None)


@pytest.mark.parametrize(("known", "told", "after"), [(40, 60, 60), (40, 20, None), (40, 40, None), (None, None, None)])
def test_progress_never_goes_back(known: int | None, told: int | None, after: int | None) -> None:
    standing = merged(Standing("running", known), TaskReport(ID, "running", T0, told))
    assert (None if standing is None else standing.progress) == after
