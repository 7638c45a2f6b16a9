"""Connectors are found on real networks, by our hubs and by other people's tools, whatever else is on the network.

On this machine only loopback is used; LANs are network namespaces.
"""

from __future__ import annotations

import asyncio
import json
import select
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any
from uuid import UUID

import psutil
import pytest
import structlog
from structlog.testing import capture_logs

from broker import multicast, ssdp
from broker.ssdp import Address
from connector.announcing import Announcer
from hub.discovery import search
from tests.network import PATIENCE_S, Host, Lan, Network, Program, requires_root

PROGRAMS = "tests.connector.ssdp_programs"
USN = ssdp.usn_of(UUID(int=7))


def loopback() -> Address:
    return next(address for address in multicast.usable_addresses() if address.ip.is_loopback)


# --- On loopback -------------------------------------------------------------------------------------------------------


def announcer(fleet: str, port: int, number: int) -> Announcer:
    return Announcer(fleet, "berlin", port, UUID(int=number), random=Random(number), interfaces=lambda: [loopback()])


def test_fleets_on_one_machine_find_each_their_own_connector(unique_name: str) -> None:
    """A demo and a test run may share a machine; port 1900 belongs to nobody alone."""

    async def story() -> None:
        fleets = {f"{unique_name}-{number}": 8000 + number for number in range(3)}
        announcers = [announcer(fleet, port, port) for fleet, port in fleets.items()]
        for one in announcers:
            await one.start()
        try:
            searches = [search(fleet, "berlin", interfaces=[loopback()]) for fleet in fleets for _ in range(2)]
            for number, answers in enumerate(await asyncio.gather(*searches)):
                found = [(answer.endpoint, answer.usn) for answer in answers if answer.accepted]
                port = 8000 + number // 2
                assert found == [(f"127.0.0.1:{port}", ssdp.usn_of(UUID(int=port)))]
        finally:
            for one in announcers:
                await one.stop()

    asyncio.run(story())


def test_a_connector_that_has_stopped_is_not_found_and_has_no_socket(unique_name: str) -> None:
    async def story() -> None:
        open_before = _open_sockets()
        one = announcer(unique_name, 8883, 1)
        await one.start()
        assert _open_sockets() > open_before
        await one.stop()
        await one.stop()
        assert _open_sockets() == open_before
        answers = await search(unique_name, "berlin", interfaces=[loopback()])
        assert not [answer for answer in answers if answer.accepted]

    asyncio.run(story())


def test_start_and_stop_are_announced(unique_name: str) -> None:
    """Other people's tools show what is there from the announcements alone."""
    usn = ssdp.usn_of(UUID(int=0xA11CE))
    with multicast.open_listener(loopback()) as listener:

        async def story() -> None:
            one = announcer(unique_name, 8883, 0xA11CE)
            await one.start()
            alive = await asyncio.to_thread(_next_notification, listener, usn)
            assert (alive.nts, alive.location) == ("ssdp:alive", "mqtts://127.0.0.1:8883")
            await one.stop()
            while (last := await asyncio.to_thread(_next_notification, listener, usn)).nts == "ssdp:alive":
                pass
            assert (last.nts, last.location) == ("ssdp:byebye", None)

        asyncio.run(story())


def test_no_usable_interface_is_no_failure(unique_name: str) -> None:
    """A connector may start before its network, and psutil may fail in a container; both are tried again."""
    looks: Iterator[list[Address] | OSError] = iter([[], OSError("no permission"), [loopback()]])

    def interfaces() -> list[Address]:
        look = next(looks, [loopback()])
        if isinstance(look, OSError):
            raise look
        return look

    async def story() -> None:
        one = Announcer(unique_name, "berlin", 8883, UUID(int=1), interfaces=interfaces, poll_s=0.01)
        await one.start()
        try:
            for _ in range(20):
                if any(answer.accepted for answer in await search(unique_name, "berlin", interfaces=[loopback()])):
                    return
            pytest.fail("not found after its interface came")
        finally:
            await one.stop()

    structlog.reset_defaults()
    with capture_logs() as logs:
        asyncio.run(story())
    assert [(line["log_level"], line["event"]) for line in logs if line.get("what") == "interfaces"] == [
        ("warning", "ssdp_failed"),
        ("info", "ssdp_recovered"),
    ]


