"""Admission decides how quickly a site comes back: never faster than the rate, and never slower than it must."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.admission import Admission


@given(st.floats(0.5, 1000), st.lists(st.floats(0, 2), max_size=100))
def test_never_more_pass_than_the_rate_allows(per_s: float, pauses: list[float]) -> None:
    now = 100.0
    admission = Admission(per_s, now)
    taken = 0
    for pause in pauses:
        now += pause
        taken += admission.take(now)
        assert taken <= max(1, per_s / 5) + per_s * (now - 100) + 1e-6


@given(st.floats(0.5, 1000))
def test_who_waits_as_long_as_told_passes(per_s: float) -> None:
    now = 100.0
    admission = Admission(per_s, now)
    while admission.take(now):
        pass
    for _ in range(50):
        wait_s = admission.wait_s(now)
        assert 0 < wait_s <= 1 / per_s
        now += wait_s + 1e-9
        assert admission.take(now)
        assert not admission.take(now)
