"""What a hub remembers of its paths across restarts: site brokers that worked, and since when none does.

Losing it costs a search; so a damaged or unwritable file is no more than a warning.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog

from config import files

log = structlog.get_logger(__name__)


class Remembered(msgspec.Struct, frozen=True):
    """`endpoints`: site brokers, the best first. `outage_ms`: wall clock since when no path through a connector is good."""

    endpoints: tuple[str, ...] = ()
    outage_ms: int | None = None


class PathMemory:
    """The file of one hub's `Remembered`."""

    def __init__(self, file: Path):
        self._file = file
        self.kept = self._load()

    def remember(self, endpoints: tuple[str, ...]) -> None:
        """Keep site brokers for the next start."""
        self._save(Remembered(endpoints, self.kept.outage_ms))

    def save_outage(self, outage_ms: int | None) -> None:
        """Keep since when the outage lasts, or None that there is none."""
        if outage_ms != self.kept.outage_ms:
            self._save(Remembered(self.kept.endpoints, outage_ms))

    def _load(self) -> Remembered:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=Remembered)
        except FileNotFoundError:
            return Remembered()
        except (OSError, msgspec.DecodeError) as exc:
            log.warning("path_memory_unreadable", file=str(self._file), reason=str(exc))
            return Remembered()

    def _save(self, kept: Remembered) -> None:
        self.kept = kept
        try:
            files.replace(self._file, msgspec.json.encode(kept))
        except OSError as exc:
            log.warning("path_memory_not_saved", file=str(self._file), reason=exc.strerror)
