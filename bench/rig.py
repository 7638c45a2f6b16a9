"""Both sides as separate processes, from one fleet's certificates, on loopback or with a WAN between; in the end all are gone."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from bench import copy_store, peer
from bench.network import LOOPBACK, Place, inside
from config import provision
from config.demo_fleet import FLEET, HUBLINE, SITE, DemoFleet, HubAudit, Process
from config.errors import HublineError
from config.local_postgres import LocalPostgres
from config.ports import free_ports
from config.principal import CLOUD_SITE
from config.settings import Identity

if TYPE_CHECKING:
    import asyncpg

HUBS: Final = 50
CONNECTOR: Final = "berlin-1"
COUNTER: Final = "viewer"
"""The reader that counts what comes out of the cloud broker."""
STORER: Final = "storer"
"""The reader that stores the peer's rows."""
SERVICE: Final = "cloud"
"""The cloud service's own name."""
POSTGRES: Final = "PostgreSQL"
POSTGRES_OPTIONS: Final = {"shared_buffers": "256MB", "max_wal_size": "2GB"}
"""The same for both sides; everything else as PostgreSQL comes, so every commit is synced."""
START_TIMEOUT_S: Final = 30.0
ROOT: Final = Path(__file__).parent.parent

BrokerEngine: TypeAlias = Literal["amqtt", "mosquitto"]
Database: TypeAlias = Literal["sqlite", "postgresql"]
At: TypeAlias = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True, slots=True)
class Side:
    """One of those that are compared: where its brokers are, and the names of its processes. `bridge` crosses the WAN."""

    name: str
    site: str
    cloud: str
    at_site: tuple[str, ...]
    at_cloud: tuple[str, ...]
    bridge: str


