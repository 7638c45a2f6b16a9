"""What a database holds, read with the driver alone: the judge of the store does not share its code."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

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


def content_of(file: Path) -> Content:
    """Read a database as a whole."""
    content = Content()
    unpack = zstandard.ZstdDecompressor().decompress
    connection = sqlite3.connect(file)
    try:
        hubs = {no: (site, name) for no, site, name in connection.execute("SELECT hub_no, site, hub FROM hubs")}
        streams: dict[int, Place] = {}
        sums = "SELECT stream_no, hub_no, epoch, messages, points, refused FROM streams"
        for no, hub_no, epoch, messages, points, refused in connection.execute(sums):
            streams[no] = (*hubs[hub_no], epoch)
            content.sums[streams[no]] = (messages, points, refused)
            content.coverage[streams[no]] = []
        for no, seq, codec, payload in connection.execute("SELECT stream_no, seq, codec, payload FROM messages"):
            content.messages[(*streams[no], seq)] = unpack(payload) if codec else payload
        for no, first, last in connection.execute("SELECT * FROM coverage ORDER BY stream_no, first_seq"):
            content.coverage[streams[no]].append((first, last))
        sensors: dict[int, tuple[str, str, str]] = {}
        for no, hub_no, sensor, ts, _, value, count in connection.execute("SELECT * FROM sensors"):
            sensors[no] = (*hubs[hub_no], sensor)
            content.newest[sensors[no]] = (ts, value, count)
        for table in ("rollup_5min", "rollup_1h"):
            for bucket, no, *rollup in connection.execute(f"SELECT * FROM {table}"):
                content.rollups[(table, *sensors[no], bucket)] = (rollup[0], rollup[1], rollup[2], rollup[3])
        for no, *gap in connection.execute("SELECT * FROM gaps"):
            content.gaps.add((*streams[no], *gap))
    finally:
        connection.close()
    return content


def duplicates_of(file: Path) -> int:
    """Return how many repetitions were counted in all."""
    return int(query(file, "SELECT coalesce(sum(duplicates), 0) FROM streams")[0][0])


def query(file: Path, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Read rows."""
    connection = sqlite3.connect(file)
    try:
        return connection.execute(sql, parameters).fetchall()
    finally:
        connection.close()
