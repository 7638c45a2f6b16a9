"""The hub's line to the cloud: a session that is kept or, in polling mode, one for each contact and none in between.

A contact takes its path by the same rule as everybody (Paths, with their memory), says heartbeat or poll, delivers what
waits, gives a poll's answers a moment, and leaves with the reason "polling". It has reached the cloud if the cloud has
acknowledged something through it; where nothing waits, the subscriber adds a report, so that there is something to
acknowledge. A hub that is stopped between two contacts opens one session more, only to say so, if there is time for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import SystemRandom
from typing import Protocol

import structlog
from msgspec.structs import replace

from broker import messages
from broker.clock import unix_ms
from broker.control import DesiredSettings, Heartbeat, Poll, Task
from broker.machine import Wakeup
from broker.messages import Ack, HubState
from broker.process import watched
from broker.runner import Runner, monotonic_s
from broker.topics import Topic
from config import limits
from config.settings import HubSettings
from hub.link import Kind, Link
from hub.memory import PathMemory
from hub.mode import Begin, Contact, Contacts, Ended
from hub.paths import Passenger, Paths

log = structlog.get_logger(__name__)
POLLING = "polling"
STOPPED = "stopped"


class Subscriber(Passenger, Protocol):
    """Whose line it is: the agent."""

    @property
    def busy(self) -> bool:
        """Tell whether something is going on whose result the cloud waits for."""
        ...

    @property
    def settings_hash(self) -> str:
        """Return the name of the settings from the cloud that are in force."""
        ...

    @property
    def has_waiting(self) -> bool:
        """Tell whether something waits for the cloud's acknowledgement."""
        ...

    def report_now(self) -> None:
        """Have something to send that the cloud acknowledges."""
        ...

    async def delivered(self) -> None:
        """Wait until the cloud has acknowledged all that was measured until now."""
        ...


