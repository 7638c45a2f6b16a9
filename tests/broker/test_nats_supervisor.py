"""The supervisor of a nats-server that is slow, refuses it, or isn't there: who is revoked goes, and an operator hears of it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

import msgspec
import orjson
import psutil
import pytest
from structlog.testing import capture_logs

from broker.engines.child import EngineProcess
from broker.engines.nats import Nats
from broker.engines.nats_callout import Doorkeeper
from broker.engines.nats_supervisor import Supervisor
from broker.tls import client_context
from config import limits, pki
from config.endpoint import split_endpoint
from config.members import Entry, Members
from config.ports import free_ports
from config.principal import CLOUD_SITE, server_name
from config.settings import BrokerSettings, Identity
from tests.broker.certificates import FleetFiles
from tests.broker.raw_mqtt import CONNACK, RawClient, connect, until
from tests.nats import PROGRAM, needs_nats

Logs: TypeAlias = list[MutableMapping[str, Any]]


def levels(logs: Logs, event: str) -> list[str]:
    return [line["log_level"] for line in logs if line["event"] == event]


# --- A node that is a stand-in -----------------------------------------------------------------------------------------

SILENT = "silent"
"""What a node answers that answers nothing."""

BROKEN = b'{"server":{"id":"N","name":"cloud"},"error":{"code":500,"description":"out of order"}}'
GONE = b'{"server":{"id":"N","name":"cloud"},"error":{"code":500,"description":"no such client or leafnode id"}}'


@dataclass
class StandIn:
    """A node by what it answers to a supervisor. `looks` and `kicks` are its next answers; afterwards it does as it is told.

    `late` are sessions that it doesn't name before it has answered so many looks.
    """

    looks: list[bytes | str] = field(default_factory=list)
    kicks: list[bytes | str] = field(default_factory=list)
    sessions: dict[int, str] = field(default_factory=dict)
    late: dict[int, str] = field(default_factory=dict)
    looked: int = 0

    async def request(self, subject: str, payload: bytes, _timeout: float) -> Any:
        wanted = orjson.loads(payload)
        if subject.endswith(".KICK"):
            scripted = self.kicks.pop(0) if self.kicks else b""
            if not scripted:
                self.sessions.pop(wanted["cid"])
            return self._answer(scripted or b'{"server":{"id":"N","name":"cloud"}}')
        answer = self.looks.pop(0) if self.looks else self._page(wanted["offset"], wanted["limit"])
        self.looked += 1
        if self.looked in self.late:
            self.sessions[100 + self.looked] = self.late.pop(self.looked)
        return self._answer(answer)

    def _page(self, offset: int, size: int) -> bytes:
        of_page = sorted(self.sessions.items())[offset : offset + size]
        connections = [{"cid": cid, "authorized_user": name} for cid, name in of_page]
        data = {"total": len(self.sessions), "connections": connections}
        return orjson.dumps({"server": {"id": "N", "name": "cloud"}, "data": data})

    def _answer(self, said: bytes | str) -> Any:
        from nats.aio.msg import Msg

        if said == SILENT:
            raise TimeoutError
        assert isinstance(said, bytes)
        return Msg(cast(Any, None), data=said)


@dataclass
class Watched:
    """A fleet with one hub that is revoked and others that are not, at a stand-in."""

    node: StandIn
    doorkeeper: Doorkeeper
    bad: str

    async def put_out(self) -> None:
        """Watch until two looks have found nothing to do."""
        supervisor = Supervisor()
        watching = asyncio.ensure_future(supervisor.watch(cast(Any, self.node), "cloud", self.doorkeeper))
        try:
            await until(lambda: watching.done() or self._is_at_rest())
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    def _is_at_rest(self) -> bool:
        return self.bad not in self.node.sessions.values() and not (
            self.node.looks or self.node.kicks or self.node.late
        )


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr(limits, "CERTIFICATES_CHECK_S", 0.001)
    fleet = FleetFiles(tmp_path)
    doorkeeper = Doorkeeper(fleet.broker_settings(CLOUD_SITE), Supervisor().issuer)
    names = []
    for hub in ("pc-1", "pc-2"):
        (certificate,) = pki.load_certificates(fleet.identity("hub", hub, "berlin").cert.read_bytes())
        names.append(f"hub/{hub} {certificate.serial_number:x}")
    fleet.revoke(Identity("acme", "berlin", "pc-1", fleet.ca, fleet.folder / "hub-berlin-pc-1.cert.pem", fleet.ca))
    assert doorkeeper.reload_if_changed()
    return Watched(StandIn(sessions={7: names[0], 8: names[1]}), doorkeeper, names[0])


def play(story: Callable[[], Coroutine[Any, Any, None]]) -> Logs:
    with capture_logs() as logs:
        asyncio.run(story())
    return logs


def test_looks_that_failed_do_not_count(watched: Watched) -> None:
    """A node that is slow just when somebody is revoked must not leave it all its rights."""
    watched.node.looks += [SILENT, SILENT, BROKEN, b"{", SILENT]
    logs = play(watched.put_out)
    assert levels(logs, "connections_not_checked") == ["warning", *["debug"] * 4]
    (mended,) = [line for line in logs if line["event"] == "connections_checked"]
    assert (mended["log_level"], mended["count"]) == ("info", 5)
    assert list(watched.node.sessions) == [8]


def test_a_kick_counts_only_if_the_node_says_that_it_was_done(watched: Watched) -> None:
    """It is asked for again, and nobody is said to be out who is in."""
    watched.node.kicks += [SILENT, BROKEN]
    logs = play(watched.put_out)
    assert levels(logs, "connections_not_checked") == ["warning", "debug"]
    assert "out of order" in [line for line in logs if line["event"] == "connections_not_checked"][1]["reason"]
    assert [line["client"] for line in logs if line["event"] == "session_ended"] == ["hub/pc-1"]


def test_a_session_that_ends_by_itself_meanwhile_is_no_failure(watched: Watched) -> None:
    watched.node.kicks += [GONE]
    logs = play(watched.put_out)
    assert levels(logs, "connections_not_checked") == []
    assert len(levels(logs, "session_ended")) == 1, "of the second kick, which found it"


def test_all_pages_are_looked_at_before_anybody_is_put_out(watched: Watched) -> None:
    """Else who goes from one page would hide another one between it and the next."""
    watched.node.sessions |= dict.fromkeys(range(100, 2_600), watched.bad)
    logs = play(watched.put_out)
    assert len(levels(logs, "session_ended")) == 2_501
    assert list(watched.node.sessions) == [8]


def test_two_looks_in_a_row_find_nobody_before_it_rests(watched: Watched) -> None:
    """Who was let in just before the revocation is among the connections a bit later."""
    watched.node.late = {2: watched.bad, 4: watched.bad}
    logs = play(watched.put_out)
    assert len(levels(logs, "session_ended")) == 3
    assert list(watched.node.sessions) == [8]


# --- A real one --------------------------------------------------------------------------------------------------------


@dataclass
class Scene:
    """A fleet's files, and the settings of a node for it."""

    fleet: FleetFiles
    settings: BrokerSettings

    def status(self) -> dict[str, Any]:
        file = self.settings.broker.data_dir / "status.json"
        found = orjson.loads(file.read_bytes()) if file.exists() else {}
        assert isinstance(found, dict)
        return found

    async def greeted(self, hub: Identity) -> tuple[RawClient, bytes]:
        """Ask for a session, and return what the node answers."""
        host, port = split_endpoint(self.settings.broker.listen[0])
        context = client_context(hub, server_name("acme", CLOUD_SITE))
        client = RawClient(*await asyncio.open_connection(host, port, ssl=context))
        client.send(connect(hub.name))
        return client, await client.packet()


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(limits, "CERTIFICATES_CHECK_S", 0.1)
    monkeypatch.setattr(limits, "NATS_REQUEST_S", 0.2)
    monkeypatch.setattr(limits, "NATS_CALLOUT_TIMEOUT_S", 0.5)
    fleet = FleetFiles(tmp_path / "acme")
    mqtt, nats = free_ports(2)
    settings = fleet.broker_settings(CLOUD_SITE, listen=(f"127.0.0.1:{mqtt}",))
    members = fleet.folder / "members.json"
    members.write_bytes(msgspec.json.encode(Members("acme", [Entry("hub", "berlin", "pc-1")])))
    replace = msgspec.structs.replace
    return Scene(
        fleet,
        replace(
            settings,
            broker=replace(settings.broker, engine="nats", members=members),
            nats=replace(settings.nats, listen=f"127.0.0.1:{nats}"),
        ),
    )


