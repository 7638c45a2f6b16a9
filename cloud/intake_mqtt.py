"""What comes in by a session with the cloud broker, by plain subscription or (MQTT 5) by one that workers share."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from random import SystemRandom
from typing import Final

from broker import client
from broker.backoff import Backoff
from broker.client import Session, SessionOptions
from broker.client_ids import client_id_of
from broker.clock import unix_ms
from broker.runner import monotonic_s
from broker.tls import client_context
from cloud.ingest import Arrived, Connected, Disconnected
from config import limits, log
from config.errors import SettingsError
from config.principal import CLOUD_SITE, server_name
from config.settings import CloudSettings

_log: Final = log.get(__name__)

_NO_MQTT5: Final = "unsupported protocol version"
"""What a broker without MQTT 5 says to it (MQTT 5.0, table 3-1: code 0x84)."""


class MqttIntake:
    """An `Intake` of these topic filters, each with its QoS. It needs no receipts: hubs repeat what is lost here.

    `suffix` is the end of its client id, which nobody can guess: not every engine binds client ids to certificates, and who
    knows one can end its session. Raises SettingsError if its files can't be used.
    """

    def __init__(
        self,
        settings: CloudSettings,
        filters: Sequence[tuple[str, int]],
        report: Callable[[Arrived | Connected | Disconnected], None],
        *,
        suffix: str,
        mqtt5: bool = False,
    ):
        self.reason: str | None = None
        self._identity: Final = settings.identity
        self._endpoints: Final = deque((settings.cloud.broker, *settings.cloud.other_brokers))
        self._filters: Final = list(filters)
        self._report: Final = report
        self._client_id: Final = client_id_of(self._identity.name, suffix)
        self._mqtt5: Final = mqtt5
        self._server_name: Final = server_name(self._identity.fleet, CLOUD_SITE)
        client_context(self._identity, self._server_name)  # Whoever starts with unusable files is told so at once.
        self._session: Session | None = None
        self._opened_at: float | None = None
        self._failures = 0
        self._dropped = 0

    @property
    def open(self) -> bool:
        """Tell whether the session is open."""
        return self._opened_at is not None

    @property
    def dropped(self) -> int:
        """Return how many messages, either way, did not fit into the bounds of a session."""
        return self._dropped + (self._session.dropped if self._session else 0)

    async def run(self) -> None:
        """Keep a session with the cloud broker, for ever."""
        backoff = Backoff(SystemRandom(), max_s=limits.INTAKE_RETRY_MAX_S)
        while True:
            reason = await self._one_session()
            now = monotonic_s()
            backoff.lived(0.0 if self._opened_at is None else now - self._opened_at)
            self._opened_at = None
            self._failures += 1
            write = _log.debug if reason == self.reason else _log.warning  # Another reason is news.
            self.reason = reason
            write("broker_unreachable", endpoint=self._endpoints[0], reason=reason, failures=self._failures)
            self._endpoints.rotate(-1)
            self._report(Disconnected())
            await asyncio.sleep(backoff.next_s())

    async def close(self) -> None:
        """Disconnect."""
        if self._session is not None:
            await self._session.close()
        self._opened_at = None

    def publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        """Send a message; without a session it is lost."""
        if self._session is not None:
            self._session.publish(topic, payload, qos=qos, retain=retain)

    def settle(self, receipts: Sequence[int]) -> None:
        """Nobody has asked."""
        assert not receipts

    def give_back(self, receipts: Sequence[int]) -> None:
        """Nobody has asked."""
        assert not receipts

    async def _one_session(self) -> str:
        """Open a session and return why it has ended."""
        try:
            tls = client_context(self._identity, self._server_name)
        except SettingsError as exc:
            return str(exc)
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        options = SessionOptions(self._endpoints[0], self._client_id, tls, mqtt5=self._mqtt5)
        self._session = Session(options, lambda event: self._on_session(event, ended))
        self._session.open()
        reason = await ended
        self._dropped += self._session.dropped
        self._session = None
        return reason

    def _on_session(self, event: client.SessionEvent, ended: asyncio.Future[str]) -> None:
        match event:
            case client.Received(topic, payload, retained):
                self._report(Arrived(topic, payload, unix_ms(), retained))
            case client.Opened():
                self._on_opened()
            case client.Refused(reason) | client.Lost(reason, _):
                if not ended.done():
                    ended.set_result(self._mended(reason))
            case client.Closed():
                pass  # Only when we stop.

    def _mended(self, reason: str) -> str:
        """Return a reason, with what a person must change if the broker is none for what is asked of it."""
        if self._mqtt5 and _NO_MQTT5 in reason.lower():
            return f'{reason}; intake = "shared" needs a broker with MQTT 5, as Mosquitto or EMQX'
        return reason

    def _on_opened(self) -> None:
        assert self._session is not None
        _log.info("broker_connected", endpoint=self._endpoints[0], failures=self._failures)
        self._opened_at, self._failures, self.reason = monotonic_s(), 0, None
        self._session.subscribe(self._filters)
        self._report(Connected())
