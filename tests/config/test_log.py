"""Logging: one bounded line an event, whoever logs and whatever is in it."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import structlog

from config import limits, log
from config.settings import Log


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Leave the process's logging as it was."""
    root, level = logging.getLogger(), logging.getLogger().level
    before = list(root.handlers)
    yield
    logging.captureWarnings(False)
    root.handlers[:], root.level = before, level
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_elsewhere_than_on_a_terminal_each_event_is_one_json_object() -> None:
    """Journald, Docker and log shippers take it as it is."""
    stream = io.StringIO()
    log.set_up(Log(), stream)
    log.get("hub.agent").info("path_changed", path="direct", after_s=300.5, pending=3, connector=None)
    (line,) = lines(stream)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "event": "path_changed",
        "path": "direct",
        "after_s": 300.5,
        "pending": 3,
        "connector": None,
        "logger": "hub.agent",
    }


def test_on_a_terminal_it_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person reads it; colours only where they are wanted."""
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    log.set_up(Log(), stream)
    log.get("hub.agent").warning("connection_lost", endpoint="gw:8883", reason="timed out")
    assert stream.getvalue()[8:] == ' warning  connection_lost  endpoint=gw:8883  reason="timed out"\n'
    assert len(stream.getvalue().split()[0]) == len("12:00:00")


def test_the_format_can_be_chosen() -> None:
    """`json` on a terminal for a look at what is shipped, `text` in a file for people."""
    stream = Terminal()
    log.set_up(Log(format="json"), stream)
    log.get("x").info("a")
    assert lines(stream)[0]["event"] == "a"
    plain = io.StringIO()
    log.set_up(Log(format="text"), plain)
    log.get("x").info("a")
    assert plain.getvalue().endswith(" info     a\n")


def test_levels_below_the_chosen_one_are_dropped_also_for_loggers_made_earlier() -> None:
    """Modules make their loggers when they are imported, before the settings are read."""
    early, stream = log.get("early"), io.StringIO()
    log.set_up(Log(level="warning"), stream)
    early.info("dropped")
    early.warning("kept")
    assert [line["event"] for line in lines(stream)] == ["kept"]


def test_hostile_text_stays_one_line_and_cannot_steer_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and reasons come from the network."""
    monkeypatch.setenv("NO_COLOR", "1")
    hostile = "a\nERROR faked\r\x1b[2Jx\x9b31m\u2028y\x85z"
    stream = Terminal()
    log.set_up(Log(), stream)
    log.get("x").info("refused", client=hostile)
    log.get("x").info(hostile)
    assert len(stream.getvalue().splitlines()) == 2
    assert "\x1b" not in stream.getvalue()
    plain = io.StringIO()
    log.set_up(Log(), plain)
    log.get("x").info("refused", client=hostile)
    assert len(plain.getvalue().splitlines()) == 1
    assert "\x9b" not in plain.getvalue()
    assert lines(plain)[0]["client"] == hostile


def test_whatever_the_value_there_is_a_bounded_line() -> None:
    """A log line that can't be written would be an exception in the place that reports one."""
    stream = io.StringIO()
    log.set_up(Log(), stream)
    values: list[object] = [
        "x" * 10**6,
        2**70,
        -(2**70),
        float("nan"),
        b"\xff",
        "\ud800",
        object(),
        [1] * 10**5,
        {"a": 1},
        {1},
    ]
    for value in values:
        log.get("x").info("seen", value=value)
    assert len(lines(stream)) == len(values)
    assert max(map(len, stream.getvalue().splitlines())) < limits.LOG_TEXT_MAX + 200


def test_an_exception_is_logged_in_its_line() -> None:
    """The supervisor's last words must be complete, and parse."""
    for stream in (io.StringIO(), Terminal()):
        log.set_up(Log(), stream)
        try:
            raise ValueError("boom")
        except ValueError:
            log.get("x").exception("role_failed")
        assert "ValueError: boom" in stream.getvalue()
    log.set_up(Log(), stream := io.StringIO())
    log.get("x").error("role_failed", exc_info=ValueError("boom"))
    assert "ValueError: boom" in lines(stream)[0]["exception"]