def test_a_fault_of_ours_in_the_background_is_seen_at_the_stop(unique_name: str) -> None:
    """A task that died in silence would leave a connector deaf to new interfaces for ever."""
    looks = iter([[loopback()]])
    asked_again = threading.Event()

    def interfaces() -> list[Address]:
        for look in looks:
            return look
        asked_again.set()
        raise ZeroDivisionError

    async def story() -> None:
        one = Announcer(unique_name, "berlin", 8883, UUID(int=1), interfaces=interfaces, poll_s=0.001)
        open_before = _open_sockets()
        await one.start()
        await asyncio.to_thread(asked_again.wait, PATIENCE_S)
        with pytest.raises(ZeroDivisionError):
            await one.stop()
        assert _open_sockets() == open_before

    asyncio.run(story())


def _open_sockets() -> int:
    return len(psutil.Process().net_connections("udp"))


def _next_notification(listener: socket.socket, usn: str) -> ssdp.Notification:
    ends_at = time.monotonic() + PATIENCE_S
    while select.select([listener], [], [], max(0.0, ends_at - time.monotonic()))[0]:
        datagram = listener.recv(4096)
        if datagram.startswith(b"NOTIFY"):
            message = ssdp.parse(datagram)
            if isinstance(message, ssdp.Notification) and message.usn == usn:
                return message
    raise AssertionError("no announcement was heard")


# --- On a LAN ----------------------------------------------------------------------------------------------------------


@dataclass
class Site:
    """A LAN 10.77.1.0/24 with a connector (.1), a hub (.2) and a stranger (.66)."""

    network: Network
    lan: Lan
    connector: Host
    hub: Host
    stranger: Host


@contextmanager
def site(name: str, *, ipv6: bool = True) -> Iterator[Site]:
    with Network(name) as network:
        lan = network.lan("site", "10.77.1.0/24")
        hosts = [network.host(host, ipv6=ipv6) for host in ("connector", "hub", "stranger")]
        for host, number in zip(hosts, (1, 2, 66), strict=True):
            host.join(lan, f"10.77.1.{number}")
        yield Site(network, lan, *hosts)


def announce(host: Host, *arguments: str) -> Program:
    program = host.python(PROGRAMS, "announce", "acme", "berlin", *arguments)
    program.line('"ready"')
    return program


def found(host: Host, name: str = "berlin", mx_s: int = 1) -> dict[str, Any]:
    """Search on a host and return what it found: acceptable endpoints, `refused` ones with the reason, and `took`."""
    program = host.python(PROGRAMS, "find", "acme", name, "--mx", str(mx_s))
    said = json.loads(program.line('"answers"'))
    assert program.wait() == 0
    return {
        "endpoints": [endpoint for endpoint, *_, why_not in said["answers"] if why_not is None],
        "refused": {(source, why_not) for _, _, source, _, why_not in said["answers"] if why_not is not None},
        "took": said["took"],
        "lines": [json.loads(line) for line in program.lines],
    }


def finds(host: Host, endpoint: str) -> None:
    """Search on a host until an endpoint is found, which must be soon."""
    program = host.python(PROGRAMS, "await", "acme", "berlin", endpoint)
    program.line('"there"')
    assert program.wait() == 0


