"""How far a hub's clock is off, whatever its messages went through on their way."""

from __future__ import annotations

from random import Random

import pytest

from cloud.skew import SkewMeter
from config import limits

NOW_MS = 1_763_798_400_000
HUB = ("berlin", "pc-1", "9f2c4be1d07a6b53")
WINDOW_MS = int(limits.SKEW_WINDOW_S * 1000)


def measured(meter: SkewMeter, skew_ms: int, delays_ms: list[int], at_ms: int = NOW_MS) -> int:
    """Return the last estimate after messages that took these times, a second apart."""
    told = 0
    for number, delay_ms in enumerate(delays_ms):
        sent_ms = at_ms + number * 1000
        told = meter.measure(HUB, sent_ms + skew_ms, sent_ms + delay_ms)
    return told


@pytest.mark.parametrize("skew_ms", [3_600_000, -3_600_000, 10_000, -45_000])
def test_a_wrong_clock_is_seen_by_the_message_that_was_least_delayed(skew_ms: int) -> None:
    told = measured(SkewMeter(), skew_ms, [20_000, 9_000, 15, 4_000, 30_000])
    assert told == skew_ms - 15


@pytest.mark.parametrize(("skew_ms", "delays_ms"), [(0, [20, 5_000]), (1_500, [10]), (-2_000, [10]), (0, [20_000])])
def test_a_clock_that_is_nearly_right_is_left_alone(skew_ms: int, delays_ms: list[int]) -> None:
    """Else every reading would be moved by the time that its message has taken."""
    assert measured(SkewMeter(), skew_ms, delays_ms) == 0


def test_a_healthy_hub_is_not_moved_by_one_message_that_was_held_up_for_long() -> None:
    assert measured(SkewMeter(), 0, [20, 30, 120_000]) == 0


@pytest.mark.parametrize("before_ms", [3_600_000, 60_000, -3_600_000])
def test_a_clock_that_was_set_right_counts_as_right_at_once(before_ms: int) -> None:
    """Else what is measured after NTP has mended it would be dated wrongly, by us."""
    meter = SkewMeter()
    assert measured(meter, before_ms, [0, 0]) == before_ms
    assert measured(meter, 0, [5], NOW_MS + 5_000) == 0


def test_a_clock_that_is_set_back_is_seen_at_once() -> None:
    meter = SkewMeter()
    assert measured(meter, 0, [5, 5]) == 0
    assert measured(meter, -3_600_000, [5], NOW_MS + 5_000) == -3_600_005


def test_a_clock_that_is_ahead_a_little_counts_as_right_after_two_windows() -> None:
    """A small step back can't be told from a late message."""
    meter = SkewMeter()
    assert measured(meter, 20_000, [0, 0]) == 20_000
    assert measured(meter, 0, [5], NOW_MS + WINDOW_MS) == 20_000
    assert measured(meter, 0, [5], NOW_MS + 2 * WINDOW_MS + 5_000) == 0


def test_a_late_message_of_a_wrong_clock_misleads_only_for_itself() -> None:
    meter = SkewMeter()
    assert measured(meter, 3_600_000, [0, 0, 40_000]) == 3_560_000
    assert measured(meter, 3_600_000, [0], NOW_MS + 5_000) == 3_600_000


def test_each_outbox_has_a_clock_of_its_own() -> None:
    """Two machines with one identity have two clocks."""
    meter = SkewMeter()
    assert meter.measure(HUB, NOW_MS + 60_000, NOW_MS) == 60_000
    assert meter.measure((*HUB[:2], "00000000000000aa"), NOW_MS, NOW_MS + 10) == 0


def test_the_memory_is_bounded() -> None:
    meter, random = SkewMeter(streams_max=100), Random(1)
    for _ in range(1_000):
        meter.measure(("berlin", f"pc-{random.randrange(10**6)}", "0" * 16), NOW_MS, NOW_MS)
    assert len(meter._windows) <= 100