def test_libraries_log_the_same_way_from_warnings_up() -> None:
    """amqtt alone writes several lines a packet below that."""
    stream = io.StringIO()
    log.set_up(Log(level="debug"), stream)
    for name in ("amqtt.broker", "transitions.core", "paho"):
        logging.getLogger(name).info("chatter")
        logging.getLogger(name).warning("lost %s of %d", "one", 2)
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("amqtt").exception("failed")
    bad = logging.LogRecord("amqtt", logging.ERROR, "x.py", 1, "bad %d arguments", ("x",), None)
    logging.getLogger().handlers[-1].handle(bad)  # Only ours: pytest's own would raise.
    seen = lines(stream)
    assert [line["logger"] for line in seen] == ["amqtt.broker", "transitions.core", "paho", "amqtt", "amqtt"]
    assert {line["event"] for line in seen} == {"library_logged"}
    assert seen[0]["message"] == "lost one of 2"
    assert [line["level"] for line in seen] == ["warning"] * 3 + ["error"] * 2
    assert "ValueError: boom" in seen[3]["exception"]
    assert seen[4]["message"] == "bad %d arguments"


def test_python_warnings_become_events() -> None:
    """A bare line of text among JSON objects breaks the reader."""
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        log.set_up(Log(), stream)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        logging.captureWarnings(False)
    assert "DeprecationWarning: old" in lines(stream)[0]["message"]


def test_setting_up_twice_logs_once() -> None:
    """Tests and the demo do it."""
    log.set_up(Log(), first := io.StringIO())
    log.set_up(Log(), second := io.StringIO())
    logging.getLogger("paho").warning("one")
    log.get("x").info("two")
    assert first.getvalue() == ""
    assert len(lines(second)) == 2


def test_a_stream_that_is_gone_stops_nobody() -> None:
    """The terminal is closed, the pipe's reader has died: the hub goes on measuring."""
    stream = io.StringIO()
    log.set_up(Log(), stream)
    stream.close()
    log.get("x").error("nobody_hears")
    logging.getLogger("paho").error("nor this")


# --- Taps ------------------------------------------------------------------------------------------------------------


def test_a_tap_sees_what_is_not_shown_and_changes_nothing_of_what_is() -> None:
    """The hub's collector of log lines has a level of its own."""
    stream, seen = io.StringIO(), list[Mapping[str, object]]()
    log.set_up(Log(level="warning"), stream)
    end = log.tap(seen.append, "info")
    for write in (log.get("a").debug, log.get("a").info, log.get("a").warning):
        write("happened", count=1)
    assert [(line["level"], line["event"], line["count"]) for line in seen] == [
        ("info", "happened", 1),
        ("warning", "happened", 1),
    ]
    assert [line["level"] for line in lines(stream)] == ["warning"]
    end()
    log.get("a").error("happened", count=2)
    log.get("a").info("happened", count=2)
    assert len(seen) == 2
    assert [line["level"] for line in lines(stream)] == ["warning", "error"]


def test_several_taps_end_in_any_order() -> None:
    stream, first, second = io.StringIO(), list[Mapping[str, object]](), list[Mapping[str, object]]()
    log.set_up(Log(level="error"), stream)
    end_first, end_second = log.tap(first.append, "debug"), log.tap(second.append, "warning")
    log.get("a").debug("happened")
    log.get("a").warning("happened")
    end_first()
    log.get("a").info("happened")
    log.get("a").warning("happened")
    end_second()
    log.get("a").error("happened")
    assert (len(first), len(second), len(lines(stream))) == (2, 2, 1)


def test_a_tap_works_before_logging_is_set_up() -> None:
    seen = list[Mapping[str, object]]()
    end = log.tap(seen.append, "info")
    log.get("a").info("happened")
    end()
    assert [line["event"] for line in seen] == ["happened"]
