"""The stream of a test's cluster: hubs without sensors, each with the courier of the real hub, in a thread of this process."""

from __future__ import annotations

import asyncio
import random
import secrets
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Final

from broker import client
from broker.backoff import Backoff
from broker.client import Session, SessionOptions
from broker.clock import unix_ms
from broker.messages import Ack, decode
from broker.runner import Runner
from broker.tls import client_context
from broker.topics import Topic, hub_filter
from config.principal import CLOUD_SITE, server_name
from config.settings import Identity
from hub import courier
from hub.courier import Courier
from tests.cloud.wire import one
from tests.fleet import WAIT_S, until

TICK_S: Final = 0.5


class Sender:
    """A hub without sensors: its own courier, and a session with whichever node there is."""

    def __init__(self, identity: Identity, endpoints: Sequence[str]):
        self.name, self.epoch = identity.name, secrets.token_hex(8)
        self.measured = self.acknowledged = 0
        self.acknowledged_at: list[float] = []
        self._identity: Final = identity
        self._random: Final = random.Random(identity.name)
        self._endpoints: Final = endpoints
        self._turn = self._random.randrange(len(endpoints))
        self._topic: Final = str(Topic.up(identity.fleet, identity.site, identity.name, "readings"))
        self._tls: Final = client_context(identity, server_name(identity.fleet, CLOUD_SITE))
        self._session: Session | None = None
        self._courier: Final = Courier(self.epoch)
        self._runner: Final[Runner[courier.Event, courier.Command]] = Runner(self._courier, self._execute)

    @property
    def is_open(self) -> bool:
        """Tell whether it has a session."""
        return self._courier.open

    def measure(self, count: int = 1) -> None:
        """Have messages that are to be sent."""
        first, self.measured = self.measured + 1, self.measured + count
        self._runner.feed(courier.Appended(((first, self.measured),)))

    def say(self, kind: str, *payloads: bytes) -> None:
        """Send what no courier would."""
        assert self._session is not None
        topic = self._topic.removesuffix("readings") + kind
        for payload in payloads:
            self._session.publish(topic, payload, qos=1)

    def repeat(self, *seqs: int) -> None:
        """Send messages once more."""
        self.say("readings", *(one(seq, seq, epoch=self.epoch, sent=unix_ms()) for seq in seqs))

    async def run(self) -> None:
        """Keep a session until cancelled."""
        backoff = Backoff(self._random, max_s=2.0)
        try:
            while True:
                ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                options = SessionOptions(self._endpoints[self._turn], self.name, self._tls)
                session = Session(options, lambda event, ended=ended: self._on(event, ended))  # type: ignore[misc]
                self._session = session
                session.open()
                await ended
                self._session = None
                self._runner.feed(courier.PathClosed())
                self._turn = (self._turn + 1) % len(self._endpoints)
                await asyncio.sleep(backoff.next_s())
        finally:
            self._runner.close()
            if self._session is not None:
                await self._session.close()

    def _on(self, event: client.SessionEvent, ended: asyncio.Future[None]) -> None:
        match event:
            case client.Opened():
                assert self._session is not None
                fleet, site = self._identity.fleet, self._identity.site
                self._session.subscribe([(hub_filter(fleet, site, self.name, "down"), 0)])
                self._runner.feed(courier.PathOpened())
            case client.Received(_, payload):
                ack = decode(payload, Ack)
                self._runner.feed(courier.Acknowledged(ack.epoch, tuple(ack.ranges)))
            case client.Closed():
                pass
            case client.Refused() | client.Lost():
                if not ended.done():
                    ended.set_result(None)

    def _execute(self, command: courier.Command) -> None:
        match command:
            case courier.Send(seqs):
                for seq in seqs:
                    payload = one(seq, seq, epoch=self.epoch, sent=unix_ms())
                    if self._session is not None:
                        self._session.publish(self._topic, payload, qos=1)
                    self._runner.feed(courier.Sent(seq, len(payload)))
            case courier.Forget(ranges):
                self.acknowledged += sum(last - first + 1 for first, last in ranges)
                self.acknowledged_at.append(time.monotonic())


class Stream:
    """Senders in a thread of their own, each with a message every TICK_S, from `start` to `close`."""

    def __init__(self, identities: Sequence[Identity], endpoints: Sequence[str]):
        self.senders: list[Sender] = []
        self._identities, self._endpoints = identities, endpoints
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="stream")
        self._measuring = True

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def do(self, deed: object, *arguments: object) -> None:
        """Let something be done in the thread of the stream."""
        self._loop.call_soon_threadsafe(deed, *arguments)  # type: ignore[arg-type]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Have nothing more to send, and nothing that is not acknowledged."""
        self._measuring = False
        try:
            until("the stream is acknowledged", lambda: not self.waiting(), 2 * WAIT_S)
            yield
        finally:
            self._measuring = True

    def waiting(self) -> dict[str, int]:
        """Return how much of which sender is not acknowledged."""
        return {
            sender.name: sender.measured - sender.acknowledged
            for sender in self.senders
            if sender.measured != sender.acknowledged
        }

    def wait_until_flowing(self) -> None:
        """Wait until each sender has got an acknowledgement from now on."""
        now = time.monotonic()
        until("the stream flows", lambda: len(self.senders) == len(self._identities) and not self._silent(now))

    def stalls(self, since: float) -> tuple[float, float]:
        """Return the longest time without any new acknowledgement, and without one of the sender who waited longest."""
        now = time.monotonic()
        of_each = [_from(sender.acknowledged_at, since) for sender in self.senders]
        together = sorted(instant for instants in of_each for instant in instants)
        return _longest([since, *together, now]), max(_longest([since, *instants, now]) for instants in of_each)

    def _silent(self, since: float) -> bool:
        return any(not sender.acknowledged_at or sender.acknowledged_at[-1] < since for sender in self.senders)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._stream())
        finally:
            self._loop.close()

    async def _stream(self) -> None:
        senders = [Sender(identity, self._endpoints) for identity in self._identities]
        sessions = [asyncio.create_task(sender.run()) for sender in senders]
        self.senders = senders
        ticking = asyncio.create_task(self._tick())
        await self._stop.wait()
        for task in (ticking, *sessions):
            task.cancel()
        await asyncio.gather(ticking, *sessions, return_exceptions=True)

    async def _tick(self) -> None:
        while True:
            for sender in self.senders:
                if self._measuring:
                    sender.measure()
                await asyncio.sleep(TICK_S / len(self.senders))


def _from(instants: Sequence[float], since: float) -> list[float]:
    return list(instants[bisect_left(instants, since) :])


def _longest(instants: Sequence[float]) -> float:
    return max(after - before for before, after in pairwise(instants))
