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
        description='a URL like "sqlite:///cloud.db" or "postgresql://user:password@host/name"',
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


class HubProcess(Struct, frozen=True, forbid_unknown_fields=True):
    """`[hub]`: where the hub keeps what it must not lose, how much of it, and how often it shows a broker that it lives."""

    data_dir: Path = Path("data")
    outbox_max_bytes: Annotated[int, Meta(ge=1024 * 1024)] = limits.OUTBOX_MAX_BYTES
    outbox_max_days: Days = limits.OUTBOX_MAX_AGE_S / 86_400
    keep_alive_s: KeepAlive = limits.KEEP_ALIVE_S


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


class HubSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """hub.toml. `sensors` maps a sensor's name to its section: `enabled`, `interval_s` and what that sensor itself knows."""

    identity: Identity
    hub: HubProcess = HubProcess()
    connector: HubConnector = HubConnector()
    cloud: HubCloud = HubCloud()
    failover: Failover = Failover()
    failback: Failback = Failback()
    sensors: dict[Label, dict[str, Scalar]] = field(default_factory=dict)
    log: Log = Log()


class BrokerProcess(Struct, frozen=True, forbid_unknown_fields=True):
    """`[broker]`: where the broker listens, and with which engine."""

    listen: Annotated[list[ListenEndpoint], Meta(min_length=1)] = field(default_factory=lambda: ["0.0.0.0:8883"])
    engine: Literal["amqtt"] = "amqtt"
    crl: Path | None = None
    data_dir: Path = Path("data")
    handshakes_per_s: Annotated[float, Meta(gt=0)] = limits.HANDSHAKES_PER_S


class BrokerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """broker.toml, of a site broker or (site "-") of the cloud broker."""

    identity: Identity
    broker: BrokerProcess = field(default_factory=BrokerProcess)
    log: Log = Log()


class ConnectorProcess(Struct, frozen=True, forbid_unknown_fields=True):
    """`[connector]` of a connector. `advertise_port` is the site broker's port in announcements, else that of `site_broker`."""

    site_broker: Endpoint = "127.0.0.1:8883"
    advertise: bool = True
    advertise_port: Annotated[int, Meta(ge=1, le=65535)] | None = None
    data_dir: Path = Path("data")
    keep_alive_s: KeepAlive = limits.KEEP_ALIVE_S


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
    """`[cloud]` of the cloud service: its broker and its database (a URL; a relative SQLite path is relative to the file)."""

    broker: Endpoint = "127.0.0.1:8883"
    database: DatabaseUrl = "sqlite:///cloud.db"
    data_dir: Path = Path("data")


class Retention(Struct, frozen=True, forbid_unknown_fields=True):
    """`[retention]`: days that the cloud keeps each kind of message; rollups outlive the readings that they sum up."""

    readings_days: Days = 90.0
    events_days: Days = 400.0
    logs_days: Days = 30.0
    other_days: Days = 90.0
    rollup_5min_days: Days = 400.0
    rollup_1h_days: Days = 3650.0


class CloudSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """cloud.toml."""

    identity: Identity
    cloud: CloudProcess = CloudProcess()
    retention: Retention = Retention()
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
