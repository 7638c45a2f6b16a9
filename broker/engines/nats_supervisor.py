"""Stands beside a nats-server of ours: lets clients in, as it asks, and puts out whose certificate is revoked meanwhile.

It reaches its server by a key that only the two of them have, made anew with each process of ours. While it is away nobody
gets in, and whoever is in stays.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import orjson
from msgspec import Struct

from broker.clock import unix_ms
from broker.engines.nats_callout import Doorkeeper
from broker.engines.nats_client import connected
from broker.engines.nats_leaf import node_name
from broker.engines.nats_link import Link
from broker.engines.nats_rights import user_permissions
from broker.engines.nats_tokens import Issuer
from broker.engines.site_bridge import rights_to_watch
from config import limits, log, pki
from config.endpoint import join_endpoint, split_endpoint
from config.errors import ProtocolError, RefusedError, SettingsError, TransportError
from config.principal import CLOUD_SITE, Principal
from config.settings import BrokerSettings, ConnectorSettings, Identity

if TYPE_CHECKING:
    from cryptography import x509
    from nats.aio.client import Client
    from nats.aio.msg import Msg

CLIENTS_CA: Final = "clients-ca.pem"
"""Whom a node trusts at its NATS port: the fleet, and its supervisor."""

_CERT: Final = "supervisor-cert.pem"
_KEY: Final = "supervisor-key.pem"
_QUESTIONS: Final = "$SYS.REQ.USER.AUTH"
_NOWHERE: Final = "supervisor"
_PAGE: Final = 1000
_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 where we dial, not where we listen


class _Connection(Struct, frozen=True):
    cid: int
    authorized_user: str = ""


class _Connections(Struct, frozen=True):
    total: int = 0
    connections: list[_Connection] = []


class _Node(Struct, frozen=True):
    id: str
    name: str


class _Told(Struct, frozen=True):
    """What a node answers about its connections."""

    server: _Node
    data: _Connections | None = None


class Supervisor:
    """The supervisor of one nats-server."""

    def __init__(self) -> None:
        self.issuer: Final = Issuer()
        self.answering: Final = "supervisor-answering"
        self.watching: Final = "supervisor-watching"
        self.telling: Final = "supervisor-telling"
        self.password: Final = secrets.token_urlsafe()
        self._authority, self._leaf = _own_certificate()
        self._log = log.get(__name__)

    def files(self, ca_pem: bytes) -> dict[str, bytes]:
        """Return by what the two know each other, as files of the server."""
        trusted = ca_pem + pki.certificate_pem(self._authority)
        return {
            CLIENTS_CA: trusted,
            _CERT: pki.certificate_pem(self._leaf.certificate),
            _KEY: pki.key_pem(self._leaf.key),
        }

    def teller(self, connector: ConnectorSettings) -> dict[str, object]:
        """Return the user who tells the connector how the leaf connection is, and may do nothing else."""
        rights = Link(connector.identity.name).rights
        return {"user": self.telling, "password": self.password, **user_permissions(rights)}

    async def supervise(self, settings: BrokerSettings, folder: Path, connector: ConnectorSettings | None) -> None:
        """Do it until cancelled, through all restarts of the server. Raises SettingsError if it can't."""
        node = node_name(settings, connector)
        doorkeeper = Doorkeeper(settings, self.issuer, node, rights_to_watch(connector))
        own = settings.identity
        identity = Identity(own.fleet, own.site, own.name, own.ca, folder / _CERT, folder / _KEY)
        host, port = split_endpoint(settings.nats.listen)
        endpoint = join_endpoint(_ANYWHERE.get(host, host), port)

        async def answer(question: Msg) -> None:
            await self._answer(doorkeeper, question)

        async def answering(client: Client) -> None:
            # Each supervisor hears all questions: a queue group would hand ours to that of another node, which can't answer.
            await client.subscribe(_QUESTIONS, cb=answer)
            self._log.debug("clients_admitted")

        async def watching(client: Client) -> None:
            await self._watch(client, node, doorkeeper)

        uses: list[tuple[str, Callable[[Client], Awaitable[None]]]] = [
            (self.answering, answering),
            (self.watching, watching),
        ]
        if connector is not None:
            link = Link(connector.identity.name)
            uses += [(self.watching, link.look), (self.telling, link.tell)]
        await asyncio.gather(*(self._keep(endpoint, identity, user, use) for user, use in uses))

    async def _keep(
        self, endpoint: str, identity: Identity, user: str, use: Callable[[Client], Awaitable[None]]
    ) -> None:
        """Keep a connection to the server, and use it."""
        while True:
            lost = asyncio.Event()

            async def on_lost(lost: asyncio.Event = lost) -> None:
                lost.set()

            try:
                client = await connected([endpoint], identity, user=user, password=self.password, on_lost=on_lost)
            except (TransportError, RefusedError) as exc:
                self._log.debug("engine_not_reached", user=user, reason=str(exc))
                task = asyncio.current_task()
                if task is not None and task.cancelling():  # The client has taken it for a failure of its own.
                    raise asyncio.CancelledError from exc
                await asyncio.sleep(limits.NATS_RETRY_S)
                continue
            using = asyncio.ensure_future(use(client))
            leaving = asyncio.ensure_future(lost.wait())
            try:
                await asyncio.wait((using, leaving), return_when=asyncio.FIRST_COMPLETED)
                if using.done():
                    using.result()
                await leaving
            finally:
                using.cancel()
                leaving.cancel()
                await asyncio.gather(using, leaving, return_exceptions=True)
                await client.close()

    async def _answer(self, doorkeeper: Doorkeeper, question: Msg) -> None:
        try:
            answer = doorkeeper.answer(question.data, unix_ms() // 1000)
        except ProtocolError as exc:
            self._log.warning("question_not_understood", reason=exc.reason)
            return
        if answer is not None:
            await question.respond(answer.reply)

    async def _watch(self, client: Client, node: str, doorkeeper: Doorkeeper) -> None:
        """Put out whose certificate is revoked, whenever that may have changed.

        Twice: a client that was let in just before may not be among the connections yet.
        """
        looks = 2
        while True:
            if looks:
                looks -= 1
                await self._put_out(client, node, doorkeeper)
            await asyncio.sleep(limits.CERTIFICATES_CHECK_S)
            try:
                if doorkeeper.reload_if_changed():
                    looks = 2
            except SettingsError as exc:
                self._log.warning("tls_not_reloaded", reason=str(exc))

    async def _put_out(self, client: Client, node: str, doorkeeper: Doorkeeper) -> None:
        from nats.errors import Error

        offset = 0
        try:
            while True:
                told = await _connections(client, node, offset)
                found = told.data or _Connections()
                for each in found.connections:
                    if doorkeeper.is_shut_out(each.authorized_user):
                        client_name = each.authorized_user.partition(" ")[0]
                        self._log.warning("session_ended", client=client_name, reason="revoked")
                        kick = orjson.dumps({"cid": each.cid})
                        await client.request(f"$SYS.REQ.SERVER.{told.server.id}.KICK", kick, limits.NATS_REQUEST_S)
                offset += _PAGE
                if offset >= found.total:
                    return
        except (Error, TimeoutError, msgspec.DecodeError) as exc:
            self._log.warning("connections_not_checked", reason=str(exc) or type(exc).__name__)


def _own_certificate() -> tuple[x509.Certificate, pki.Leaf]:
    """Return a certificate of no fleet, and the authority that has issued it and will issue no other."""
    now = pki.utc_now()
    authority = pki.create_authority(_NOWHERE, 1, "ec-p256", now)
    holder = Principal(_NOWHERE, CLOUD_SITE, "reader", _NOWHERE)
    return authority.certificate, pki.issue(authority, holder, (), "ec-p256", now)


async def _connections(client: Client, node: str, offset: int) -> _Told:
    wanted = {"server_name": node, "exact_match": True, "auth": True, "limit": _PAGE, "offset": offset, "sort": "cid"}
    answer = await client.request("$SYS.REQ.SERVER.PING.CONNZ", orjson.dumps(wanted), limits.NATS_REQUEST_S)
    return msgspec.json.decode(answer.data, type=_Told)
