"""What a database holds, read with the driver alone: the judge of the store does not share its code."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import zstandard

from tests.postgres import Postgres

Place = tuple[str, str, str]
"""site, hub, epoch."""


@dataclass
class Content:
    """Everything that must not depend on the order of arrival."""

    messages: dict[tuple[str, str, str, int], bytes] = field(default_factory=dict)
    coverage: dict[Place, list[tuple[int, int]]] = field(default_factory=dict)
    sums: dict[Place, tuple[int, int, int]] = field(default_factory=dict)
    newest: dict[tuple[str, str, str], tuple[int, str, int]] = field(default_factory=dict)
    rollups: dict[tuple[str, str, str, str, int], tuple[int, float, float, float]] = field(default_factory=dict)
    gaps: set[tuple[Any, ...]] = field(default_factory=set)


def content_of(database: Path | Postgres) -> Content:
    """Read a database as a whole."""
    with reading(database) as read:
        return _content(read)


def _content(read: Callable[[str], list[tuple[Any, ...]]]) -> Content:
    content = Content()
    unpack = zstandard.ZstdDecompressor().decompress
    hubs = {no: (site, name) for no, site, name in read("SELECT hub_no, site, hub FROM hubs")}
    streams: dict[int, Place] = {}
    sums = "SELECT stream_no, hub_no, epoch, messages, points, refused FROM streams"
    for no, hub_no, epoch, messages, points, refused in read(sums):
        streams[no] = (*hubs[hub_no], epoch)
        content.sums[streams[no]] = (messages, points, refused)
        content.coverage[streams[no]] = []
    for no, seq, codec, payload in read("SELECT stream_no, seq, codec, payload FROM messages"):
        content.messages[(*streams[no], seq)] = unpack(payload) if codec else payload
    for no, first, last in read("SELECT * FROM coverage ORDER BY stream_no, first_seq"):
        content.coverage[streams[no]].append((first, last))
    sensors: dict[int, tuple[str, str, str]] = {}
    for no, hub_no, sensor, ts, _, value, readings in read("SELECT * FROM sensors"):
        sensors[no] = (*hubs[hub_no], sensor)
        content.newest[sensors[no]] = (ts, value, readings)
    for table in ("rollup_5min", "rollup_1h"):
        for bucket, no, *rollup in read(f"SELECT * FROM {table}"):
            content.rollups[(table, *sensors[no], bucket)] = (rollup[0], rollup[1], rollup[2], rollup[3])
    for no, *gap in read("SELECT * FROM gaps"):
        content.gaps.add((*streams[no], *gap))
    return content


def duplicates_of(database: Path | Postgres) -> int:
    """Return how many repetitions were counted in all."""
    return int(query(database, "SELECT coalesce(sum(duplicates), 0) FROM streams")[0][0])


def query(database: Path | Postgres, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Read rows; the parameters are question marks."""
    if isinstance(database, Postgres):
        numbers = count(1)
        return database.query(re.sub(r"\?", lambda _: f"${next(numbers)}", sql), *parameters)
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(sql, parameters).fetchall()


@contextmanager
def reading(database: Path | Postgres) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
    """Return what reads rows, all of them from one moment of SQLite."""
    if isinstance(database, Postgres):
        with database.reading() as read:
            yield read
        return
    with closing(sqlite3.connect(database)) as connection:
        yield lambda sql: connection.execute(sql).fetchall()
