"""A hub's status as people and programs are told it: what presence has found, with icon, sentence and required actions."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from broker import status as vector
from broker.control import Presence, Protection
from broker.status_text import Language
from cloud.presence_facts import Status
from config import limits


class StatusWords:
    """Remembers what it has said: the hubs of a list share most of their sentences."""

    def __init__(self, language: Language):
        self._language = language
        self._assess: Final = lru_cache(limits.ASSESSMENTS_REMEMBERED)(vector.assess)

    def told(self, status: Status, protection: Protection | None) -> Presence:
        """Return what is published of a hub. `protection` is what it reports of its endpoint protection."""
        shown = self._assess(
            status.connection,
            protection,
            reason=status.reason,
            language=self._language,
            via=status.via,
            last_seen_ms=_minute_of(status.last_seen_ms),
            expected_direct_by_ms=_minute_of(status.expected_direct_by_ms),
        )
        return Presence(
            connection=status.connection,
            since=status.since_ms,
            via=status.via,
            reason=status.reason,
            last_seen=status.last_seen_ms,
            icon=shown.icon,
            text=shown.text,
            actions=list(shown.actions),
            expected_direct_by=status.expected_direct_by_ms,
            skew_ms=status.skew_ms,
            evidence=status.evidence,
        )


def _minute_of(ms: int | None) -> int | None:
    """Return the minute's beginning: sentences tell no less, so that the hubs of a list share most of them."""
    return None if ms is None else ms - ms % 60_000
