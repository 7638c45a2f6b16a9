"""The advertiser as a table: what it sends for what it hears, and when."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from random import Random
from uuid import UUID

import pytest

from broker import ssdp
from broker.machine import Wakeup
from broker.ssdp import Address, IpAddress, Search
from config import limits
from connector.advertiser import (
    Advertiser,
    AdvertiserCommand,
    Announce,
    Answer,
    InterfacesChanged,
    SearchReceived,
    Started,
    Stopping,
)

UUID_7 = UUID(int=7)
HASH = ssdp.site_hash_of("acme", "berlin")
NOW = 1000.0


def address(interface: str, index: int, network: str, host: str) -> Address:
    subnet = ip_network(network)
    assert isinstance(subnet, IPv4Network | IPv6Network)
    return Address(interface, index, ip_address(host), subnet)


LO = address("lo", 1, "127.0.0.0/8", "127.0.0.1")
ETH0 = address("eth0", 2, "192.0.2.0/24", "192.0.2.1")
ETH0_SECOND = address("eth0", 2, "10.9.0.0/16", "10.9.0.1")
ETH0_V6 = address("eth0", 2, "fe80::/10", "fe80::1")
ETH1 = address("eth1", 3, "198.51.100.0/24", "198.51.100.1")
HUB = ip_address("192.0.2.9")


def started(*addresses: Address, seed: int = 1) -> Advertiser:
    """Return an advertiser whose first announcements are over."""
    advertiser = Advertiser(UUID_7, HASH, 8883, Random(seed))
    advertiser.handle(Started(addresses), NOW - 100)
    for second in range(-99, 0):
        advertiser.handle(Wakeup(), NOW + second)
    return advertiser


def heard(
    interface: str = "eth0", ip: IpAddress = HUB, port: int = 50_000, st: str = ssdp.SEARCH_TARGET, mx_s: int = 1
) -> SearchReceived:
    return SearchReceived(interface, ip, port, Search(st, mx_s))


def answers(advertiser: Advertiser, after_s: float, since: float = NOW) -> list[Answer]:
    """Return the answers that a wakeup after so many seconds brings."""
    commands = advertiser.handle(Wakeup(), since + after_s)
    return [command for command in commands if isinstance(command, Answer)]


def announced(commands: list[AdvertiserCommand]) -> list[tuple[str, str, str | None]]:
    """Return what announcements say: where, what, LOCATION."""
    said = []
    for command in commands:
        assert isinstance(command, Announce)
        message = ssdp.parse(command.payload)
        assert isinstance(message, ssdp.Notification)
        assert (message.nt, message.usn, message.site_hash) == (ssdp.SEARCH_TARGET, ssdp.usn_of(UUID_7), HASH)
        said.append((str(command.address.ip), message.nts, message.location))
    return said


@pytest.mark.parametrize("st", [ssdp.SEARCH_TARGET, "ssdp:all"])
def test_a_search_is_answered_to_its_sender_with_the_address_of_the_interface(st: str) -> None:
    advertiser = started(LO, ETH0, ETH1)
    assert advertiser.handle(heard(st=st), NOW) == []
    expected = ssdp.build_response(ssdp.usn_of(UUID_7), "mqtts://192.0.2.1:8883", HASH)
    assert answers(advertiser, 1.0) == [Answer(ETH0, HUB, 50_000, expected)]
    assert answers(advertiser, 2.0) == []


@pytest.mark.parametrize("st", ["upnp:rootdevice", "urn:hubline-org:device:connector:2", "ssdp:allx", "uuid:7"])
def test_a_search_for_something_else_is_not_answered(st: str) -> None:
    advertiser = started(ETH0)
    advertiser.handle(heard(st=st), NOW)
    assert answers(advertiser, 10.0) == []


def test_answers_are_spread_over_mx() -> None:
    """Many connectors, or one asked by many, must not answer in one burst (UPnP 1.1, 1.3.3)."""
    waits = []
    for seed in range(200):
        advertiser = started(ETH0, seed=seed)
        advertiser.handle(heard(mx_s=4), NOW)
        due_at = advertiser.deadline()
        assert due_at is not None
        assert answers(advertiser, due_at - NOW - 0.001) == []
        assert len(answers(advertiser, due_at - NOW)) == 1
        waits.append(due_at - NOW)
    assert 0.0 <= min(waits) < 0.4
    assert 3.6 < max(waits) <= 4.0
    assert 1.6 < sum(waits) / len(waits) < 2.4


def test_a_long_mx_is_taken_as_five_seconds() -> None:
    """An attacker's MX must not make us keep answers for hours."""
    for seed in range(50):
        advertiser = started(ETH0, seed=seed)
        advertiser.handle(heard(mx_s=9999), NOW)
        assert len(answers(advertiser, limits.SSDP_MX_MAX_S)) == 1


