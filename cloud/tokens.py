"""Who may use the API: tokens by digest, with a scope, perhaps one site, an end and a revocation (SQL).

The first token is in the cloud bundle's tokens.json, the others in the database. A revoked row of the same digest also
ends one of the file.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec
from sqlalchemy import Connection, func, insert, select, update

from cloud.fleet_schema import TOKENS
from config import limits
from config.errors import RefusedError, SettingsError
from config.tokens import Token, decoded, digest, new_token

Scope: TypeAlias = Literal["read", "operate", "admin"]

SCOPES: Final[tuple[Scope, ...]] = ("read", "operate", "admin")
"""Each may do what those before it may."""

_FILE_NO: Final = 0
"""The number of a token from tokens.json, which has no row."""


@dataclass(frozen=True, slots=True)
class Access:
    """One token as the database or tokens.json knows it. `site` limits it to that site's hubs. Times are Unix ms."""

    token_no: int
    name: str
    sha256: str
    scope: Scope
    site: str | None = None
    created_ms: int = 0
    expires_ms: int | None = None
    revoked_ms: int | None = None
    used_ms: int | None = None

    def may(self, scope: Scope) -> bool:
        """Tell whether the token reaches as far as `scope`."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)

    def sees(self, site: str | None) -> bool:
        """Tell whether something of a site, or (None) of the whole fleet, may be known to the token."""
        return self.site is None or self.site == site

    def problem(self, now_ms: int) -> str | None:
        """Return why the token does not count any more, if it doesn't."""
        if self.revoked_ms is not None:
            return "the token was revoked"
        if self.expires_ms is not None and self.expires_ms <= now_ms:
            return "the token has expired"
        return None


def first_tokens(file: Path) -> list[Token]:
    """Return the tokens of tokens.json, none if there is no such file. Raises SettingsError if it can't be read."""
    try:
        return decoded(file.read_bytes()).tokens
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise SettingsError(f"can't be read: {exc.strerror}", file=file) from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise SettingsError(f"is damaged ({exc}): copy it anew from the cloud's bundle", file=file) from exc


class Tokens:
    """The tokens that count, in memory."""

    def __init__(self, first: Iterable[Token]):
        self._first: Final = [
            Access(_FILE_NO, token.name, token.sha256, "admin", created_ms=int(token.created.timestamp() * 1000))
            for token in first
        ]
        self._known = list(self._first)
        self._used: Final[dict[int, int]] = {}

    def listed(self) -> list[Access]:
        """Return all tokens, revoked ones too, by name."""
        return sorted(self._known, key=lambda access: access.name)

    def find(self, presented: str) -> Access | None:
        """Return the token that was presented, whether it still counts or not; takes the same time whatever it is."""
        presented_digest = digest(presented)
        found = None
        for access in self._known:
            if hmac.compare_digest(presented_digest, access.sha256):
                found = access
        return found

    def still_counts(self, access: Access, now_ms: int) -> bool:
        """Tell whether a token that was found before is still known and good."""
        return any(known.sha256 == access.sha256 and known.problem(now_ms) is None for known in self._known)

    def take(self, rows: Sequence[Access]) -> None:
        """Know the tokens of the database, beside those of the file that it does not revoke."""
        said = {access.sha256 for access in rows}
        self._known = [*(access for access in self._first if access.sha256 not in said), *rows]

    def note_use(self, access: Access, now_ms: int) -> bool:
        """Tell whether it should be written down that a token is used now; at most once a minute."""
        last = self._used.get(access.token_no, access.used_ms or 0)
        if access.token_no == _FILE_NO or now_ms - last < limits.API_TOKEN_USED_STEP_S * 1000:
            return False
        self._used[access.token_no] = now_ms
        return True


# --- The table -------------------------------------------------------------------------------------------------------


def read_tokens(connection: Connection) -> list[Access]:
    """Return all tokens of the database."""
    names = Access.__dataclass_fields__
    return [Access(*row) for row in connection.execute(select(*(TOKENS.c[name] for name in names)))]


def add_token(
    connection: Connection,
    taken: Iterable[str],
    name: str,
    scope: Scope,
    site: str | None,
    *,
    now_ms: int,
    ends_ms: int,
) -> str:
    """Make a token and return its text, which is kept nowhere. Raises SettingsError if the name is taken.

    `taken`: names of tokens that have no row.
    """
    if name in taken or connection.scalar(select(TOKENS.c.token_no).where(TOKENS.c.name == name)) is not None:
        raise SettingsError(
            "there is a token of this name, perhaps a revoked one: choose another", key="name", value=name
        )
    valid = select(func.count()).select_from(TOKENS).where(TOKENS.c.revoked_ms.is_(None), TOKENS.c.expires_ms > now_ms)
    if (connection.scalar(valid) or 0) >= limits.API_TOKENS_MAX:
        raise RefusedError("the API", f"there are {limits.API_TOKENS_MAX} tokens: revoke some first")
    token = new_token()
    row = {"name": name, "sha256": digest(token), "scope": scope, "site": site}
    connection.execute(insert(TOKENS).values(**row, created_ms=now_ms, expires_ms=ends_ms))
    return token


def revoke_token(connection: Connection, access: Access, now_ms: int) -> None:
    """End a token from now on; one that is revoked stays as it is."""
    changed = connection.execute(
        update(TOKENS)
        .where(TOKENS.c.sha256 == access.sha256)
        .values(revoked_ms=func.coalesce(TOKENS.c.revoked_ms, now_ms))
    )
    if changed.rowcount == 0:
        row = {"name": access.name, "sha256": access.sha256, "scope": access.scope, "site": access.site}
        connection.execute(insert(TOKENS).values(**row, created_ms=access.created_ms, revoked_ms=now_ms))


def write_use(connection: Connection, access: Access, now_ms: int) -> None:
    """Keep when a token was last used."""
    connection.execute(update(TOKENS).where(TOKENS.c.token_no == access.token_no).values(used_ms=now_ms))


# --- Failures --------------------------------------------------------------------------------------------------------


class Failures:
    """A token bucket of failures per address; time is an argument."""

    def __init__(self) -> None:
        self._left: Final[OrderedDict[str, tuple[float, float]]] = OrderedDict()

    def fail(self, address: str, now: float) -> float | None:
        """Count a failure; return after how many seconds the address may try again if it has failed too often, else None."""
        place = _network(address)
        left, at = self._left.pop(place, (float(limits.API_FAILURES_BURST), now))
        left = min(float(limits.API_FAILURES_BURST), left + (now - at) / limits.API_FAILURE_REFILL_S)
        wait_s = None if left >= 1 else (1 - left) * limits.API_FAILURE_REFILL_S
        self._left[place] = (left - 1 if wait_s is None else left, now)
        if len(self._left) > limits.API_ADDRESSES_REMEMBERED:
            self._left.popitem(last=False)
        return wait_s


def _network(address: str) -> str:
    """Return what one party can't change at will: an IPv4 address, or the first 64 bits of an IPv6 address."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        mapped = parsed.ipv4_mapped
        return str(mapped) if mapped is not None else str(int(parsed) >> 64)
    return str(parsed)
