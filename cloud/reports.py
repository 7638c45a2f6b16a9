"""How audits and readings are written for people and for scripts: UTF-8, with nothing that a terminal would obey."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Final

import orjson

from cloud.queries import Reading, StreamAudit
from config.errors import SettingsError

_UNITS_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_RANGES_SHOWN: Final = 3
_PLAIN_WIDTH: Final = 160
"""Columns of a table that no terminal limits."""


def instant(text: str, now_ms: int) -> int:
    """Return Unix milliseconds of "2h" (ago), ISO 8601 (local time unless it says otherwise) or milliseconds.

    Raises SettingsError.
    """
    if found := re.fullmatch(r"([0-9]{1,9})([smhd])", text):
        return max(0, now_ms - int(found[1]) * _UNITS_MS[found[2]])
    if re.fullmatch(r"[0-9]{9,16}", text):
        return int(text)
    try:
        return max(0, int(datetime.fromisoformat(text).astimezone(UTC).timestamp() * 1000))
    except (ValueError, OverflowError, OSError) as exc:
        problem = 'is no time: give "2026-11-22T08:00", "2h", "30m", "7d" or Unix milliseconds'
        raise SettingsError(problem, key="--since", value=text) from exc


# --- Readings -------------------------------------------------------------------------------------------------------


def json_lines(readings: Iterable[Reading]) -> Iterator[bytes]:
    """Return one JSON object a line."""
    for reading in readings:
        fields = {"ts": reading.ts, "time": _time(reading.ts), "sensor": reading.sensor, "value": reading.value}
        fields |= {"epoch": reading.epoch, "seq": reading.seq}
        if reading.skew_ms:
            fields["hub_ts"] = reading.ts + reading.skew_ms
        yield orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


def csv_lines(readings: Iterable[Reading]) -> Iterator[bytes]:
    """Return a header and one line per reading (RFC 4180)."""
    line = io.StringIO(newline="")
    writer = csv.writer(line)
    writer.writerow(("ts", "time", "sensor", "value", "epoch", "seq"))
    for reading in readings:
        yield _taken(line)
        writer.writerow(
            (reading.ts, _time(reading.ts), reading.sensor, _text(reading.value), reading.epoch, reading.seq)
        )
    yield _taken(line)


def text_lines(readings: Iterable[Reading]) -> Iterator[bytes]:
    """Return aligned lines for people."""
    for reading in readings:
        yield f"{_time(reading.ts):<24}  {reading.sensor:<28}  {_visible(_text(reading.value))}\n".encode()


def _taken(line: io.StringIO) -> bytes:
    text = line.getvalue()
    line.seek(0)
    line.truncate()
    return text.encode()


def _text(value: bool | float | str) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _visible(text: str) -> str:
    """Return text without control characters: what a hub sends must not drive the terminal of whoever reads it."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _time(ts: int) -> str:
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ts)
    except OverflowError:
        return str(ts)  # After the year 9999, by the clock of its hub.
    return f"{moment.replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


# --- Audits ---------------------------------------------------------------------------------------------------------


def audit_json(audits: Sequence[StreamAudit]) -> bytes:
    """Return one JSON array with an object per (hub, epoch)."""
    return orjson.dumps([_fields(audit) for audit in audits], option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _fields(audit: StreamAudit) -> dict[str, object]:
    fields = asdict(audit)
    hub_id, damaged = fields.pop("hub_id"), fields.pop("damaged")
    return {"hub": hub_id, **fields, **({} if damaged is None else {"damaged": damaged})}


def audit_table(audits: Sequence[StreamAudit], terminal: bool) -> bytes:
    """Return a table and a sentence for people."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("hub", "epoch"):
        table.add_column(heading, no_wrap=True)
    for heading in ("seq", "points", "duplicates", "refused", "gaps"):
        table.add_column(heading, justify="right")
    table.add_column("missing")
    for audit in audits:
        bad = audit.damaged or _ranges(audit.missing)
        table.add_row(
            f"{audit.site}/{audit.hub_id}",
            audit.epoch,
            f"{audit.first_seq or '-'}–{audit.last_seq or '-'}",
            *map(str, (audit.points, audit.duplicates_refused, audit.refused, len(audit.gaps))),
            Text(bad, "red") if bad else Text("nothing", "green"),
        )
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=None if terminal else _PLAIN_WIDTH, highlight=False)
    if audits:
        console.print(table)
    console.print(_verdict(audits))
    return text.getvalue().encode()


def _ranges(ranges: Sequence[tuple[int, int]]) -> str:
    shown = [str(first) if first == last else f"{first}–{last}" for first, last in ranges[:_RANGES_SHOWN]]
    more = len(ranges) - _RANGES_SHOWN
    return ", ".join([*shown, f"and {more} more ranges"] if more > 0 else shown)


def _verdict(audits: Sequence[StreamAudit]) -> str:
    if not audits:
        return "No hub has sent anything yet."
    missing = sum(last - first + 1 for audit in audits for first, last in audit.missing)
    damaged = sum(audit.damaged is not None for audit in audits)
    parts = [f"{missing} messages are missing" if missing else "Nothing is missing"]
    if damaged:
        parts.append(f"{damaged} outboxes are not stored as they were counted")
    return f"{'; '.join(parts)}."
