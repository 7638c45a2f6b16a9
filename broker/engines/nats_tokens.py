"""Keys and tokens of NATS, as far as an auth callout needs them: nkeys, and JSON web tokens signed by them (Ed25519).

NATS' own formats: an nkey is base32 of a prefix, the key and a CRC-16; a token is a JWT whose algorithm is "ed25519-nkey".
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct

from broker.engines.nats_rights import Permissions
from config.errors import ProtocolError

ACCOUNT_PREFIX: Final = 0
"""The prefix of an account's public key: it begins with "A"."""

_HEADER: Final = {"typ": "JWT", "alg": "ed25519-nkey"}
_NO_LIMIT: Final = -1


class Issuer:
    """An account's key pair that signs tokens; new, and known to nobody else."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self.public = encoded_key(ACCOUNT_PREFIX, self._key.public_key().public_bytes_raw())

    def signed(self, claims: Mapping[str, Any]) -> str:
        """Return a token of these claims, issued by us."""
        body = orjson.dumps({**claims, "iss": self.public, "jti": "hubline"})
        text = f"{_unpadded(orjson.dumps(_HEADER))}.{_unpadded(body)}"
        return f"{text}.{_unpadded(self._key.sign(text.encode()))}"

    def user(self, user_key: str, name: str, account: str, granted: Permissions, issued: int, ends: int) -> str:
        """Return the token that lets a user in, with its rights, until `ends` (Unix seconds)."""
        return self.signed(
            {
                "sub": user_key,
                "aud": account,
                "name": name,
                "iat": issued,
                "exp": ends,
                "nats": {
                    "pub": granted.publish_rule(),
                    "sub": granted.subscribe_rule(),
                    "subs": _NO_LIMIT,
                    "data": _NO_LIMIT,
                    "payload": _NO_LIMIT,
                    "allowed_connection_types": list(granted.connections),
                    "type": "user",
                    "version": 2,
                },
            }
        )

    def response(self, user_key: str, server_id: str, issued: int, *, token: str = "", error: str = "") -> bytes:
        """Return the answer to an authorization request: a user's token, or why there is none."""
        answer = {"type": "authorization_response", "version": 2, "jwt": token, "error": error}
        return self.signed({"sub": user_key, "aud": server_id, "iat": issued, "nats": answer}).encode()


class Server(Struct, frozen=True):
    """The server that asks."""

    id: str
    name: str


class Client(Struct, frozen=True):
    """The client that wants in: `kind` "Client" or "Leafnode", `type` "mqtt" or "nats".

    `mqtt_id` is its MQTT client id, `name` what it calls itself otherwise, `id` the number of its connection.
    """

    host: str = ""
    type: str = ""
    mqtt_id: str = ""
    kind: str = ""
    name: str = ""
    id: int = 0


class Tls(Struct, frozen=True):
    """What the handshake has verified: chains of certificates in PEM, the client's own first."""

    verified_chains: list[list[str]] = []


class Request(Struct, frozen=True):
    """An authorization request, as far as it counts."""

    server_id: Server
    user_nkey: str
    client_info: Client
    client_tls: Tls = Tls()


class _Claims(Struct, frozen=True):
    nats: Request


def request_of(token: bytes) -> Request:
    """Read a request. Raises ProtocolError.

    Its signature would say nothing: only the server itself can publish in the account of the questions.
    """
    try:
        _, body, _ = token.split(b".")
        raw = base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4))
        return msgspec.json.decode(raw, type=_Claims).nats
    except (ValueError, binascii.Error, msgspec.DecodeError) as exc:
        raise ProtocolError(f"not an authorization request: {exc}") from exc


def encoded_key(prefix: int, public: bytes) -> str:
    """Return a public key as an nkey."""
    raw = bytes((prefix << 3,)) + public
    return base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).rstrip(b"=").decode()


def _unpadded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
