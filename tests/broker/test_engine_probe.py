"""Real engines that hang: they are found, killed and started again; those that are merely busy, or were, are left alone."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from structlog.testing import capture_logs

from broker.engines.child import EngineProcess
from broker.engines.liveness import Bounds
from broker.engines.mosquitto import Mosquitto
from broker.engines.nats import Nats
from broker.engines.plan import Engine, Plan
from broker.engines.probe import address_to_ask, ask, client_hello, look_up
from broker.tls import client_context
from config import limits
from config.endpoint import split_endpoint
from config.members import Members
from config.ports import free_ports
from config.principal import server_name
from config.settings import BrokerSettings, Identity, load
from tests.broker import test_engine_child as scripts
from tests.broker import test_engine_mosquitto as mosquitto
from tests.broker.raw_mqtt import until
from tests.nats import Cluster, needs_nats

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="engines are run on POSIX systems")
needs_mosquitto = pytest.mark.skipif(mosquitto.PROGRAM is None, reason="needs mosquitto (apt install mosquitto)")

QUICK = Bounds(interval_s=0.1, timeout_s=0.7, unanswered_max=4, late_s=5.0)
PATIENT = Bounds(interval_s=0.1, timeout_s=0.3, unanswered_max=1000, late_s=5.0)
CLIENTS = 300


@asynccontextmanager
async def running(settings: BrokerSettings, engine: Engine, bounds: Bounds) -> AsyncIterator[EngineProcess]:
    """Run an engine until it serves and has answered, and end it afterwards."""
    process, stop = EngineProcess(settings, engine, bounds), asyncio.Event()
    task = asyncio.create_task(process.run(stop))
    try:
        await until(lambda: task.done() or process.unanswered == 0)
        yield process
    finally:
        stop.set()
        await task


def child() -> psutil.Process:
    """Return the engine that this process runs."""
    (found,) = (each for each in psutil.Process().children() if each.name() in ("mosquitto", "nats-server"))
    return found


async def served(settings: BrokerSettings, identity: Identity) -> None:
    """Come in as far as TLS goes, as only an engine that lives lets one."""
    own = settings.identity
    context = client_context(identity, server_name(own.fleet, own.site))
    host, port = split_endpoint(settings.broker.listen[0])
    _, writer = await asyncio.open_connection(host, port, ssl=context)
    writer.transport.abort()


async def story_of_a_hang(settings: BrokerSettings, engine: Engine, identity: Identity) -> None:
    async with running(settings, engine, QUICK) as process:
        stopped = child()
        os.kill(stopped.pid, signal.SIGSTOP)
        await until(lambda: process.hangs == 1 and process.state == "running")
        assert not stopped.is_running()
        await until(lambda: process.unanswered == 0)
        assert process.restarts == 1
        await served(settings, identity)


async def story_of_a_pause(settings: BrokerSettings, engine: Engine) -> None:
    """Have an engine miss some questions, and answer again."""
    async with running(settings, engine, PATIENT) as process:
        paused = child()
        os.kill(paused.pid, signal.SIGSTOP)
        await until(lambda: (process.unanswered or 0) >= 3)
        os.kill(paused.pid, signal.SIGCONT)
        await until(lambda: process.unanswered == 0)
        assert (process.hangs, process.restarts, child().pid) == (0, 0, paused.pid)


def told(logs: Sequence[Any]) -> list[str]:
    """Return what was logged of connections and refusals."""
    words = ("New connection", "unknown", "handshake", "SSL", " - mid:")
    lines = [entry["line"] for entry in logs if entry["event"] == "engine_said"]
    refused = [str(entry) for entry in logs if entry["event"] == "client_refused"]
    return [line for line in lines if any(word in line for word in words)] + refused


def events(logs: Sequence[Any]) -> list[str]:
    """Return what an operator is told of the engine. At a stop, who of it ends first is only for a developer."""
    return [
        entry["event"]
        for entry in logs
        if entry["event"].startswith(("engine_", "broker_"))
        and entry["event"] != "engine_said"
        and entry["log_level"] != "debug"
    ]


@pytest.fixture
def nats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[BrokerSettings, Identity]:
    """Return the settings of a nats-server, and a client of it."""
    cluster = Cluster(tmp_path)
    for name, value in cluster.environ_of("cloud").items():
        monkeypatch.setenv(name, value)
    return load(cluster.bundle("broker", "cloud") / "broker.toml", BrokerSettings), cluster.service


# --- Real ones ---------------------------------------------------------------------------------------------------------


@needs_mosquitto
def test_a_mosquitto_that_hangs_is_killed_and_serves_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process lives, so nobody else would start it again; a stopped one does not hear SIGTERM either."""
    monkeypatch.setattr(limits, "ENGINE_STOP_S", 0.5)
    site = mosquitto.Site(tmp_path, "berlin")
    with capture_logs() as logs:
        asyncio.run(story_of_a_hang(site.settings, Mosquitto(), site.who(0)))
    assert events(logs) == ["broker_started", "engine_hung", "engine_died", "engine_restarted", "broker_stopped"]
    hung = next(entry for entry in logs if entry["event"] == "engine_hung")
    assert (hung["log_level"], hung["unanswered"]) == ("error", QUICK.unanswered_max)


