"""Tells one network from another: a fingerprint of where this machine is, from its default gateway.

A fingerprint is two short hashes, of the subnet and of the gateway's hardware address; the second is missing while the
system does not know that address. Whoever can't tell (no default route, no IPv4) gets None, and is not elsewhere.
"""

from __future__ import annotations

import hashlib
import socket
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from pathlib import Path
from typing import Final, TypeAlias

import psutil

from config import limits

_UP: Final = 0x1  # linux/route.h
_GATEWAY: Final = 0x2
_REJECT: Final = 0x200
_COMPLETE: Final = 0x2  # linux/if_arp.h
_DISCARD_PORT: Final = 9
_FORWARD_ROW: Final = struct.Struct("<4s4s4x4sII12xI16x")  # MIB_IPFORWARDROW
_NEIGHBOUR_ROW: Final = struct.Struct("<II8s4sI")  # MIB_IPNETROW
_INVALID: Final = 2  # MIB_IPNET_TYPE_INVALID
_INDIRECT: Final = 4  # MIB_IPROUTE_TYPE_INDIRECT
_BUFFER_TOO_SMALL: Final = 122
_DIGITS: Final = 8


@dataclass(frozen=True, slots=True)
class Route:
    """An IPv4 route; `gateway` is None for what is on the link itself."""

    interface: str
    destination: IPv4Network
    gateway: IPv4Address | None
    metric: int


Neighbours: TypeAlias = Mapping[tuple[str, IPv4Address], str]
"""Hardware addresses by interface and address."""


def fingerprint() -> str | None:
    """Return the fingerprint of the network that this machine is in now, or None if it can't be told."""
    routes, neighbours = _tables()
    return fingerprint_of(routes, neighbours)


def ask_gateway() -> None:
    """Make the system find out the gateway's hardware address, without waiting for it: by one datagram that says nothing."""
    gateway = default_gateway(_tables()[0])
    if gateway is None or gateway.gateway is None:
        return
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.sendto(b"", (str(gateway.gateway), _DISCARD_PORT))
    except OSError:
        pass  # Then it stays unknown, which is allowed.


def is_elsewhere(cached: str | None, here: str | None) -> bool:
    """Tell whether `here` is certainly another network than `cached`; what is not known makes no difference."""
    if not cached or not here:
        return False
    (subnet, gateway), (subnet_here, gateway_here) = _parts(cached), _parts(here)
    return subnet != subnet_here or bool(gateway and gateway_here and gateway != gateway_here)


def is_fuller(here: str | None, cached: str | None) -> bool:
    """Tell whether `here` is to be kept instead of `cached`: it says something else, or more."""
    if here is None or here == cached:
        return False
    return cached is None or is_elsewhere(cached, here) or not _parts(cached)[1]


def fingerprint_of(routes: Sequence[Route], neighbours: Neighbours) -> str | None:
    """Return the fingerprint that follows from the system's tables."""
    default = default_gateway(routes)
    if default is None or default.gateway is None:
        return None
    on_link = [
        route.destination
        for route in routes
        if route.interface == default.interface and route.gateway is None and default.gateway in route.destination
    ]
    if not on_link:
        return None
    subnet = max(on_link, key=lambda network: network.prefixlen)
    hardware = neighbours.get((default.interface, default.gateway))
    return f"{_hash(str(subnet))}-{_hash(hardware) if hardware else ''}"


def default_gateway(routes: Sequence[Route]) -> Route | None:
    """Return the default route that counts: through a gateway, with the lowest metric."""
    defaults = [route for route in routes if route.destination.prefixlen == 0 and route.gateway is not None]
    return min(defaults, key=lambda route: route.metric, default=None)


def own_addresses() -> tuple[str, ...]:
    """Return this machine's own addresses, without those that mean nothing elsewhere: loopback and link-local ones."""
    found: set[IPv4Address | IPv6Address] = set()
    try:
        up = {name for name, state in psutil.net_if_stats().items() if state.isup}
        for interface, entries in psutil.net_if_addrs().items():
            texts = [entry.address for entry in entries if entry.family in (socket.AF_INET, socket.AF_INET6)]
            found |= {ip_address(text.partition("%")[0]) for text in texts if interface in up}
    except (OSError, ValueError, psutil.Error):
        return ()
    known = [each for each in found if not each.is_loopback and not each.is_link_local]
    known.sort(key=lambda each: (each.version, int(each)))
    return tuple(map(str, known[: limits.ADDRESSES_MAX]))


