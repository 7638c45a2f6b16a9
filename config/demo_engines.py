"""How a demo's brokers, cloud service and database are run: with Hubline's own engine and SQLite, or with engines that exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

from config.bundles import toml_string, toml_strings
from config.local_postgres import LocalPostgres
from config.ports import free_ports

Engine: TypeAlias = Literal["amqtt", "mosquitto", "nats"]
Database: TypeAlias = Literal["sqlite", "postgresql"]

NODES: Final = 3
WORKERS: Final = 2


@dataclass(frozen=True, slots=True)
class Started:
    """A process to start: its name in the demo, the command, whose bundle it has, and its settings beside that."""

    name: str
    command: tuple[str, ...]
    role: str
    member: str
    environ: Mapping[str, str] = field(default_factory=dict)


class Landscape:
    """What runs where, on free ports of loopback. `bundles` is the fleet's folder of bundles."""

    def __init__(self, engine: Engine, database: Database, bundles: Path):
        self.engine, self.database = engine, database
        self._bundles = bundles
        self.nodes = (
            ["cloud", *(f"cloud-{number}" for number in range(2, NODES + 1))] if engine == "nats" else ["cloud"]
        )
        count = len(self.nodes)
        ports = free_ports(3 * count + 3)
        self._ports, self._nats, self._routes = ports[:count], ports[count : 2 * count], ports[2 * count : 3 * count]
        self.site_port, self.api_port, self._database_port = ports[3 * count :]
        self.postgres: LocalPostgres | None = None

    @property
    def cloud_port(self) -> int:
        """Return the port of the cloud broker, or of its first node."""
        return self._ports[0]

    @property
    def hosts(self) -> dict[str, str]:
        """Return host and port of each node of the cloud broker."""
        return {name: f"127.0.0.1:{port}" for name, port in zip(self.nodes, self._ports, strict=True)}

    def start_database(self, folder: Path) -> dict[str, str]:
        """Start the database where that is a server; return settings for all who use it. Raises HublineError."""
        if self.database == "sqlite":
            return {}
        self.postgres = LocalPostgres(folder, self._database_port)
        self.postgres.start()
        return {"HUBLINE_CLOUD__DATABASE": toml_string(self.postgres.create("hubline"))}

    def stop_database(self) -> None:
        """Stop it, if there is one."""
        if self.postgres is not None:
            self.postgres.stop()

    def brokers(self, connector: str) -> list[Started]:
        """Return the cloud broker's nodes, and the site's broker."""
        names = ["cloud broker"] if len(self.nodes) == 1 else [f"cloud broker {name}" for name in self.nodes]
        nodes = [
            Started(name, ("broker", "run"), "broker", node, self._node(position))
            for position, (name, node) in enumerate(zip(names, self.nodes, strict=True))
        ]
        at_site = _listen(self.site_port)
        if self.engine == "mosquitto":
            bridge = str(self._bundles / "connector" / connector / "connector.toml")
            at_site |= {"HUBLINE_BROKER__ENGINE": '"mosquitto"', "HUBLINE_BROKER__BRIDGE": toml_string(bridge)}
            at_site |= self.connector
        return [*nodes, Started("site broker", ("broker", "run"), "broker", connector, at_site)]

    def services(self) -> list[Started]:
        """Return the cloud service, in one process or divided."""
        listen = {"HUBLINE_API__LISTEN": f'"127.0.0.1:{self.api_port}"'}
        if self.engine == "nats":
            listen |= {
                "HUBLINE_CLOUD__INTAKE": '"jetstream"',
                "HUBLINE_CLOUD__NATS": toml_strings(_local(self._nats)),
                "HUBLINE_CLOUD__OTHER_BROKERS": toml_strings(list(self.hosts.values())[1:]),
            }
        if self.engine == "amqtt" or self.database == "sqlite":
            return [Started("cloud", ("cloud", "run"), "cloud", "cloud", listen)]
        if self.engine == "mosquitto":
            listen |= {"HUBLINE_CLOUD__INTAKE": '"shared"'}
        command = ("cloud", "run", "--only")
        workers = [
            Started(f"ingest {number}", (*command, "ingest"), "cloud", "cloud", listen)
            for number in range(1, WORKERS + 1)
        ]
        return [*workers, Started("operations", (*command, "operations"), "cloud", "cloud", listen)]

    @property
    def connector(self) -> dict[str, str]:
        """Return the settings of the connector."""
        return {"HUBLINE_CONNECTOR__BRIDGE": '"engine"'} if self.engine == "mosquitto" else {}

    def describe(self, site: str, hubs: int) -> str:
        """Return in one line what is connected to what."""
        bridge = "its bridge, watched by the connector" if self.engine == "mosquitto" else "connector"
        at_site = "Mosquitto" if self.engine == "mosquitto" else "site broker"
        broker = {"amqtt": "cloud broker", "mosquitto": "Mosquitto", "nats": f"{NODES} NATS nodes"}[self.engine]
        divided = len(self.services()) > 1
        service = f"{WORKERS} ingest workers and operations" if divided else "cloud"
        database = "PostgreSQL, all but that" if self.database == "postgresql" else "database, all"
        return (
            f"One site, [bold]{site}[/]: {hubs} hubs → {at_site} → {bridge} → {broker} → {service} → {database}"
            " over mutual TLS."
        )

    def _node(self, position: int) -> dict[str, str]:
        environ = _listen(self._ports[position])
        match self.engine:
            case "amqtt":
                return environ
            case "mosquitto":
                return environ | {"HUBLINE_BROKER__ENGINE": '"mosquitto"'}
            case "nats":
                folder = self._bundles / "broker" / self.nodes[position]
                others = [port for port in self._routes if port != self._routes[position]]
                return environ | {
                    "HUBLINE_BROKER__ENGINE": '"nats"',
                    "HUBLINE_NATS__LISTEN": f'"127.0.0.1:{self._nats[position]}"',
                    "HUBLINE_NATS__CLUSTER_LISTEN": f'"127.0.0.1:{self._routes[position]}"',
                    "HUBLINE_NATS__ROUTES": toml_strings(_local(others)),
                    "HUBLINE_NATS__REPLICAS": str(NODES),
                    **{
                        f"HUBLINE_NATS__CLUSTER_{what.upper()}": toml_string(str(folder / f"cluster-{what}.pem"))
                        for what in ("ca", "cert", "key")
                    },
                }


def _listen(port: int) -> dict[str, str]:
    return {"HUBLINE_BROKER__LISTEN": f'["127.0.0.1:{port}"]'}


def _local(ports: Sequence[int]) -> list[str]:
    return [f"127.0.0.1:{port}" for port in ports]
