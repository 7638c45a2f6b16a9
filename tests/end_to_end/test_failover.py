"""The failover rule on real hosts, real brokers and a real (slow, lossy) WAN; every story ends with an audit.

The outage that counts is scaled from 300 s to 10 s; the long one runs in `make soak`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from tests.fleet import until
from tests.network import requires_root
from tests.site import Site, running_site, why_no_wan

pytestmark = [
    requires_root,
    pytest.mark.skipif(bool(why_no_wan()), reason=why_no_wan() or "the WAN emulator can be built"),
]
OUTAGE_S = 10.0
FLAP_S, FLAPS = 8.0, 5
FLAP_DOWN_S = 3.0  # Of each cycle; a second or two more are gone until the new process has both of its brokers.


@pytest.fixture
def one(tmp_path: Path, unique_name: str, bridge: str) -> Iterator[Site]:
    """A site with one connector."""
    with running_site(tmp_path, unique_name, connectors=1, bridge=bridge) as site:
        site.wait_for_path("connector")
        yield site
        site.wait_until_flowing()
        site.assert_nothing_lost_or_doubled()


@pytest.fixture
def two(tmp_path: Path, unique_name: str, bridge: str) -> Iterator[Site]:
    """A site with two connectors."""
    with running_site(tmp_path, unique_name, connectors=2, bridge=bridge) as site:
        site.wait_for_path("connector")
        yield site
        site.wait_until_flowing()
        site.assert_nothing_lost_or_doubled()


def switched_after(site: Site, began_at: float, outage_s: float = OUTAGE_S) -> None:
    """Wait until all hubs are direct, and look that none was so too early."""
    until("all hubs are direct", lambda: site.path_is("direct"), timeout_s=outage_s + 60)
    for hub in site.hubs:
        taken = [line for line in site.events(hub, "path_taken") if line["via"] == "direct"]
        moment = _unix(str(taken[-1]["time"]))
        assert moment - began_at >= outage_s - 0.05, f"{hub} went after {moment - began_at:.2f} s"


def _unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize("victims", [("connector",), ("site-broker",), ("connector", "site-broker")])
def test_hubs_go_direct_when_the_way_through_the_site_is_dead_and_come_back(
    one: Site, victims: tuple[str, ...]
) -> None:
    began_at = time.time()
    one.kill(*victims)
    switched_after(one, began_at)
    one.wait_until_flowing()
    one.start(*victims)
    one.wait_for_path("connector", "berlin-1")


def test_a_connector_that_lost_the_cloud_says_so_and_the_hubs_go_around_it(one: Site) -> None:
    """Only the connector's own way is blocked, and silently: the hubs hear of it through its state."""
    one.hosts["connector"].drop("10.77.9.1")
    one.wait_for_path("direct")
    one.wait_until_flowing()
    one.hosts["connector"].drop_nothing()
    one.wait_for_path("connector", "berlin-1")


def test_nothing_is_lost_while_the_wan_is_cut(one: Site) -> None:
    one.gateway.cut(one.wan_lan)
    written = [one.status(hub)["outbox"]["points_written"] for hub in one.hubs]  # type: ignore[index]
    for hub, before in zip(one.hubs, written, strict=True):
        until(
            "it measures on",
            lambda hub=hub, before=before: (  # type: ignore[misc]
                one.status(hub)["outbox"]["points_written"] > before + 500  # type: ignore[index]
            ),
        )
    one.gateway.mend(one.wan_lan)
    one.wait_until_flowing()


def test_a_half_open_link_to_the_site_broker_counts_as_an_outage(one: Site) -> None:
    """Packets vanish, and nobody is told."""
    began_at = time.time()
    for hub in one.hubs:
        one.hosts[hub].drop("10.77.1.1")
    switched_after(one, began_at - 1.0)  # Dated by the last packet received: it may have come just before.
    for hub in one.hubs:
        one.hosts[hub].drop_nothing()
    one.wait_for_path("connector", "berlin-1")


def test_the_cloud_broker_may_die_while_the_hubs_are_direct(one: Site) -> None:
    one.kill("connector")
    one.wait_for_path("direct")
    one.kill("cloud-broker")
    one.wait_for_path("none")
    one.start("cloud-broker")
    one.wait_for_path("direct")
    one.wait_until_flowing()
    one.start("connector")
    one.wait_for_path("connector", "berlin-1")


