"""The link's hands: opens and ends sessions, searches, and carries messages over the session that is in use."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from random import SystemRandom
from typing import Protocol

import structlog

from broker import client, messages
from broker.client import Session, SessionOptions, Will
from broker.client_ids import client_id_of
from broker.clock import unix_ms
from broker.control import DesiredSettings, Task
from broker.machine import Wakeup
from broker.messages import Ack, ConnectorState, HubState
from broker.process import watched
from broker.proxy import proxy_for
from broker.ranges import Ranges
from broker.runner import Runner, monotonic_s
from broker.tls import client_context, key_secret
from broker.topics import Topic, connector_filter, hub_filter
from config import limits
from config.errors import ProtocolError, SettingsError
from config.principal import CLOUD_SITE, server_name
from config.settings import HubSettings
from hub import discovery, link, network
from hub.link import Kind, Link, Surroundings
from hub.memory import PathMemory

log = structlog.get_logger(__name__)


class Passenger(Protocol):
    """Who travels on the paths: the agent."""

    def introduction(self, session: int, via: str) -> HubState:
        """Return the birth to publish on a session that is taken into use now."""
        ...

    def path_opened(self) -> None:
        """Messages can be sent now, over another session than before."""
        ...

    def path_closed(self) -> None:
        """Nothing can be sent now."""
        ...

    def acknowledged(self, ack: Ack) -> None:
        """Take an acknowledgement; until the old path is dropped, it may come over both."""
        ...

    def task_received(self, task: Task) -> None:
        """Take a task, or the word that one is cancelled; either may come any number of times."""
        ...

    def settings_received(self, settings: DesiredSettings) -> None:
        """Take settings that are to hold from now on; they may come any number of times."""
        ...

    def path_changed(self) -> None:
        """Something that a person may want to see has changed."""
        ...


class Paths:
    """All sessions of one hub. `next_session` gives session numbers that grow, also across restarts."""

    def __init__(
        self,
        settings: HubSettings,
        memory: PathMemory,
        epoch: str,
        next_session: Callable[[], Awaitable[int]],
        passenger: Passenger,
        *,
        switch_jitter_s: float = limits.SWITCH_JITTER_S,
    ):
        """`switch_jitter_s` is the longest wait before the cloud is tried directly, so that a site does not come as one."""
        self._switch_jitter_s = switch_jitter_s
        self._settings, self._memory, self._epoch = settings, memory, epoch
        self._next_session, self._passenger = next_session, passenger
        identity = settings.identity
        self._state_topic = str(Topic.hub_state(identity.fleet, identity.site, identity.name))
        self._sessions: dict[int, Session] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._connecting: dict[int, asyncio.Task[None]] = {}
        self._numbers: dict[int, int] = {}  # Session numbers of those that carry messages.
        self._using: Session | None = None
        self._via: str | None = None
        self._unproven: Ranges | None = None  # Sent over the path in use, until one of them is acknowledged over it.
        self._tasks: set[asyncio.Task[None]] = set()
        self._streaks: dict[str, tuple[str, int]] = {}  # Last reason and length of each endpoint's failures.
        self.session_number = 0
        self.since_ms = unix_ms()
        self.link = self._make_link()
        self._runner: Runner[link.Event, link.Command] = Runner(self.link, self._execute)

    def start(self) -> None:
        """Begin to look for a path."""
        network.ask_gateway()  # Answered by the time that there is one, and its fingerprint is kept.
        self._runner.feed(Wakeup())

    def publish(self, topic: str, payload: bytes, seq: int) -> bool:
        """Send a message over the path in use, and tell whether it was taken."""
        taken = self._using is not None and self._using.publish(topic, payload)
        if taken and self._unproven is not None:
            self._unproven.add(seq, seq)
        return taken

    @property
    def is_open(self) -> bool:
        """Tell whether there is a path now."""
        return self._using is not None

    def tell(self, topic: str, payload: bytes) -> bool:
        """Send what is not sequenced over the path in use, and tell whether it was taken."""
        return self._using is not None and self._using.publish(topic, payload)

    def introduce_again(self) -> None:
        """Publish the birth of the same session once more, since what it says has changed."""
        if self._using is not None and self._via is not None:
            birth = self._passenger.introduction(self.session_number, self._via)
            self._using.publish(self._state_topic, messages.encode(birth), retain=True)

    async def stop(self, reason: str, within_s: float = limits.CLOSE_TIMEOUT_S) -> None:
        """Say goodbye on the path in use, and why, and end all sessions: cleanly, as far as there is time for it."""
        self._runner.close()
        beginning = self._tasks - self._closing
        for task in beginning:
            task.cancel()
        if self._using is not None:
            state = HubState(online=False, epoch=self._epoch, session=self.session_number, ts=unix_ms(), reason=reason)
            self._using.publish(self._state_topic, messages.encode(state), retain=True)
            self._using = None
        sessions, self._sessions = list(self._sessions.values()), {}
        try:
            async with asyncio.timeout(within_s):
                await asyncio.gather(*self._closing, *(session.close() for session in sessions))
        except TimeoutError:
            for session in sessions:
                session.abort()
        if beginning:
            await asyncio.wait(beginning)
        self._runner.close()  # What ended in between may have set its clock again.

    def _make_link(self) -> Link:
        settings, kept = self._settings, self._memory.kept
        now = monotonic_s()
        outage_at = None
        if kept.outage_ms is not None:
            # Between two runs only the wall clock tells; one that was set back can't prolong the outage's end.
            elapsed_s = min(max(0.0, (unix_ms() - kept.outage_ms) / 1000), settings.failover.outage_s)
            outage_at = now - elapsed_s
        away = network.is_elsewhere(kept.network, network.fingerprint())
        if away:
            log.info("network_changed", grace_s=settings.failover.away_grace_s)
        surroundings = Surroundings(
            cached=self._memory.cached,
            configured=tuple(settings.connector.endpoints),
            cloud=tuple(settings.cloud.endpoints),
            discovery=settings.connector.discovery,
            away=away,
            outage_at=outage_at,
        )
        return Link(
            settings.identity.name,
            settings.failover,
            settings.failback,
            surroundings,
            random=SystemRandom(),
            started_at=now,
            switch_jitter_s=self._switch_jitter_s,
        )

    # --- Commands ------------------------------------------------------------------------------------------------------

    def _execute(self, command: link.Command) -> None:
        match command:
            case link.Connect(number, kind, endpoint, carrying):
                self._connecting[number] = self._spawn(self._connect(number, kind, endpoint, carrying))
            case link.Disconnect(number):
                self._connecting.pop(number).cancel()  # In case that it has not even begun.
                self._numbers.pop(number, None)
                session = self._sessions.pop(number, None)
                if session is not None:
                    closing = self._spawn(session.close())
                    self._closing.add(closing)
                    closing.add_done_callback(self._closing.discard)
            case link.Use(number, via):
                self._use(number, via)
            case link.Halt():
                self._using, self.since_ms = None, unix_ms()
                log.warning("path_lost", switch_in_s=self._switch_in_s())
                self._passenger.path_closed()
            case link.Search():
                self._spawn(self._search())
            case link.Remember(endpoints):
                self._memory.remember(endpoints)
            case link.SaveOutage(since):
                age_ms = None if since is None else int((monotonic_s() - since) * 1000)
                self._memory.save_outage(None if age_ms is None else unix_ms() - age_ms)
        self._passenger.path_changed()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = watched(asyncio.get_running_loop().create_task(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _connect(self, number: int, kind: Kind, endpoint: str, carrying: bool) -> None:
        identity = self._settings.identity
        will = None
        if carrying:
            self._numbers[number] = await self._next_session()
            state = HubState(online=False, epoch=self._epoch, session=self._numbers[number])
            will = Will(self._state_topic, messages.encode(state))
        try:
            tls = client_context(
                identity, server_name(identity.fleet, identity.site if kind is Kind.CONNECTOR else CLOUD_SITE)
            )
            proxy = proxy_for(endpoint, self._settings.cloud.proxy) if kind is Kind.DIRECT else None
            # Of its own for each outbox: two machines with one identity must not end each other's sessions for ever.
            secret = key_secret(identity, self._epoch)
        except SettingsError as exc:
            del self._connecting[number]
            self._numbers.pop(number, None)
            self._failed(kind, endpoint, str(exc))
            self._runner.feed(link.SessionEnded(number, str(exc)))
            return
        client_id = client_id_of(identity.name, secret if carrying else f"observer-{secret}")
        options = SessionOptions(endpoint, client_id, tls, will, proxy, self._settings.hub.keep_alive_s)
        session = Session(options, lambda event: self._on_session(number, kind, session, event))
        self._sessions[number] = session
        session.open()

    def _use(self, number: int, via: str) -> None:
        session = self._sessions[number]
        self._using, self.session_number, self.since_ms = session, self._numbers[number], unix_ms()
        self._unproven = Ranges()
        self._via = via
        self.introduce_again()
        if via != messages.DIRECT:
            self._memory.remember_network(network.fingerprint())
        log.info("path_taken", via=via, endpoint=session.options.endpoint, session=self.session_number)
        self._passenger.path_opened()

    async def _search(self) -> None:
        identity = self._settings.identity
        try:
            await discovery.search(
                identity.fleet,
                identity.site,
                found=lambda answer: self._runner.feed(link.ConnectorFound(answer.endpoint)),
            )
        except OSError as exc:
            log.debug("search_failed", reason=exc.strerror or str(exc))
        self._runner.feed(link.SearchEnded())

    # --- Events --------------------------------------------------------------------------------------------------------

    def _on_session(self, number: int, kind: Kind, session: Session, event: client.SessionEvent) -> None:
        if self._sessions.get(number) is not session:
            return  # We have left it already.
        match event:
            case client.Received(topic, payload, _):
                self._received(number, session, topic, payload)
            case client.Opened():
                self._opened(number, kind, session)
            case client.Refused(reason):
                self._ended(number, kind, session, reason, None)
            case client.Lost(reason, alive_at):
                self._ended(number, kind, session, reason, alive_at)
            case client.Closed():
                pass  # Only when we close it, and then it is not among the sessions.

    def _opened(self, number: int, kind: Kind, session: Session) -> None:
        identity = self._settings.identity
        filters = []
        if number in self._numbers:
            filters.append((hub_filter(identity.fleet, identity.site, identity.name, "down"), 0))
        if kind is Kind.CONNECTOR:
            filters.append((connector_filter(identity.fleet, identity.site), 1))
        session.subscribe(filters)
        _, failures = self._streaks.pop(session.options.endpoint, ("", 0))
        log.info("broker_connected", kind=kind.value, endpoint=session.options.endpoint, failures=failures)
        self._runner.feed(link.SessionOpened(number))

    def _ended(self, number: int, kind: Kind, session: Session, reason: str, alive_at: float | None) -> None:
        del self._sessions[number], self._connecting[number]
        self._numbers.pop(number, None)
        self._failed(kind, session.options.endpoint, reason)
        self._runner.feed(link.SessionEnded(number, reason, alive_at))

    def _failed(self, kind: Kind, endpoint: str, reason: str) -> None:
        before, count = self._streaks.pop(endpoint, ("", 0))
        if len(self._streaks) >= limits.CANDIDATES_MAX:
            self._streaks.pop(next(iter(self._streaks)))
        self._streaks[endpoint] = (reason, count + 1)
        write = log.debug if reason == before else log.warning  # Another reason is news.
        write("broker_unreachable", kind=kind.value, endpoint=endpoint, reason=reason)

    def _received(self, number: int, session: Session, text: str, payload: bytes) -> None:
        try:
            topic = Topic.parse(text)
            match (topic.owner, topic.channel, topic.leaf):
                case ("hub", "down", "ack"):
                    ack = messages.decode(payload, Ack)
                    self._passenger.acknowledged(ack)
                    if session is self._using and self._is_proof(ack):
                        self._unproven = None
                        self._runner.feed(link.CloudAcknowledged(number))
                case ("hub", "down", "task"):
                    self._passenger.task_received(messages.decode(payload, Task))
                case ("hub", "down", "settings"):
                    self._passenger.settings_received(messages.decode(payload, DesiredSettings))
                case ("connector", "state", _):
                    state = messages.decode(payload, ConnectorState)
                    self._runner.feed(link.ConnectorHeard(number, topic.name, state))
                case _:
                    log.debug("message_ignored", topic=text)  # Of a kind that this version does not know.
        except ProtocolError as exc:
            log.warning("message_refused", topic=text, reason=exc.reason)

    def _is_proof(self, ack: Ack) -> bool:
        """Tell whether an acknowledgement is the first of something that was sent over the path in use."""
        if self._unproven is None or ack.epoch != self._epoch:
            return False
        return any(self._unproven.within(first, last) for first, last in ack.ranges)

    def _switch_in_s(self) -> int | None:
        switch_at = self.link.switch_at
        return None if switch_at is None else max(0, round(switch_at - monotonic_s()))
