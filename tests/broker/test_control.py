"""Tasks, settings, reports, logs, life signs and presence: what fits is read as it was written, what does not fit is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest
from msgspec import Struct

from broker import control, messages
from broker.control import (
    DesiredSettings,
    Heartbeat,
    LogRecord,
    Logs,
    ModePolicy,
    Poll,
    Presence,
    Protection,
    Reported,
    RequiredAction,
    Results,
    SettingsReport,
    Task,
    TaskReport,
    decode_body,
)
from broker.messages import Envelope, Events, HubEvent, Point, Readings, decode, encode
from config import limits
from config.errors import ProtocolError

EPOCH = "9f2c4be1d07a6b53"
TASK = "0c8e51f2a6d94b7e"
T0 = 1_763_798_400_000

LITTLE: list[Struct] = [
    Task(TASK, T0),
    DesiredSettings(0, EPOCH, T0, {}),
    TaskReport(TASK, "accepted", T0),
    Results([TaskReport(TASK, "accepted", T0)]),
    SettingsReport(1, EPOCH, "applied"),
    Protection("conventional", "current", "enabled", "reachable"),
    ModePolicy("unreachable", 10, 30, 60),
    Reported("1.2.0", "pc-17", "Linux", [], "continuous"),
    LogRecord(1, T0, "info", "started"),
    Logs(EPOCH, [LogRecord(1, T0, "info", "started")]),
    Heartbeat(EPOCH, 1, T0),
    Poll(EPOCH, 1, T0),
    RequiredAction("update-now", "user", "Update now."),
    Presence("online", T0, None, "connected", None, "online-ok", "Online."),
]
"""One of each, with nothing that may be left out."""

FULL: list[Struct] = [
    Task(TASK, T0, "run-check", {"name": "disk", "deep": True, "share": 0.5, "count": 3}, T0 + 1),
    Task(TASK, T0, cancel=True),
    DesiredSettings(7, EPOCH, T0, {"logs": {"level": "info"}, "sensors": {"cpu": {"interval_s": 10}}}),
    TaskReport(TASK, "running", T0, 100, "x" * limits.VALUE_TEXT_MAX, {"files": [1, None, {"a": []}]}),
    SettingsReport(7, EPOCH, "rolled-back", "the cloud was not reached"),
    Reported("1.2.0", "pc-17", "Linux", ["::1"], "polling", "laptop", SettingsReport(7, EPOCH, "trial"),
             Protection("smart", "old", "stopped", "unreachable"), {"roam": True}, ["ping"], ["disk"],
             {"cpu": {"interval_s": 10}}, ModePolicy("off", 1, 30, limits.MODE_MINUTES_MAX)),
    LogRecord(2**53, 2**53, "debug", "x" * 256, {"port": 8883}),
    Logs(EPOCH, [LogRecord(1, T0, "info", "started")], 5),
    Poll(EPOCH, 1, T0, TASK),
    Presence("path-down", T0, "berlin-1", "path down", T0, "path-down", "Path down.",
             [RequiredAction("a", "user or admin", "A.")], T0 + 1, -5, {"word": "will"}),
]  # fmt: skip
"""With everything that may be said."""


def shapes() -> set[type[Struct]]:
    """Return the structs that broker.control defines."""
    return {
        shape
        for shape in vars(control).values()
        if isinstance(shape, type) and issubclass(shape, Struct) and shape.__module__ == control.__name__
    }


@pytest.mark.parametrize("message", LITTLE + FULL, ids=lambda message: type(message).__name__)
def test_message_is_read_as_it_was_written(message: Struct) -> None:
    """Hub and cloud may be of different versions; what both know must mean the same."""
    shape = type(message)
    assert decode(encode(message), shape) == message
    later = orjson.loads(encode(message)) | {"of_tomorrow": {"x": 1}}
    assert messages.convert(later, shape) == message, "unknown fields are ignored"


def test_every_struct_is_tried() -> None:
    """A payload that no test has read is a promise that nobody has checked."""
    assert {type(message) for message in LITTLE} == shapes()


@pytest.mark.parametrize("message", LITTLE, ids=lambda message: type(message).__name__)
def test_every_field_that_is_sent_at_the_least_is_needed(message: Struct) -> None:
    """What has no default must be there, and what has one is not sent."""
    content = orjson.loads(encode(message))
    assert set(content) == {field.encode_name for field in msgspec.structs.fields(message) if field.required}, (
        "what may be left out is left out"
    )
    for name in content:
        with pytest.raises(ProtocolError):
            messages.convert({key: value for key, value in content.items() if key != name}, type(message))


WRONG: list[tuple[type[Struct], dict[str, Any]]] = [
    (Task, {"id": "0C8E51F2A6D94B7E"}),
    (Task, {"id": TASK + "\n"}),
    (Task, {"id": TASK[:-1]}),
    (Task, {"id": 5}),
    (Task, {"sent": -1}),
    (Task, {"sent": 2**53 + 1}),
    (Task, {"action": ""}),
    (Task, {"action": "Run"}),
    (Task, {"action": "../../bin/sh"}),
    (Task, {"action": "run check"}),
    (Task, {"action": "a" * 65}),
    (Task, {"arguments": []}),
    (Task, {"arguments": {"a b": 1}}),
    (Task, {"arguments": {"a": None}}),
    (Task, {"arguments": {"a": {"b": 1}}}),
    (Task, {"arguments": {"a": "x" * (limits.VALUE_TEXT_MAX + 1)}}),
    (Task, {"expires": "soon"}),
    (Task, {"cancel": 1}),
    (DesiredSettings, {"version": -1}),
    (DesiredSettings, {"version": 1.5}),
    (DesiredSettings, {"hash": ""}),
    (DesiredSettings, {"settings": []}),
    (DesiredSettings, {"settings": {"logs": "info"}}),
    (DesiredSettings, {"settings": {"logs": None}}),
    (TaskReport, {"task": "x"}),
    (TaskReport, {"state": "queued"}),
    (TaskReport, {"state": "lost"}),
    (TaskReport, {"ts": True}),
    (TaskReport, {"progress": 101}),
    (TaskReport, {"progress": -1}),
    (TaskReport, {"progress": 0.5}),
    (TaskReport, {"message": "x" * (limits.VALUE_TEXT_MAX + 1)}),
    (TaskReport, {"output": []}),
    (TaskReport, {"output": "text"}),
    (Results, {"results": []}),
    (Results, {"results": [{"task": TASK, "state": "done", "ts": T0}] * (limits.EVENTS_MAX + 1)}),
    (Results, {"results": [{"task": TASK, "state": "done"}]}),
    (SettingsReport, {"state": "queued"}),
    (SettingsReport, {"reason": "x" * (limits.VALUE_TEXT_MAX + 1)}),
    (Protection, {"scan": "quick"}),
    (Protection, {"pattern": "fresh"}),
    (Protection, {"realtime": True}),
    (Protection, {"reputation": None}),
    (Reported, {"version": "x" * 257}),
    (Reported, {"host": 17}),
    (Reported, {"system": "x" * 257}),
    (Reported, {"addresses": "::1"}),
    (Reported, {"addresses": ["x" * 65]}),
    (Reported, {"addresses": ["::1"] * (limits.ADDRESSES_MAX + 1)}),
    (Reported, {"mode": "asleep"}),
    (Reported, {"machine": "printer"}),
    (Reported, {"settings": {"version": 1}}),
    (Reported, {"protection": {}}),
    (Reported, {"protection": "none"}),
    (Reported, {"privileges": {"roam": "yes"}}),
    (Reported, {"tasks": ["run check"]}),
    (Reported, {"checks": [1]}),
    (Reported, {"sensors": {"cpu": 10}}),
    (Reported, {"policy": {"heartbeat": "off"}}),
    (ModePolicy, {"heartbeat": "sometimes"}),
    (ModePolicy, {"heartbeat_min": 0}),
    (ModePolicy, {"poll_min": 1.5}),
    (ModePolicy, {"offline_after_min": limits.MODE_MINUTES_MAX + 1}),
    (LogRecord, {"n": -1}),
    (LogRecord, {"level": "fatal"}),
    (LogRecord, {"event": "x" * 257}),
    (LogRecord, {"fields": []}),
    (Logs, {"boot": "today"}),
    (Logs, {"records": []}),
    (Logs, {"records": [{"n": 1, "ts": 1, "level": "info", "event": "x"}] * (limits.EVENTS_MAX + 1)}),
    (Logs, {"dropped": -1}),
    (Heartbeat, {"epoch": "x"}),
    (Heartbeat, {"session": -1}),
    (Heartbeat, {"ts": "now"}),
    (Poll, {"epoch": EPOCH.upper()}),
    (Poll, {"settings": "x"}),
    (RequiredAction, {"id": "Update now"}),
    (RequiredAction, {"who": "somebody"}),
    (RequiredAction, {"text": None}),
    (Presence, {"connection": "unreachable"}),
    (Presence, {"since": None}),
    (Presence, {"via": 1}),
    (Presence, {"actions": [{"id": "a", "who": "user"}]}),
    (Presence, {"expected_direct_by": -1}),
    (Presence, {"skew_ms": 0.5}),
    (Presence, {"evidence": []}),
]


@pytest.mark.parametrize(("shape", "wrong"), WRONG, ids=lambda value: getattr(value, "__name__", str(value)[:40]))
def test_one_wrong_field_is_enough_to_be_refused(shape: type[Struct], wrong: dict[str, Any]) -> None:
    """Anybody with a certificate can send anything; what is let in is trusted from there on."""
    (message,) = [each for each in LITTLE if type(each) is shape]
    with pytest.raises(ProtocolError):
        decode(orjson.dumps(orjson.loads(encode(message)) | wrong), shape)


def test_every_struct_has_its_wrong_fields() -> None:
    """The table above must not forget a payload."""
    assert {shape for shape, _ in WRONG} == shapes()


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("readings", Readings([Point(T0, {"a": 1})])),
        ("events", Events([HubEvent("x")])),
        ("results", Results([TaskReport(TASK, "done", T0)])),
        ("reported", Reported("1.2.0", "pc-17", "Linux", [], "continuous")),
        ("logs", Logs(EPOCH, [LogRecord(1, T0, "info", "started")])),
    ],
)
def test_body_is_read_by_its_kind(kind: str, body: Struct) -> None:
    """The kind in the topic chooses the type; a body under a stranger's kind is refused."""
    envelope = Envelope(EPOCH, 1, T0, orjson.loads(encode(body)))
    assert decode_body(kind, envelope) == body
    for other in {"readings", "events", *control.BODIES} - {kind}:
        with pytest.raises(ProtocolError):
            decode_body(other, envelope)


