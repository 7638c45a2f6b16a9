"""Merges a settings file and the environment into typed settings, and knows of every value where it comes from.

Whatever a person can get wrong becomes a SettingsError of one line: file or variable, key, value, and what would be right.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Generic, Literal, TypeAlias, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import FieldInfo

from config import limits, plugins
from config.errors import SettingsError
from config.similar import did_you_mean

if TYPE_CHECKING:
    from config.principal import Role

PREFIX: Final = "HUBLINE_"
SENSORS: Final = "sensors"
"""The section whose own sections are defined by plug-ins."""
FROM_CLOUD: Final = "settings from the cloud"
"""Where a value comes from that is in no file of this machine."""

KeyPath: TypeAlias = tuple[str, ...]
Shapes: TypeAlias = "Mapping[Role, type[Struct]]"
S = TypeVar("S", bound=Struct)

_SQLITE_FILE: Final = re.compile(r"(sqlite(?:\+[a-z0-9]+)?:///)([^?]+)(.*)", re.DOTALL)
_PASSWORD: Final = re.compile(r"(?<=://)([^/@:]*):.*(?=@)")


@dataclass(frozen=True, slots=True)
class Effective:
    """One setting as it counts. `origin`: "default", the file's path, `FROM_CLOUD`, a variable's name, or what is wrong."""

    key: str
    value: object
    origin: str


@dataclass(frozen=True, slots=True)
class Read(Generic[S]):
    """Settings and where they come from.

    `written` is what the file holds, `document` what the cloud wants instead, `variables` what the environment overrides.
    """

    settings: S
    file: Path
    written: Mapping[str, object]
    document: Mapping[str, object]
    variables: Mapping[KeyPath, str]

    def effective(self) -> list[Effective]:
        """Return every setting, sections in the order of their definition; passwords in URLs are hidden."""
        found: list[Effective] = []
        for section in self.settings.__struct_fields__:
            value = getattr(self.settings, section)
            if isinstance(value, Struct):
                found += self._of_section((section,), value)
            elif section == SENSORS:
                found += self._of_sensors(section, value)
            else:
                for name, entry in value.items():
                    found += self._of_section((section, name), entry)
        return found

    def _of_section(self, path: KeyPath, section: Struct) -> Iterator[Effective]:
        for key, value in msgspec.structs.asdict(section).items():
            yield self._one((*path, key), value)

    def _of_sensors(self, section: str, table: Mapping[str, Mapping[str, object]]) -> Iterator[Effective]:
        """Yield the settings of every installed sensor, whether or not the file has a section for it."""
        for name in plugins.sensor_names():
            try:
                shape = plugins.sensor_shape(name)
            except SettingsError as exc:
                yield Effective(f"{section}.{name}", None, exc.problem)  # Broken, but nobody has asked for it.
                continue
            for key, value in _with_defaults(shape, table.get(name, {})):
                yield self._one((section, name, key), value)

    def _one(self, path: KeyPath, value: object) -> Effective:
        return Effective(".".join(path), shown(value), self._origin(path))

    def _origin(self, path: KeyPath) -> str:
        if path in self.variables:
            return self.variables[path]
        if _at(self.document, path) is not None:
            return FROM_CLOUD
        return "default" if _at(self.written, path) is None else str(self.file)


def read(
    file: Path,
    shape: type[S],
    shapes: Shapes,
    environ: Mapping[str, str] | None = None,
    document: Mapping[str, object] | None = None,
) -> Read[S]:
    """Read `file` as `shape`, with `document` over it and the environment over both.

    `shapes` holds the settings of all roles by name, for what belongs to another role.
    """
    written, document = parse(file), document or {}
    overrides = dict(_overrides(os.environ if environ is None else environ, shape, shapes))
    table = laid_over(written, document)
    for path, (variable, value) in overrides.items():
        _put(table, path, value, variable)
    variables = {path: variable for path, (variable, _) in overrides.items()}
    complaints = _Complaints(file, table, variables, shapes, document)
    complaints.not_finite()
    for section in msgspec.structs.fields(shape):
        complaints.entries(section.name, section.type)
    sensors = table.get(SENSORS)
    if isinstance(sensors, dict) and SENSORS in shape.__struct_fields__:
        for name, section in sensors.items():
            complaints.convert(section, plugins.sensor_shape(name, complaints.place((SENSORS, name))), (SENSORS, name))
    settings = _anchored(complaints.convert(table, shape, ()), file.absolute().parent)
    return Read(settings, file, written, document, variables)


def read_section(document: Mapping[str, object], path: KeyPath, shape: type[S]) -> S:
    """Return the section at `path` of a document that is in no file. Raises SettingsError with key and value."""
    return _Complaints(None, document, {}, {}).convert(_at(document, path), shape, path)


def check_finite(document: Mapping[str, object]) -> None:
    """Raise SettingsError for a number in a document that is none, which JSON can't carry."""
    _Complaints(None, document, {}, {}).not_finite()