class Line:
    """The line of one hub; `run` holds it. It travels on the paths in its subscriber's place, and passes all on to it."""

    def __init__(
        self,
        settings: HubSettings,
        memory: PathMemory,
        epoch: str,
        next_session: Callable[[], Awaitable[int]],
        subscriber: Subscriber,
        *,
        continuous: bool,
        contact_s: float = limits.CONTACT_MAX_S,
    ):
        """`contact_s` is the longest that a contact takes."""
        self.continuous = continuous
        self._settings, self._memory, self._epoch = settings, memory, epoch
        self._next_session, self._subscriber = next_session, subscriber
        self._contact_s = contact_s
        self._paths: Paths | None = None
        self._contacts: Contacts | None = None
        self._runner: Runner[Ended, Begin] | None = None
        self._contact_task: asyncio.Task[None] | None = None
        self._last_session = 0
        self._closed_ms = unix_ms()
        self._leave_by: float | None = None
        self._for_good = True
        self._leaving = False  # The hub is stopped, and only says so.
        self._was_direct = False
        self._acknowledged = False  # Through the session of this contact.
        self._turned = asyncio.Event()  # The hub is to be in the other mode.
        self._news = asyncio.Event()  # Something came, or the path has changed.
        self._heard_at = 0.0

    @property
    def link(self) -> Link | None:
        """Return what decides about the path, or None between two contacts."""
        return None if self._paths is None else self._paths.link

    @property
    def session_number(self) -> int:
        """Return the number of the session that is in use, or was last."""
        return (self._paths.session_number if self._paths is not None else 0) or self._last_session

    @property
    def since_ms(self) -> int:
        """Return since when the path is what it is, in Unix milliseconds."""
        return self._closed_ms if self._paths is None else self._paths.since_ms

    @property
    def contact(self) -> Contact | None:
        """Return what the hub is in contact for, in polling mode."""
        return None if self.continuous or self._contacts is None else self._contacts.under_way

    def due_at(self, contact: Contact) -> float | None:
        """Return when the next contact of a kind comes (monotonic), or None."""
        return None if self._contacts is None else self._contacts.due_at(contact)

    def leave(self, by: float, *, for_good: bool) -> None:
        """Say how long `run` may take once it is cancelled, and whether the hub will be gone then, or begins anew."""
        self._leave_by, self._for_good = by, for_good

    async def run(self) -> None:
        """Hold the line until cancelled; then say goodbye, if there is somebody to say it to."""
        while True:
            self._turned.clear()
            heartbeats = self._settings.mode.heartbeat == "all" or (
                self._settings.mode.heartbeat == "unreachable" and not self.continuous
            )
            contacts = self._contacts = Contacts(
                self._settings.mode.heartbeat_min * 60.0 if heartbeats else None,
                None if self.continuous else self._settings.mode.poll_min * 60.0,
                random=SystemRandom(),
                started_at=monotonic_s(),
            )
            runner = self._runner = Runner(contacts, self._beat if self.continuous else self._begin)
            try:
                if self.continuous:
                    self._open()
                runner.feed(Wakeup())
                await self._turned.wait()
            except asyncio.CancelledError:
                self._leaving = True
                raise
            finally:
                runner.close()
                self._runner = None  # Nobody feeds it any more, which would set its clock again.
                await self._end_contact()
                if self._leaving and self._for_good and not self.continuous:
                    await self._call_to_leave()
                await self._close()

    def set_continuous(self, continuous: bool) -> None:
        """Keep a session from now on, or keep none."""
        if continuous != self.continuous:
            self.continuous = continuous
            self._turned.set()

    def publish(self, topic: str, payload: bytes, seq: int) -> bool:
        """Send a sequenced message, and tell whether it was taken."""
        return self._paths is not None and self._paths.publish(topic, payload, seq)

    def introduce_again(self) -> None:
        """Publish the birth once more, since what it says has changed."""
        if self._paths is not None:
            self._paths.introduce_again()

    # --- Sessions ------------------------------------------------------------------------------------------------------

    def _open(self, *, at_once: bool = False) -> None:
        """Begin to look for a path; `at_once`: without the waits before the cloud is tried directly."""
        self._acknowledged = False
        settings, jitter_s = self._settings, limits.SWITCH_JITTER_S
        if at_once:
            settings = replace(settings, failover=replace(settings.failover, start_grace_s=0.0, away_grace_s=0.0))
            jitter_s = 0.0
        self._paths = Paths(settings, self._memory, self._epoch, self._next_session, self, switch_jitter_s=jitter_s)
        self._paths.start()

    async def _close(self) -> None:
        paths = self._paths
        if paths is None:
            return
        self._was_direct = paths.link.using is not None and paths.link.using.kind is Kind.DIRECT
        await paths.stop(STOPPED if self._leaving else POLLING, self._left_s(limits.CLOSE_TIMEOUT_S))
        self._last_session = self.session_number
        self._paths, self._closed_ms = None, unix_ms()
        self._subscriber.path_closed()
        self._subscriber.path_changed()

    def _left_s(self, most_s: float) -> float:
        """Return how long something may take that takes `most_s` while there is time."""
        return most_s if self._leave_by is None else max(0.0, min(most_s, self._leave_by - monotonic_s()))

    async def _call_to_leave(self) -> None:
        """Open a session, unless there is one, in order to say goodbye on it. Nobody waits for long.

        Who came directly the last time does so again, without waiting for a connector.
        """
        if self._paths is not None and self._paths.is_open:
            return
        was_direct = self._was_direct
        await self._close()  # Of a contact that was about to begin, or to end.
        self._open(at_once=was_direct)
        leave_by = monotonic_s() + limits.STOP_LEAVE_S if self._leave_by is None else self._leave_by
        if not await self._has_path(leave_by - monotonic_s() - limits.STOP_CLOSE_S):
            log.debug("goodbye_not_said")

    def _beat(self, begin: Begin) -> None:
        """Send the heartbeat of a hub that keeps its session."""
        runner, reached = self._runner, self._say(begin.contact)
        assert runner is not None
        asyncio.get_running_loop().call_soon(self._ended, runner, begin.contact, reached)

    def _say(self, contact: Contact) -> bool:
        assert self._paths is not None
        identity, session = self._settings.identity, self._paths.session_number
        if contact is Contact.HEARTBEAT:
            topic = Topic.heartbeat(identity.fleet, identity.site, identity.name)
            return self._paths.tell(str(topic), messages.encode(Heartbeat(self._epoch, session, unix_ms())))
        topic = Topic.poll(identity.fleet, identity.site, identity.name)
        poll = Poll(self._epoch, session, unix_ms(), self._subscriber.settings_hash)
        return self._paths.tell(str(topic), messages.encode(poll))

    def _ended(self, runner: Runner[Ended, Begin], contact: Contact, reached: bool) -> None:
        if runner is self._runner and not self._turned.is_set():
            runner.feed(Ended(contact, reached))

    # --- Contacts ------------------------------------------------------------------------------------------------------

    def _begin(self, begin: Begin) -> None:
        self._contact_task = watched(asyncio.create_task(self._make_contact(begin.contact), name="contact"))

    async def _end_contact(self) -> None:
        task, self._contact_task = self._contact_task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _make_contact(self, contact: Contact) -> None:
        cut_short, runner = False, self._runner
        assert runner is not None
        try:
            self._open()
            async with asyncio.timeout(self._contact_s):
                if await self._reach(contact):
                    await self._exchange(contact)
        except TimeoutError:
            cut_short = True
        reached = self._acknowledged
        await self._close()  # Not so if we are cancelled: then the run closes the line, which has a reason of its own.
        self._contact_task = None
        if not reached:
            log.warning("contact_failed", contact=contact.value)
        elif cut_short:
            log.info("contact_cut_short", contact=contact.value)  # What is left goes out with the next one.
        else:
            log.info("contact_made", contact=contact.value)
        self._ended(runner, contact, reached)
        self._subscriber.path_changed()

    async def _reach(self, contact: Contact) -> bool:
        """Wait for a path, and speak. The bound lets the grace pass after which the cloud is tried directly."""
        failover = self._settings.failover
        bound_s = max(failover.start_grace_s, failover.away_grace_s) + limits.CONTACT_PATH_S
        return await self._has_path(bound_s) and self._say(contact)

    async def _has_path(self, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                while not (self._paths is not None and self._paths.is_open):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return False
        return True

    async def _exchange(self, contact: Contact) -> None:
        """Deliver what waits; after a poll, first give its answers a moment, and what they started the time it needs."""
        if not (self._acknowledged or self._subscriber.has_waiting):
            self._subscriber.report_now()
        if contact is Contact.POLL:
            self._heard_at = monotonic_s()
            while (left_s := self._heard_at + limits.CONTACT_ANSWER_S - monotonic_s()) > 0 or self._subscriber.busy:
                self._news.clear()
                try:
                    async with asyncio.timeout(max(left_s, 1.0)):
                        await self._news.wait()
                except TimeoutError:
                    pass
        await self._subscriber.delivered()

    # --- On the paths (Passenger) --------------------------------------------------------------------------------------

    def introduction(self, session: int, via: str) -> HubState:
        """Return the birth."""
        return self._subscriber.introduction(session, via)

    def path_opened(self) -> None:
        """Take note that somebody listens."""
        self._news.set()
        if not self._leaving:  # Else there is no time for its messages.
            self._subscriber.path_opened()

    def path_closed(self) -> None:
        """Pass on that nobody listens."""
        self._subscriber.path_closed()

    def acknowledged(self, ack: Ack) -> None:
        """Pass an acknowledgement on; the first one says that the cloud is reached."""
        self._acknowledged = self._acknowledged or ack.epoch == self._epoch
        self._subscriber.acknowledged(ack)

    def task_received(self, task: Task) -> None:
        """Pass a task on; more may follow."""
        self._heard()
        self._subscriber.task_received(task)

    def settings_received(self, settings: DesiredSettings) -> None:
        """Pass settings on; more may follow."""
        self._heard()
        self._subscriber.settings_received(settings)

    def path_changed(self) -> None:
        """Pass the news on."""
        self._subscriber.path_changed()

    def _heard(self) -> None:
        self._heard_at = monotonic_s()
        self._news.set()
