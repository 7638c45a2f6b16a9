"""A client that sends exactly the bytes it is told to, over real TLS, and a broker to send them to."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from broker import packets
from broker.server import Server
from broker.tls import client_context
from config.endpoint import split_endpoint
from config.principal import server_name
from config.settings import BrokerSettings, Identity

WAIT_S = 10.0
"""How long a test waits for what must happen before it fails."""


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return len(raw).to_bytes(2, "big") + raw


def packet(first: int, body: bytes) -> bytes:
    return bytes((first,)) + packets.length_bytes(len(body)) + body


def connect(
    client_id: str,
    *,
    will: tuple[str, bytes] | None = None,
    will_retain: bool = True,
    keep_alive_s: int = 60,
    clean: bool = True,
    level: int = 4,
    flags: int | None = None,
    tail: bytes = b"",
) -> bytes:
    has = (0x02 if clean else 0) | (0 if will is None else 0x04 | (0x20 if will_retain else 0))
    body = text("MQTT") + bytes((level, has if flags is None else flags)) + keep_alive_s.to_bytes(2, "big")
    body += text(client_id)
    if will is not None:
        body += text(will[0]) + text(will[1])
    return packet(0x10, body + tail)


def publish(topic: str | bytes, payload: bytes, *, qos: int = 1, retain: bool = False, packet_id: int = 1) -> bytes:
    number = packet_id.to_bytes(2, "big") if qos else b""
    return packet(0x30 | qos << 1 | retain, text(topic) + number + payload)


def subscribe(*topic_filters: str, packet_id: int = 7, qos: int = 1) -> bytes:
    return packet(0x82, packet_id.to_bytes(2, "big") + b"".join(text(f) + bytes((qos,)) for f in topic_filters))


def unsubscribe(*topic_filters: str, packet_id: int = 8) -> bytes:
    return packet(0xA2, packet_id.to_bytes(2, "big") + b"".join(text(f) for f in topic_filters))


PINGREQ = b"\xc0\x00"
DISCONNECT = b"\xe0\x00"
CONNACK = b"\x20\x02\x00\x00"


class RawClient:
    """One connection. `messages` are the PUBLISH packets received so far, as (topic, payload, retained).

    Those of QoS 1 are acknowledged.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader, self.writer = reader, writer
        self.messages: list[tuple[str, bytes, bool]] = []

    def send(self, *chunks: bytes) -> None:
        self.writer.write(b"".join(chunks))

    async def packet(self) -> bytes:
        """Return the next packet, or b"" at the end of the connection."""
        try:
            return await asyncio.wait_for(self._packet(), WAIT_S)
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            return b""

    async def answer(self) -> bytes:
        """Return the next packet that is not a PUBLISH; those are kept in `messages`."""
        while True:
            got = await self.packet()
            if not got or got[0] & 0xF0 != 0x30:
                return got
            self._keep(got)

    async def expect(self, count: int) -> list[tuple[str, bytes, bool]]:
        """Return the messages received, once there are `count` of them."""
        while len(self.messages) < count:
            got = await self.packet()
            assert got, f"the connection ended after {self.messages}"
            assert got[0] & 0xF0 == 0x30, got
            self._keep(got)
        return self.messages

    async def quiet(self) -> list[tuple[str, bytes, bool]]:
        """Return the messages received up to the answer of a ping: whatever was on its way has come before it."""
        self.send(PINGREQ)
        assert await self.answer() == packets.PINGRESP
        return self.messages

    async def ended(self) -> bool:
        """Wait until the broker has closed the connection."""
        while await self.packet():
            pass
        return True

    async def close(self) -> None:
        """Leave without a word."""
        self.writer.transport.abort()

    async def _packet(self) -> bytes:
        head = await self.reader.readexactly(2)
        length, shift = head[1] & 0x7F, 7
        while head[-1] & 0x80:
            head += await self.reader.readexactly(1)
            length |= (head[-1] & 0x7F) << shift
            shift += 7
        return head + await self.reader.readexactly(length)

    def _keep(self, got: bytes) -> None:
        at = 2
        while got[at - 1] & 0x80:
            at += 1
        end = start = at + 2 + int.from_bytes(got[at : at + 2], "big")
        if got[0] & 0x06:
            start += 2
            self.send(b"\x40\x02" + got[end:start])
        self.messages.append((got[at + 2 : end].decode(), got[start:], bool(got[0] & 1)))


async def connected(endpoint: str, context: ssl.SSLContext | None) -> RawClient:
    """Connect, with TLS if there is a context, and do nothing more."""
    host, port = split_endpoint(endpoint)
    reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port, ssl=context), WAIT_S)
    return RawClient(reader, writer)


async def dial(server: CalledServer, identity: Identity | None) -> RawClient:
    """Connect, with TLS unless there is no identity, and do nothing more."""
    own = server.settings.identity
    context = None if identity is None else client_context(identity, server_name(own.fleet, own.site))
    server.clients.append(await connected(server.listen[0], context))
    return server.clients[-1]


async def join(server: CalledServer, identity: Identity, client_id: str | None = None, **options: object) -> RawClient:
    """Connect, and open a session."""
    client = await dial(server, identity)
    client.send(connect(client_id or identity.name, **options))  # type: ignore[arg-type]
    got = await client.packet()
    assert got == CONNACK, got
    return client


async def subscriber(server: CalledServer, identity: Identity, *topic_filters: str) -> RawClient:
    """Connect, and subscribe."""
    client = await join(server, identity)
    client.send(subscribe(*topic_filters))
    got = await client.answer()
    assert got == packets.suback(b"\0\7", [0] * len(topic_filters)), got
    return client


class CalledServer(Server):
    """A broker that remembers its test's clients, so that they are closed at the end."""

    def __init__(self, settings: BrokerSettings):
        super().__init__(settings)
        self.clients: list[RawClient] = []


@asynccontextmanager
async def serving(settings: BrokerSettings) -> AsyncIterator[CalledServer]:
    server = CalledServer(settings)
    await server.start()
    try:
        yield server
    finally:
        for client in server.clients:
            client.writer.transport.abort()
        await server.stop()


async def until(holds: Callable[[], bool], seconds: float = WAIT_S) -> None:
    """Wait until something holds, and fail if it does not in time."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.005)
