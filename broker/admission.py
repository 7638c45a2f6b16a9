"""How many may come in a second, so that a whole site that reconnects at once does not stop the traffic. Pure."""

from __future__ import annotations


class Admission:
    """A token bucket: `per_s` on average, and a fifth of a second's worth (at least one) at once."""

    def __init__(self, per_s: float, now: float):
        self._per_s = per_s
        self._most = max(1.0, per_s / 5)
        self._tokens = self._most
        self._at = now

    def take(self, now: float) -> bool:
        """Take a token if there is one."""
        self._refill(now)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def wait_s(self, now: float) -> float:
        """Return after how many seconds there will be a token."""
        self._refill(now)
        return max(0.0, (1 - self._tokens) / self._per_s)

    def _refill(self, now: float) -> None:
        self._tokens = min(self._most, self._tokens + max(0.0, now - self._at) * self._per_s)
        self._at = now
