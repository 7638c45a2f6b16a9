"""Typed, frozen settings of each role, read from TOML and the environment; an error names file, key and value.

Relative paths are relative to the file. `HUBLINE_<SECTION>__<KEY>=<TOML value>` overrides one value.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias, TypeVar

from msgspec import Meta, Struct, field

from config import limits, sources
from config.errors import SettingsError
from config.sources import Effective

if TYPE_CHECKING:
    from config.principal import Role  # Its cryptography is more than a process needs to read its settings.

_HOST: Final = r"(\[[0-9a-fA-F:.]+(%[A-Za-z0-9_.-]+)?\]|[^\s:\[\]]+)"
_PORT: Final = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"

Label: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z",
        description="a name of a-z, 0-9 and inner hyphens, at most 63 long",
    ),
]
SiteLabel: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^(-|[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)\Z",
        description='a name of a-z, 0-9 and inner hyphens, at most 63 long, or "-" for a cloud-wide role',
    ),
]
Endpoint: TypeAlias = Annotated[
    str, Meta(pattern=rf"^{_HOST}:{_PORT}\Z", description='text like "host:8883" or "[::1]:8883"')
]
ListenEndpoint: TypeAlias = Annotated[
    str,
    Meta(
        pattern=rf"^{_HOST}:(0|{_PORT})\Z", description='text like "0.0.0.0:8883" or "[::]:8883" (port 0: any free one)'
    ),
]
DatabaseUrl: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^(sqlite|postgresql)(\+[a-z0-9]+)?://",
        description='a URL like "sqlite:///cloud.db" or "postgresql+asyncpg://user:password@host/name"',
    ),
]
ProxyUrl: TypeAlias = Annotated[
    str,
    Meta(
        pattern=rf"^(none|http://([^\s/@]*@)?{_HOST}:{_PORT}/?)?\Z",
        description='"http://host:port", "http://user:password@host:port", "none", or "" for what the environment says',
    ),
]
Seconds: TypeAlias = Annotated[float, Meta(ge=0)]
KeepAlive: TypeAlias = Annotated[int, Meta(ge=limits.KEEP_ALIVE_MIN_S, le=limits.KEEP_ALIVE_MAX_S)]
Days: TypeAlias = Annotated[float, Meta(gt=0)]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
Scalar: TypeAlias = str | int | float | bool | list[str]


class Identity(Struct, frozen=True, forbid_unknown_fields=True):
    """Who this process is: in every role's file. `site` is "-" for cloud-wide roles."""

    fleet: Label
    site: SiteLabel
    name: Label
    ca: Path
    cert: Path
    key: Path


class Log(Struct, frozen=True, forbid_unknown_fields=True):
    """`[log]`: what is logged, and how: text on a terminal and JSON elsewhere, unless said."""

    level: LogLevel = "info"
    format: Literal["auto", "text", "json"] = "auto"


Minutes: TypeAlias = Annotated[int, Meta(ge=1, le=129_600)]
"""From a minute to 90 days."""
Machine: TypeAlias = Literal["server", "workstation", "laptop"]
Action: TypeAlias = Literal[
    "ping", "sample-now", "report-now", "restart-hub", "collect-logs", "run-check", "update-now"
]
NetworkRange: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^[0-9a-fA-F.:]+(/[0-9]{1,3}|-[0-9.]+)?\Z",
        description='text like "10.20.0.0/16", "192.168.1.10-192.168.1.50" or "fd00:20::/48"',
    ),
]


class HubProcess(Struct, frozen=True, forbid_unknown_fields=True):
    """`[hub]`: where the hub keeps what it must not lose, how much of it, and how often it shows a broker that it lives.

    `machine` is what kind of machine it is: an inactive laptop is hidden later than an inactive server.
    """

    data_dir: Path = Path("data")
    outbox_max_bytes: Annotated[int, Meta(ge=1024 * 1024)] = limits.OUTBOX_MAX_BYTES
    outbox_max_days: Days = limits.OUTBOX_MAX_AGE_S / 86_400
    keep_alive_s: KeepAlive = limits.KEEP_ALIVE_S
    machine: Machine = "server"


class HubConnector(Struct, frozen=True, forbid_unknown_fields=True):
    """`[connector]` of a hub: how it finds its site's connector."""

    discovery: bool = True
    endpoints: list[Endpoint] = field(default_factory=list)


