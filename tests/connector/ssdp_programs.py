"""What the tests of SSDP run on the hosts of their networks: a connector's announcer, a hub's search, and those who mean ill.

Each prints a line of JSON for whatever happened, and the announcer stops at SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from uuid import UUID

import structlog

from broker import multicast, ssdp
from connector.announcing import Announcer
from hub.discovery import Answer, search


def say(what: str, **fields: object) -> None:
    print(json.dumps({"say": what, **fields}), flush=True)


async def announce(fleet: str, site: str, port: int, uuid: str, poll_s: float) -> None:
    structlog.configure(processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()])
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    announcer = Announcer(fleet, site, port, UUID(uuid), poll_s=poll_s)
    await announcer.start()
    say("ready")
    await stopping.wait()
    await announcer.stop()
    say("stopped")


async def find(fleet: str, site: str, mx_s: int) -> None:
    """Search once. `took` is measured in what the search may take."""

    def found(answer: Answer) -> None:
        say("found", endpoint=answer.endpoint)

    def failed(address: ssdp.Address, reason: str) -> None:
        say("failed", address=str(address.ip), reason=reason)

    started = time.monotonic()
    answers = await search(fleet, site, mx_s=mx_s, found=found, failed=failed)
    took = (time.monotonic() - started) / (mx_s + 0.5)
    shown = [[answer.endpoint, answer.interface, answer.source, answer.usn, answer.why_not] for answer in answers]
    say("answers", answers=shown, took=took)


async def await_endpoint(fleet: str, site: str, endpoint: str) -> None:
    """Search until an endpoint is found."""
    there = asyncio.Event()

    def found(answer: Answer) -> None:
        if answer.endpoint == endpoint:
            there.set()

    while not there.is_set():
        searching = asyncio.create_task(search(fleet, site, found=found))
        finding = asyncio.create_task(there.wait())
        await asyncio.wait([searching, finding], return_when=asyncio.FIRST_COMPLETED)
        searching.cancel()
        finding.cancel()
        await asyncio.wait([searching, finding])
    say("there", endpoint=endpoint)


def listen(interface: str) -> None:
    """Tell of every announcement of ours that is heard on one interface."""
    places = [address for address in multicast.usable_addresses() if address.interface == interface]
    sock = multicast.open_listener(places[0])
    sock.setblocking(True)
    say("ready")
    while True:
        datagram, sender = sock.recvfrom(4096)
        message = ssdp.parse(datagram)
        if isinstance(message, ssdp.Notification):
            say("heard", nts=message.nts, usn=message.usn, location=message.location, sender=sender[0])


def hold(shared: bool) -> None:
    """Hold port 1900, as programs do that share it (GNOME's set both options) or do not; the end of the process frees it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("0.0.0.0", ssdp.PORT))
        say("ready")
        signal.pause()


def pretend(fleet: str, site: str, flood: int) -> None:
    """Answer every search at once, as a connector of the site, `flood` times more from many ports, and with rubbish."""
    place = next(address for address in multicast.usable_addresses() if not address.ip.is_loopback)
    listener = multicast.open_listener(place)
    listener.setblocking(True)
    site_hash = ssdp.site_hash_of(fleet, site)
    senders = [multicast.open_sender(place) for _ in range(16)]
    seeded = random.Random(1)
    say("ready")
    while True:
        _, searcher = listener.recvfrom(4096)
        for number in range(1 + flood):
            usn = ssdp.usn_of(UUID(int=number))
            payload = ssdp.build_response(usn, ssdp.location_of(place.ip, 1 + number % 65535), site_hash)
            if number % 3 == 2:
                payload = seeded.randbytes(seeded.randrange(2000))
            senders[number % len(senders)].sendto(payload, searcher)
        say("pretended", count=1 + flood)


def attack(count: int) -> None:
    """Send hostile datagrams to the group, of every kind that we know, then searches in a flood."""
    place = next(address for address in multicast.usable_addresses() if not address.ip.is_loopback)
    senders = [multicast.open_sender(place) for _ in range(8)]
    group = multicast.group_address(place)
    good = ssdp.build_search(place.group_host, 1)
    seeded = random.Random(2)
    hostile = [
        b"",
        b"\0" * 1400,
        b"M-SEARCH * HTTP/1.1\r\n",
        b"M-SEARCH * HTTP/1.1\r\n\r\n",
        b"M-SEARCH * HTTP/1.1\r\nno colon\r\n\r\n",
        b"M-SEARCH * HTTP/1.1\r\nST:\xff\xfe\r\n\r\n",
        good.replace(b"MX:1", b"MX:-1"),
        good.replace(b"MX:1", b"MX:" + b"9" * 400),
        good.replace(b"MX:1", b"MX:nan"),
        good.replace(b"MX:1", b"MX:\xd9\xa1"),
        good.replace(b"ssdp:discover", b"ssdp:explode"),
        good.replace(b"ST:", b"ST:\x00"),
        good + b"x" * 8000,
        good[:-2] + b"A:b\r\n" * 300 + b"\r\n",
        b"NOTIFY * HTTP/1.1\r\nNT:\x01\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ]
    for number in range(count):
        payload = hostile[number % len(hostile)] if number % 4 else good
        if number % 16 == 7:
            mutated = bytearray(good)
            for _ in range(3):
                mutated[seeded.randrange(len(mutated))] = seeded.randrange(256)
            payload = bytes(mutated)
        try:
            senders[number % len(senders)].sendto(payload, group)
        except BlockingIOError:
            time.sleep(0.001)  # The queue of this machine is full.
    say("attacked", count=count)


def ask(*sources: str) -> None:
    """Search from each of these addresses of this host, and say to which an answer came."""
    place = next(address for address in multicast.usable_addresses() if not address.ip.is_loopback)
    asking = {}
    for source in sources:
        asking[source] = multicast.open_sender(replace(place, ip=ip_address(source)))
        asking[source].sendto(ssdp.build_search(place.group_host, 1), multicast.group_address(place))
    answered = []
    ends_at = time.monotonic() + 1.5  # MX and some more.
    while ready := select.select(list(asking.values()), [], [], max(0.0, ends_at - time.monotonic()))[0]:
        for sock in ready:
            sock.recv(4096)
            answered.append(sock.getsockname()[0])
    say("answered", sources=answered)


async def upnp(version: int) -> None:
    """Search with async-upnp-client until something answers."""
    from async_upnp_client.search import async_search  # A second to import, which no other role needs.

    place = next(a for a in multicast.usable_addresses() if a.ip.version == version and not a.ip.is_loopback)
    source = multicast.socket_address(place, place.ip, 0)
    answered = asyncio.Event()

    async def heard(headers: Mapping[str, str]) -> None:
        say("answer", **{name: headers[name] for name in ("st", "usn", "location")})
        answered.set()

    searching = asyncio.create_task(async_search(heard, 1, ssdp.SEARCH_TARGET, source, multicast.group_address(place)))
    await asyncio.wait([searching, asyncio.create_task(answered.wait())], return_when=asyncio.FIRST_COMPLETED)
    await searching


def main() -> None:
    parser = argparse.ArgumentParser()
    roles = parser.add_subparsers(dest="role", required=True)
    for role in ("announce", "find", "await", "listen", "hold", "pretend", "attack", "ask", "upnp"):
        its = roles.add_parser(role)
        if role in ("announce", "find", "await", "pretend"):
            its.add_argument("fleet")
            its.add_argument("site")
        match role:
            case "announce":
                its.add_argument("--port", type=int, default=8883)
                its.add_argument("--uuid", default=str(UUID(int=7)))
                its.add_argument("--poll", type=float, default=0.1)
            case "find":
                its.add_argument("--mx", type=int, default=1)
            case "await":
                its.add_argument("endpoint")
            case "listen":
                its.add_argument("interface")
            case "hold":
                its.add_argument("--shared", action="store_true")
            case "pretend":
                its.add_argument("--flood", type=int, default=0)
            case "attack":
                its.add_argument("count", type=int)
            case "ask":
                its.add_argument("sources", nargs="+")
            case "upnp":
                its.add_argument("version", type=int)
    told = parser.parse_args()
    match told.role:
        case "announce":
            asyncio.run(announce(told.fleet, told.site, told.port, told.uuid, told.poll))
        case "find":
            asyncio.run(find(told.fleet, told.site, told.mx))
        case "await":
            asyncio.run(await_endpoint(told.fleet, told.site, told.endpoint))
        case "listen":
            listen(told.interface)
        case "hold":
            hold(told.shared)
        case "pretend":
            pretend(told.fleet, told.site, told.flood)
        case "attack":
            attack(told.count)
        case "ask":
            ask(*told.sources)
        case "upnp":
            asyncio.run(upnp(told.version))
        case unknown:
            sys.exit(f"unknown role {unknown}")


if __name__ == "__main__":
    main()
