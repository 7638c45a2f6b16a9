"""Toward whom the cloud starts something, and what a sign of life brings: the three machines together on a real database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from broker.clock import unix_ms
from broker.control import Heartbeat, Poll
from broker.messages import ConnectorState, HubState
from broker.topics import Topic
from cloud.batch import Batch, ConnectorStateSeen, HubStateSeen, Outcome
from cloud.database import Database, SqliteDatabase
from cloud.ingest import Heard
from cloud.operations import Operations
from cloud.service_desk import ServiceDesk
from config.settings import CloudProcess, CloudSettings, Identity
from tests.cloud.wire import EPOCH, FLEET, SITE

KEY = (SITE, "pc-1")
BOTH = {"task", "settings"}


class Cloud:
    """The operations with their database, and what they have published toward the hub."""

    def __init__(self, database: Database, folder: Path):
        pem = folder / "x.pem"
        identity = Identity(fleet=FLEET, site="-", name="cloud-1", ca=pem, cert=pem, key=pem)
        settings = CloudSettings(identity, cloud=CloudProcess(data_dir=folder))
        self.started: list[str] = []
        self.operations = Operations(settings, database, self._publish)
        self._database = database
        self._desk = ServiceDesk(self.operations, database, dict)

    def _publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        down = {str(Topic.down(FLEET, *KEY, kind)): kind for kind in BOTH}
        if topic in down:
            self.started.append(down[topic])

    async def hears(self, *, session: int = 1, **said: Any) -> None:
        """Take in a state of the hub."""
        fields = {"online": True, "via": "direct", "mode": "continuous", "ts": unix_ms(), "version": "1.0", **said}
        state = HubState(epoch=EPOCH, session=session, **fields)
        await self._commit(Batch(hub_states=(HubStateSeen(*KEY, state, unix_ms()),)))

    async def hears_connector(self, session: int, *, online: bool) -> None:
        """Take in a state of the site's connector."""
        state = (
            ConnectorState(True, session, "up", site="up", ts=unix_ms()) if online else ConnectorState(False, session)
        )
        await self._commit(Batch(connector_states=(ConnectorStateSeen(SITE, "c-1", state, unix_ms()),)))

    async def _commit(self, batch: Batch) -> None:
        outcome = await self._database.commit(batch)
        assert isinstance(outcome, Outcome)
        self.operations.committed(batch, outcome)
        await self.operations.lane.done()

    async def hears_sign(self, sign: Heartbeat | Poll) -> None:
        """Take in a heartbeat or a poll."""
        self.operations.heard(Heard(*KEY, sign, unix_ms()))
        await self.operations.lane.done()

    async def orders(self) -> set[str]:
        """Order a task and settings for the hub, and return what was started toward it because of that."""
        await self._desk.create_task([KEY], "ping", {}, expires_s=600, skip_if_offline=False, by="test")
        await self._desk.put_settings("fleet", "", {"logs": {"level": "info"}}, expected_version=None, by="test")
        await self.operations.lane.done()
        return set(self.started)

    def status(self) -> str:
        """Return the connection of the hub as it is told."""
        told = self.operations.presence_of(KEY)
        assert told is not None
        return told.connection


def play(folder: Path, scene: Callable[[Cloud], Awaitable[None]]) -> None:
    async def main() -> None:
        database = SqliteDatabase(folder / "cloud.db", FLEET)
        await database.open()
        this = Cloud(database, folder)
        running = asyncio.create_task(this.operations.run())
        try:
            await this.operations.ready()
            this.operations.connected()
            await scene(this)
        finally:
            await this.operations.close()
            running.cancel()
            await asyncio.wait([running])
            await database.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("said", "connection", "started"),
    [
        ({}, "online", BOTH),
        ({"mode": "roaming"}, "roaming", set()),
        ({"mode": "polling", "reason": "started"}, "unreachable-online", set()),
        ({"online": False}, "offline", set()),
        ({"online": False, "reason": "stopped"}, "offline", set()),
    ],
)
def test_tasks_and_settings_are_started_toward_hubs_that_are_online_and_no_other(
    tmp_path: Path, said: dict[str, Any], connection: str, started: set[str]
) -> None:
    """ "Online: the server can start tasks and deploy settings"; offline, roaming and unreachable hubs: it does neither."""

    async def scene(this: Cloud) -> None:
        await this.hears()
        await this.hears(**said)
        assert this.status() == connection
        assert await this.orders() == started

    play(tmp_path, scene)


def test_nothing_is_started_toward_a_hub_whose_path_is_down(tmp_path: Path) -> None:
    """ "Disconnected; the server cannot manage the client": it would be lost on its way, and goes out when the hub is back."""

    async def scene(this: Cloud) -> None:
        await this.hears_connector(1, online=True)
        await this.hears(via="c-1")
        await this.hears_connector(1, online=False)
        assert this.status() == "path-down"
        assert await this.orders() == set()
        await this.hears(session=2)
        assert set(this.started) == BOTH

    play(tmp_path, scene)


def test_a_heartbeat_brings_neither_tasks_nor_settings_and_a_poll_brings_both(tmp_path: Path) -> None:
    """ "A heartbeat proves life only": the hub leaves at once after it, and what is sent then would be lost."""

    async def scene(this: Cloud) -> None:
        await this.hears(mode="polling", reason="started")
        await this.orders()
        for ts in range(3):
            await this.hears_sign(Heartbeat(EPOCH, 1, unix_ms() + ts))
        assert this.status() == "unreachable-online"
        assert this.started == []
        await this.hears_sign(Poll(EPOCH, 1, unix_ms()))
        assert sorted(this.started) == sorted(BOTH)

    play(tmp_path, scene)


def test_a_roaming_hub_gets_what_waits_when_it_roams_no_more(tmp_path: Path) -> None:
    """ "The server starts no tasks and deploys no settings": not at a poll either, since roaming comes before the mode."""

    async def scene(this: Cloud) -> None:
        await this.hears(mode="roaming")
        assert await this.orders() == set()
        await this.hears_sign(Poll(EPOCH, 1, unix_ms()))
        assert this.started == []
        await this.hears(session=2)
        assert set(this.started) == BOTH

    play(tmp_path, scene)
