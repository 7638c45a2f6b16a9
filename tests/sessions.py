"""MQTT sessions in a test's own event loop: what they report, and waiting for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from ssl import SSLContext

from broker.client import Session, SessionEvent, SessionOptions, Will
from config.settings import Identity

WAIT_S = 20.0


class Ears:
    """Everything that a session reports."""

    def __init__(self) -> None:
        self.heard: list[SessionEvent] = []
        self._news = asyncio.Event()

    def __call__(self, event: SessionEvent) -> None:
        self.heard.append(event)
        self._news.set()

    async def hear(self, wanted: Callable[[SessionEvent], bool]) -> SessionEvent:
        async with asyncio.timeout(WAIT_S):
            while True:
                for event in self.heard:
                    if wanted(event):
                        return event
                self._news.clear()
                await self._news.wait()


def is_a(*kinds: type[SessionEvent]) -> Callable[[SessionEvent], bool]:
    return lambda event: isinstance(event, kinds)


def opened(
    endpoint: str, tls: SSLContext, client_id: str = "pc-1", will: Will | None = None, *, in_thread: bool = False
) -> tuple[Session, Ears]:
    ears = Ears()
    session = Session(SessionOptions(endpoint, client_id, tls, will, in_thread=in_thread), ears)
    session.open()
    return session, ears


def identity_of(bundle: Path, fleet: str, site: str) -> Identity:
    """Return the identity of a bundle folder."""
    return Identity(fleet, site, bundle.name, bundle / "ca.pem", bundle / "cert.pem", bundle / "key.pem")