def test_another_connector_of_the_site_is_taken_at_once(two: Site) -> None:
    on_first = [hub for hub in two.hubs if two.status(hub)["path"]["connector"] == "berlin-1"]  # type: ignore[index]
    began_at = time.time()
    two.kill("connector", "site-broker")
    two.wait_for_path("connector", "berlin-2")
    for hub in on_first:
        taken = two.events(hub, "path_taken")[-1]
        assert _unix(str(taken["time"])) - began_at < OUTAGE_S
    assert not any(line["via"] == "direct" for hub in two.hubs for line in two.events(hub, "path_taken"))
    two.start("connector", "site-broker")


def test_a_connector_that_flaps_brings_no_hub_to_the_cloud(one: Site) -> None:
    """It dies every eight seconds. Each break is shorter than the outage that counts, all of them together are longer."""
    began_at, killed_at = time.time(), time.monotonic()
    for _ in range(FLAPS):
        one.kill("connector")
        one.wait_for_path("none")
        _wait_for_moment("it is started again", killed_at + FLAP_DOWN_S)
        one.start("connector")
        one.wait_for_path("connector", "berlin-1")
        killed_at += FLAP_S
        _wait_for_moment("it dies again", killed_at)
    for hub in one.hubs:
        breaks = _breaks(one, hub, began_at)
        assert len(breaks) >= FLAPS, breaks
        assert sum(breaks) > OUTAGE_S, breaks
        assert max(breaks) < OUTAGE_S, f"the connector takes too long to start here: {breaks}"
        assert not any(line["via"] == "direct" for line in one.events(hub, "path_taken")), breaks


def _wait_for_moment(what: str, at: float) -> None:
    until(what, lambda: time.monotonic() >= at)


def _breaks(site: Site, hub: str, since: float) -> list[float]:
    """Return how long each break was, in seconds, as the hub has seen it."""
    changes = [line for line in site.log(hub) if line["event"] in ("path_lost", "path_taken")]
    moments = [(line["event"], _unix(str(line["time"]))) for line in changes]
    return [back - lost for (event, lost), (_, back) in pairwise(moments) if event == "path_lost" and lost >= since]


def test_a_hub_that_moves_to_another_network_reaches_the_cloud_and_comes_back(one: Site) -> None:
    branch = one.network.lan("branch", "10.77.2.0/24")
    one.gateway.join(branch, "10.77.2.254")
    one.cloud_host.route("10.77.2.0/24", "10.77.9.254")
    laptop = one.hosts["pc-1"]
    laptop.leave(one.lan)
    laptop.join(branch, "10.77.2.11")
    laptop.route("default", "10.77.2.254")
    until("it has a path again", lambda: one.status("pc-1")["path"]["kind"] != "none")  # type: ignore[index]
    one.wait_until_flowing()
    laptop.leave(branch)
    laptop.join(one.lan, "10.77.1.11")
    laptop.route("default", "10.77.1.254")
    one.wait_for_path("connector", "berlin-1")


def test_without_ssdp_the_cache_and_then_the_cloud_are_used(one: Site) -> None:
    """Multicast is blocked altogether: what was found once is enough."""
    silence = "table inet quiet { chain out { type filter hook output priority 0; udp dport 1900 drop; }; }\n"
    for hub in one.hubs:
        one.hosts[hub].run(["nft", "-f", "-"], stdin=silence)
    one.stop(*one.hubs)
    one.start(*one.hubs)
    one.wait_for_path("connector", "berlin-1")
    one.stop("pc-1")
    (one.bundle("hub", "pc-1") / "data" / "paths.json").unlink()
    one.start("pc-1")
    until("it goes to the cloud", lambda: one.status("pc-1")["path"]["kind"] == "direct")  # type: ignore[index]


@pytest.mark.soak
def test_the_default_outage_is_five_minutes(tmp_path: Path, unique_name: str, bridge: str) -> None:
    """Nothing scaled: the rule as it is delivered."""
    environ = {"HUBLINE_FAILOVER__OUTAGE_S": "300"}
    with running_site(tmp_path, unique_name, connectors=1, environ=environ, bridge=bridge) as site:
        site.wait_for_path("connector")
        began_at = time.time()
        site.kill("connector")
        switched_after(site, began_at, 300.0)
        site.wait_until_flowing()
        site.start("connector")
        site.wait_for_path("connector", "berlin-1")
        site.assert_nothing_lost_or_doubled()