@asynccontextmanager
async def running(scene: Scene, engine: Nats) -> AsyncIterator[EngineProcess]:
    process, stop = EngineProcess(scene.settings, engine), asyncio.Event()
    task = asyncio.create_task(process.run(stop))
    try:
        await until(lambda: task.done() or scene.status().get("state") == "running")
        yield process
    finally:
        stop.set()
        await task


async def let_in(scene: Scene, hub: Identity) -> RawClient:
    """Return a session, which is there once the supervisor is."""
    while True:
        client, answer = await scene.greeted(hub)
        if answer == CONNACK:
            return client
        await client.close()


@needs_nats
def test_a_revoked_session_is_gone_in_the_end_though_the_node_stood_still(scene: Scene) -> None:
    """Looks at a node that does not answer used to be all that there were."""
    hub = scene.fleet.identity("hub", "pc-1", "berlin")

    async def story() -> None:
        async with running(scene, Nats()):
            client = await let_in(scene, hub)
            node = psutil.Process(scene.status()["engine_pid"])
            node.send_signal(signal.SIGSTOP)
            try:
                scene.fleet.revoke(hub)
                with capture_logs() as logs:
                    await until(lambda: len(levels(logs, "connections_not_checked")) == 4)
            finally:
                node.send_signal(signal.SIGCONT)
            assert await client.ended()
            await client.close()
        assert levels(logs, "connections_not_checked")[:2] == ["warning", "debug"]

    play(story)


