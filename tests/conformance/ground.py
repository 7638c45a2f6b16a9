"""A running broker of one engine, as `hubline broker run` starts it, and everybody who may come to it."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import orjson

from broker.client_ids import client_id_of
from broker.tls import client_context
from broker.topics import Topic, everything_filter
from config import limits, provision
from config.endpoint import split_endpoint
from config.ports import free_ports
from config.principal import CLOUD_SITE, Principal, Role, server_name
from config.settings import SHAPES, Identity, load
from tests.broker import raw_mqtt as raw
from tests.broker.raw_mqtt import RawClient
from tests.conformance.engines import Check, EngineName, expected
from tests.fleet import HUBLINE, until

FLEET: Final = "acme"
SITE: Final = "berlin"
OTHER_SITE: Final = "munich"
SPARE_HUBS: Final = 14
"""Hubs of the site berlin that tests take one after the other, so that none finds what another has left."""

ATTEMPTS: Final = 3
"""Of a CONNECT: nats-server refuses some while its disk is busy."""

Story: TypeAlias = Callable[["Visit"], Coroutine[Any, Any, None]]


def hub_of(number: int) -> str:
    return f"pc-{number}"


def provision_fleet(fleet: Path) -> None:
    """Make a fleet: two sites, and of every role somebody at each place where the role can be."""
    provision.init(fleet, FLEET, cloud_hosts=["127.0.0.1"])
    provision.connector(fleet, "berlin-1", SITE)
    provision.connector(fleet, "munich-1", OTHER_SITE)
    for number in range(1, 3 + SPARE_HUBS):
        provision.hub(fleet, hub_of(number), SITE)
    for name in ("returned", "thief", "doomed"):
        provision.hub(fleet, name, SITE)
    provision.hub(fleet, "mu-1", OTHER_SITE)
    provision.reader(fleet, "desk")
    provision.reader(fleet, "berlin-desk", SITE)
    provision.reader(fleet, "munich-desk", OTHER_SITE)
    for name in ("returned", "thief"):
        provision.revoke(fleet, f"hub/{name}")
    provision.renew(fleet, "hub/returned", reinstate=True)


@dataclass(slots=True)
class Ground:
    """One broker. `place` is its site, or "-" for the cloud broker."""

    engine: EngineName
    place: str
    folder: Path
    rival: Path
    endpoint: str
    process: subprocess.Popen[bytes] | None = None
    _idlers: Idlers | None = None
    _spare: itertools.cycle[str] = field(default_factory=lambda: itertools.cycle(map(hub_of, range(3, 3 + SPARE_HUBS))))

    def __str__(self) -> str:
        return f"{self.engine}-{'cloud' if self.place == CLOUD_SITE else 'site'}"

    @property
    def fleet(self) -> Path:
        return self.folder / "fleet"

    def expects(self, check: Check) -> str:
        return expected(self.engine, check)

    def start(self) -> None:
        """Start the broker, and wait until it serves."""
        bundle = self.fleet / "bundles" / "broker" / ("cloud" if self.place == CLOUD_SITE else "berlin-1")
        (nats_port,) = free_ports(1)
        environ = {
            "HUBLINE_BROKER__ENGINE": self.engine,
            "HUBLINE_BROKER__LISTEN": f'["{self.endpoint}"]',
            "HUBLINE_BROKER__HANDSHAKES_PER_S": "1000",
            "HUBLINE_NATS__LISTEN": f"127.0.0.1:{nats_port}",
            "HUBLINE_LOG__FORMAT": "json",
        }
        with (self.folder / "broker.log").open("wb") as log:
            self.process = subprocess.Popen(
                [*HUBLINE, "broker", "run", "-c", str(bundle / "broker.toml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environ},
            )
        until(f"{self} serves", lambda: self._status().get("listen") or self._is_gone(), 30)
        self._idlers = Idlers(self.endpoint, self.context(self.identity(BYSTANDER)))

    def stop(self) -> None:
        """Stop it; a broker must end by itself, and with it its engine."""
        if self._idlers is not None:
            self._idlers.close()
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                assert self.process.wait(20) == 0, (self.folder / "broker.log").read_text()[-3000:]
            finally:
                self.process.kill()
                self.process.wait()

    def idlers(self) -> Idlers:
        """Return connections that have done nothing since the broker runs."""
        assert self._idlers is not None
        return self._idlers

    def restarts(self) -> int:
        """Return how often its engine was started anew."""
        found = self._status().get("restarts", 0)
        assert isinstance(found, int)
        return found

    def spare_hub(self) -> Principal:
        """Return a hub of the site berlin that nobody else uses for now."""
        return who("hub", next(self._spare))

    def identity(self, holder: Principal) -> Identity:
        """Return the certificate of a member (of the foreign fleet, if that is the holder's)."""
        fleet = self.fleet if holder.fleet == FLEET else self.rival
        file = fleet / "bundles" / holder.role / holder.name / f"{holder.role}.toml"
        return load(file, SHAPES[holder.role], {}).identity

    def context(self, identity: Identity) -> ssl.SSLContext:
        return client_context(identity, server_name(FLEET, self.place))

    def tell(self, story: Story) -> None:
        """Have clients come and do something. Whatever it is: the broker lives on, and so does a session beside it."""

        async def main() -> None:
            visit = Visit(self)
            try:
                bystander = await visit.join(BYSTANDER)
                await story(visit)
                assert not await bystander.quiet(), "the bystander heard something that is none of its business"
            finally:
                visit.leave()

        before = self.restarts()
        asyncio.run(main())
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "broker.log").read_text()[-3000:]
        assert self.restarts() == before, "the engine was started anew"

    def _status(self) -> dict[str, Any]:
        file = next(iter(self.fleet.glob(f"bundles/broker/{self._name}/data/status.json")), None)
        return {} if file is None else orjson.loads(file.read_bytes())

    @property
    def _name(self) -> str:
        return "cloud" if self.place == CLOUD_SITE else "berlin-1"

    def _is_gone(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "broker.log").read_text()[-3000:]
        return False


