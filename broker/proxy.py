"""The way out through an HTTP CONNECT proxy (RFC 9110, 9.3.6): whether there is one for an endpoint, and the tunnel.

A proxy only carries bytes: TLS is between us and the broker. Its password is in no log and in no error.
"""

from __future__ import annotations

import os
import re
import socket
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Final
from urllib.parse import unquote, urlsplit

from broker.runner import monotonic_s
from config import limits
from config.endpoint import join_endpoint, split_endpoint
from config.errors import RefusedError, SettingsError, TransportError

NEVER: Final = "none"
"""The setting that keeps even a proxy of the environment out of the way."""

SETTING: Final = "cloud.proxy"
_VARIABLES: Final = ("https_proxy", "HTTPS_PROXY")
_EXEMPTIONS: Final = ("no_proxy", "NO_PROXY")
_DEFAULT_PORT: Final = 80
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})(?: ([^\r\n]*))?")
_SCHEMES: Final = re.compile(rb"(?im)^proxy-authenticate:[ \t]*([a-z]+)")
_PASSWORD: Final = re.compile(r"[^/@]*(?=@)")


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. `credentials` is "user:password"; `origin` is the setting or the variable that names it."""

    host: str
    port: int
    credentials: str | None = field(default=None, repr=False)
    origin: str = SETTING

    def __str__(self) -> str:
        return join_endpoint(self.host, self.port)


def proxy_for(endpoint: str, setting: str, environ: Mapping[str, str] = os.environ) -> Proxy | None:
    """Return the proxy to take to `endpoint`, or None for the straight way. Raises SettingsError.

    `setting` is a URL, "none", or "" for what the environment says: HTTPS_PROXY, except where NO_PROXY names the endpoint
    or it is on this machine itself.
    """
    if setting:
        return None if setting == NEVER else _parse(setting, SETTING)
    for variable in _VARIABLES:
        if url := environ.get(variable, "").strip():
            exemptions = next((text for name in _EXEMPTIONS if (text := environ.get(name, ""))), "")
            return None if is_exempt(endpoint, exemptions) else _parse(url, variable)
    return None


def is_exempt(endpoint: str, no_proxy: str) -> bool:
    """Tell whether the text of NO_PROXY lets `endpoint` go without a proxy; what is on this machine always does.

    Entries, between commas or spaces: "*", a domain (with all below it), an address, a CIDR block; ":port" after any
    of them for that port only.
    """
    host, port = split_endpoint(endpoint)
    return _is_this_machine(host) or any(_covers(entry, host, port) for entry in re.split(r"[,\s]+", no_proxy) if entry)


def tunnel(sock: socket.socket, proxy: Proxy, endpoint: str, timeout_s: float = limits.CONNECT_TIMEOUT_S) -> None:
    """Have the proxy, to which `sock` is connected, connect us with `endpoint`; then all bytes are the endpoint's.

    Raises RefusedError if the proxy says no, TransportError if it can't, OSError if the connection to it breaks.
    """
    ends_at = monotonic_s() + timeout_s
    sock.settimeout(timeout_s)
    sock.sendall(_request(proxy, endpoint))
    reply = bytearray()
    while not reply.endswith((b"\r\n\r\n", b"\n\n")):
        left_s = ends_at - monotonic_s()
        if left_s <= 0:
            raise TransportError(_named(proxy), "no answer in time")
        sock.settimeout(left_s)
        try:
            byte = sock.recv(1)  # Not one more: what follows belongs to TLS.
        except TimeoutError:
            continue
        if not byte or len(reply) >= limits.PROXY_REPLY_MAX_BYTES:
            break
        reply += byte
    _judge(bytes(reply), proxy, endpoint)


def _request(proxy: Proxy, endpoint: str) -> bytes:
    lines = [f"CONNECT {endpoint} HTTP/1.1", f"Host: {endpoint}"]
    if proxy.credentials is not None:
        lines.append(f"Proxy-Authorization: Basic {b64encode(proxy.credentials.encode()).decode()}")
    return "\r\n".join([*lines, "", ""]).encode()


def _judge(reply: bytes, proxy: Proxy, endpoint: str) -> None:
    """Raise what the proxy's answer means, unless it is yes."""
    name = _named(proxy)
    if not reply:
        raise TransportError(name, "it closed the connection without an answer")
    found = _STATUS.match(reply)
    if found is None:
        raise RefusedError(name, f"what answers is no HTTP proxy: correct {proxy.origin}")
    said = "".join(char for char in (found[2] or b"").decode("latin-1")[:80] if char.isprintable())
    status, words = int(found[1]), f"{found[1].decode()} {said}".strip()
    match status:
        case _ if 200 <= status < 300:
            return
        case 401 | 407:  # Some say the first to a wrong password.
            raise RefusedError(name, _wanted(reply, proxy))
        case 403 | 405:
            raise RefusedError(
                name,
                f"it does not let us through to {endpoint} ({words}): allow CONNECT to that host and port there, "
                "or have the cloud broker listen on 443",
            )
        case _ if status >= 500 or status in (404, 408, 429):
            raise TransportError(name, f"it can't reach {endpoint} ({words})")
        case _:
            raise RefusedError(name, f"it does not connect us with {endpoint} ({words})")


def _wanted(reply: bytes, proxy: Proxy) -> str:
    schemes = sorted({scheme.decode().capitalize() for scheme in _SCHEMES.findall(reply)})
    if schemes and "Basic" not in schemes:
        return f"it takes {' or '.join(schemes)} only, which is not supported: exempt the cloud broker from it there"
    if proxy.credentials is None:
        return f'it wants a user and a password: put them into {proxy.origin}, as "http://user:password@{proxy}"'
    return f"it does not accept the user and password of {proxy.origin}"


def _named(proxy: Proxy) -> str:
    return f"proxy {proxy}"


def _parse(url: str, origin: str) -> Proxy:
    """Read a proxy's URL; one without a scheme is http, as with most programs."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, _DEFAULT_PORT if parts.port is None else parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, 0
    if parts.scheme != "http" or not host or not port:
        problem = 'is no HTTP proxy: it must be like "http://proxy.example:3128" or "http://user:password@…"'
        raise SettingsError(problem, key=origin, value=_PASSWORD.sub("***", url))
    credentials = None
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(host, port, credentials, origin)


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        name = host.lower().rstrip(".")
        return name == "localhost" or name.endswith(".localhost")


def _covers(entry: str, host: str, port: int) -> bool:
    """Tell whether one entry of NO_PROXY names an endpoint."""
    if entry == "*":
        return True
    name, only_port = _split(entry)
    if only_port is not None and only_port != port:
        return False
    try:
        ip = ip_address(host.partition("%")[0])
    except ValueError:
        domain, host = name.lower().removeprefix("*").strip("."), host.lower().rstrip(".")
        return bool(domain) and (host == domain or host.endswith(f".{domain}"))
    try:
        return ip in ip_network(name, strict=False)
    except ValueError:
        return False


def _split(entry: str) -> tuple[str, int | None]:
    """Return name and port of an entry: "host:443", "[::1]:443", and without a port "host", "10.0.0.0/8", "::1"."""
    name, colon, port = entry.rpartition(":")
    if not colon or not port.isdecimal() or (":" in name and not name.startswith("[")):
        name, port = entry, ""
    return name.removeprefix("[").removesuffix("]"), int(port) if port else None
