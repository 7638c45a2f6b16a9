"""The hub's task machine, case by case: durable first, run once, answered every time."""

from __future__ import annotations

import pytest

from broker.control import Task
from broker.machine import Wakeup
from config import limits
from hub.tasks import (
    INTERRUPTED,
    ActionEnded,
    ActionProgressed,
    Command,
    Event,
    Outcome,
    Report,
    RoamingChanged,
    Run,
    Save,
    Saved,
    SaveFailed,
    Stop,
    TaskReceived,
    TaskRecord,
    Tasks,
)

T0 = 1_763_798_400_000
CLOUD = T0 + 7_200_000
"""The cloud's clock is two hours ahead of the hub's: only differences count."""
ID = "00000000000000aa"
TASK = Task(ID, CLOUD, "ping", {}, CLOUD + 600_000)
ASK = Task(ID, CLOUD + 30_000, "ping", {}, CLOUD + 30_000)
CANCEL = Task(ID, CLOUD, expires=CLOUD + 600_000, cancel=True)
DONE = Outcome("done", None, {"version": "1"})


def record(state: str, message: str | None = None, **more: object) -> TaskRecord:
    said: dict[str, object] = {"received_ms": T0, "lasts_ms": 600_000, "action": "ping", "message": message, **more}
    return TaskRecord(ID, state, **said)  # type: ignore[arg-type]


class Story:
    """A machine, its clock, and a disk that answers when it is told to."""

    def __init__(self, *records: TaskRecord, started_ms: int = T0):
        self.now = 0.0
        self.tasks = Tasks(records, self.refusal, started_at=0.0, started_ms=started_ms)

    @staticmethod
    def refusal(action: str, _: object) -> str | None:
        return "not allowed here" if action == "update-now" else None

    def tell(self, event: Event, at: float | None = None) -> list[Command]:
        self.now = self.now if at is None else at
        return self.tasks.handle(event, self.now)

    def get(self, task: Task, at: float | None = None) -> list[Command]:
        self.now = self.now if at is None else at
        return self.tell(TaskReceived(task, T0 + round(self.now * 1000)))

    def settle(self, said: list[Command]) -> list[Command]:
        """Have the disk take every save, and return everything else that is said."""
        rest: list[Command] = []
        while said:
            command = said.pop(0)
            if isinstance(command, Save):
                said += self.tell(Saved(command.number))
            else:
                rest.append(command)
        return rest

    def wait(self, until: float) -> list[tuple[float, Command]]:
        said: list[tuple[float, Command]] = []
        for _ in range(10_000):
            due = self.tasks.deadline()
            if due is None or due > until:
                self.now = until
                return said
            self.now = max(self.now, due)
            said += [(self.now, command) for command in self.settle(self.tell(Wakeup()))]
        raise AssertionError("it never rests")


def numbered(number: int, **more: object) -> Task:
    said: dict[str, object] = {"sent": CLOUD, "action": "ping", "expires": CLOUD + 600_000, **more}
    return Task(f"{number:016x}", **said)  # type: ignore[arg-type]


def busy() -> Story:
    """Return a hub that runs as many tasks as it may."""
    story = Story()
    for number in range(limits.TASKS_RUNNING_MAX):
        assert isinstance(story.settle(story.get(numbered(number)))[-1], Run)
    return story


def running() -> Story:
    story = Story()
    story.settle(story.get(TASK))
    return story


# --- Durable first ---------------------------------------------------------------------------------------------------


def test_a_task_is_on_the_disk_before_it_is_begun() -> None:
    """Whoever is killed in between must not run it again."""
    story = Story()
    assert story.get(TASK) == [Save(1, (record("running"),))]
    assert story.tell(Saved(1)) == [Report(ID, "running"), Run(ID, "ping", {})]
    assert story.tell(ActionEnded(ID, DONE)) == [Save(2, (record("done", output={"version": "1"}),))]
    assert story.tell(Saved(2)) == [Report(ID, "done", output={"version": "1"})]


