"""A real Mosquitto by our configuration: the contract's rights, revocation, limits, and a life that is bound to ours."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import orjson
import psutil
import pytest
from structlog.testing import capture_logs

from broker.engines.child import EngineProcess
from broker.engines.mosquitto import Mosquitto, rights_file
from broker.rights import may_publish, may_subscribe
from broker.tls import client_context
from broker.topics import Topic
from config import limits, pki
from config.endpoint import split_endpoint
from config.errors import SettingsError
from config.members import Entry, Members
from config.ports import free_ports
from config.principal import Principal, Role, server_name
from config.settings import BrokerSettings, Identity
from tests import fleet as processes
from tests.broker import raw_mqtt as raw
from tests.broker.certificates import FleetFiles
from tests.broker.raw_mqtt import RawClient, until

PROGRAM = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs mosquitto (apt install mosquitto)")

SITE = "hl1/acme/berlin"
HUB = f"{SITE}/hub/pc-1"
CLOUD = "-"
WHO: tuple[tuple[Role, str, str], ...] = (
    ("hub", "pc-1", "berlin"),
    ("hub", "pc-2", "berlin"),
    ("hub", "pc-3", "munich"),
    ("connector", "berlin-1", "berlin"),
    ("connector", "munich-1", "munich"),
    ("cloud", "service", CLOUD),
    ("reader", "desk", CLOUD),
    ("reader", "board", "berlin"),
)
CHANNELS = ("up", "state", "heartbeat", "poll", "down", "presence", "last")
OTHERS = ("hl1/other/berlin/hub/pc-1/state", f"{HUB}/up/a/b", f"{HUB}/up", f"{SITE}/x", "x", f"{SITE}/hub/pc-1/")
Story: TypeAlias = Callable[["Site"], Coroutine[Any, Any, None]]


def engines() -> list[int]:
    """Return the process ids of the brokers that this process has started."""
    return [child.pid for child in psutil.Process().children() if child.name() == "mosquitto"]


class Site:
    """A fleet's files, a Mosquitto that runs by them, and the clients of a test."""

    def __init__(self, folder: Path, site: str):
        self.fleet = FleetFiles(folder / "acme")
        self.members_file = self.fleet.folder / "members.json"
        (port,) = free_ports(1)
        settings = self.fleet.broker_settings(site, listen=(f"127.0.0.1:{port}",))
        broker = msgspec.structs.replace(settings.broker, engine="mosquitto", members=self.members_file)
        self.settings: BrokerSettings = msgspec.structs.replace(settings, broker=broker)
        self.process: EngineProcess
        self.clients: list[RawClient] = []
        self._numbers = count(1)
        self.write_members(*WHO)

    def write_members(self, *who: tuple[Role, str, str], outsiders: Sequence[int] = ()) -> None:
        entries = [Entry(role, site, name) for role, name, site in who]
        serials = tuple(f"{serial:X}" for serial in outsiders)
        fresh = self.members_file.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(Members("acme", entries, serials)))
        fresh.replace(self.members_file)

    def who(self, number: int) -> Identity:
        role, name, site = WHO[number]
        return self.fleet.identity(role, name, site)

    async def join(self, identity: Identity, **options: Any) -> RawClient:
        host, port = split_endpoint(self.settings.broker.listen[0])
        own = self.settings.identity
        context = client_context(identity, server_name(own.fleet, own.site))
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        client = RawClient(reader, writer)
        self.clients.append(client)
        client.send(raw.connect(f"{identity.name}.{next(self._numbers)}", **options))
        assert await client.packet() == raw.CONNACK
        return client

    async def subscriber(self, identity: Identity, *topic_filters: str) -> RawClient:
        client = await self.join(identity)
        client.send(raw.subscribe(*topic_filters))
        assert (await client.answer())[:1] == b"\x90"
        return client

    async def refused(self, identity: Identity) -> bool:
        try:
            await self.join(identity)
        except (AssertionError, ssl.SSLError, ConnectionError):
            return True
        return False

    async def publish(self, client: RawClient, topic: str, payload: bytes) -> None:
        client.send(raw.publish(topic, payload))
        assert await client.answer() == b"\x40\x02\x00\x01"


@asynccontextmanager
async def serving(site: Site) -> AsyncIterator[None]:
    site.process, stop = EngineProcess(site.settings, Mosquitto()), asyncio.Event()
    task = asyncio.create_task(site.process.run(stop))
    try:
        await until(lambda: task.done() or site.process.state == "running")
        yield
    finally:
        for client in site.clients:
            client.writer.transport.abort()
        stop.set()
        await task


