"""Sets up logging: text on a terminal, one JSON object a line elsewhere; always to stderr, always one bounded line an event.

What libraries log through the standard library goes the same way, from warnings up. A stream that fails never stops a role.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, TextIO, TypeAlias, cast

import orjson

from config.lean import without

with without("rich", "typing_extensions"):
    # structlog would load the one for tracebacks that are never printed here, msgspec the other one for what typing has itself.
    import msgspec  # noqa: F401
    import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from config import limits
from config.settings import Log, LogLevel

Logger: TypeAlias = FilteringBoundLogger

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_COLOURS: Final = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "31"}
_STEERING: Final = (*range(0x7F, 0xA0), 0x2028, 0x2029)
"""What a terminal may obey or take for a line's end, and JSON leaves as it is."""
_IN_JSON: Final = {code: f"\\u{code:04x}" for code in _STEERING}
_IN_TEXT: Final = {code: f"\\x{code:02x}" for code in (*range(32), *_STEERING)}
_INTEGER_MAX: Final = 2**63
_FIRST: Final = ("time", "level", "event")


def get(name: str) -> Logger:
    """Return a logger; `name` is the module's. Events are snake_case names in the past tense, with fields."""
    return cast(Logger, structlog.get_logger(name))


def set_up(settings: Log, stream: TextIO | None = None) -> None:
    """Send everything that is logged from now on to `stream`, by default stderr."""
    to = sys.stderr if stream is None else stream
    terminal = to.isatty()
    text = settings.format == "text" or (settings.format == "auto" and terminal)
    coloured = terminal and os.name != "nt" and "NO_COLOR" not in os.environ
    output = _Output(to)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _stamped,
            structlog.processors.format_exc_info,
            _bounded,
            _Shown(_LEVELS[settings.level]),
            _as_text(coloured) if text else _as_json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[settings.level]),
        logger_factory=lambda name="": _Lines(output, name),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for former in [route for route in root.handlers if isinstance(route, _FromLibraries)]:
        root.removeHandler(former)
    root.addHandler(_FromLibraries())
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)


def tap(sink: Callable[[Mapping[str, object]], None], level: LogLevel = "info") -> Callable[[], None]:
    """Show `sink` every event from `level` on, shown elsewhere or not, in the thread that logs; returns how to end that.

    The sink must be quick, and must not log. What is shown elsewhere does not change.
    """
    tapped = _Tap(sink, _LEVELS[level])
    processors = list(structlog.get_config()["processors"])
    place = next((at for at, each in enumerate(processors) if isinstance(each, _Shown)), len(processors) - 1)
    _pass_through([*processors[:place], tapped, *processors[place:]])

    def end() -> None:
        _pass_through([each for each in structlog.get_config()["processors"] if each is not tapped])

    return end


def _pass_through(processors: list[Processor]) -> None:
    """Have events pass through these from now on, from the lowest level on that one of them wants."""
    shown = [each.level for each in processors if isinstance(each, _Shown)]
    taps = [each.level for each in processors if isinstance(each, _Tap)]
    lowest = min(shown + taps) if shown else logging.NOTSET
    structlog.configure(processors=processors, wrapper_class=structlog.make_filtering_bound_logger(lowest))


class _Tap:
    """Shows events to somebody else as they pass."""

    def __init__(self, sink: Callable[[Mapping[str, object]], None], level: int):
        self.level, self._sink = level, sink

    def __call__(self, _: WrappedLogger, method: str, event: EventDict) -> EventDict:
        if _LEVELS.get(method, logging.ERROR) >= self.level:
            self._sink({"level": method, **event})
        return event


class _Shown:
    """Lets pass what is to be shown; a tap may need more."""

    def __init__(self, level: int):
        self.level = level

    def __call__(self, _: WrappedLogger, method: str, event: EventDict) -> EventDict:
        if _LEVELS.get(method, logging.ERROR) < self.level:
            raise structlog.DropEvent
        return event


class _Output:
    """A stream that takes whole lines from any thread, and on failure loses them rather than the process."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._one_at_a_time = threading.Lock()

    def write(self, line: str) -> None:
        with self._one_at_a_time:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                pass  # The reader of the log is gone: there is nobody left to tell.


class _Lines:
    """What structlog writes to: the same output for each level, under the name of a module."""

    def __init__(self, output: _Output, name: str):
        self.name = name
        self.debug = self.info = self.warning = self.error = self.critical = output.write


class _FromLibraries(logging.Handler):
    """Hands what libraries log to our own pipeline."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError):
            message = str(record.msg)  # Its arguments don't fit its format.
        level = max(record.levelno // 10 * 10, logging.WARNING)
        logger = get(record.name)
        if record.exc_info:
            logger.log(min(level, logging.CRITICAL), "library_logged", message=message, exc_info=record.exc_info)
        else:
            logger.log(min(level, logging.CRITICAL), "library_logged", message=message)


def _stamped(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    name = {"logger": logger.name} if getattr(logger, "name", "") else {}
    return {"time": now, "level": method, "event": event.pop("event", ""), **event, **name}


def _bounded(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {key: _plain(value) for key, value in event.items()}


def _plain(value: object) -> object:
    """Return a value as JSON can hold it: long texts cut, odd types as text."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and -_INTEGER_MAX <= value < _INTEGER_MAX:
        return value
    text = value if isinstance(value, str) else str(value)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= limits.LOG_TEXT_MAX else f"{text[: limits.LOG_TEXT_MAX]}… ({len(text)} characters)"


def _as_json(_: WrappedLogger, __: str, event: EventDict) -> str:
    return orjson.dumps(event).decode().translate(_IN_JSON)


def _as_text(coloured: bool) -> Callable[[WrappedLogger, str, EventDict], str]:
    def render(_: WrappedLogger, __: str, event: EventDict) -> str:
        trace = event.pop("exception", None)
        level = str(event["level"])
        shown = f"\x1b[{_COLOURS.get(level, '0')}m{level:<8}\x1b[0m" if coloured else f"{level:<8}"
        line = f"{str(event['time'])[11:19]} {shown} {_visible(event['event'])}{_fields(event)}"
        return (
            line if trace is None else line + "\n" + "\n".join(f"  {_visible(row)}" for row in str(trace).splitlines())
        )

    return render


def _fields(event: Mapping[str, object]) -> str:
    return "".join(f"  {key}={_quoted(value)}" for key, value in event.items() if key not in (*_FIRST, "logger"))


def _quoted(value: object) -> str:
    text = _visible(value)
    return f'"{text}"' if not text or " " in text else text


def _visible(value: object) -> str:
    """Return text without what could steer a terminal or fake a second line."""
    return str(value).translate(_IN_TEXT)
