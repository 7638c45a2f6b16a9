"""How long to wait before the next attempt: exponential, capped, full jitter; forgotten only after a stable time."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from config import limits


@dataclass(slots=True)
class Backoff:
    """The waits of one endpoint. `random` gives the jitter, so that one seed is one history."""

    random: Random
    first_s: float = limits.BACKOFF_FIRST_S
    max_s: float = limits.BACKOFF_MAX_S
    stable_s: float = limits.BACKOFF_STABLE_S
    failures: int = 0

    def next_s(self) -> float:
        """Count one more failure and return the seconds to wait: uniform in 0 to min(max_s, first_s x 2^failures)."""
        ceiling_s = min(self.max_s, self.first_s * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return self.random.uniform(0.0, ceiling_s)

    def lived(self, seconds: float) -> None:
        """Tell how long a connection lived; only a stable one forgets the failures before it."""
        if seconds >= self.stable_s:
            self.failures = 0
