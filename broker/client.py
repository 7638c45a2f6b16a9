"""One MQTT-TLS session on paho-mqtt: packets become events in the event loop, calls become packets.

A session is used once: it opens, carries messages, and ends with exactly one `Refused`, `Lost` or `Closed`. Whoever
wants another makes a new one; when to do so is for a machine to decide. A thread connects, which may block; then the event loop
reads and writes, or that thread, where the loop can't watch a socket. Messages pass beside paho (`broker.client_stream`).
"""

from __future__ import annotations

import asyncio
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import structlog
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from broker.client_dial import HTTPS_PORT, Dial
from broker.client_events import Closed, Granted, Lost, Opened, Received, Refused, SessionEvent, SessionOptions, Will
from broker.client_states import States
from broker.client_stream import TICK_S, ClientStream
from broker.paho_client import paho
from broker.runner import monotonic_s
from broker.tls import describe_tls_error
from config import limits
from config.errors import RefusedError, TransportError

__all__ = [
    "HTTPS_PORT",
    "Closed",
    "Lost",
    "Opened",
    "Received",
    "Refused",
    "Session",
    "SessionEvent",
    "SessionOptions",
    "Will",
]

_PACKETS_PER_TURN: Final = 64
"""Of paho's own packets, in a row."""
log = structlog.get_logger(__name__)