# --- Linux --------------------------------------------------------------------------------------------------------------


def linux_routes(text: str) -> list[Route]:
    """Read /proc/net/route: addresses as hexadecimal numbers in the byte order of the machine (proc(5))."""
    routes = []
    for line in text.splitlines()[1:]:
        try:
            interface, destination, gateway, flags, _, _, metric, mask, *_ = line.split()
            if int(flags, 16) & _UP and not int(flags, 16) & _REJECT:
                network = IPv4Network((_hex_address(destination), int(mask, 16).bit_count()))
                via = _hex_address(gateway) if int(flags, 16) & _GATEWAY else None
                routes.append(Route(interface, network, via, int(metric)))
        except ValueError:
            continue  # Of a form that we don't know.
    return routes


def linux_neighbours(text: str) -> dict[tuple[str, IPv4Address], str]:
    """Read /proc/net/arp; only addresses that are resolved."""
    found = {}
    for line in text.splitlines()[1:]:
        try:
            address, _, flags, hardware, *_, interface = line.split()
            if int(flags, 16) & _COMPLETE:
                found[interface, IPv4Address(address)] = hardware.lower()
        except ValueError:
            continue
    return found


def _hex_address(text: str) -> IPv4Address:
    return IPv4Address(struct.pack("=I", int(text, 16)))


def _proc(name: str) -> str:
    try:
        return Path("/proc/net", name).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


# --- Windows ------------------------------------------------------------------------------------------------------------


def windows_routes(table: bytes) -> list[Route]:
    """Read a MIB_IPFORWARDTABLE; interfaces are told by their index."""
    routes = []
    for destination, mask, next_hop, index, kind, metric in _FORWARD_ROW.iter_unpack(_rows(table, _FORWARD_ROW.size)):
        try:
            network = IPv4Network((destination, int.from_bytes(mask).bit_count()))
        except ValueError:
            continue  # A destination that its mask does not fit.
        routes.append(Route(str(index), network, IPv4Address(next_hop) if kind == _INDIRECT else None, metric))
    return routes


def windows_neighbours(table: bytes) -> dict[tuple[str, IPv4Address], str]:
    """Read a MIB_IPNETTABLE; only addresses that are resolved."""
    found: dict[tuple[str, IPv4Address], str] = {}
    for index, length, hardware, address, kind in _NEIGHBOUR_ROW.iter_unpack(_rows(table, _NEIGHBOUR_ROW.size)):
        if kind != _INVALID and any(hardware[:length]):
            found[str(index), IPv4Address(address)] = hardware[:length].hex(":")
    return found


def _rows(table: bytes, row_bytes: int) -> bytes:
    """Return the rows of one of Windows' tables, which begins with their number."""
    count = int.from_bytes(table[:4], "little")
    whole = min(count, max(0, len(table) - 4) // row_bytes)
    return table[4 : 4 + whole * row_bytes]


def _tables() -> tuple[list[Route], dict[tuple[str, IPv4Address], str]]:
    if sys.platform == "win32":
        return windows_routes(_ip_table("GetIpForwardTable")), windows_neighbours(_ip_table("GetIpNetTable"))
    return linux_routes(_proc("route")), linux_neighbours(_proc("arp"))


if sys.platform == "win32":

    def _ip_table(function: str) -> bytes:
        """Return what a function of iphlpapi writes: it says how much room it needs if there is too little."""
        import ctypes

        ask = getattr(ctypes.WinDLL("iphlpapi"), function)
        size = ctypes.c_ulong(0)
        status, buffer = _BUFFER_TOO_SMALL, ctypes.create_string_buffer(0)
        for _ in range(3):  # The table may grow in between.
            buffer = ctypes.create_string_buffer(size.value)
            status = ask(buffer, ctypes.byref(size), 0)
            if status != _BUFFER_TOO_SMALL:
                break
        return buffer.raw if status == 0 else b""


# --- Both ---------------------------------------------------------------------------------------------------------------


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def _parts(fingerprint_text: str) -> tuple[str, str]:
    subnet, _, gateway = fingerprint_text.partition("-")
    return subnet, gateway
