"""The fast reader says yes exactly when the contract does, and reads the same."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.control import Logs, Reported, Results
from broker.messages import Envelope, Readings, decode, decode_body
from cloud.envelopes import EnvelopeReader, RefusedBodyError
from config import limits
from config.errors import ProtocolError
from tests.cloud.wire import EPOCH, T0, one, payload, readings

VALUES = st.one_of(
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=20),
    st.none(),
    st.lists(st.integers(), max_size=1),
)
NAMES = st.one_of(
    st.sampled_from(["cpu.percent", "disk_1", "a-b", "", "ä", "a b", "x" * 129, "a/b"]), st.text(max_size=5)
)
POINTS = st.fixed_dictionaries(
    {"ts": st.one_of(st.integers(-1, 2**54), st.just("now"), st.just(1.5))},
    optional={"values": st.dictionaries(NAMES, VALUES, max_size=3), "unit": st.just("%")},
)
ENVELOPES = st.fixed_dictionaries(
    {
        "epoch": st.sampled_from([EPOCH, "9F2C4BE1D07A6B53", "", 7, f"{EPOCH}\n"]),
        "seq": st.one_of(st.integers(-1, 3), st.just(2**53 + 1), st.just("1")),
        "sent": st.one_of(st.just(T0), st.just(-1)),
        "body": st.one_of(st.fixed_dictionaries({"points": st.lists(POINTS, max_size=3)}), st.just([]), st.just({})),
    },
    optional={"more": st.text(max_size=3)},
)


def by_the_contract(content: bytes) -> object:
    """Return what broker.messages makes of a message of readings."""
    try:
        envelope = decode(content, Envelope)
    except ProtocolError:
        return "unreadable"
    try:
        body = decode_body("readings", envelope)
    except ProtocolError:
        return "refused", envelope.epoch, envelope.seq
    assert isinstance(body, Readings)
    return (
        envelope.epoch,
        envelope.seq,
        envelope.sent,
        [(point.ts, sorted(point.values.items())) for point in body.points],
    )


def by_us(reader: EnvelopeReader, content: bytes) -> object:
    """Return what the fast reader makes of it, in the same form."""
    try:
        epoch, seq, sent, body = reader.read("readings", content)
    except RefusedBodyError as exc:
        return "refused", exc.envelope.epoch, exc.envelope.seq
    except ProtocolError:
        return "unreadable"
    assert isinstance(body, tuple)
    return epoch, seq, sent, [(ts, sorted(values.items())) for block in body for ts, values in block.points()]


def as_json(content: object) -> bytes:
    """Return JSON as any sender might write it: integers of any size, NaN."""
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")


@given(ENVELOPES)
def test_fast_reader_and_contract_agree_about_every_message(content: dict[str, object]) -> None:
    """A message that only one of the two accepts would be stored and never be read again, or be lost."""
    reader, text = EnvelopeReader(), as_json(content)
    assert repr(by_us(reader, text)) == repr(by_the_contract(text))
    assert repr(by_us(reader, text)) == repr(by_the_contract(text)), "once more, with the names remembered"


@given(st.binary(max_size=60))
def test_random_bytes_are_unreadable_and_nothing_worse(content: bytes) -> None:
    """Anybody with a certificate can send anything."""
    assert by_us(EnvelopeReader(), content) == by_the_contract(content) == "unreadable"


@pytest.mark.parametrize(
    ("content", "verdict"),
    [
        (b"", "unreadable"),
        (b'{"epoch": NaN}', "unreadable"),
        (payload({"points": []}, 0), "unreadable"),
        (payload({"points": []}, 5), ("refused", EPOCH, 5)),
        (readings(5, [(T0, {"a": 1})] * 1001), ("refused", EPOCH, 5)),
        (readings(5, [(T0, {"a b": 1})]), ("refused", EPOCH, 5)),
        (payload({"points": [{"ts": T0, "values": {"a": None}}]}, 5), ("refused", EPOCH, 5)),
        (readings(5, [(T0, {"a": "x" * (limits.VALUE_TEXT_MAX + 1)})]), ("refused", EPOCH, 5)),
        (one(1).replace(b"}}", b"}}" + b" " * limits.MESSAGE_MAX_BYTES), "unreadable"),
        (one(1).replace(b'"counter":1', b'"counter":NaN'), "unreadable"),
        (one(1).replace(b'"counter":1', b'"counter":1e999'), "unreadable"),
        (one(1).replace(b'"counter":1', b'"counter":"\\ud800"'), "unreadable"),
        (one(1).replace(b'"counter":1', b'"counter":"\xff"'), "unreadable"),
        (one(1).replace(b'{"epoch"', b'{"ignored":"\xff","epoch"'), "unreadable"),
    ],
)
def test_bad_message_is_judged_by_name(content: bytes, verdict: object) -> None:
    """What can be read as an envelope takes its place; what can't, does not."""
    assert by_us(EnvelopeReader(), content) == verdict


@pytest.mark.parametrize(
    ("kind", "body", "shape"),
    [
        ("results", {"results": [{"task": EPOCH, "state": "done", "ts": T0}]}, Results),
        ("reported", {"version": "1", "host": "pc-1", "system": "x", "addresses": [], "mode": "continuous"}, Reported),
        ("logs", {"boot": EPOCH, "records": [{"n": 1, "ts": T0, "level": "info", "event": "x"}]}, Logs),
    ],
)
def test_answers_of_hubs_are_read_too_and_refused_by_name_if_they_do_not_fit(
    kind: str, body: dict[str, object], shape: type
) -> None:
    """What does not fit goes to the quarantine and takes its place, or it would come for ever."""
    epoch, seq, _, read = EnvelopeReader().read(kind, payload(body, 7))
    assert (epoch, seq, type(read)) == (EPOCH, 7, shape)
    for missing in body:
        with pytest.raises(RefusedBodyError) as refused:
            EnvelopeReader().read(kind, payload({name: body[name] for name in body if name != missing}, 7))
        assert refused.value.envelope.seq == 7


def test_integers_beyond_64_bits_come_out_as_the_contract_reads_them() -> None:
    """SQLite and JSON encoders refuse them: one such value must not stop the database."""
    content = one(1).replace(b'"counter":1', b'"counter":18446744073709551616')
    _, _, _, body = EnvelopeReader().read("readings", content)
    assert isinstance(body, tuple)
    assert orjson.dumps(body[0].columns["counter"][0]) == b"1.8446744073709552e+19"


def test_remembered_names_stay_bounded() -> None:
    """A hub that makes up names must not fill the cloud's memory."""
    reader = EnvelopeReader()
    for start in range(0, limits.VALUE_NAMES_REMEMBERED * 2, 1000):
        reader.read("readings", readings(1, [(T0, {f"n{start + index}": 1 for index in range(1000)})]))
    assert len(reader._names) <= limits.VALUE_NAMES_REMEMBERED


def test_kind_that_nobody_knows_has_no_body() -> None:
    """A newer hub may send what an older cloud stores without understanding."""
    assert EnvelopeReader().read("tomorrow", payload({"x": 1}, 3)) == (EPOCH, 3, T0, None)
