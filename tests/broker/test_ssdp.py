"""The SSDP codec: what is sent reads back, what is hostile is refused, and nothing else ever happens."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker import ssdp
from config import limits
from config.errors import ProtocolError

UUID_1 = UUID("2fac1234-31f8-11b4-a222-08002b34c003")
USN = "uuid:2fac1234-31f8-11b4-a222-08002b34c003::urn:hubline-org:device:connector:1"
HASH = "0123456789abcdef"
SEARCH = ssdp.build_search("239.255.255.250:1900", 1)
RESPONSE = ssdp.build_response(USN, "mqtts://192.0.2.1:8883", HASH)
ALIVE = ssdp.build_alive("239.255.255.250:1900", USN, "mqtts://192.0.2.1:8883", HASH)
BYEBYE = ssdp.build_byebye("[ff02::c]:1900", USN, HASH)


def test_a_search_reads_back() -> None:
    assert ssdp.parse(SEARCH) == ssdp.Search("urn:hubline-org:device:connector:1", 1)


def test_an_answer_is_a_200_that_reads_back() -> None:
    """UPnP control points take an answer by its status line, EXT and max-age; ssdpy's own server sends none of them."""
    assert RESPONSE.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nEXT:\r\n" in RESPONSE
    assert b"\r\nCACHE-CONTROL: max-age=1800\r\n" in RESPONSE
    assert ssdp.parse(RESPONSE) == ssdp.Response(ssdp.SEARCH_TARGET, USN, "mqtts://192.0.2.1:8883", HASH)


def test_announcements_read_back() -> None:
    assert ssdp.parse(ALIVE) == ssdp.Notification(ssdp.SEARCH_TARGET, "ssdp:alive", USN, "mqtts://192.0.2.1:8883", HASH)
    assert ssdp.parse(BYEBYE) == ssdp.Notification(ssdp.SEARCH_TARGET, "ssdp:byebye", USN, None, HASH)
    assert b"max-age=1800\r\n" in ALIVE


def test_the_site_hash_is_what_the_contract_says() -> None:
    """Hubs and connectors of different versions must agree on it: SHA-256 of fleet, slash, site; 16 hex digits."""
    assert ssdp.site_hash_of("acme", "berlin") == "07f4960cec5b3c65"
    assert ssdp.site_hash_of("acme", "berlin") != ssdp.site_hash_of("acme", "bonn")


def test_field_names_may_be_in_any_case_and_order() -> None:
    datagram = b'M-SEARCH * HTTP/1.1\r\nmx: 3\r\nSt:  ssdp:all \r\nX-New: yes\r\nman: "ssdp:discover"\r\n\r\n'
    assert ssdp.parse(datagram) == ssdp.Search("ssdp:all", 3)


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\n\r\n",
        SEARCH.replace(b"\r\n", b"\n"),
        SEARCH[:-2],
        SEARCH[:-4],
        SEARCH[:30],
        SEARCH.replace(b"MAN", b"NAM"),
        SEARCH.replace(b"ssdp:discover", b"ssdp:other"),
        SEARCH.replace(b"MX:1", b"MX:0"),
        SEARCH.replace(b"MX:1", b"MX:-1"),
        SEARCH.replace(b"MX:1", b"MX:1.5"),
        SEARCH.replace(b"MX:1", b"MX:"),
        SEARCH.replace(b"MX:1", b"MX:" + b"9" * 1500),
        SEARCH.replace(b"MX:1", "MX:١".encode()),
        SEARCH.replace(b"MX:1\r\n", b""),
        SEARCH.replace(b"ST:urn", b"ST:\0urn"),
        SEARCH.replace(b"ST:urn", b"ST:a\rb"),
        SEARCH.replace(b"ST:urn", b"ST:\xff"),
        SEARCH.replace(b"\r\nMX", b"\r\nno colon\r\nMX"),
        SEARCH.replace(b"\r\nMX", b"\r\nMX:5\r\nMX"),
        SEARCH[:-2] + b"X: " + b"y" * limits.SSDP_DATAGRAM_MAX_BYTES + b"\r\n\r\n",
        RESPONSE.replace(b"USN", b"NSU"),
        RESPONSE.replace(b"LOCATION: ", b"LOCATION: \x7f"),
        RESPONSE.replace(HASH.encode(), "Ω".encode()),
        ALIVE.replace(b"NTS", b"STN"),
    ],
)
def test_what_is_malformed_is_refused(datagram: bytes) -> None:
    """One malformed datagram ends ssdpy's own server; ours must name it and go on."""
    with pytest.raises(ProtocolError):
        ssdp.parse(datagram)


@given(st.binary(max_size=2 * limits.SSDP_DATAGRAM_MAX_BYTES))
def test_no_bytes_raise_anything_else(datagram: bytes) -> None:
    assert _reads_or_is_refused(datagram)


@given(
    st.sampled_from([SEARCH, RESPONSE, ALIVE, BYEBYE]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=4)), min_size=1, max_size=6),
)
def test_no_changed_message_raises_anything_else(message: bytes, changes: list[tuple[int, int, bytes]]) -> None:
    """Almost right is what reaches the deep branches of a parser."""
    for place, removed, put in changes:
        message = message[:place] + put + message[place + removed :]
    assert _reads_or_is_refused(message)


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_no_field_can_bring_another_with_it(usn: str, location: str, site_hash: str) -> None:
    """A line break in a name from a settings file must not become a field of its own in what the whole network reads."""
    builders: list[Callable[[], bytes]] = [
        lambda: ssdp.build_response(usn, location, site_hash),
        lambda: ssdp.build_alive("239.255.255.250:1900", usn, location, site_hash),
    ]
    for build in builders:
        try:
            datagram = build()
        except ProtocolError:
            continue
        message = ssdp.parse(datagram)
        assert isinstance(message, ssdp.Response | ssdp.Notification)
        assert (message.usn, message.location, message.site_hash) == (usn, location, site_hash)


