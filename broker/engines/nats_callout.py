"""Decides who may connect to nats-server: by certificate, revocation list and MQTT client id, as our own broker does.

Pure but for the reading of the revocation list. The answer to each question is a token with the holder's rights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cryptography import x509

from broker.client_ids import is_own
from broker.engines import nats_tokens
from broker.engines.nats_rights import ACCOUNT, Permissions, leaf_permissions, permissions
from broker.engines.nats_tokens import Issuer, Request
from broker.tls import ServerContext
from config import limits, pki
from config.errors import HublineError, RefusedError
from config.principal import Principal, principal_of
from config.settings import BrokerSettings

_MQTT: Final = "mqtt"
_LEAF: Final = "Leafnode"
_NONE: Final[Mapping[str, Sequence[str]]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Answer:
    """What to answer. `refusal` is why it is a no, as nats-server will log it: kind, client and reason."""

    reply: bytes
    refusal: str = ""


class Doorkeeper:
    """Answers nats-server's questions about clients. Raises SettingsError if the broker's own files can't be used.

    `node` is what the server calls itself; `more` is what connectors, by name, may subscribe to besides.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        issuer: Issuer,
        node: str | None = None,
        more: Mapping[str, Sequence[str]] = _NONE,
    ):
        self._fleet, self._site = settings.identity.fleet, settings.identity.site
        self._node = node or settings.identity.name
        self._more = more
        self._issuer = issuer
        self._context = ServerContext(settings.identity, settings.broker.crl)
        self._shut_out = self._revoked_serials()

    def reload_if_changed(self) -> bool:
        """Read certificates and revocation list again if they have changed. Raises SettingsError; the old ones hold then."""
        changed = self._context.reload_if_changed()
        if changed:
            self._shut_out = self._revoked_serials()
        return changed

    def answer(self, question: bytes, now_s: int) -> Answer | None:
        """Answer one question, unless another node has asked it. Raises ProtocolError if it is none."""
        request = nats_tokens.request_of(question)
        if request.server_id.name != self._node:
            return None
        user, server = request.user_nkey, request.server_id.id
        client, kind = request.client_info.host, "certificate"
        try:
            certificate = _certificate_of(request)
            principal = principal_of(certificate)
            client = str(principal)
            if principal.fleet != self._fleet:
                raise RefusedError("certificate", f"of another fleet, {principal.fleet}")
            self._context.check(certificate)
            granted = self._granted(principal, request)
            if granted is None:
                raise RefusedError("certificate", f"a {principal.role} of site {principal.site} has no rights here")
            kind = "client-id"
            _check_client_id(request, principal.name)
        except HublineError as exc:
            reason = exc.reason if isinstance(exc, RefusedError) else str(exc)
            refusal = f"{kind} {client} {reason}"
            return Answer(self._issuer.response(user, server, now_s, error=refusal), refusal)
        ends_s = int(certificate.not_valid_after_utc.timestamp())
        name = f"{client} {certificate.serial_number:x}"
        token = self._issuer.user(user, name, ACCOUNT, granted, now_s, ends_s)
        return Answer(self._issuer.response(user, server, now_s, token=token))

    def _granted(self, principal: Principal, request: Request) -> Permissions | None:
        if request.client_info.kind == _LEAF:
            return leaf_permissions(principal, self._site)
        more = self._more.get(principal.name, ()) if principal.role == "connector" else ()
        return permissions(principal, self._site, more)

    def is_shut_out(self, name: str) -> bool:
        """Tell whether a session must end: by the name that our token has given it."""
        return name.rpartition(" ")[2] in self._shut_out

    def _revoked_serials(self) -> frozenset[str]:
        """Return the revoked certificates' numbers as they stand at the end of sessions' names."""
        return frozenset(f"{serial:x}" for _, serial in self._context.revoked)


def _certificate_of(request: Request) -> x509.Certificate:
    chains = request.client_tls.verified_chains
    if not chains or not chains[0]:
        raise RefusedError("certificate", "none was verified")
    return pki.load_certificates(chains[0][0].encode())[0]


def _check_client_id(request: Request, name: str) -> None:
    """Hold the client to an id of its own: a server's newest session or leaf connection of an id ends the older one."""
    info = request.client_info
    if info.kind != _LEAF and info.type != _MQTT:
        return
    client_id = info.name if info.kind == _LEAF else info.mqtt_id
    if not is_own(client_id, name):
        raise RefusedError("client id", f"the client id {client_id[: limits.TOPIC_MAX_BYTES]!r} is not {name!r}")
