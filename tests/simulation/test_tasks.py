"""The task machines of cloud and hub under every fault: each task runs once or says why not, and both tell the same end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hub.tasks import INTERRUPTED, RESTART
from tests.simulation.task_world import Weather, World

DAY_S = 86_400.0
Story = Callable[[World], None]

CALM = Weather(loss=0.0, doubling=0.0, delay_s=0.2, outages=0, calm_at=0.0)


def check(world: World) -> None:
    """Judge a history at its end."""
    assert world.cloud_tasks is not None
    assert world.cloud_tasks.open_targets == 0, "a task hangs for ever"
    assert world.cloud_tasks.deadline() is None
    assert world.started_while_roaming == 0
    for task, order in world.orders.items():
        standing, runs = world.database.standing(task), world.runs[task]
        story = f"task {task} ({order.action}): {standing}, ran {runs} times, in truth {world.truth.get(task)}"
        assert standing.final, story
        assert runs <= 1, story
        truth = world.truth.get(task)
        if truth is None:
            assert runs == 0, story
            assert standing.state in ("expired", "cancelled", "refused"), story
        else:
            assert standing.state == truth.state, story
            assert standing.output is None or standing.output == truth.output, story
        if standing.state == "done":
            assert runs == 1 or (order.action == RESTART and world.kills["hub"]), story
        else:
            assert task in world.cancelled or runs == 0 or standing.message == INTERRUPTED, story
        in_time = order.expires_ms / 1000 - 1_763_798_400 > world.weather.calm_at + 200
        if in_time and task not in world.cancelled and not order.skip_if_offline and not world.weather.disk_refuses:
            assert standing.state == "done" or (standing.message == INTERRUPTED and world.kills["hub"]), story
        assert world.sends[task] < 100, story


def several(world: World) -> None:
    """More tasks than a hub runs at once, one of them a restart, some taken back."""
    tasks: list[str] = []
    for number in range(6):
        world.at(number * 3.0, lambda: tasks.append(world.create()))
    world.at(20.0, lambda: tasks.append(world.create(RESTART)))
    world.at(30.0, lambda: tasks.append(world.create(lasts_s=25.0)))
    world.at(8.0, lambda: world.cancel(tasks[0]))
    world.at(31.0, lambda: world.cancel(tasks[-2]))
    world.at(33.0, lambda: world.cancel(tasks[3]))
    world.at(40.0, lambda: tasks.append(world.create(skip=True)))


def two(world: World) -> None:
    """Little enough to kill either side before each of its steps."""
    tasks: list[str] = []
    world.at(1.0, lambda: tasks.append(world.create()))
    world.at(2.0, lambda: tasks.append(world.create()))
    world.at(9.0, lambda: world.cancel(tasks[0]))


def roamer(world: World) -> None:
    """The hub roams for a while, with tasks under way."""
    several(world)
    world.at(10.0, lambda: world.roam(roaming=True))
    world.at(200.0, lambda: world.roam(roaming=False))


def run(story: Story, seed: int, weather: Weather, **kills: int) -> World:
    world = World(seed, weather, **kills)
    story(world)
    world.run(3 * DAY_S)
    return world


def test_a_task_runs_once_and_ends_as_it_should_when_nothing_goes_wrong() -> None:
    """The simplest history, told in full."""
    world = World(1, CALM)
    world.at(5.0, world.create)
    world.run(300.0)
    (task,) = world.orders
    assert world.runs[task] == 1
    assert world.sends[task] == 1
    assert world.database.standing(task).state == "done"
    assert world.database.standing(task).output == {"run": 1}


@pytest.mark.parametrize("story", [several, roamer])
@pytest.mark.parametrize("seed", range(60))
def test_both_sides_tell_the_same_end_on_a_channel_that_loses_doubles_and_reorders(seed: int, story: Story) -> None:
    """Brokers keep nothing, and any message may come late."""
    check(run(story, seed, Weather()))


@pytest.mark.parametrize("seed", range(30))
def test_a_polling_hub_gets_its_tasks_at_its_polls(seed: int) -> None:
    """The cloud starts nothing toward it, and still each task comes to its end."""
    world = run(several, seed, Weather(polling_s=45.0))
    skipped = [task for task, order in world.orders.items() if order.skip_if_offline]
    assert [world.database.standing(task).message for task in skipped] == ["skipped: offline"]
    check(world)


@pytest.mark.parametrize("seed", range(30))
def test_a_disk_that_refuses_at_times_never_makes_a_task_run_twice(seed: int) -> None:
    """What could not be remembered is not begun."""
    world = run(several, seed, Weather(disk_refuses=0.3), kill_hub_at=60 + 7 * seed)
    for task, runs in world.runs.items():
        assert runs <= 1, task
    assert all(world.database.standing(task).final for task in world.orders)


@pytest.mark.parametrize("side", ["hub", "cloud"])
@pytest.mark.parametrize("weather", [CALM, Weather(calm_at=60.0), Weather(calm_at=60.0, polling_s=60.0)])
@pytest.mark.parametrize("seed", range(3))
def test_either_side_may_be_killed_before_any_of_its_steps(side: str, weather: Weather, seed: int) -> None:
    """A crash between two steps is where promises break: so every place between two steps is tried."""
    steps = run(two, seed, weather).steps
    killed = 0
    for step in range(1, steps + 1):
        world = run(two, seed, weather, **{f"kill_{side}_at": step})
        killed += world.kills[side]
        check(world)
    assert killed > 10


@pytest.mark.parametrize("seed", range(25))
def test_both_sides_may_be_killed_in_one_history(seed: int) -> None:
    """Restarts of one side often come with those of the other."""
    check(run(several, seed, Weather(), kill_hub_at=20 + 5 * seed, kill_cloud_at=15 + 9 * seed))
