"""Waits between attempts: spread out, bounded, and short again only after a stable time."""

from __future__ import annotations

from random import Random

from broker.backoff import Backoff
from config import limits


def test_the_first_wait_is_within_a_second_and_spread() -> None:
    waits = [Backoff(Random(seed)).next_s() for seed in range(200)]
    assert max(waits) <= limits.BACKOFF_FIRST_S
    assert min(waits) < 0.1 * limits.BACKOFF_FIRST_S
    assert 0.4 < sum(waits) / len(waits) < 0.6


def test_waits_grow_to_the_bound_and_no_further() -> None:
    waits = [
        [(backoff := Backoff(Random(seed))).next_s(), *(backoff.next_s() for _ in range(2000))] for seed in range(5)
    ]
    assert max(map(max, waits)) <= limits.BACKOFF_MAX_S
    assert all(max(each[-100:]) > limits.BACKOFF_MAX_S / 2 for each in waits)


def test_a_short_life_forgets_nothing_and_a_stable_one_everything() -> None:
    backoff = Backoff(Random(1))
    for _ in range(10):
        backoff.next_s()
    backoff.lived(limits.BACKOFF_STABLE_S - 0.1)
    assert backoff.failures == 10
    backoff.lived(limits.BACKOFF_STABLE_S)
    assert backoff.failures == 0
