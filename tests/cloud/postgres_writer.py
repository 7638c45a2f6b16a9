"""A program that stores messages in a PostgreSQL, beside others like it, and prints the last seq of each committed batch.

python -m tests.cloud.postgres_writer URL FIRST_SEQ STEPS
"""

from __future__ import annotations

import random
import sys

from cloud.batch import Batch
from cloud.postgres_store import PostgresStore
from config.errors import StorageError
from tests.cloud.wire import FLEET, T0, message, readings

HUBS = 6
BATCH = 5
"""Messages of each hub in a batch."""


def main() -> None:
    """Store a few messages of every hub a batch, in an order of this process's own; again what could not be stored."""
    url, first, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    store, order = PostgresStore(url, FLEET), list(range(HUBS))
    for step in range(steps):
        seqs = range(first + step * BATCH, first + (step + 1) * BATCH)
        random.shuffle(order)
        contents = [
            message(readings(seq, [(T0 + seq * 1000, {"counter": seq, "on": True})]), hub_id=f"pc-{number}")
            for number in order
            for seq in seqs
        ]
        while True:
            try:
                store.commit(Batch(tuple(contents)))
            except StorageError:
                continue
            break
        print(seqs[-1], flush=True)
    store.close()


if __name__ == "__main__":
    main()
