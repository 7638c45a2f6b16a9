"""A site and its cloud as several hosts in network namespaces, every role a real process on its host.

             LAN "site" 10.77.1.0/24            gateway          WAN 10.77.9.0/24
pc-1 .11   pc-2 .12   berlin-1 .1   berlin-2 .2    .254  ──▶ .254  ── delay, loss ──  .1 cloud
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from config import provision
from tests.fleet import COUNTER_ONLY, Fleet, until
from tests.network import ROOT, Host, Lan, Network, Program

CLOUD = "10.77.9.1"
QUICK = {
    "HUBLINE_FAILOVER__OUTAGE_S": "10",
    "HUBLINE_FAILOVER__START_GRACE_S": "10",
    "HUBLINE_FAILOVER__AWAY_GRACE_S": "3",
    "HUBLINE_HUB__KEEP_ALIVE_S": "5",
    "HUBLINE_CONNECTOR__KEEP_ALIVE_S": "5",
    "HUBLINE_FAILBACK__PROBE_S": "2",
    "HUBLINE_FAILBACK__STABLE_S": "3",
    "HUBLINE_FAILBACK__JITTER_S": "2",
}


class Site(Fleet):
    """Roles: "cloud-broker", "cloud", "site-broker", "connector", "site-broker-2", "connector-2", and the hubs."""

    def __init__(
        self,
        directory: Path,
        fleet: str,
        network: Network,
        connectors: int = 2,
        hubs: int = 2,
        environ: Mapping[str, str] | None = None,
        bridge: str = "own",
    ):
        self.directory, self.fleet, self.network = directory / "fleet", fleet, network
        self.logs = directory / "logs"
        self.logs.mkdir()
        self.hubs = [f"pc-{number}" for number in range(1, hubs + 1)]
        self.environ = {**os.environ, **COUNTER_ONLY, **QUICK, **(environ or {})}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.roles = {"cloud-broker": ("broker", "cloud", {}), "cloud": ("cloud", "cloud", {})}
        provision.init(self.directory, fleet, cloud_hosts=[CLOUD])
        self._build(connectors)
        provision.reader(self.directory, "viewer")
        if bridge == "engine":
            for suffix in ["", "-2"][:connectors]:
                self.let_the_engine_bridge(f"connector{suffix}", f"site-broker{suffix}")

    def _build(self, connectors: int) -> None:
        network = self.network
        self.lan = network.lan("site", "10.77.1.0/24")
        near, far = network.lan("near", "10.77.9.0/24"), network.lan("far", "10.77.9.0/24")
        self.wan_lan = near
        self.hosts: dict[str, Host] = {}
        self.gateway = network.host("gateway", ipv6=False)
        self.gateway.join(self.lan, "10.77.1.254")
        self.gateway.join(near, "10.77.9.254")
        self.gateway.forward()
        self.cloud_host = network.host("cloud", ipv6=False)
        self.cloud_host.join(far, CLOUD)
        self.cloud_host.route("default", "10.77.9.254")
        self.hosts["cloud-broker"] = self.hosts["cloud"] = self.cloud_host
        self._wan(near, far)
        for number in range(1, connectors + 1):
            name, suffix = f"berlin-{number}", "" if number == 1 else f"-{number}"
            provision.connector(self.directory, name, "berlin")
            host = self._host(name, f"10.77.1.{number}")
            self.roles[f"site-broker{suffix}"] = ("broker", name, {})
            self.roles[f"connector{suffix}"] = ("connector", name, {})
            self.hosts[f"site-broker{suffix}"] = self.hosts[f"connector{suffix}"] = host
        for number, name in enumerate(self.hubs, start=1):
            provision.hub(self.directory, name, "berlin")
            self.roles[name] = ("hub", name, {})
            self.hosts[name] = self._host(name, f"10.77.1.{10 + number}")

    def _host(self, name: str, address: str) -> Host:
        host = self.network.host(name)
        host.join(self.lan, address)
        host.route("default", "10.77.1.254")
        return host

    def _wan(self, near: Lan, far: Lan) -> None:
        """Put a box between the gateway and the cloud that delays 5 ms each way and loses half a percent."""
        box = self.network.host("wan", ipv6=False)
        one, other = box.join(near, "10.77.99.1", "eth0"), box.join(far, "10.77.99.2", "eth1")
        for host in (box, self.gateway, self.cloud_host):
            for line in host.addresses().splitlines():
                interface = line.split()[0].partition("@")[0]
                if interface != "lo":
                    host.run(["ethtool", "-K", interface, "tx", "off", "tso", "off", "gso", "off", "gro", "off"])
        for interface in (one, other):
            box.run(["ip", "address", "flush", "dev", interface])
        self.wan: Program = box.start([str(wan_program(self.logs)), one, other, "5", "0.5"])
        self.wan.line("wan up")

    def inside(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", self.hosts[name].namespace]

    def path_is(self, kind: str, connector: str | None = None) -> bool:
        """Tell whether every running hub is on this path."""
        for hub in self.hubs:
            path = self.status(hub).get("path")
            if not isinstance(path, dict) or path["kind"] != kind or connector not in (None, path["connector"]):
                return False
        return True

    def wait_for_path(self, kind: str, connector: str | None = None) -> None:
        until(f"all hubs are on {connector or kind}", lambda: self.path_is(kind, connector))


def wan_program(folder: Path) -> Path:
    """Compile the emulator of a WAN."""
    program = folder / "wan"
    if not program.exists():
        subprocess.run(["cc", "-O2", "-o", str(program), str(ROOT / "bench" / "wan.c")], check=True)
    return program


def why_no_wan() -> str:
    """Return what the WAN emulator lacks here, or ""."""
    missing = [name for name in ("cc", "ethtool") if shutil.which(name) is None]
    return f"the WAN emulator needs {', '.join(missing)}" if missing else ""


@contextmanager
def running_site(
    directory: Path, name: str, connectors: int, environ: Mapping[str, str] | None = None, bridge: str = "own"
) -> Iterator[Site]:
    """Run a whole site and its cloud until data flows; end and remove everything afterwards."""
    with Network(name) as network:
        site = Site(directory, name, network, connectors, environ=environ, bridge=bridge)
        try:
            site.start()
            site.wait_until_flowing()
            yield site
        finally:
            site.close()