class Idlers:
    """Two connections that never come to a CONNECT: one without TLS's first word, one after the handshake."""

    def __init__(self, endpoint: str, context: ssl.SSLContext):
        host, port = split_endpoint(endpoint)
        self._sockets = [socket.create_connection((host, port)) for _ in range(2)]
        self._sockets[1] = context.wrap_socket(self._sockets[1])

    def open(self) -> int:
        """Return how many are still open."""
        return sum(not _has_ended(each) for each in self._sockets)

    def wait(self, seconds: float) -> None:
        """Wait until all are closed, but not for ever."""
        deadline_at = time.monotonic() + seconds
        for each in self._sockets:
            each.settimeout(max(0.01, deadline_at - time.monotonic()))
            try:
                while each.recv(1000):
                    pass
            except OSError:
                pass

    def close(self) -> None:
        for each in self._sockets:
            each.close()


def _has_ended(connection: socket.socket) -> bool:
    connection.settimeout(0.05)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def who(role: Role, name: str, site: str = SITE, fleet: str = FLEET) -> Principal:
    return Principal(fleet, site, role, name)


BYSTANDER: Final = who("hub", "pc-2")
SERVICE: Final = who("cloud", "cloud", CLOUD_SITE)
READER: Final = who("reader", "desk", CLOUD_SITE)
CONNECTOR: Final = who("connector", "berlin-1")


