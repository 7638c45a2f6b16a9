"""A program to be killed: stores message after message and prints the last seq of each batch that was committed.

python -m tests.cloud.endless_writer FILE FIRST_SEQ
"""

from __future__ import annotations

import sys
from pathlib import Path

from cloud.store import Store
from tests.cloud.wire import FLEET, T0, batch, readings

BATCH = 20


def main() -> None:
    """Write until killed. Every message has two readings; the value is the seq."""
    file, first = Path(sys.argv[1]), int(sys.argv[2])
    store = Store(file, FLEET)
    while True:
        seqs = range(first, first + BATCH)
        store.commit(batch(*(readings(seq, [(T0 + seq * 1000, {"counter": seq, "on": True})]) for seq in seqs)))
        print(seqs[-1], flush=True)
        first += BATCH


if __name__ == "__main__":
    main()
