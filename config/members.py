"""The members of a fleet, for brokers whose engine must know by name who may do what.

`hubline provision` keeps the list in every broker's bundle, without those whose newest certificate is revoked. What a member
may do follows from its role, site and name alone (`broker.rights`). A certificate that is revoked and not among those of
outsiders may be a member's: then to take rights away does not silence whoever has it.
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
    """What members.json holds.

    `outsiders` are the revoked certificates of all who are no members, by serial number in hexadecimal. In a list of an older
    Hubline there are none.
    """

    fleet: str
    members: list[Entry]
    outsiders: tuple[str, ...] = ()

    def principals(self) -> list[Principal]:
        """Return who they are."""
        return [Principal(self.fleet, entry.site, entry.role, entry.name) for entry in self.members]


def encoded(index: Index) -> bytes:
    """Return the members of a fleet's index."""
    entries, outsiders = list[Entry](), list[str]()
    for member in index.members:
        if member.newest.revoked is None and member.role != "broker":
            entries.append(Entry(member.role, member.site, member.name))
        else:
            outsiders += [issued.serial for issued in member.certificates if issued.revoked is not None]
    return msgspec.json.encode(Members(index.fleet, entries, tuple(outsiders))) + b"\n"


def read(file: Path) -> Members:
    """Read a list of members. Raises SettingsError if it can't be read or is none."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Members)
    except OSError as exc:
        raise SettingsError(f"can't be read: {exc.strerror}", file=file) from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise SettingsError(f"is not a list of members: {exc}", file=file) from exc