def test_a_repeated_delivery_runs_nothing_and_is_answered() -> None:
    story = Story()
    story.get(TASK)
    assert story.get(TASK) == []
    story.tell(Saved(1))
    assert story.get(TASK) == [Report(ID, "running")]
    assert story.get(ASK) == [Report(ID, "running")]
    story.settle(story.tell(ActionEnded(ID, DONE)))
    assert story.get(TASK) == [Report(ID, "done", output={"version": "1"})]


def test_a_disk_that_refuses_means_a_refused_task_that_is_not_begun() -> None:
    story = Story()
    story.get(TASK)
    (report,) = story.tell(SaveFailed(1, "database or disk is full"))
    assert isinstance(report, Report)
    assert report.state == "refused"
    assert "disk is full" in (report.message or "")
    assert story.get(TASK) == [report]
    said = story.wait(60.0)
    assert said == []
    again = Story(*_last_records(story))
    assert again.tell(Wakeup()) == []


def _last_records(story: Story) -> list[TaskRecord]:
    """Return what the disk holds in the end, by asking for every answer."""
    (report,) = story.get(TASK)
    assert isinstance(report, Report)
    return [record(report.state, report.message)]


def test_what_the_disk_has_refused_is_offered_again() -> None:
    """A refusal that is forgotten by a restart would let a late delivery run."""
    story = Story()
    story.get(TASK)
    story.tell(SaveFailed(1, "disk full"))
    assert story.tasks.deadline() == limits.TASK_JOURNAL_RETRY_S
    (save,) = story.tell(Wakeup(), limits.TASK_JOURNAL_RETRY_S)
    assert isinstance(save, Save)
    assert [kept.state for kept in save.records] == ["refused"]
    assert story.tell(Saved(save.number)) == []


def test_an_accepted_task_whose_beginning_the_disk_refuses_waits_and_is_begun_later() -> None:
    """The disk says "accepted": after a restart it would begin, so nothing else may be told."""
    story = busy()
    story.settle(story.get(TASK))
    first = numbered(0).id
    said = story.tell(ActionEnded(first, DONE))
    (save,) = [command for command in said if isinstance(command, Save)]
    assert {kept.id: kept.state for kept in save.records} == {first: "done", ID: "running"}
    assert [type(command) for command in story.tell(SaveFailed(save.number, "disk full"))] == [Report]
    said = story.settle(story.tell(Wakeup(), limits.TASK_JOURNAL_RETRY_S))
    assert Run(ID, "ping", {}) in said


def test_the_end_of_an_action_is_told_even_if_the_disk_refuses_it() -> None:
    story = running()
    (save,) = story.tell(ActionEnded(ID, DONE))
    assert isinstance(save, Save)
    assert story.tell(SaveFailed(save.number, "disk full")) == [Report(ID, "done", output={"version": "1"})]


def test_new_tasks_are_left_to_their_next_delivery_while_the_disk_does_not_keep_up() -> None:
    story = Story()
    for number in range(limits.TASK_SAVES_MAX):
        assert story.get(numbered(number))
    assert story.get(TASK) == []


# --- Refused and expired ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "state", "message"),
    [
        (Task(ID, CLOUD, "update-now", {}, CLOUD + 1), "refused", "not allowed here"),
        (Task(ID, CLOUD, "ping", {}, CLOUD), "expired", "its deadline had passed when it came"),
        (Task(ID, CLOUD, "ping", {}, CLOUD - 5), "expired", "its deadline had passed when it came"),
        (CANCEL, "cancelled", "before it began"),
    ],
)
def test_what_is_not_begun_is_remembered_and_told(task: Task, state: str, message: str) -> None:
    story = Story()
    said = story.get(task)
    assert [type(command) for command in said] == [Save]
    assert story.settle(said) == [Report(ID, state, message=message)]  # type: ignore[arg-type]
    assert story.get(TASK) == [Report(ID, state, message=message)]  # type: ignore[arg-type]


def test_a_delivery_that_names_no_action_is_refused() -> None:
    assert Story().get(Task(ID, CLOUD)) == [Report(ID, "refused", message="it names no action")]


def test_a_task_whose_turn_does_not_come_in_time_expires() -> None:
    """The time counts from its receipt, whatever the two clocks say."""
    story = busy()
    assert Report(ID, "accepted") in story.settle(story.get(TASK, 100.0))
    ends = [(at, said) for at, said in story.wait(2000.0) if isinstance(said, Report) and said.id == ID]
    assert ends == [(700.0, Report(ID, "expired", message="its deadline came before its turn"))]


