"""One TLS connection of the embedded broker: handshake, decryption, and a bounded queue of what goes out.

It stands on a plain transport and OpenSSL's memory buffers, without a task, a stream or a timer of its own: that keeps
it small (asyncio's own TLS keeps 256 KiB for each connection) and lets what goes out in one turn share a TLS record.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, cast

from cryptography import x509

from broker.gate import Gate, ViolationError
from broker.tls import certificate_id, describe_tls_error
from config import limits
from config.errors import RefusedError
from config.principal import principal_of

if TYPE_CHECKING:
    from broker.server import Server

_RECORD_BYTES: Final = 16 * 1024
"""The most that one TLS record holds (RFC 8446, 5.1)."""


class Connection(asyncio.BufferedProtocol):
    """One client from accept to close. `begin` starts the handshake; until then nothing is read."""

    __slots__ = (
        "_address",
        "_deadline",
        "_dirty",
        "_doomed",
        "_ended",
        "_gate",
        "_incoming",
        "_outgoing",
        "_paused",
        "_queue",
        "_queued_bytes",
        "_replay",
        "_server",
        "_tls",
        "_transport",
        "certificate_id",
        "last_seen_at",
    )

    def __init__(self, server: Server):
        self._server = server
        self._address = "?"
        self._transport: asyncio.Transport | None = None
        self._incoming: ssl.MemoryBIO | None = None
        self._outgoing: ssl.MemoryBIO | None = None
        self._tls: ssl.SSLObject | None = None
        self._gate: Gate | None = None
        self._queue: list[bytes] = []
        self._queued_bytes = 0
        self._replay: OrderedDict[str, None] | None = None
        self._dirty = self._paused = self._doomed = self._ended = False
        self._deadline = 0.0
        self.last_seen_at = 0.0
        self.certificate_id: tuple[bytes, int] | None = None

    # --- Its life --------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for admission."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.pause_reading()
        self._transport.set_write_buffer_limits(high=limits.WRITE_BUFFER_BYTES)
        _let_the_system_probe(transport)
        peer = transport.get_extra_info("peername")
        self._address = str(peer[0]) if peer else "?"
        self._deadline = self._server.now() + limits.HANDSHAKE_WAIT_S
        self._server.admit(self)

    def begin(self) -> bool:
        """Start the handshake, and tell whether there is still somebody to start it with."""
        if self._ended or self._transport is None:
            return False
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = self._server.tls.current.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._deadline = self._server.now() + limits.CONNECT_TIMEOUT_S
        self._transport.resume_reading()
        return True

    def check_time(self, now: float) -> None:
        """Cut the connection if it is over its time: before CONNECT, silent, or slow to close."""
        gate = self._gate
        if self._ended:
            if now > self._deadline and self._transport is not None:
                self._transport.abort()
        elif gate is not None and gate.is_open:
            silent_s = now - self.last_seen_at
            if gate.keep_alive_s and silent_s > gate.keep_alive_s * limits.KEEP_ALIVE_GRACE:
                self.expel("silent", f"no life sign for {silent_s:.0f} s")
        elif now > self._deadline:
            if self._tls is None:
                self.expel("busy", "too many handshakes at once")
            else:
                self.expel("timeout", "no TLS handshake in time" if gate is None else "no CONNECT in time")

    def excuse(self, seconds: float) -> None:
        """Do not count a time in which nobody could have been heard."""
        self.last_seen_at += seconds
        self._deadline += seconds

    def expel(self, kind: str, reason: str) -> None:
        """Cut the connection now; its session ends with its will before this returns."""
        if not self._ended:
            self._end(clean=False)
            self._server.refusals.note(kind, self.client, reason, self._server.now())
            self.cut()

    def close(self) -> None:
        """End in good order, without the will: the broker stops."""
        if not self._ended:
            self._end(clean=True)
            self._close()

    def cut(self) -> None:
        """Close without waiting for anything any more."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything; if this was the first sign of the end, the will is published."""
        if not self._ended:
            self._end(clean=False)
            if self._gate is None and self.last_seen_at:
                reason = "the connection ended during the handshake"
                self._server.refusals.note("tls", self._address, reason, self._server.now())
        self._server.forget(self)
        self._transport = self._tls = self._incoming = self._outgoing = self._gate = None
        self._queue.clear()
        self._replay = None

    @property
    def client(self) -> str:
        """Return whom to name in logs and counters: the certificate's holder if it is known, or the address."""
        if self._gate is None:
            return self._address
        holder = self._gate.holder
        return f"{holder.site}/{holder.role}/{holder.name}"

    def _refuse(self, kind: str, reason: str, reply: bytes = b"") -> None:
        """Close with an answer, so that the client knows why; the will is published."""
        self._end(clean=False)
        self._server.refusals.note(kind, self.client, reason, self._server.now())
        if reply:
            self._queue.append(reply)
        self._close()

    def _end(self, *, clean: bool) -> None:
        self._ended = True
        self._deadline = self._server.now() + limits.CLOSE_TIMEOUT_S
        if self._gate is not None:
            self._gate.end(clean=clean)

    def _close(self) -> None:
        """Send what waits and TLS's own farewell, as far as the peer takes it, and let the peer close.

        If we closed while the peer still sends, its system would throw our last words away (RFC 1122, 4.2.2.13).
        """
        if self._transport is None:
            return
        if self._tls is not None and self._gate is not None:
            self._send_waiting()
            try:
                self._tls.unwrap()
            except ssl.SSLError:
                pass  # Its own farewell has not come; we don't wait for it.
        self._write_out()
        if self._transport.can_write_eof() and not self._transport.is_closing():
            try:
                self._transport.write_eof()
                return
            except OSError:
                pass  # The client has gone already, by a reset that asyncio has not told us of yet.
        self._transport.close()

    # --- What comes in -----------------------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return the buffer that all connections share: it is read out before anyone else gets it."""
        return self._server.read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Decrypt, and hand over to the gate."""
        if self._ended or self._tls is None or self._incoming is None:
            return
        self.last_seen_at = self._server.now()
        self._incoming.write(self._server.read_buffer[:nbytes])
        try:
            if self._gate is None:
                self._handshake(self._tls)
            else:
                self._read(self._tls, self._gate)
        except ssl.SSLWantReadError:
            pass
        except ViolationError as exc:
            self._refuse(exc.kind, exc.reason, exc.reply)
        except RefusedError as exc:
            self._refuse("certificate", exc.reason)
        except ssl.SSLError as exc:
            self._write_out()  # The alert that tells the peer why.
            self._refuse("tls", describe_tls_error(exc))
        if not self._ended:
            self._write_out()

    def eof_received(self) -> None:
        """Let the transport close itself."""

    def _handshake(self, tls: ssl.SSLObject) -> None:
        tls.do_handshake()
        encoded = tls.getpeercert(binary_form=True)
        if encoded is None:
            raise RefusedError("certificate", "no certificate was sent")
        try:
            certificate = x509.load_der_x509_certificate(encoded)
            holder = principal_of(certificate)
            self._server.tls.check(certificate)
        except ValueError as exc:
            raise RefusedError("certificate", f"cannot be read: {exc}") from exc
        self.certificate_id = certificate_id(certificate)
        self._gate = Gate(holder, self._server.sessions, self)
        self._read(tls, self._gate)

    def _read(self, tls: ssl.SSLObject, gate: Gate) -> None:
        while not self._ended:
            data = tls.read(_RECORD_BYTES)
            if not data:  # TLS's farewell without a DISCONNECT.
                self._end(clean=False)
                self._close()
                return
            if not gate.receive(data):
                self._end(clean=True)
                self._close()
                return

    # --- What goes out -----------------------------------------------------------------------------------------------

    def send(self, packet: bytes) -> None:
        """Send a packet at the end of this turn of the loop, in order. One who is too far behind is disconnected."""
        if self._ended or self._doomed:
            return
        self._queue.append(packet)
        self._queued_bytes += len(packet)
        if not self._dirty:
            self._dirty = True
            self._server.flush_later(self)
        if self._queued_bytes >= limits.WRITE_BUFFER_BYTES and not self._paused:
            self._send_waiting()
        elif self._queued_bytes > limits.SUBSCRIBER_QUEUE_MAX_BYTES or len(self._queue) > limits.SUBSCRIBER_QUEUE_MAX:
            self._doom(f"{len(self._queue)} messages behind")

    def replay(self, topics: list[str]) -> None:
        """Send the retained messages of these topics as the client takes them, each as it is at that moment."""
        if self._replay is None:
            self._replay = OrderedDict()
        self._replay.update(OrderedDict.fromkeys(topics))
        if not self._dirty:
            self._dirty = True
            self._server.flush_later(self)

    def flush(self) -> None:
        """Send what has come together, and one portion of what is replayed."""
        self._dirty = False
        if self._ended:
            return
        self._send_waiting()
        if self._replay and not self._paused:
            self._take_from_replay(self._replay)
            self._replay = self._replay or None
            self._send_waiting()
            self._dirty = True
            self._server.flush_later(self)

    def pause_writing(self) -> None:
        """Note that the peer does not keep up for now: messages wait in the queue."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        self.flush()

    def _take_from_replay(self, replay: OrderedDict[str, None]) -> None:
        size = 0
        while replay and size < limits.WRITE_BUFFER_BYTES:
            packet = self._server.engine.retained_packet(replay.popitem(last=False)[0])
            if packet is not None:
                self._queue.append(packet)
                size += len(packet)
        self._queued_bytes += size

    def _send_waiting(self) -> None:
        """Encrypt and write the queue, portion by portion, until it is empty or the peer does not keep up."""
        queue = self._queue
        while queue and not self._paused and self._tls is not None:
            if self._queued_bytes <= limits.WRITE_BUFFER_BYTES:
                portion = queue[0] if len(queue) == 1 else b"".join(queue)
                queue.clear()
                self._queued_bytes = 0
            else:
                count, size = 0, 0
                while count < len(queue) and size < limits.WRITE_BUFFER_BYTES:
                    size += len(queue[count])
                    count += 1
                portion = b"".join(queue[:count])
                del queue[:count]
                self._queued_bytes -= size
            try:
                written = self._tls.write(portion)
                while written < len(portion):
                    written += self._tls.write(memoryview(portion)[written:])
            except ssl.SSLError as exc:
                self._doom(describe_tls_error(exc))
                return
            self._write_out()

    def _doom(self, reason: str) -> None:
        """Cut the connection after this step: whoever is sending just now must not meet the end of a session in it."""
        self._doomed = True
        self._queue.clear()
        self._server.expel_later(self, "too-slow", reason)

    def _write_out(self) -> None:
        if self._transport is not None and self._outgoing is not None and self._outgoing.pending:
            self._transport.write(self._outgoing.read())


def _let_the_system_probe(transport: asyncio.BaseTransport) -> None:
    """Have TCP itself find a dead peer: a client may set MQTT's keep alive to 0, which is none (3.1.2.10)."""
    plain = transport.get_extra_info("socket")
    if plain is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
            if hasattr(socket, option):
                plain.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), limits.TCP_PROBE_S)