class Rig:
    """The fleet in `directory`. Hubs are `hub-1` to `hub-50` for the load; one more is for a hub's own process."""

    def __init__(self, directory: Path, hubs: int = HUBS, place: Place = LOOPBACK):
        self.directory, self.place = directory, place
        self.bundles = directory / "bundles"
        self.fleet = DemoFleet(directory, hubs + 1, {})
        self.hubs, self.real_hub = self.fleet.hubs[:hubs], self.fleet.hubs[hubs]
        self.cloud_port, self.site_port, self._postgres_port = free_ports(3)
        self._rounds = 0
        self._postgres: LocalPostgres | None = None
        self._databases: dict[str, str] = {}
        directory.parent.chmod(0o711)  # PostgreSQL's own user must get through.
        provision.init(directory, FLEET, cloud_hosts=[f"{place.cloud_from_site}:{self.cloud_port}"])
        provision.connector(directory, CONNECTOR, SITE, port=self.site_port)
        provision.hubs(directory, self.fleet.hubs, SITE)
        for name in (COUNTER, STORER):
            provision.reader(directory, name)
        directory.chmod(0o711)
        (directory / "logs").mkdir(exist_ok=True)

    def identity(self, role: str, name: str) -> Identity:
        """Return what a client of the load proves itself by."""
        folder = self.bundles / role / name
        site = SITE if role == "hub" else CLOUD_SITE
        return Identity(FLEET, site, name, folder / "ca.pem", folder / "cert.pem", folder / "key.pem")

    # --- What is compared -----------------------------------------------------------------------------------------------

    def start_ours(
        self,
        name: str = "Hubline",
        *,
        site: BrokerEngine = "amqtt",
        cloud: BrokerEngine = "amqtt",
        database: Database | None = None,
        advertise: bool = False,
    ) -> Side:
        """Start the brokers and the connector, and the cloud service if there is a database. Mosquitto bridges by itself."""
        bridging, at_site = dict[str, str](), dict[str, str]()
        if site == "mosquitto":
            bridging = {"HUBLINE_CONNECTOR__BRIDGE": '"engine"'}
            connector = self.bundles / "connector" / CONNECTOR / "connector.toml"
            at_site = {"HUBLINE_BROKER__BRIDGE": f'"{connector}"', **bridging}
        self._run_broker("cloud broker", "cloud", self.cloud_port, self.place.in_cloud, cloud)
        self._run_broker("site broker", CONNECTOR, self.site_port, self.place.at_site, site, at_site)
        told = {**bridging, "HUBLINE_CONNECTOR__ADVERTISE": "true" if advertise else "false"}
        self.run("connector", "connector", CONNECTOR, '"upstream":"up"', self.place.at_site, told)
        at_cloud = ("cloud broker", *(self._start_service(self.cloud_port, database) if database else ()))
        bridge = "connector" if site == "amqtt" else "site broker"
        return Side(name, *self._ends(self.site_port, self.cloud_port), ("site broker", "connector"), at_cloud, bridge)

    def start_peer(self, name: str = "T", *, database: Database | None = None) -> Side:
        """Start two Mosquittos, each from scratch; with a database, our own cloud service behind them."""
        self._rounds += 1
        folder, place = self.directory / f"peer-{self._rounds}", self.place
        cloud_port, site_port = free_ports(2)
        who = peer.Members(CONNECTOR, (COUNTER, STORER), SERVICE)
        cloud = peer.write_cloud(place, folder / "cloud", self.bundles, FLEET, who, cloud_port)
        site = peer.write_site(place, folder / "site", self.bundles, FLEET, SITE, who, site_port, cloud_port)
        ends = self._ends(site_port, cloud_port)
        starts = (("mosquitto cloud", cloud, ends[1], place.in_cloud), ("mosquitto site", site, ends[0], place.at_site))
        for process, file, endpoint, at in starts:
            self._spawn(process, at([peer.program(), "-c", str(file)]))
            self._wait_for_listener(endpoint)
        self.until("the peer's bridge is connected", lambda: self._is_bridged(cloud_port))
        at_cloud = ("mosquitto cloud", *(self._start_service(cloud_port, database) if database else ()))
        return Side(name, *ends, ("mosquitto site",), at_cloud, "mosquitto site")

    def start_row_store(self, side: Side, database: Database, *, light: bool = False) -> Side:
        """Start the peer's storing subscriber beside its broker; it tells of each commit on its standard output.

        A `light` one hears by the load's own client instead of paho-mqtt.
        """
        name = "row store"
        arguments = [f"127.0.0.1:{side.cloud.rpartition(':')[2]}", FLEET, str(self.bundles / "reader" / STORER)]
        if database == "sqlite":
            command = ["-m", "bench.row_store", *arguments, str(self.directory / "rows.db")]
            self._spawn(name, self.place.in_cloud([sys.executable, *command]), piped=True)
            return replace(side, at_cloud=(*side.at_cloud, name))
        environ = {copy_store.DATABASE: self.database_url("rows")}
        command = ["-m", "bench.copy_store", *arguments, *(["light"] if light else [])]
        self._spawn(name, self.place.in_cloud([sys.executable, *command]), environ, piped=True)
        return replace(side, at_cloud=(*side.at_cloud, name, POSTGRES))

    # --- Parts ---------------------------------------------------------------------------------------------------------

    def start_cloud(self) -> tuple[str, str]:
        """Start the cloud broker, and the cloud service with its API; return the broker's endpoint and the API's."""
        api = f"127.0.0.1:{self.fleet.api_port}"
        self._run_broker("cloud broker", "cloud", self.cloud_port, self.place.in_cloud)
        self._run_service({"HUBLINE_API__LISTEN": f'"{api}"'})
        return f"127.0.0.1:{self.cloud_port}", api

    def start_hub(self, *, searching: bool = False) -> None:
        """Start a hub as it is, with its default sensors; it is told of the site's broker, or has to find it by SSDP."""
        told = {
            "HUBLINE_CONNECTOR__DISCOVERY": "true" if searching else "false",
            "HUBLINE_CONNECTOR__ENDPOINTS": "[]" if searching else f'["{self.place.site}:{self.site_port}"]',
        }
        self.run(self.real_hub, "hub", self.real_hub, "", list, told)

    def start_module(self, name: str, module: str, arguments: Sequence[str], words: str) -> None:
        """Start a module of the bench, and wait until its output has these words."""
        log = self.log(name)
        known = log.stat().st_size if log.exists() else 0
        self._spawn(name, [sys.executable, "-m", module, *arguments])
        self.until(f"{name} says {words}", lambda: words in log.read_text("utf-8", "replace")[known:])

    def pid(self, name: str) -> int:
        """Return the process id of what runs under this name."""
        if name == POSTGRES:
            found = None if self._postgres is None else self._postgres.pid
            assert found is not None
            return found
        return self.fleet.processes[name].popen.pid

    def output(self, name: str) -> IO[bytes]:
        """Return the standard output of what was started with a pipe."""
        pipe = self.fleet.processes[name].popen.stdout
        assert pipe is not None
        return pipe

    def log(self, name: str) -> Path:
        """Return the file with what is written by what runs under this name."""
        return self.directory / "logs" / f"{name.replace(' ', '-')}.log"

    def audit(self, database: Database) -> list[HubAudit]:
        """Return what the database of our cloud service holds. Raises HublineError if the audit can't be made."""
        command = [*HUBLINE, "cloud", "audit", "-c", str(self.bundles / "cloud" / "cloud" / "cloud.toml"), "--json"]
        environ = {**os.environ, **self.storing(database)}
        done = subprocess.run(self.place.in_cloud(command), capture_output=True, env=environ, check=False)
        try:
            return msgspec.json.decode(done.stdout, type=list[HubAudit])
        except msgspec.DecodeError as exc:
            raise HublineError(f"the audit failed: {done.stderr.decode('utf-8', 'replace').strip()[-500:]}") from exc

    @property
    def sqlite(self) -> Path:
        """Return the file of our cloud service's database."""
        return self.bundles / "cloud" / "cloud" / "cloud.db"

    async def postgres(self) -> asyncpg.Connection:
        """Connect to our cloud service's database on PostgreSQL; to be called where the server is."""
        return await _connected(self.database_url("hubline"))

    def wait_for_port(self, port: int) -> None:
        """Wait until something listens on a port of loopback."""
        self._wait_for_listener(f"127.0.0.1:{port}")

    def until(self, what: str, check: Callable[[], bool]) -> None:
        """Wait until something holds. Raises HublineError if it does not in time, or a process has ended by itself."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not check():
            self.fleet.check()
            if time.monotonic() > deadline:
                raise HublineError(f"waited {START_TIMEOUT_S:g} s in vain: {what}")
            time.sleep(0.05)

    # --- The end -------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End everything that runs but the database's server, which writes out what is left, lest the next run pays for it."""
        pipes = [process.popen.stdout for process in self.fleet.processes.values()]
        self.fleet.stop_all()
        for pipe in pipes:
            if pipe is not None:
                pipe.close()
        if self._databases:
            with ThreadPoolExecutor(1) as thread, self._in_cloud():
                thread.submit(asyncio.run, _checkpoint(next(iter(self._databases.values())))).result()

    def close(self) -> None:
        """End everything."""
        self._databases.clear()
        self.stop()
        if self._postgres is not None:
            self._postgres.stop()
            self._postgres = None

    # --- How -----------------------------------------------------------------------------------------------------------

    def _run_broker(
        self,
        name: str,
        member: str,
        port: int,
        at: At,
        engine: BrokerEngine = "amqtt",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        told = {
            "HUBLINE_BROKER__LISTEN": f'["{self.place.listen}:{port}"]',
            "HUBLINE_BROKER__ENGINE": f'"{engine}"',
            **(environ or {}),
        }
        if engine == "mosquitto":
            told["HUBLINE_BROKER__PROGRAM"] = f'"{peer.program()}"'
        self.run(name, "broker", member, '"broker_started"', at, told)

    def _start_service(self, port: int, database: Database) -> tuple[str, ...]:
        environ = {"HUBLINE_API__ENABLED": "false", "HUBLINE_CLOUD__BROKER": f'"127.0.0.1:{port}"'}
        self._run_service({**environ, **self.storing(database)})
        return ("cloud service",) if database == "sqlite" else ("cloud service", POSTGRES)

    def _run_service(self, environ: Mapping[str, str]) -> None:
        self.run("cloud service", "cloud", "cloud", '"broker_connected"', self.place.in_cloud, environ)

    def storing(self, database: Database) -> dict[str, str]:
        if database == "sqlite":
            return {}
        return {"HUBLINE_CLOUD__DATABASE": f'"{self.database_url("hubline")}"'}

    def database_url(self, name: str) -> str:
        """Return the URL of a database in a server of our own, which is started when it is first needed."""
        if name not in self._databases:
            with self._in_cloud():
                if self._postgres is None:
                    self._postgres = LocalPostgres(self.directory / "postgres", self._postgres_port, POSTGRES_OPTIONS)
                    self._postgres.start()
                self._databases[name] = self._postgres.create(name)
        return self._databases[name]

    def _in_cloud(self) -> AbstractContextManager[None]:
        return inside(self.place.cloud_namespace) if self.place.cloud_namespace else nullcontext()

    def run(
        self,
        name: str,
        role: str,
        member: str,
        words: str,
        at: At,
        environ: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        """Start one of our roles, and wait until its log says that it is ready."""
        log = self.log(name)
        known = log.stat().st_size if log.exists() else 0
        settings = self.bundles / role / member / f"{role}.toml"
        self._spawn(name, at([*HUBLINE, role, "run", "-c", str(settings), *options]), environ)
        self.until(f"{name} says {words}", lambda: words in log.read_text("utf-8", "replace")[known:])

    def _spawn(
        self, name: str, command: list[str], environ: Mapping[str, str] | None = None, *, piped: bool = False
    ) -> None:
        with self.log(name).open("ab") as stream:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else stream,
                stderr=stream,
                cwd=ROOT,
                env={**os.environ, **(environ or {})},
                start_new_session=True,  # Ctrl-C is ours to pass on.
            )
        self.fleet.processes[name] = Process(name, popen, self.log(name))

    def _ends(self, site_port: int, cloud_port: int) -> tuple[str, str]:
        return f"{self.place.site}:{site_port}", f"{self.place.cloud}:{cloud_port}"

    def _wait_for_listener(self, endpoint: str) -> None:
        host, _, port = endpoint.rpartition(":")
        self.until(f"a listener at {endpoint}", lambda: _answers(host, int(port)))

    def _is_bridged(self, port: int) -> bool:
        command = ["ss", "-tnHO", "state", "established", f"( dport = :{port} )"]
        try:
            return bool(subprocess.run(self.place.at_site(command), capture_output=True, check=False).stdout)
        except FileNotFoundError:
            return True


async def _connected(url: str) -> asyncpg.Connection:
    import asyncpg

    return await asyncpg.connect(url.replace("postgresql+asyncpg://", "postgresql://", 1))


async def _checkpoint(url: str) -> None:
    connection = await _connected(url)
    try:
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


def _answers(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0
