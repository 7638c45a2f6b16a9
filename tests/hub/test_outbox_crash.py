"""What an outbox holds after its process was killed in the middle of its work: all that it had called committed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from broker.ranges import Ranges
from hub.outbox import Outbox
from tests.hub.ledger import Ledger, read_all

WRITER = """
import sys
from pathlib import Path
from random import Random
from hub.outbox import Entry, Outbox
from tests.hub.ledger import point

outbox = Outbox.open(Path(sys.argv[1]), max_bytes=int(sys.argv[3]))
random = Random(int(sys.argv[2]))
number = int(outbox.states().get("counter", "0"))
waiting = [seq for first, last in outbox.pending() for seq in range(first, last + 1)]
while True:
    with outbox.transaction() as changes:
        for _ in range(random.randint(1, 5)):
            count = random.randint(1, 20)
            entries = [point(number + n + 1, random.choice((0, 0, 500))) for n in range(count)]
            number += count
            outbox.append("readings", entries, {"counter": str(number)})
    print("committed", number, flush=True)
    waiting += [seq for first, last in changes.appended for seq in range(first, last + 1) if seq not in waiting]
    if random.random() < 0.5:
        for message in outbox.load(waiting[:3]):
            print("acknowledges", message.seq, message.body.count(b'"n.value"'), flush=True)
            outbox.forget([(message.seq, message.seq)])
            waiting.remove(message.seq)
            print("acknowledged", message.seq, flush=True)
        for seq in [seq for first, last in changes.dropped for seq in range(first, last + 1)]:
            if seq in waiting:
                waiting.remove(seq)
"""


def run_and_kill(path: Path, seed: int, lines_wanted: int, max_bytes: int) -> list[list[str]]:
    """Let a process write, kill it after some lines of its report, and return all that it reported."""
    command = [sys.executable, "-c", WRITER, str(path), str(seed), str(max_bytes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(lines_wanted)]
        writer.kill()
        lines += writer.stdout.readlines()
    assert writer.returncode in (-signal.SIGKILL, 1), "it ended by itself"
    return [line.split() for line in lines if line.endswith("\n")]


@pytest.mark.parametrize("max_bytes", [1 << 30, 200_000])
def test_a_killed_writer_loses_nothing_that_it_had_committed(tmp_path: Path, max_bytes: int) -> None:
    """Ten kills at random moments, with and without the bound at work: no hole, nothing twice, sums that are true."""
    random = Random(max_bytes)
    path = tmp_path / "outbox.db"
    acknowledged, points_acknowledged = Ranges(), 0
    last_seq = 0
    for turn in range(10):
        report = run_and_kill(path, turn, random.randint(1, 60), max_bytes)
        committed = max((int(line[1]) for line in report if line[0] == "committed"), default=0)
        sizes = {int(line[1]): int(line[2]) for line in report if line[0] == "acknowledges"}
        done = {int(line[1]) for line in report if line[0] == "acknowledged"}
        outbox = Outbox.open(path, max_bytes=max_bytes)
        assert outbox.damage is None
        ledger = read_all(outbox)
        for seq in sizes:  # The one that was being deleted may be gone or not.
            if seq in done or seq not in ledger.seqs:
                acknowledged.add(seq, seq)
                points_acknowledged += sizes[seq]
        counter = int(outbox.states().get("counter", "0"))
        assert counter >= committed
        assert outbox.points_written == counter
        assert outbox.points_written == points_acknowledged + len(ledger.readings) + outbox.points_lost
        assert (outbox.pending_messages, outbox.points) == (ledger.seqs.count(), len(ledger.readings))
        assert len(set(ledger.readings)) == len(ledger.readings)
        assert outbox.last_seq >= last_seq
        last_seq = outbox.last_seq
        everything = covered(ledger, acknowledged)
        assert list(everything) == ([(1, last_seq)] if last_seq else [])
        if max_bytes == 1 << 30:
            assert ledger.gaps == []
            assert ledger.readings == sorted(ledger.readings)
            assert ledger.readings[-1:] in ([], [counter])
        outbox.close()
    assert last_seq > 0


def covered(ledger: Ledger, acknowledged: Ranges) -> Ranges:
    """Return every number that waits, was acknowledged or is told of as lost."""
    everything = Ranges([*acknowledged, *ledger.seqs])
    for first, last, _, _ in ledger.gaps:
        everything.add(first, last)
    return everything
