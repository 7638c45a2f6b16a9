"""One connector: two sessions, the bridge between them (or the watch of the engine's), and its announcements, wired together."""

from __future__ import annotations

import asyncio
import os
from random import SystemRandom

import structlog

from broker import client, messages
from broker.client import Session, SessionOptions
from broker.clock import unix_ms
from broker.messages import ConnectorState
from broker.process import StatusFile, watched
from broker.proxy import proxy_for
from broker.runner import Runner
from broker.tls import client_context
from broker.topics import Topic
from config.endpoint import split_endpoint
from config.errors import SettingsError, StorageError
from config.principal import CLOUD_SITE, server_name
from config.settings import ConnectorSettings
from connector.announcing import Announcer
from connector.bridge import Announce, Bridge, Came, Command, Connect, Ended, Event, Forward, Opened, Side, Started
from connector.bridge import Subscribe as SubscribeTo
from connector.bridge_watch import Tell, Unsubscribe, Watch, WatchCommand
from connector.memory import Memory

log = structlog.get_logger(__name__)


class Agent:
    """A connector in the running event loop. Raises SettingsError, and StorageError where it can't keep its numbers."""

    def __init__(self, settings: ConnectorSettings):
        if not settings.cloud.endpoints:
            raise SettingsError('names no cloud broker; give at least one "host:port"', key="cloud.endpoints")
        self.settings = settings
        identity = settings.identity
        data_dir = settings.connector.data_dir
        try:
            data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise SettingsError(
                f"can't be made: {exc.strerror}", key="connector.data_dir", value=str(data_dir)
            ) from exc
        self._memory = Memory(data_dir / "connector.json", fallback_session=unix_ms())
        self._state_topic = str(Topic.connector_state(identity.fleet, identity.site, identity.name))
        self._client_id = self._memory.client_id(identity)
        self._bridge: Bridge | Watch
        self._runner: Runner[Event, Command] | Runner[Event, WatchCommand]
        if settings.connector.bridge == "engine":
            keep_alive_s = settings.connector.keep_alive_s
            self._bridge = watch = Watch(identity.fleet, identity.site, identity.name, SystemRandom(), keep_alive_s)
            self._runner = Runner(watch, self._execute)
        else:
            self._bridge = bridge = Bridge(
                identity.fleet, identity.site, SystemRandom(), nodes=len(settings.cloud.endpoints)
            )
            self._runner = Runner(bridge, self._execute)
        self._sessions: dict[Side, Session] = {}
        self._numbers = {Side.SITE: 0, Side.CLOUD: 0}
        self._last_session = 0
        self._upstream_up: bool | None = None
        self._upstream_since_ms = unix_ms()
        self._failures = {Side.SITE: 0, Side.CLOUD: 0}
        self._reasons: dict[Side, str] = {}
        self._trouble: str | None = None
        self._status = StatusFile(data_dir / "status.json", self._describe)
        self._stopping = False

    async def run(self, stop: asyncio.Event) -> None:
        """Bridge until `stop` is set; then take leave of both brokers and of the network."""
        identity, connector = self.settings.identity, self.settings.connector
        announcer = None
        if connector.advertise:
            port = connector.advertise_port or split_endpoint(connector.site_broker)[1]
            announcer = Announcer(identity.fleet, identity.site, port, self._memory.uuid)
            await announcer.start()
        self._runner.feed(Started())
        status = watched(asyncio.create_task(self._status.keep(), name="status"))
        log.info("connector_started", connector=identity.name, site=identity.site)
        try:
            await stop.wait()
        finally:
            self._stopping = True
            self._runner.close()
            for side in self._sessions:
                self._publish_state(side, online=False, upstream_up=False)
            await asyncio.gather(*(session.close() for session in self._sessions.values()))
            if announcer is not None:
                await announcer.stop()
            status.cancel()
            self._status.write()
            log.info("connector_stopped", connector=identity.name)

    # --- Commands ---------------------------------------------------------------------------------------------------

    def _execute(self, command: WatchCommand) -> None:
        match command:
            case Connect(side, turn):
                self._connect(side, turn)
            case SubscribeTo(side, filters):
                self._sessions[side].subscribe(filters)
            case Unsubscribe(side, topic_filters):
                self._sessions[side].unsubscribe(topic_filters)
            case Forward(side, topic, payload, qos, retain):
                self._sessions[side].publish(topic, payload, qos=qos, retain=retain)
            case Tell(trouble):
                self._note_trouble(trouble)
            case Announce(side, upstream_up):
                self._note_upstream(upstream_up)
                self._publish_state(side, online=True, upstream_up=upstream_up)

    def _connect(self, side: Side, turn: int) -> None:
        identity = self.settings.identity
        endpoints = [self.settings.connector.site_broker] if side is Side.SITE else self.settings.cloud.endpoints
        number = self._next_session()
        will = client.Will(self._state_topic, messages.encode(ConnectorState(online=False, session=number)))
        try:
            tls = client_context(
                identity, server_name(identity.fleet, identity.site if side is Side.SITE else CLOUD_SITE)
            )
            endpoint = endpoints[turn % len(endpoints)]
            proxy = proxy_for(endpoint, self.settings.cloud.proxy) if side is Side.CLOUD else None
        except SettingsError as exc:
            self._ended(side, "-", str(exc))
            return
        options = SessionOptions(endpoint, self._client_id, tls, will, proxy, self.settings.connector.keep_alive_s)
        self._numbers[side] = number
        session = Session(options, lambda event: self._on_session(side, session, event))
        self._sessions[side] = session
        session.open()

    def _next_session(self) -> int:
        try:
            self._last_session = max(self._last_session + 1, self._memory.next_session())
        except StorageError as exc:
            log.warning("session_number_not_saved", reason=exc.reason)
            self._last_session += 1  # A full disk must not keep the site from the cloud.
        return self._last_session

    def _publish_state(self, side: Side, *, online: bool, upstream_up: bool) -> None:
        state = ConnectorState(
            online=online,
            session=self._numbers[side],
            upstream=("up" if upstream_up else "down") if online else None,
            site=("up" if self._bridge.is_open(Side.SITE) else "down") if online and side is Side.CLOUD else None,
            since=self._upstream_since_ms if online else None,
            ts=unix_ms(),
            reason=None if online else "stopped",
        )
        self._sessions[side].publish(self._state_topic, messages.encode(state), retain=True)

    # --- Events -----------------------------------------------------------------------------------------------------

    def _on_session(self, side: Side, session: Session, event: client.SessionEvent) -> None:
        if self._stopping or self._sessions.get(side) is not session:
            return  # Of a session that has been replaced.
        match event:
            case client.Received(topic, payload, _):
                other = self._sessions.get(side.other)
                self._runner.feed(Came(side, topic, payload, 0 if other is None else other.in_flight))
            case client.Opened():
                failures, self._failures[side] = self._failures[side], 0
                self._reasons.pop(side, None)
                log.info("broker_connected", side=side.value, endpoint=session.options.endpoint, failures=failures)
                self._runner.feed(Opened(side))
                self._status.changed()
            case client.Refused(reason) | client.Lost(reason, _):
                self._ended(side, session.options.endpoint, reason)
            case client.Closed():
                pass  # Only when we stop.

    def _ended(self, side: Side, endpoint: str, reason: str) -> None:
        self._failures[side] += 1
        write = log.debug if reason == self._reasons.get(side) else log.warning  # Another reason is news.
        self._reasons[side] = reason
        write("broker_unreachable", side=side.value, endpoint=endpoint, reason=reason)
        # Not inside a step of the machine: this may be the answer to its own command.
        asyncio.get_running_loop().call_soon(self._runner.feed, Ended(side))
        self._status.changed()

    def _note_upstream(self, upstream_up: bool) -> None:
        if upstream_up == self._upstream_up:
            return
        self._upstream_up, self._upstream_since_ms = upstream_up, unix_ms()
        log.info("upstream_changed", upstream="up" if upstream_up else "down")

    def _note_trouble(self, trouble: str | None) -> None:
        self._trouble = trouble
        if trouble is None:
            log.info("bridge_recovered")
        else:
            log.warning("bridge_failed", reason=trouble)
        self._status.changed()

    def _failing(self) -> dict[str, str]:
        failing = {side.value: reason for side, reason in self._reasons.items()}
        return failing if self._trouble is None else {**failing, "bridge": self._trouble}

    def _describe(self) -> dict[str, object]:
        identity = self.settings.identity
        return {
            "role": "connector",
            "connector": identity.name,
            "site": identity.site,
            "pid": os.getpid(),
            "ts": unix_ms(),
            "site_broker": "up" if self._bridge.is_open(Side.SITE) else "down",
            "upstream": "up" if self._bridge.upstream_up else "down",
            "bridge": self.settings.connector.bridge,
            "failures": self._failing(),
            "counters": dict(self._bridge.counters),
            "dropped": sum(session.dropped for session in self._sessions.values()),
        }
