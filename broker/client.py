"""One MQTT-TLS session on paho-mqtt: packets become events in the event loop, calls become packets.

A session is used once: it opens, carries messages, and ends with exactly one `Refused`, `Lost` or `Closed`. Whoever
wants another makes a new one; when to do so is for a machine to decide. Paho runs in a thread of its own, which works
with every event loop of every system; nothing of ours runs there but what turns packets into events.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import paho.mqtt.client as paho
import structlog
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from broker.proxy import Proxy, tunnel
from broker.runner import monotonic_s
from broker.tls import ALPN, NamedContext, describe_tls_error
from config import limits
from config.endpoint import split_endpoint
from config.errors import RefusedError, TransportError

HTTPS_PORT: Final = 443
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Opened:
    """The broker has accepted the session."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The session never opened because one side said no: certificates, names or rights must change first."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The session could not be opened or has broken.

    `alive_at` is when the peer was last known to live (monotonic), or None if never: for a connection that the peer's
    system has closed, the moment of the close; for a silent one, the arrival of the last bytes.
    """

    reason: str
    alive_at: float | None


@dataclass(frozen=True, slots=True)
class Closed:
    """We have closed the session ourselves."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message of one of the subscriptions. `retain` says that it was waiting at the broker when we subscribed."""

    topic: str
    payload: bytes
    retain: bool


