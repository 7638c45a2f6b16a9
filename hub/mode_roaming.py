"""Whether a hub roams: a small file in its data_dir, written by a person's command, obeyed by the hub, kept across restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import orjson

from broker.clock import unix_ms
from config import files
from config.errors import SettingsError
from config.remote import overlaid
from config.settings import HubSettings, load
from hub.desired_file import NAME, read_kept

_FILE: Final = "roaming.json"


def in_force(file: Path) -> HubSettings:
    """Return a hub's settings, those from the cloud included, whether it runs or not. Raises SettingsError."""
    own = load(file, HubSettings)
    kept = read_kept(own.hub.data_dir / NAME)
    document = kept.trial or kept.good
    return overlaid(file, document.settings) if own.remote.settings else own


def is_roaming(settings: HubSettings) -> bool:
    """Tell whether the hub roams: somebody has said so, and may."""
    return settings.privileges.roam and (settings.hub.data_dir / _FILE).exists()


def set_roaming(settings: HubSettings, roaming: bool) -> bool:
    """Have the hub roam from now on, or no more, and tell whether that is a change. Raises SettingsError if it may not."""
    data_dir = settings.hub.data_dir
    if roaming and not settings.privileges.roam:
        raise SettingsError(
            "roaming needs this privilege: ask the administrator to set it, in hub.toml or for this hub in the cloud",
            key="privileges.roam",
            value=False,
        )
    file = data_dir / _FILE
    before = file.exists()
    try:
        if roaming and not before:
            data_dir.mkdir(parents=True, exist_ok=True)
            files.replace(file, orjson.dumps({"since": unix_ms()}))
        elif not roaming and before:
            file.unlink(missing_ok=True)
            files.sync_folder(data_dir)
    except OSError as exc:
        raise SettingsError(f"can't be written: {exc.strerror}", file=file) from exc
    return before != roaming
