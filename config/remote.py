"""Settings that the cloud may set at hubs: documents that are partial, typed, laid over each other and over a hub.toml.

A document is a table of sections as in hub.toml. What a machine's own people must decide can't be in it: who the hub is,
where it keeps what, what the cloud may start there, and whether it obeys. null stands for "not set here after all".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
import orjson
from msgspec import Struct

from config import limits, plugins, sources
from config.errors import SettingsError
from config.settings import SHAPES, HubMode, HubSettings, Scalar

Document: TypeAlias = Mapping[str, object]

HASH_CHARACTERS: Final = 16

ALLOWED: Final[Mapping[str, frozenset[str] | None]] = {
    "mode": None,
    "sensors": None,
    "log": None,
    "logs": None,
    "privileges": None,
    "protection": None,
    "failover": None,
    "failback": None,
    "connector": None,
    "cloud": None,
    "hub": frozenset({"machine"}),
}
"""The sections that the cloud may set, and which of their keys (None: all)."""


class Change(NamedTuple):
    """One key that differs; None where it is not set. Passwords in URLs are hidden."""

    key: str
    old: object
    new: object


def check(document: Document) -> list[str]:
    """Return what is doubtful in a document, a line each. Raises SettingsError, with key and value, for what is wrong.

    A sensor that isn't installed here is only doubtful: it may be at the hubs, which look again.
    """
    for section in document:
        if section not in ALLOWED:
            raise _not_allowed(section, document[section])
    sources.check_finite(document)
    size_bytes = len(_canonical(document))
    if size_bytes > limits.SETTINGS_DOCUMENT_MAX_BYTES:
        raise SettingsError(f"is too long: {size_bytes} bytes of at most {limits.SETTINGS_DOCUMENT_MAX_BYTES}")
    plain, doubts = merge(document), list[str]()
    shapes = {known.name: known.type for known in msgspec.structs.fields(HubSettings)}
    for section, content in document.items():
        if content is None:
            continue
        if not isinstance(content, Mapping):
            raise SettingsError("must be a section", key=section, value=content)
        if section == sources.SENSORS:
            doubts += _check_sensors(content, plain)
            continue
        allowed, shape = ALLOWED[section], shapes[section]
        for key, value in content.items():
            if allowed is not None and key not in allowed:
                raise _not_allowed(f"{section}.{key}", value)
            if key not in shape.__struct_fields__:
                sources.read_section({section: {key: value}}, (section,), shape)  # Says what may have been meant.
        if section in plain:
            sources.read_section(plain, (section,), shape)
    if "mode" in plain:
        mode = sources.read_section(plain, ("mode",), HubMode)
        check_ranges(mode)
        doubts += doubts_about(mode)
    return doubts


def merge(*documents: Document) -> dict[str, Any]:
    """Return documents laid over each other, the last one counting most, without what is null or empty."""
    merged: dict[str, object] = {}
    for document in documents:
        merged = sources.laid_over(merged, document)
    return _without_empty(merged)


def hash_of(document: Document) -> str:
    """Return the name of a document's content: equal documents have equal ones, however they are written."""
    return hashlib.sha256(_canonical(merge(document))).hexdigest()[:HASH_CHARACTERS]


EMPTY_HASH: Final = "44136fa355b3678a"
"""The name of no settings at all: hub.toml alone counts."""


def diff(old: Document, new: Document) -> list[Change]:
    """Return the keys that differ, in alphabetical order."""
    before, after = leaves(old), leaves(new)
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    return [Change(key, sources.shown(before.get(key)), sources.shown(after.get(key))) for key in keys]


def leaves(document: Document) -> dict[str, object]:
    """Return a document as one table of `section.key`, or `sensors.name.key`."""
    return dict(_leaves(document, ""))


