"""`hubline tail`: prints messages as a subscriber sees them, each on a line of its own; reconnects by itself."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from datetime import datetime
from pathlib import Path
from random import SystemRandom

import click

from broker.backoff import Backoff
from broker.client import Closed, Lost, Opened, Received, Refused, Session, SessionEvent, SessionOptions
from broker.client_ids import client_id_of
from broker.clock import unix_ms
from broker.process import run_until_stopped
from broker.rights import may_subscribe
from broker.runner import monotonic_s
from broker.tls import client_context
from broker.topics import everything_filter, is_topic_filter
from config import limits, log
from config.errors import SettingsError
from config.principal import CLOUD_SITE, Principal, server_name
from config.settings import ReaderSettings, load


@click.command()
@click.option("-c", "--config", "file", type=click.Path(path_type=Path), required=True, help="The reader.toml.")
@click.argument("topic_filter", nargs=-1)
def tail(file: Path, topic_filter: tuple[str, ...]) -> None:
    """Print messages as they come. TOPIC_FILTER is MQTT's ("+" one level, "#" the rest); without one, all one may read."""
    settings = load(file, ReaderSettings)
    identity = settings.identity
    scope = everything_filter(identity.fleet, None if identity.site == CLOUD_SITE else identity.site)
    reader = Principal(identity.fleet, identity.site, "reader", identity.name)
    for wanted in topic_filter:
        if not is_topic_filter(wanted):
            problem = 'is not a topic filter: "+" stands for one whole level, "#" only at the end'
            raise SettingsError(problem, value=wanted)
        if not may_subscribe(reader, CLOUD_SITE, wanted):
            raise SettingsError(f"{reader} may read {scope} only, and this filter asks for more", value=wanted)
    log.set_up(settings.log)
    run_until_stopped(lambda stop: _Tail(settings, topic_filter or (scope,)).run(stop))


class _Tail:
    """Subscribes, prints, and connects again whenever the session is lost."""

    def __init__(self, settings: ReaderSettings, topic_filters: tuple[str, ...]):
        self._settings, self._filters = settings, topic_filters
        # Nobody can guess it, so nobody can end our session by taking it over, even where an engine does not bind ids.
        self._client_id = client_id_of(settings.identity.name, secrets.token_hex(limits.CLIENT_ID_SECRET_BYTES))
        self._over = asyncio.Event()
        self._session: Session | None = None
        self._told = ""

    async def run(self, stop: asyncio.Event) -> None:
        backoff = Backoff(SystemRandom())
        stopping = asyncio.create_task(stop.wait())
        while not stop.is_set():
            self._over.clear()
            opened_at = monotonic_s()
            session = self._session = self._open()
            over = asyncio.create_task(self._over.wait())
            await asyncio.wait([stopping, over], return_when=asyncio.FIRST_COMPLETED)
            over.cancel()
            if stop.is_set():
                await session.close()
                return
            backoff.lived(monotonic_s() - opened_at)
            await asyncio.wait([stopping], timeout=backoff.next_s())

    def _open(self) -> Session:
        identity = self._settings.identity
        tls = client_context(identity, server_name(identity.fleet, CLOUD_SITE))
        options = SessionOptions(self._settings.reader.broker, self._client_id, tls)
        session = Session(options, self._on_event)
        session.open()
        return session

    def _on_event(self, event: SessionEvent) -> None:
        match event:
            case Opened():
                self._tell(f"connected to {self._settings.reader.broker}, listening to {' '.join(self._filters)}")
                assert self._session is not None
                self._session.subscribe(
                    [(wanted, 0) for wanted in self._filters]
                )  # With NATS, 1 hears nothing of leaf nodes.
            case Received(topic, payload, retain):
                self._print(topic, payload, retain)
            case Refused(reason) | Lost(reason, _):
                self._tell(f"{self._settings.reader.broker}: {reason}; trying again")
                self._over.set()
            case Closed():
                self._over.set()

    def _tell(self, line: str) -> None:
        """Say once what goes on; standard output carries messages only."""
        if line != self._told:
            click.echo(f"hubline: {line}", err=True)
        self._told = line

    def _print(self, topic: str, payload: bytes, retain: bool) -> None:
        now = datetime.fromtimestamp(unix_ms() / 1000).astimezone().strftime("%H:%M:%S")
        mark = "retained " if retain else ""
        text = payload.decode("utf-8", "backslashreplace")
        if not text.isprintable():  # Nothing in a message may steer the terminal.
            text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
        try:
            click.echo(f"{now} {topic} {mark}{text}")
        except BrokenPipeError:  # The reader of the pipe has gone: so do we, without a word.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            os._exit(0)
