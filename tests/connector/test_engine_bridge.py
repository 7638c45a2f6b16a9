"""What Hubline tells Mosquitto about its bridge, and what it refuses to tell it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from msgspec.structs import replace

from broker.engines.mosquitto_bridge import bridge_section, notification_topic, watch_filters
from config import limits
from config.errors import SettingsError
from config.settings import BrokerProcess, BrokerSettings, ConnectorCloud, ConnectorProcess, ConnectorSettings, Identity


def identity(folder: Path, site: str = "berlin", key: bytes = b"key") -> Identity:
    (folder / "key.pem").write_bytes(key)
    return Identity("acme", site, "berlin-1", folder / "ca.pem", folder / "cert.pem", folder / "key.pem")


def connector(folder: Path, *endpoints: str, proxy: str = "", keep_alive_s: int = 20) -> ConnectorSettings:
    process = ConnectorProcess(bridge="engine", keep_alive_s=keep_alive_s)
    named = list(endpoints or ("cloud.example:8883",))
    return ConnectorSettings(identity(folder), process, ConnectorCloud(named, proxy))


def site_broker(folder: Path, site: str = "berlin") -> BrokerSettings:
    return BrokerSettings(identity(folder, site), BrokerProcess(bridge=folder / "connector.toml"))


def lines(folder: Path, settings: ConnectorSettings) -> list[str]:
    return bridge_section(settings, site_broker(folder)).splitlines()


def test_all_that_hubs_say_goes_up_and_all_that_the_cloud_says_comes_down_and_nothing_both(tmp_path: Path) -> None:
    """A topic in both directions would go round for ever; the connector's own state is its own affair on both brokers."""
    topics = [line for line in lines(tmp_path, connector(tmp_path)) if line.startswith("topic ")]
    assert sorted(topics) == [
        "topic hl1/acme/berlin/hub/+/down/+ in 0",
        "topic hl1/acme/berlin/hub/+/heartbeat out 0",
        "topic hl1/acme/berlin/hub/+/poll out 0",
        "topic hl1/acme/berlin/hub/+/state out 1",
        "topic hl1/acme/berlin/hub/+/up/+ out 0",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "round_robin false",
        "cleansession true",
        "local_cleansession true",  # Else a backlog of the outage goes over the WAN, which the hubs send again anyway.
        "try_private false",
        "bridge_insecure false",
        "bridge_outgoing_retain true",
        "notifications_local_only true",
        "bridge_tls_version tlsv1.2",
        f"notification_topic {notification_topic('berlin-1')}",
        f"bridge_max_packet_size {limits.PACKET_MAX_BYTES}",
    ],
)
def test_what_must_not_be_left_to_defaults_is_said(tmp_path: Path, line: str) -> None:
    assert line in lines(tmp_path, connector(tmp_path))


def test_addresses_are_tried_in_order_and_ipv6_is_written_as_mosquitto_reads_it(tmp_path: Path) -> None:
    named = connector(tmp_path, "cloud.example:8883", "[fd00::7]:443")
    assert "addresses cloud.example:8883 fd00::7:443" in lines(tmp_path, named)
    assert "bridge_alpn mqtt" in lines(tmp_path, named)
    assert "bridge_alpn mqtt" not in lines(tmp_path, connector(tmp_path))


@pytest.mark.parametrize(("keep_alive_s", "written"), [(2, 5), (20, 20)])
def test_a_keep_alive_below_mosquittos_least_is_raised(tmp_path: Path, keep_alive_s: int, written: int) -> None:
    """It would not start otherwise."""
    assert f"keepalive_interval {written}" in lines(tmp_path, connector(tmp_path, keep_alive_s=keep_alive_s))


def test_client_ids_are_unguessable_stable_and_those_of_the_connector(tmp_path: Path) -> None:
    """Mosquitto lets any certificate take any client id, and with it the bridge's place."""
    here, settings = site_broker(tmp_path), connector(tmp_path)

    def ids() -> list[str]:
        return [line.split()[1] for line in bridge_section(settings, here).splitlines() if "_clientid" in line]

    first = ids()
    assert ids() == first
    assert all(re.fullmatch(r"berlin-1_(local|bridge)-[0-9a-f]{16}", each) for each in first)
    settings.identity.key.write_bytes(b"another key")
    assert not set(first) & set(ids())


def test_the_connector_may_read_the_notice_and_acknowledgements_and_nothing_more(tmp_path: Path) -> None:
    filters = watch_filters(connector(tmp_path))
    assert filters == ("$SYS/broker/connection/berlin-1/state", "hl1/acme/berlin/hub/+/down/ack")


def test_what_a_person_must_correct_is_said_in_one_line(tmp_path: Path) -> None:
    here, good = site_broker(tmp_path), connector(tmp_path)
    own = replace(good, connector=ConnectorProcess())
    nowhere = replace(good, cloud=ConnectorCloud())
    proxied = connector(tmp_path, proxy="http://proxy.example:3128")
    strange = replace(good, identity=replace(good.identity, ca=tmp_path / "a\nb.pem"))
    gone = replace(good, identity=replace(good.identity, key=tmp_path / "gone.pem"))
    for settings, words in (
        (own, 'bridge = "engine"'),
        (nowhere, "names no cloud broker"),
        (proxied, "can't be used by Mosquitto's bridge"),
        (strange, "is no path"),
        (gone, "can't be read"),
    ):
        with pytest.raises(SettingsError, match=words) as raised:
            bridge_section(settings, here)
        assert "\n" not in str(raised.value)
        assert raised.value.file is not None
    with pytest.raises(SettingsError, match="is of berlin in acme, this broker of hamburg"):
        bridge_section(good, site_broker(tmp_path, "hamburg"))