def overlaid(file: Path, document: Document, environ: Mapping[str, str] | None = None) -> HubSettings:
    """Return the settings of a hub with `document` over its file and the environment over both.

    Raises SettingsError for anything that a person must correct, in the document too.
    """
    check(document)
    read = sources.read(file, HubSettings, SHAPES, environ, merge(document))
    check_ranges(read.settings.mode)
    return read.settings


def doubts_about(mode: HubMode) -> list[str]:
    """Return what is allowed in a `[mode]` but hardly meant, a line each."""
    if mode.heartbeat == "off":
        return []
    found = []
    if mode.poll_min < 3 * mode.heartbeat_min:
        found.append(
            f"mode.poll_min = {mode.poll_min} is below three heartbeats (mode.heartbeat_min = {mode.heartbeat_min}): "
            f"recommended are {3 * mode.heartbeat_min} or more"
        )
    if mode.offline_after_min <= mode.heartbeat_min:
        found.append(
            f"mode.offline_after_min = {mode.offline_after_min} is not above mode.heartbeat_min = {mode.heartbeat_min}: "
            "hubs would count as offline between two heartbeats"
        )
    return found


def check_ranges(mode: HubMode) -> None:
    """Raise SettingsError for a range of addresses that only looks like one."""
    for position, text in enumerate(mode.unreachable):
        first, dash, last = text.partition("-")
        try:
            backward = bool(dash) and IPv4Address(first) > IPv4Address(last)
            if not dash:
                ip_network(text, strict=False)
        except ValueError as exc:
            problem = f"is no range of addresses: {exc}"
            raise SettingsError(problem, key=f"mode.unreachable[{position}]", value=text) from exc
        if backward:
            problem = "ends before it begins: write the smaller address first"
            raise SettingsError(problem, key=f"mode.unreachable[{position}]", value=text)


# --- Inside ----------------------------------------------------------------------------------------------------------


def _not_allowed(key: str, value: object) -> SettingsError:
    allowed = ", ".join(
        section if keys is None else ", ".join(f"{section}.{each}" for each in sorted(keys))
        for section, keys in ALLOWED.items()
    )
    own = key.partition(".")[0] in HubSettings.__struct_fields__
    whose = "can only be set in the hub's own file" if own else "is not a section of a hub's settings"
    text = repr(value)
    visible = value if len(text) <= limits.SHOWN_VALUE_MAX else text[: limits.SHOWN_VALUE_MAX] + " …"
    return SettingsError(f"{whose}; the cloud may set {allowed}", key=key, value=visible)


def _check_sensors(sensors: Mapping[str, object], plain: Mapping[str, Any]) -> Iterator[str]:
    for name, content in sensors.items():
        key = f"{sources.SENSORS}.{name}"
        if content is not None and not isinstance(content, Mapping):
            raise SettingsError("must be a section", key=key, value=content)
        try:
            shape: type[Struct] | None = plugins.sensor_shape(name)
        except SettingsError as exc:
            shape = None
            yield f"{key}: {exc.problem}: hubs without it will refuse these settings"
        section = plain.get(sources.SENSORS, {}).get(name)
        if section is None:
            continue
        if shape is not None:
            sources.read_section(plain, (sources.SENSORS, name), shape)
            continue
        for each, value in section.items():
            try:
                msgspec.convert(value, Scalar)
            except msgspec.ValidationError as exc:
                problem = "must be text, a number, true or false, or a list of texts"
                raise SettingsError(problem, key=f"{key}.{each}", value=value) from exc


def _canonical(document: Document) -> bytes:
    try:
        return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    except (orjson.JSONEncodeError, RecursionError) as exc:
        raise SettingsError(f"can't be written as JSON: {exc}") from exc


def _without_empty(table: Mapping[str, object]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in table.items():
        inner = _without_empty(value) if isinstance(value, Mapping) else value
        if inner != {}:
            kept[key] = inner
    return kept


def _leaves(table: Mapping[str, object], prefix: str) -> Iterator[tuple[str, object]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
