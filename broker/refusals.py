"""Counts what a broker refuses, by kind and by client, and logs it in streaks: the first, and the end with its length."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Final

from config import limits, log

_OTHERS: Final = "others"
_BY_REASON: Final = ("tls", "certificate")
"""Before somebody is known by a certificate, many may share an address: another reason is then another streak."""

_ORDINARY: Final = ("silent", "taken-over")
"""What happens to honest clients too, whenever a laptop is closed or changes its network."""


@dataclass(slots=True)
class _Streak:
    """Refusals of one kind for one client, one after the other."""

    first_at: float
    last_at: float
    count: int = 1


class Refusals:
    """The refusals of one broker since its start. Everything in it is bounded."""

    def __init__(self) -> None:
        self.by_kind: Counter[str] = Counter()
        self._by_client: OrderedDict[str, Counter[str]] = OrderedDict()
        self._others: Counter[str] = Counter()
        self._streaks: OrderedDict[tuple[str, str, str], _Streak] = OrderedDict()
        self._log = log.get(__name__)

    def note(self, kind: str, client: str, reason: str, now: float) -> None:
        """Count a refusal and log it: as WARNING (INFO for what is ordinary) if it begins a streak, else as DEBUG.

        `client` is the certificate's holder ("hub/pc-17"), or the address of one who has not shown a certificate.
        """
        self.by_kind[kind] += 1
        counts = self._by_client.setdefault(client, Counter())
        counts[kind] += 1
        self._by_client.move_to_end(client)
        if len(self._by_client) > limits.REFUSALS_KEPT:
            self._others.update(self._by_client.popitem(last=False)[1])
        key = (client, kind, reason if kind in _BY_REASON else "")
        streak = self._streaks.get(key)
        if streak is None:
            self._streaks[key] = _Streak(now, now)
            if len(self._streaks) > limits.REFUSALS_KEPT:
                self._streaks.popitem(last=False)
            say = self._log.info if kind in _ORDINARY else self._log.warning
            say("client_refused", kind=kind, client=client, reason=reason)
        else:
            streak.last_at = now
            streak.count += 1
            self._streaks.move_to_end(key)
            self._log.debug("client_refused", kind=kind, client=client, reason=reason, count=streak.count)

    def end_streaks(self, now: float) -> None:
        """Log the end of every streak that has been quiet for REFUSALS_QUIET_S."""
        while self._streaks:
            key, streak = next(iter(self._streaks.items()))
            if now - streak.last_at < limits.REFUSALS_QUIET_S:
                return
            del self._streaks[key]
            if streak.count > 1:
                client, kind, _ = key
                seconds = round(streak.last_at - streak.first_at, 1)
                self._log.info("client_refusals_ended", kind=kind, client=client, count=streak.count, seconds=seconds)

    def by_client(self) -> dict[str, dict[str, int]]:
        """Return the counts by client; clients whose last refusal is long ago are counted together."""
        counts = {client: dict(kinds) for client, kinds in self._by_client.items()}
        if self._others:
            counts[_OTHERS] = dict(self._others)
        return counts