class Session:
    """One MQTT session (3.1.1, or 5) with a clean session state. All methods are to be called in the event loop."""

    def __init__(self, options: SessionOptions, report: Callable[[SessionEvent], None]):
        self.options = options
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._stream = ClientStream(self, own_packets=not options.mqtt5)
        self._dial = Dial(options, self._stream)
        self._client = self._dial.client
        self._states = States(options.ask_again_s)
        self._asking_again: asyncio.TimerHandle | None = None
        self._set_callbacks()
        self._thread = threading.Thread(target=self._connect, name=f"mqtt {options.client_id}", daemon=True)
        self._in_loop = isinstance(self._loop, asyncio.SelectorEventLoop) and not options.in_thread
        self._begun = False
        self._attached = False  # Reading and writing, in the event loop.
        self._pumping = False  # Or in the thread, which closes the socket when it likes.
        self._reading_on = False
        self._tick: asyncio.TimerHandle | None = None
        self._flushing = False
        self._writing = False
        self._wake_reader: socket.socket | None = None
        self._wake_writer: socket.socket | None = None
        self._inbox: deque[SessionEvent | Granted] = deque()
        self._inbox_lock = threading.Lock()
        self._ended = asyncio.Event()
        self._opened = False
        self._closing = False
        self._over = False
        self._published = 0  # Counted in the event loop,
        self._acknowledged = 0  # and where the stream is read: two counters need no lock.
        self._socket_lock = threading.Lock()  # What the thread has closed may be another session's by now.
        self.dropped = 0

    @property
    def in_flight(self) -> int:
        """Return how many publishes wait: at QoS 1 for their PUBACK, at QoS 0 to be written."""
        return self._published - self._acknowledged

    def open(self) -> None:
        """Begin to connect; `Opened`, `Refused` or `Lost` follows within CONNECT_TIMEOUT_S."""
        if self._over:
            return
        if not self._in_loop:
            self._wake_reader, self._wake_writer = socket.socketpair()
            self._wake_writer.setblocking(False)
        self._begun = True
        self._thread.start()
        self._loop.call_later(limits.CONNECT_TIMEOUT_S, self._give_up)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> bool:
        """Send a message and tell whether it was taken: only while the session is open, and up to SESSION_IN_FLIGHT_MAX.

        There is no promise of delivery; what must arrive is acknowledged end to end.
        """
        if not self._usable or self.in_flight >= limits.SESSION_IN_FLIGHT_MAX:
            self.dropped += 1
            return False
        self._published += 1
        if self.options.mqtt5:
            self._client.publish(topic, payload, qos, retain)
        else:
            self._stream.publish(topic, payload, qos, retain=retain)
            self._wake()
        return True

    def subscribe(self, filters: Sequence[tuple[str, int]]) -> None:
        """Subscribe to topic filters, each with its QoS. Retained messages that match are received again each time.

        What asks for states alone is asked for again later, so that no state is missed (`broker.client_states`).
        """
        if self._usable:
            self._states.asked(self._ask_for(filters), filters)

    def unsubscribe(self, topic_filters: Sequence[str]) -> None:
        """End subscriptions; what is on its way may still come."""
        if self._usable:
            self._states.left(topic_filters)
            self._client.unsubscribe(list(topic_filters))
            self._line_up()

    async def close(self) -> None:
        """Send a clean DISCONNECT, so that the broker drops the will, and wait until the connection is gone."""
        self._closing = True
        if self._begun and not self._ended.is_set():
            self._client.disconnect()
            try:
                async with asyncio.timeout(limits.CLOSE_TIMEOUT_S):
                    await self._ended.wait()
            except TimeoutError:
                self._abort()
        self._finish(Closed())

    def abort(self) -> None:
        """End the session without a word, as a crash would: the broker publishes the will. `Lost` is reported."""
        self._abort()
        self._finish(Lost("aborted", self._stream.alive_at))

    # --- In the event loop ------------------------------------------------------------------------------------------

    def _ask_for(self, filters: Sequence[tuple[str, int]]) -> int:
        """Subscribe, and return the packet id."""
        _, packet_id = self._client.subscribe(list(filters))
        self._line_up()
        return packet_id or 0

    def _granted(self, packet_id: int) -> None:
        if (wait_s := self._states.granted(packet_id)) is not None:
            self._plan_to_ask_again(wait_s)

    def _plan_to_ask_again(self, wait_s: float) -> None:
        if self._asking_again is not None:
            self._asking_again.cancel()
        self._asking_again = self._loop.call_later(wait_s, self._ask_again)

    def _ask_again(self) -> None:
        filters, wait_s = self._states.ask_again()
        if self._usable and filters:
            self._ask_for(filters)
            if wait_s is not None:
                self._plan_to_ask_again(wait_s)

    def _give_up(self) -> None:
        if not self._opened and not self._over and not self._closing:
            self._abort()
            self._finish(Lost(f"no answer within {limits.CONNECT_TIMEOUT_S:g} s", None))

    @property
    def _usable(self) -> bool:
        return self._opened and not self._over and not self._closing

    def _line_up(self) -> None:
        """Have paho's packet written before whatever is published from now on: an answer may come at once."""
        if not self.options.mqtt5:  # There paho has a line of its own.
            self._client.loop_write()

    def _finish(self, event: SessionEvent) -> None:
        """Report the end once; whatever ends a session that we are closing, it is closed."""
        if not self._over:
            self._over = True
            if self._asking_again is not None:
                self._asking_again.cancel()
            self._report(Closed() if self._closing else event)

    def _abort(self) -> None:
        """End at once, or as soon as a system call lets the thread go."""
        self._dial.given_up = True
        if self._attached:
            self._end()
            return
        with self._socket_lock:
            if not self._pumping:
                self._dial.hang_up()
        self._wake()

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
                    case Received(topic, payload, retain):
                        if self._states.heard(topic, payload, retain):
                            self._report(event)
                    case Granted(packet_id):
                        self._granted(packet_id)
                    case _:
                        self._finish(event)
            except (
                BaseException
            ):  # A fault of our user's, which ends the process; until then nothing of the rest is lost.
                with self._inbox_lock:
                    self._inbox.extendleft(reversed(events))
                self._loop.call_soon(self._drain)
                raise

    # --- Reading and writing in the event loop ------------------------------------------------------------------------

    def _attach(self) -> None:
        """Go on in the event loop where the thread has connected."""
        sock = self._client.socket()
        if sock is None or self._over or self._closing or self._dial.given_up:
            self._end()
            return
        self._attached = True
        self._client.on_socket_close = self._detach
        self._loop.add_reader(sock, self._readable)
        self._tick = self._loop.call_later(TICK_S, self._look_after)
        self._flush()

    def _readable(self) -> None:
        if not self._read():
            self._end()
        elif self._stream.has_more and not self._reading_on:
            self._reading_on = True
            self._loop.call_soon(self._read_on)
        if self._stream.has_unsent:
            self._wake()
        self._drain()

    def _read_on(self) -> None:
        self._reading_on = False
        if self._attached:
            self._readable()

    def _wake(self) -> None:
        """Have what waits written soon, together with what else is about to come."""
        if self._wake_writer is not None:
            with self._socket_lock:
                try:
                    self._wake_writer.send(b".")
                except OSError:
                    pass  # It is awake, or has ended.
        elif self._attached and not self._flushing and not self._writing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if not self._attached:
            return
        waits = self._write()
        sock = self._client.socket()
        if sock is None:
            self._end()
        elif waits and not self._writing:
            self._loop.add_writer(sock, self._flush)
        elif self._writing and not waits:
            self._loop.remove_writer(sock)
        self._writing = waits
        self._drain()

    def _look_after(self) -> None:
        if self._lives():
            self._tick = self._loop.call_later(TICK_S, self._look_after)
            if self._stream.has_unsent:
                self._wake()
        else:
            self._end()
        self._drain()

    def _detach(self, _client: paho.Client, _userdata: object, sock: paho.SocketLike) -> None:
        """Let go of a socket that paho is about to close."""
        if self._attached and not self._loop.is_closed():
            self._loop.remove_reader(sock)
            self._loop.remove_writer(sock)

    def _end(self) -> None:
        if self._attached:
            self._attached = False
            sock = self._client.socket()
            if sock is not None:
                self._loop.remove_reader(sock)
                self._loop.remove_writer(sock)
        if self._tick is not None:
            self._tick.cancel()
        self._close_sockets()
        self._put(Lost("connection ended", self._stream.alive_at))
        self._ended.set()

    # --- Where the stream is read and written: in the event loop, or in a thread --------------------------------------

    def _read(self) -> bool:
        """Take what has come, and tell whether the connection stands."""
        try:
            for _ in range(_PACKETS_PER_TURN):
                if self._client.loop_read() != MQTTErrorCode.MQTT_ERR_SUCCESS or self._client.socket() is None:
                    return False
                if not self._stream.has_more:
                    break
        except Exception:  # Paho's parser trips over a packet that no broker should send.
            log.exception("mqtt_packet_unreadable", endpoint=self.options.endpoint)
            return False
        return True

    def _write(self) -> bool:
        """Write what waits, ours and paho's, and tell whether some of it still does, for a socket that takes more."""
        try:
            while True:
                if self._client.want_write():
                    self._client.loop_write()
                if not self._stream.has_unsent:
                    return False
                if not self._stream.flush():
                    return not self._stream.must_read
        except OSError:
            self._dial.hang_up()  # Whoever reads learns of the end, and what was to blame.
            return False

    def _lives(self) -> bool:
        """Keep the session alive, and tell whether the broker gives signs of life."""
        alive = self._stream.look_after(monotonic_s(), self._client.keepalive)
        if not alive:
            self._put(Lost("no life sign from the broker", self._stream.alive_at))
        return alive

    def received(self, topic: str, payload: bytes, retain: bool) -> None:
        """Take a message off the stream."""
        self._put(Received(topic, payload, retain))

    def settled(self, count: int) -> None:
        """Take note that publishes are acknowledged, or written."""
        self._acknowledged += count

    # --- In the thread ------------------------------------------------------------------------------------------------

    def _set_callbacks(self) -> None:
        client = self._client
        client.on_socket_register_write = self._on_register_write
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish

    def _connect(self) -> None:
        handed_over = False
        try:
            self._dial.connect()
            if self._in_loop:
                self._loop.call_soon_threadsafe(self._attach)
                handed_over = True
            elif not self._over and not self._closing:
                with self._socket_lock:
                    self._pumping = True
                self._pump()
        except (RefusedError, TransportError, OSError, ValueError) as exc:
            self._put(self._dial.failure(exc))
        except RuntimeError:
            pass  # The loop has closed before us: nobody listens any more.
        except Exception:
            log.exception("mqtt_thread_failed")
            self._put(Lost("internal error", self._stream.alive_at))
        finally:
            if not handed_over:
                self._close_sockets()
                self._put(Lost("connection ended", self._stream.alive_at))
                try:
                    self._loop.call_soon_threadsafe(self._ended.set)
                except RuntimeError:
                    pass  # The loop has closed before us: nobody waits.

    def _pump(self) -> None:
        """Read and write until the connection has ended: for event loops that can't watch a socket (Windows' default)."""
        sock, woken, dial = self._client.socket(), self._wake_reader, self._dial
        assert sock is not None
        assert woken is not None
        with selectors.DefaultSelector() as ready:
            ready.register(woken, selectors.EVENT_READ)
            ready.register(sock, selectors.EVENT_READ)
            while not dial.given_up and not self._loop.is_closed():
                writes = selectors.EVENT_WRITE if self._write() else 0
                if self._client.socket() is None:
                    return
                ready.modify(sock, selectors.EVENT_READ | writes)
                found = {key.fileobj for key, _ in ready.select(0.0 if self._stream.has_more else TICK_S)}
                if woken in found:
                    woken.recv(limits.CLIENT_READ_BYTES)
                if (sock in found or self._stream.has_more) and not self._read():
                    return
                if not self._lives():
                    return

    def _close_sockets(self) -> None:
        """Close what paho leaves open, and what a thread is woken by."""
        with self._socket_lock:
            for each in (self._dial.socket, self._wake_reader, self._wake_writer):
                if each is not None:
                    each.close()

    def _on_register_write(self, _client: paho.Client, _userdata: object, _sock: object) -> None:
        self._wake()

    def _on_connect(
        self,
        _client: paho.Client,
        _userdata: object,
        _flags: paho.ConnectFlags,
        reason: ReasonCode,
        _props: Properties | None,
    ) -> None:
        self._stream.alive_at = monotonic_s()
        self._put(Refused(f"the broker says: {reason}") if reason.is_failure else Opened())

    def _on_disconnect(
        self,
        _client: paho.Client,
        _userdata: object,
        _flags: paho.DisconnectFlags,
        reason: ReasonCode,
        _props: Properties | None,
    ) -> None:
        if self._dial.tls_error is not None:
            self._put(Refused(describe_tls_error(self._dial.tls_error)))
        else:
            self._stream.alive_at = monotonic_s()
            self._put(Lost("the broker closed the connection", self._stream.alive_at))

    def _on_message(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        self._put(Received(message.topic, bytes(message.payload), message.retain))

    def _on_subscribe(
        self,
        _client: paho.Client,
        _userdata: object,
        mid: int,
        reasons: list[ReasonCode],
        _props: Properties | None,
    ) -> None:
        if any(reason.is_failure for reason in reasons):  # A cluster that has just lost a node does so for seconds.
            self._put(Lost("the broker did not take a subscription", self._stream.alive_at))
            self._dial.hang_up()
        else:
            self._put(Granted(mid))

    def _on_publish(
        self, _client: paho.Client, _userdata: object, _mid: int, _reason: ReasonCode, _props: Properties | None
    ) -> None:
        self._acknowledged += 1

    def _put(self, event: SessionEvent | Granted) -> None:
        with self._inbox_lock:
            if len(self._inbox) >= limits.INBOX_MAX and isinstance(event, Received):
                self.dropped += 1
                return
            self._inbox.append(event)
            wake = len(self._inbox) == 1 and not self._attached  # Else whoever has read looks into it at once.
        if wake:
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:
                pass  # The loop has closed: nobody listens any more.