SessionEvent: TypeAlias = Opened | Refused | Lost | Closed | Received


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes, retained, if the session ends without a clean DISCONNECT (MQTT 3.1.1, 3.1.2.5)."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Where to connect, as whom, and with what last will.

    `tls` verifies the peer's name, whatever the address; it is a context of this session's own. On port 443 it offers
    ALPN. With a `proxy` the connection goes through it.
    """

    endpoint: str
    client_id: str
    tls: NamedContext
    will: Will | None = None
    proxy: Proxy | None = None
    keep_alive_s: int = limits.KEEP_ALIVE_S


class Session:
    """One MQTT 3.1.1 session with a clean session state. All methods are to be called in the event loop."""

    def __init__(self, options: SessionOptions, report: Callable[[SessionEvent], None]):
        self.options = options
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._client = self._make_client()
        self._thread = threading.Thread(target=self._run, name=f"mqtt {options.client_id}", daemon=True)
        self._inbox: deque[SessionEvent] = deque()
        self._inbox_lock = threading.Lock()
        self._ended = asyncio.Event()
        self._opened = False
        self._closing = False
        self._over = False
        self._published = 0  # Counted in the event loop,
        self._acknowledged = 0  # and in paho's thread: two counters need no lock.
        self._alive_at: float | None = None
        self._tls_error: ssl.SSLError | None = None
        self._socket: socket.socket | None = None
        self.dropped = 0

    @property
    def in_flight(self) -> int:
        """Return how many publishes wait: at QoS 1 for their PUBACK, at QoS 0 to be written."""
        return self._published - self._acknowledged

    def open(self) -> None:
        """Begin to connect; `Opened`, `Refused` or `Lost` follows within CONNECT_TIMEOUT_S."""
        self._thread.start()
        self._loop.call_later(limits.CONNECT_TIMEOUT_S, self._give_up)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Send a message and tell whether it was taken: only while the session is open, and up to SESSION_IN_FLIGHT_MAX.

        There is no promise of delivery; what must arrive is acknowledged end to end.
        """
        if not self._opened or self._over or self.in_flight >= limits.SESSION_IN_FLIGHT_MAX:
            self.dropped += 1
            return False
        self._published += 1
        self._client.publish(topic, payload, qos, retain)
        return True

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe to topic filters, each with its QoS. Retained messages that match are received again each time."""
        if self._opened and not self._over:
            self._client.subscribe(list(filters))

    async def close(self) -> None:
        """Send a clean DISCONNECT, so that the broker drops the will, and wait until the connection is gone."""
        self._closing = True
        if self._thread.is_alive():
            self._client.disconnect()
            try:
                await asyncio.wait_for(self._ended.wait(), limits.CLOSE_TIMEOUT_S)
            except TimeoutError:
                self._abort()
        self._finish(Closed())

    def abort(self) -> None:
        """End the session without a word, as a crash would: the broker publishes the will. `Lost` is reported."""
        self._abort()
        self._finish(Lost("aborted", self._alive_at))

    # --- In the event loop ------------------------------------------------------------------------------------------

    def _give_up(self) -> None:
        if not self._opened and not self._over and not self._closing:
            self._abort()
            self._finish(Lost(f"no answer within {limits.CONNECT_TIMEOUT_S:g} s", None))

    def _finish(self, event: SessionEvent) -> None:
        if not self._over:
            self._over = True
            self._report(event)

    def _abort(self) -> None:
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)  # Wakes the thread; it closes the socket.
            except OSError:
                pass  # Already gone.

    def _drain(self) -> None:
        with self._inbox_lock:
            events, self._inbox = self._inbox, deque()
        while events and not self._over:
            event = events.popleft()
            try:
                match event:
                    case Opened():
                        self._opened = True
                        self._report(event)
                    case Received():
                        self._report(event)
                    case _:
                        self._finish(event)
            except (
                BaseException
            ):  # A fault of our user's, which ends the process; until then nothing of the rest is lost.
                with self._inbox_lock:
                    self._inbox.extendleft(reversed(events))
                self._loop.call_soon(self._drain)
                raise

    # --- In paho's thread -------------------------------------------------------------------------------------------

    def _make_client(self) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self.options.client_id,
            clean_session=True,
            protocol=paho.MQTTv311,
            reconnect_on_failure=False,
        )
        self.options.tls.sslsocket_class = _watched_socket_class(self)
        if split_endpoint(self.options.endpoint)[1] == HTTPS_PORT:
            self.options.tls.set_alpn_protocols(ALPN)
        if self.options.proxy is not None:
            self.options.tls.before_handshake = self._tunnel
        client.tls_set_context(self.options.tls)
        if self.options.will is not None:
            client.will_set(self.options.will.topic, self.options.will.payload, qos=1, retain=True)
        client.connect_timeout = limits.CONNECT_TIMEOUT_S + limits.CLOSE_TIMEOUT_S  # Ours comes first, and says so.
        client.max_inflight_messages_set(0)  # Bounded above: paho's own queue would hide what waits.
        client.on_socket_register_write = _leave_it_to_the_thread
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        return client

    def _run(self) -> None:
        proxy = self.options.proxy
        host, port = split_endpoint(self.options.endpoint) if proxy is None else (proxy.host, proxy.port)
        try:
            self._client.connect(host, port, self.options.keep_alive_s)
            if self._closing:
                self._client.disconnect()
            while self._client.loop(timeout=1.0) == MQTTErrorCode.MQTT_ERR_SUCCESS:
                pass
        except ssl.SSLCertVerificationError as exc:
            self._put(Refused(describe_tls_error(exc)))
        except ssl.SSLError as exc:
            self._put(Refused(describe_tls_error(exc)) if exc.reason else Lost(str(exc), None))
        except RefusedError as exc:
            self._put(Refused(str(exc)))
        except TransportError as exc:
            self._put(Lost(str(exc), None))
        except (OSError, ValueError) as exc:
            at_proxy = proxy is not None and not isinstance(self._socket, ssl.SSLSocket)
            self._put(Lost(f"proxy {proxy}: {_plain(exc)}" if at_proxy else _plain(exc), self._alive_at))
        except Exception:
            log.exception("mqtt_thread_failed")
            self._put(Lost("internal error", self._alive_at))
        finally:
            if self._socket is not None:
                self._socket.close()  # Paho leaves it open where the handshake failed.
            self._put(Lost("connection ended", self._alive_at))
            try:
                self._loop.call_soon_threadsafe(self._ended.set)
            except RuntimeError:
                pass  # The loop has closed before us: nobody waits.

    def _tunnel(self, sock: socket.socket) -> None:
        assert self.options.proxy is not None
        self._socket = sock  # A silent proxy may hold us: then this wakes the thread.
        tunnel(sock, self.options.proxy, self.options.endpoint)

    def _on_connect(
        self,
        _client: paho.Client,
        _userdata: object,
        _flags: paho.ConnectFlags,
        reason: ReasonCode,
        _props: Properties | None,
    ) -> None:
        self._alive_at = monotonic_s()
        self._put(Refused(f"the broker says: {reason}") if reason.is_failure else Opened())

    def _on_disconnect(
        self,
        _client: paho.Client,
        _userdata: object,
        _flags: paho.DisconnectFlags,
        reason: ReasonCode,
        _props: Properties | None,
    ) -> None:
        if self._closing:
            self._put(Closed())
        elif self._tls_error is not None:
            self._put(Refused(describe_tls_error(self._tls_error)))
        else:
            silent = str(reason) == "Keep alive timeout"
            if not silent:
                self._alive_at = monotonic_s()
            self._put(
                Lost("no life sign from the broker" if silent else "the broker closed the connection", self._alive_at)
            )

    def _on_message(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        self._put(Received(message.topic, bytes(message.payload), message.retain))

    def _on_publish(
        self, _client: paho.Client, _userdata: object, _mid: int, _reason: ReasonCode, _props: Properties | None
    ) -> None:
        self._acknowledged += 1

    def _put(self, event: SessionEvent) -> None:
        with self._inbox_lock:
            if len(self._inbox) >= limits.INBOX_MAX and isinstance(event, Received):
                self.dropped += 1
                return
            self._inbox.append(event)
            wake = len(self._inbox) == 1
        if wake:
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:
                pass  # The loop has closed: nobody listens any more.


def _watched_socket_class(session: Session) -> type[ssl.SSLSocket]:
    """Return a socket class that notes when bytes arrive, and with which alert a TLS 1.3 server refuses a certificate.

    That alert comes after the client's handshake is done (RFC 8446, 4.4.4), where paho turns it into a mere loss.
    """

    class WatchedSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            session._socket = self  # Paho hands it out only after this, when a silent peer may already hold us.
            super().do_handshake(block)

        def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
            try:
                received = super().recv(buflen, flags)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as exc:
                if exc.reason and "ALERT" in exc.reason:
                    session._tls_error = exc
                raise
            session._alive_at = monotonic_s()
            return received

    return WatchedSocket


def _leave_it_to_the_thread(_client: paho.Client, _userdata: object, _socket: object) -> None:
    """Keep paho from writing in the caller's thread: OpenSSL connections are not safe in two threads at once."""


def _plain(exc: OSError | ValueError) -> str:
    """Return what the system says, without its error numbers."""
    return (getattr(exc, "strerror", None) or str(exc) or type(exc).__name__).lower()
