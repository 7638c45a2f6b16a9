"""The wall clock, for stamping messages; never a reason to act."""

from __future__ import annotations

import time


def unix_ms() -> int:
    """Return Unix milliseconds by this machine's clock."""
    return time.time_ns() // 1_000_000
