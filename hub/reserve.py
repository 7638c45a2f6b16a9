"""A little room on the disk that is given up when the disk is full: without any, not even deleting is possible.

SQLite writes what it deletes to its log first. On a disk that is full to the last byte nothing could ever be freed, and
the outbox would stay full for ever.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from config import limits


class Reserve:
    """A file of zeros beside the outbox."""

    def __init__(self, file: Path, size_bytes: int = limits.OUTBOX_RESERVE_BYTES):
        self._file, self._size_bytes = file, size_bytes
        self.held = False

    def hold(self) -> None:
        """Take the room if it is there to be taken, and as much again for everybody else."""
        if self.held:
            return
        try:
            if shutil.disk_usage(self._file.parent).free < 2 * self._size_bytes:
                return
            with self._file.open("wb") as stream:
                stream.write(bytes(self._size_bytes))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            self.release()  # Half of it would only make the disk fuller.
        else:
            self.held = True

    def release(self) -> None:
        """Give the room up, for what must be written now."""
        self._file.unlink(missing_ok=True)
        self.held = False
