"""One process at a time in a directory; a lock dies with its process, so none is ever left over."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from config import limits
from config.errors import SettingsError

if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _take(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def locked(file: Path, timeout_s: float = limits.FLEET_LOCK_TIMEOUT_S) -> Iterator[None]:
    """Hold the lock `file`, made if need be, while the block runs. Raises SettingsError if another holds it for too long."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        give_up_at = time.monotonic() + timeout_s
        while True:
            try:
                _take(descriptor)
                break
            except OSError as exc:
                if time.monotonic() >= give_up_at:
                    raise SettingsError(
                        f"another command has been working here for {timeout_s:g} s: try again when it has ended",
                        file=file.parent,
                    ) from exc
            time.sleep(limits.FLEET_LOCK_POLL_S)
        yield
    finally:
        os.close(descriptor)  # Gives the lock back.
