"""Host names and addresses as people write them."""

from __future__ import annotations

import pytest

from config import hosts, limits
from config.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("cloud.example.com", "cloud.example.com:8883"),
        ("Cloud.Example.COM.", "cloud.example.com:8883"),
        ("cloud:443", "cloud:443"),
        ("192.0.2.7", "192.0.2.7:8883"),
        ("192.0.2.7:443", "192.0.2.7:443"),
        ("2001:db8::1", "[2001:db8::1]:8883"),
        ("2001:DB8:0::1", "[2001:db8::1]:8883"),
        ("[2001:db8::1]", "[2001:db8::1]:8883"),
        ("[2001:db8::1]:443", "[2001:db8::1]:443"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example:8883"),
    ],
)
def test_hosts_are_read_with_and_without_port(text: str, endpoint: str) -> None:
    """IPv6 addresses are full of colons, and people write them in every way."""
    assert hosts.endpoints([text]) == [endpoint]


@pytest.mark.parametrize(
    "text",
    [
        "", ":", ":443", "a b", "*.example.com", "cloud:", "cloud:x", "cloud:0", "cloud:65536", "https://cloud", "a..b", "-a",
        "a-", "300.1.1.1", "1.2.3", "0.0.0.0", "::", "fe80::1%eth0", "bücher.example", "a/b", "[cloud]x", "a,b", "x" * 64, "a\n",
        ".".join(["x" * 60] * 5), "[::1", "user@host",
    ],
)  # fmt: skip
def test_what_is_no_host_is_refused_in_one_line(text: str) -> None:
    """It would be in a certificate for years."""
    with pytest.raises(SettingsError) as refused:
        hosts.endpoints([text])
    assert len(str(refused.value).splitlines()) == 1


def test_a_port_is_refused_where_only_a_host_belongs() -> None:
    """`provision connector --host` has a --port of its own."""
    with pytest.raises(SettingsError, match="without a port"):
        hosts.host("gw:8883")


def test_endpoints_are_bounded_and_each_is_there_once() -> None:
    """Each is a name in the certificate and an attempt of every client."""
    assert hosts.endpoints(["a", "A:8883", "b"]) == ["a:8883", "b:8883"]
    with pytest.raises(SettingsError, match="at most"):
        hosts.endpoints([f"host-{number}" for number in range(limits.CLOUD_ENDPOINTS_MAX + 1)])
