"""The schedule's table: what is due when, on a clock that the test holds in its hand."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import limits
from hub.schedule import Schedule


def served(schedule: Schedule, until: float) -> list[tuple[float, list[str]]]:
    """Serve every deadline in time, up to `until`."""
    turns = []
    while (deadline := schedule.deadline()) is not None and deadline <= until:
        turns.append((deadline, schedule.take_due(deadline)))
    return turns


def test_without_sensors_nothing_is_ever_due() -> None:
    assert Schedule({}, 5.0).deadline() is None


def test_all_sensors_are_due_at_the_start() -> None:
    """A hub that starts tells at once how its machine is."""
    schedule = Schedule({"cpu": 10.0, "disk": 60.0}, 100.0, Random(1))
    assert schedule.deadline() == 100.0
    assert schedule.take_due(100.0) == ["cpu", "disk"]


def test_sensors_with_a_common_multiple_are_due_together() -> None:
    """One point for all saves bytes on the line and wake-ups of the machine."""
    schedule = Schedule({"cpu": 10.0, "disk": 30.0}, 0.0)
    assert served(schedule, 60.0) == [
        (0.0, ["cpu", "disk"]),
        (10.0, ["cpu"]),
        (20.0, ["cpu"]),
        (30.0, ["cpu", "disk"]),
        (40.0, ["cpu"]),
        (50.0, ["cpu"]),
        (60.0, ["cpu", "disk"]),
    ]


def test_intervals_that_binary_numbers_cannot_say_stay_together_for_a_day() -> None:
    """0.1 and 0.3 s are due together every 0.3 s, though their multiples differ in the last bit."""
    turns = served(Schedule({"fast": 0.1, "slow": 0.3}, 1e6), 1e6 + 100)
    assert [names for _, names in turns[:7]] == [["fast", "slow"], ["fast"], ["fast"]] * 2 + [["fast", "slow"]]
    assert len(turns) in (1000, 1001)
    assert all(names != ["slow"] for _, names in turns)


def test_a_late_wakeup_does_not_move_the_grid() -> None:
    """Else intervals would drift by every delay of a busy machine."""
    schedule = Schedule({"cpu": 10.0}, 0.0)
    schedule.take_due(0.0)
    assert schedule.take_due(13.5) == ["cpu"]
    assert schedule.deadline() == 20.0


def test_an_early_wakeup_serves_the_turn_once() -> None:
    """Timers may fire a moment early; the sensor must not be asked twice for it."""
    schedule = Schedule({"cpu": 10.0}, 0.0)
    schedule.take_due(0.0)
    assert schedule.take_due(10.0 - limits.SENSOR_TOGETHER_S / 2) == ["cpu"]
    assert schedule.take_due(10.0) == []
    assert schedule.deadline() == 20.0


def test_nothing_is_due_before_its_time() -> None:
    schedule = Schedule({"cpu": 10.0}, 0.0)
    schedule.take_due(0.0)
    assert schedule.take_due(9.9) == []


def test_a_machine_that_slept_is_sampled_once_for_all_that_was_missed() -> None:
    schedule = Schedule({"cpu": 10.0, "disk": 60.0}, 0.0)
    schedule.take_due(0.0)
    assert schedule.take_due(8 * 3600.0 + 3) == ["cpu", "disk"]
    assert schedule.deadline() == 8 * 3600.0 + 10


def test_hubs_that_start_together_do_not_sample_together() -> None:
    """A site that gets its power back must not send in step for ever."""
    seconds = [Schedule({"cpu": 10.0}, 0.0, Random(seed)) for seed in range(20)]
    for schedule in seconds:
        schedule.take_due(0.0)
    assert len({schedule.deadline() for schedule in seconds}) == 20


@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(limits.SENSOR_INTERVAL_MIN_S, 100.0), min_size=1),
    st.floats(0, 1e9),
    st.lists(st.floats(0.0, 500.0), max_size=50),
    st.integers(0, 1000),
)
def test_every_sensor_is_due_once_per_interval_at_most_and_always_again(
    intervals_s: dict[str, float], start: float, waits_s: list[float], seed: int
) -> None:
    """For any intervals and any delays of the wake-ups."""
    schedule = Schedule(intervals_s, start, Random(seed))
    now, counts = start, dict.fromkeys(intervals_s, 0)
    for wait_s in (0.0, *waits_s):
        now += wait_s
        for name in schedule.take_due(now):
            counts[name] += 1
        deadline = schedule.deadline()
        assert deadline is not None
        assert now < deadline <= now + max(intervals_s.values()) + 2 * limits.SENSOR_TOGETHER_S
    for name, interval_s in intervals_s.items():
        assert 1 <= counts[name] <= (now - start) / interval_s + 3


def test_the_grid_holds_after_a_year() -> None:
    schedule = Schedule({"cpu": 10.0}, 0.0)
    year_s = 365 * 86_400.0
    schedule.take_due(year_s)
    assert schedule.deadline() == pytest.approx(year_s + 10.0, abs=1e-6)