@pytest.fixture
def tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Run a story at a Mosquitto, and return what was logged. Changes are seen sooner than an operator needs it."""
    monkeypatch.setattr(limits, "CERTIFICATES_CHECK_S", 0.2)

    def run(story: Story, at: str = "berlin") -> list[Any]:
        async def main() -> None:
            site = Site(tmp_path, at)
            async with serving(site):
                await story(site)

        with capture_logs() as logs:
            asyncio.run(main())
        return list(logs)

    return run


def topics() -> list[str]:
    """Return a topic of each kind, of hubs and connectors at both sites, and some that are none of ours."""
    found = []
    for _, name, site in WHO[:3]:
        for channel in CHANNELS:
            leaf = {"up": "readings", "down": "ack", "last": "cpu.percent"}.get(channel)
            found.append(str(Topic("acme", site, "hub", name, channel, leaf)))
    return [*found, *(str(Topic.connector_state("acme", site, name)) for _, name, site in WHO[3:5]), *OTHERS]


# --- Rights ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["berlin", CLOUD])
def test_everybody_publishes_and_reads_what_the_contract_says_and_nothing_else(
    tell: Callable[..., list[Any]], at: str
) -> None:
    """The contract's table of rights, every role by every topic, as Mosquitto carries it out."""

    async def story(site: Site) -> None:
        everyone = [Principal("acme", place, role, name) for role, name, place in WHO]
        ears = [await site.subscriber(site.who(number), "#", "$SYS/#") for number in range(len(WHO))]
        carried: set[tuple[str, str]] = set()
        for number, principal in enumerate(everyone):
            client = await site.join(site.who(number))
            for topic in topics():
                await site.publish(client, topic, str(principal).encode())
                if may_publish(principal, at, topic):
                    carried.add((topic, str(principal)))
        assert len(carried) > 10
        for ear, principal in zip(ears, everyone, strict=True):
            heard = {(topic, payload.decode()) for topic, payload, _ in await ear.quiet()}
            assert heard == {each for each in carried if may_subscribe(principal, at, each[0])}, principal

    tell(story, at)


def test_who_is_no_member_is_let_in_to_do_nothing_until_it_is_one(tell: Callable[..., list[Any]]) -> None:
    """A hub that was just provisioned must be heard without a restart; one that the broker doesn't know, never."""
    new: tuple[Role, str, str] = ("hub", "pc-9", "berlin")
    topic = f"{SITE}/hub/pc-9/up/readings"

    async def story(site: Site) -> None:
        before = engines()
        ear = await site.subscriber(site.who(6), "hl1/acme/#")
        early = await site.join(site.fleet.identity(*new))
        await site.publish(early, topic, b"early")
        assert await ear.quiet() == []
        site.write_members(*WHO, new)
        await until(lambda: site.process.reloads == 1)

        async def heard() -> bool:
            await site.publish(early, topic, b"now")
            return (topic, b"now", False) in await ear.quiet()

        while not await heard():
            pass
        assert engines() == before

    tell(story)


def test_a_site_broker_names_only_those_who_have_anything_to_do_there() -> None:
    principals = [Principal("acme", site, role, name) for role, name, site in WHO]
    at_berlin, at_cloud = rights_file(principals, "berlin"), rights_file(principals, CLOUD)
    assert "munich" not in at_berlin
    assert at_berlin.count("\nuser ") == 6
    assert at_cloud.count("\nuser ") == len(WHO)


def test_a_bridging_connector_may_read_what_the_bridge_says_of_itself(tmp_path: Path) -> None:
    """It watches the bridge; and what tells the bridge's client ids is its owner's alone."""
    site = Site(tmp_path, "berlin")
    identity = site.who(3)
    file = site.fleet.folder / "connector.toml"
    file.write_text(
        '[identity]\nfleet = "acme"\nsite = "berlin"\nname = "berlin-1"\nca = "ca.pem"\n'
        f'cert = "{identity.cert.name}"\nkey = "{identity.key.name}"\n'
        '[connector]\nbridge = "engine"\n[cloud]\nendpoints = ["127.0.0.1:1"]\n'
    )
    broker = msgspec.structs.replace(site.settings.broker, bridge=file)
    members = Members("acme", [Entry(role, place, name) for role, name, place in WHO])
    plan = Mosquitto().plan(msgspec.structs.replace(site.settings, broker=broker), members, tmp_path)
    blocks = {block.splitlines()[0]: block for block in plan.files["acl.conf"].decode().split("\n\n")}
    assert "topic read $SYS/broker/connection/berlin-1/state" in blocks["user O=acme,OU=connector,CN=berlin-1"]
    assert sum("$SYS" in block for block in blocks.values()) == 1
    assert "connection cloud" in plan.files["mosquitto.conf"].decode()
    assert plan.private == {"mosquitto.conf"}
    assert {file, identity.key} <= plan.watched
    assert identity.cert.name in plan.restart_on