def laid_over(lower: Mapping[str, object], upper: Mapping[str, object]) -> dict[str, object]:
    """Return `lower` with what `upper` says instead, section by section and key by key; None removes. Copies sections."""
    table: dict[str, object] = {
        key: laid_over(value, {}) if isinstance(value, Mapping) else value for key, value in lower.items()
    }
    for key, value in upper.items():
        if value is None:
            table.pop(key, None)
        elif isinstance(value, Mapping):
            beneath = table.get(key)
            table[key] = laid_over(beneath if isinstance(beneath, Mapping) else {}, value)
        else:
            table[key] = value
    return table


def parse(file: Path) -> dict[str, object]:
    """Return the tables of a TOML file. Raises SettingsError if it can't be read or is not TOML, with the line."""
    try:
        with file.open("rb") as stream:
            content = stream.read(limits.SETTINGS_FILE_MAX_BYTES + 1)
    except FileNotFoundError as exc:
        raise SettingsError("there is no such file: name the settings file with -c FILE", file=file) from exc
    except OSError as exc:
        raise SettingsError(f"can't be read: {exc.strerror}", file=file) from exc
    if len(content) > limits.SETTINGS_FILE_MAX_BYTES:
        raise SettingsError(
            f"is longer than {limits.SETTINGS_FILE_MAX_BYTES} bytes: this is no settings file", file=file
        )
    try:
        text = content.decode("utf-8-sig")  # Windows editors put a byte order mark before it.
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        raise SettingsError(f"is not UTF-8 (at line {line}): save it as UTF-8", file=file) from exc
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as exc:  # TOMLDecodeError, or a number that Python refuses to read.
        raise SettingsError(f"is not TOML: {_toml_complaint(str(exc), text)}", file=file) from exc


def _toml_complaint(message: str, text: str) -> str:
    lines = text.splitlines() or [""]
    message = message.replace("at end of document", f"at line {len(lines)}, the end")
    found = re.search(r"at line (\d+)", message)
    line = lines[min(int(found[1]), len(lines)) - 1] if found else ""
    hint = "; write paths with / or in single quotes, as 'C:\\hubline'" if "\\" in line else ""
    return " ".join(message.split()) + hint


def shown(value: object) -> object:
    """Return a value fit for eyes: without the password of a URL."""
    return _PASSWORD.sub(r"\1:***", value) if isinstance(value, str) else value


# --- The environment -------------------------------------------------------------------------------------------------


def _overrides(
    environ: Mapping[str, str], shape: type[Struct], shapes: Shapes
) -> Iterator[tuple[KeyPath, tuple[str, object]]]:
    """Yield (key path, (variable, value)) of the variables for this shape; one environment may serve all roles."""
    mine, known = set(_keys(shape)), {path for other in shapes.values() for path in _keys(other)}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or "__" not in variable[len(PREFIX) :]:
            continue
        path = tuple(level.lower() for level in variable[len(PREFIX) :].split("__"))
        if path[0] == SENSORS and len(path) == 3 and all(path):
            if SENSORS in shape.__struct_fields__:
                yield (SENSORS, path[1].replace("_", "-"), path[2]), (variable, _value(environ[variable]))
        elif path in mine:
            yield path, (variable, _value(environ[variable]))
        elif path not in known:
            names = {_variable(other) for other in known}
            raise SettingsError(
                f"names no setting{did_you_mean(variable, names)}; `hubline config show -c FILE` lists all",
                file=variable,
            )


def _keys(shape: type[Struct]) -> Iterator[KeyPath]:
    for section in msgspec.structs.fields(shape):
        if isinstance(section.type, type) and issubclass(section.type, Struct):
            yield from ((section.name, key) for key in section.type.__struct_fields__)


def _variable(path: KeyPath) -> str:
    return PREFIX + "__".join(path).upper()


