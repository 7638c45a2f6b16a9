"""The outbox's one row of sums and durable numbers: what is counted here is never counted by a walk over the messages."""

from __future__ import annotations

import sqlite3
from dataclasses import astuple, dataclass
from typing import Final

_COLUMNS: Final = (
    "epoch, session, last_seq, age_ms, clock_ms, messages, points, bytes, points_written, points_lost, gaps"
)
_LOAD: Final = f"SELECT {_COLUMNS} FROM totals"  # noqa: S608
_STORE: Final = f"UPDATE totals SET ({_COLUMNS}) = ({', '.join('?' * len(_COLUMNS.split(',')))})"  # noqa: S608


@dataclass(slots=True)
class Totals:
    """`messages`, `points` and `bytes` are what waits; the other sums are of the whole epoch.

    `age_ms` is how long there has been a hub with this outbox, counted on at `clock_ms` of the wall clock.
    """

    epoch: str
    session: int
    last_seq: int
    age_ms: int
    clock_ms: int
    messages: int
    points: int
    bytes: int
    points_written: int
    points_lost: int
    gaps: int

    def went(self, messages: int, points: int, size_bytes: int) -> None:
        """Take off what waits no more."""
        self.messages -= messages
        self.points -= points
        self.bytes -= size_bytes


def load(connection: sqlite3.Connection) -> Totals:
    """Read the row."""
    return Totals(*connection.execute(_LOAD).fetchone())


def store(connection: sqlite3.Connection, totals: Totals) -> None:
    """Write the row."""
    connection.execute(_STORE, astuple(totals))
