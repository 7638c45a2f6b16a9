"""Payloads cross four processes and a database: what one side writes the other must read, and nothing else may pass."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import messages
from broker.messages import Ack, ConnectorState, Envelope, Events, HubEvent, HubState, Last, Point, Readings
from config import limits
from config.errors import ProtocolError

EPOCH = "9f2c4be1d07a6b53"
names = st.from_regex(r"[A-Za-z0-9._-]{1,128}", fullmatch=True)
values = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=50),
)
points = st.builds(Point, ts=st.integers(0, 2**53), values=st.dictionaries(names, values, min_size=1, max_size=5))


def envelope(**changes: object) -> bytes:
    return orjson.dumps({"epoch": EPOCH, "seq": 1, "sent": 1, "body": {"points": []}} | changes)


@given(st.lists(points, min_size=1, max_size=5), st.integers(1, 2**53))
def test_readings_arrive_as_they_were_sent(sent: list[Point], seq: int) -> None:
    body = messages.encode(Readings(sent))
    received = messages.decode(messages.encode_envelope(EPOCH, seq, 123, body), Envelope)
    assert (received.epoch, received.seq, received.sent) == (EPOCH, seq, 123)
    assert messages.decode_body("readings", received) == Readings(sent)


@pytest.mark.parametrize(
    "message",
    [
        Ack(EPOCH, [(1, 1040), (1042, 1042)]),
        HubState(True, EPOCH, 17, via="berlin-1", mode="continuous", version="1.2.0", ts=5),
        HubState(False, EPOCH, 17),
        ConnectorState(True, 5, "up", 4, 5),
        Last(1, 12.5, 3),
        Events(
            [HubEvent("sensor-state", ts=1, sensor="disk.root", from_state="ok", to_state="warning", message="full")]
        ),
        Events([HubEvent("gap", from_seq=1, to_seq=40, points=4000, first_ts=1, last_ts=2, reason="outbox full")]),
    ],
)
def test_a_message_is_read_as_it_was_written(message: messages.S) -> None:
    assert messages.decode(messages.encode(message), type(message)) == message  # type: ignore[arg-type]


def test_a_last_will_says_no_more_than_the_contract() -> None:
    """The will is written before it is known when and why it will be sent."""
    will = orjson.loads(messages.encode(HubState(False, EPOCH, 16)))
    assert will == {"online": False, "epoch": EPOCH, "session": 16}


def test_an_event_says_from_and_to() -> None:
    """`from` is a word of Python, so the field has another name in the code."""
    event = orjson.loads(messages.encode(Events([HubEvent("sensor-state", from_state="ok", to_state="error")])))
    assert event == {"events": [{"event": "sensor-state", "from": "ok", "to": "error"}]}


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xff", b"[]", b"{", b"null", b'{"epoch":1}', envelope(seq=0), envelope(seq=-1), envelope(seq=2**53 + 1),
     envelope(seq="1"), envelope(seq=1.5), envelope(seq=True), envelope(epoch="9F2C4BE1D07A6B53"), envelope(epoch="9f2c"),
     envelope(epoch=EPOCH + "\n"), envelope(sent=-1), envelope(body=[]), envelope(body=None),
     envelope()[:-1], b" " * (limits.MESSAGE_MAX_BYTES + 1)],
)  # fmt: skip
def test_what_is_not_an_envelope_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        messages.decode(payload, Envelope)


def body_of(content: object) -> Envelope:
    return Envelope(EPOCH, 1, 1, content)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"points": []},
        {"points": [{"ts": 1, "values": {}}]},
        {"points": [{"ts": 1, "values": {"a b": 1}}]},
        {"points": [{"ts": 1, "values": {"a": None}}]},
        {"points": [{"ts": 1, "values": {"a": [1]}}]},
        {"points": [{"ts": 1, "values": {"a": "x" * (limits.VALUE_TEXT_MAX + 1)}}]},
        {"points": [{"ts": "1", "values": {"a": 1}}]},
        {"points": [{"values": {"a": 1}}]},
        {"points": [{"ts": 1, "values": {"a": 1}}] * (limits.POINTS_MAX + 1)},
        {"points": [{"ts": 1, "values": {f"v{n}": n for n in range(limits.VALUES_MAX + 1)}}]},
    ],
)
def test_what_are_not_readings_is_refused(body: object) -> None:
    with pytest.raises(ProtocolError):
        messages.decode_body("readings", body_of(body))


def test_the_largest_batch_of_points_is_taken() -> None:
    body = {"points": [{"ts": 1, "values": {"a": 1}}] * limits.POINTS_MAX}
    readings = messages.decode_body("readings", body_of(body))
    assert isinstance(readings, Readings)
    assert len(readings.points) == limits.POINTS_MAX


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_a_number_that_is_none_is_refused(number: bytes) -> None:
    """JSON has no such numbers, and a database would not know what to do with them."""
    payload = b'{"epoch":"%b","seq":1,"sent":1,"body":{"points":[{"ts":1,"values":{"a":%b}}]}}' % (
        EPOCH.encode(),
        number,
    )
    with pytest.raises(ProtocolError):
        messages.decode_body("readings", messages.decode(payload, Envelope))


def test_unknown_fields_and_kinds_are_ignored() -> None:
    """Newer hubs must be understood by older clouds."""
    received = messages.decode(envelope(new="field"), Envelope)
    assert messages.decode_body("a-kind-of-tomorrow", received) is None


def test_a_payload_beyond_the_contracts_size_is_not_even_written() -> None:
    with pytest.raises(ProtocolError):
        messages.encode_json(["x" * limits.MESSAGE_MAX_BYTES])


@pytest.mark.parametrize(
    ("value", "fits"),
    [(1, True), (True, True), (1.5, True), ("x", True), (float("nan"), False), (float("inf"), False), (2**63, False),
     (None, False), ([1], False), ("x" * (limits.VALUE_TEXT_MAX + 1), False)],
)  # fmt: skip
def test_a_value_is_a_number_that_json_can_say_or_a_short_text(value: object, fits: bool) -> None:
    assert messages.is_value(value) == fits


@pytest.mark.parametrize("depth", [2_000, 20_000])
def test_what_is_nested_too_deeply_is_refused_like_any_other_nonsense(depth: int) -> None:
    """Any hub may send it: it must not come up as another error than the contract's."""
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    for payload in (deep, b'{"epoch":"9f2c4be1d07a6b53","seq":1,"sent":1,"body":%b}' % deep):
        try:
            messages.decode(payload, Envelope)
        except ProtocolError:
            pass
    with pytest.raises(ProtocolError):
        messages.decode(deep, Envelope)


@pytest.mark.parametrize(
    "event",
    [
        {"event": "gap"},
        {"event": "gap", "from_seq": 1, "points": 3},
        {"event": "gap", "from_seq": 5, "to_seq": 4, "points": 3},
        {"event": "gap", "from_seq": 1, "to_seq": 4},
    ],
)
def test_a_gap_record_must_say_what_is_missing(event: dict[str, object]) -> None:
    """The audit subtracts it from what is missing: half a record would excuse a loss that it doesn't name."""
    body = {"events": [event, {"event": "gap", "from_seq": 4, "to_seq": 4, "points": 0}]}
    events = messages.decode_body("events", Envelope("9f2c4be1d07a6b53", 1, 1, body))
    assert isinstance(events, Events)
    assert [event.is_gap for event in events.events] == [False, True]