class Estranged(Nats):
    """An engine whose supervisor has another one's password: the node serves, and nobody gets in."""

    def companions(
        self, settings: BrokerSettings, members: Callable[[], Members], folder: Path
    ) -> Sequence[Coroutine[Any, Any, None]]:
        self._supervisor = Supervisor()
        return super().companions(settings, members, folder)


@needs_nats
def test_a_node_that_shuts_out_its_supervisor_and_so_everybody_is_a_warning(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its status and by every other line, such a broker looks healthy."""
    monkeypatch.setattr(limits, "NATS_RETRY_LATER_S", 0.05)

    async def story() -> None:
        with capture_logs() as logs:
            async with running(scene, Estranged()):
                client, answer = await scene.greeted(scene.fleet.identity("hub", "pc-1", "berlin"))
                assert answer != CONNACK
                await client.close()
                await until(lambda: len(levels(logs, "engine_not_reached")) > 6)
                await until(lambda: "no rights" in str(scene.status().get("callout_reason")))
                assert (scene.status()["state"], scene.status()["callout"]) == ("running", "down")
        for user in ("supervisor-answering", "supervisor-watching"):
            of_user = levels([line for line in logs if line.get("user") == user], "engine_not_reached")
            assert of_user.count("warning") == 1

    asyncio.run(story())


@needs_nats
@pytest.mark.parametrize(("patience_s", "warnings"), [(60.0, 0), (0.1, 2)])
def test_a_node_that_is_not_there_is_a_warning_only_after_a_while_and_until_it_is_reached(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, patience_s: float, warnings: int
) -> None:
    """While it starts there is nothing to say; later there is, as nobody gets in."""
    monkeypatch.setattr(limits, "CONNECT_TIMEOUT_S", 1)
    monkeypatch.setattr(limits, "NATS_UNREACHED_S", patience_s)
    monkeypatch.setattr(limits, "NATS_RETRY_LATER_S", 0.05)
    door = scene.fleet.folder / "door"
    late = scene.fleet.folder / "nats-server"
    late.write_text(f'#!/bin/sh\nwhile ! test -e "{door}"; do sleep 0.02; done\nexec "{PROGRAM}" "$@"\n')
    late.chmod(0o700)
    broker = msgspec.structs.replace(scene.settings.broker, program=late)
    scene.settings = msgspec.structs.replace(scene.settings, broker=broker)

    async def story() -> None:
        with capture_logs() as logs:

            async def open_later() -> None:
                await until(lambda: len(levels(logs, "engine_not_reached")) == 4)
                door.touch()

            opening = asyncio.create_task(open_later())
            async with running(scene, Nats()):
                await opening
                client = await let_in(scene, scene.fleet.identity("hub", "pc-1", "berlin"))
                await client.close()
                await until(lambda: levels(logs, "engine_reached") == ["info"] * warnings)
                await until(lambda: scene.status().get("callout") == "up")
                assert scene.status()["callout_reason"] is None
        assert levels(logs, "engine_not_reached").count("warning") == warnings

    asyncio.run(story())
