"""Tasks in a real database: written once, never taken back, found again by whoever asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from broker.control import Results, TaskReport
from cloud import presence_records
from cloud import task_records as records
from cloud.fleet_schema import TASKS
from cloud.hub_key import HubKey
from cloud.schema import prepare, writer_engine
from cloud.states import add_hub
from cloud.task_standing import OpenTarget, Standing, TargetChange, TargetState, TaskOrder
from config import limits
from config.errors import SettingsError
from tests.simulation.task_world import KEY, Weather, World
from tests.simulation.test_tasks import check, several

T0 = 1_763_798_400_000
ID, OTHER_ID = "00000000000000aa", "00000000000000bb"
ORDER = TaskOrder(ID, "run-check", {"name": "raid"}, T0, T0 + 600_000)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    assert TASKS.name == "tasks"
    engine = writer_engine(tmp_path / "cloud.db")
    with engine.connect() as opened, opened.begin():
        prepare(opened, tmp_path / "cloud.db", "acme")
        yield opened
    engine.dispose()


def results(*reports: TaskReport) -> Results:
    return Results(list(reports))


def standing_of(connection: Connection, hub_no: int, task: str = ID) -> Standing:
    found = records.target(connection, task, hub_no)
    assert found is not None
    return found.standing


def test_a_created_task_is_queued_at_each_of_its_hubs(connection: Connection) -> None:
    numbers = [add_hub(connection, "berlin", f"pc-{number}") for number in (1, 2)]
    records.create(connection, ORDER, "anna", [*numbers, numbers[0]])
    assert records.open_tasks(connection) == (
        OpenTarget(ORDER, ("berlin", "pc-1"), Standing(), T0),
        OpenTarget(ORDER, ("berlin", "pc-2"), Standing(), T0),
    )
    found = records.task(connection, ID)
    assert found == records.StoredTask(ORDER, "anna", {"queued": 2})
    assert found.open


def test_a_task_for_nobody_or_for_too_many_is_a_users_error(connection: Connection) -> None:
    for numbers in ([], range(limits.TASK_TARGETS_MAX + 1)):
        with pytest.raises(SettingsError, match="a task is for 1 to"):
            records.create(connection, ORDER, "anna", numbers)


def test_results_are_applied_once_in_whatever_order_and_only_to_the_hub_that_tells(connection: Connection) -> None:
    """A hub can't end another hub's task, and a repeated message changes nothing."""
    mine, other = add_hub(connection, *KEY), add_hub(connection, "paris", "pc-1")
    records.create(connection, ORDER, "anna", [mine, other])
    done = TaskReport(ID, "done", T0, output={"state": "ok"})
    running = TaskReport(ID, "running", T0, 40)
    assert records.apply_results(connection, mine, results(running), T0 + 1) == [(ID, Standing("running", 40))]
    assert records.apply_results(connection, mine, results(done), T0 + 2)
    assert records.apply_results(connection, mine, results(done, running), T0 + 3) == []
    assert records.apply_results(connection, mine, results(TaskReport(OTHER_ID, "done", T0)), T0 + 4) == []
    found = records.target(connection, ID, mine)
    assert found == records.StoredTarget(ID, mine, KEY, Standing("done", None, None, {"state": "ok"}), T0 + 2, None)
    assert standing_of(connection, other) == Standing()


@pytest.mark.parametrize(
    ("stored", "decided", "after"),
    [
        ("queued", Standing("sent"), "sent"),
        ("accepted", Standing("sent"), "accepted"),
        ("done", Standing("sent"), "done"),
        ("queued", Standing("expired"), "expired"),
        ("running", Standing("failed", presumed=True), "failed"),
        ("done", Standing("failed", presumed=True), "done"),
        ("cancelled", Standing("expired"), "cancelled"),
    ],
)
def test_what_a_hub_has_told_holds_against_what_the_machine_decided_meanwhile(
    connection: Connection, stored: TargetState, decided: Standing, after: TargetState
) -> None:
    """A result may be stored while the machine's decision waits for the database."""
    hub_no = add_hub(connection, *KEY)
    records.create(connection, ORDER, "anna", [hub_no])
    if stored != "queued":
        records.apply_results(connection, hub_no, results(TaskReport(ID, stored, T0)), T0)  # type: ignore[arg-type]
    for _ in range(2):
        records.save(connection, [TargetChange(ID, KEY, decided)], T0 + 9)
    assert standing_of(connection, hub_no).state == after


def test_a_wish_to_cancel_is_kept_and_changes_no_state(connection: Connection) -> None:
    hub_no = add_hub(connection, *KEY)
    records.create(connection, ORDER, "anna", [hub_no])
    records.save(connection, [TargetChange(ID, KEY, Standing("sent"))], T0 + 1)
    records.apply_results(connection, hub_no, results(TaskReport(ID, "running", T0, 10)), T0 + 2)
    for now_ms in (T0 + 3, T0 + 4):
        records.save(connection, [TargetChange(ID, KEY, Standing("sent"), cancel_asked=True)], now_ms)
    (target,) = records.open_tasks(connection)
    assert target == OpenTarget(ORDER, KEY, Standing("running", 10), T0 + 2, cancel_asked=True)
    (stored,) = records.targets(connection, ID)
    assert stored.cancel_ms == T0 + 3


