"""Reads host names and addresses as people write them, and refuses what can't be in a certificate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final

from config import limits
from config.bundles import DEFAULT_PORT
from config.endpoint import join_endpoint, split_endpoint
from config.errors import SettingsError

_NAME: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


def host(text: str) -> str:
    """Return one host name or address, without brackets, in lower case. Raises SettingsError."""
    plain = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        address = ip_address(plain)
    except ValueError:
        pass
    else:
        if address.is_unspecified or "%" in plain:
            raise _wrong(text, "is an address that no other machine can reach")
        return str(address)
    name = plain.lower().removesuffix(".")
    if not text.isascii():
        raise _wrong(text, "must be in its ASCII form (xn--…)")
    if _NAME.fullmatch(name) and not name.rpartition(".")[2].isdigit():
        return name
    if ":" in plain:
        raise _wrong(text, "must be a host name or address, without a port")
    raise _wrong(text, "is not a host name and not an address")


def endpoints(texts: Sequence[str]) -> list[str]:
    """Return "host:port" of each host, with or without port, in the given order."""
    if len(texts) > limits.CLOUD_ENDPOINTS_MAX:
        raise SettingsError(f"at most {limits.CLOUD_ENDPOINTS_MAX} cloud hosts", key="--cloud-host", value=len(texts))
    return list(dict.fromkeys(_endpoint(text) for text in texts))


def names(of: Sequence[str]) -> list[str]:
    """Return the hosts of endpoints, each once."""
    return list(dict.fromkeys(split_endpoint(endpoint)[0] for endpoint in of))


def ports(of: Sequence[str]) -> list[int]:
    """Return the ports of endpoints, each once."""
    return list(dict.fromkeys(split_endpoint(endpoint)[1] for endpoint in of))


def reachable(of: Sequence[str], port: int) -> list[str]:
    """Return endpoints of the hosts that another machine can use: not the loopback's."""
    return [join_endpoint(each, port) for each in of if not _is_loopback(each)]


def _endpoint(text: str) -> str:
    with_port = re.fullmatch(r"(\[[^\]]*\]|[^:]*):([0-9]+)", text)
    if with_port is None:
        return join_endpoint(host(text), DEFAULT_PORT)
    if not 1 <= int(with_port[2]) <= 65535:
        raise _wrong(text, "must have a port from 1 to 65535")
    return join_endpoint(host(with_port[1]), int(with_port[2]))


def _is_loopback(text: str) -> bool:
    try:
        return ip_address(text).is_loopback
    except ValueError:
        return text == "localhost"


def _wrong(text: str, problem: str) -> SettingsError:
    shown = text if len(text) <= limits.SHOWN_VALUE_MAX else text[: limits.SHOWN_VALUE_MAX] + " …"
    return SettingsError(problem, key="host", value=shown)
