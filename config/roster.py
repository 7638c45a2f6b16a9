"""The roster: which hubs a fleet has, until when their certificates hold, and whose are revoked.

`hubline provision` keeps it in the cloud service's bundle; so the cloud can tell a hub that never came from one that may not.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from config.errors import SettingsError
from config.fleet import Index

FILE: Final = "roster.json"


class Entry(Struct, frozen=True):
    """A hub that was provisioned. `not_after` is the end of its newest certificate."""

    site: str
    hub: str
    not_after: datetime
    revoked: datetime | None = None


class Roster(Struct, frozen=True):
    """What roster.json holds."""

    hubs: list[Entry]


def encoded(index: Index) -> bytes:
    """Return the roster of a fleet's index."""
    hubs = [
        Entry(member.site, member.name, member.newest.not_after, member.newest.revoked)
        for member in index.members
        if member.role == "hub"
    ]
    return msgspec.json.encode(Roster(hubs)) + b"\n"


def read(file: Path) -> Roster:
    """Read a roster. Raises SettingsError if it can't be read or is none."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Roster)
    except OSError as exc:
        raise SettingsError(f"can't be read: {exc.strerror}", file=file) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise SettingsError(f"is not a roster: {exc}", file=file) from exc