class HubCloud(Struct, frozen=True, forbid_unknown_fields=True):
    """`[cloud]` of a hub: the cloud broker, for when there is no connector, and the HTTP proxy on the way there."""

    endpoints: list[Endpoint] = field(default_factory=list)
    proxy: ProxyUrl = ""


class Failover(Struct, frozen=True, forbid_unknown_fields=True):
    """`[failover]`: when a hub leaves its connector for the cloud."""

    outage_s: Seconds = 300.0
    start_grace_s: Seconds = 60.0
    away_grace_s: Seconds = 15.0


class Failback(Struct, frozen=True, forbid_unknown_fields=True):
    """`[failback]`: when a hub comes back from the cloud to its connector."""

    probe_s: Annotated[float, Meta(gt=0)] = 60.0
    stable_s: Seconds = 60.0
    jitter_s: Seconds = 60.0


class HubMode(Struct, frozen=True, forbid_unknown_fields=True):
    """`[mode]`: whether the hub keeps a session, or connects only for a heartbeat or a poll.

    "auto" polls if one of the machine's own addresses is in `unreachable`. `heartbeat` is who sends one every
    `heartbeat_min` minutes: nobody, all hubs, or those that poll. A hub that was silent for `offline_after_min` counts as
    offline.
    """

    kind: Literal["auto", "continuous", "polling"] = "auto"
    unreachable: list[NetworkRange] = field(default_factory=list)
    heartbeat: Literal["off", "all", "unreachable"] = "unreachable"
    heartbeat_min: Minutes = 10
    poll_min: Minutes = 30
    offline_after_min: Minutes = 60


class Privileges(Struct, frozen=True, forbid_unknown_fields=True):
    """`[privileges]`: what the person at the machine may do, and what reaches it while it roams."""

    roam: bool = False
    update: bool = False
    scheduled_update_while_roaming: bool = False


class HubTasks(Struct, frozen=True, forbid_unknown_fields=True):
    """`[tasks]`: which actions the cloud may start here. Only the machine's own file can say so."""

    allow: list[Action] = field(
        default_factory=lambda: ["ping", "sample-now", "report-now", "restart-hub", "collect-logs", "run-check"]
    )


class Check(Struct, frozen=True, forbid_unknown_fields=True):
    """`[checks.NAME]`: a program that "run-check" may start; its exit status means what it does for monitoring plugins."""

    command: Annotated[list[str], Meta(min_length=1)]
    timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 60.0


class HubLogs(Struct, frozen=True, forbid_unknown_fields=True):
    """`[logs]`: which of its log lines the hub sends to the cloud: from `level` on, and (`connection`) how its paths change."""

    level: Literal["off", "debug", "info", "warning", "error"] = "warning"
    connection: bool = True


class HubProtection(Struct, frozen=True, forbid_unknown_fields=True):
    """`[protection]`: the state of the endpoint protection, where `source` is "settings"; with "none" nothing is told."""

    source: Literal["none", "settings"] = "none"
    scan: Literal["conventional", "smart"] = "conventional"
    pattern: Literal["current", "old"] = "current"
    realtime: Literal["enabled", "disabled", "stopped"] = "enabled"
    reputation: Literal["reachable", "unreachable"] = "reachable"


class Remote(Struct, frozen=True, forbid_unknown_fields=True):
    """`[remote]`: whether settings from the cloud are taken; new ones must let the hub reach it within `trial_s`, or they go."""

    settings: bool = True
    trial_s: Annotated[float, Meta(gt=0)] = 300.0


class HubSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """hub.toml. `sensors` maps a sensor's name to its section: `enabled`, `interval_s` and what that sensor itself knows."""

    identity: Identity
    hub: HubProcess = HubProcess()
    connector: HubConnector = HubConnector()
    cloud: HubCloud = HubCloud()
    failover: Failover = Failover()
    failback: Failback = Failback()
    mode: HubMode = field(default_factory=HubMode)
    privileges: Privileges = Privileges()
    tasks: HubTasks = field(default_factory=HubTasks)
    checks: dict[Label, Check] = field(default_factory=dict)
    logs: HubLogs = HubLogs()
    protection: HubProtection = HubProtection()
    remote: Remote = Remote()
    sensors: dict[Label, dict[str, Scalar]] = field(default_factory=dict)
    log: Log = Log()