@pytest.mark.root
@requires_root
def test_a_hub_finds_the_connector_of_its_site_over_ipv4_and_ipv6(unique_name: str) -> None:
    with site(unique_name) as lan:
        announce(lan.connector, "--port", "8884")
        here = found(lan.hub)
        link_local = lan.connector.link_local("eth0")
        assert here["endpoints"] == ["10.77.1.1:8884", f"[{link_local}%eth0]:8884"]
        elsewhere = found(lan.hub, "bonn")
        assert elsewhere["endpoints"] == []
        assert elsewhere["refused"] == {
            ("10.77.1.1", "a connector of another site"),
            (link_local, "a connector of another site"),
        }


@pytest.mark.root
@requires_root
@pytest.mark.skipif(
    shutil.which("gssdp-discover") is None, reason="gssdp-discover (package gupnp-tools) is not installed"
)
@pytest.mark.parametrize("target", [ssdp.SEARCH_TARGET, "ssdp:all"])
def test_gssdp_discover_finds_our_connector(unique_name: str, target: str) -> None:
    """GNOME's implementation of SSDP, independent of ours and of ssdpy."""
    with site(unique_name) as lan:
        announce(lan.connector)
        discover = lan.hub.start(["gssdp-discover", "-i", "eth0", "-t", target, "-n", "5", "-m", "available"])
        discover.line("resource available")
        assert discover.line("USN").split()[-1] == USN
        assert "mqtts://10.77.1.1:8883" in discover.line("Location")


@pytest.mark.root
@requires_root
@pytest.mark.skipif(
    shutil.which("gssdp-discover") is None, reason="gssdp-discover (package gupnp-tools) is not installed"
)
def test_gssdp_discover_hears_alive_and_byebye(unique_name: str) -> None:
    """It listens to announcements too: the leave of a connector is seen without a search."""
    with site(unique_name) as lan:
        discover = lan.hub.start(["gssdp-discover", "-i", "eth0", "-t", ssdp.SEARCH_TARGET, "-m", "all"])
        discover.line("Scanning")
        connector = announce(lan.connector)
        discover.line("resource available")
        assert connector.stop() == 0
        discover.line("resource unavailable")


@pytest.mark.root
@requires_root
@pytest.mark.parametrize("version", [4, 6])
def test_async_upnp_client_finds_our_connector(unique_name: str, version: int) -> None:
    """The library that home-automation systems use; it reads answers more strictly than most."""
    with site(unique_name) as lan:
        announce(lan.connector)
        program = lan.hub.python(PROGRAMS, "upnp", str(version))
        answer = json.loads(program.line('"answer"'))
        host = "10.77.1.1" if version == 4 else f"[{lan.connector.link_local('eth0')}]"
        assert answer["st"] == ssdp.SEARCH_TARGET
        assert answer["usn"] == USN
        # It adds its own zone to a link-local LOCATION.
        assert answer["location"].replace("%252", "%").partition("%")[0].rstrip("]") in f"mqtts://{host}:8883"
        assert program.wait() == 0


@pytest.mark.root
@requires_root
def test_a_fake_connector_that_answers_first_does_not_hide_the_true_one(unique_name: str) -> None:
    """It knows the site's hash and does not wait; the hub gets both, and TLS decides."""
    with site(unique_name) as lan:
        announce(lan.connector)
        lan.stranger.python(PROGRAMS, "pretend", "acme", "berlin").line('"ready"')
        here = found(lan.hub)
        in_time = [line["endpoint"] for line in here["lines"] if line["say"] == "found"]
        assert in_time[0].startswith("10.77.1.66:")
        assert "10.77.1.1:8883" in in_time
        assert "10.77.1.1:8883" in here["endpoints"]


@pytest.mark.root
@requires_root
def test_a_flood_of_answers_neither_hides_the_true_one_nor_lengthens_the_search(unique_name: str) -> None:
    """ssdpy's client took seven times as long, and kept every one."""
    with site(unique_name) as lan:
        announce(lan.connector)
        lan.stranger.python(PROGRAMS, "pretend", "acme", "berlin", "--flood", "3000").line('"ready"')
        here = found(lan.hub)
        assert "10.77.1.1:8883" in here["endpoints"]
        assert len([endpoint for endpoint in here["endpoints"] if endpoint.startswith("10.77.1.66")]) <= 4
        assert here["took"] < 4