def test_only_so_many_tasks_run_or_wait() -> None:
    story = busy()
    for number in range(100, 100 + limits.TASKS_WAITING_MAX):
        assert story.settle(story.get(numbered(number))) == [Report(f"{number:016x}", "accepted")]
    assert story.settle(story.get(TASK)) == [Report(ID, "refused", message="64 tasks wait here already")]
    said = story.settle(story.tell(ActionEnded(numbered(0).id, DONE)))
    assert [command.id for command in said if isinstance(command, Run)] == [numbered(100).id]


# --- Cancelling ------------------------------------------------------------------------------------------------------


def test_a_cancellation_that_overtakes_its_task_is_remembered() -> None:
    story = Story()
    assert story.settle(story.get(CANCEL)) == [Report(ID, "cancelled", message="before it began")]
    assert story.get(TASK) == [Report(ID, "cancelled", message="before it began")]


def test_a_waiting_task_is_cancelled_at_once() -> None:
    story = busy()
    story.settle(story.get(TASK))
    assert story.settle(story.get(CANCEL)) == [Report(ID, "cancelled", message="before it began")]
    assert story.settle(story.tell(ActionEnded(numbered(0).id, DONE))) == [
        Report(numbered(0).id, "done", output={"version": "1"})
    ]


def test_a_task_cancelled_while_the_disk_writes_it_down_is_not_begun() -> None:
    story = Story()
    story.get(TASK)
    (save,) = story.get(CANCEL)
    assert story.tell(Saved(1)) == []
    assert isinstance(save, Save)
    assert story.tell(Saved(save.number)) == [Report(ID, "cancelled", message="before it began")]


def test_a_running_action_is_stopped_once_and_its_true_end_told() -> None:
    """It may be done before the stop reaches it."""
    for end in (DONE, Outcome("cancelled", "it was stopped")):
        story = running()
        assert story.get(CANCEL) == [Stop(ID)]
        assert story.get(CANCEL) == []
        assert story.settle(story.tell(ActionEnded(ID, end))) == [Report(ID, end.state, None, end.message, end.output)]
        assert story.get(CANCEL) == [Report(ID, end.state, None, end.message, end.output)]


# --- Progress --------------------------------------------------------------------------------------------------------


def test_a_running_task_is_reported_often_enough() -> None:
    """Progress is due every 25 s; silence counts as lost."""
    assert [at for at, _ in running().wait(100.0)] == [20.0, 40.0, 60.0, 80.0, 100.0]


def test_progress_is_told_soon_but_not_all_of_it() -> None:
    story = running()
    said: list[Command] = []
    for tenth in range(100):
        said += story.tell(ActionProgressed(ID, tenth, "copies"), tenth / 10)
    assert 4 <= len(said) <= 10 / limits.TASK_PROGRESS_MIN_S + 1
    assert all(isinstance(command, Report) and command.message == "copies" for command in said)


def test_the_last_words_of_an_action_that_has_ended_change_nothing() -> None:
    story = running()
    story.settle(story.tell(ActionEnded(ID, DONE)))
    assert story.tell(ActionEnded(ID, Outcome("failed"))) == []
    assert story.tell(ActionProgressed(ID, 99, None)) == []
    assert story.tell(ActionEnded("00000000000000ff", DONE)) == []


# --- Roaming ---------------------------------------------------------------------------------------------------------


def test_while_roaming_no_task_starts_and_a_new_one_leaves_no_trace() -> None:
    story = Story()
    story.tell(RoamingChanged(True))
    assert story.get(TASK) == []
    assert story.wait(300.0) == []
    story.tell(RoamingChanged(False))
    assert Run(ID, "ping", {}) in story.settle(story.get(TASK))


def test_what_was_accepted_before_waits_for_the_end_of_roaming_and_what_runs_goes_on() -> None:
    story = busy()
    story.settle(story.get(TASK))
    story.tell(RoamingChanged(True))
    said = story.settle(story.tell(ActionEnded(numbered(0).id, DONE)))
    assert [type(command) for command in said] == [Report]
    assert Run(ID, "ping", {}) in story.settle(story.tell(RoamingChanged(False)))


