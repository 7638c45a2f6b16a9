"""The peer's subscriber on PostgreSQL: a row per reading, brought in by COPY, each reading once by its key.

Written as well as we can. Names are numbers in the rows. Repetitions are rare, so batches are copied straight into the table, and
only one that holds a repetition goes through a staging table with ON CONFLICT. Decoding and writing overlap.
`python -m bench.copy_store ENDPOINT FLEET BUNDLE [light]`, the database's URL in COPY_STORE_DATABASE; a line of JSON on standard
output tells of each commit.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import orjson

from bench.subscriber import By, subscribe
from config import limits

if TYPE_CHECKING:
    import asyncpg

DATABASE: Final = "COPY_STORE_DATABASE"
BATCH_ROWS: Final = 50_000
"""A batch of large messages ends here: a commit of half a million rows takes seconds, in which nothing is acknowledged."""
WRITERS: Final = 2
"""Batches at a time: one is decoded while the other is written."""
COLUMNS: Final = ("source", "seq", "number", "sensor", "ts", "value")
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS sources (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, hub text, epoch text, UNIQUE (hub, epoch));
CREATE TABLE IF NOT EXISTS sensors (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text UNIQUE);
CREATE TABLE IF NOT EXISTS readings (
    source integer, seq bigint, number smallint, sensor integer, ts bigint, value double precision,
    PRIMARY KEY (source, seq, number));
"""
_STAGING: Final = "CREATE TEMPORARY TABLE staging (LIKE readings) ON COMMIT DELETE ROWS"
_MERGE: Final = "INSERT INTO readings SELECT * FROM staging ON CONFLICT DO NOTHING"

Row: TypeAlias = tuple[int, int, int, int, int, float]


class CopyStore:
    """The connections to the database and what waits for them."""

    def __init__(self, url: str):
        self.waiting: list[tuple[bytes, bytes]] = []
        self.arrived = asyncio.Event()
        self._url = url.replace("postgresql+asyncpg://", "postgresql://", 1)
        self._sources: dict[tuple[str, str], int] = {}
        self._sensors: dict[str, int] = {}
        self._decoding = asyncio.Lock()

    async def run(self) -> None:
        """Store what arrives, until cancelled."""
        async with asyncio.TaskGroup() as work:
            for _ in range(WRITERS):
                work.create_task(self._write())

    async def prepare(self) -> None:
        """Make the tables."""
        import asyncpg

        connection = await asyncpg.connect(self._url)
        await connection.execute(_TABLES)
        await connection.close()

    async def connected(self) -> asyncpg.Connection:
        """Return a connection that can write."""
        import asyncpg

        connection = await asyncpg.connect(self._url)
        await connection.execute(_STAGING)
        return connection

    async def _write(self) -> None:
        connection, loop = await self.connected(), asyncio.get_running_loop()
        while True:
            async with self._decoding:  # One after the other, so that a batch is full before the next begins.
                await self.arrived.wait()
                started_at, size = loop.time(), limits.INGEST_BATCH_MESSAGES
                batch, self.waiting = self.waiting[:size], self.waiting[size:]
                if not self.waiting:
                    self.arrived.clear()
                if not batch:
                    continue
                rows, done = await self.decoded(connection, batch)
            await self.store(connection, rows)
            sys.stdout.buffer.write(orjson.dumps(done, option=orjson.OPT_APPEND_NEWLINE))
            sys.stdout.buffer.flush()
            if len(self.waiting) < size:
                await asyncio.sleep(max(0.0, started_at + limits.INGEST_INTERVAL_S - loop.time()))

    async def store(self, connection: asyncpg.Connection, rows: list[Row]) -> None:
        """Commit a batch, each reading once."""
        import asyncpg

        try:
            await connection.copy_records_to_table("readings", records=rows, columns=COLUMNS)
        except asyncpg.UniqueViolationError:
            async with connection.transaction():
                await connection.copy_records_to_table("staging", records=rows, columns=COLUMNS)
                await connection.execute(_MERGE)

    async def decoded(
        self, connection: asyncpg.Connection, batch: list[tuple[bytes, bytes]]
    ) -> tuple[list[Row], list[tuple[str, str, int]]]:
        """Return the rows of a batch, and which messages (hub, epoch, seq) they are of; what is too much waits."""
        rows: list[Row] = []
        done: list[tuple[str, str, int]] = []
        for position, (topic, payload) in enumerate(batch):
            if len(rows) >= BATCH_ROWS:
                self.waiting[:0] = batch[position:]
                self.arrived.set()
                break
            hub_id = topic.split(b"/")[4].decode()
            envelope = orjson.loads(payload)
            epoch, seq = envelope["epoch"], envelope["seq"]
            source = self._sources.get((hub_id, epoch))
            if source is None:
                source = await self._source(connection, hub_id, epoch)
            number = 0
            for point in envelope["body"]["points"]:
                ts = point["ts"]
                for sensor, value in point["values"].items():
                    known = self._sensors.get(sensor)
                    if known is None:
                        known = await self._sensor(connection, sensor)
                    rows.append((source, seq, number, known, ts, value))
                    number += 1
            done.append((hub_id, epoch, seq))
        return rows, done

    async def _source(self, connection: asyncpg.Connection, hub_id: str, epoch: str) -> int:
        await connection.execute(
            "INSERT INTO sources (hub, epoch) VALUES ($1, $2) ON CONFLICT DO NOTHING", hub_id, epoch
        )
        found: int = await connection.fetchval("SELECT id FROM sources WHERE hub = $1 AND epoch = $2", hub_id, epoch)
        self._sources[hub_id, epoch] = found
        return found

    async def _sensor(self, connection: asyncpg.Connection, name: str) -> int:
        await connection.execute("INSERT INTO sensors (name) VALUES ($1) ON CONFLICT DO NOTHING", name)
        found: int = await connection.fetchval("SELECT id FROM sensors WHERE name = $1", name)
        self._sensors[name] = found
        return found


async def main(endpoint: str, fleet: str, bundle: Path, by: By) -> None:
    """Subscribe and store until ended."""
    store = CopyStore(os.environ[DATABASE])
    await store.prepare()
    lost = await subscribe(store, by, endpoint, fleet, bundle)
    print("[]", flush=True)  # It is ready.
    storing = asyncio.create_task(store.run())
    lost.add_done_callback(lambda _: storing.cancel())
    try:
        await storing
    except asyncio.CancelledError:
        sys.exit("the broker closed the connection")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), "light" if sys.argv[4:] == ["light"] else "paho"))