@needs_nats
def test_a_nats_server_that_hangs_is_killed_and_serves_again(
    nats: tuple[BrokerSettings, Identity], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ENGINE_STOP_S", 0.5)
    with capture_logs() as logs:
        asyncio.run(story_of_a_hang(nats[0], Nats(), nats[1]))
    assert [event for event in events(logs) if event != "engine_not_reached"] == [
        "broker_started", "engine_hung", "engine_died", "engine_restarted", "broker_stopped",
    ]  # fmt: skip


@needs_mosquitto
def test_a_mosquitto_that_was_only_slow_goes_on_and_says_nothing_of_our_questions(tmp_path: Path) -> None:
    """Every ten seconds, for years: they would fill the log, and count as refusals of somebody at our own address."""
    site = mosquitto.Site(tmp_path, "berlin")
    with capture_logs() as logs:
        asyncio.run(story_of_a_pause(site.settings, Mosquitto()))
    assert told(logs) == []
    assert any(entry["event"] == "engine_said" for entry in logs)


@needs_nats
def test_a_nats_server_that_was_only_slow_goes_on_and_says_nothing_of_our_questions(
    nats: tuple[BrokerSettings, Identity],
) -> None:
    with capture_logs() as logs:
        asyncio.run(story_of_a_pause(nats[0], Nats()))
    assert told(logs) == []
    assert any(entry["event"] == "engine_said" for entry in logs)


@needs_mosquitto
def test_a_mosquitto_that_a_crowd_comes_back_to_is_left_alone(tmp_path: Path) -> None:
    """When a site's network comes back everybody comes at once; to put them out again would never end."""
    site = mosquitto.Site(tmp_path, "berlin")

    async def story() -> None:
        async with running(site.settings, Mosquitto(), Bounds(0.05, 2.0, 3, 5.0)) as process:
            before = child().pid
            who = site.who(0)
            await asyncio.gather(*(served(site.settings, who) for _ in range(CLIENTS)))
            await until(lambda: process.unanswered == 0)
            assert (process.hangs, process.restarts, child().pid) == (0, 0, before)

    with capture_logs() as logs:
        asyncio.run(story())
    assert any(line.startswith("New connection") for line in told(logs))  # Of others it is said.


# --- Scripts -----------------------------------------------------------------------------------------------------------

LISTENS = """
import socket, sys, time
server = socket.create_server(("127.0.0.1", {port}))
print("[pid] running", flush=True)
server.accept()[0].sendall(b"x")
while True:
    time.sleep(0.02)
    if {speaks}:
        print("busy", flush=True)
"""


class Listening(scripts.Script):
    """A script that answers once, and then only says what it does, if anything."""

    def plan(self, settings: BrokerSettings, members: Members, folder: Path) -> Plan:
        return replace(super().plan(settings, members, folder), speaks_while_it_serves=True)


scene = scripts.scene


def listening(scene: scripts.Scene, speaks: bool) -> tuple[BrokerSettings, Engine]:
    (port,) = free_ports(1)
    broker = msgspec.structs.replace(scene.settings.broker, listen=[f"127.0.0.1:{port}"])
    return msgspec.structs.replace(scene.settings, broker=broker), Listening(LISTENS.format(port=port, speaks=speaks))


def test_one_that_takes_nobody_and_says_nothing_is_started_again_as_any_that_died(scene: scripts.Scene) -> None:
    settings, engine = listening(scene, speaks=False)

    async def story() -> None:
        async with running(settings, engine, Bounds(0.05, 0.2, 3, 5.0)) as process:
            await until(lambda: process.hangs > 0 and process.restarts > 0 and process.state == "running")
            await until(lambda: scene.status().get("hangs", 0) > 0)

    with capture_logs() as logs:
        asyncio.run(story())
    assert "engine_died" in events(logs)


def test_one_that_takes_nobody_in_time_but_is_at_work_is_left_alone(scene: scripts.Scene) -> None:
    """Of one thread as it is, what it says shows that it has not come round to us yet."""
    settings, engine = listening(scene, speaks=True)
    bounds = Bounds(interval_s=0.05, timeout_s=0.05, unanswered_max=20, late_s=5.0)

    async def story() -> None:
        async with running(settings, engine, bounds) as process:
            for _ in range(bounds.unanswered_max + 5):
                await until(lambda: process.unanswered == 1)
                await until(lambda: process.unanswered == 0)
            assert (process.hangs, process.restarts) == (0, 0)

    asyncio.run(story())


def test_one_that_never_answered_is_reported_and_left_alone(scene: scripts.Scene) -> None:
    """A firewall between us and the address must not have a broker killed that serves everybody else."""

    async def story() -> None:
        stop = asyncio.Event()
        process = EngineProcess(scene.settings, scripts.Script(), Bounds(0.02, 0.02, 2, 5.0))
        task = asyncio.create_task(process.run(stop))
        await until(lambda: any(entry["event"] == "engine_not_watched" for entry in logs))
        assert (process.state, process.hangs, process.unanswered) == ("running", 0, None)
        stop.set()
        await task

    with capture_logs() as logs:
        asyncio.run(story())
    assert events(logs).count("engine_not_watched") == 1


# --- A question --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        (["10.0.0.1:8883", "127.0.0.1:8884"], ("10.0.0.1", 8883)),
        (["0.0.0.0:8883"], ("127.0.0.1", 8883)),
        (["[::]:8883"], ("::1", 8883)),
        (["broker.example.com:8883"], ("broker.example.com", 8883)),
        (["0.0.0.0:0", "127.0.0.1:8884"], ("127.0.0.1", 8884)),
        (["127.0.0.1:0"], None),
        ([], None),
    ],
)
def test_it_is_asked_where_it_can_be_reached_from_its_own_machine(listen: list[str], address: Any) -> None:
    assert address_to_ask(listen) == address