def test_roaming_that_begins_while_the_disk_writes_keeps_the_task_from_starting() -> None:
    story = Story()
    story.get(TASK)
    story.tell(RoamingChanged(True))
    said = story.settle(story.tell(Saved(1)))
    assert said == [Report(ID, "accepted")]
    assert Run(ID, "ping", {}) in story.settle(story.tell(RoamingChanged(False)))


def test_a_roaming_hub_can_still_be_told_to_forget_a_task() -> None:
    story = Story()
    story.tell(RoamingChanged(True))
    assert story.settle(story.get(CANCEL)) == [Report(ID, "cancelled", message="before it began")]


# --- Restarts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (record("running"), [Report(ID, "failed", message=INTERRUPTED)]),
        (record("running", action="restart-hub"), [Report(ID, "done")]),
        (record("accepted"), [Report(ID, "running"), Run(ID, "ping", {})]),
        (record("done"), []),
        (record("cancelled", action=None), []),
        (record("accepted", lasts_ms=30_000), [Report(ID, "expired", message="its deadline came before its turn")]),
    ],
)
def test_a_restart_tells_what_has_become_of_each_task(held: TaskRecord, said: list[Command]) -> None:
    """Nothing that ran runs again; what waited goes on, if there is time left."""
    story = Story(held, started_ms=T0 + 60_000)
    due = story.tasks.deadline()
    assert (due == 0.0) == bool(said)
    assert story.settle(story.tell(Wakeup())) == said
    state = said[0].state if said and isinstance(said[0], Report) else held.state
    assert [command.state for command in story.get(TASK) if isinstance(command, Report)] == [state]


def test_a_clock_that_was_set_back_gives_a_waiting_task_no_more_time_than_it_had() -> None:
    story = Story(record("accepted"), started_ms=T0 - 86_400_000 * 30)
    story.tell(RoamingChanged(True))
    assert [at for at, _ in story.wait(10_000.0)] == [600.0]


def test_a_restarted_hub_does_not_begin_what_waits_while_it_roams() -> None:
    story = Story(record("accepted"))
    assert story.tell(RoamingChanged(True)) == []
    assert story.wait(500.0) == []


# --- Bounds ----------------------------------------------------------------------------------------------------------


def test_a_task_is_forgotten_a_day_after_its_deadline() -> None:
    story = running()
    story.settle(story.tell(ActionEnded(ID, DONE)))
    assert story.tasks.deadline() == 600.0 + limits.TASK_REMEMBERED_S
    (save,) = story.tell(Wakeup(), 600.0 + limits.TASK_REMEMBERED_S)
    assert save == Save(3, (), (ID,))
    assert story.tell(Saved(3)) == []
    assert story.tasks.deadline() is None


def test_what_is_remembered_is_bounded_and_only_what_is_over_makes_room() -> None:
    """A task that could still be delivered is never forgotten for another one."""
    many = [
        TaskRecord(f"{number:016x}", "done", T0, 600_000, "ping")
        for number in range(1000, 1000 + limits.TASKS_REMEMBERED_MAX)
    ]
    story = Story(*many)
    (report,) = story.get(TASK)
    assert isinstance(report, Report)
    assert report.state == "refused"
    (save,) = story.get(TASK, 601.0)
    assert isinstance(save, Save)
    assert save.forgotten == (many[0].id,)
    assert [kept.id for kept in save.records] == [ID]


def test_only_the_newest_outputs_are_kept() -> None:
    """A hub has 40 MB in all; what the cloud has stored need not be here as well."""
    story = Story()
    for number in range(20):
        story.settle(story.get(numbered(number)))
        said = story.settle(story.tell(ActionEnded(numbered(number).id, DONE)))
        assert said == [Report(numbered(number).id, "done", output={"version": "1"})]
    answers = [story.get(numbered(number))[0] for number in range(20)]
    outputs = [answer.output for answer in answers if isinstance(answer, Report)]
    assert outputs[-1] == {"version": "1"}
    assert sum(output is not None for output in outputs) <= limits.TASK_OUTPUTS_KEPT + 1