# --- Revocation --------------------------------------------------------------------------------------------------------


def test_a_revoked_member_is_refused_and_silenced_without_a_restart(tell: Callable[..., list[Any]]) -> None:
    """The others keep their sessions; what is left of the revoked one's says and hears nothing."""

    async def story(site: Site) -> None:
        before = engines()
        ear = await site.subscriber(site.who(6), "hl1/acme/#")
        service = await site.join(site.who(3))
        thief = site.who(0)
        session = await site.subscriber(thief, f"{HUB}/down/+")
        await site.publish(session, f"{HUB}/up/readings", b"before")
        await ear.expect(1)
        site.write_members(*WHO[1:], outsiders=[_serial(thief)])
        site.fleet.revoke(thief)
        await until(lambda: site.process.reloads >= 1)
        while not await site.refused(thief):  # The signal may not have arrived yet.
            pass
        await site.publish(session, f"{HUB}/up/readings", b"after")
        await site.publish(service, f"{HUB}/down/ack", b"after")
        assert [payload for _, payload, _ in await ear.quiet()] == [b"before", b"after"]
        assert ear.messages[1][0] == f"{HUB}/down/ack"
        assert await session.quiet() == []
        assert engines() == before

    logs = tell(story)
    assert ("tls", "certificate verify failed") in {
        (entry["kind"], entry["reason"]) for entry in logs if entry["event"] == "client_refused"
    }


def test_a_stolen_key_loses_its_session_even_if_its_owner_stays(tell: Callable[..., list[Any]]) -> None:
    """Mosquitto closes no session at a reload, so a renewed member's old certificate takes a restart."""

    async def story(site: Site) -> None:
        stolen = site.who(0)
        session = await site.join(stolen)
        site.fleet.revoke(stolen)
        assert await session.ended()
        await until(lambda: site.process.state == "running")
        assert await site.refused(stolen)
        await site.join(site.who(0))

    tell(story)


def test_a_renewed_member_that_is_revoked_ends_nobody_elses_session(tell: Callable[..., list[Any]]) -> None:
    """Both of its certificates are on the list, and neither has rights any more: a restart would put the whole site out."""

    async def story(site: Site) -> None:
        before = engines()
        other = await site.join(site.who(1))
        both = [_serial(site.who(0)) for _ in range(2)]
        site.write_members(*WHO[1:], outsiders=both)
        site.fleet.revoked += [pki.Revocation(serial, site.fleet.now) for serial in both]
        site.fleet.write_crl()
        for number in range(7, 10):  # Each takes a look of its own, and a restart would come after two.
            reloads = site.process.reloads
            site.write_members(*WHO[1:], ("hub", f"pc-{number}", "berlin"), outsiders=both)
            await until(lambda: site.process.reloads > reloads)  # noqa: B023
        await site.publish(other, f"{SITE}/hub/pc-2/up/readings", b"still here")
        assert engines() == before

    tell(story)


def test_a_session_of_a_revoked_member_ends_before_it_is_one_again(tell: Callable[..., list[Any]]) -> None:
    """Its rights are by name, so they would come back to whoever still has a session by the stolen key."""

    async def story(site: Site) -> None:
        stolen = site.who(0)
        session = await site.join(stolen)
        site.write_members(*WHO[1:], outsiders=[_serial(stolen)])
        site.fleet.revoke(stolen)
        await until(lambda: site.process.reloads >= 1)
        while not await site.refused(stolen):
            pass
        assert site.process.restarts == 0
        site.write_members(*WHO)
        assert await session.ended()
        await until(lambda: site.process.state == "running")
        assert await site.refused(stolen)
        await site.join(site.who(0))

    tell(story)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_tls_session_is_resumed(tell: Callable[..., list[Any]], version: ssl.TLSVersion) -> None:
    """Nobody looks at the revocation list when a session is resumed."""

    async def story(site: Site) -> None:
        context = client_context(site.who(0), server_name("acme", "berlin"))
        context.minimum_version = context.maximum_version = version

        def visit(session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool | None]:
            with context.wrap_socket(
                socket.create_connection(split_endpoint(site.settings.broker.listen[0])), session=session
            ) as line:
                line.sendall(raw.connect("pc-1"))
                assert line.recv(4) == raw.CONNACK
                return line.session, line.session_reused

        session, _ = await asyncio.to_thread(visit, None)
        assert await asyncio.to_thread(lambda: visit(session)[1]) is False

    tell(story)


