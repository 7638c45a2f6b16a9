"""What the API asks of the running service: a command is in the database when it returns, and its machine knows of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar, cast

from sqlalchemy import Connection, select

from broker.clock import unix_ms
from broker.control import Presence
from broker.messages import Value
from cloud import desired, desired_records, presence_events, presence_records, task_events, task_records
from cloud.database import Database
from cloud.desired_groups import add_to_group, groups_of, remove_from_group
from cloud.desired_scopes import DocumentChanged, Scope, key_of
from cloud.desk import Content, Listener, Setting, StaleVersionError, UnknownError
from cloud.hub_key import HubKey
from cloud.operations import Operations
from cloud.schema import HUBS, SENSORS
from cloud.task_standing import TaskOrder
from config import remote
from config.errors import SettingsError
from config.settings import Action

T = TypeVar("T")

_ACTIONS: Final[tuple[str, ...]] = Action.__args__  # type: ignore[attr-defined]


class ServiceDesk:
    """The desk of the running service (`cloud.desk.Desk`). `status` describes the service as a whole."""

    def __init__(self, operations: Operations, database: Database, status: Callable[[], Mapping[str, object]]):
        self._operations: Final = operations
        self._database: Final = database
        self._status: Final = status

    # --- Tasks --------------------------------------------------------------------------------------------------------

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
        """Queue an action; see `Desk`."""
        if action not in _ACTIONS:
            raise SettingsError(f"is no action: there are {', '.join(_ACTIONS)}", key="action", value=action)
        now_ms, task_id = unix_ms(), task_records.new_id()
        order = TaskOrder(task_id, action, dict(arguments), now_ms, now_ms + int(expires_s * 1000), skip_if_offline)
        keys = tuple(dict.fromkeys(targets))

        def work(connection: Connection) -> None:
            task_records.create(connection, order, by, [_number(connection, key) for key in keys])

        await self._operations.ready()
        await self._database.change(work)
        self._operations.feed_tasks(task_events.Created(order, keys))
        return task_id

    async def cancel_task(self, task: str, key: HubKey | None, *, by: str) -> None:
        """Cancel what has not ended; see `Desk`."""
        found = await self._database.read(lambda connection: task_records.task(connection, task))
        if found is None:
            raise UnknownError(f"there is no task {task}")
        await self._operations.ready()
        self._operations.feed_tasks(task_events.CancelAsked(task, None if key is None else (key,)))
        await self._operations.lane.done()

    # --- Settings -----------------------------------------------------------------------------------------------------

    async def check_settings(self, scope: str, name: str, content: Content) -> list[str]:
        """Return what is unwise about a document; see `Desk`."""
        return remote.check(content)

    async def put_settings(
        self, scope: str, name: str, content: Content, *, expected_version: int | None, by: str
    ) -> tuple[int, list[str]]:
        """Keep a new version of a document; see `Desk`."""
        warnings = remote.check(content)
        now_ms = unix_ms()

        def work(connection: Connection) -> desired_records.Document:
            desired_records.check_place(scope, name)
            if scope == "hub":
                _number(connection, key_of(name))
            place = cast(Scope, scope)
            return desired_records.put_document(connection, place, name, content, by, now_ms, expected_version)

        await self._operations.ready()
        try:
            document = await self._database.change(work)
        except desired_records.VersionConflictError as exc:
            raise StaleVersionError(exc.current) from exc
        self._operations.feed_desired(
            DocumentChanged(document.scope, document.name, document.version, document.content)
        )
        self._operations.tell_document(scope, name, document.version)
        await self._operations.lane.done()
        return document.version, warnings

    async def effective_settings(self, key: HubKey) -> Mapping[str, Mapping[str, Setting]]:
        """Return what all documents together want of a hub; see `Desk`."""

        def work(connection: Connection) -> desired_records.Effective:
            return desired_records.effective(connection, _number(connection, key))

        found = await self._database.read(work)
        return {
            section: {
                name: Setting(value, _origin(*found.origins[f"{section}.{name}"])) for name, value in values.items()
            }
            for section, values in found.content.items()
        }

    async def set_group(self, group: str, key: HubKey, *, member: bool, by: str) -> None:
        """Take a hub into a group or out of it; see `Desk`."""

        def work(connection: Connection) -> tuple[str, ...]:
            number = _number(connection, key)
            (add_to_group if member else remove_from_group)(connection, group, [number])
            return groups_of(connection, number)

        await self._operations.ready()
        groups = await self._database.change(work)
        self._operations.feed_desired(desired.GroupChanged(key, groups))
        await self._operations.lane.done()

    # --- Hubs ---------------------------------------------------------------------------------------------------------

    async def pause(self, key: HubKey, *, by: str) -> None:
        """Expect nothing of a hub; see `Desk`."""
        await self._known(key)
        self._operations.feed_presence(presence_events.Paused(key, by))
        await self._operations.lane.done()

    async def resume(self, key: HubKey, *, by: str) -> None:
        """End a pause; see `Desk`."""
        await self._known(key)
        self._operations.feed_presence(presence_events.Resumed(key, by))
        await self._operations.lane.done()

    async def forget(self, key: HubKey, *, by: str) -> None:
        """Delete a hub and everything of it; see `Desk`."""
        number = await self._known(key)
        sensors = await self._database.read(
            lambda connection: connection.scalars(select(SENSORS.c.sensor).where(SENSORS.c.hub_no == number)).all()
        )
        self._operations.forget(key, sensors)
        await self._operations.lane.done()  # What waits to be saved of it must not come after the deletion.
        while not await self._database.change(lambda connection: presence_records.forget(connection, number)):
            pass  # A part at a time, so that others can write meanwhile.

    # --- Reading ------------------------------------------------------------------------------------------------------

    def presence(self, key: HubKey) -> Presence | None:
        """Return the one status of a hub; see `Desk`."""
        return self._operations.presence_of(key)

    def changes(self) -> Listener:
        """Return a listener to all changes; see `Desk`."""
        return self._operations.changes.listen()

    def status(self) -> Mapping[str, object]:
        """Return what the status file says; see `Desk`."""
        return self._status()

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run a short read; see `Desk`."""
        return await self._database.read(work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run a transaction; see `Desk`."""
        return await self._database.change(work)

    async def _known(self, key: HubKey) -> int:
        await self._operations.ready()
        return await self._database.read(lambda connection: _number(connection, key))


def _origin(scope: Scope, name: str) -> str:
    return f"{scope}/{name}" if name else scope


def _number(connection: Connection, key: HubKey) -> int:
    number = connection.scalar(select(HUBS.c.hub_no).where(HUBS.c.site == key[0], HUBS.c.hub == key[1]))
    if number is None:
        raise UnknownError(f"there is no hub {key[0]}/{key[1]}")
    return int(number)
