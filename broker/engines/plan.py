"""What an engine needs to run: its files, its command, and how it is told that they have changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from config.members import Members
from config.settings import BrokerSettings


@dataclass(frozen=True, slots=True)
class Plan:
    """How to run an engine once. `files` are contents by name within its folder; those named in `private` are its owner's alone.

    `command` begins with the program, which `package` brings; `environ` is added to ours. `reload_signal` makes the running
    engine read its files again, except when one of `restart_on` (names of files) has changed: then it is started anew.
    """

    program: str
    package: str
    arguments: tuple[str, ...]
    files: Mapping[str, bytes]
    private: frozenset[str] = frozenset()
    restart_on: frozenset[str] = frozenset()
    environ: Mapping[str, str] = field(default_factory=dict)
    reload_signal: int | None = None


class Engine(Protocol):
    """A kind of broker. Pure but for reading the files that the settings name."""

    def plan(self, settings: BrokerSettings, members: Members, folder: Path) -> Plan:
        """Return how to run it in `folder`. Raises SettingsError for what a person must correct."""
        ...