def test_the_lists_of_several_authorities_hold_at_once(tell: Callable[..., list[Any]]) -> None:
    """While a fleet changes its authority, there is one revocation list of each in the same file."""

    async def story(site: Site) -> None:
        fleet = site.fleet
        second = pki.create_authority("acme", 2, "ec-p256", fleet.now)
        old, new = site.who(0), fleet.identity("hub", "pc-2", "berlin", authority=second)
        fleet.ca.write_bytes(fleet.ca.read_bytes() + pki.certificate_pem(second.certificate))
        lists = [
            pki.revocation_list(authority, [pki.Revocation(_serial(identity), fleet.now)], 2, fleet.now)
            for authority, identity in ((fleet.authority, old), (second, new))
        ]
        fleet.crl.write_bytes(b"".join(lists))
        await until(lambda: site.process.restarts == 1 and site.process.state == "running")
        assert await site.refused(old)
        assert await site.refused(new)
        await site.join(fleet.identity("hub", "pc-2", "berlin", authority=second, issued=fleet.now))

    tell(story)


def _serial(identity: Identity) -> int:
    return pki.load_certificates(identity.cert.read_bytes())[0].serial_number


# --- Limits ------------------------------------------------------------------------------------------------------------


def test_a_message_beyond_the_contract_ends_its_session_and_the_largest_passes(tell: Callable[..., list[Any]]) -> None:
    async def story(site: Site) -> None:
        ear = await site.subscriber(site.who(6), "hl1/acme/#")
        client = await site.join(site.who(0))
        await site.publish(client, f"{HUB}/up/readings", bytes(limits.MESSAGE_MAX_BYTES))
        client.send(raw.publish(f"{HUB}/up/readings", bytes(limits.PACKET_MAX_BYTES + 1)))
        assert await client.ended()
        assert [len(payload) for _, payload, _ in await ear.quiet()] == [limits.MESSAGE_MAX_BYTES]

    logs = tell(story)
    assert "packet" in {entry["kind"] for entry in logs if entry["event"] == "client_refused"}


# --- The command -------------------------------------------------------------------------------------------------------


def broker_toml(site: Site, more: str = "") -> Path:
    identity = site.settings.identity
    file = site.fleet.folder / "broker.toml"
    file.write_text(
        f'[identity]\nfleet = "acme"\nsite = "berlin"\nname = "broker-1"\nca = "ca.pem"\n'
        f'cert = "{identity.cert.name}"\nkey = "{identity.key.name}"\n'
        f'[broker]\nlisten = ["{site.settings.broker.listen[0]}"]\ncrl = "crl.pem"\nmembers = "members.json"\n'
        f'engine = "mosquitto"\n{more}'
    )
    return file