def _value(text: str) -> object:
    """Return a variable's value: TOML if it is TOML, else the text itself."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return table["value"] if len(table) == 1 else text  # A line break could smuggle in a second key.


def _put(table: dict[str, object], path: KeyPath, value: object, variable: str) -> None:
    section = table
    for position, level in enumerate(path[:-1], start=1):
        inner = section.setdefault(level, {})
        if not isinstance(inner, dict):
            raise SettingsError(f"can't be set: the file's {'.'.join(path[:position])} is no section", file=variable)
        section = inner
    section[path[-1]] = value


# --- Complaints ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Complaints:
    """Says what is wrong with a value in an operator's words, and who is to blame: the file, the cloud or a variable."""

    file: Path | None
    table: Mapping[str, object]
    variables: Mapping[KeyPath, str]
    shapes: Shapes
    document: Mapping[str, object] = field(default_factory=dict)

    def convert(self, value: object, shape: type[S], prefix: KeyPath) -> S:
        """Return `value`, found at the key path `prefix`, as `shape`. Raises SettingsError."""
        try:
            return msgspec.convert(value, shape, dec_hook=_path)
        except msgspec.ValidationError as exc:
            raise self._translated(str(exc), shape, prefix) from exc

    def not_finite(self) -> None:
        """Raise SettingsError for `inf` and `nan`: TOML has them, no setting means them."""
        for path, value in _leaves(self.table, ()):
            if isinstance(value, float) and not math.isfinite(value):
                raise self.error(path, "must be a finite number", value)

    def entries(self, section: str, shape: object) -> None:
        """Raise SettingsError for a wrong one of a section's own sections (`[checks.NAME]`), which msgspec can't name."""
        table = self.table.get(section)
        if get_origin(shape) is not dict or not isinstance(table, dict):
            return
        label, entry = get_args(shape)
        if not (isinstance(entry, type) and issubclass(entry, Struct)):
            return
        for name, value in table.items():
            try:
                msgspec.convert(name, label)
            except msgspec.ValidationError as exc:
                raise self.error((section, name), f"the name must be {_wanted(label)}", name) from exc
            self.convert(value, entry, (section, name))

    def place(self, path: KeyPath) -> str | None:
        """Return the variable or the file that a key comes from."""
        for known, variable in self.variables.items():
            if path[: len(known)] == known or (known[: len(path)] == path and self._only_from_variables(path)):
                return variable
        if _at(self.document, path) is not None:
            return FROM_CLOUD
        return None if self.file is None else str(self.file)

    def error(self, path: KeyPath, problem: str, value: object = None) -> SettingsError:
        """Return the error for one key."""
        visible = shown(value)
        if len(repr(visible)) > limits.SHOWN_VALUE_MAX:
            visible = repr(visible)[: limits.SHOWN_VALUE_MAX] + " …"
        return SettingsError(problem, file=self.place(path), key=_dotted(path), value=visible)

    def _only_from_variables(self, path: KeyPath) -> bool:
        inner = _at(self.table, path)
        return isinstance(inner, dict) and all((*path, key) in self.variables for key in inner)

    def _translated(self, message: str, shape: type[Struct], prefix: KeyPath) -> SettingsError:
        what, _, where = message.rpartition(" - at ")
        if not what:
            what, where = message, ""
        inner = tuple(re.findall(r"[A-Za-z0-9_-]+", where.partition("$")[2].replace("[...]", "")))
        if found := re.match(r"Object contains unknown field `(.*)`", what, re.DOTALL):
            path = (*prefix, *inner, found[1])
            return self.error(path, f"is not a key here{self._other_home(path, shape, inner)}", _at(self.table, path))
        if found := re.match(r"Object missing required field `(.*)`", what):
            return self.error(
                (*prefix, *inner, found[1]), f"is missing: {_wanted(_type_at(shape, (*inner, found[1])))}"
            )
        wanted = _wanted(_type_at(shape, inner))
        value = _at(self.table, (*prefix, *inner))
        if wanted.startswith(("text", "a name", "a path")) and isinstance(value, int | float):
            wanted += ", so put it in quotes"
        return self.error((*prefix, *inner), f"must be {wanted}", value)

    def _other_home(self, path: KeyPath, shape: type[Struct], inner: KeyPath) -> str:
        """Say what an unknown key may have meant: a similar key, or another role's file; else what is known here."""
        owners = [f"{role}.toml" for role, other in self.shapes.items() if path in set(_keys(other))]
        here = _type_at(shape, inner)
        known = here.__struct_fields__ if isinstance(here, type) and issubclass(here, Struct) else ()
        meant = did_you_mean(path[-1], known)
        if owners and not meant:
            return f"; it belongs in {' or '.join(owners)}"
        return meant or f"; known: {', '.join(known)}"


