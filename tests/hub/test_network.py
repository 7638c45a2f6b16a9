"""A hub that was moved knows it, and one that can't tell does not pretend to."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import orjson
import pytest

from config import provision
from hub.memory import PathMemory
from hub.network import (
    Route,
    default_gateway,
    fingerprint_of,
    is_elsewhere,
    is_fuller,
    linux_neighbours,
    linux_routes,
    windows_neighbours,
    windows_routes,
)
from tests.network import Host, Network, requires_root, wait_until

HEAD = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
ARP_HEAD = "IP address       HW type     Flags       HW address            Mask     Device\n"
LITTLE = pytest.mark.skipif(sys.byteorder != "little", reason="the text is that of a little-endian machine")


def route(interface: str, destination: str, gateway: str | None = None, metric: int = 0) -> Route:
    return Route(interface, IPv4Network(destination), gateway and IPv4Address(gateway), metric)  # type: ignore[arg-type]


LAN = route("eth0", "192.168.1.0/24")
DEFAULT = route("eth0", "0.0.0.0/0", "192.168.1.1", 100)
GATEWAY = {("eth0", IPv4Address("192.168.1.1")): "02:00:00:00:00:01"}


@LITTLE
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", []),
        ("eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n", [DEFAULT]),
        ("eth0\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n", [LAN]),
        ("tun0\t00000000\t00000000\t0001\t0\t0\t50\t00000000\t0\t0\t0\n", [route("tun0", "0.0.0.0/0", None, 50)]),
        ("eth0\t00000000\t0101A8C0\t0002\t0\t0\t0\t00000000\t0\t0\t0\n", []),  # Not up.
        ("*\t0000000A\t00000000\t0201\t0\t0\t0\t000000FF\t0\t0\t0\n", []),  # Forbidden.
        ("eth0\t00000000\n", []),
        ("eth0\tzz\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n", []),
    ],
)
def test_routes_of_linux_are_read(lines: str, expected: list[Route]) -> None:
    assert linux_routes(HEAD + lines) == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", {}),
        ("192.168.1.1      0x1         0x2         02:00:00:00:00:01     *        eth0\n", GATEWAY),
        ("192.168.1.1      0x1         0x0         00:00:00:00:00:00     *        eth0\n", {}),
        ("nonsense\n", {}),
    ],
)
def test_neighbours_of_linux_are_read_if_resolved(lines: str, expected: dict[tuple[str, IPv4Address], str]) -> None:
    assert linux_neighbours(ARP_HEAD + lines) == expected


def forward_row(destination: str, mask: str, next_hop: str, index: int, kind: int, metric: int) -> bytes:
    addresses = [IPv4Address(text).packed for text in (destination, mask, next_hop)]
    row = addresses[0] + addresses[1] + bytes(4) + addresses[2] + struct.pack("<6I", index, kind, 3, 0, 0, metric)
    return row + struct.pack("<4i", -1, -1, -1, -1)


def neighbour_row(index: int, hardware: bytes, address: str, kind: int) -> bytes:
    return struct.pack("<II8s4sI", index, len(hardware), hardware, IPv4Address(address).packed, kind)


def test_tables_of_windows_are_read() -> None:
    """As iphlpapi documents them, in bytes; a table that says more rows than it has is not read past its end."""
    rows = [
        forward_row("0.0.0.0", "0.0.0.0", "192.168.1.1", 7, 4, 35),
        forward_row("192.168.1.0", "255.255.255.0", "192.168.1.20", 7, 3, 291),
        forward_row("10.0.0.5", "255.255.255.0", "192.168.1.20", 7, 3, 291),
    ]
    assert windows_routes(struct.pack("<I", 9) + b"".join(rows)) == [
        route("7", "0.0.0.0/0", "192.168.1.1", 35),
        route("7", "192.168.1.0/24", None, 291),
    ]
    neighbours = [
        neighbour_row(7, bytes.fromhex("020000000001"), "192.168.1.1", 3),
        neighbour_row(7, bytes.fromhex("020000000002"), "192.168.1.2", 2),
        neighbour_row(7, bytes(6), "192.168.1.3", 3),
    ]
    found = windows_neighbours(struct.pack("<I", 3) + b"".join(neighbours))
    assert found == {("7", IPv4Address("192.168.1.1")): "02:00:00:00:00:01"}
    assert windows_routes(b"") == []
    assert windows_neighbours(b"\1") == {}


def test_the_default_route_with_the_lowest_metric_counts() -> None:
    """A laptop in its dock has a second one by radio."""
    radio = route("wlan0", "0.0.0.0/0", "10.0.0.1", 600)
    assert default_gateway([radio, LAN, DEFAULT]) == DEFAULT
    assert default_gateway([LAN, route("tun0", "0.0.0.0/0", None, 1)]) is None


def test_a_fingerprint_follows_subnet_and_gateway() -> None:
    usual = fingerprint_of([DEFAULT, LAN], GATEWAY)
    assert usual is not None
    assert "192" not in usual
    assert fingerprint_of([LAN, DEFAULT], GATEWAY) == usual
    router = {("eth0", IPv4Address("192.168.1.1")): "02:00:00:00:00:99"}
    wide = route("eth0", "192.168.0.0/16")
    assert len({usual, fingerprint_of([DEFAULT, LAN], router), fingerprint_of([DEFAULT, wide], GATEWAY)}) == 3
    assert fingerprint_of([DEFAULT, wide, LAN], GATEWAY) == usual


@pytest.mark.parametrize("routes", [[], [LAN], [DEFAULT], [DEFAULT, route("eth1", "192.168.1.0/24")]])
def test_a_machine_without_a_gateway_on_its_link_has_none(routes: list[Route]) -> None:
    assert fingerprint_of(routes, GATEWAY) is None


@pytest.mark.parametrize(
    ("cached", "here", "elsewhere", "kept"),
    [
        (None, None, False, False),
        ("a-1", None, False, False),
        (None, "a-1", False, True),
        ("a-1", "a-1", False, False),
        ("a-1", "a-2", True, True),
        ("a-1", "b-1", True, True),
        ("a-1", "b-", True, True),
        ("a-1", "a-", False, False),
        ("a-", "a-1", False, True),
        ("a-", "a-", False, False),
        ("", "a-1", False, True),
    ],
)
def test_only_what_is_known_makes_another_network(
    cached: str | None, here: str | None, elsewhere: bool, kept: bool
) -> None:
    """The hardware address of the gateway is often not known yet when a machine has just started."""
    assert is_elsewhere(cached, here) is elsewhere
    assert is_fuller(here, cached) is kept


def test_the_network_is_remembered_beside_the_endpoints(tmp_path: Path) -> None:
    """Also in a file of a version that knew none."""
    file = tmp_path / "paths.json"
    file.write_text('{"endpoints":["10.0.0.1:8883"],"outage_ms":5}')
    memory = PathMemory(file)
    memory.remember_network("a-")
    memory.remember_network("a-1")
    memory.remember_network("a-")
    memory.remember_network(None)
    memory.remember(("10.0.0.2:8883",))
    memory.save_outage(None)
    kept = PathMemory(file).kept
    assert (kept.endpoints, kept.outage_ms, kept.network) == (("10.0.0.2:8883",), None, "a-1")


# --- In real networks ----------------------------------------------------------------------------------------------------

TELL = "from hub import network; network.ask_gateway(); print(network.fingerprint())"


@pytest.fixture
def network(unique_name: str) -> Iterator[Network]:
    with Network(unique_name) as network:
        yield network


def in_a_network(network: Network, number: int, subnet: str, gateway: str, own: str) -> Host:
    lan = network.lan(f"lan{number}", subnet)
    network.host(f"gw{number}").join(lan, gateway)
    host = network.host(f"pc{number}")
    host.join(lan, own)
    return host


def told(host: Host) -> str:
    """Return the fingerprint of a host's network, once its gateway has answered."""
    known: list[str] = []

    def gateway_is_known() -> bool:
        known.append(host.run([sys.executable, "-c", TELL]).strip())
        return known[-1] != "None" and not known[-1].endswith("-")

    wait_until(gateway_is_known, "the gateway's hardware address is known")
    return known[-1]


