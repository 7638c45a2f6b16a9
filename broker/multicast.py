"""The sockets that SSDP needs, one per interface, and the addresses where it can be spoken; IPv4, IPv6, Linux, Windows.

Nothing here waits. Every function that opens a socket raises OSError and then leaves none open; the caller goes on with
the other interfaces.
"""

from __future__ import annotations

import socket
import struct
import sys
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Network, ip_address
from typing import Final, TypeAlias

import psutil

from broker.ssdp import GROUPS, PORT, Address, IpAddress
from config import limits

SocketAddress: TypeAlias = tuple[str, int] | tuple[str, int, int, int]

_LINK_LOCAL: Final = IPv6Network("fe80::/10")
_IP_MULTICAST_ALL: Final = 49
"""linux/in.h; the socket module has no name for it."""


def usable_addresses() -> list[Address]:
    """Return where SSDP can be spoken: IPv4 (loopback too) and IPv6 link-local, of every interface that is up.

    Loopback first, then IPv4, then IPv6; at most SSDP_INTERFACES_MAX. IPv6 on loopback is left out: there is no
    route for a group. Raises OSError where the system won't tell.
    """
    try:
        states, found = psutil.net_if_stats(), psutil.net_if_addrs()
    except psutil.Error as exc:
        raise OSError(str(exc)) from exc
    addresses: list[Address] = []
    for name, entries in found.items():
        interface = name.partition(":")[0] if sys.platform == "linux" else name  # "eth0:1" is a second address of eth0.
        state = states.get(interface)
        if state is None or not state.isup:
            continue
        for entry in entries:
            if entry.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            try:
                address = _address(interface, entry.address, entry.netmask)
            except ValueError:
                continue  # Of a form that nobody has met; the other addresses will do.
            # Windows tells no flags; loopback has not the flag on Linux and does it all the same.
            if address and (not state.flags or "multicast" in state.flags.split(",") or address.ip.is_loopback):
                addresses.append(address)
    addresses.sort(key=lambda address: (address.ip.version, not address.ip.is_loopback))
    return addresses[: limits.SSDP_INTERFACES_MAX]


def open_sender(address: Address) -> socket.socket:
    """Return a non-blocking socket on a free port of `address` that sends to the group of its interface.

    Raises OSError.
    """
    sock = socket.socket(_family(address), socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if address.ip.version == 4:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, _outgoing4(address))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, limits.SSDP_TTL)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, address.index)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, limits.SSDP_TTL)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
        sock.bind(socket_address(address, address.ip, 0))
    except OSError:
        sock.close()
        raise
    return sock


def open_listener(address: Address) -> socket.socket:
    """Return a non-blocking socket that hears the group on the interface of `address` and no other. Raises OSError.

    It shares port 1900 with every program that shares it too, by SO_REUSEADDR. Not by SO_REUSEPORT: among the sockets that
    set it, Linux gives each datagram from another host to one, on whichever interface. On Linux it takes nothing sent to
    the machine itself.
    """
    sock = socket.socket(_family(address), socket.SOCK_DGRAM)
    group = GROUPS[address.ip.version]
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.ip.version == 4:
            if sys.platform == "linux":
                sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
            sock.bind(socket_address(address, address.ip if sys.platform == "win32" else group, PORT))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group.packed + _interface4(address))
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(socket_address(address, address.ip if sys.platform == "win32" else group, PORT))
            membership = group.packed + struct.pack("@I", address.index)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
    except OSError:
        sock.close()
        raise
    return sock


def socket_address(address: Address, ip: IpAddress, port: int) -> SocketAddress:
    """Return what a socket of `address` is bound to, or sends to, for `ip` and `port` on its link."""
    host = str(ip).partition("%")[0]
    return (host, port) if ip.version == 4 else (host, port, 0, address.index)


def group_address(address: Address) -> SocketAddress:
    """Return where a multicast message from `address` goes."""
    return socket_address(address, GROUPS[address.ip.version], PORT)


def source_of(sender: object) -> tuple[IpAddress, int] | None:
    """Return address and port of a datagram's sender as asyncio tells it, without zone, or None if there is none."""
    match sender:
        case (str(host), int(port), *_):
            try:
                return ip_address(host.partition("%")[0]), port
            except ValueError:
                return None
        case _:
            return None


def endpoint_text(address: Address, ip: IpAddress, port: int) -> str:
    """Return "host:port" to connect to from here: a link-local address gets the zone that it was heard in."""
    if ip.version == 4:
        return f"{ip}:{port}"
    if not ip.is_link_local:
        return f"[{ip}]:{port}"
    return f"[{ip}%{address.index if sys.platform == 'win32' else address.interface}]:{port}"


def scope_of(ip: IPv6Address) -> int | None:
    """Return the index of the interface with this link-local address, by trying: Windows' names don't lead to it."""
    for index, _ in socket.if_nameindex():
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((str(ip), 0, 0, index))
            except OSError:
                continue
            return index
    return None


def _address(interface: str, text: str, netmask: str | None) -> Address | None:
    host, _, zone = text.partition("%")
    ip = ip_address(host)
    if isinstance(ip, IPv4Address):
        if ip.is_unspecified:
            return None
        index = 0 if sys.platform == "win32" else _index_of(interface)
        return None if index is None else Address(interface, index, ip, IPv4Interface(f"{ip}/{netmask or 32}").network)
    if ip not in _LINK_LOCAL:
        return None
    index = int(zone) if zone.isdecimal() else _index_of(zone) if zone else scope_of(ip)
    return None if index is None else Address(interface, index, ip, _LINK_LOCAL)


def _index_of(interface: str) -> int | None:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        return None  # Gone since it was listed.


def _family(address: Address) -> socket.AddressFamily:
    return socket.AF_INET if address.ip.version == 4 else socket.AF_INET6


def _interface4(address: Address) -> bytes:
    """Return what follows the group in a membership: the index (ip_mreqn) on Linux, the address alone on Windows."""
    return address.ip.packed + (struct.pack("=i", address.index) if sys.platform == "linux" else b"")


def _outgoing4(address: Address) -> bytes:
    return bytes(4) + _interface4(address) if sys.platform == "linux" else address.ip.packed