class Visit:
    """The clients of one test."""

    def __init__(self, ground: Ground):
        self.ground = ground
        self.clients: list[RawClient] = []
        self._messages = itertools.count(1)

    async def dial(self, holder: Principal | Identity | None, context: ssl.SSLContext | None = None) -> RawClient:
        """Connect, with TLS unless there is neither a holder nor a context, and do nothing more."""
        identity = self.ground.identity(holder) if isinstance(holder, Principal) else holder
        if identity is not None:
            context = self.ground.context(identity)
        self.clients.append(await raw.connected(self.ground.endpoint, context))
        return self.clients[-1]

    async def connack(self, holder: Principal | Identity, client_id: str | None = None, **options: Any) -> bytes:
        """Connect, send CONNECT, and return what comes back: b"" if the connection ends without an answer."""
        try:
            client = await self.dial(holder)
        except (OSError, ssl.SSLError):
            return b""
        client.send(raw.connect(client_id or fresh_id(holder), **options))
        return await client.packet()

    async def join(self, holder: Principal | Identity, client_id: str | None = None, **options: Any) -> RawClient:
        """Open a session, by default under an id of its own. As a real client, come again when the engine is too busy."""
        for _ in range(ATTEMPTS):
            client = await self.dial(holder)
            client.send(raw.connect(client_id or fresh_id(holder), **options))
            got = await client.packet()
            if got == raw.CONNACK:
                return client
            await client.close()
        raise AssertionError(f"{holder.name} was not let in: {got!r}")

    async def listen(self, holder: Principal, *topic_filters: str, qos: int = 0) -> RawClient:
        """Open a session, and subscribe to what must be granted."""
        client = await self.join(holder)
        client.send(raw.subscribe(*topic_filters, qos=qos))
        got = await client.answer()
        assert got[:4] == b"\x90" + bytes((2 + len(topic_filters),)) + b"\0\7", got
        assert 0x80 not in got[4:], (topic_filters, got)
        return client

    async def witness(self, topic_filter: str | None = None) -> Witness:
        """Open the session of a reader that hears all of the fleet, or what a filter says."""
        wanted = topic_filter or everything_filter(FLEET)
        marker = self.ground.spare_hub()
        heard = await self.listen(READER, wanted, str(state_of(marker)))
        witness = Witness(heard, await self.join(marker), marker, self._messages)
        await witness.all()  # What is retained from before is none of this test's.
        return witness

    def leave(self) -> None:
        for client in self.clients:
            client.writer.transport.abort()


class Witness:
    """A reader that can tell when it has heard all that was said until now."""

    def __init__(self, client: RawClient, marker: RawClient, holder: Principal, numbers: itertools.count[int]):
        self.client, self._marker, self._holder, self._numbers = client, marker, holder, numbers

    async def all(self) -> list[tuple[str, bytes, bool]]:
        """Return what was heard since it was last asked, up to now."""
        topic, mark = str(state_of(self._holder)), b"mark %d" % next(self._numbers)
        self._marker.send(raw.publish(topic, mark))
        assert (await self._marker.answer())[0] == 0x40
        while not any(payload == mark for _, payload, _ in self.client.messages):
            await self.client.expect(len(self.client.messages) + 1)
        heard = [message for message in self.client.messages if message[0] != topic]
        del self.client.messages[:]
        return heard

    async def something(self, seconds: float = raw.WAIT_S) -> list[tuple[str, bytes, bool]]:
        """Return what was heard, as soon as there is anything; nothing if nothing comes in time."""
        heard: list[tuple[str, bytes, bool]] = []

        async def is_there() -> bool:
            heard.extend(await self.all())
            return bool(heard)

        await eventually(is_there, seconds)
        return heard

    async def payloads(self) -> list[bytes]:
        return [payload for _, payload, _ in await self.all()]


def fresh_id(holder: Principal | Identity) -> str:
    """Return a client id as our own clients have them: nobody can guess its end."""
    return client_id_of(holder.name, secrets.token_hex(limits.CLIENT_ID_SECRET_BYTES))


def state_of(hub: Principal) -> Topic:
    return Topic.hub_state(hub.fleet, hub.site, hub.name)


def readings_of(hub: Principal) -> Topic:
    return Topic.up(hub.fleet, hub.site, hub.name, "readings")


async def eventually(holds: Callable[[], Coroutine[Any, Any, bool]], seconds: float = raw.WAIT_S) -> bool:
    """Ask until something holds, and tell whether it did in time. What is asked is never cut short."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + seconds
    while not await holds():
        if loop.time() > ends_at:
            return False
        await asyncio.sleep(0.05)
    return True


async def outcome(client: RawClient) -> str:
    """Return whether a session is still served, or has ended."""
    client.send(raw.PINGREQ)
    while (got := await client.answer()) and got[0] != 0xD0:
        pass
    return "served" if got else "ended"