def _type_at(shape: object, path: KeyPath) -> object:
    for level in path:
        shape = _bare(shape)
        if isinstance(shape, type) and issubclass(shape, Struct):
            fields = {known.name: known for known in msgspec.structs.fields(shape)}
            shape = fields[level].type if level in fields else object
        else:
            shape = get_args(shape)[-1] if get_origin(shape) in (list, dict) else object
    return shape


def _bare(shape: object) -> object:
    return get_args(shape)[0] if get_origin(shape) is Annotated else shape


def _wanted(shape: object) -> str:
    """Return in words what values a type has."""
    bare = _bare(shape)
    bounds = [note for note in get_args(shape)[1:] if isinstance(note, Meta)] if bare is not shape else []
    if described := next((note.description for note in bounds if note.description), None):
        return described
    if get_origin(bare) is Literal:
        return "one of " + ", ".join(f'"{choice}"' for choice in get_args(bare))
    if get_origin(bare) is list:
        least = " with at least one entry" if any(note.min_length for note in bounds) else ""
        return f"a list of {_plural(_wanted(get_args(bare)[0]))}{least}"
    if get_origin(bare) is dict:
        return "sections, each with a name of its own"
    if bare is Path:
        return "a path"
    if isinstance(bare, type) and issubclass(bare, Struct):
        return f"a section with {', '.join(bare.__struct_fields__)}"
    if choices := [choice for choice in get_args(bare) if choice is not type(None)]:
        return " or ".join(dict.fromkeys(_wanted(choice) for choice in choices))
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    name = plain.get(bare, "another kind of value") if isinstance(bare, type) else "another kind of value"
    return " ".join([name, " and ".join(words for note in bounds for words in _bounds(note))]).strip()


def _plural(words: str) -> str:
    return "entries, each " + words


def _bounds(note: Meta) -> Iterator[str]:
    for value, words in ((note.ge, "of at least"), (note.gt, "above"), (note.le, "of at most"), (note.lt, "below")):
        if value is not None:
            yield f"{words} {value}"


# --- Values ----------------------------------------------------------------------------------------------------------


def _path(wanted: type, value: object) -> object:
    if wanted is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(value)
    raise ValueError("not a path")


def _anchored(settings: S, folder: Path) -> S:
    """Return the settings with every relative path, defaults too, made absolute from `folder`."""
    changes: dict[str, object] = {}
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        if isinstance(value, Struct):
            changes[name] = _anchored(value, folder)
        elif isinstance(value, Path):
            changes[name] = folder / value
        elif (
            name == "database" and (found := _SQLITE_FILE.fullmatch(value)) and not found[2].startswith((":", "file:"))
        ):
            changes[name] = f"{found[1]}{(folder / found[2]).as_posix()}{found[3]}"
    return msgspec.structs.replace(settings, **changes)


def _with_defaults(shape: type[Struct], section: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for known in msgspec.structs.fields(shape):
        yield known.name, section[known.name] if known.name in section else _default(known)


def _default(known: FieldInfo) -> object:
    return known.default if known.default_factory is msgspec.NODEFAULT else known.default_factory()


def _leaves(value: object, path: KeyPath) -> Iterator[tuple[KeyPath, object]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _leaves(entry, (*path, key))
    elif isinstance(value, list):
        for position, entry in enumerate(value):
            yield from _leaves(entry, (*path, str(position)))
    else:
        yield path, value


def _at(table: object, path: KeyPath) -> object:
    for level in path:
        if isinstance(table, Mapping):
            table = table.get(level)
        elif isinstance(table, list) and level.isdigit() and int(level) < len(table):
            table = table[int(level)]
        else:
            return None
    return table


def _dotted(path: KeyPath) -> str:
    """Return a key path as people write it: `connector.endpoints[0]`."""
    return "".join(
        f"[{level}]" if level.isdigit() and position > 1 else f".{level}" for position, level in enumerate(path)
    )[1:]
