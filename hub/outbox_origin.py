"""Tells whether an outbox was made on this machine: a copied disk must not speak with the identity of the one it was copied from.

A machine is two short hashes, of the system's id and of the hardware's. Either may be unknown (the second is root's to read),
and what is unknown makes no difference.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Final

_DIGITS: Final = 16
_SYSTEM: Final = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_HARDWARE: Final = (Path("/sys/class/dmi/id/product_uuid"),)
_ID_MAX_BYTES: Final = 256
_NOT_SET: Final = frozenset(("", "uninitialized", "00000000-0000-0000-0000-000000000000"))


def this_machine() -> str:
    """Return what is known of this machine, "" if nothing is."""
    if sys.platform == "win32":
        return machine_of(_windows_id(), "")
    return machine_of(_first_of(_SYSTEM), _first_of(_HARDWARE))


def machine_of(system: str, hardware: str) -> str:
    """Return the two ids as one text that gives neither away."""
    parts = [_hash(text.strip().lower()) for text in (system, hardware)]
    return "-".join(parts) if any(parts) else ""


def is_another(made_on: str, here: str) -> bool:
    """Tell whether two machines are certainly not the same."""
    pairs = zip(_parts(made_on), _parts(here), strict=True)
    return any(before and now and before != now for before, now in pairs)


def fuller(made_on: str, here: str) -> str:
    """Return what is known of one machine by two accounts; the later one counts."""
    parts = [now or before for before, now in zip(_parts(made_on), _parts(here), strict=True)]
    return "-".join(parts) if any(parts) else ""


def _parts(machine: str) -> tuple[str, str]:
    system, _, hardware = machine.partition("-")
    return system, hardware


def _hash(text: str) -> str:
    return "" if text in _NOT_SET else hashlib.sha256(f"hubline {text}".encode()).hexdigest()[:_DIGITS]


def _first_of(files: tuple[Path, ...]) -> str:
    for file in files:
        try:
            with file.open("rb") as stream:
                text = stream.read(_ID_MAX_BYTES).decode("ascii", "replace").strip()
        except OSError:
            continue
        if text.lower() not in _NOT_SET:
            return text
    return ""


if sys.platform == "win32":

    def _windows_id() -> str:
        import winreg

        try:
            with winreg.OpenKey(
                winreg.HKEY_LOCAL_MACHINE,
                r"SOFTWARE\Microsoft\Cryptography",
                0,
                winreg.KEY_READ | winreg.KEY_WOW64_64KEY,
            ) as key:
                return str(winreg.QueryValueEx(key, "MachineGuid")[0])
        except OSError:
            return ""
