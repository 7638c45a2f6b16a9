"""SSDP messages ↔ bytes (the contract's "SSDP"; UPnP 1.1, 1), and what both sides of it share. Does no I/O.

What cannot be read raises ProtocolError and nothing else; what is built holds no line break that was not meant. Nothing
that was read here is trusted: TLS decides.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, Literal, TypeAlias
from uuid import UUID

from ssdpy.http_helper import parse_headers
from ssdpy.protocol import create_msearch_payload, create_notify_payload

from config import limits
from config.errors import ProtocolError

SEARCH_TARGET: Final = "urn:hubline-org:device:connector:1"
"""What hubs search for and connectors announce: `ST` and `NT`."""
ALL: Final = "ssdp:all"
PORT: Final = 1900

IpAddress: TypeAlias = IPv4Address | IPv6Address
GROUPS: Final[dict[int, IpAddress]] = {4: IPv4Address("239.255.255.250"), 6: IPv6Address("ff02::c")}
"""The group by IP version (UPnP 1.1, 1.1.2 and annex A)."""

_SITE_FIELD: Final = "SITE.HUBLINE.ORG"
_SERVER: Final = "Hubline/1 UPnP/1.1 Hubline/1"
_USN: Final = re.compile(rf"uuid:[0-9a-fA-F-]{{32,36}}::{re.escape(SEARCH_TARGET)}")
_LOCATION: Final = re.compile(r"mqtts://(?:\[([0-9A-Fa-f:.]{2,45})\]|([0-9.]{7,15})):([0-9]{1,5})/?")


@dataclass(frozen=True, slots=True)
class Address:
    """One address of an interface of this machine, where SSDP is spoken. `index` is 0 where the system needs none."""

    interface: str
    index: int
    ip: IpAddress
    network: IPv4Network | IPv6Network

    @property
    def group_host(self) -> str:
        """Return the HOST field of a multicast message from here."""
        group = GROUPS[self.ip.version]
        return f"{group}:{PORT}" if group.version == 4 else f"[{group}]:{PORT}"


@dataclass(frozen=True, slots=True)
class Search:
    """An M-SEARCH (UPnP 1.1, 1.3.2)."""

    st: str
    mx_s: int


@dataclass(frozen=True, slots=True)
class Response:
    """An answer to a search (UPnP 1.1, 1.3.3), of anybody's device."""

    st: str
    usn: str
    location: str | None
    site_hash: str | None


@dataclass(frozen=True, slots=True)
class Notification:
    """An announcement (UPnP 1.1, 1.2), of anybody's device."""

    nt: str
    nts: str
    usn: str
    location: str | None
    site_hash: str | None


Message: TypeAlias = Search | Response | Notification


def site_hash_of(fleet: str, site: str) -> str:
    """Return what marks a site's connectors: enough to match, nothing to learn."""
    return hashlib.sha256(f"{fleet}/{site}".encode()).hexdigest()[:16]


def usn_of(uuid: UUID) -> str:
    """Return a connector's unique service name."""
    return f"uuid:{uuid}::{SEARCH_TARGET}"


def is_usn(text: str) -> bool:
    """Tell whether a USN is that of a connector."""
    return _USN.fullmatch(text) is not None


def location_of(ip: IpAddress, port: int) -> str:
    """Return the LOCATION of a site broker; an IPv6 zone means nothing to the receiver and is left out."""
    host = str(ip).partition("%")[0]
    return f"mqtts://[{host}]:{port}" if ip.version == 6 else f"mqtts://{host}:{port}"


def endpoint_in(location: str) -> tuple[IpAddress, int]:
    """Return address and port of a LOCATION of ours. Raises ProtocolError for a host name, another scheme or a path."""
    match = _LOCATION.fullmatch(location)
    if match is None:
        raise ProtocolError("LOCATION is not mqtts://<address>:<port>")
    host6, host4, port = match.groups()
    try:
        ip = ip_address(host6 or host4)
    except ValueError as exc:
        raise ProtocolError("LOCATION holds no valid address") from exc
    if ip.version != (6 if host6 else 4) or not 1 <= int(port) <= 65535:
        raise ProtocolError("LOCATION holds no valid address and port")
    return ip, int(port)


def build_search(group_host: str, mx_s: int, st: str = SEARCH_TARGET) -> bytes:
    """Return an M-SEARCH. Raises ProtocolError for a field that could not be read back."""
    payload: bytes = create_msearch_payload(_checked(group_host), _checked(st), mx_s)
    return payload


def build_response(usn: str, location: str, site_hash: str) -> bytes:
    """Return the answer to a search for our target, or for everything. Raises ProtocolError as `build_search` does."""
    fields = {
        "CACHE-CONTROL": f"max-age={limits.SSDP_MAX_AGE_S}",
        "EXT": "",
        "LOCATION": _checked(location),
        "SERVER": _SERVER,
        "ST": SEARCH_TARGET,
        "USN": _checked(usn),
        _SITE_FIELD: _checked(site_hash),
    }
    return _built("HTTP/1.1 200 OK", fields)


