"""Both sides as separate processes on loopback, from one fleet's certificates; whatever happens, all of them end."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench import peer
from config import provision
from config.demo_fleet import FLEET, SITE, DemoFleet, Process, free_ports
from config.errors import HublineError
from config.principal import CLOUD_SITE
from config.settings import Identity

HUBS: Final = 50
CONNECTOR: Final = "berlin-1"
COUNTER: Final = "viewer"
"""The reader that counts what comes out of the cloud broker."""
STORER: Final = "storer"
"""The reader that stores the peer's rows."""
START_TIMEOUT_S: Final = 30.0
ROOT: Final = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: where its brokers are, and the names of its processes. `bridge` is the one that crosses the WAN."""

    name: str
    site: str
    cloud: str
    at_site: tuple[str, ...]
    at_cloud: tuple[str, ...]
    bridge: str


class Rig:
    """The fleet in `directory`. Hubs are `hub-1` to `hub-50` for the load; one more is for a hub's own process."""

    def __init__(self, directory: Path, hubs: int = HUBS):
        self.fleet = DemoFleet(directory, hubs + 1, {"HUBLINE_CONNECTOR__ADVERTISE": "false"})
        self.hubs, self.real_hub = self.fleet.hubs[:hubs], self.fleet.hubs[hubs]
        self.bundles = directory / "bundles"
        self.directory = directory
        self.fleet.provision()
        provision.reader(directory, STORER)
        (directory / "logs").mkdir(exist_ok=True)
        self._rounds = 0

    def identity(self, role: str, name: str) -> Identity:
        """Return what a client of the load proves itself by."""
        folder = self.bundles / role / name
        site = SITE if role == "hub" else CLOUD_SITE
        return Identity(FLEET, site, name, folder / "ca.pem", folder / "cert.pem", folder / "key.pem")

    def start_ours(self, *, storing: bool) -> Side:
        """Start the brokers and the connector, and the cloud service if it is to store."""
        fleet = self.fleet
        self._run_broker("cloud broker", "cloud", fleet.cloud_port)
        self._run_broker("site broker", CONNECTOR, fleet.site_port)
        self._run("connector", "connector", CONNECTOR, '"upstream":"up"')
        at_cloud: tuple[str, ...] = ("cloud broker",)
        if storing:
            self._run_service({"HUBLINE_API__ENABLED": "false"})
            at_cloud = ("cloud broker", "cloud service")
        ends = (f"127.0.0.1:{fleet.site_port}", f"127.0.0.1:{fleet.cloud_port}")
        return Side("Hubline", *ends, ("site broker", "connector"), at_cloud, "connector")

    def start_cloud(self) -> tuple[str, str]:
        """Start the cloud broker, and the cloud service with its API; return the broker's endpoint and the API's."""
        api = f"127.0.0.1:{self.fleet.api_port}"
        self._run_broker("cloud broker", "cloud", self.fleet.cloud_port)
        self._run_service({"HUBLINE_API__LISTEN": f'"{api}"'})
        return f"127.0.0.1:{self.fleet.cloud_port}", api

    def start_module(self, name: str, module: str, arguments: Sequence[str], words: str) -> None:
        """Start a module of the bench, and wait until its output has these words."""
        log = self.log(name)
        known = log.stat().st_size if log.exists() else 0
        self._spawn(name, [sys.executable, "-m", module, *arguments])
        self.until(f"{name} says {words}", lambda: words in log.read_text("utf-8", "replace")[known:])

    def pid(self, name: str) -> int:
        """Return the process id of what runs under this name."""
        return self.fleet.processes[name].popen.pid

    def log(self, name: str) -> Path:
        """Return the file with what is written by what runs under this name."""
        return self.directory / "logs" / f"{name.replace(' ', '-')}.log"

    def start_peer(self) -> Side:
        """Start two Mosquittos, each from scratch."""
        self._rounds += 1
        folder = self.directory / f"peer-{self._rounds}"
        cloud_port, site_port = free_ports(2)
        cloud = peer.write_cloud(folder / "cloud", self.bundles, FLEET, CONNECTOR, [COUNTER, STORER], cloud_port)
        site = peer.write_site(folder / "site", self.bundles, FLEET, SITE, CONNECTOR, site_port, cloud_port)
        for name, file, port in (("mosquitto cloud", cloud, cloud_port), ("mosquitto site", site, site_port)):
            self._spawn(name, [peer.program(), "-c", str(file)])
            self.wait_for_port(port)
        ends = (f"127.0.0.1:{site_port}", f"127.0.0.1:{cloud_port}")
        return Side("T", *ends, ("mosquitto site",), ("mosquitto cloud",), "mosquitto site")

    def start_row_store(self, side: Side) -> tuple[Side, subprocess.Popen[bytes]]:
        """Start the peer's storing subscriber; it tells of each commit on its standard output."""
        name, file = "row store", self.directory / f"rows-{self._rounds}.db"
        arguments = [side.cloud, FLEET, str(self.bundles / "reader" / STORER), str(file)]
        self._spawn(name, [sys.executable, "-m", "bench.row_store", *arguments], stdout=subprocess.PIPE)
        storing = Side(side.name, side.site, side.cloud, side.at_site, (*side.at_cloud, name), side.bridge)
        return storing, self.fleet.processes[name].popen

    def start_hub(self) -> None:
        """Start a hub as it is, with its default sensors."""
        environ = {
            "HUBLINE_CONNECTOR__DISCOVERY": "false",
            "HUBLINE_CONNECTOR__ENDPOINTS": f'["127.0.0.1:{self.fleet.site_port}"]',
        }
        self.fleet.run(self.real_hub, ["hub", "run"], "hub", self.real_hub, environ)

    def until(self, what: str, check: Callable[[], bool]) -> None:
        """Wait until something holds. Raises HublineError if it does not in time, or a process has ended by itself."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not check():
            self.fleet.check()
            if time.monotonic() > deadline:
                raise HublineError(f"waited {START_TIMEOUT_S:g} s in vain: {what}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End everything that runs."""
        pipes = [process.popen.stdout for process in self.fleet.processes.values()]
        self.fleet.stop_all()
        for pipe in pipes:
            if pipe is not None:
                pipe.close()

    def _run_broker(self, name: str, member: str, port: int) -> None:
        self._run(name, "broker", member, '"broker_started"', {"HUBLINE_BROKER__LISTEN": f'["127.0.0.1:{port}"]'})

    def _run_service(self, environ: Mapping[str, str]) -> None:
        self._run("cloud service", "cloud", "cloud", '"broker_connected"', environ)

    def _run(self, name: str, role: str, member: str, words: str, environ: Mapping[str, str] | None = None) -> None:
        """Start one of our roles, and wait until its log says that it is ready."""
        log = self.log(name)
        known = log.stat().st_size if log.exists() else 0
        self.fleet.run(name, [role, "run"], role, member, environ)
        self.until(f"{name} says {words}", lambda: words in log.read_text("utf-8", "replace")[known:])

    def _spawn(self, name: str, command: list[str], stdout: int | None = None) -> None:
        with self.log(name).open("ab") as stream:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream if stdout is None else stdout,
                stderr=stream,
                cwd=ROOT,
                start_new_session=True,  # Ctrl-C is ours to pass on.
            )
        self.fleet.processes[name] = Process(name, popen, self.log(name))

    def wait_for_port(self, port: int) -> None:
        """Wait until something listens on a port of loopback."""
        self.until(f"a listener on port {port}", lambda: _answers(port))


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
