"""MQTT clients over mutual TLS that are much lighter than any broker, so that they are never what is measured.

One process holds them all. Each message is a TLS record of its own, as from a real hub's client library.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections.abc import Callable
from typing import Final, Protocol, cast

from broker import packets
from broker.clock import unix_ms
from broker.messages import Ack, decode, encode_envelope
from broker.runner import Runner
from config.endpoint import split_endpoint
from hub import courier
from hub.courier import Courier

CONNECT_TIMEOUT_S: Final = 20.0
KEEP_ALIVE_S: Final = 600
"""Longer than a run: no pings among what is counted."""
SEQ_AT: Final = len(b'{"epoch":"0123456789abcdef","seq":')
WINDOW: Final = 20
"""Messages of one plain hub on their way: 50 hubs stay below either side's bounds, so that a slow one slows its senders."""
STALLED_S: Final = 5.0
"""What has not come out of a broker by then will never come: MQTT's own queues do not retransmit within a session."""


class Line(asyncio.Protocol):
    """One MQTT connection. `on_message` gets topic and payload; `on_turn` comes after all that has arrived together."""

    def __init__(
        self,
        client_id: str,
        on_message: Callable[[bytes, bytes], None] | None = None,
        on_turn: Callable[[], None] | None = None,
    ):
        self.client_id = client_id
        self.pubacks = 0
        self._on_message, self._on_turn = on_message, on_turn
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._packet_id = 0
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def open(self, endpoint: str, context: ssl.SSLContext, will: tuple[str, bytes] | None = None) -> None:
        """Connect and open a session, with a retained last will (topic, payload) if given. Raises OSError, TimeoutError."""
        host, port = split_endpoint(endpoint)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await asyncio.get_running_loop().create_connection(lambda: self, host, port, ssl=context)
            texts = [self.client_id.encode(), *([will[0].encode(), will[1]] if will is not None else [])]
            flags = (b"\x02" if will is None else b"\x2e") + KEEP_ALIVE_S.to_bytes(2, "big")
            body = b"\x00\x04MQTT\x04" + flags + b"".join(len(text).to_bytes(2, "big") + text for text in texts)
            answer = await self._ask(b"\x10" + packets.length_bytes(len(body)) + body)
        if answer != packets.CONNACK_ACCEPTED:
            raise ConnectionError(f"{endpoint} refused {self.client_id}: {answer.hex()}")

    async def subscribe(self, topic_filter: str, qos: int) -> None:
        """Subscribe, and wait until the broker has said yes."""
        raw = topic_filter.encode()
        body = b"\x00\x01" + len(raw).to_bytes(2, "big") + raw + bytes((qos,))
        answer = await self._ask(b"\x82" + packets.length_bytes(len(body)) + body)
        if answer[-1] == packets.NOT_SUBSCRIBED:
            raise ConnectionError(f"{self.client_id} may not subscribe to {topic_filter}")

    def publish(self, topic: bytes, payloads: list[bytes], *, retain: bool = False) -> None:
        """Send messages to one topic (bytes with their length before them) with QoS 1."""
        assert self._transport is not None
        if self._transport.is_closing():
            return  # It is lost, and whoever has it is about to hear so.
        first = b"\x33" if retain else b"\x32"
        out = []
        for payload in payloads:
            self._packet_id = self._packet_id % 0xFFFF + 1
            length = packets.length_bytes(len(topic) + 2 + len(payload))
            out.append(b"%b%b%b%b%b" % (first, length, topic, self._packet_id.to_bytes(2, "big"), payload))
        self._transport.writelines(out)

    def close(self) -> None:
        """Leave with a DISCONNECT."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"\xe0\x00")
            self._transport.close()

    async def _ask(self, packet: bytes) -> bytes:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(packet)
        done, _ = await asyncio.wait([self._answer, self.lost], return_when=asyncio.FIRST_COMPLETED)
        if self.lost in done:
            raise ConnectionError(f"{self.client_id}: the broker closed the connection")
        return self._answer.result()

    # --- asyncio's calls -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(b"")

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        replies = []
        while end - at >= 2:
            first, length, body = data[at], data[at + 1], at + 2
            if length & 0x80:
                length, shift = length & 0x7F, 7
                while body < end:
                    length |= (data[body] & 0x7F) << shift
                    shift += 7
                    body += 1
                    if not data[body - 1] & 0x80:
                        break
                else:
                    break
            stop = body + length
            if stop > end:
                break
            if first == 0x40:
                self.pubacks += 1
            elif first & 0xF0 == packets.PUBLISH:
                topic_at = body + 2
                payload_at = topic_at + (data[body] << 8 | data[body + 1])
                topic = data[topic_at:payload_at]
                if first & 0x06:
                    replies.append(b"\x40\x02" + data[payload_at : payload_at + 2])
                    payload_at += 2
                if self._on_message is not None:
                    self._on_message(topic, data[payload_at:stop])
            elif not self._answer.done():
                self._answer.set_result(data[at:stop])
            at = stop
        self._rest = data[at:]
        if replies and self._transport is not None:
            self._transport.write(b"".join(replies))
        if self._on_turn is not None:
            self._on_turn()


class Readings:
    """Bodies of `up/readings` with a given number of readings, new ten times a second: the times go on, as real ones do."""

    def __init__(self, count: int):
        self.count = count
        self._random = random.Random(1)
        self._body = b""
        self._made_at = float("-inf")

    @property
    def payload_bytes(self) -> int:
        """Return the size of a message."""
        return len(encode_envelope("0" * 16, 1000, unix_ms(), self.body()))

    def body(self) -> bytes:
        """Return the JSON of a body."""
        now = time.monotonic()
        if now - self._made_at > 0.1:
            self._made_at, at_ms = now, unix_ms()
            values = [20 + self._random.gauss(0, 3) for _ in range(self.count)]
            points = (b'{"ts":%d,"values":{"temp":%.1f}}' % (at_ms + n, value) for n, value in enumerate(values))
            self._body = b'{"points":[' + b",".join(points) + b"]}"
        return self._body


class LoadHub(Protocol):
    """A hub of the load: sends what it is offered, at most a window of messages that have not arrived at the far end."""

    line: Line
    sent: int
    offered: int
    arrived: int
    """Distinct messages known to be at the far end; for a real courier: committed by the database."""

    def offer(self, count: int) -> None:
        """Let it send this many messages more."""
        ...

    def withhold(self) -> None:
        """Take back what was offered and is not sent yet."""
        ...

    @property
    def outstanding(self) -> int:
        """Return how many messages are on their way."""
        ...


class PlainHub:
    """Publishes with QoS 1 and does not repeat: a hub of a user who trusts the brokers. `arrive` is told by the far end."""

    def __init__(self, line: Line, topic: str, readings: Readings, epoch: str, window: int = WINDOW):
        self.line, self.sent, self.arrived = line, 0, 0
        self.doubled = 0
        self._skipped: set[int] = set()
        self._window = window
        self._topic = len(topic).to_bytes(2, "big") + topic.encode()
        self._readings, self.epoch = readings, epoch
        self._through = self.offered = 0
        self._moved_at = time.monotonic()

    @property
    def outstanding(self) -> int:
        return self.sent - self._through

    def offer(self, count: int) -> None:
        self.offered += count
        self._moved_at = time.monotonic()
        self.pump()

    def withhold(self) -> None:
        self.offered = self.sent

    def pump(self) -> None:
        """Send what the window lets through."""
        last = min(self.offered, self._through + self._window)
        if last > self.sent:
            body, now_ms = self._readings.body(), unix_ms()
            seqs = range(self.sent + 1, last + 1)
            self.line.publish(self._topic, [encode_envelope(self.epoch, seq, now_ms, body) for seq in seqs])
            self.sent = last

    def arrive(self, seq: int) -> None:
        """Count a message at the far end. What is skipped counts as lost until it comes: two writers may change places."""
        if seq <= self._through:
            if seq in self._skipped:
                self._skipped.discard(seq)
                self.arrived += 1
            else:
                self.doubled += 1
            return
        self._skipped.update(range(self._through + 1, seq))
        self.arrived += 1
        self._through = seq
        self._moved_at = time.monotonic()

    @property
    def lost(self) -> int:
        """Return how many messages have been skipped or given up."""
        return len(self._skipped)

    def write_off(self) -> None:
        """Take what has been on its way for STALLED_S for lost, so that the window opens again."""
        if self.outstanding and time.monotonic() - self._moved_at > STALLED_S:
            self._skipped.update(range(self._through + 1, self.sent + 1))
            self._through = self.sent
            self._moved_at = time.monotonic()
            self.pump()


class CourierHub:
    """The hub's own courier, envelopes and acknowledgements; only sensors and outbox are missing."""

    def __init__(self, line: Line, topic: str, readings: Readings, epoch: str):
        self.line, self.sent, self.arrived = line, 0, 0
        self.sent_again = 0
        self._topic = len(topic).to_bytes(2, "big") + topic.encode()
        self._readings, self.epoch = readings, epoch
        self.offered = 0
        self._runner: Runner[courier.Event, courier.Command] = Runner(Courier(epoch), self._execute)
        self._runner.feed(courier.PathOpened())

    @property
    def outstanding(self) -> int:
        return self.sent - self.arrived

    def offer(self, count: int) -> None:
        first, self.offered = self.offered + 1, self.offered + count
        self._runner.feed(courier.Appended(((first, self.offered),)))

    def withhold(self) -> None:
        if self.offered > self.sent:
            self._runner.feed(courier.Dropped(((self.sent + 1, self.offered),)))
            self.offered = self.sent

    def acknowledged(self, payload: bytes) -> None:
        """Take a `down/ack`."""
        ack = decode(payload, Ack)
        self._runner.feed(courier.Acknowledged(ack.epoch, tuple(ack.ranges)))

    def open_path(self) -> None:
        """Say that there is a session."""
        self._runner.feed(courier.PathOpened())

    def close_path(self) -> None:
        """Say that there is none."""
        self._runner.feed(courier.PathClosed())

    def close(self) -> None:
        """Set no timer any more."""
        self._runner.close()

    def _execute(self, command: courier.Command) -> None:
        match command:
            case courier.Send(seqs):
                body, now_ms = self._readings.body(), unix_ms()
                payloads = [encode_envelope(self.epoch, seq, now_ms, body) for seq in seqs]
                self.line.publish(self._topic, payloads)
                for seq, payload in zip(seqs, payloads, strict=True):
                    self.sent_again += seq <= self.sent
                    self.sent = max(self.sent, seq)
                    self._runner.feed(courier.Sent(seq, len(payload)))
            case courier.Forget(ranges):
                self.arrived += sum(last - first + 1 for first, last in ranges)


def seq_of(payload: bytes) -> int:
    """Return the seq of an envelope that `encode_envelope` has written."""
    return int(payload[SEQ_AT : payload.index(b",", SEQ_AT)])
