"""What the API asks of the cloud service: commands that are durable when they return, reads, and the changes as they happen.

The seam between HTTP and the machines: `cloud.operations` is behind it in the service, an SQLite file in tests.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar

from sqlalchemy import Connection

from broker.control import Presence
from broker.messages import Value
from cloud.hub_key import HubKey
from config import limits
from config.errors import HublineError

T = TypeVar("T")

Content: TypeAlias = Mapping[str, Mapping[str, Any]]
"""A document of settings: keys and values by section."""

ChangeKind: TypeAlias = Literal["presence", "forgotten", "task", "settings", "reload"]


class StaleVersionError(HublineError):
    """Somebody else has changed the document meanwhile; `current` is its version now."""

    def __init__(self, current: int):
        self.current = current
        super().__init__(f"has changed meanwhile: its version is {current} now, look at it and try again")


class UnknownError(HublineError):
    """There is no such thing, or whoever asks may not know of it."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something that has just changed. `key` is SITE/HUB, or a task's id, or SCOPE/NAME of a document of settings.

    `site` is the one that it concerns; only listeners of the whole fleet hear of what has none.
    """

    kind: ChangeKind
    key: str
    body: Mapping[str, Any]
    site: str | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """A value that is to hold on a hub, and the document that says so: "fleet", "site/…", "group/…" or "hub/…"."""

    value: Any
    origin: str


class Desk(Protocol):
    """The service as the API sees it, in its event loop. `by` is the name of the token that asks.

    Commands raise SettingsError for what the asker must correct (with `key`), UnknownError for what there is not,
    RefusedError for what can't be done now, and StorageError if it could not be made durable.
    """

    async def create_task(
        self,
        targets: Sequence[HubKey],
        action: str,
        arguments: Mapping[str, Value],
        *,
        expires_s: float,
        skip_if_offline: bool,
        by: str,
    ) -> str:
        """Queue an action for hubs that are known to exist, and return the task's id."""

    async def cancel_task(self, task: str, key: HubKey | None, *, by: str) -> None:
        """Cancel a task for one hub, or for all of its targets, as far as they have not ended."""

    async def check_settings(self, scope: str, name: str, content: Content) -> list[str]:
        """Return what is unwise about a document without keeping it. Raises SettingsError if it can't hold."""

    async def put_settings(
        self, scope: str, name: str, content: Content, *, expected_version: int | None, by: str
    ) -> tuple[int, list[str]]:
        """Keep a new version of a document and return its number, and what is unwise about it.

        `name` is "" for the fleet, else SITE, GROUP or SITE/HUB. Raises StaleVersionError unless `expected_version` is None
        or the newest (0: there is none yet).
        """

    async def effective_settings(self, key: HubKey) -> Mapping[str, Mapping[str, Setting]]:
        """Return what all documents together want of a hub, section by section."""

    async def set_group(self, group: str, key: HubKey, *, member: bool, by: str) -> None:
        """Take a hub into a group or out of it; doing it again changes nothing."""

    async def pause(self, key: HubKey, *, by: str) -> None:
        """Expect nothing of a hub and start nothing on it, until it is resumed."""

    async def resume(self, key: HubKey, *, by: str) -> None:
        """End a pause."""

    async def forget(self, key: HubKey, *, by: str) -> None:
        """Delete a hub and everything that is stored of it, for ever."""

    def presence(self, key: HubKey) -> Presence | None:
        """Return the one status of a hub as it is published, or None if there is none yet."""

    def changes(self) -> Listener:
        """Return a listener that hears of every change from now on; to be closed."""

    def status(self) -> Mapping[str, object]:
        """Return what the status file of the service says."""

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run a short read in a thread and return its result. Raises StorageError."""

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run a transaction in the database's thread and return its result when it is durable. Raises StorageError."""


# --- Changes ---------------------------------------------------------------------------------------------------------


class Listener:
    """The changes for one listener, an asynchronous iterator. What is too much for it becomes one "reload"."""

    def __init__(self, leave: Callable[[Listener], None]):
        self._leave: Final = leave
        self._waiting: Final[deque[Change]] = deque()
        self._there: Final = asyncio.Event()
        self._closed = False

    def put(self, change: Change) -> None:
        """Let the listener have a change; never blocks."""
        if len(self._waiting) >= limits.API_CHANGES_WAITING_MAX:
            self._waiting.clear()
            self._waiting.append(Change("reload", "", {}))
        else:
            self._waiting.append(change)
        self._there.set()

    def close(self) -> None:
        """Hear of nothing more, and end the iteration; doing it again changes nothing."""
        if not self._closed:
            self._closed = True
            self._leave(self)
            self._there.set()

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> Change:
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._there.clear()
            await self._there.wait()
        return self._waiting.popleft()


class Changes:
    """Tells every listener of every change, in the running event loop."""

    def __init__(self) -> None:
        self._listeners: Final[set[Listener]] = set()

    def tell(self, change: Change) -> None:
        """Hand a change to all listeners."""
        for listener in self._listeners:
            listener.put(change)

    def listen(self) -> Listener:
        """Return a new listener."""
        listener = Listener(self._listeners.discard)
        self._listeners.add(listener)
        return listener
