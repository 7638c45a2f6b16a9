"""The members of a fleet, for brokers whose engine must know by name who may do what.

`hubline provision` keeps the list in every broker's bundle, without those whose newest certificate is revoked. What a member
may do follows from its role, site and name alone (`broker.rights`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from config.errors import SettingsError
from config.fleet import Index
from config.principal import Principal, Role

FILE: Final = "members.json"


class Entry(Struct, frozen=True):
    """A member that may connect."""

    role: Role
    site: str
    name: str


class Members(Struct, frozen=True):
    """What members.json holds."""

    fleet: str
    members: list[Entry]

    def principals(self) -> list[Principal]:
        """Return who they are."""
        return [Principal(self.fleet, entry.site, entry.role, entry.name) for entry in self.members]


def encoded(index: Index) -> bytes:
    """Return the members of a fleet's index."""
    entries = [
        Entry(member.role, member.site, member.name)
        for member in index.members
        if member.newest.revoked is None and member.role != "broker"
    ]
    return msgspec.json.encode(Members(index.fleet, entries)) + b"\n"


def read(file: Path) -> Members:
    """Read a list of members. Raises SettingsError if it can't be read or is none."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Members)
    except OSError as exc:
        raise SettingsError(f"can't be read: {exc.strerror}", file=file) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise SettingsError(f"is not a list of members: {exc}", file=file) from exc
