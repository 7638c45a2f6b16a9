"""The outbox against a plain model, under any order of what its users may do."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.ranges import Ranges
from hub.outbox import Entry, Outbox, OutboxMessage
from tests.hub.ledger import Ledger, event, point, read_all

DAY_MS = 86_400_000
SIZES = st.lists(st.sampled_from([0, 10, 2_000, 60_000]), min_size=1, max_size=12)


class OutboxModel(RuleBasedStateMachine):
    """Knows what was written and acknowledged; from that follows all that the outbox may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="hubline-outbox-"))
        self.now_ms = 1_763_798_400_000
        self.written = 0
        self.unstored = 0
        self.states: dict[str, str] = {}
        self.handed: dict[int, OutboxMessage] = {}
        self.acknowledged = Ledger()
        self.sessions = 0
        self.last_seq = 0
        self.outbox = self.open()

    def open(self) -> Outbox:
        return Outbox.open(self.folder / "outbox.db", max_bytes=700_000, clock=lambda: self.now_ms)

    def teardown(self) -> None:
        try:
            self.account_for_everything()
        finally:
            self.outbox.close()
            shutil.rmtree(self.folder)

    def points(self, sizes: list[int]) -> list[Entry]:
        return [point(self.written + number, size) for number, size in enumerate(sizes, start=1)]

    # --- What may happen ---------------------------------------------------------------------------------------------

    @rule(sizes=SIZES)
    def append_readings(self, sizes: list[int]) -> None:
        entries = self.points(sizes)
        state = {"counter": str(self.written + len(sizes))}
        self.outbox.append("readings", entries, state)
        self.written += len(sizes)
        self.states = state

    @rule(count=st.integers(900, 2100))
    def append_many_small_readings(self, count: int) -> None:
        self.append_readings([0] * count)

    @rule(count=st.integers(1, 3))
    def append_events(self, count: int) -> None:
        self.outbox.append("events", [event(number) for number in range(count)])

    @rule(groups=st.lists(SIZES, min_size=1, max_size=4))
    def append_in_groups(self, groups: list[list[int]]) -> None:
        with self.outbox.transaction():
            for sizes in groups:
                self.append_readings(sizes)
            self.outbox.append("events", [event(1)])

    @rule(sizes=SIZES)
    def fail_in_a_transaction(self, sizes: list[int]) -> None:
        try:
            with self.outbox.transaction():
                self.outbox.append("readings", self.points(sizes), {"counter": "wrong"})
                self.outbox.record_loss(7, 1, 2)
                self.outbox.forget([(1, 2**53)])
                raise KeyError
        except KeyError:
            pass

    @rule(points=st.integers(1, 50))
    def lose_before_storing(self, points: int) -> None:
        self.outbox.record_loss(points, self.now_ms, self.now_ms)
        self.unstored += points

    @rule(skip=st.integers(0, 5), count=st.integers(1, 6))
    def hand_out(self, skip: int, count: int) -> None:
        waiting = [seq for first, last in self.outbox.pending() for seq in range(first, last + 1)]
        for message in self.outbox.load(waiting[skip : skip + count]):
            assert self.handed.setdefault(message.seq, message) == message, "it has changed"

    @precondition(lambda self: self.handed)
    @rule(choice=st.randoms(use_true_random=False), everything=st.booleans())
    def acknowledge(self, choice: object, everything: bool) -> None:
        seqs = sorted(self.handed)
        chosen = seqs if everything else seqs[:: choice.randint(1, 3)]  # type: ignore[attr-defined]
        waiting = Ranges(self.outbox.pending())
        before = self.outbox.points
        there = [self.handed.pop(seq) for seq in chosen if seq in waiting]
        for seq in chosen:
            self.handed.pop(seq, None)  # Dropped while in flight: its acknowledgement comes late.
        freed = self.outbox.forget([(seq, seq) for seq in chosen])
        assert freed.messages == len(there)
        assert freed.points == before - self.outbox.points == sum(message.points for message in there)
        self.acknowledged.take(there)

    @rule()
    def acknowledge_nonsense(self) -> None:
        pending, messages = self.outbox.pending(), self.outbox.pending_messages
        assert self.outbox.forget([(self.outbox.last_seq + 1, 2**53), (0, 0)]).messages == 0
        assert (self.outbox.pending(), self.outbox.pending_messages) == (pending, messages)

    @rule()
    def restart(self) -> None:
        self.outbox.close()
        self.outbox = self.open()
        assert self.outbox.damage is None

    @rule(days=st.integers(1, 20))
    def wait(self, days: int) -> None:
        for _ in range(days):
            self.now_ms += DAY_MS
            self.sessions += 1
            assert self.outbox.next_session() == self.sessions

    # --- What must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def sums_are_true(self) -> None:
        outbox = self.outbox
        assert outbox.points_written == self.written + self.unstored
        assert outbox.points_written == len(self.acknowledged.readings) + outbox.points + outbox.points_lost
        assert outbox.pending_messages == Ranges(outbox.pending()).count()
        assert outbox.states() == self.states
        assert outbox.disk_bytes <= outbox.max_bytes
        assert outbox.last_seq >= self.last_seq
        self.last_seq = outbox.last_seq

    def account_for_everything(self) -> None:
        """Every number is acknowledged, waits or is told of as lost, once; every reading is there, once, in order."""
        ledger = read_all(self.outbox)
        assert self.outbox.size_bytes == sum(stored_bytes(self.outbox, seq) for seq in range(1, self.last_seq + 1))
        everything = Ranges([*self.acknowledged.seqs, *ledger.seqs])
        count = self.acknowledged.seqs.count() + ledger.seqs.count()
        told = 0
        for first, last, points, _ in (*self.acknowledged.gaps, *ledger.gaps):
            everything.add(first, last)
            count += last - first + 1
            told += points
        assert list(everything) == ([(1, self.last_seq)] if self.last_seq else [])
        assert count == self.last_seq
        assert told == self.outbox.points_lost
        assert ledger.readings == sorted(ledger.readings)
        kept = [*self.acknowledged.readings, *ledger.readings]
        assert len(set(kept)) == len(kept)


def stored_bytes(outbox: Outbox, seq: int) -> int:
    """Return what a message counts for: its entries with the commas that were stored."""
    (size,) = outbox._sql.execute(
        "SELECT ifnull(sum(length(body)), 0) FROM chunk WHERE id >> 10 = ?", (seq,)
    ).fetchone()
    return int(size)


TestOutboxModel = OutboxModel.TestCase
TestOutboxModel.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
