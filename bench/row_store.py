"""The peer's subscriber: stores a row per reading in SQLite, synced at every commit, each reading once by its key.

Written as well as we can: batches of up to 2000 messages or 20 ms share a commit, decoding and writing run beside receiving.
`python -m bench.row_store ENDPOINT FLEET BUNDLE FILE`; a line of JSON on standard output tells of each commit.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import orjson

from bench.subscriber import subscribe
from config import limits

_TABLE: Final = """CREATE TABLE IF NOT EXISTS readings (
    hub TEXT, epoch TEXT, seq INTEGER, number INTEGER, sensor TEXT, ts INTEGER, value REAL,
    PRIMARY KEY (hub, epoch, seq, number)
) WITHOUT ROWID"""
_ADD: Final = "INSERT INTO readings VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"


class RowStore:
    """The database and what waits for it."""

    def __init__(self, file: Path):
        self.waiting: list[tuple[bytes, bytes]] = []
        self.arrived = asyncio.Event()
        self._sql = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "cache_size = -65536", "wal_autocheckpoint = 4000"):
            self._sql.execute(f"PRAGMA {pragma}")
        self._sql.execute(_TABLE)

    async def run(self) -> None:
        """Store what arrives, until cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1) as thread:
            while True:
                await self.arrived.wait()
                started_at = loop.time()
                size = limits.INGEST_BATCH_MESSAGES
                batch, self.waiting = self.waiting[:size], self.waiting[size:]
                done = await loop.run_in_executor(thread, self._commit, batch)
                sys.stdout.buffer.write(orjson.dumps(done, option=orjson.OPT_APPEND_NEWLINE))
                sys.stdout.buffer.flush()
                if len(self.waiting) < size:
                    await asyncio.sleep(max(0.0, started_at + limits.INGEST_INTERVAL_S - loop.time()))
                if not self.waiting:
                    self.arrived.clear()

    def _commit(self, batch: list[tuple[bytes, bytes]]) -> list[tuple[str, str, int]]:
        rows, done = [], []
        for topic, payload in batch:
            hub_id = topic.split(b"/")[4].decode()
            envelope = orjson.loads(payload)
            epoch, seq = envelope["epoch"], envelope["seq"]
            number = 0
            for point in envelope["body"]["points"]:
                for sensor, value in point["values"].items():
                    rows.append((hub_id, epoch, seq, number, sensor, point["ts"], value))
                    number += 1
            done.append((hub_id, epoch, seq))
        self._sql.execute("BEGIN IMMEDIATE")
        self._sql.executemany(_ADD, rows)
        self._sql.execute("COMMIT")
        return done


async def main(endpoint: str, fleet: str, bundle: Path, file: Path) -> None:
    """Subscribe and store until ended."""
    store = RowStore(file)
    lost = await subscribe(store, "paho", endpoint, fleet, bundle)
    print("[]", flush=True)  # It is ready.
    storing = asyncio.create_task(store.run())
    lost.add_done_callback(lambda _: storing.cancel())
    try:
        await storing
    except asyncio.CancelledError:
        sys.exit("the broker closed the connection")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])))