def test_an_address_that_is_not_this_machines_is_not_asked() -> None:
    """A broker whose network is down for a while is not hung: it is there again with its address."""

    async def story() -> None:
        with pytest.raises(OSError, match="assign"):
            await ask(await look_up(("192.0.2.1", 8883)), lambda source: None)

    asyncio.run(story())


def _silent(conn: socket.socket) -> None:
    conn.recv(4096)
    conn.close()


def _alert(conn: socket.socket) -> None:
    conn.recv(4096)
    conn.sendall(b"\x15\x03\x03\x00\x02\x02\x28")
    conn.close()


@pytest.mark.parametrize("answer", [_alert, _silent], ids=["an alert", "hanging up"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_anything_but_silence_is_an_answer(host: str, answer: Callable[[socket.socket], None]) -> None:
    """An engine that is full, or refuses us, lives."""

    async def story() -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            server = socket.create_server((host, 0), family=family)
        except OSError:
            pytest.skip("this machine has no IPv6")
        with server:
            answering = asyncio.create_task(asyncio.to_thread(lambda: answer(server.accept()[0])))
            place = await look_up((host, server.getsockname()[1]))
            assert await ask(place, lambda source: None)
            await answering
        with socket.socket(family) as held:  # Nobody else is to listen at its port now.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(place[1][:2])
            assert not await ask(place, lambda source: None)

    asyncio.run(story())


def test_a_question_begins_as_tls_does() -> None:
    """To a server it must be the beginning of a client, or it would wait for more of it and not answer."""
    incoming = ssl.MemoryBIO()
    incoming.write(client_hello())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    talk = context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    with pytest.raises(ssl.SSLError, match=r"(?i)no.shared.cipher"):  # It has no certificate, and has read all of it.
        talk.do_handshake()
    assert limits.ENGINE_PROBES_KNOWN_MAX > limits.ENGINE_PROBES_UNANSWERED_MAX