class BrokerProcess(Struct, frozen=True, forbid_unknown_fields=True):
    """`[broker]`: where the broker listens, and with which engine.

    `members` lists whom other engines than our own must know by name; `hubline provision` keeps it in the bundle. `program` is
    the engine's program, if it is not on the path. `bridge` is the connector.toml of a connector that lets this engine bridge.
    """

    listen: Annotated[list[ListenEndpoint], Meta(min_length=1)] = field(default_factory=lambda: ["0.0.0.0:8883"])
    engine: Literal["amqtt", "mosquitto", "nats", "external"] = "amqtt"
    crl: Path | None = None
    data_dir: Path = Path("data")
    handshakes_per_s: Annotated[float, Meta(gt=0)] = limits.HANDSHAKES_PER_S
    members: Path | None = None
    program: Path | None = None
    bridge: Path | None = None


class Nats(Struct, frozen=True, forbid_unknown_fields=True):
    """`[nats]` of a broker: its place in a cluster.

    `listen` is for the cloud service's own NATS clients, `cluster_listen` for the other nodes, whose `cluster_listen` are the
    `routes`. `cluster_ca`, `cluster_cert` and `cluster_key` are what nodes know each other by. `replicas` is how many nodes
    keep each message. Who may do what is asked of us at each connection ("callout", which is what "auto" means), or written
    into the configuration ("permissions"): that binds no client id to a certificate, and knows no list of revoked ones.
    Nodes of the cloud take in leaf nodes at `leaf_listen`; a site's node that bridges by itself (`broker.bridge`) is one, and
    tries those of `leaf_remotes` in turn.
    """

    listen: ListenEndpoint = "127.0.0.1:4222"
    cluster: Label = "hubline"
    cluster_listen: ListenEndpoint | None = None
    routes: list[Endpoint] = field(default_factory=list)
    cluster_ca: Path | None = None
    cluster_cert: Path | None = None
    cluster_key: Path | None = None
    replicas: Annotated[int, Meta(ge=1, le=5)] = 1
    authorization: Literal["auto", "permissions", "callout"] = "auto"
    leaf_listen: ListenEndpoint | None = None
    leaf_remotes: list[Endpoint] = field(default_factory=list)


class BrokerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """broker.toml, of a site broker or (site "-") of the cloud broker."""

    identity: Identity
    broker: BrokerProcess = field(default_factory=BrokerProcess)
    nats: Nats = field(default_factory=Nats)
    log: Log = Log()


class ConnectorProcess(Struct, frozen=True, forbid_unknown_fields=True):
    """`[connector]` of a connector. `advertise_port` is the site broker's port in announcements, else that of `site_broker`.

    `bridge`: who carries the messages, this process itself or the site broker's own bridge.
    """

    site_broker: Endpoint = "127.0.0.1:8883"
    advertise: bool = True
    advertise_port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    data_dir: Path = Path("data")
    keep_alive_s: KeepAlive = limits.KEEP_ALIVE_S
    bridge: Literal["own", "engine"] = "own"


class ConnectorCloud(Struct, frozen=True, forbid_unknown_fields=True):
    """`[cloud]` of a connector: the cloud broker's addresses, tried in order, and the HTTP proxy on the way there."""

    endpoints: list[Endpoint] = field(default_factory=list)
    proxy: ProxyUrl = ""


class ConnectorSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """connector.toml."""

    identity: Identity
    connector: ConnectorProcess = ConnectorProcess()
    cloud: ConnectorCloud = ConnectorCloud()
    log: Log = Log()


class CloudProcess(Struct, frozen=True, forbid_unknown_fields=True):
    """`[cloud]` of the cloud service: its broker and its database (a URL; a relative SQLite path is relative to the file).

    `roster` is the list of the fleet's hubs and their certificates that `hubline provision` keeps in the bundle. `intake`: how
    what hubs send comes in, by plain subscription (one process), by a shared one of MQTT 5, or from a stream of the NATS
    cluster at `nats`; `workers` is the name under which several processes share it. `other_brokers` are further nodes of a
    cluster, tried in turn when `broker` can't be reached.
    """

    broker: Endpoint = "127.0.0.1:8883"
    database: DatabaseUrl = "sqlite:///cloud.db"
    data_dir: Path = Path("data")
    roster: Path | None = None
    intake: Literal["mqtt", "shared", "jetstream"] = "mqtt"
    nats: list[Endpoint] = field(default_factory=list)
    workers: Label = "ingest"
    other_brokers: list[Endpoint] = field(default_factory=list)