def build_alive(group_host: str, usn: str, location: str, site_hash: str) -> bytes:
    """Return an `ssdp:alive` announcement. Raises ProtocolError as `build_search` does."""
    payload: bytes = create_notify_payload(
        _checked(group_host),
        SEARCH_TARGET,
        _checked(usn),
        location=_checked(location),
        max_age=limits.SSDP_MAX_AGE_S,
        extra_fields={"SERVER": _SERVER, _SITE_FIELD: _checked(site_hash)},
    )
    return payload


def build_byebye(group_host: str, usn: str, site_hash: str) -> bytes:
    """Return an `ssdp:byebye` announcement, which ssdpy has not. Raises ProtocolError as `build_search` does."""
    fields = {
        "HOST": _checked(group_host),
        "NT": SEARCH_TARGET,
        "NTS": "ssdp:byebye",
        "USN": _checked(usn),
        _SITE_FIELD: _checked(site_hash),
    }
    return _built("NOTIFY * HTTP/1.1", fields)


def parse(datagram: bytes) -> Message:
    """Read a datagram. Raises ProtocolError, whatever the bytes are; unknown fields are ignored."""
    if len(datagram) > limits.SSDP_DATAGRAM_MAX_BYTES:
        raise ProtocolError(f"{len(datagram)} bytes, at most {limits.SSDP_DATAGRAM_MAX_BYTES} are read")
    head, end, _ = datagram.partition(b"\r\n\r\n")
    if not end:
        raise ProtocolError("ends within its fields")
    try:
        fields: dict[str, str] = parse_headers(datagram)
    except ValueError as exc:  # Also what is not UTF-8.
        raise ProtocolError("not an SSDP message") from exc
    if len(fields) != head.count(b"\r\n"):
        raise ProtocolError("repeats a field")
    if head.startswith(b"M-SEARCH"):
        return _search(fields)
    usn, location, site_hash = _field(fields, "USN"), _optional(fields, "LOCATION"), _optional(fields, _SITE_FIELD)
    if head.startswith(b"NOTIFY"):
        return Notification(_field(fields, "NT"), _field(fields, "NTS"), usn, location, site_hash)
    return Response(_field(fields, "ST"), usn, location, site_hash)


class SourceRate:
    """How often each source may make us work: `per_s` a second on average, and at once; for `sources_max` sources."""

    def __init__(self, per_s: float = limits.SSDP_PER_SOURCE_PER_S, sources_max: int = limits.SSDP_SOURCES_MAX):
        self._per_s = per_s
        self._sources_max = sources_max
        self._left: OrderedDict[tuple[IpAddress, int], tuple[float, float]] = OrderedDict()

    def allows(self, ip: IpAddress, port: int, now: float, *, own: bool) -> bool:
        """Count one datagram and tell whether it may be looked at.

        `own` says that the source is this machine; there each port is a source, since a whole fleet may run here and an
        address of ours cannot be claimed from outside.
        """
        source = (ip, port if own else 0)
        left, since = self._left.pop(source, (self._per_s, now))
        left = min(self._per_s, left + (now - since) * self._per_s)
        allowed = left >= 1.0
        self._left[source] = (left - 1.0 if allowed else left, now)
        if len(self._left) > self._sources_max:
            self._left.popitem(last=False)
        return allowed

    def __len__(self) -> int:
        return len(self._left)


def _search(fields: dict[str, str]) -> Search:
    if _field(fields, "MAN").strip('"') != "ssdp:discover":
        raise ProtocolError('MAN is not "ssdp:discover"')
    mx = _field(fields, "MX")
    if not re.fullmatch(r"[0-9]{1,4}", mx) or int(mx) < 1:
        raise ProtocolError("MX is not a number of seconds from 1")
    return Search(_field(fields, "ST"), int(mx))


def _field(fields: dict[str, str], name: Literal["MAN", "MX", "NT", "NTS", "ST", "USN"]) -> str:
    value = _optional(fields, name)
    if not value:
        raise ProtocolError(f"has no {name}")
    return value


def _optional(fields: dict[str, str], name: str) -> str | None:
    value = fields.get(name.lower())
    if value is not None and not (value.isascii() and value.isprintable()):
        raise ProtocolError(f"{name} holds what is not printable ASCII")
    return value


def _checked(value: str) -> str:
    """Return the value of a field that we send. Raises ProtocolError if a receiver would read something else."""
    if not value or not value.isascii() or not value.isprintable() or value != value.strip():
        raise ProtocolError(f"{value!r} cannot be the value of an SSDP field")
    return value


def _built(start_line: str, fields: dict[str, str]) -> bytes:
    lines = [start_line, *(f"{name}: {value}".rstrip() for name, value in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
