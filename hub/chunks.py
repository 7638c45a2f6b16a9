"""The outbox's messages as rows: the only SQL about them.

A message is one or more chunks, each with one or more entries, so that it grows without being written again. What is
asked here costs the same whether ten messages wait or a million.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hub.outbox_file import SEQ_SHIFT

_PART_MASK: Final = (1 << SEQ_SHIFT) - 1


@dataclass(frozen=True, slots=True)
class Deleted:
    """What was deleted, and its first and last moment (0 if it was nothing)."""

    messages: int = 0
    points: int = 0
    size_bytes: int = 0
    first_ms: int = 0
    last_ms: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """Entries of one message, joined with commas. `keep` marks what is never dropped to make room."""

    seq: int
    part: int
    kind: str
    keep: bool
    entries: int
    points: int
    first_ms: int
    last_ms: int
    kept_ms: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Cursors:
    """No readings, and no others that may be dropped, have a smaller id than this."""

    readings: int = 0
    others: int = 0


class Chunks:
    """The table `chunk`. Its caller opens transactions, and translates errors."""

    def __init__(self, connection: sqlite3.Connection):
        self._sql = connection
        self.cursors = Cursors()

    def insert(self, chunk: Chunk) -> None:
        """Store a chunk."""
        self._sql.execute(
            "INSERT INTO chunk VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                chunk.seq << SEQ_SHIFT | chunk.part,
                chunk.kind,
                int(chunk.keep),
                chunk.entries,
                chunk.points,
                chunk.first_ms,
                chunk.last_ms,
                chunk.kept_ms,
                zlib.crc32(chunk.body),
                chunk.body,
            ),
        )

    def rewrite(self, seq: int, part: int, first_ms: int, last_ms: int, body: bytes) -> None:
        """Put other entries in the place of a chunk's."""
        self._sql.execute(
            "UPDATE chunk SET first_ms = ?, last_ms = ?, crc = ?, body = ? WHERE id = ?",
            (first_ms, last_ms, zlib.crc32(body), body, seq << SEQ_SHIFT | part),
        )

    def load(self, seq: int) -> list[Chunk] | None:
        """Return a message's chunks in order, nothing if there is no such message, None if its bytes have changed."""
        rows = self._sql.execute(
            "SELECT id, kind, keep, entries, points, first_ms, last_ms, kept_ms, body, crc "
            "FROM chunk WHERE id BETWEEN ? AND ? ORDER BY id",
            (seq << SEQ_SHIFT, seq << SEQ_SHIFT | _PART_MASK),
        ).fetchall()
        if any(zlib.crc32(row[8]) != row[9] for row in rows):
            return None
        return [Chunk(seq, row[0] & _PART_MASK, row[1], bool(row[2]), *row[3:9]) for row in rows]

    def delete(self, first: int, last: int) -> Deleted:
        """Delete the messages from `first` to `last`, inclusive."""
        ids = (first << SEQ_SHIFT, last << SEQ_SHIFT | _PART_MASK)
        row = self._sql.execute(
            f"SELECT sum(id & {_PART_MASK} = 0), sum(points), sum(length(body)), min(first_ms), max(last_ms) "  # noqa: S608
            "FROM chunk WHERE id BETWEEN ? AND ?",
            ids,
        ).fetchone()
        if row[0] is None:
            return Deleted()
        self._sql.execute("DELETE FROM chunk WHERE id BETWEEN ? AND ?", ids)
        return Deleted(*row)

    def seqs(self) -> Iterator[int]:
        """Yield the number of each chunk's message, in order. Walks over all of them."""
        for (seq,) in self._sql.execute(f"SELECT id >> {SEQ_SHIFT} FROM chunk ORDER BY id"):  # noqa: S608
            yield seq

    def first(self) -> tuple[int, int] | None:
        """Return (first_ms, kept_ms) of the oldest chunk."""
        row = self._sql.execute("SELECT first_ms, kept_ms FROM chunk ORDER BY id LIMIT 1").fetchone()
        return None if row is None else (row[0], row[1])

    def oldest_readings(self, last_seq: int) -> tuple[int, int] | None:
        """Return (seq, kept_ms) of the oldest message of readings."""
        row, reached = self._oldest("kind = 'readings'", self.cursors.readings, last_seq)
        self.cursors = Cursors(reached, self.cursors.others)
        return row

    def oldest_others(self, last_seq: int) -> tuple[int, int] | None:
        """Return (seq, kept_ms) of the oldest message of another kind that may be dropped."""
        row, reached = self._oldest("kind <> 'readings' AND keep = 0", self.cursors.others, last_seq)
        self.cursors = Cursors(self.cursors.readings, reached)
        return row

    def _oldest(self, condition: str, begin: int, last_seq: int) -> tuple[tuple[int, int] | None, int]:
        """Return what fits the condition first, and where to begin the next time.

        What has been walked over once is never walked over again: only a message that is there grows, and new ones have
        greater ids.
        """
        row = self._sql.execute(
            f"SELECT id, kept_ms FROM chunk WHERE id >= ? AND {condition} ORDER BY id LIMIT 1",  # noqa: S608
            (begin,),
        ).fetchone()
        return (None, (last_seq + 1) << SEQ_SHIFT) if row is None else ((row[0] >> SEQ_SHIFT, row[1]), row[0])
