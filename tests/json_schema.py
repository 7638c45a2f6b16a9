"""The part of JSON Schema (draft 7) that docs/asyncapi.yaml uses; an unknown keyword is an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

ANNOTATIONS = {"description", "title", "x-status"}
TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda value: value is None,
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "string": lambda value: isinstance(value, str),
    "array": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}


def complaints(value: Any, schema: dict[str, Any], resolve: Callable[[str], dict[str, Any]]) -> list[str]:
    """Return what the schema has against the value; `resolve` finds the schema of a $ref."""
    return list(_complaints(value, schema, resolve))


def _complaints(value: Any, schema: dict[str, Any], resolve: Callable[[str], dict[str, Any]]) -> Iterator[str]:
    def nested(part: Any, sub: dict[str, Any]) -> Iterator[str]:
        return _complaints(part, sub, resolve)

    for keyword, rule in schema.items():
        match keyword, value:
            case "$ref", _:
                yield from nested(value, resolve(rule))
            case "allOf", _:
                for sub in rule:
                    yield from nested(value, sub)
            case "anyOf", _:
                if all(complaints(value, sub, resolve) for sub in rule):
                    yield f"{value!r:.60} is none of {rule}"
            case "type", _:
                if not TYPES[rule](value):
                    yield f"{value!r:.60} is no {rule}"
            case "enum", _:
                if value not in rule:
                    yield f"{value!r:.60} is not in {rule}"
            case "pattern", str():
                if not re.search(re.sub(r"\$$", r"\\Z", rule), value):  # ECMA's $ is Python's \Z.
                    yield f"{value!r:.60} does not match {rule}"
            case "minimum", int() | float():
                if value < rule:
                    yield f"{value} < {rule}"
            case "maximum", int() | float():
                if value > rule:
                    yield f"{value} > {rule}"
            case ("minLength", str()) | ("minItems", list()) | ("minProperties", dict()):
                if len(value) < rule:
                    yield f"{len(value)} < {keyword} {rule}"
            case ("maxLength", str()) | ("maxItems", list()) | ("maxProperties", dict()):
                if len(value) > rule:
                    yield f"{len(value)} > {keyword} {rule}"
            case "required", dict():
                yield from (f"{name} is missing" for name in rule if name not in value)
            case "properties", dict():
                for name in rule.keys() & value.keys():
                    yield from nested(value[name], rule[name])
            case "propertyNames", dict():
                for name in value:
                    yield from nested(name, rule)
            case "additionalProperties", dict():
                for name in value.keys() - schema.get("properties", {}).keys():
                    yield from nested(value[name], rule)
            case "items", list():
                for part, sub in zip(value, rule if isinstance(rule, list) else [rule] * len(value), strict=False):
                    yield from nested(part, sub)
            case "additionalItems", list():
                if rule is False and len(value) > len(schema["items"]):
                    yield f"{len(value)} items, at most {len(schema['items'])}"
            case _:
                assert keyword in ANNOTATIONS or keyword in KNOWN, f"JSON Schema keyword {keyword} is not implemented"


KNOWN = {
    *(
        "pattern",
        "minimum",
        "maximum",
        "minLength",
        "minItems",
        "minProperties",
        "maxLength",
        "maxItems",
        "maxProperties",
    ),
    *("required", "properties", "propertyNames", "additionalProperties", "items", "additionalItems"),
}
"""Keywords that say nothing about a value of another type."""