class Retention(Struct, frozen=True, forbid_unknown_fields=True):
    """`[retention]`: days that the cloud keeps each kind of message; rollups outlive the readings that they sum up."""

    readings_days: Days = 90.0
    events_days: Days = 400.0
    logs_days: Days = 30.0
    other_days: Days = 90.0
    rollup_5min_days: Days = 400.0
    rollup_1h_days: Days = 3650.0


class CloudPresence(Struct, frozen=True, forbid_unknown_fields=True):
    """`[presence]`: when the cloud believes that a hub is gone, and when it hides one that is.

    `outage_s` is the fleet's `failover.outage_s`: after it, a hub whose connector is out is expected directly.
    After an outage of the cloud itself nobody counts as lost for `grace_s`. A clock that is off by more than `skew_max_s` is an
    error of its own. A hub out of contact for `roaming_after_days` is granted roaming (0: never). Every `verify_h` hours (0:
    never) each hub that is there has to answer a ping, and the task is the log of it.
    """

    grace_s: Seconds = 300.0
    outage_s: Seconds = 300.0
    skew_max_s: Annotated[float, Meta(gt=0)] = 300.0
    roaming_after_days: Annotated[float, Meta(ge=0)] = 0.0
    hide_server_days: Days = 3.0
    hide_workstation_days: Days = 30.0
    hide_laptop_days: Days = 120.0
    verify_h: Annotated[float, Meta(ge=0)] = 24.0
    language: Literal["en", "de"] = "en"


class Api(Struct, frozen=True, forbid_unknown_fields=True):
    """`[api]`: whether and where the API is served. Beyond this machine only with `cert` and `key`.

    `tokens` holds the digest of the first token; `hubline provision` puts it into the bundle.
    """

    enabled: bool = True
    listen: ListenEndpoint = "127.0.0.1:8480"
    cert: Path | None = None
    key: Path | None = None
    tokens: Path = Path("tokens.json")


class CloudSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """cloud.toml."""

    identity: Identity
    cloud: CloudProcess = CloudProcess()
    retention: Retention = Retention()
    presence: CloudPresence = CloudPresence()
    api: Api = Api()
    log: Log = Log()


class ReaderProcess(Struct, frozen=True, forbid_unknown_fields=True):
    """`[reader]`: the broker that a subscriber reads."""

    broker: Endpoint = "127.0.0.1:8883"


class ReaderSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """reader.toml."""

    identity: Identity
    reader: ReaderProcess = ReaderProcess()
    log: Log = Log()


Settings: TypeAlias = HubSettings | BrokerSettings | ConnectorSettings | CloudSettings | ReaderSettings
S = TypeVar("S", bound=Settings)

SHAPES: Final[Mapping[Role, type[Settings]]] = {
    "hub": HubSettings,
    "broker": BrokerSettings,
    "connector": ConnectorSettings,
    "cloud": CloudSettings,
    "reader": ReaderSettings,
}
"""The settings of each role; its file is called `<role>.toml`."""


def load(file: Path, shape: type[S], environ: Mapping[str, str] | None = None) -> S:
    """Read the settings of one role from `file` and from `environ` (by default this process's).

    Every path in them is absolute. Raises SettingsError, one line, for anything that a person must correct.
    """
    return sources.read(file, shape, SHAPES, environ).settings


def effective(file: Path, shape: type[Settings], environ: Mapping[str, str] | None = None) -> list[Effective]:
    """Return every key that counts, its value and where it comes from: default, file or environment variable."""
    return sources.read(file, shape, SHAPES, environ).effective()


def role_of(file: Path, role: Role | None = None) -> Role:
    """Return whose file this is: `role` if given, else what its name says (`hub.toml` is a hub's)."""
    if role is not None:
        return role
    for known in SHAPES:
        if file.stem == known:
            return known
    raise SettingsError(
        f"is not called {', '.join(f'{known}.toml' for known in SHAPES)}: name its role with --role", file=file
    )
