"""Stands beside a nats-server of ours: lets clients in, as it asks, and puts out whose certificate is revoked meanwhile.

It reaches its server by a key that only the two of them have, made anew with each process of ours. While it is away nobody
gets in, and whoever is in stays; it says so. Who is revoked is put out however long the server takes to hear of it.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
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
from broker.process import cancelled
from broker.runner import monotonic_s
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
_LOOKS: Final = 2
_GONE: Final = "no such client"
"""How the answer to a kick begins if the connection has ended by itself."""
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


class _Complaint(Struct, frozen=True):
    description: str = ""


class _Told(Struct, frozen=True):
    """What a node answers about its connections."""

    server: _Node
    data: _Connections | None = None
    error: _Complaint | None = None


class _Kicked(Struct, frozen=True):
    """What a node answers when it shall end a connection."""

    error: _Complaint | None = None


@dataclass(slots=True)
class _Streak:
    """What fails over and over: one warning, and at the end one line that says how long it was."""

    failure: str
    recovery: str
    count: int = 0
    first_at: float = 0.0
    is_told: bool = False

    def failed(self, reason: str, since: float, patience_s: float = 0.0, **fields: object) -> None:
        """Count a failure of what was begun at `since`; the first one that `patience_s` have passed is a warning."""
        if not self.count:
            self.first_at = since
        self.count += 1
        is_news = not self.is_told and monotonic_s() >= self.first_at + patience_s
        self.is_told = self.is_told or is_news
        logger = log.get(__name__)
        (logger.warning if is_news else logger.debug)(self.failure, **fields, reason=reason)

    def ended(self, **fields: object) -> None:
        """Take note that it works."""
        if self.is_told:
            seconds = round(monotonic_s() - self.first_at, 1)
            log.get(__name__).info(self.recovery, **fields, count=self.count, seconds=seconds)
        self.count, self.is_told = 0, False


class Supervisor:
    """The supervisor of one nats-server."""

    def __init__(self) -> None:
        self.issuer: Final = Issuer()
        self.answering: Final = "supervisor-answering"
        self.watching: Final = "supervisor-watching"
        self.telling: Final = "supervisor-telling"
        self.password: Final = secrets.token_urlsafe()
        self._authority, self._leaf = _own_certificate()
        self._renewed = asyncio.Event()
        self._missing: dict[str, str] = {}  # Why a connection to the server is not there, by its user.
        self._looking = _Streak("connections_not_checked", "connections_checked")
        self._log = log.get(__name__)

    def files(self, ca_pem: bytes) -> dict[str, bytes]:
        """Return by what the two know each other, as files of the server."""
        trusted = ca_pem + pki.certificate_pem(self._authority)
        return {
            CLIENTS_CA: trusted,
            _CERT: pki.certificate_pem(self._leaf.certificate),
            _KEY: pki.key_pem(self._leaf.key),
        }

    def callout(self) -> dict[str, object]:
        """Return for a status whether clients can be let in, or nothing if that is not for us to do."""
        if self.answering not in self._missing:
            return {}
        reason = self._missing[self.answering]
        return {"callout": "down" if reason else "up", "callout_reason": reason or None}

    def teller(self, connector: ConnectorSettings) -> dict[str, object]:
        """Return the user who tells the connector how the leaf connection is, and may do nothing else."""
        rights = Link(connector.identity.name).rights
        return {"user": self.telling, "password": self.password, **user_permissions(rights)}

    async def supervise(self, settings: BrokerSettings, folder: Path, connector: ConnectorSettings | None) -> None:
        """Do it until cancelled, through all restarts of the server. Raises SettingsError if it can't."""
        node = node_name(settings, connector)
        doorkeeper = Doorkeeper(settings, self.issuer, node, rights_to_watch(connector))
        own = settings.identity
        # By the copy that the server has: a new authority's file may be half written while we connect anew.
        identity = Identity(own.fleet, own.site, own.name, folder / "ca.pem", folder / _CERT, folder / _KEY)
        host, port = split_endpoint(settings.nats.listen)
        endpoint = join_endpoint(_ANYWHERE.get(host, host), port)

        async def answer(question: Msg) -> None:
            await self._answer(doorkeeper, question)

        async def answering(client: Client) -> None:
            # Each supervisor hears all questions: a queue group would hand ours to that of another node, which can't answer.
            await client.subscribe(_QUESTIONS, cb=answer)
            self._log.debug("clients_admitted")

        async def watching(client: Client) -> None:
            await self.watch(client, node, doorkeeper)

        uses: list[tuple[str, Callable[[Client], Awaitable[None]]]] = [
            (self.answering, answering),
            (self.watching, watching),
        ]
        if connector is not None:
            link = Link(connector.identity.name)
            uses += [(self.watching, link.look), (self.telling, link.tell)]
        kept = (self._keep(endpoint, identity, user, use) for user, use in uses)
        await asyncio.gather(self._keep_current(doorkeeper), *kept)

    async def _keep(
        self, endpoint: str, identity: Identity, user: str, use: Callable[[Client], Awaitable[None]]
    ) -> None:
        """Keep a connection to the server, and use it.

        A server that is just starting can't be reached, and nothing is said of that; one that won't have us is there.
        """
        reaching = _Streak("engine_not_reached", "engine_reached")
        self._missing[user] = "not connected yet"
        while True:
            begun_at, lost = monotonic_s(), asyncio.Event()

            async def on_lost(lost: asyncio.Event = lost) -> None:
                lost.set()

            try:
                client = await connected([endpoint], identity, user=user, password=self.password, on_lost=on_lost)
            except (TransportError, RefusedError) as exc:
                patience_s = 0.0 if isinstance(exc, RefusedError) else limits.NATS_UNREACHED_S
                self._missing[user] = str(exc)
                reaching.failed(str(exc), begun_at, patience_s, user=user)
                await asyncio.sleep(limits.NATS_RETRY_LATER_S if reaching.is_told else limits.NATS_RETRY_S)
                continue
            from nats.errors import Error  # It is here, as we are connected.

            reaching.ended(user=user)
            self._missing[user] = ""
            using = asyncio.ensure_future(use(client))
            leaving = asyncio.ensure_future(lost.wait())
            try:
                await asyncio.wait((using, leaving), return_when=asyncio.FIRST_COMPLETED)
                if using.done():
                    using.result()
                await leaving
            except Error as exc:  # Lost between two steps of its use.
                self._log.debug("engine_lost", user=user, reason=str(exc) or type(exc).__name__)
            finally:
                self._missing[user] = "the connection was lost"
                await cancelled((using, leaving))
                await client.close()
            await asyncio.sleep(limits.NATS_RETRY_S)

    async def _answer(self, doorkeeper: Doorkeeper, question: Msg) -> None:
        try:
            answer = doorkeeper.answer(question.data, unix_ms() // 1000)
        except ProtocolError as exc:
            self._log.warning("question_not_understood", reason=exc.reason)
            return
        if answer is not None:
            await question.respond(answer.reply)

    async def _keep_current(self, doorkeeper: Doorkeeper) -> None:
        """Read the revocation list again whenever it has changed, however the server is."""
        while True:
            await asyncio.sleep(limits.CERTIFICATES_CHECK_S)
            try:
                if doorkeeper.reload_if_changed():
                    self._renewed.set()
            except SettingsError as exc:
                self._log.warning("tls_not_reloaded", reason=str(exc))

    async def watch(self, client: Client, node: str, doorkeeper: Doorkeeper) -> None:
        """Put out whose certificate is revoked, whenever that may have changed: until two looks in a row have found nobody.

        Until cancelled. Two, as a client that was let in just before may not be among the connections yet, and who leaves
        meanwhile may hide another one at the end of a page.
        """
        clean = 0
        while True:
            if self._renewed.is_set():
                self._renewed.clear()
                clean = 0
            if clean < _LOOKS:
                clean = clean + 1 if await self._put_out(client, node, doorkeeper) else 0
            with suppress(TimeoutError):
                async with asyncio.timeout(limits.CERTIFICATES_CHECK_S if clean < _LOOKS else None):
                    await self._renewed.wait()

    async def _put_out(self, client: Client, node: str, doorkeeper: Doorkeeper) -> bool:
        """Look at all connections, end those that must end, and tell whether there was none of them."""
        from nats.errors import Error

        failure, begun_at = "", monotonic_s()
        found: list[_Connection] = []
        try:
            server, total, offset = "", 1, 0
            while offset < total:
                server, page = await _connections(client, node, offset)
                found += [each for each in page.connections if doorkeeper.is_shut_out(each.authorized_user)]
                total, offset = page.total, offset + _PAGE
            for each in found:
                try:
                    was_there = await _kick(client, server, each.cid)
                except RefusedError as exc:
                    failure = exc.reason
                    continue
                if was_there:
                    name = each.authorized_user.partition(" ")[0]
                    self._log.warning("session_ended", client=name, reason="revoked")
        except RefusedError as exc:
            failure = exc.reason
        except (Error, OSError, TimeoutError, msgspec.DecodeError) as exc:
            failure = str(exc) or type(exc).__name__
        if failure:
            self._looking.failed(failure, begun_at)
            return False
        self._looking.ended()
        return not found


def _own_certificate() -> tuple[x509.Certificate, pki.Leaf]:
    """Return a certificate of no fleet, and the authority that has issued it and will issue no other."""
    now = pki.utc_now()
    authority = pki.create_authority(_NOWHERE, 1, "ec-p256", now)
    holder = Principal(_NOWHERE, CLOUD_SITE, "reader", _NOWHERE)
    return authority.certificate, pki.issue(authority, holder, (), "ec-p256", now)


async def _connections(client: Client, node: str, offset: int) -> tuple[str, _Connections]:
    """Return a node's id, and a page of its connections. Raises RefusedError if it names none."""
    wanted = {"server_name": node, "exact_match": True, "auth": True, "limit": _PAGE, "offset": offset, "sort": "cid"}
    answer = await client.request("$SYS.REQ.SERVER.PING.CONNZ", orjson.dumps(wanted), limits.NATS_REQUEST_S)
    told = msgspec.json.decode(answer.data, type=_Told)
    if told.data is None:
        raise RefusedError(node, told.error.description if told.error else "it names no connections")
    return told.server.id, told.data


async def _kick(client: Client, server: str, cid: int) -> bool:
    """Have a node end a connection, and tell whether it was still there. Raises RefusedError."""
    subject = f"$SYS.REQ.SERVER.{server}.KICK"
    answer = await client.request(subject, orjson.dumps({"cid": cid}), limits.NATS_REQUEST_S)
    error = msgspec.json.decode(answer.data, type=_Kicked).error
    if error is not None and not error.description.startswith(_GONE):
        raise RefusedError(subject, f"a connection was not ended: {error.description}")
    return error is None
