"""The line of a hub that polls, over a real broker: when a contact counts as made, and that a stop is told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from broker.control import DesiredSettings, Task
from broker.messages import Ack, ConnectorState, HubState, encode
from broker.runner import monotonic_s
from broker.topics import Topic
from config import limits
from config.principal import Role
from config.settings import Failover, HubCloud, HubConnector, HubMode, HubProcess, HubSettings
from hub.memory import PathMemory
from hub.mode import Contact
from hub.mode_line import Line
from tests.broker import raw_mqtt as raw
from tests.broker.certificates import FleetFiles
from tests.broker.raw_mqtt import RawClient, join, serving, subscriber, until

EPOCH = "9f2c4be1d07a6b53"
STATE = str(Topic.hub_state("acme", "berlin", "pc-1"))
UPSTREAM = str(Topic.connector_state("acme", "berlin", "berlin-1"))
ACK = str(Topic.down("acme", "berlin", "pc-1", "ack"))


class Passenger:
    """A hub with an empty outbox, that is told of what it has reported by an acknowledgement."""

    def __init__(self) -> None:
        self.busy = self.has_waiting = False
        self.settings_hash = "0" * 16
        self.reports = self.opened = 0
        self.acknowledgement = asyncio.Event()

    def introduction(self, session: int, via: str) -> HubState:
        return HubState(online=True, epoch=EPOCH, session=session, via=via, mode="polling", version="1", ts=1)

    def report_now(self) -> None:
        self.reports += 1
        self.has_waiting = True

    async def delivered(self) -> None:
        if self.has_waiting:
            await self.acknowledgement.wait()

    def acknowledged(self, ack: Ack) -> None:
        self.has_waiting = False
        self.acknowledgement.set()

    def path_opened(self) -> None:
        self.opened += 1

    def path_closed(self) -> None: ...

    def path_changed(self) -> None: ...

    def task_received(self, task: Task) -> None: ...

    def settings_received(self, settings: DesiredSettings) -> None: ...


Story = Callable[[Line, Passenger, RawClient, RawClient], Coroutine[Any, Any, None]]


def play(
    folder: Path, story: Story, *, contact_s: float = 20.0, direct: bool = False, endpoint: str | None = None
) -> list[dict[str, Any]]:
    """Have a story with a line, its passenger, one who reads all, and the cloud; returns what was logged."""
    site = "-" if direct else "berlin"

    async def main() -> None:
        files = FleetFiles(folder / "acme")
        async with serving(files.broker_settings(site)) as server:
            endpoints = [endpoint or server.listen[0]]
            settings = HubSettings(
                files.identity("hub", "pc-1", "berlin"),
                HubProcess(data_dir=folder),
                HubConnector(endpoints=[] if direct else endpoints, discovery=False),
                HubCloud(endpoints=endpoints if direct else []),
                Failover(start_grace_s=0.0),
                mode=HubMode(kind="polling", heartbeat="off"),
            )
            reader = await subscriber(server, files.identity("reader", "desk", site), STATE)
            role: Role = "cloud" if direct else "connector"
            cloud = await join(server, files.identity(role, "berlin-1", site))
            if not direct:
                cloud.send(raw.publish(UPSTREAM, encode(ConnectorState(True, 1, "up")), retain=True))
            passenger, sessions = Passenger(), iter(range(1, 99))

            async def next_session() -> int:
                return next(sessions)

            line = Line(
                settings,
                PathMemory(folder / "paths.json"),
                EPOCH,
                next_session,
                passenger,
                continuous=False,
                contact_s=contact_s,
            )
            await story(line, passenger, reader, cloud)

    with capture_logs() as logs:
        asyncio.run(main())
    return [dict(entry) for entry in logs]


async def over(line: Line) -> None:
    """Wait until a contact has begun and is over."""
    await until(lambda: line.contact is Contact.POLL, 20.0)
    await until(lambda: line.contact is None, 20.0)


async def ended(running: asyncio.Task[None]) -> None:
    running.cancel()
    await asyncio.wait([running])


def said(messages: list[tuple[str, bytes, bool]]) -> list[tuple[bool, int, str | None]]:
    states = [msgspec.json.decode(payload, type=HubState) for _, payload, _ in messages if payload]
    return [(state.online, state.session, state.reason) for state in states]


async def contact_that_is_acknowledged(line: Line, passenger: Passenger, cloud: RawClient) -> asyncio.Task[None]:
    """Have the cloud answer what the hub adds, and return the running line between two contacts."""
    running = asyncio.create_task(line.run())
    await until(lambda: passenger.reports > 0, 20.0)
    cloud.send(raw.publish(ACK, encode(Ack(EPOCH, [(1, 1)]))))
    await over(line)
    return running


def test_a_contact_that_nobody_acknowledges_has_failed_and_is_tried_again_soon(tmp_path: Path) -> None:
    """A broker that takes everything proves nothing: behind it, the cloud may be down."""

    async def story(line: Line, passenger: Passenger, reader: RawClient, cloud: RawClient) -> None:
        running = asyncio.create_task(line.run())
        await over(line)
        due_at = line.due_at(Contact.POLL)
        assert due_at is not None
        assert due_at < monotonic_s() + limits.CONTACT_RETRY_FIRST_S
        assert passenger.reports == 1, "there was something to acknowledge"
        await ended(running)

    logs = play(tmp_path, story, contact_s=1.0)
    assert [entry["event"] for entry in logs if entry["event"].startswith("contact_")] == ["contact_failed"]


def test_a_contact_is_made_by_an_acknowledgement_though_nothing_waited(tmp_path: Path) -> None:
    async def story(line: Line, passenger: Passenger, reader: RawClient, cloud: RawClient) -> None:
        running = await contact_that_is_acknowledged(line, passenger, cloud)
        due_at = line.due_at(Contact.POLL)
        assert due_at is not None
        assert due_at > monotonic_s()
        await ended(running)

    logs = play(tmp_path, story)
    assert [entry["event"] for entry in logs if entry["event"].startswith("contact_")] == ["contact_made"]


@pytest.mark.parametrize(("for_good", "direct"), [(True, False), (False, False), (True, True)])
def test_a_hub_that_is_stopped_between_two_contacts_says_so_unless_it_begins_anew(
    tmp_path: Path, for_good: bool, direct: bool
) -> None:
    """Else the cloud waits for its next sign of life for an hour, and then calls it lost."""

    async def story(line: Line, passenger: Passenger, reader: RawClient, cloud: RawClient) -> None:
        running = await contact_that_is_acknowledged(line, passenger, cloud)
        opened = passenger.opened
        line.leave(monotonic_s() + 30.0, for_good=for_good)  # A busy machine is no reason to say nothing here.
        await ended(running)
        contact = [(True, 1, None), (False, 1, "polling")]
        goodbye = [(True, 2, None), (False, 2, "stopped")] if for_good else []
        await reader.expect(len(contact + goodbye))
        assert said(await reader.quiet()) == contact + goodbye
        assert passenger.opened == opened, "no message is begun that can't be acknowledged any more"

    play(tmp_path, story, direct=direct)


def test_a_goodbye_that_can_not_be_said_keeps_nobody_waiting(tmp_path: Path) -> None:
    """Somebody takes the connection and says nothing, as a broken gateway does: the hub must be gone in its time."""

    async def story(line: Line, passenger: Passenger, reader: RawClient, cloud: RawClient) -> None:
        running = asyncio.create_task(line.run())
        await until(lambda: line.contact is Contact.POLL)
        line.leave(monotonic_s() + limits.STOP_LEAVE_S, for_good=True)
        running.cancel()
        async with asyncio.timeout(limits.STOP_TIMEOUT_S):
            await asyncio.wait([running])

    with socket.create_server(("127.0.0.1", 0)) as silent:
        play(tmp_path, story, endpoint=f"127.0.0.1:{silent.getsockname()[1]}")
