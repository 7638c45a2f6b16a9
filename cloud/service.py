"""The cloud service: a session with the cloud broker, the ingest machine, and the database, wired together."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from random import SystemRandom
from typing import Final

from broker import client
from broker.backoff import Backoff
from broker.client import Session, SessionOptions
from broker.clock import unix_ms
from broker.messages import encode
from broker.process import StatusFile
from broker.runner import Runner, monotonic_s
from broker.tls import client_context
from broker.topics import connector_filter, hub_filter
from cloud.api_server import ApiServer
from cloud.batch import Batch
from cloud.database import Database
from cloud.ingest import (
    Acknowledge,
    Arrived,
    Command,
    Connected,
    Disconnected,
    Event,
    Heard,
    Ingest,
    NewestRead,
    PublishLast,
    Stopping,
    Store,
    Stored,
    StoreFailed,
)
from cloud.operations import Operations
from cloud.schema import database_file
from cloud.service_desk import ServiceDesk
from cloud.tokens import Tokens, first_tokens
from cloud.verification import verify_connections
from config import limits, log
from config.errors import SettingsError
from config.principal import CLOUD_SITE, server_name
from config.settings import CloudSettings

_log: Final = log.get(__name__)

UP_QOS: Final = 0
"""What hubs send is repeated until it is acknowledged end to end: another acknowledgement on this hop would only cost."""

STATE_QOS: Final = 1


class Service:
    """The cloud service in the running event loop. Raises SettingsError for what a person must mend before it can run."""

    def __init__(self, settings: CloudSettings):
        self.settings: Final = settings
        identity, data_dir = settings.identity, settings.cloud.data_dir
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            problem = f"can't be made: {exc.strerror}"
            raise SettingsError(problem, key="cloud.data_dir", value=str(data_dir)) from exc
        self._server_name: Final = server_name(identity.fleet, CLOUD_SITE)
        client_context(identity, self._server_name)  # Whoever starts with unusable files is told so at once.
        self._database: Final = Database(database_file(settings.cloud.database), identity.fleet)
        self._ingest: Final = Ingest(identity.fleet, SystemRandom())
        self._runner: Final[Runner[Event, Command]] = Runner(self._ingest, self._execute)
        self._status: Final = StatusFile(data_dir / "status.json", self._describe, in_thread=True)
        self._operations: Final = Operations(settings, self._database, self._publish)
        self._desk: Final = ServiceDesk(self._operations, self._database, self._describe)
        self._api: ApiServer | None = None
        self._idle: Final = asyncio.Event()
        self._session: Session | None = None
        self._opened_at: float | None = None
        self._failures = 0
        self._reason: str | None = None
        self._dropped = 0
        self._stopping = False
        self._tasks: asyncio.TaskGroup | None = None
        self._running: Final[set[asyncio.Task[None]]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Store and acknowledge until `stop` is set; then commit what has come, acknowledge it, and disconnect."""
        try:
            await self._database.open()
            if self.settings.api.enabled:
                self._api = self._make_api()
            _log.info("cloud_started", cloud=self.settings.identity.name, messages=self._database.totals.messages)
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                for work in (self._operations.run(), self._connect(), self._prune(), self._status.keep()):
                    self._start(work)
                if self._api is not None:
                    self._start(self._api.run())
                if (every_h := self.settings.presence.verify_h) > 0:
                    self._start(verify_connections(self._operations, self._desk, every_h))
                await stop.wait()
                if self._api is not None:
                    self._api.close()
                await self._drain()
                await self._operations.close()
                for task in list(self._running):
                    task.cancel()
        finally:
            self._stopping = True
            self._runner.close()
            await self._database.close()
            if self._session is not None:
                await self._session.close()
            self._opened_at = None
            self._status.write()
        _log.info("cloud_stopped", cloud=self.settings.identity.name, messages=self._database.totals.messages)

    async def _drain(self) -> None:
        self._runner.feed(Stopping())
        if not self._ingest.idle:
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), limits.STOP_DRAIN_S)
            except TimeoutError:
                _log.warning("stopped_before_all_was_stored", waiting=self._ingest.waiting)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        assert self._tasks is not None
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    # --- The database -----------------------------------------------------------------------------------------------

    async def _commit(self, batch: Batch) -> None:
        outcome = await self._database.commit(batch)
        if outcome is not None:
            self._operations.committed(batch, outcome)
        self._runner.feed(StoreFailed() if outcome is None else Stored(outcome))
        if self._ingest.idle:
            self._idle.set()

    async def _prune(self) -> None:
        while True:
            deleted = 0
            while some := await self._database.prune(self.settings.retention):
                deleted += some
            if deleted:
                _log.info("retention_deleted", rows=deleted)
            await asyncio.sleep(limits.RETENTION_INTERVAL_S)

    def _execute(self, command: Command) -> None:
        match command:
            case Store(batch):
                self._start(self._commit(batch))
            case Acknowledge(topic, ack):
                self._publish(topic, encode(ack), 0, False)
            case PublishLast(topic, last):
                self._publish(topic, encode(last), 0, True)
            case Heard():
                self._operations.heard(command)

    # --- The API ----------------------------------------------------------------------------------------------------

    def _make_api(self) -> ApiServer:
        from cloud.api import create_app  # FastAPI takes a while, and memory: only where it is wanted.

        tokens = Tokens(first_tokens(self.settings.api.tokens))
        return ApiServer(create_app(self._desk, tokens, self.settings), self.settings.api)

    # --- The broker -------------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        """Keep a session with the cloud broker, for ever."""
        backoff = Backoff(SystemRandom())
        while True:
            reason = await self._one_session()
            now = monotonic_s()
            backoff.lived(0.0 if self._opened_at is None else now - self._opened_at)
            self._opened_at = None
            self._failures += 1
            write = _log.debug if reason == self._reason else _log.warning  # Another reason is news.
            self._reason = reason
            write("broker_unreachable", endpoint=self.settings.cloud.broker, reason=reason, failures=self._failures)
            self._runner.feed(Disconnected())
            self._operations.disconnected()
            self._status.changed()
            await asyncio.sleep(backoff.next_s())

    async def _one_session(self) -> str:
        """Open a session and return why it has ended."""
        identity = self.settings.identity
        try:
            tls = client_context(identity, self._server_name)
        except SettingsError as exc:
            return str(exc)
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        options = SessionOptions(self.settings.cloud.broker, identity.name, tls)
        self._session = Session(options, lambda event: self._on_session(event, ended))
        self._session.open()
        reason = await ended
        self._dropped += self._session.dropped
        self._session = None
        return reason

    def _on_session(self, event: client.SessionEvent, ended: asyncio.Future[str]) -> None:
        match event:
            case client.Received(topic, payload, retained):
                self._runner.feed(Arrived(topic, payload, unix_ms(), retained))
            case client.Opened():
                self._on_opened()
            case client.Refused(reason) | client.Lost(reason, _):
                if not ended.done():
                    ended.set_result(reason)
            case client.Closed():
                pass  # Only when we stop.

    def _on_opened(self) -> None:
        assert self._session is not None
        _log.info("broker_connected", endpoint=self.settings.cloud.broker, failures=self._failures)
        self._opened_at, self._failures, self._reason = monotonic_s(), 0, None
        fleet = self.settings.identity.fleet
        self._session.subscribe(
            [
                (hub_filter(fleet, "+", "+", "up"), UP_QOS),
                (hub_filter(fleet, "+", "+", "heartbeat"), STATE_QOS),
                (hub_filter(fleet, "+", "+", "poll"), STATE_QOS),
                (hub_filter(fleet, "+", "+", "state"), STATE_QOS),
                (connector_filter(fleet, "+"), STATE_QOS),
            ]
        )
        self._runner.feed(Connected())
        self._operations.connected()
        if not self._stopping:  # A broker that was restarted has forgotten its retained messages.
            self._start(self._database.newest(lambda page: self._runner.feed(NewestRead(page))))
        self._status.changed()

    def _publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        if self._session is not None:
            self._session.publish(topic, payload, qos=qos, retain=retain)

    # --- Status -----------------------------------------------------------------------------------------------------

    def _describe(self) -> dict[str, object]:
        totals, counts = self._database.totals, self._ingest.counts
        return {
            "role": "cloud",
            "cloud": self.settings.identity.name,
            "fleet": self.settings.identity.fleet,
            "pid": os.getpid(),
            "ts": unix_ms(),
            "broker": "down" if self._opened_at is None else "up",
            "broker_failure": self._reason,
            "storage": self._database.state,
            "stored_messages": totals.messages,
            "stored_points": totals.points,
            "duplicates_refused": totals.duplicates,
            "quarantined": totals.quarantined,
            "refused": counts.refused,
            "unknown_kinds": counts.unknown,
            "dropped": counts.dropped + self._dropped + (self._session.dropped if self._session else 0),
            "waiting": self._ingest.waiting,
        }
