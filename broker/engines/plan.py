"""What an engine needs to run: its files, its command, and how it is told that they have changed."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from config.members import Members
from config.settings import BrokerSettings, LogLevel


@dataclass(frozen=True, slots=True)
class Plan:
    """How to run an engine once. `files` are contents by name within its folder; those named in `private` are its owner's alone.

    `command` begins with the program, which `package` brings; `environ` is added to ours. `reload_signal` makes the running
    engine read its files again, except when one of `restart_on` (names of files) has changed: then it is started anew. Its
    identity, revocation list and members are always watched; `watched` are further files that the plan was made from.
    `restart_on_revocation`: it does not close the sessions of certificates that are revoked. `self_contained`: it reads nothing
    but `files`, so that a change of what they were made from is none of its business while they stay as they are.
    `speaks_while_it_serves`: it is of one thread, so that any line of its log shows that it goes about its work.
    """

    program: str
    package: str
    arguments: tuple[str, ...]
    files: Mapping[str, bytes]
    private: frozenset[str] = frozenset()
    restart_on: frozenset[str] = frozenset()
    restart_on_revocation: bool = False
    self_contained: bool = False
    speaks_while_it_serves: bool = False
    environ: Mapping[str, str] = field(default_factory=dict)
    reload_signal: int | None = None
    watched: frozenset[Path] = frozenset()


@dataclass(frozen=True, slots=True)
class Heard:
    """What a line of an engine's log says, and whether it says that the engine serves now.

    `refused` is the kind, the client and the reason (as `broker.refusals` has them) if it tells of a refusal.
    """

    level: LogLevel
    text: str
    ready: bool = False
    refused: tuple[str, str, str] | None = None


class Engine(Protocol):
    """A kind of broker. Pure but for reading the files that the settings name. Engines inherit from it, for what it answers."""

    def plan(self, settings: BrokerSettings, members: Members, folder: Path) -> Plan:
        """Return how to run it in `folder`. Raises SettingsError for what a person must correct."""
        ...

    def hear(self, line: str) -> Heard | None:
        """Return what one line of its log says, or None if it is not worth passing on."""
        ready = line.endswith((" running", "Server is ready"))
        return Heard("info", line, ready)

    def companions(
        self, settings: BrokerSettings, members: Callable[[], Members], folder: Path
    ) -> Sequence[Coroutine[Any, Any, None]]:
        """Return what must run beside it, until cancelled. `members` gives those of now, whenever it is called."""
        return ()

    def beside(self) -> Mapping[str, object]:
        """Return what status.json says of what runs beside it."""
        return {}