@pytest.mark.parametrize("bad", ["", "a\r\nX: y", "a\nb", "a\rb", "a\0b", " a", "a ", "ä", "a\x85b", "a\u2028b"])
def test_what_cannot_be_read_back_is_not_built(bad: str) -> None:
    builders: list[Callable[[], bytes]] = [
        lambda: ssdp.build_search(bad, 1),
        lambda: ssdp.build_search("h", 1, st=bad),
        lambda: ssdp.build_response(bad, "l", "s"),
        lambda: ssdp.build_response("u", bad, "s"),
        lambda: ssdp.build_response("u", "l", bad),
        lambda: ssdp.build_alive(bad, "u", "l", "s"),
        lambda: ssdp.build_alive("h", bad, "l", "s"),
        lambda: ssdp.build_alive("h", "u", bad, "s"),
        lambda: ssdp.build_alive("h", "u", "l", bad),
        lambda: ssdp.build_byebye(bad, "u", "s"),
        lambda: ssdp.build_byebye("h", bad, "s"),
        lambda: ssdp.build_byebye("h", "u", bad),
    ]
    for build in builders:
        with pytest.raises(ProtocolError):
            build()


@pytest.mark.parametrize("host", ["192.0.2.1", "fe80::1", "127.0.0.1"])
def test_a_location_reads_back(host: str) -> None:
    assert ssdp.endpoint_in(ssdp.location_of(ip_address(host), 8883)) == (ip_address(host), 8883)


def test_a_location_never_holds_a_zone() -> None:
    """The zone "eth0" of one machine is nothing on another."""
    assert ssdp.location_of(ip_address("fe80::1%eth0"), 8883) == "mqtts://[fe80::1]:8883"


@pytest.mark.parametrize(
    "location",
    [
        "",
        "http://192.0.2.1:8883",
        "mqtt://192.0.2.1:8883",
        "mqtts://192.0.2.1",
        "mqtts://192.0.2.1:0",
        "mqtts://192.0.2.1:65536",
        "mqtts://192.0.2.256:8883",
        "mqtts://192.0.2.01:8883",
        "mqtts://broker.example.com:8883",
        "mqtts://user@192.0.2.1:8883",
        "mqtts://192.0.2.1:8883/path",
        "mqtts://192.0.2.1:8883\n",
        "mqtts://[192.0.2.1]:8883",
        "mqtts://fe80::1:8883",
        "mqtts://[fe80::1%eth0]:8883",
        "mqtts://[fe80:::1]:8883",
        "mqtts://192.0.2.1:٨٨٨٣",
    ],
)
def test_another_kind_of_location_is_refused(location: str) -> None:
    """A host name would make the hub ask whatever resolver about a stranger's text."""
    with pytest.raises(ProtocolError):
        ssdp.endpoint_in(location)


def test_a_usn_is_a_uuid_with_our_target() -> None:
    assert ssdp.usn_of(UUID_1) == USN
    assert ssdp.is_usn(USN)
    assert not ssdp.is_usn("uuid:x::" + ssdp.SEARCH_TARGET)
    assert not ssdp.is_usn(USN + "x")
    assert not ssdp.is_usn(USN.replace("connector", "printer"))


def test_a_source_gets_its_rate_and_no_more() -> None:
    rate = ssdp.SourceRate(per_s=10)
    ip = ip_address("192.0.2.7")
    assert [rate.allows(ip, 5000 + n, 100.0, own=False) for n in range(12)] == [True] * 10 + [False] * 2
    assert not rate.allows(ip, 5000, 100.05, own=False)
    assert rate.allows(ip, 5000, 100.2, own=False)


def test_one_source_does_not_use_up_the_rate_of_another() -> None:
    rate = ssdp.SourceRate(per_s=1)
    assert rate.allows(ip_address("192.0.2.7"), 1, 0.0, own=False)
    assert not rate.allows(ip_address("192.0.2.7"), 1, 0.0, own=False)
    assert rate.allows(ip_address("192.0.2.8"), 1, 0.0, own=False)


def test_each_program_of_this_machine_is_a_source() -> None:
    """A whole fleet on one machine shares its address."""
    rate = ssdp.SourceRate(per_s=1)
    ip = ip_address("127.0.0.1")
    assert [rate.allows(ip, port, 0.0, own=True) for port in (1, 1, 2, 2)] == [True, False, True, False]


def test_the_memory_for_sources_is_bounded_and_keeps_the_latest() -> None:
    """A flood with invented sources must not grow the process."""
    rate = ssdp.SourceRate(per_s=1, sources_max=100)
    for number in range(1000):
        rate.allows(ip_address(number), 1, 0.0, own=False)
    assert len(rate) == 100
    assert not rate.allows(ip_address(999), 1, 0.0, own=False)


def _reads_or_is_refused(datagram: bytes) -> bool:
    try:
        message = ssdp.parse(datagram)
    except ProtocolError:
        return True
    if isinstance(message, ssdp.Response) and message.location is not None:
        try:
            ssdp.endpoint_in(message.location)
        except ProtocolError:
            return True
    return isinstance(message, ssdp.Search | ssdp.Response | ssdp.Notification)
