"""A search for connectors: what is taken, what is refused and why, and that neither flood nor lie can end or lengthen it.

Real sockets, on loopback only; whole networks are in tests/connector/test_ssdp_network.py.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address
from random import Random
from uuid import UUID

import psutil
import pytest

from broker import multicast, ssdp
from broker.ssdp import Address, IpAddress
from config import limits
from hub.discovery import Answer, Answers, judge, search

HASH = ssdp.site_hash_of("acme", "berlin")
USN = ssdp.usn_of(UUID(int=7))
TRUE = ip_address("192.0.2.1")
HERE = Address("eth0", 2, ip_address("192.0.2.9"), IPv4Network("192.0.2.0/24"))
HERE_V6 = Address("eth0", 2, ip_address("fe80::9"), IPv6Network("fe80::/10"))
GOOD = ssdp.build_response(USN, "mqtts://192.0.2.1:8883", HASH)


def loopback() -> Address:
    return next(address for address in multicast.usable_addresses() if address.ip.is_loopback)


def test_a_good_answer_may_be_tried() -> None:
    assert judge(GOOD, HERE, TRUE, HASH) == Answer("192.0.2.1:8883", "eth0", "192.0.2.1", USN, None)


def test_an_ipv6_answer_names_the_zone_it_was_heard_in() -> None:
    """The connector cannot know what the hub's interface is called; without a zone a link-local address is no address."""
    datagram = ssdp.build_response(USN, "mqtts://[fe80::1]:8883", HASH)
    zone = "2" if sys.platform == "win32" else "eth0"
    answer = judge(datagram, HERE_V6, ip_address("fe80::1"), HASH)
    assert (answer.endpoint, answer.why_not) == (f"[fe80::1%{zone}]:8883", None)


@pytest.mark.parametrize(
    ("datagram", "why_not"),
    [
        (b"\x00\xff", "malformed: ends within its fields"),
        (GOOD.replace(b"USN", b"NSU"), "malformed: has no USN"),
        (ssdp.build_search("239.255.255.250:1900", 1), "not an answer to a search"),
        (ssdp.build_byebye("239.255.255.250:1900", USN, HASH), "not an answer to a search"),
        (GOOD.replace(b"ST: urn:hubline-org", b"ST: urn:other-org"), "another kind of device"),
        (GOOD.replace(b"SITE.HUBLINE.ORG", b"SITE.OTHER.ORG"), "names no site"),
        (GOOD.replace(HASH.encode(), b"0" * 16), "a connector of another site"),
        (GOOD.replace(b"uuid:", b"id:"), "USN is not that of a connector"),
        (GOOD.replace(b"192.0.2.1", b"192.0.2.2"), "LOCATION names 192.0.2.2, but the answer came from 192.0.2.1"),
        (GOOD.replace(b"LOCATION", b"L"), "LOCATION is not mqtts://<address>:<port>"),
        (GOOD.replace(b"mqtts", b"http"), "LOCATION is not mqtts://<address>:<port>"),
        (GOOD.replace(b"192.0.2.1", b"example.com"), "LOCATION is not mqtts://<address>:<port>"),
        (GOOD.replace(b":8883", b":0"), "LOCATION holds no valid address and port"),
    ],
)
def test_every_other_answer_is_refused_with_its_reason(datagram: bytes, why_not: str) -> None:
    """The reasons are what `hubline doctor` shows to somebody who asks why the connector was not found."""
    answer = judge(datagram, HERE, TRUE, HASH)
    assert (answer.accepted, answer.why_not) == (False, why_not)
    assert (answer.interface, answer.source) == ("eth0", "192.0.2.1")


def test_an_answer_that_comes_twice_counts_once() -> None:
    """A search is sent twice, so that a connector mostly answers twice."""
    told: list[Answer] = []
    answers = Answers(HASH, [HERE], told.append)
    for _ in range(3):
        answers.hear(GOOD, HERE, TRUE, 1900, 0.0)
    assert answers.in_order() == told == [judge(GOOD, HERE, TRUE, HASH)]


def test_a_fake_that_answers_first_does_not_hide_the_true_connector() -> None:
    """Anybody can copy the site's hash; TLS finds the true one, if it is in the list."""
    answers = Answers(HASH, [HERE])
    fake = ip_address("192.0.2.66")
    for port in range(500):
        answers.hear(ssdp.build_response(USN, f"mqtts://192.0.2.66:{port + 1}", HASH), HERE, fake, 1900, 0.0)
    answers.hear(GOOD, HERE, TRUE, 1900, 0.1)
    given = [answer.endpoint for answer in answers.in_order()]
    assert given[-1] == "192.0.2.1:8883"
    assert len(given) == limits.SSDP_ANSWERS_PER_SOURCE + 1