@pytest.mark.parametrize(
    ("interface", "searcher", "at"),
    [
        ("eth0", "192.0.2.9", ETH0),
        ("eth0", "10.9.7.7", ETH0_SECOND),
        ("eth0", "fe80::9", ETH0_V6),
        ("eth1", "198.51.100.9", ETH1),
        ("eth1", "192.168.7.7", ETH1),
        ("lo", "127.0.0.1", LO),
        ("eth0", "192.0.2.1", ETH0),
    ],
    ids=["its network", "second network", "IPv6", "other interface", "private, routed", "loopback", "this machine"],
)
def test_the_answer_comes_from_the_address_that_suits_the_searcher(interface: str, searcher: str, at: Address) -> None:
    """A hub connects to where the answer came from: it must be an address on its own link if there is one."""
    advertiser = started(LO, ETH0, ETH0_SECOND, ETH1, ETH0_V6)
    advertiser.handle(heard(interface, ip_address(searcher)), NOW)
    [answer] = answers(advertiser, 1.0)
    message = ssdp.parse(answer.payload)
    assert isinstance(message, ssdp.Response)
    assert answer.address == at
    assert message.location == ssdp.location_of(at.ip, 8883)


@pytest.mark.parametrize(
    ("interface", "searcher", "port"),
    [
        ("eth0", "8.8.8.8", 50_000),
        ("eth0", "2606:4700::1111", 50_000),
        ("eth0", "192.0.2.9", 0),
        ("eth0", "239.255.255.250", 1900),
        ("eth0", "0.0.0.0", 50_000),
        ("eth0", "ff02::c", 1900),
        ("wlan0", "192.0.2.9", 50_000),
        ("eth1", "fe80::9", 50_000),
    ],
    ids=[
        "off-link",
        "off-link IPv6",
        "port 0",
        "group",
        "unspecified",
        "IPv6 group",
        "no interface",
        "no such version",
    ],
)
def test_nobody_is_answered_who_cannot_have_asked(interface: str, searcher: str, port: int) -> None:
    """A search with an invented source would turn the answer on a victim; on the internet that is a known attack."""
    advertiser = started(ETH0, ETH0_V6, ETH1)
    advertiser.handle(heard(interface, ip_address(searcher), port), NOW)
    assert answers(advertiser, 10.0) == []


def test_a_source_is_answered_at_its_rate_and_others_are_not_hindered() -> None:
    advertiser = started(ETH0)
    for port in range(1000):
        advertiser.handle(heard(port=1000 + port), NOW)
    advertiser.handle(heard(ip=ip_address("192.0.2.10")), NOW)
    sent = answers(advertiser, 1.0)
    assert len([answer for answer in sent if answer.ip == HUB]) == limits.SSDP_PER_SOURCE_PER_S
    assert len([answer for answer in sent if answer.ip != HUB]) == 1
    advertiser.handle(heard(), NOW + 2)
    assert len(answers(advertiser, 3.0)) == 1


def test_many_programs_of_this_machine_are_all_answered() -> None:
    """A demo runs a whole fleet here; its hubs share an address."""
    advertiser = started(LO)
    for port in range(100):
        advertiser.handle(heard("lo", LO.ip, 1000 + port), NOW)
    assert len(answers(advertiser, 1.0)) == 100


def test_searches_that_nobody_answers_use_up_no_rate() -> None:
    """A desktop that searches for printers must not lose the answer to its hub."""
    advertiser = started(ETH0)
    for _ in range(100):
        advertiser.handle(heard(st="upnp:rootdevice"), NOW)
    advertiser.handle(heard(), NOW)
    assert len(answers(advertiser, 1.0)) == 1


def test_waiting_answers_are_bounded() -> None:
    """A flood from invented sources must cost neither memory nor a burst; whoever is not answered asks again."""
    advertiser = started(address("eth0", 2, "10.0.0.0/8", "10.0.0.1"))
    for number in range(5000):
        advertiser.handle(heard(ip=ip_address("10.1.0.0") + number, mx_s=5), NOW)
    assert len(answers(advertiser, 5.0)) == limits.SSDP_ANSWERS_PENDING_MAX
    advertiser.handle(heard(ip=ip_address("10.2.0.0")), NOW + 10)
    assert len(answers(advertiser, 11.0)) == 1


def test_alive_is_announced_at_the_start_on_every_interface_three_times() -> None:
    """A datagram gets lost; three hardly do."""
    advertiser = Advertiser(UUID_7, HASH, 8883, Random(1))
    said = announced(_until(advertiser, Started((ETH0, ETH0_V6)), NOW + 10))
    assert sorted(said) == [
        *[("192.0.2.1", "ssdp:alive", "mqtts://192.0.2.1:8883")] * 3,
        *[("fe80::1", "ssdp:alive", "mqtts://[fe80::1]:8883")] * 3,
    ]


