"""The file that keeps which settings from the cloud are in force at this hub: replaced whole, private, never half-true.

A file that is damaged is set aside under a name that says so; then the hub's own settings file counts alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec
import structlog

from config import files, remote
from config.errors import SettingsError
from hub.desired import Document, Kept

log = structlog.get_logger(__name__)

NAME: Final = "settings.json"
"""In the hub's data_dir."""


def read_kept(file: Path) -> Kept:
    """Return what was kept; nothing if there is no file, or none that can be used."""
    try:
        kept = decode(file.read_bytes())
    except FileNotFoundError:
        return Kept()
    except ValueError as exc:
        log.error("settings_from_cloud_damaged", file=str(file), reason=str(exc), aside=_set_aside(file))
        return Kept()
    except OSError as exc:
        log.error("settings_from_cloud_unreadable", file=str(file), reason=exc.strerror)
        return Kept()
    return kept


def write_kept(file: Path, kept: Kept) -> None:
    """Replace the file durably. Raises OSError; then it holds what it held before."""
    files.replace(file, msgspec.json.encode(kept), files.PRIVATE)


def decode(content: bytes) -> Kept:
    """Read what `write_kept` has written. Raises ValueError if it is anything else."""
    try:
        kept = msgspec.json.decode(content, type=Kept)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise ValueError(str(exc)) from exc
    for document in (kept.good, kept.trial):
        if document is not None and not _is_whole(document):
            raise ValueError(f"the settings of version {document.version} are not those that were kept")
    return kept


def _is_whole(document: Document) -> bool:
    try:
        return remote.hash_of(document.settings) == document.hash
    except SettingsError:
        return False


def _set_aside(file: Path) -> str | None:
    """Move a damaged file away, in the place of an older one, and return where it is."""
    aside = file.with_name(f"{file.name}.damaged")
    try:
        os.replace(file, aside)
    except OSError:
        return None
    return str(aside)
