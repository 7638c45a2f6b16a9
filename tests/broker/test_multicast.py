"""Sockets for SSDP: the group is heard on the interface that was asked for, beside other programs, and nothing stays open.

On this machine only loopback is used; other interfaces are those of network namespaces.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
import time
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Address, ip_address

import psutil
import pytest

from broker import multicast
from broker.ssdp import Address
from tests.network import PATIENCE_S, Network, requires_root


def loopback() -> Address:
    return next(address for address in multicast.usable_addresses() if address.ip.is_loopback)


def test_loopback_is_usable_and_comes_first() -> None:
    """A whole fleet on one machine without a network must find itself."""
    first = multicast.usable_addresses()[0]
    assert first.ip == ip_address("127.0.0.1")
    assert first.network == IPv4Network("127.0.0.0/8")


def test_usable_addresses_are_ipv4_or_link_local_of_interfaces_that_are_up() -> None:
    """What psutil shows and is up is there once; IPv6 beyond link-local has no ff02::c."""
    usable = multicast.usable_addresses()
    assert len(set(usable)) == len(usable)
    for address in usable:
        assert psutil.net_if_stats()[address.interface].isup
        assert address.ip.version == 4 or address.ip.is_link_local
        assert address.ip in address.network


def test_the_group_is_heard_on_loopback_from_the_address_that_sent() -> None:
    """The hub compares LOCATION with the sender's address, so that address must be the interface's own."""
    with multicast.open_listener(loopback()) as listener, multicast.open_sender(loopback()) as sender:
        payload = b"hubline-test " + os.urandom(8).hex().encode()
        sender.sendto(payload, multicast.group_address(loopback()))
        assert _next_from(listener, payload) == sender.getsockname()
        assert sender.getsockname()[0] == "127.0.0.1"


def test_two_programs_hear_the_same_group() -> None:
    """Port 1900 belongs to nobody: media servers and desktops listen there too."""
    with (
        multicast.open_listener(loopback()) as one,
        multicast.open_listener(loopback()) as two,
        multicast.open_sender(loopback()) as sender,
    ):
        payload = b"hubline-test " + os.urandom(8).hex().encode()
        sender.sendto(payload, multicast.group_address(loopback()))
        assert _next_from(one, payload) == _next_from(two, payload) == sender.getsockname()


def test_an_address_that_is_not_ours_is_an_error_and_leaves_no_socket() -> None:
    """An interface may go between its listing and the opening; each poll would leak a descriptor. (A leaked one warns.)"""
    gone = replace(loopback(), ip=ip_address("192.0.2.77"))
    before = psutil.Process().num_fds() if hasattr(psutil.Process, "num_fds") else 0
    for _ in range(5):
        with pytest.raises(OSError, match=os.strerror(errno.EADDRNOTAVAIL)):
            multicast.open_sender(gone)
        with pytest.raises(OSError, match=os.strerror(errno.ENODEV)):
            multicast.open_listener(replace(gone, index=2**30))
    if before:
        assert psutil.Process().num_fds() == before


def test_endpoints_name_the_zone_of_a_link_local_address() -> None:
    """Without its zone, fe80::1 may be on any link."""
    here = Address("eth0", 2, ip_address("fe80::2"), multicast.usable_addresses()[0].network)
    zone = "2" if os.name == "nt" else "eth0"
    assert multicast.endpoint_text(here, ip_address("fe80::1"), 8883) == f"[fe80::1%{zone}]:8883"
    assert multicast.endpoint_text(here, ip_address("2001:db8::1"), 8883) == "[2001:db8::1]:8883"
    assert multicast.endpoint_text(here, ip_address("192.0.2.1"), 8883) == "192.0.2.1:8883"


@pytest.mark.parametrize(
    ("sender", "source"),
    [
        (("192.0.2.1", 1900), (ip_address("192.0.2.1"), 1900)),
        (("fe80::1", 1900, 0, 2), (ip_address("fe80::1"), 1900)),
        (("fe80::1%eth0", 1900, 0, 2), (ip_address("fe80::1"), 1900)),
        (("", 0), None),
        (("host.example.com", 1), None),
        (None, None),
        ("192.0.2.1", None),
    ],
)
def test_the_sender_of_a_datagram_is_an_address_or_nobody(sender: object, source: object) -> None:
    assert multicast.source_of(sender) == source


@pytest.mark.root
@requires_root
def test_interfaces_are_kept_apart(unique_name: str) -> None:
    """Heard on the wrong interface, a search would be answered with an address that the searcher cannot reach.

    What comes from other hosts takes another way through Linux than what comes from this one: both are tried.
    """
    with Network(unique_name) as network:
        here, there = network.host("here"), network.host("there")
        for number in (1, 2):
            lan = network.lan(f"lan{number}", f"10.77.{number}.0/24")
            here.join(lan, f"10.77.{number}.1")
            there.join(lan, f"10.77.{number}.2")
        here.join(network.lan("unused", "10.77.3.0/24"), "10.77.3.1", "eth2")
        here.run(["ip", "link", "set", "eth2", "down"])
        hearing = here.python("tests.broker.test_multicast", "hear")
        hearing.line("ready")
        for host in (here, there):
            assert host.python("tests.broker.test_multicast", "speak").wait() == 0
        hearing.line(f"heard {2 * 4 * TIMES} on their interfaces")
        assert hearing.wait() == 0


TIMES = 10


def speak() -> None:
    """Say to each group, from several ports, on which interface it is said."""
    for address in multicast.usable_addresses():
        for _ in range(TIMES if not address.ip.is_loopback else 0):
            with multicast.open_sender(address) as sender:
                payload = f"{address.interface} {address.ip.version}".encode()
                sender.sendto(payload, multicast.group_address(address))


def hear() -> None:
    """On a host with two LANs and one that is down: hear everything on its own interface, and on no other."""
    usable = multicast.usable_addresses()
    names = [("lo", 4), ("eth0", 4), ("eth1", 4), ("eth0", 6), ("eth1", 6)]
    assert [(address.interface, address.ip.version) for address in usable] == names, usable
    listeners = {multicast.open_listener(address): f"{address.interface} {address.ip.version}" for address in usable}
    for address in usable:
        if isinstance(address.ip, IPv6Address):
            assert multicast.scope_of(address.ip) == address.index
    print("ready", flush=True)
    heard = 0
    while heard < 2 * 4 * TIMES:
        ready = select.select(list(listeners), [], [], PATIENCE_S)[0]
        assert ready, f"heard only {heard}"
        for listener in ready:
            said = listener.recv(100).decode()
            assert said == listeners[listener], f"said on {said}, heard on {listeners[listener]}"
            heard += 1
    print(f"heard {heard} on their interfaces", flush=True)


def _next_from(listener: socket.socket, payload: bytes) -> object:
    """Return who sent the payload; others may speak on this machine too."""
    ends_at = time.monotonic() + PATIENCE_S
    while select.select([listener], [], [], max(0.0, ends_at - time.monotonic()))[0]:
        datagram, sender = listener.recvfrom(4096)
        if datagram == payload:
            return sender
    raise AssertionError("not heard")


if __name__ == "__main__":
    {"hear": hear, "speak": speak}[sys.argv[1]]()
