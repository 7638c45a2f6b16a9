"""The courier's table: every event in every state that matters, with its commands."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.machine import Wakeup
from broker.ranges import Ranges
from config import limits
from hub.courier import Acknowledged, Appended, Command, Courier, Dropped, Forget, PathClosed, PathOpened, Send, Sent

EPOCH = "9f2c4be1d07a6b53"


def sent(courier: Courier, seqs: tuple[int, ...], now: float, size_bytes: int = 100) -> list[object]:
    return [command for seq in seqs for command in courier.handle(Sent(seq, size_bytes), now)]


def opened(*pending: tuple[int, int]) -> Courier:
    courier = Courier(EPOCH, pending)
    courier.handle(PathOpened(), 0.0)
    return courier


def test_nothing_is_sent_while_no_path_is_open() -> None:
    courier = Courier(EPOCH)
    assert courier.handle(Appended(((1, 3),)), 0.0) == []
    assert courier.deadline() is None


def test_an_opened_path_gets_what_waits_in_order() -> None:
    courier = Courier(EPOCH, ((1, 3),))
    assert courier.handle(PathOpened(), 0.0) == [Send((1, 2, 3))]


def test_a_fresh_message_is_sent_at_once() -> None:
    courier = opened()
    assert courier.handle(Appended(((1, 1),)), 5.0) == [Send((1,))]


def test_a_message_that_grows_while_it_waits_is_sent_once() -> None:
    courier = opened()
    courier.handle(Appended(((1, 1),)), 0.0)
    assert courier.handle(Appended(((1, 1),)), 0.0) == []
    assert courier.unacknowledged == 1


def test_an_acknowledged_message_is_forgotten() -> None:
    courier = opened((1, 2))
    sent(courier, (1, 2), 0.0)
    assert courier.handle(Acknowledged(EPOCH, ((1, 2),)), 0.1) == [Forget(((1, 2),))]
    assert courier.unacknowledged == 0
    assert courier.deadline() is None


def test_a_repeated_acknowledgement_does_nothing() -> None:
    courier = opened((1, 1))
    sent(courier, (1,), 0.0)
    courier.handle(Acknowledged(EPOCH, ((1, 1),)), 0.1)
    assert courier.handle(Acknowledged(EPOCH, ((1, 1),)), 0.2) == []


def test_an_acknowledgement_of_another_epoch_deletes_nothing() -> None:
    """A damaged outbox that was set aside has used the same numbers."""
    courier = opened((1, 1))
    sent(courier, (1,), 0.0)
    assert courier.handle(Acknowledged("0" * 16, ((1, 1),)), 0.1) == []
    assert courier.unacknowledged == 1


def test_an_acknowledgement_deletes_only_what_it_names() -> None:
    courier = opened((1, 5))
    sent(courier, (1, 2, 3, 4, 5), 0.0)
    assert courier.handle(Acknowledged(EPOCH, ((1, 2), (5, 9))), 0.1) == [Forget(((1, 2), (5, 5)))]
    assert courier.unacknowledged == 2


def test_an_acknowledgement_of_a_message_that_waits_again_still_counts() -> None:
    """Its first copy arrived after all."""
    courier = opened((1, 1))
    sent(courier, (1,), 0.0)
    courier.handle(PathClosed(), 1.0)
    assert courier.handle(Acknowledged(EPOCH, ((1, 1),)), 1.1) == [Forget(((1, 1),))]


def test_a_message_is_sent_again_when_its_time_is_out() -> None:
    courier = opened((1, 2))
    sent(courier, (1,), 0.0)
    sent(courier, (2,), 1.0)
    assert courier.deadline() == limits.RETRANSMIT_FIRST_S
    assert courier.handle(Wakeup(), limits.RETRANSMIT_FIRST_S - 0.1) == []
    assert courier.handle(Wakeup(), limits.RETRANSMIT_FIRST_S) == [Send((1,))]


def test_the_time_out_doubles_while_nothing_comes_and_stays_bounded() -> None:
    """A hub is heard soon after the cloud has come back, whatever that took."""
    courier = opened((1, 1))
    sent(courier, (1,), 0.0)
    courier.handle(Acknowledged(EPOCH, ((1, 1),)), 0.1)
    courier.handle(Appended(((2, 2),)), 0.1)
    now, waits = 0.1, []
    for _ in range(8):
        sent(courier, (2,), now)
        due = courier.deadline()
        assert due is not None
        waits.append(round(due - now, 6))
        now = due
        assert courier.handle(Wakeup(), now) == [Send((2,))]
    assert waits == [limits.RETRANSMIT_MIN_S, *[limits.RETRANSMIT_PROBE_S] * 7]


def test_a_time_out_is_never_shorter_than_the_round_trip_asks_for_and_stays_bounded() -> None:
    for round_trip_s, expected_s in ((0.1, limits.RETRANSMIT_MIN_S), (4.0, 12.0), (30.0, limits.RETRANSMIT_MAX_S)):
        courier = opened((1, 1))
        sent(courier, (1,), 0.0)
        courier.handle(Acknowledged(EPOCH, ((1, 1),)), round_trip_s)
        assert courier.timeout_s == expected_s


def test_after_two_rounds_of_silence_one_message_asks_for_all() -> None:
    """A thousand hubs wait for a cloud that is away: none of them may ask with all that it has, nor rarely."""
    courier = opened((1, 100))
    in_flight: list[int] = []

    def send(commands: list[Command], now: float) -> None:
        in_flight.clear()
        while commands:
            wanted = [seq for command in commands if isinstance(command, Send) for seq in command.seqs]
            in_flight.extend(wanted)
            commands = [command for seq in wanted for command in courier.handle(Sent(seq, 100), now)]  # type: ignore[misc]

    send([Send(tuple(courier._flights))], 0.0)
    now, sizes = 0.0, [len(in_flight)]
    for _ in range(5):
        due = courier.deadline()
        assert due is not None
        now = due
        send(courier.handle(Wakeup(), now), now)
        sizes.append(len(in_flight))
    assert sizes == [64, 32, 1, 1, 1, 1]
    send(courier.handle(Acknowledged(EPOCH, ((in_flight[0], in_flight[0]),)), now), now)
    assert len(in_flight) == limits.WINDOW_MIN_MESSAGES + 1
    acknowledged = tuple((seq, seq) for seq in in_flight)
    send(courier.handle(Acknowledged(EPOCH, acknowledged), now), now)
    assert len(in_flight) == 2 * (limits.WINDOW_MIN_MESSAGES + 1), "twice as many with each round trip"
    while len(in_flight) > 1:
        acknowledged = tuple((seq, seq) for seq in in_flight)
        send(courier.handle(Acknowledged(EPOCH, acknowledged), now), now)
        assert courier._window < limits.WINDOW_MESSAGES / 2 + 2
    assert courier.unacknowledged <= 1


def test_messages_of_one_silence_double_the_time_out_once() -> None:
    """Sent a second apart, they expire one by one; that is no reason to wait longer each time."""
    courier = opened((1, 4))
    for seq in (1, 2, 3, 4):
        sent(courier, (seq,), float(seq))
    for _ in range(4):
        due = courier.deadline()
        assert due is not None
        for command in courier.handle(Wakeup(), due):
            assert isinstance(command, Send)
            sent(courier, command.seqs, due)
        assert courier._patience == 2
        if due >= 9.0:
            break


def test_the_time_out_follows_the_measured_round_trip() -> None:
    courier = opened((1, 1))
    sent(courier, (1,), 0.0)
    courier.handle(Acknowledged(EPOCH, ((1, 1),)), 2.0)
    assert courier.timeout_s == 2.0 + 4 * 1.0


def test_a_short_round_trip_does_not_go_below_the_floor() -> None:
    courier = opened((1, 1))
    sent(courier, (1,), 0.0)
    courier.handle(Acknowledged(EPOCH, ((1, 1),)), 0.01)
    assert courier.timeout_s == limits.RETRANSMIT_MIN_S


def test_a_message_sent_twice_measures_nothing() -> None:
    """Nobody knows which copy was acknowledged (Karn)."""
    courier = opened((1, 1))
    sent(courier, (1,), 0.0)
    courier.handle(Wakeup(), 5.0)
    sent(courier, (1,), 5.0)
    courier.handle(Acknowledged(EPOCH, ((1, 1),)), 5.001)
    assert courier.timeout_s == limits.RETRANSMIT_FIRST_S


def test_a_change_of_path_sends_everything_in_flight_again_at_once_and_in_order() -> None:
    courier = opened((1, 3))
    sent(courier, (1, 2, 3), 0.0)
    courier.handle(Acknowledged(EPOCH, ((2, 2),)), 0.1)
    assert courier.handle(PathOpened(), 0.2) == [Send((1, 3))]


def test_a_closed_path_takes_back_what_was_in_flight() -> None:
    courier = opened((1, 3))
    sent(courier, (1, 2, 3), 0.0)
    courier.handle(PathClosed(), 0.2)
    assert courier.deadline() is None
    assert courier.handle(Appended(((4, 4),)), 0.3) == []
    assert courier.handle(PathOpened(), 0.4) == [Send((1, 2, 3, 4))]


def test_word_of_a_sending_from_before_the_path_changed_is_ignored() -> None:
    courier = opened((1, 1))
    courier.handle(PathClosed(), 0.1)
    assert courier.handle(Sent(1, 100), 0.2) == []
    assert courier.deadline() is None


def test_the_window_bounds_what_is_unacknowledged() -> None:
    courier = opened()
    courier.handle(Appended(((1, 1000),)), 0.0)
    while any(flight.sent_at is None for flight in courier._flights.values()):
        sent(courier, tuple(seq for seq, flight in courier._flights.items() if flight.sent_at is None), 0.0)
    assert len(courier._flights) == limits.WINDOW_MESSAGES


def test_only_some_messages_are_asked_for_before_their_sizes_are_known() -> None:
    courier = Courier(EPOCH, ((1, 1000),))
    (send,) = courier.handle(PathOpened(), 0.0)
    assert isinstance(send, Send)
    assert len(send.seqs) == limits.SEND_BATCH_MESSAGES


def test_the_window_is_bounded_in_bytes_too() -> None:
    """A site's hubs that bring a backlog of large messages must not fill its broker's queues: it would drop them."""
    courier = opened((1, 1000))
    size_bytes = limits.WINDOW_BYTES // 4
    for seq in range(1, limits.SEND_BATCH_MESSAGES + 1):
        assert courier.handle(Sent(seq, size_bytes), 0.0) == [], "those that are still loaded will be as large"
    acknowledged = limits.SEND_BATCH_MESSAGES - 3
    assert sent_in(courier.handle(Acknowledged(EPOCH, ((1, acknowledged),)), 0.1)) == 1
    assert courier.handle(Sent(limits.SEND_BATCH_MESSAGES + 1, size_bytes), 0.1) == []


def test_small_messages_open_the_window_again_behind_large_ones() -> None:
    courier = opened((1, 1000))
    for seq in range(1, limits.SEND_BATCH_MESSAGES + 1):
        courier.handle(Sent(seq, limits.WINDOW_BYTES), 0.0)
    assert sent_in(courier.handle(Acknowledged(EPOCH, ((1, limits.SEND_BATCH_MESSAGES),)), 0.1)) > 1


def sent_in(commands: list[Command]) -> int:
    """Return how many messages are asked for."""
    return sum(len(command.seqs) for command in commands if isinstance(command, Send))


def test_a_time_out_halves_the_window_and_acknowledgements_open_it_again() -> None:
    courier = opened((1, 1))
    sent(courier, (1,), 0.0)
    courier.handle(Wakeup(), 5.0)
    assert courier._window == limits.WINDOW_MESSAGES / 2
    now = 5.0
    for _ in range(20):
        sent(courier, (1,), now)
        now = courier.deadline() or now
        courier.handle(Wakeup(), now)
    assert courier._window == limits.WINDOW_MIN_MESSAGES
    sent(courier, (1,), now)
    courier.handle(Acknowledged(EPOCH, ((1, 1),)), now + 0.1)
    assert courier._window > limits.WINDOW_MIN_MESSAGES


def test_fresh_messages_go_before_the_backlog_without_starving_it() -> None:
    courier = Courier(EPOCH, ((1, 500),))
    (first,) = courier.handle(PathOpened(), 0.0)
    assert first == Send(tuple(range(1, 17)))
    courier.handle(Appended(((501, 540),)), 0.0)
    order: list[int] = []
    for _ in range(10):
        loading = tuple(seq for seq, flight in courier._flights.items() if flight.sent_at is None)
        order += [seq for seq in loading if seq not in order]
        sent(courier, loading, 0.0)
    after = order[16:]
    assert after[:8] == [501, 502, 503, 17, 504, 505, 506, 18]


def test_live_messages_that_pile_up_become_backlog() -> None:
    """Else a hub that measures faster than its path would never send its oldest readings."""
    courier = opened((1, 100))
    courier.handle(Appended(((101, 101 + limits.LIVE_MAX_MESSAGES),)), 0.0)
    loading = tuple(seq for seq, flight in courier._flights.items() if flight.sent_at is None)
    (send,) = [c for c in sent(courier, loading[:1], 0.0) if isinstance(c, Send)]
    assert send.seqs == (17,)


def test_a_dropped_message_is_neither_sent_nor_waited_for() -> None:
    courier = opened((1, 20))
    sent(courier, tuple(range(1, 17)), 0.0)
    courier.handle(Dropped(((1, 16),)), 0.1)
    assert courier.unacknowledged == 4
    assert courier.handle(Acknowledged(EPOCH, ((1, 16),)), 0.2) == []


@given(st.data())
def test_every_message_is_acknowledged_at_last_whatever_is_lost(data: st.DataObject) -> None:
    """Any loss, delay and repetition on the way; the books balance after each step."""
    courier = Courier(EPOCH)
    now, last_seq = 0.0, 0
    on_the_way: list[int] = []
    forgotten = Ranges()

    def carry_out(commands: list[object]) -> None:
        todo = list(commands)
        while todo:
            match todo.pop(0):
                case Send(seqs):
                    for seq in seqs:
                        assert seq not in forgotten
                        on_the_way.append(seq)
                        todo += courier.handle(Sent(seq, 1000), now)
                case Forget(ranges):
                    for first, last in ranges:
                        assert not forgotten.within(first, last)
                        forgotten.add(first, last)

    for _ in range(data.draw(st.integers(1, 40))):
        now += data.draw(st.sampled_from((0.0, 0.1, 3.0, 70.0)))
        match data.draw(st.sampled_from(("append", "open", "close", "arrive", "lose", "wake"))):
            case "append":
                last_seq += 1
                carry_out(courier.handle(Appended(((last_seq, last_seq),)), now))
            case "open":
                carry_out(courier.handle(PathOpened(), now))
            case "close":
                carry_out(courier.handle(PathClosed(), now))
            case "arrive" if on_the_way:
                seq = data.draw(st.sampled_from(on_the_way))
                carry_out(courier.handle(Acknowledged(EPOCH, ((seq, seq),)), now))
            case "lose" if on_the_way:
                on_the_way.pop(0)
            case _:
                carry_out(courier.handle(Wakeup(), now))
        assert courier.unacknowledged + forgotten.count() == last_seq
    carry_out(courier.handle(PathOpened(), now))
    for _ in range(1000):
        if not courier.unacknowledged:
            break
        arrived, on_the_way[:] = list(on_the_way), []
        for seq in arrived:
            carry_out(courier.handle(Acknowledged(EPOCH, ((seq, seq),)), now))
        now = max(now, courier.deadline() or now)
        carry_out(courier.handle(Wakeup(), now))
    assert courier.unacknowledged == 0
    assert forgotten.count() == last_seq