@requires_root
@pytest.mark.root
def test_two_networks_with_the_same_addresses_are_told_apart_by_their_gateways(network: Network) -> None:
    """Half of all small offices are 192.168.1.0/24."""
    hosts = [in_a_network(network, number, "192.168.1.0/24", "192.168.1.1", "192.168.1.20") for number in (1, 2)]
    assert hosts[0].run([sys.executable, "-c", TELL]).strip() == "None"
    for host in hosts:
        host.route("default", "192.168.1.1")
    first, second = told(hosts[0]), told(hosts[1])
    assert first == told(hosts[0])
    assert is_elsewhere(first, second)
    assert first.partition("-")[0] == second.partition("-")[0]


@requires_root
@pytest.mark.root
def test_a_hub_notices_at_its_start_that_it_was_moved(network: Network, tmp_path: Path, unique_name: str) -> None:
    """And the same file in the network where it was written means nothing."""
    provision.init(tmp_path / "fleet", unique_name)
    file = provision.hub(tmp_path / "fleet", "pc-1", "berlin").settings
    (file.parent / "data").mkdir(exist_ok=True)
    host = in_a_network(network, 1, "192.168.1.0/24", "192.168.1.1", "192.168.1.20")
    host.route("default", "192.168.1.1")

    def events_until_started(fingerprint: str) -> list[object]:
        memory = {"endpoints": ["192.168.1.9:8883"], "network": fingerprint}
        (file.parent / "data" / "paths.json").write_text(json.dumps(memory))
        command = [sys.executable, "-c", "from config.cli import main; main()", "hub", "run", "-c", str(file)]
        program = host.start(command, env={"HUBLINE_LOG__FORMAT": '"json"'})
        program.line("hub_started")
        program.stop()
        return [orjson.loads(line)["event"] for line in program.lines]

    assert "network_changed" not in events_until_started(told(host))
    assert "network_changed" in events_until_started("00000000-00000000")