def test_a_presumed_end_is_corrected_by_a_late_result(connection: Connection) -> None:
    hub_no = add_hub(connection, *KEY)
    records.create(connection, ORDER, "anna", [hub_no])
    records.save(connection, [TargetChange(ID, KEY, Standing("failed", 40, "lost", presumed=True))], T0)
    assert records.open_tasks(connection) == ()
    records.apply_results(connection, hub_no, results(TaskReport(ID, "running", T0, 50)), T0 + 1)
    assert standing_of(connection, hub_no) == Standing("failed", 40, "lost", presumed=True)
    records.apply_results(connection, hub_no, results(TaskReport(ID, "done", T0)), T0 + 1)
    assert standing_of(connection, hub_no) == Standing("done")


def test_tasks_are_found_page_by_page_by_hub_state_and_site(connection: Connection) -> None:
    """Every filter is a value, never a piece of SQL."""
    hubs: dict[HubKey, int] = {key: add_hub(connection, *key) for key in [KEY, ("berlin", "pc-18"), ("paris", "a")]}
    for number in range(7):
        order = TaskOrder(f"{number:016x}", "ping", {}, T0 + number // 2, T0 + 600_000)
        records.create(connection, order, "anna", list(hubs.values())[number % 3 :])
    seen: list[str] = []
    after = None
    while page := records.tasks(connection, after=after, limit=2):
        seen += [found.order.task for found in page]
        after = (page[-1].order.created_ms, page[-1].order.task)
    assert seen == [f"{number:016x}" for number in reversed(range(7))]
    mine = records.tasks(connection, hub_no=hubs[KEY])
    assert [found.order.task[-1] for found in mine] == ["6", "3", "0"]
    assert all(found.counts == {"queued": 1} for found in mine)
    records.apply_results(connection, hubs[KEY], results(TaskReport(f"{3:016x}", "done", T0)), T0)
    assert [found.order.task[-1] for found in records.tasks(connection, state="done")] == ["3"]
    assert records.tasks(connection, state="done", site="paris") == []
    assert len(records.tasks(connection, site="paris")) == 7
    assert len(records.tasks(connection, site="berlin")) == 5
    assert records.tasks(connection, site="' OR 1=1 --") == []
    assert records.task(connection, f"{2:016x}", site="berlin") is None
    first = records.targets(connection, f"{0:016x}", limit=2)
    assert [found.key for found in first] == [KEY, ("berlin", "pc-18")]
    assert [found.key for found in records.targets(connection, f"{0:016x}", after=first[-1].key)] == [("paris", "a")]
    assert [found.key for found in records.targets(connection, f"{3:016x}", state="done")] == [KEY]


def test_only_tasks_that_are_over_everywhere_are_pruned(connection: Connection) -> None:
    hub_no, other = add_hub(connection, *KEY), add_hub(connection, "paris", "a")
    records.create(connection, ORDER, "anna", [hub_no, other])
    records.apply_results(connection, hub_no, results(TaskReport(ID, "done", T0)), T0)
    assert records.prune(connection, T0 + 1) == 0
    records.apply_results(connection, other, results(TaskReport(ID, "done", T0)), T0)
    assert records.prune(connection, T0) == 0
    assert records.prune(connection, T0 + 1) == 1
    assert records.task(connection, ID) is None
    assert records.target(connection, ID, hub_no) is None


def test_a_forgotten_hub_leaves_the_others_part_of_a_task(connection: Connection) -> None:
    hub_no, other = add_hub(connection, *KEY), add_hub(connection, "paris", "a")
    records.create(connection, ORDER, "anna", [hub_no, other])
    assert presence_records.forget(connection, hub_no)
    assert [found.key for found in records.targets(connection, ID)] == [("paris", "a")]


def test_ids_are_what_the_contract_wants() -> None:
    made = {records.new_id() for _ in range(100)}
    assert len(made) == 100
    assert all(TaskReport(task, "done", T0).task == task and len(task) == 16 for task in made)


class RealDatabase:
    """The cloud's database in the simulation."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._hub_no = add_hub(connection, *KEY)

    def create(self, order: TaskOrder) -> None:
        records.create(self._connection, order, "anna", [self._hub_no])

    def open_tasks(self) -> tuple[OpenTarget, ...]:
        return records.open_tasks(self._connection)

    def save(self, changes: tuple[TargetChange, ...], now_ms: int) -> None:
        records.save(self._connection, changes, now_ms)

    def apply(self, report: TaskReport, now_ms: int) -> None:
        records.apply_results(self._connection, self._hub_no, results(report), now_ms)

    def standing(self, task: str) -> Standing:
        return standing_of(self._connection, self._hub_no, task)


@pytest.mark.parametrize("seed", range(8))
def test_the_simulated_world_has_the_same_history_with_the_real_database(connection: Connection, seed: int) -> None:
    """Its fast stand-in would hide what the SQL does differently."""
    worlds = []
    for database in (RealDatabase(connection), None):
        world = World(seed, Weather(), kill_hub_at=30 + 10 * seed, kill_cloud_at=25 + 11 * seed, database=database)
        several(world)
        world.run(3 * 86_400.0)
        check(world)
        worlds.append(world)
    real, fast = worlds
    assert [real.database.standing(task) for task in real.orders] == [
        fast.database.standing(task) for task in fast.orders
    ]
