"""Writes files that are whole or not there, even after a power cut; private ones are private from their first byte."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final

PRIVATE: Final = 0o600
PUBLIC: Final = 0o644


def replace(file: Path, content: bytes, mode: int = PUBLIC) -> None:
    """Write `file` durably, in the place of an older one if any: readers see the old or the new, never a part."""
    fresh = _written_beside(file, content, mode)
    try:
        os.replace(fresh, file)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


def create(file: Path, content: bytes, mode: int = PUBLIC) -> None:
    """Write a new file durably. Raises FileExistsError if there is one of this name, which stays as it is."""
    fresh = _written_beside(file, content, mode)
    try:
        if os.name == "nt":
            os.rename(fresh, file)  # Refuses an existing target there; elsewhere only a link does.
        else:
            os.link(fresh, file)
    finally:
        fresh.unlink(missing_ok=True)
    sync_folder(file.parent)


def inode_of(file: Path) -> tuple[int, int] | None:
    """Return what tells a file from another of the same name, or None if there is none."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def sync_folder(folder: Path) -> None:
    """Make new names in `folder` durable, where the system can do that."""
    if os.name == "nt":
        return  # NTFS journals names; a folder can't be opened for it.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _written_beside(file: Path, content: bytes, mode: int) -> Path:
    fresh = file.with_name(f".{file.name}.{secrets.token_hex(4)}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(fresh, flags, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if os.name != "nt":
            os.chmod(fresh, mode)  # The umask may have taken more than was asked for.
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    return fresh