@pytest.mark.parametrize("kind", ["requests", "a-kind-of-tomorrow"])
def test_kind_of_another_version_has_no_body(kind: str) -> None:
    """A newer hub may send what an older cloud stores without understanding."""
    assert decode_body(kind, Envelope(EPOCH, 1, T0, {"anything": [1]})) is None


@pytest.mark.parametrize(
    "message",
    [
        Task(TASK, T0, "ping", {f"a{number}": "x" * limits.VALUE_TEXT_MAX for number in range(65)}),
        DesiredSettings(1, EPOCH, T0, {"sensors": {"text": "x" * limits.MESSAGE_MAX_BYTES}}),
        Presence("online", T0, None, "", None, "", "", evidence={"text": "x" * limits.MESSAGE_MAX_BYTES}),
        Results([TaskReport(TASK, "done", T0, output={"text": "x" * limits.MESSAGE_MAX_BYTES})]),
    ],
    ids=lambda message: type(message).__name__,
)
def test_what_would_be_too_large_is_not_even_written(message: Struct) -> None:
    """A broker would close the session, and the sender would try for ever."""
    with pytest.raises(ProtocolError, match="at most 262144 are allowed"):
        encode(message)


@pytest.mark.parametrize("shape", sorted(shapes(), key=str))
def test_no_payload_may_be_larger_than_the_contract_says_or_nested_without_end(shape: type[Struct]) -> None:
    """The bounds hold before anything is looked at."""
    (message,) = [each for each in LITTLE if type(each) is shape]
    with pytest.raises(ProtocolError):
        decode(encode(message) + b" " * limits.MESSAGE_MAX_BYTES, shape)
    with pytest.raises(ProtocolError):
        decode(b'{"a":' * 20_000 + b"1" + b"}" * 20_000, shape)
