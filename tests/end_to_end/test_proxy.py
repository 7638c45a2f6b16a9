"""A proxy is the only way out: hub and connector take it, by the environment alone, and the data is stored."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from config import provision
from tests.fleet import COUNTER_ONLY, HUBLINE, Fleet, until
from tests.network import Host, Network, requires_root
from tests.proxies import needs_tinyproxy, tinyproxy_command

CLOUD, PROXY_PORT = "10.78.2.1", 3128
pytestmark = [requires_root, needs_tinyproxy, pytest.mark.root]


class Behind(Fleet):
    """A LAN without a router: only the proxy has a foot in both networks. The cloud broker listens on 443 as well."""

    def __init__(self, directory: Path, fleet: str, network: Network):
        self.directory, self.fleet = directory / "fleet", fleet
        self.logs = directory / "logs"
        self.logs.mkdir()
        self.hubs = ["pc-1", "pc-2"]
        self.environ = {**os.environ, **COUNTER_ONLY}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        provision.init(self.directory, fleet, cloud_hosts=[f"{CLOUD}:443"])
        provision.connector(self.directory, "berlin-1", "berlin")
        for hub in self.hubs:
            provision.hub(self.directory, hub, "berlin")
        lan, outside = network.lan("site", "10.78.1.0/24"), network.lan("out", "10.78.2.0/24")
        self.cloud_host, self.proxy_host = network.host("cloud"), network.host("proxy")
        self.cloud_host.join(outside, CLOUD)
        self.proxy_host.join(lan, "10.78.1.254")
        self.proxy_host.join(outside, "10.78.2.254")
        self.connector_host, self.hub_host, self.alone_host = (network.host(name) for name in ("gw", "pc", "alone"))
        self.connector_host.join(lan, "10.78.1.1")
        self.hub_host.join(lan, "10.78.1.11")
        self.alone_host.join(lan, "10.78.1.12")
        self.proxy_command = tinyproxy_command(directory, "10.78.1.254", PROXY_PORT, allow=(443,))
        self.proxy = self.proxy_host.start(self.proxy_command)
        way = {"HTTPS_PROXY": f"http://10.78.1.254:{PROXY_PORT}", "NO_PROXY": "10.78.1.0/24"}
        direct = {"HUBLINE_CONNECTOR__DISCOVERY": "false", "HUBLINE_FAILOVER__START_GRACE_S": "0"}
        self.roles: dict[str, tuple[str, str, dict[str, str]]] = {
            "cloud-broker": ("broker", "cloud", {"HUBLINE_BROKER__LISTEN": '["0.0.0.0:8883", "0.0.0.0:443"]'}),
            "cloud": ("cloud", "cloud", {"HUBLINE_CLOUD__BROKER": '"127.0.0.1:8883"'}),
            "site-broker": ("broker", "berlin-1", {}),
            "connector": ("connector", "berlin-1", way),
            "pc-1": ("hub", "pc-1", {}),
            "pc-2": ("hub", "pc-2", {**way, **direct}),
        }

    def host_of(self, name: str) -> Host:
        if name in ("site-broker", "connector"):
            return self.connector_host
        return {"pc-1": self.hub_host, "pc-2": self.alone_host}.get(name, self.cloud_host)

    def inside(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", self.host_of(name).namespace]

    def doctor(self, name: str, environ: Mapping[str, str]) -> str:
        """Return what the doctor says on a hub's host; it may say that no path works."""
        command = [*self.inside(name), *HUBLINE, "doctor", "-c", str(self.settings(name))]
        env = {**self.environ, **self.roles[name][2], **environ}
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False).stdout


@pytest.fixture
def behind(tmp_path: Path, unique_name: str) -> Iterator[Behind]:
    with Network(unique_name) as network:
        this = Behind(tmp_path, unique_name, network)
        try:
            yield this
        finally:
            this.close()


def test_hub_and_connector_reach_the_cloud_through_the_proxy_alone(behind: Behind) -> None:
    """Nothing in a file says so; and when the proxy is restarted, nothing is lost."""
    behind.start()
    behind.wait_until_flowing()
    assert (behind.path("pc-1"), behind.path("pc-2")) == ("connector", "direct")
    told = behind.doctor("pc-2", {})
    assert f"{CLOUD}:443 through 10.78.1.254:{PROXY_PORT} (from HTTPS_PROXY)" in told
    assert f"cloud broker {CLOUD}:443 is reached through proxy 10.78.1.254:{PROXY_PORT}" in told
    without = behind.doctor("pc-2", {"HTTPS_PROXY": ""})
    assert "network is unreachable" in without
    assert "Path now: none" in without
    behind.proxy.stop()
    until("pc-2 has lost its path", lambda: behind.path("pc-2") == "none")
    until("and says why", lambda: any("proxy 10.78.1.254" in str(line) for line in behind.log("pc-2")))
    behind.proxy = behind.proxy_host.start(behind.proxy_command)
    behind.wait_until_flowing()
    behind.assert_nothing_lost_or_doubled()
