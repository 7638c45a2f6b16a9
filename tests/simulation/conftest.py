"""Simulations are not traced for coverage: it takes them three times as long, and the pure cores have tests of their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def untraced() -> Iterator[None]:
    """Take the tracer away for a test (pytest-cov's mark `no_cover` leaves one behind in a worker of pytest-xdist)."""
    tracer = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(tracer)
