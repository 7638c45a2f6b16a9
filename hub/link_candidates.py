"""Which site broker a hub tries next (pure): those that worked, those that a search finds, those that are configured.

They are tried in rounds, each at most once in a round. Within a search, the order is by rendezvous hashing.
"""

from __future__ import annotations

import hashlib
from enum import Enum

from config import limits


class Step(Enum):
    """What a round wants instead of one more site broker."""

    SEARCH = "search"
    WAIT = "wait"
    """A search is under way."""
    BEGIN_ANEW = "begin anew"
    """All were tried."""


class Candidates:
    """The site brokers that one hub knows of. `worked` are those that were used, the last first."""

    def __init__(self, hub_id: str, cached: tuple[str, ...], configured: tuple[str, ...], *, discovery: bool):
        self.worked = list(cached[: limits.CANDIDATES_MAX])
        self._hub_id = hub_id
        self._configured = configured
        self._discovery = discovery
        self._heard: list[str] = []  # Others that have answered a search; nothing else speaks for them.
        self._remembered = cached
        self._round: list[str] = []  # Those still to be tried in this round.
        self._tried: set[str] = set()
        self._stage = _Stage.KNOWN

    @property
    def wait(self) -> bool:
        """Tell whether nothing can be tried before the search has found something, or ends."""
        return self._stage is _Stage.SEARCHING and not self._round

    def rank(self, endpoint: str) -> bytes:
        """Rendezvous hashing: each hub prefers another site broker, and the hubs of a lost one spread over the rest."""
        return hashlib.sha256(f"{self._hub_id} {endpoint}".encode()).digest()

    def know_better(self, used: str) -> bool:
        """Tell whether this hub prefers another one to the one that it uses."""
        return any(self.rank(endpoint) < self.rank(used) for endpoint in (*self.worked, *self._heard))

    def found(self, endpoint: str) -> None:
        """Take note of an answer to the search."""
        if endpoint not in self.worked:
            self._heard = [*(other for other in self._heard if other != endpoint), endpoint][-limits.CANDIDATES_MAX :]
        if endpoint not in self._tried and endpoint not in self._round:
            self._round.append(endpoint)
            self._round.sort(key=self.rank)

    def search_ended(self) -> None:
        """Go on with those that are configured, once all that were found are tried."""
        if self._stage is _Stage.SEARCHING:
            self._stage = _Stage.CONFIGURED

    def remember(self, used: str | None) -> tuple[str, ...] | None:
        """Put the one that works, if any, at the head; return what is to be kept on disk, or None if that is there."""
        if used is not None:
            others = (other for other in self.worked if other != used)
            self.worked = [used, *others][: limits.CANDIDATES_MAX]
        if tuple(self.worked) == self._remembered:
            return None
        self._remembered = tuple(self.worked)
        return self._remembered

    def begin_round(self) -> None:
        """Let each be tried once more; a search that is under way goes on."""
        self._round, self._tried = [], set()
        if self._stage is not _Stage.SEARCHING:
            self._stage = _Stage.KNOWN

    def next(self, *, better_than: str | None, but: str | None) -> str | Step:
        """Return the next one of the round, known ones first, or what is to be done instead.

        `better_than` is the one in use, if its path is good: then only one that this hub prefers to it is worth a try, and no
        search. `but` has a session already.
        """
        if self._stage is _Stage.KNOWN and not self._round and not self._tried:
            # A search comes next, and brings those that answer now; for a broker only preferred, none is made.
            self._round = list(self.worked) if better_than is None else [*self.worked, *self._heard]
        while True:
            while self._round:
                endpoint = self._round.pop(0)
                self._tried.add(endpoint)
                if endpoint != but and (better_than is None or self.rank(endpoint) < self.rank(better_than)):
                    return endpoint
            match self._stage:
                case _Stage.KNOWN if self._discovery and better_than is None:
                    self._stage = _Stage.SEARCHING
                    return Step.SEARCH
                case _Stage.KNOWN:
                    self._stage = _Stage.CONFIGURED
                case _Stage.SEARCHING:
                    return Step.WAIT
                case _Stage.CONFIGURED:
                    self._stage = _Stage.OVER
                    self._round = [endpoint for endpoint in self._configured if endpoint not in self._tried]
                case _Stage.OVER:
                    return Step.BEGIN_ANEW


class _Stage(Enum):
    """How far a round has come."""

    KNOWN = "known"
    SEARCHING = "searching"
    CONFIGURED = "configured"
    OVER = "over"
