"""Access tokens of the cloud's console and API: random, shown once, kept only as a digest in the cloud bundle's tokens.json."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from datetime import datetime

import msgspec
from msgspec import Struct

_RANDOM_BYTES = 32


class Token(Struct, frozen=True, forbid_unknown_fields=True):
    """One token as it is kept. 256 random bits need no slow hash: nobody can guess through SHA-256."""

    name: str
    sha256: str
    created: datetime


class Tokens(Struct, frozen=True, forbid_unknown_fields=True):
    """What tokens.json holds."""

    tokens: list[Token]


def new_token() -> str:
    """Return a new token: 256 random bits as URL-safe text, with a prefix by which scanners for leaked secrets know it."""
    return "hubline_" + secrets.token_urlsafe(_RANDOM_BYTES)


def digest(token: str) -> str:
    """Return what is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def name_of(token: str, known: Iterable[Token]) -> str | None:
    """Return the name of a presented token, or None if it is not known; takes the same time whatever it is."""
    presented = digest(token)
    found = None
    for candidate in known:
        if hmac.compare_digest(presented, candidate.sha256):
            found = candidate.name
    return found


def encoded(tokens: Tokens) -> bytes:
    """Return the content of tokens.json."""
    return msgspec.json.format(msgspec.json.encode(tokens), indent=2) + b"\n"


def decoded(content: bytes) -> Tokens:
    """Read tokens.json. Raises msgspec.DecodeError."""
    return msgspec.json.decode(content, type=Tokens)