@pytest.mark.root
@requires_root
def test_hostile_datagrams_and_a_flood_of_searches_do_not_stop_the_answers(unique_name: str) -> None:
    """One malformed datagram ended ssdpy's server."""
    with site(unique_name) as lan:
        connector = announce(lan.connector)
        attacks = [lan.stranger.python(PROGRAMS, "attack", "3000") for _ in range(2)]
        during = found(lan.hub, mx_s=2)
        for attack in attacks:
            attack.line('"attacked"')
        assert "10.77.1.1:8883" in during["endpoints"]
        finds(lan.hub, "10.77.1.1:8883")
        assert connector.stop() == 0
        assert connector.lines[-1] == '{"say": "stopped"}', connector.lines
        assert not [line for line in connector.lines if "Traceback" in line or "Exception" in line]


@pytest.mark.root
@requires_root
def test_a_connector_on_two_lans_answers_each_with_its_address_there(unique_name: str) -> None:
    """An office and a plant network, say: the address on the other LAN would lead nowhere."""
    with site(unique_name) as lan:
        plant = lan.network.lan("plant", "10.77.2.0/24")
        machine = lan.network.host("machine")
        lan.connector.join(plant, "10.77.2.1")
        machine.join(plant, "10.77.2.2")
        announce(lan.connector)
        assert found(lan.hub)["endpoints"] == [
            "10.77.1.1:8883",
            f"[{lan.connector.link_local('eth0')}%eth0]:8883",
        ]
        assert found(machine)["endpoints"] == [
            "10.77.2.1:8883",
            f"[{lan.connector.link_local('eth1')}%eth0]:8883",
        ]


@pytest.mark.root
@requires_root
def test_a_hub_with_several_interfaces_searches_on_all_of_them(unique_name: str) -> None:
    """The default route may lead into a VPN where no connector is."""
    with site(unique_name) as lan:
        vpn = lan.network.lan("vpn", "10.99.0.0/16")
        lan.hub.join(vpn, "10.99.0.2", "tun0")
        lan.hub.route("default", "10.99.0.1")
        announce(lan.connector)
        finds(lan.hub, "10.77.1.1:8883")


@pytest.mark.root
@requires_root
def test_interfaces_may_come_and_go(unique_name: str) -> None:
    """A dock, a VPN, a cable that is moved: the connector follows, and announces itself where it is new."""
    with site(unique_name) as lan:
        connector = announce(lan.connector)
        plant = lan.network.lan("plant", "10.77.2.0/24")
        machine = lan.network.host("machine")
        machine.join(plant, "10.77.2.2")
        listener = machine.python(PROGRAMS, "listen", "eth0")
        listener.line('"ready"')
        for interface in ("eth1", "eth2"):
            lan.connector.join(plant, "10.77.2.1", interface)
            assert '"mqtts://10.77.2.1:8883"' in listener.line('"ssdp:alive"')
            finds(machine, "10.77.2.1:8883")
            lan.connector.leave(plant)
        assert found(machine)["endpoints"] == []
        finds(lan.hub, "10.77.1.1:8883")
        assert connector.stop() == 0


@pytest.mark.root
@requires_root
def test_a_cut_link_and_silent_loss_are_survived(unique_name: str) -> None:
    """Nothing is found while the link is down, all is found afterwards, without a restart."""
    with site(unique_name) as lan:
        connector = announce(lan.connector)
        lan.connector.cut(lan.lan)
        assert found(lan.hub)["endpoints"] == []
        lan.connector.mend(lan.lan)
        finds(lan.hub, "10.77.1.1:8883")
        lan.connector.drop()
        assert found(lan.hub)["endpoints"] == []
        lan.connector.drop_nothing()
        finds(lan.hub, "10.77.1.1:8883")
        assert connector.stop() == 0