def test_refused_answers_take_no_room_from_good_ones() -> None:
    """A site with many other devices, or a flood of rubbish, must not fill the list."""
    answers = Answers(HASH, [HERE])
    for number in range(1000):
        answers.hear(os.urandom(20), HERE, ip_address("10.0.0.0") + number, 1900, 0.0)
        foreign = GOOD.replace(HASH.encode(), b"%016x" % number)
        answers.hear(foreign, HERE, ip_address("10.1.0.0") + number, 1900, 0.0)
    answers.hear(GOOD, HERE, TRUE, 1900, 0.1)
    accepted = [answer for answer in answers.in_order() if answer.accepted]
    assert [answer.endpoint for answer in accepted] == ["192.0.2.1:8883"]
    assert answers.in_order()[0] == accepted[0]
    assert len(answers.in_order()) == 1 + limits.SSDP_ANSWERS_MAX


def test_the_list_of_answers_is_bounded() -> None:
    """A flood of good-looking answers from invented sources ends here; the hub does not try thousands of endpoints."""
    told: list[Answer] = []
    answers = Answers(HASH, [HERE], told.append)
    for number in range(1000):
        ip = ip_address("10.0.0.1") + number
        answers.hear(ssdp.build_response(USN, ssdp.location_of(ip, 8883), HASH), HERE, ip, 1900, 0.0)
    assert len(answers.in_order()) == len(told) == limits.SSDP_ANSWERS_MAX


def test_a_source_in_a_flood_is_not_even_read() -> None:
    """Past its rate a source costs a look into a table; its one good answer within the flood is the price."""
    answers = Answers(HASH, [HERE])
    for _ in range(1000):
        answers.hear(b"rubbish", HERE, TRUE, 1900, 0.0)
    answers.hear(GOOD, HERE, TRUE, 1900, 0.0)
    assert not any(answer.accepted for answer in answers.in_order())
    answers.hear(GOOD, HERE, TRUE, 1900, 1.0)
    assert any(answer.accepted for answer in answers.in_order())


def test_connectors_of_many_fleets_on_this_machine_are_all_heard() -> None:
    """They share an address; the answers of one must not use up the rate of another."""
    lo = loopback()
    answers = Answers(HASH, [lo])
    for port in range(100):
        answers.hear(GOOD.replace(HASH.encode(), b"0" * 16), lo, lo.ip, 2000 + port, 0.0)
    answers.hear(GOOD.replace(b"192.0.2.1", b"127.0.0.1"), lo, lo.ip, 3000, 0.0)
    assert answers.in_order()[0].endpoint == "127.0.0.1:8883"


def test_the_nearest_way_to_a_connector_comes_first() -> None:
    """The same machine answers on all its addresses: loopback needs no cable, and IPv4 is where brokers listen by default."""
    places: list[tuple[Address, IpAddress]] = [
        (HERE_V6, ip_address("fe80::1")),
        (HERE, TRUE),
        (HERE, ip_address("192.0.2.3")),
        (loopback(), ip_address("127.0.0.1")),
    ]
    for seed in range(5):
        answers = Answers(HASH, [HERE])
        shuffled = Random(seed).sample(places, len(places))
        for place, ip in shuffled:
            answers.hear(ssdp.build_response(USN, ssdp.location_of(ip, 8883), HASH), place, ip, 1900, 0.0)
        ipv4_as_heard = [str(ip) for place, ip in shuffled if place == HERE]
        assert [answer.source for answer in answers.in_order()] == ["127.0.0.1", *ipv4_as_heard, "fe80::1"]


class Device(asyncio.DatagramProtocol):
    """Anybody's device on loopback: answers each search for connectors with what it is told to."""

    def __init__(self, reply: Callable[[socket.socket, tuple[str, int]], None]):
        self.searches: list[tuple[ssdp.Search, tuple[str, int]]] = []
        self._reply = reply
        self._sender = multicast.open_sender(loopback())
        self._transport: asyncio.DatagramTransport | None = None
        self._closed = asyncio.Event()

    async def __aenter__(self) -> Device:
        sock = multicast.open_listener(loopback())
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=sock)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._transport is not None
        self._transport.close()
        await self._closed.wait()
        self._sender.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        message = ssdp.parse(data) if data.startswith(b"M-SEARCH") else None
        if isinstance(message, ssdp.Search) and message.st == ssdp.SEARCH_TARGET:
            self.searches.append((message, addr))
            self._reply(self._sender, addr)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()


