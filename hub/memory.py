"""What a hub remembers of its paths across restarts: site brokers that worked, and since when none does.

Losing it costs a search; so a damaged or unwritable file is no more than a warning.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import structlog

from config import files
from hub.network import is_fuller

log = structlog.get_logger(__name__)


class Remembered(msgspec.Struct, frozen=True):
    """`endpoints`: site brokers, the best first. `outage_ms`: wall clock since when no path through a connector is good.

    `network` is the fingerprint of the network where one of them worked last.
    """

    endpoints: tuple[str, ...] = ()
    outage_ms: int | None = None
    network: str | None = None


def read_memory(file: Path) -> Remembered:
    """Return what a hub remembers. Raises OSError and msgspec.DecodeError."""
    return msgspec.json.decode(file.read_bytes(), type=Remembered)


class PathMemory:
    """The file of one hub's `Remembered`."""

    def __init__(self, file: Path):
        self._file = file
        self.kept = self._load()
        self.distrusted = False
        """What is remembered proves nothing: it must not be used without having been found again."""

    @property
    def cached(self) -> tuple[str, ...]:
        """Return the site brokers to try without a search."""
        return () if self.distrusted else self.kept.endpoints

    def remember(self, endpoints: tuple[str, ...]) -> None:
        """Keep site brokers for the next start."""
        self._save(msgspec.structs.replace(self.kept, endpoints=endpoints))

    def remember_network(self, fingerprint: str | None) -> None:
        """Keep the network where a connector was found, if it is another than the one kept or known better."""
        if is_fuller(fingerprint, self.kept.network):
            self._save(msgspec.structs.replace(self.kept, network=fingerprint))

    def save_outage(self, outage_ms: int | None) -> None:
        """Keep since when the outage lasts, or None that there is none."""
        if outage_ms != self.kept.outage_ms:
            self._save(msgspec.structs.replace(self.kept, outage_ms=outage_ms))

    def _load(self) -> Remembered:
        try:
            return read_memory(self._file)
        except FileNotFoundError:
            return Remembered()
        except (OSError, msgspec.DecodeError, RecursionError) as exc:
            log.warning("path_memory_unreadable", file=str(self._file), reason=str(exc))
            return Remembered()

    def _save(self, kept: Remembered) -> None:
        self.kept = kept
        try:
            files.replace(self._file, msgspec.json.encode(kept))
        except OSError as exc:
            log.warning("path_memory_not_saved", file=str(self._file), reason=exc.strerror)