def test_the_first_announcement_comes_within_a_tenth_of_a_second() -> None:
    """Soon, but not at one moment with every other machine that has just got power."""
    firsts = set()
    for seed in range(20):
        advertiser = Advertiser(UUID_7, HASH, 8883, Random(seed))
        assert advertiser.handle(Started((ETH0,)), NOW) == []
        first_at = advertiser.deadline()
        assert first_at is not None
        assert NOW <= first_at <= NOW + 0.1
        firsts.add(first_at)
    assert len(firsts) == 20


def test_alive_is_repeated_before_half_of_max_age() -> None:
    """Two announcements fit into max-age, so that one may get lost."""
    for seed in range(50):
        advertiser = started(ETH0, seed=seed)
        last_at = NOW - 97.0  # By then the first three were out.
        for _ in range(5):
            due_at = advertiser.deadline()
            assert due_at is not None
            assert limits.SSDP_MAX_AGE_S / 5 < due_at - last_at <= limits.SSDP_MAX_AGE_S / 2 + 3.0
            assert len(announced(advertiser.handle(Wakeup(), due_at))) == 1
            last_at = due_at


def test_after_a_long_sleep_alive_is_announced_once() -> None:
    """A laptop that wakes up after a night must not send a night's announcements."""
    advertiser = started(ETH0)
    assert len(announced(advertiser.handle(Wakeup(), NOW + 86_400))) == 1
    assert advertiser.handle(Wakeup(), NOW + 86_400) == []


def test_a_new_address_is_announced_and_the_old_ones_are_left_in_peace() -> None:
    advertiser = started(ETH0)
    said = announced(_until(advertiser, InterfacesChanged((ETH0, ETH1)), NOW + 10))
    assert said == [("198.51.100.1", "ssdp:alive", "mqtts://198.51.100.1:8883")] * 3


def test_an_address_that_is_gone_is_forgotten() -> None:
    """Neither answers nor announcements can leave from it any more."""
    advertiser = started(ETH0, ETH1)
    advertiser.handle(heard("eth0"), NOW)
    advertiser.handle(heard("eth1", ip_address("198.51.100.9")), NOW)
    advertiser.handle(InterfacesChanged((ETH1,)), NOW)
    assert [answer.address for answer in answers(advertiser, 1.0)] == [ETH1]
    assert {where for where, _, _ in announced(advertiser.handle(Wakeup(), NOW + 2000))} == {"198.51.100.1"}
    advertiser.handle(heard("eth0"), NOW + 2000)
    assert answers(advertiser, 2001.0) == []


def test_without_an_address_there_is_nothing_to_do() -> None:
    """A machine may start before its network."""
    advertiser = Advertiser(UUID_7, HASH, 8883, Random(1))
    assert advertiser.deadline() is None
    assert advertiser.handle(Started(()), NOW) == []
    assert advertiser.deadline() is None
    assert advertiser.handle(heard(), NOW) == []
    assert advertiser.deadline() is None


def test_byebye_is_said_everywhere_and_then_nothing() -> None:
    """After the leave, an answer or an announcement would bring hubs to a broker that is gone."""
    advertiser = started(ETH0, ETH1)
    advertiser.handle(heard(), NOW)
    said = announced(advertiser.handle(Stopping(), NOW))
    assert sorted(said) == [*[("192.0.2.1", "ssdp:byebye", None)] * 3, *[("198.51.100.1", "ssdp:byebye", None)] * 3]
    assert advertiser.deadline() is None
    for late in (heard(), InterfacesChanged((ETH0,)), Started((ETH0,)), Stopping(), Wakeup()):
        assert advertiser.handle(late, NOW + 5000) == []
    assert advertiser.deadline() is None


def test_one_seed_is_one_history() -> None:
    """A failing simulation must be repeatable."""

    def history(seed: int) -> list[tuple[float, list[AdvertiserCommand]]]:
        advertiser = Advertiser(UUID_7, HASH, 8883, Random(seed))
        steps = [(NOW, advertiser.handle(Started((ETH0, ETH1)), NOW)), (NOW, advertiser.handle(heard(mx_s=3), NOW))]
        for _ in range(20):
            due_at = advertiser.deadline()
            assert due_at is not None
            steps.append((due_at, advertiser.handle(Wakeup(), due_at)))
        return steps

    assert history(3) == history(3)
    assert history(3) != history(4)


def _until(advertiser: Advertiser, event: Started | InterfacesChanged, ends_at: float) -> list[AdvertiserCommand]:
    """Feed an event at NOW, then wake the advertiser exactly when it asks, until `ends_at`; return all commands."""
    commands = advertiser.handle(event, NOW)
    while (due_at := advertiser.deadline()) is not None and due_at < ends_at:
        commands += advertiser.handle(Wakeup(), due_at)
    return commands