def test_a_search_asks_twice_and_tells_of_an_answer_at_once(unique_name: str) -> None:
    """The first datagram may be lost; and the hub connects while the search still goes on."""
    payload = ssdp.build_response(USN, "mqtts://127.0.0.1:8883", ssdp.site_hash_of(unique_name, "berlin"))

    async def story() -> None:
        told: asyncio.Queue[Answer] = asyncio.Queue()
        async with Device(lambda sender, to: _send(sender, payload, to)) as device:
            searching = asyncio.create_task(
                search(unique_name, "berlin", interfaces=[loopback()], mx_s=3, found=told.put_nowait)
            )
            answer = await told.get()
            assert answer.endpoint == "127.0.0.1:8883"
            assert not searching.done()
            # Other fleets of this machine may answer too, and are refused.
            assert [other for other in await searching if other.accepted] == [answer]
            assert told.empty()
            ports: dict[int, int] = {}
            for asked, (_, port) in device.searches:
                if asked.mx_s == 3:
                    ports[port] = ports.get(port, 0) + 1
            assert 2 in ports.values()

    asyncio.run(story())


@pytest.mark.skipif(not hasattr(psutil.Process, "num_fds"), reason="this system counts handles, not descriptors")
def test_no_socket_is_open_after_a_search(unique_name: str) -> None:
    """A hub has no open port that anybody could speak to, also after a search that was given up."""

    async def story() -> None:
        lo = loopback()
        before = psutil.Process().num_fds()
        await search(unique_name, "berlin", interfaces=[lo])
        assert psutil.Process().num_fds() == before
        given_up = asyncio.create_task(search(unique_name, "berlin", interfaces=[lo], mx_s=5))
        for _ in range(1000):
            await asyncio.sleep(0)
            if psutil.Process().num_fds() > before:
                break
        assert psutil.Process().num_fds() > before
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert psutil.Process().num_fds() == before

    asyncio.run(story())


def test_an_interface_that_cannot_be_used_is_told_and_the_others_are_searched(unique_name: str) -> None:
    """A VPN that is half up must not keep the hub from the connector on the cable."""
    payload = ssdp.build_response(USN, "mqtts://127.0.0.1:8883", ssdp.site_hash_of(unique_name, "berlin"))

    async def story() -> None:
        gone = replace(loopback(), ip=ip_address("192.0.2.77"), interface="tun0")
        told: list[tuple[Address, str]] = []
        async with Device(lambda sender, to: _send(sender, payload, to)):
            answers = await search(
                unique_name,
                "berlin",
                interfaces=[gone, loopback()],
                failed=lambda address, reason: told.append((address, reason)),
            )
        assert [answer.endpoint for answer in answers if answer.accepted] == ["127.0.0.1:8883"]
        assert [address for address, _ in told] == [gone]
        assert told[0][1]

    asyncio.run(story())


def test_a_flood_of_answers_does_not_lengthen_the_search(unique_name: str) -> None:
    """ssdpy's own client took 14 s for a search of 2 s: its time-out begins anew with each datagram."""
    mine = ssdp.site_hash_of(unique_name, "berlin")
    good = ssdp.build_response(USN, "mqtts://127.0.0.1:8883", mine)
    rubbish = GOOD.replace(HASH.encode(), b"0" * 16)

    async def story() -> float:
        searchers: set[tuple[str, int]] = set()

        def reply(sender: socket.socket, to: tuple[str, int]) -> None:
            searchers.add(to)
            _send(sender, good, to)

        loop = asyncio.get_running_loop()
        async with Device(reply):
            with multicast.open_sender(loopback()) as flooder:
                searching = asyncio.create_task(search(unique_name, "berlin", interfaces=[loopback()]))
                began_at = loop.time()
                while not searching.done():
                    for to in searchers:
                        for _ in range(20):
                            _send(flooder, rubbish, to)
                    await asyncio.sleep(0)
                took_s = loop.time() - began_at
            assert (await searching)[0].endpoint == "127.0.0.1:8883"
        return took_s

    # Far more than it takes, far less than a search that waits for silence: the flood ends with the search only.
    assert asyncio.run(asyncio.wait_for(story(), 60)) < 4 * (limits.SSDP_MX_S + limits.SSDP_SEARCH_GRACE_S)


def _send(sender: socket.socket, payload: bytes, to: tuple[str, int]) -> None:
    try:
        sender.sendto(payload, to)
    except OSError:
        pass  # Full, or the searcher is gone: as on any network.
