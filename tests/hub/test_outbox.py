"""The outbox as its users see it: messages that grow until they are handed out, numbers, bounds and gap records."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.ranges import Ranges
from config import limits
from config.errors import ProtocolError, SettingsError, StorageError
from hub.outbox import ENTRY_MAX_BYTES, Entry, Outbox
from tests.hub.ledger import Ledger, event, point, read_all

DAY_MS = 86_400_000


class Clock:
    """A wall clock that the test sets."""

    def __init__(self) -> None:
        self.now_ms = 1_763_798_400_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_outbox(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., Outbox]]:
    """Return a function that opens the test's outbox, again and again; all are closed at the end."""
    opened: list[Outbox] = []

    def open_it(**options: float) -> Outbox:
        for outbox in opened:
            outbox.close()
        opened.append(Outbox.open(tmp_path / "outbox.db", clock=clock, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield open_it
    for outbox in opened:
        outbox.close()


OpenOutbox = Callable[..., Outbox]


# --- Messages --------------------------------------------------------------------------------------------------------


def test_a_new_outbox_is_empty_and_has_an_identity_of_its_own(open_outbox: OpenOutbox, tmp_path: Path) -> None:
    outbox = open_outbox()
    assert len(outbox.epoch) == 16
    assert int(outbox.epoch, 16) >= 0
    assert (outbox.last_seq, outbox.pending(), outbox.oldest_ms, outbox.size_bytes) == (0, [], None, 0)
    other = Outbox.open(tmp_path / "other.db")
    assert other.epoch != outbox.epoch
    other.close()


def test_what_is_appended_comes_out_as_the_contract_says(open_outbox: OpenOutbox) -> None:
    outbox = open_outbox()
    outbox.append("readings", [point(1), point(2)])
    outbox.append("events", [event(3)])
    readings, events = outbox.load([1, 2])
    assert (readings.kind, readings.body) == ("readings", b'{"points":[%b,%b]}' % (point(1).body, point(2).body))
    assert (readings.points, readings.first_ms, readings.last_ms) == (2, 1001, 1002)
    assert (events.kind, events.body, events.points) == ("events", b'{"events":[%b]}' % event(3).body, 0)


def test_a_message_grows_while_nobody_has_asked_for_it(open_outbox: OpenOutbox) -> None:
    """A path that is down, or a full window, makes messages large, and the catching-up cheap."""
    outbox = open_outbox()
    for number in range(10):
        assert outbox.append("readings", [point(number)]) == [1]
        assert outbox.append("events", [event(number)]) == [2]
    assert outbox.pending() == [(1, 2)]
    ledger = read_all(outbox)
    assert (ledger.readings, ledger.events) == (list(range(10)), list(range(10)))


def test_a_message_that_was_handed_out_never_changes(open_outbox: OpenOutbox) -> None:
    """The cloud may have it already, under this number: a second version would be refused as known."""
    outbox = open_outbox()
    outbox.append("readings", [point(1)])
    before = outbox.load([1])
    assert outbox.append("readings", [point(2)]) == [2]
    assert outbox.load([1]) == before


def test_a_message_from_before_a_restart_never_changes(open_outbox: OpenOutbox) -> None:
    """Nobody knows whether it was sent."""
    open_outbox().append("readings", [point(1)])
    outbox = open_outbox()
    assert outbox.append("readings", [point(2)]) == [2]
    assert read_all(outbox).readings == [1, 2]


@pytest.mark.parametrize("batch", [1, 7, 1000, 2500])
def test_a_message_holds_a_thousand_points_and_no_more(open_outbox: OpenOutbox, batch: int) -> None:
    outbox = open_outbox()
    with outbox.transaction():
        for begin in range(0, 2500, batch):
            outbox.append("readings", [point(number) for number in range(begin, min(2500, begin + batch))])
    assert [message.points for message in outbox.load([1, 2, 3])] == [1000, 1000, 500]
    assert read_all(outbox).readings == list(range(2500))


def test_a_message_with_its_envelope_stays_within_the_contracts_size(open_outbox: OpenOutbox) -> None:
    """`read_all` measures each; the last byte of room is used."""
    outbox = open_outbox()
    outbox.append("readings", [point(1, 100_000)] * 5)
    assert [message.points for message in outbox.load([1, 2, 3])] == [2, 2, 1]
    commas_decide = [point(number, 262 - 1 - len(point(number, 1).body) + 2) for number in range(1001, 2001)]
    assert {len(entry.body) for entry in commas_decide} == {262}
    outbox.append("readings", commas_decide)
    assert [message.points for message in outbox.load([4, 5])] == [996, 4]
    with outbox.transaction():
        for entry in commas_decide:
            outbox.append("readings", [entry])
    padding = ENTRY_MAX_BYTES - len(point(1, 1).body) + 1
    outbox.append("readings", [point(1, padding)])
    assert len(point(1, padding).body) == ENTRY_MAX_BYTES
    assert read_all(outbox).seqs.count() == 8


def test_an_entry_that_fits_into_no_message_is_refused_and_nothing_of_its_batch_is_written(
    open_outbox: OpenOutbox,
) -> None:
    outbox = open_outbox()
    with pytest.raises(ProtocolError, match="at most"):
        outbox.append("readings", [point(1), Entry(1, b"x" * (ENTRY_MAX_BYTES + 1))], {"counter": "1"})
    assert (outbox.last_seq, outbox.points_written, outbox.states()) == (0, 0, {})


@pytest.mark.parametrize("kind", ["reported", "logs"])
def test_a_kind_that_is_no_list_gets_a_message_for_each_entry(open_outbox: OpenOutbox, kind: str) -> None:
    """What a hub reports, and its log lines, are whole bodies."""
    outbox = open_outbox()
    assert outbox.append(kind, [Entry(5, b'{"a":1}'), Entry(6, b'{"a":2}')]) == [1, 2]
    assert outbox.append(kind, [Entry(7, b'{"a":3}')]) == [3]
    assert [message.body for message in outbox.load([1, 2, 3])] == [b'{"a":%d}' % n for n in (1, 2, 3)]


def test_results_share_a_message_until_it_is_handed_out(open_outbox: OpenOutbox) -> None:
    """A task answers several times; each message costs more than an entry."""
    outbox = open_outbox()
    assert outbox.append("results", [Entry(5, b'{"task":1}'), Entry(6, b'{"task":2}')]) == [1]
    (message,) = outbox.load([1])
    assert message.body == b'{"results":[{"task":1},{"task":2}]}'
    assert outbox.append("results", [Entry(7, b'{"task":1}')]) == [2]


def test_the_longest_entry_fits_into_a_message_of_every_kind(open_outbox: OpenOutbox) -> None:
    outbox = open_outbox()
    for seq, kind in enumerate(("readings", "events", "results", "logs", "reported"), start=1):
        assert outbox.append(kind, [Entry(1, b"x" * ENTRY_MAX_BYTES)]) == [seq]


def test_messages_come_in_the_order_asked_for_and_those_that_are_gone_are_left_out(open_outbox: OpenOutbox) -> None:
    outbox = open_outbox()
    outbox.append("logs", [Entry(1, b"{}")] * 4)
    outbox.load([2])
    outbox.forget([(2, 2)])
    assert [message.seq for message in outbox.load([4, 2, 1, 99, 3])] == [4, 1, 3]


def test_a_load_can_be_bounded_in_bytes_and_seals_only_what_it_returns(open_outbox: OpenOutbox) -> None:
    """Sixty-four messages of 256 KiB would be half of a hub's memory."""
    outbox = open_outbox()
    outbox.append("logs", [Entry(1, b"x" * 1000)] * 3)
    outbox.append("readings", [point(1)])
    assert [message.seq for message in outbox.load([1, 2, 3, 4], max_bytes=2500)] == [1, 2]
    assert [message.seq for message in outbox.load([3, 4], max_bytes=10)] == [3]
    assert outbox.append("readings", [point(2)]) == [4]


# --- Forgetting, numbers and sums ------------------------------------------------------------------------------------


def test_what_the_cloud_has_is_deleted_and_nothing_else(open_outbox: OpenOutbox) -> None:
    outbox = open_outbox()
    outbox.append("logs", [Entry(1, b"{}")] * 10)
    outbox.load(range(1, 11))
    freed = outbox.forget([(1, 2), (4, 4), (8, 2**53), (5, 3), (-5, 0)])
    assert (freed.messages, freed.size_bytes) == (6, 12)
    assert outbox.pending() == [(3, 3), (5, 7)]
    assert outbox.forget([(1, 2)]).messages == 0
    assert (outbox.pending_messages, outbox.size_bytes) == (4, 8)


def test_a_message_that_was_never_handed_out_is_not_forgotten(open_outbox: OpenOutbox) -> None:
    """The cloud can't have it: such an acknowledgement is a mistake, and must not cost a reading."""
    outbox = open_outbox()
    outbox.append("readings", [point(1)])
    assert outbox.forget([(1, 1)]).messages == 0
    assert outbox.append("readings", [point(2)]) == [1]
    assert read_all(outbox).readings == [1, 2]


def test_no_number_is_ever_given_twice(open_outbox: OpenOutbox) -> None:
    """The cloud would take the second message for one that it has, and the reading would be lost."""
    outbox = open_outbox()
    outbox.append("readings", [point(1)])
    outbox.load([1])
    outbox.forget([(1, 1)])
    assert outbox.append("readings", [point(2)]) == [2]
    outbox.load([2])
    outbox.forget([(2, 2)])
    assert open_outbox().append("readings", [point(3)]) == [3]


def test_sums_are_kept_over_a_restart(open_outbox: OpenOutbox) -> None:
    """They are never counted by a walk over a gibibyte."""
    outbox = open_outbox()
    outbox.append("readings", [point(1), point(2)], {"counter": "2"})
    outbox.load([1])
    outbox.append("readings", [point(3)])
    outbox.append("events", [event(4)])
    outbox.load([2, 3])
    outbox.forget([(1, 1)])
    epoch, size_bytes = outbox.epoch, len(point(3).body) + len(event(4).body)
    for restarted in (False, True):
        again = open_outbox() if restarted else outbox
        assert (again.epoch, again.last_seq, again.pending()) == (epoch, 3, [(2, 3)])
        assert (again.pending_messages, again.points, again.points_written) == (2, 1, 3)
        assert (again.size_bytes, again.oldest_ms, again.states()) == (size_bytes, 1003, {"counter": "2"})


def test_sessions_grow_by_one_over_restarts(open_outbox: OpenOutbox) -> None:
    """A late last will is told from a newer birth by this number."""
    outbox = open_outbox()
    assert [outbox.next_session() for _ in range(3)] == [1, 2, 3]
    assert open_outbox().next_session() == 4


# --- Transactions ----------------------------------------------------------------------------------------------------


def test_a_transaction_that_fails_has_done_nothing(open_outbox: OpenOutbox) -> None:
    """Points, states and numbers stand or fall together, in memory as on the disk."""
    outbox = open_outbox()
    outbox.append("readings", [point(1)], {"counter": "1"})

    def write_all_sorts_and_fail() -> None:
        with outbox.transaction():
            outbox.append("readings", [point(2)], {"counter": "2"})
            outbox.append("events", [event(3)])
            outbox.record_loss(5, 1, 2)
            outbox.next_session()
            raise KeyError

    with pytest.raises(KeyError):
        write_all_sorts_and_fail()
    assert (outbox.last_seq, outbox.points_written, outbox.states(), outbox.session) == (1, 1, {"counter": "1"}, 0)
    assert outbox.append("readings", [point(4)]) == [1]
    assert read_all(outbox).readings == [1, 4]


def test_a_transaction_in_which_something_failed_is_not_committed_even_if_it_was_caught(
    open_outbox: OpenOutbox,
) -> None:
    """Half of what belonged together must never be on the disk."""
    outbox = open_outbox()

    def write_a_state_that_is_none() -> None:
        with outbox.transaction():
            outbox.append("readings", [point(1)])
            with pytest.raises(StorageError):
                outbox.append("readings", [point(2)], {"counter": object()})  # type: ignore[dict-item]

    with pytest.raises(StorageError, match="something in this transaction"):
        write_a_state_that_is_none()
    assert read_all(outbox).readings == []


def test_a_transaction_tells_what_it_appended_and_dropped(open_outbox: OpenOutbox) -> None:
    """The courier sends the one and takes the other off its books."""
    outbox = open_outbox(max_bytes=400_000)
    with outbox.transaction() as changes:
        outbox.append("readings", [point(1)])
        outbox.append("events", [event(2)])
    assert (list(changes.appended), list(changes.dropped)) == ([(1, 2)], [])
    outbox.load([1, 2])
    with outbox.transaction() as changes:
        outbox.append("readings", [point(number, 10_000) for number in range(39)])
    assert list(changes.dropped) == [(1, 1), (3, 3)]
    assert list(changes.appended) == [(4, 5)]
    assert read_all(outbox).gaps == [(1, 1, 1, "outbox full"), (3, 3, 26, "outbox full")]


# --- Bounds ----------------------------------------------------------------------------------------------------------


def accounted(outbox: Outbox, acknowledged: Ranges, ledger: Ledger) -> None:
    """Every number ever given is acknowledged, waits, or is in exactly one gap record; and so is every reading."""
    everything = Ranges([*acknowledged, *ledger.seqs])
    count = acknowledged.count() + ledger.seqs.count()
    for first, last, _, _ in ledger.gaps:
        everything.add(first, last)
        count += last - first + 1
    assert list(everything) == [(1, outbox.last_seq)]
    assert count == outbox.last_seq
    assert sum(lost for _, _, lost, _ in ledger.gaps) == outbox.points_lost
    assert len(ledger.readings) == outbox.points


def test_a_full_outbox_drops_the_oldest_readings_and_says_so(open_outbox: OpenOutbox) -> None:
    """Readings go before events, and one record tells of all that went while it waits itself."""
    outbox = open_outbox(max_bytes=1024 * 1024)
    outbox.append("events", [event(0)])
    for number in range(1000):
        outbox.append("readings", [point(number, 3000)])
    assert outbox.disk_bytes <= 1024 * 1024
    ledger = read_all(outbox)
    assert ledger.events == [0]
    assert len(ledger.gaps) <= 2, "the record's own number divides the dropped ones"
    assert all(reason == "outbox full" for *_, reason in ledger.gaps)
    assert 200 < len(ledger.readings) < 350
    assert ledger.readings == list(range(1000 - len(ledger.readings), 1000))
    assert outbox.points_written == 1000
    accounted(outbox, Ranges(), ledger)


def test_a_gap_record_that_was_handed_out_is_not_changed_any_more(open_outbox: OpenOutbox) -> None:
    outbox = open_outbox(max_bytes=1024 * 1024)
    records: list[bytes] = []
    for number in range(400):
        outbox.append("readings", [point(number, 20_000)])
        if outbox.gaps > len(records):
            (carrier,) = [
                m for m in outbox.load(range(1, outbox.last_seq + 1)) if b'"gap"' in m.body and m.body not in records
            ]
            records.append(carrier.body)
    assert len(records) > 10
    ledger = read_all(outbox)
    assert len(ledger.gaps) == outbox.gaps
    accounted(outbox, Ranges(), ledger)


def test_events_go_when_no_readings_are_left_but_gap_records_stay(open_outbox: OpenOutbox) -> None:
    outbox = open_outbox(max_bytes=300_000)
    outbox.append("readings", [point(0)])
    for number in range(100):
        outbox.append("logs", [Entry(number, b"x" * 10_000)])
    assert outbox.disk_bytes <= 300_000
    ledger = read_all(outbox)
    assert ledger.readings == []
    assert 10 < ledger.seqs.count() < 30
    assert outbox.points_lost == 1
    accounted(outbox, Ranges(), ledger)


def test_messages_in_flight_may_be_dropped_and_their_late_acknowledgement_is_ignored(open_outbox: OpenOutbox) -> None:
    outbox = open_outbox(max_bytes=200_000)
    outbox.append("readings", [point(1)])
    outbox.load([1])
    outbox.append("readings", [point(number, 10_000) for number in range(2, 21)])
    assert 1 not in Ranges(outbox.pending())
    assert outbox.forget([(1, 1)]).messages == 0
    accounted(outbox, Ranges(), read_all(outbox))


def test_acknowledged_numbers_between_dropped_ones_are_not_called_lost(open_outbox: OpenOutbox) -> None:
    """The audit adds gap records to what is stored: one that says too much hides a true loss."""
    outbox = open_outbox(max_bytes=400_000)
    for number in range(9):
        outbox.append("readings", [point(number)])
        outbox.load([number + 1])
    outbox.forget([(3, 4), (7, 7)])
    outbox.append("readings", [point(number, 10_000) for number in range(9, 48)])
    ledger = read_all(outbox)
    assert [gap[:2] for gap in ledger.gaps] == [(1, 2), (5, 6), (8, 10)]
    accounted(outbox, Ranges([(3, 4), (7, 7)]), ledger)


def test_what_is_too_old_goes_and_is_told_of(open_outbox: OpenOutbox, clock: Clock) -> None:
    outbox = open_outbox(max_age_s=30 * 86_400)
    for number in range(60):
        outbox.append("readings", [point(number)])
        outbox.append("events", [event(number)])
        clock.now_ms += DAY_MS
        assert outbox.points >= min(number + 1, 28), "what is not old goes with the old"
    outbox.append("readings", [point(60)])
    ledger = read_all(outbox)
    assert 28 <= len(ledger.readings) <= 32
    assert ledger.readings[-1] == 60
    assert 28 <= len(ledger.events) <= 31
    assert {reason for *_, reason in ledger.gaps} == {"outbox too old"}
    accounted(outbox, Ranges(), ledger)


def test_a_clock_that_jumps_a_year_does_not_empty_the_outbox(open_outbox: OpenOutbox, clock: Clock) -> None:
    """A machine that starts with a wrong clock, or gets it set, has not kept its readings for a year."""
    outbox = open_outbox(max_age_s=30 * 86_400)
    outbox.append("readings", [point(1)])
    clock.now_ms += 365 * DAY_MS
    outbox.append("readings", [point(2)])
    outbox = open_outbox(max_age_s=30 * 86_400)
    clock.now_ms -= 700 * DAY_MS
    outbox.append("readings", [point(3)])
    assert read_all(outbox).readings == [1, 2, 3]


def test_age_goes_on_over_restarts(open_outbox: OpenOutbox, clock: Clock) -> None:
    for number in range(40):
        open_outbox(max_age_s=30 * 86_400).append("readings", [point(number)])
        clock.now_ms += DAY_MS
    outbox = open_outbox(max_age_s=30 * 86_400)
    outbox.append("readings", [point(40)])
    assert read_all(outbox).readings[0] in (9, 10, 11)


def file_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("outbox.db*"))


def test_the_file_stays_within_its_bound_however_much_goes_through(open_outbox: OpenOutbox, tmp_path: Path) -> None:
    """Deleted room is used again; the log beside the file has its own bound."""
    max_bytes = 2 * 1024 * 1024
    outbox = open_outbox(max_bytes=max_bytes)
    largest = 0
    for number in range(1500):
        seqs = outbox.append("readings", [point(number, 8000)])
        if number % 3 == 0:
            outbox.load(seqs)
            outbox.forget([(seqs[0], seqs[0])])
        if number % 20 == 0:
            largest = max(largest, file_bytes(tmp_path))
    assert largest <= 1.1 * max_bytes + 2 * limits.OUTBOX_WAL_BYTES
    accounted_points = outbox.points_written - outbox.points_lost
    assert outbox.points_written == 1500
    assert outbox.points <= accounted_points


def test_a_drained_outbox_gives_its_room_back(open_outbox: OpenOutbox, tmp_path: Path) -> None:
    """A disk that was needed during an outage is the operator's again after it."""
    outbox = open_outbox()
    for number in range(40):
        outbox.append("readings", [point(number, 200_000)] * 5)
    full_bytes = file_bytes(tmp_path)
    assert full_bytes > 30_000_000
    for seq in range(1, outbox.last_seq + 1):
        outbox.load([seq])
        outbox.forget([(seq, seq)])
    for number in range(200):
        (seq,) = outbox.append("readings", [point(number)])
        outbox.load([seq])
        outbox.forget([(seq, seq)])
    assert file_bytes(tmp_path) < full_bytes / 3


# --- Refusing disks --------------------------------------------------------------------------------------------------


def fill(outbox: Outbox) -> tuple[int, StorageError]:
    """Write readings 0, 1, 2 … until the disk refuses; returns the one that it refused."""
    for number in range(10_000):
        try:
            outbox.append("readings", [point(number, 2000)], {"counter": str(number)})
        except StorageError as exc:
            return number, exc
    raise AssertionError("the disk took everything")


@pytest.mark.skipif(os.name != "posix", reason="only POSIX can bound the size of a process's files")
def test_a_disk_that_refuses_costs_nothing_that_was_committed(open_outbox: OpenOutbox, tmp_path: Path) -> None:
    """The hub keeps points in memory, tries again, and tells of those that it could not keep."""
    outbox = open_outbox()
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))
    try:
        number, refusal = fill(outbox)
        assert str(tmp_path) in str(refusal)
        assert outbox.states() == {"counter": str(number - 1)}
        with pytest.raises(StorageError):
            outbox.append("readings", [point(number, 150_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    lost = outbox.record_loss(3, 50, 60)
    outbox.append("readings", [point(number)])
    ledger = read_all(outbox)
    assert ledger.readings == list(range(number + 1))
    assert ledger.gaps == [(lost, lost, 3, "disk full")]
    assert (outbox.points_written, outbox.points_lost) == (number + 4, 3)


@pytest.mark.skipif(os.name != "posix", reason="only POSIX can bound the size of a process's files")
def test_a_full_outbox_on_a_disk_that_refuses_goes_on_as_if_nothing_had_been(open_outbox: OpenOutbox) -> None:
    """What was to be dropped by a commit that failed is still there, and is dropped, and told of, by the next."""
    import resource

    outbox = open_outbox(max_bytes=1024 * 1024)
    number = 0
    while outbox.gaps < 2:  # The second one is open, and grows.
        outbox.load(outbox.append("readings", [point(number, 4_000)]))
        number += 1
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for _ in range(40):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))
        try:
            with pytest.raises(StorageError):
                outbox.append("readings", [point(number, 4_000)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        outbox.load(outbox.append("readings", [point(number, 4_000)]))
        number += 1
    ledger = read_all(outbox)
    assert ledger.readings == list(range(number - len(ledger.readings), number))
    assert len(ledger.gaps) == 2
    accounted(outbox, Ranges(), ledger)


@pytest.mark.root
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs root on Linux, to make a small disk")
def test_a_full_disk_that_gets_room_again_is_written_again(tmp_path: Path) -> None:
    """Nothing but the room must be needed: no restart, no repair."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this machine lets nobody mount a disk: {mounted.stderr.decode().strip()}")
    try:
        outbox = Outbox.open(disk / "outbox.db")
        filler = disk / "filler"
        filler.write_bytes(bytes(400_000))
        number, _ = fill(outbox)
        with pytest.raises(StorageError):
            outbox.append("readings", [point(number, 50_000)])
        filler.unlink()
        outbox.append("readings", [point(number, 3000)])
        outbox.close()
        outbox = Outbox.open(disk / "outbox.db")
        assert (outbox.damage, read_all(outbox).readings) == (None, list(range(number + 1)))
        outbox.close()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_losses_in_a_row_share_a_record(open_outbox: OpenOutbox) -> None:
    outbox = open_outbox()
    assert [outbox.record_loss(10, number, number + 1) for number in range(4)] == [1, 3, 4, 5]
    assert outbox.record_loss(1, 9, 9, "something else") == 6
    ledger = read_all(outbox)
    assert ledger.gaps == [(1, 1, 10, "disk full"), (3, 5, 30, "disk full"), (6, 6, 1, "something else")]
    assert outbox.gaps == 3
    accounted(outbox, Ranges(), ledger)


# --- One owner -------------------------------------------------------------------------------------------------------


def test_a_second_user_of_the_file_is_refused_by_name(open_outbox: OpenOutbox, tmp_path: Path) -> None:
    """Two hubs on one folder would send each other's numbers."""
    open_outbox()
    with pytest.raises(SettingsError, match=f"in use by process {os.getpid()}"):
        Outbox.open(tmp_path / "outbox.db")
    program = (
        f"from pathlib import Path; from hub.outbox import Outbox; Outbox.open(Path({str(tmp_path / 'outbox.db')!r}))"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert other.returncode != 0
    assert f"in use by process {os.getpid()}" in other.stderr


def test_a_closed_outbox_can_be_opened_by_another(open_outbox: OpenOutbox, tmp_path: Path) -> None:
    open_outbox().close()
    Outbox.open(tmp_path / "outbox.db").close()


# --- Cost ------------------------------------------------------------------------------------------------------------


def steps(outbox: Outbox, work: Callable[[], object]) -> int:
    """Return how many steps SQLite's machine takes for some work."""
    taken = 0

    def count() -> int:
        nonlocal taken
        taken += 1
        return 0

    outbox._sql.set_progress_handler(count, 1)
    work()
    outbox._sql.set_progress_handler(None, 1)
    return taken


def test_no_cost_grows_with_the_backlog(open_outbox: OpenOutbox) -> None:
    """A hub that comes back after a month must not be slower than one that was away for a minute."""
    outbox = open_outbox()

    def backlog_of(entries: int) -> None:
        while outbox.points < entries:
            with outbox.transaction():
                for _ in range(10):
                    outbox.append("readings", [point(number) for number in range(1000)])
                    outbox.append("logs", [Entry(1, b"{}")] * 100)

    def costs() -> list[int]:
        first = outbox.pending()[0][0]
        last = outbox.last_seq
        return [
            steps(outbox, lambda: outbox.append("readings", [point(1)])),
            steps(outbox, lambda: outbox.load(range(first, first + 10))),
            steps(outbox, lambda: outbox.load(range(last - 10, last))),
            steps(outbox, lambda: outbox.forget([(first, first + 4)])),
            steps(outbox, lambda: outbox.oldest_ms),
            steps(outbox, outbox.next_session),
        ]

    backlog_of(2_000)
    before = costs()
    backlog_of(200_000)
    after = costs()
    assert all(later <= 1.5 * earlier + 20 for earlier, later in zip(before, after, strict=True)), (before, after)
