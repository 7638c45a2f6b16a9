"""The roster that the fleet's administrator writes, read again when it has changed: who should be there, and who no longer."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cloud.presence_events import RosterEntry, RosterRead
from config import log, roster
from config.errors import SettingsError

_log: Final = log.get(__name__)


class RosterWatch:
    """A file that may be replaced at any time, may be away, or (None) is not used."""

    def __init__(self, file: Path | None):
        self._file = file
        self._stamp: tuple[int, int] | None = None
        self._problem = ""

    def look(self) -> RosterRead | None:
        """Return what the roster says if it is another one than that last read, else None. What is broken is logged once."""
        if self._file is None:
            return None
        stamp = _stamp_of(self._file)
        if stamp is None or stamp == self._stamp:
            return None
        try:
            found = roster.read(self._file)
        except SettingsError as exc:
            if str(exc) != self._problem:  # It is tried again soon; the same complaint once is enough.
                _log.warning("roster_not_read", reason=str(exc))
            self._problem = str(exc)
            return None
        self._stamp, self._problem = stamp, ""
        entries = (
            RosterEntry(
                (entry.site, entry.hub),
                None if entry.revoked is None else int(entry.revoked.timestamp() * 1000),
                int(entry.not_after.timestamp() * 1000),
            )
            for entry in found.hubs
        )
        return RosterRead(tuple(entries))


def _stamp_of(file: Path) -> tuple[int, int] | None:
    """Return what differs when a file was replaced."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
