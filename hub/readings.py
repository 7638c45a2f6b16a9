"""Sensors' values as points and events of the contract (pure): what can't be sent is left out, and counted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from broker.messages import Value, is_value
from config import limits
from hub.entries import ENTRY_MAX_BYTES, Entry

_NAME: Final = re.compile(rf"[A-Za-z0-9._-]{{1,{limits.VALUE_NAME_MAX}}}")

_TEXT_FITS: Final = ENTRY_MAX_BYTES // 6 - limits.VALUES_MAX * 28
"""Characters of text that fit beside VALUES_MAX numbers, even if JSON needs six bytes for each: no need to look closer."""


@dataclass(slots=True)
class Dropped:
    """How many values were left out: for their `names` (forbidden, or not the sensor's own), and for themselves."""

    names: int = 0
    values: int = 0


def sendable(sensor: str, values: Mapping[str, Value], dropped: Dropped) -> dict[str, Value]:
    """Return those values that may be sent. Raises ValueError if they are too many or too long for one point."""
    if len(values) > limits.VALUES_MAX:
        raise ValueError(f"{len(values)} values, at most {limits.VALUES_MAX} are allowed")
    allowed: dict[str, Value] = {}
    text = 0
    for name, value in values.items():
        # A sensor speaks in its own name only: nothing installed can pass its values off as another's.
        if not isinstance(name, str) or not _NAME.fullmatch(name) or not f"{name}.".startswith(f"{sensor}."):
            dropped.names += 1
        elif not is_value(value) or (isinstance(value, str) and not _is_unicode(value)):
            dropped.values += 1
        else:
            allowed[name] = float(value) if isinstance(value, float) else value  # orjson takes no kind of float.
            text += len(value) if isinstance(value, str) else 0
    if text > _TEXT_FITS and len(_encoded(0, allowed).body) > ENTRY_MAX_BYTES:
        raise ValueError(f"{text} characters of text are more than a message holds")
    return allowed


def encoded_points(ts_ms: int, parts: Sequence[Mapping[str, Value]]) -> list[Entry]:
    """Return one point with all values of the parts, each sendable; or several where one would be too large."""
    values = {name: value for part in parts for name, value in part.items()}
    if not values:
        return []
    entry = _encoded(ts_ms, values)
    if len(parts) > 1 and (len(values) > limits.VALUES_MAX or len(entry.body) > ENTRY_MAX_BYTES):
        middle = len(parts) // 2
        return encoded_points(ts_ms, parts[:middle]) + encoded_points(ts_ms, parts[middle:])
    return [entry]


def encoded_event(ts_ms: int, sensor: str, before: str, after: str, message: str) -> Entry:
    """Return the event that a sensor's state has changed."""
    text = message[: limits.VALUE_TEXT_MAX].encode("utf-8", "replace").decode("utf-8")
    event = {"event": "sensor-state", "ts": ts_ms, "sensor": sensor, "from": before, "to": after, "message": text}
    return Entry(ts_ms, orjson.dumps(event))


def _encoded(ts_ms: int, values: Mapping[str, Value]) -> Entry:
    return Entry(ts_ms, orjson.dumps({"ts": ts_ms, "values": values}))


def _is_unicode(text: str) -> bool:
    """Tell whether UTF-8 can say it: names of files may hold bytes that are no characters (PEP 383)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
