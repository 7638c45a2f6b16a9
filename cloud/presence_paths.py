"""Which connectors hubs can speak through, and since when a hub's path is down without a word from it (pure).

A connector's fall is that of every hub behind it. When it is back, a hub still has to be heard of: with the site's broker, its
last will may have been lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from msgspec.structs import replace

from broker.messages import DIRECT, ConnectorState
from cloud.presence_facts import Record
from cloud.states import connector_state_holds
from config import limits

_SLACK_MS: Final = int(limits.WORD_SLACK_S * 1000)

Place: TypeAlias = tuple[str, str]
"""Site and id of a connector."""


@dataclass(frozen=True, slots=True)
class _Connector:
    """What a connector last said. `failure`: why hubs can't speak through it. It is good since `good_ms`.

    `proven`: our session has heard it good, so that its fall is news and no effect of our own outage.
    """

    state: ConnectorState
    failure: str | None
    good_ms: int
    proven: bool


class Paths:
    """The connectors of the fleet."""

    def __init__(self) -> None:
        self._connectors: Final[dict[Place, _Connector]] = {}

    def doubt(self) -> None:
        """Take none for proven any more: our own session has ended."""
        for place, known in self._connectors.items():
            self._connectors[place] = _Connector(known.state, known.failure, known.good_ms, proven=False)

    def hear(self, place: Place, state: ConnectorState, at_ms: int) -> bool:
        """Take in what a connector says, and tell whether hubs can speak through it has changed."""
        known, failure = self._connectors.get(place), _failure(state)
        if known is None:
            self._connectors[place] = _Connector(state, failure, at_ms, proven=failure is None)
            return True
        if not connector_state_holds((known.state.session, known.state.online, known.state.ts), state):
            return False
        was_good = known.failure is None
        good_ms = at_ms if failure is None and not was_good else known.good_ms
        proven = failure is None or (known.proven and (was_good or failure == known.failure))
        self._connectors[place] = _Connector(state, failure, good_ms, proven)
        return failure != known.failure

    def place_of(self, record: Record) -> Place | None:
        """Return the connector that a living hub speaks through."""
        life = record.life
        if life is None or life.via is None or life.via == DIRECT or not record.alive:
            return None
        return record.site, life.via

    def settle(self, record: Record, at_ms: int, *, moved: Literal["hub", "path"] | None) -> Record:
        """Note whether a hub's path is down. `moved`: the hub has just come to this path, or the path has just changed.

        A hub that comes to a path that is down has spoken through it, so the word that it is up may only be late.
        """
        if moved == "hub":
            record = _mended(record)
        place = self.place_of(record)
        connector = None if place is None else self._connectors.get(place)
        if connector is not None and connector.failure is not None:
            if record.fell_ms is not None:
                return replace(record, fell=connector.failure)
            if moved is None:
                return record  # It has spoken all the same.
            held = not (connector.proven and record.confirmed)
            shown_ms = at_ms + _SLACK_MS if moved == "hub" else at_ms
            return replace(record, fell_ms=at_ms, fell=connector.failure, fell_shown_ms=shown_ms, fell_held=held)
        if record.fell_ms is None:
            return record
        heard_from_ms = record.fell_ms if connector is None else max(record.fell_ms, connector.good_ms - _SLACK_MS)
        if place is None or (record.word_ms is not None and record.word_ms >= heard_from_ms):
            return _mended(record)
        return record


def _mended(record: Record) -> Record:
    return replace(record, fell_ms=None, fell=None, fell_shown_ms=0, fell_held=False)


def _failure(state: ConnectorState) -> str | None:
    if not state.online:
        return "connector offline"
    if state.upstream == "down":
        return "connector's upstream down"
    return "site broker down" if state.site == "down" else None
