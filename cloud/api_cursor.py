"""Cursors of pages: opaque texts that hold the place after the last entry, so that a page never repeats or skips one."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

from config.errors import SettingsError

Number: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Text: TypeAlias = Annotated[str, Meta(max_length=256)]
P = TypeVar("P")


def cursor_of(*place: str | int) -> str:
    """Return the cursor of a place."""
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def place_of(cursor: str, shape: type[P]) -> P:
    """Return the place of a cursor, a tuple of the given type. Raises SettingsError if it is not one of ours."""
    try:
        packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return msgspec.json.decode(packed, type=shape)
    except (ValueError, msgspec.MsgspecError, RecursionError) as exc:
        raise SettingsError("is not the cursor of a page of this list", key="cursor") from exc


def cut(rows: Sequence[P], limit: int) -> tuple[Sequence[P], bool]:
    """Return the rows of a page, and whether there are more; one more than `limit` were asked for."""
    return rows[:limit], len(rows) > limit
