"""Whether settings on trial are proven: the cloud has acknowledged a report, and each path that they change still leads there.

A wrong address of one path must not hide behind the other one that works, until the day when that is gone too.
"""

from __future__ import annotations

import asyncio

from broker.client import Lost, Opened, Refused, Session, SessionEvent, SessionOptions
from broker.client_ids import client_id_of
from broker.process import watched
from broker.proxy import proxy_for
from broker.tls import client_context, key_secret
from config import limits, log
from config.errors import SettingsError
from config.principal import CLOUD_SITE, server_name
from config.settings import HubSettings
from hub.link import Kind, Link

_log = log.get(__name__)


class Trial:
    """What the settings of one life of the hub have to show. `before` are those that hold if they don't, or None without a trial.

    `had_connector`: the hub spoke through a connector until now, so a change of how it finds one must find one.
    """

    def __init__(self, settings: HubSettings, before: HubSettings | None, epoch: str, *, had_connector: bool):
        self._settings, self._before, self._epoch = settings, before, epoch
        self.distrusts_memory = before is not None and before.connector != settings.connector
        """What worked before proves nothing: the hub has to find its connector by the new settings."""
        self._needs_connector = self.distrusts_memory and had_connector
        self._needs_cloud = before is not None and before.cloud != settings.cloud
        self._probing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to try what the hub itself does not use now."""
        if self._needs_cloud:
            self._probing = watched(asyncio.create_task(self._probe(), name="trial of the cloud's addresses"))

    async def close(self) -> None:
        """Try nothing any more."""
        if self._probing is not None and not self._probing.done():
            self._probing.cancel()
            await asyncio.wait([self._probing])

    def look(self, link: Link | None) -> bool:
        """Take note of the path in use, and tell whether nothing is left to prove."""
        using = None if link is None else link.using
        if using is not None and using.proven:
            if using.kind is Kind.CONNECTOR:
                self._needs_connector = False
            else:
                self._needs_cloud = False
        return not (self._needs_connector or self._needs_cloud)

    async def _probe(self) -> None:
        """Open a session with the cloud broker directly. Where that never worked, nothing is lost if it doesn't now."""
        assert self._before is not None
        while self._needs_cloud:
            if await self._reaches(self._settings):
                self._needs_cloud = False
            elif not await self._reaches(self._before):
                _log.info("direct_path_not_proven", reason="it did not work with the settings before, either")
                self._needs_cloud = False
            else:
                await asyncio.sleep(limits.SETTINGS_PROBE_S)

    async def _reaches(self, settings: HubSettings) -> bool:
        for endpoint in settings.cloud.endpoints:
            reason = await self._refusal(settings, endpoint)
            if reason is None:
                return True
            _log.info("direct_path_tried", endpoint=endpoint, reason=reason)
        return False

    async def _refusal(self, settings: HubSettings, endpoint: str) -> str | None:
        """Open a session that carries nothing, and return why that was refused, if it was."""
        identity = settings.identity
        began: asyncio.Future[SessionEvent] = asyncio.get_running_loop().create_future()
        try:
            tls = client_context(identity, server_name(identity.fleet, CLOUD_SITE))
            proxy = proxy_for(endpoint, settings.cloud.proxy)
            client_id = client_id_of(identity.name, f"trial-{key_secret(identity, self._epoch)}")
        except SettingsError as exc:
            return str(exc)
        session = Session(
            SessionOptions(endpoint, client_id, tls, proxy=proxy),
            lambda event: None if began.done() else began.set_result(event),
        )
        session.open()
        try:
            async with asyncio.timeout(limits.DOCTOR_STEP_S):
                event = await began
        except TimeoutError:
            return f"no answer within {limits.DOCTOR_STEP_S:g} s"
        finally:
            await session.close()
        match event:
            case Opened():
                return None
            case Refused(reason) | Lost(reason, _):
                return reason
            case _:
                return "the broker ended the session at once"