@pytest.mark.root
@requires_root
def test_byebye_is_heard_on_every_interface_at_a_clean_stop(unique_name: str) -> None:
    with site(unique_name) as lan:
        plant = lan.network.lan("plant", "10.77.2.0/24")
        machine = lan.network.host("machine")
        lan.connector.join(plant, "10.77.2.1")
        machine.join(plant, "10.77.2.2")
        listeners = [host.python(PROGRAMS, "listen", "eth0") for host in (lan.hub, machine)]
        for listener in listeners:
            listener.line('"ready"')
        connector = announce(lan.connector)
        for listener, host in zip(listeners, ("10.77.1.1", "10.77.2.1"), strict=True):
            alive = json.loads(listener.line('"ssdp:alive"'))
            assert (alive["usn"], alive["location"], alive["sender"]) == (USN, f"mqtts://{host}:8883", host)
        assert connector.stop() == 0
        for listener in listeners:
            assert json.loads(listener.line('"ssdp:byebye"'))["usn"] == USN


@pytest.mark.root
@requires_root
def test_loopback_alone_is_enough(unique_name: str) -> None:
    """A laptop in a train runs the demo."""
    with Network(unique_name) as network:
        alone = network.host("alone")
        announce(alone)
        assert found(alone)["endpoints"] == ["127.0.0.1:8883"]


@pytest.mark.root
@requires_root
def test_no_route_for_multicast_and_no_ipv6_are_no_obstacles(unique_name: str) -> None:
    """Plant networks have no default route, and many administrators switch IPv6 off."""
    with site(unique_name, ipv6=False) as lan:
        for host in (lan.connector, lan.hub):
            host.run(["ip", "route", "add", "unreachable", "224.0.0.0/4"])
        announce(lan.connector)
        assert found(lan.hub)["endpoints"] == ["10.77.1.1:8883"]


@pytest.mark.root
@requires_root
def test_port_1900_is_shared_with_programs_that_share_it(unique_name: str) -> None:
    with site(unique_name) as lan:
        lan.connector.python(PROGRAMS, "hold", "--shared").line('"ready"')
        connector = announce(lan.connector)
        finds(lan.hub, "10.77.1.1:8883")
        assert connector.stop() == 0
        assert "warning" not in "\n".join(connector.lines)


@pytest.mark.root
@requires_root
def test_a_program_that_does_not_share_port_1900_costs_one_warning_and_is_waited_for(unique_name: str) -> None:
    """It holds IPv4 only: IPv6 is answered meanwhile, and IPv4 too as soon as that program has ended."""
    with site(unique_name) as lan:
        holder = lan.connector.python(PROGRAMS, "hold")
        holder.line('"ready"')
        connector = announce(lan.connector)
        assert found(lan.hub)["endpoints"] == [f"[{lan.connector.link_local('eth0')}%eth0]:8883"]
        holder.stop()
        connector.line("ssdp_recovered")
        finds(lan.hub, "10.77.1.1:8883")
        assert connector.stop() == 0
        warnings = [line for line in connector.lines if '"warning"' in line]
        assert len(warnings) == 1
        assert "10.77.1.1" in warnings[0]
        assert "in use" in warnings[0]


@pytest.mark.root
@requires_root
def test_a_stranger_from_another_network_is_not_answered(unique_name: str) -> None:
    """A search with an invented public source would make the connector a weapon against that address."""
    with site(unique_name) as lan:
        announce(lan.connector)
        lan.connector.route("8.8.8.0/24", "10.77.1.66")
        lan.stranger.run(["ip", "address", "add", "8.8.8.8/32", "dev", "eth0"])
        lan.connector.run(["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.eth0.rp_filter=0"])
        asked = lan.stranger.python(PROGRAMS, "ask", "8.8.8.8", "10.77.1.66")
        assert json.loads(asked.line('"answered"'))["sources"] == ["10.77.1.66"]
        assert asked.wait() == 0
