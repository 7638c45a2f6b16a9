"""What a session reads and writes: messages and their acknowledgements pass here at once, everything else is paho's.

Paho reads a packet in four calls and makes several objects of each, in both directions: at a site of many hubs that was most of
what a connector did. So its socket reads ahead, takes PUBLISH and PUBACK out of the stream itself, and hands paho only whole
packets of the other kinds; and it writes whatever waits, paho's packets among it, in order and in as few TLS records as it
fits. Opening a session, subscribing and the end stay paho's work, over the same socket. The keep alive is done here, since
only here all life signs are seen: to paho a session that carries nothing but messages looks dead.
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

from broker import packets
from broker.runner import monotonic_s
from config import limits
from config.errors import ProtocolError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

_READS_PER_TURN: Final = 4
"""Others want to read and write, too; what is left makes the socket readable again."""

TICK_S: Final = 1.0
"""How often `look_after` is called: a ping is due when the next look would be too late."""

_WRITES_PER_TURN: Final = 64
"""Likewise: a megabyte in a row, to a peer that takes all of it at once."""

_PUBLISH_QOS_2: Final = 0x04
_FIRST_ID: Final = 0x8000
_LAST_ID: Final = 0xFFFF
"""Packet ids of ours; paho counts its own from 1, one for each SUBSCRIBE."""


class Traffic(Protocol):
    """Who has such a stream: the session. All of it is called in the thread that reads and writes."""

    def received(self, topic: str, payload: bytes, retain: bool) -> None:
        """Take a message; it must not raise."""
        ...

    def settled(self, count: int) -> None:
        """Take note that so many publishes are over: acknowledged, or at QoS 0 written."""
        ...


def _not_begun(_: object) -> NoReturn:
    raise ConnectionError("not connected")


class ClientStream:
    """One connection's two directions, after `begin`. `publish` and `send` may be called in another thread than the rest.

    Without `own_packets` all packets are paho's: MQTT 5 says more in them than 3.1.1, which is what is read here.
    """

    def __init__(self, traffic: Traffic, *, own_packets: bool):
        self.alive_at: float | None = None
        """When bytes last came (monotonic)."""
        self._traffic = traffic
        self._read: Callable[[int], bytes] = _not_begun
        self._write: Callable[[bytes], int] = _not_begun
        self._own_packets = own_packets
        self._inbound = b""
        self._for_paho = b""
        self._unread = False  # There may be whole packets behind the one that paho is given.
        self._waiting: deque[tuple[bytes, bool]] = deque()
        self._unsent = b""
        self._unsent_count = 0
        self._next_id = _FIRST_ID
        self._promised = False  # A packet that paho holds until it is written waits here, too.
        self._leaving = False  # That packet is a DISCONNECT, behind which nothing may come.
        self._written_at = self._pinged_at = 0.0
        self.must_read = False
        """Whether TLS can write no more before it has read."""

    @property
    def has_more(self) -> bool:
        """Tell whether there is something to read although the socket may not be readable."""
        return bool(self._for_paho) or self._unread

    @property
    def has_unsent(self) -> bool:
        """Tell whether something waits to be written."""
        return bool(self._unsent or self._waiting)

    def begin(self, read: Callable[[int], bytes], write: Callable[[bytes], int]) -> None:
        """Use a TLS socket's own methods, which raise OSError, and SSLWantReadError and the like where they would block."""
        self._read, self._write = read, write
        self._written_at = monotonic_s()

    def look_after(self, now: float, keep_alive_s: float) -> bool:
        """Have a ping written if one direction was quiet, and tell whether the broker still counts as alive.

        Whatever comes is a life sign. After a ping, it has `keep_alive_s` to give one (MQTT 3.1.1, 3.1.2.10 and 4.8).
        """
        if self.alive_at is None or self._leaving:
            return True  # Opening and closing have limits of their own.
        if self._pinged_at > self.alive_at:
            return now - self._pinged_at < keep_alive_s
        if now - min(self.alive_at, self._written_at) >= keep_alive_s - TICK_S:
            self._waiting.appendleft((packets.PING, False))
            self._pinged_at = now
        return True

    # --- Out ----------------------------------------------------------------------------------------------------------

    def publish(self, topic: str, payload: bytes, qos: int, *, retain: bool) -> None:
        """Have a message written with the next `flush`."""
        if qos == 0:
            self._waiting.append((packets.publish(topic, payload, retain=retain), True))
            return
        packet_id, self._next_id = self._next_id, self._next_id + 1 if self._next_id < _LAST_ID else _FIRST_ID
        self._waiting.append((packets.publish_once(topic, payload, packet_id, retain=retain), False))

    def flush(self) -> bool:
        """Write what waits, up to a turn's share, and tell whether all of it went. Raises OSError."""
        self.must_read = False
        for _ in range(_WRITES_PER_TURN):
            if not self._unsent:
                self._gather()
            if not self._unsent:
                return True
            try:
                sent = self._write(self._unsent)
            except ssl.SSLWantReadError:
                self.must_read = True
                return False
            except (ssl.SSLWantWriteError, BlockingIOError):
                return False  # The same bytes again next time, as OpenSSL wants it.
            self._written_at = monotonic_s()
            self._unsent = self._unsent[sent:]
            if not self._unsent and self._unsent_count:
                self._traffic.settled(self._unsent_count)
                self._unsent_count = 0
        return not self.has_unsent

    def send(self, packet: bytes) -> int:
        """Take a packet of paho's, to be written with the next `flush`, behind all that waits.

        Raises SSLWantWriteError until it is written, if paho goes by that: it closes the socket behind a DISCONNECT, and
        counts the publishes that are its own.
        """
        leaving = packet[0] == packets.DISCONNECT
        if self._own_packets and not leaving:
            self._waiting.append((packet, False))
            return len(packet)
        if not self._promised:
            self._waiting.append((packet, False))
            self._promised, self._leaving = True, leaving
        if self.has_unsent:
            raise ssl.SSLWantWriteError("not written yet")
        self._promised = False
        return len(packet)

    def _gather(self) -> None:
        parts: list[bytes] = []
        size = 0
        while self._waiting and size < limits.CLIENT_WRITE_BYTES:
            packet, at_most_once = self._waiting.popleft()
            parts.append(packet)
            size += len(packet)
            self._unsent_count += at_most_once
        self._unsent = b"".join(parts)

    # --- In -----------------------------------------------------------------------------------------------------------

    def recv(self, size: int) -> bytes:
        """Return bytes of the next packet that is paho's, or none at the end of the stream. Raises OSError, SSLWantReadError."""
        try:
            if not self._for_paho and not (self._fill() if self._own_packets else self._fill_with_all()):
                return b""
        except ProtocolError as exc:
            raise ConnectionError(f"the broker sent {exc.reason}") from exc
        part, self._for_paho = self._for_paho[:size], self._for_paho[size:]
        return part

    def _fill(self) -> bool:
        """Read until there is a packet for paho; False at the end of the stream."""
        for _ in range(_READS_PER_TURN):
            if self._scan():
                return True
            received = self._read(limits.CLIENT_READ_BYTES)
            if not received:
                return False
            self.alive_at = monotonic_s()
            self._inbound += received
        if self._scan():
            return True
        raise ssl.SSLWantReadError("enough for one turn")

    def _fill_with_all(self) -> bool:
        """Read a whole TLS record: the rest of one that is read in parts would wait unseen within OpenSSL."""
        self._for_paho = self._read(limits.CLIENT_READ_BYTES)
        if self._for_paho:
            self.alive_at = monotonic_s()
        return bool(self._for_paho)

    def _scan(self) -> bool:
        """Take out the whole packets that are ours, up to one that is paho's; tell whether there is one."""
        inbound, at, self._unread = self._inbound, 0, False
        puback_ids: list[bytes] = []
        while (found := packets.measure(inbound, at)) is not None:
            body_at, stop = found
            kind = inbound[at] & 0xF0
            if kind == packets.PUBLISH and not inbound[at] & _PUBLISH_QOS_2:
                self._take(inbound[at], inbound[body_at:stop], puback_ids)
            elif kind == packets.PUBACK:
                self._traffic.settled(1)
            else:
                self._for_paho, self._unread = inbound[at:stop], True
                at = stop
                break
            at = stop
        self._inbound = inbound[at:]
        if puback_ids and not self._leaving:
            self._waiting.append((b"".join(packets.puback(each) for each in puback_ids), False))
        return bool(self._for_paho)

    def _take(self, first: int, body: bytes, puback_ids: list[bytes]) -> None:
        topic, packet_id, payload = packets.parse_publish(first, body)
        if packet_id:
            puback_ids.append(packet_id)
        self._traffic.received(topic, payload, bool(first & 0x01))


def socket_class(
    stream: ClientStream, met: Callable[[ssl.SSLSocket], None], refused: Callable[[ssl.SSLError], None]
) -> type[ssl.SSLSocket]:
    """Return the class of a socket over a stream.

    `met` gets it before its handshake, which may last. `refused` gets the alert by which a TLS 1.3 server refuses our
    certificate: that comes after the client's handshake is done (RFC 8446, 4.4.4), and paho makes a mere loss of it.
    """

    class StreamSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            met(self)
            stream.begin(super().recv, super().send)
            super().do_handshake(block)

        def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
            try:
                return stream.recv(buflen)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as exc:
                if exc.reason and "ALERT" in exc.reason:
                    refused(exc)
                raise

        def send(self, data: Buffer, flags: int = 0) -> int:
            return stream.send(bytes(data))

    return StreamSocket
