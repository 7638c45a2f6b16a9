"""The embedded broker: amqtt behind our own TLS listener and gate, for a site or, as the embedded default, for the cloud.

It keeps nothing that matters: whatever it loses by a crash is sent again, end to end. What it promises is that nobody
reads or writes past the rights of a certificate, and that no client, slow, silent or hostile, takes it from the others.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections import deque

from broker.admission import Admission
from broker.clock import unix_ms
from broker.connection import Connection
from broker.embedded import Engine
from broker.gate import Sessions
from broker.process import StatusFile
from broker.refusals import Refusals
from broker.runner import monotonic_s
from broker.tls import ServerContext
from config import limits, log
from config.endpoint import join_endpoint, split_endpoint
from config.errors import SettingsError
from config.settings import BrokerSettings


class Server:
    """One broker. Make it inside the event loop that it runs in. Raises SettingsError for certificates that don't work."""

    def __init__(self, settings: BrokerSettings):
        identity = settings.identity
        self.settings = settings
        self.listen: list[str] = []
        self.tls = ServerContext(identity, settings.broker.crl)
        self.engine = Engine()
        self.sessions = Sessions(self.engine, identity.fleet, identity.site)
        self.refusals = Refusals()
        self.read_buffer = memoryview(bytearray(limits.READ_BUFFER_BYTES))
        self._loop = asyncio.get_running_loop()
        self.now = monotonic_s
        self._admission = Admission(settings.broker.handshakes_per_s, self.now())
        self._waiting: deque[Connection] = deque()
        self._waiting_max = min(
            limits.HANDSHAKES_WAITING_MAX, int(settings.broker.handshakes_per_s * limits.HANDSHAKE_WAIT_S) + 1
        )
        self._admission_timer: asyncio.TimerHandle | None = None
        self._connections: set[Connection] = set()
        self._connections_accepted = 0
        self._to_flush: list[Connection] = []
        self._to_expel: dict[Connection, tuple[str, str]] = {}
        self._listeners: list[asyncio.Server] = []
        self._watchers: list[asyncio.Task[None]] = []
        self._none_left = asyncio.Event()
        self._stopped = False
        self._status = StatusFile(settings.broker.data_dir / "status.json", self._describe, in_thread=True)
        self._log = log.get(__name__)

    # --- Its life --------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. Raises SettingsError if it cannot start."""
        await self.start()
        stopping = asyncio.ensure_future(stop.wait())
        try:
            done, _ = await asyncio.wait([stopping, *self._watchers], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            await self.stop()
        for watcher in done - {stopping}:
            watcher.result()  # A watcher never ends but by a bug of ours: then its exception ends the process.

    async def start(self) -> None:
        """Listen on every endpoint; `listen` then holds the true ones. Raises SettingsError."""
        for name in ("amqtt", "transitions"):
            logging.getLogger(name).setLevel(logging.WARNING)
        _allow_open_files()
        _make_folder(self.settings)
        await self.engine.start()
        try:
            for endpoint in self.settings.broker.listen:
                await self._listen_on(endpoint)
        except SettingsError:
            await self.stop()
            raise
        self._watchers = [
            asyncio.create_task(self._watch_connections(), name="connections"),
            asyncio.create_task(self._watch_certificates(), name="certificates"),
            asyncio.create_task(self._status.keep(), name="status"),
        ]
        identity = self.settings.identity
        self._log.info("broker_started", fleet=identity.fleet, site=identity.site, listen=self.listen)

    async def stop(self) -> None:
        """Close every session in good order, and all within CLOSE_TIMEOUT_S. Twice is once."""
        if self._stopped:
            return
        self._stopped = True
        for listener in self._listeners:
            listener.close()
        if self._admission_timer is not None:
            self._admission_timer.cancel()
        self._waiting.clear()
        for connection in list(self._connections):
            connection.close()
        if self._connections:
            self._none_left.clear()
            try:
                async with asyncio.timeout(limits.CLOSE_TIMEOUT_S):
                    await self._none_left.wait()
            except TimeoutError:
                for connection in list(self._connections):
                    connection.cut()
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await self.engine.shutdown()
        if self._watchers:  # Else it never got so far as to tell anybody that it was there.
            self.listen = []
            await asyncio.to_thread(self._status.write, self._describe())
            self._log.info("broker_stopped")

    async def _listen_on(self, endpoint: str) -> None:
        host, port = split_endpoint(endpoint)
        try:
            listener = await self._loop.create_server(
                lambda: Connection(self), host, port, backlog=limits.LISTEN_BACKLOG
            )
        except OSError as exc:
            reason = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else exc.strerror
            problem = f"cannot listen there: {str(reason or exc).lower()}"
            raise SettingsError(problem, key="broker.listen", value=endpoint) from exc
        self._listeners.append(listener)
        self.listen.extend(join_endpoint(*socket.getsockname()[:2]) for socket in listener.sockets)

    # --- For the connections ---------------------------------------------------------------------------------------

    def admit(self, connection: Connection) -> None:
        """Let a new connection begin its handshake, now or as soon as the rate allows, or turn it away."""
        self._connections_accepted += 1
        if len(self._connections) >= limits.CONNECTIONS_MAX:
            connection.expel("full", f"{limits.CONNECTIONS_MAX} connections are open")
            return
        self._connections.add(connection)
        if not self._waiting and self._admission.take(self.now()):
            connection.begin()
        elif len(self._waiting) >= self._waiting_max:
            connection.expel("busy", "too many handshakes at once")
        else:
            self._waiting.append(connection)
            self._wait_for_admission()

    def forget(self, connection: Connection) -> None:
        """Let go of a connection that is closed."""
        self._connections.discard(connection)
        if not self._connections:
            self._none_left.set()

    def flush_later(self, connection: Connection) -> None:
        """Flush a connection when all that has arrived by now is handled: what goes out to it then goes together."""
        self._to_flush.append(connection)
        if len(self._to_flush) == 1:
            self._loop.call_soon(self._flush)

    def expel_later(self, connection: Connection, kind: str, reason: str) -> None:
        """Cut a connection, but not within what is being done now."""
        self._to_expel[connection] = (kind, reason)
        if len(self._to_expel) == 1:
            self._loop.call_soon(self._expel)

    def _flush(self) -> None:
        connections, self._to_flush = self._to_flush, []
        for connection in connections:
            connection.flush()

    def _expel(self) -> None:
        connections, self._to_expel = self._to_expel, {}
        for connection, (kind, reason) in connections.items():
            connection.expel(kind, reason)

    def _wait_for_admission(self) -> None:
        if self._admission_timer is None and self._waiting:
            self._admission_timer = self._loop.call_later(self._admission.wait_s(self.now()), self._admit_waiting)

    def _admit_waiting(self) -> None:
        self._admission_timer = None
        while self._waiting and self._admission.take(self.now()):
            while self._waiting and not self._waiting.popleft().begin():
                pass  # That one has gone; its turn is the next one's.
        self._wait_for_admission()

    # --- What it looks after ---------------------------------------------------------------------------------------

    async def _watch_connections(self) -> None:
        """Cut whoever is over its time. If this process itself was held up, nobody is blamed for it."""
        while True:
            due = self.now() + limits.CONNECTIONS_CHECK_S
            await asyncio.sleep(limits.CONNECTIONS_CHECK_S)
            now = self.now()
            late_s = now - due
            for connection in list(self._connections):
                if late_s > limits.CONNECTIONS_CHECK_S:
                    connection.excuse(late_s)
                connection.check_time(now)
            self.refusals.end_streaks(now)

    async def _watch_certificates(self) -> None:
        """Use new certificate files as soon as they are there, and close the sessions of revoked certificates."""
        while True:
            await asyncio.sleep(limits.CERTIFICATES_CHECK_S)
            try:
                changed = await asyncio.to_thread(self.tls.reload_if_changed)
            except SettingsError as exc:
                self._log.warning("certificates_not_reloaded", reason=str(exc))
                continue
            if changed:
                self._log.info("certificates_reloaded")
                for connection in list(self._connections):
                    if connection.certificate_id is not None and self.tls.is_revoked(connection.certificate_id):
                        connection.expel("revoked", "its certificate has been revoked")

    def _describe(self) -> dict[str, object]:
        engine = self.engine
        return {
            "role": "broker",
            "pid": os.getpid(),
            "ts": unix_ms(),
            "listen": list(self.listen),
            "sessions": len(self.sessions),
            "counters": {
                "connections": len(self._connections),
                "connections_accepted": self._connections_accepted,
                "sessions_opened": engine.sessions_opened,
                "messages_in": engine.messages_in,
                "messages_out": engine.messages_out,
                "wills": engine.wills,
                "retained": engine.retained_count,
                "not_retained": engine.not_retained,
                "refused": dict(self.refusals.by_kind),
                "refused_by_client": self.refusals.by_client(),
            },
        }


def _make_folder(settings: BrokerSettings) -> None:
    folder = settings.broker.data_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise SettingsError(f"cannot be made: {exc.strerror}", key="broker.data_dir", value=str(folder)) from exc


def _allow_open_files() -> None:
    """Raise this process's own limit of open files as far as the system lets it: each connection is one."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.CONNECTIONS_MAX + 100
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