@contextmanager
def running(file: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run `hubline broker run` until it serves; yields it with the engine's process id."""
    process = subprocess.Popen(
        [*processes.HUBLINE, "broker", "run", "-c", str(file)], stderr=subprocess.PIPE, text=True
    )
    status = file.parent / "data" / "status.json"
    try:
        processes.until("it serves", lambda: process.poll() is not None or status.exists())
        assert process.poll() is None, process.communicate()[1]
        yield process, orjson.loads(status.read_bytes())["engine_pid"]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a process to its parent")
def test_it_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    """Else the port stays taken, and nobody renews what this Mosquitto knows of revoked members."""
    with running(broker_toml(Site(tmp_path, "berlin"))) as (process, engine_pid):
        assert psutil.pid_exists(engine_pid)
        process.kill()
        processes.until("Mosquitto ends", lambda: not _lives(engine_pid))


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_signal_ends_it_and_its_engine_in_good_order(tmp_path: Path) -> None:
    with running(broker_toml(Site(tmp_path, "berlin"))) as (process, engine_pid):
        process.send_signal(signal.SIGTERM)
        _, words = process.communicate(timeout=limits.STOP_TIMEOUT_S)
        assert process.returncode == 0
        assert not _lives(engine_pid)
        events = [orjson.loads(line)["event"] for line in words.splitlines()]
        assert [event for event in events if event != "engine_said"] == ["broker_started", "broker_stopped"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ('program = "no/such"\n', ("broker.program", "no program")),
        (
            'program = "old"\n',
            ("broker.program", "old is of version 1.6.9", "2.0.11 or newer", "apt install mosquitto"),
        ),
        ('\n[log]\nlevel = "error"\n', ("mosquitto", "Address already in use")),
    ],
)
def test_what_cannot_work_is_said_in_one_line(tmp_path: Path, more: str, words: tuple[str, ...]) -> None:
    """No traceback, and no engine that is started again and again."""
    site = Site(tmp_path, "berlin")
    old = site.fleet.folder / "old"
    old.write_text("#!/bin/sh\necho 'mosquitto version 1.6.9'\n")
    old.chmod(0o755)
    with socket.create_server(split_endpoint(site.settings.broker.listen[0])):
        done = subprocess.run(
            [*processes.HUBLINE, "broker", "run", "-c", str(broker_toml(site, more))],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("hubline: ")
    assert all(word in last for word in words), last


def test_an_engine_that_others_run_is_not_run(tmp_path: Path) -> None:
    file = broker_toml(Site(tmp_path, "berlin"))
    file.write_text(file.read_text().replace('"mosquitto"', '"external"'))
    done = subprocess.run(
        [*processes.HUBLINE, "broker", "run", "-c", str(file)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "nothing to run" in done.stderr


def test_its_configuration_can_be_written_and_mosquitto_takes_it(tmp_path: Path) -> None:
    """For whoever runs Mosquitto by other means: nothing is started, and the files refer to the folder they are in."""
    site = Site(tmp_path, "berlin")
    out = tmp_path / "out"
    command = [*processes.HUBLINE, "broker", "config", "mosquitto", "-c", str(broker_toml(site))]
    written = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, timeout=30, check=True)
    shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert sorted(written.stdout.split()) == sorted(str(file) for file in out.iterdir())
    assert "user O=acme,OU=hub,CN=pc-1" in shown.stdout
    assert f"acl_file {out / 'acl.conf'}" in (out / "mosquitto.conf").read_text()
    assert not (site.fleet.folder / "data").exists()


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "a b:1"])
def test_what_mosquitto_cannot_listen_on_is_refused(tmp_path: Path, listen: str) -> None:
    """A name with a line's end in it could otherwise write settings of its own."""
    site = Site(tmp_path, "berlin")
    broker = msgspec.structs.replace(site.settings.broker, listen=[listen.replace(" ", "\n")])
    settings = msgspec.structs.replace(site.settings, broker=broker)
    with pytest.raises(SettingsError, match=r"broker\.listen"):
        Mosquitto().plan(settings, Members("acme", []), tmp_path)


@pytest.mark.parametrize(
    ("line", "level", "refused"),
    [
        ("1795377670: mosquitto version 2.0.11 running", "debug", None),
        ("Client connection from 127.0.0.1 failed: error:0A000086:SSL routines::certificate verify failed.", "warning",
         ("tls", "127.0.0.1", "certificate verify failed")),
        ("Client pc-1.a has exceeded timeout, disconnecting.", "warning", ("silent", "pc-1.a", "exceeded timeout")),
        ("Client pc-1 disconnected due to malformed packet.", "warning", ("packet", "pc-1", "malformed packet")),
        ("Client pc-1 closed its connection.", "debug", None),
        ("Error: Unable to load CA certificates.", "error", None),
        ("Warning: Mosquitto should not be run as root/administrator.", "warning", None),
        ("Connecting bridge cloud (10.0.0.1:8883)", "info", None),
    ],
)  # fmt: skip
def test_its_words_are_understood(line: str, level: str, refused: tuple[str, str, str] | None) -> None:
    heard = Mosquitto().hear(line)
    assert heard is not None
    assert (heard.level, heard.refused, heard.ready) == (level, refused, line.endswith("running"))


@pytest.mark.parametrize(
    "line", ["Client <unknown> disconnected: Protocol error.", "Client <unknown> closed its connection."]
)
def test_the_end_of_a_connection_that_had_not_begun_is_not_passed_on(line: str) -> None:
    """It names nobody, and each of our own questions may make one."""
    assert Mosquitto().hear(line) is None
