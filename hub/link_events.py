"""What a link hears and says: the sessions of a hub, what connectors tell on them, and what is to be done about it (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from broker.machine import Wakeup
from broker.messages import ConnectorState


class Kind(Enum):
    """Where a session leads."""

    CONNECTOR = "connector"
    DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """The broker has accepted a session."""

    session: int


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """A session is gone or never came to be. `alive_at`: when its peer was last known to live."""

    session: int
    reason: str
    alive_at: float | None = None


@dataclass(frozen=True, slots=True)
class ConnectorHeard:
    """A connector's state, retained or fresh, or its last will, has come on a session to a site broker."""

    session: int
    connector_id: str
    state: ConnectorState


@dataclass(frozen=True, slots=True)
class CloudAcknowledged:
    """An acknowledgement of the cloud has come through a session."""

    session: int


@dataclass(frozen=True, slots=True)
class ConnectorFound:
    """A matching connector has answered the search."""

    endpoint: str


@dataclass(frozen=True, slots=True)
class SearchEnded:
    """The search is over."""


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a session. One that is `carrying` gets a session number, a will and the hub's client id; else it listens."""

    session: int
    kind: Kind
    endpoint: str
    carrying: bool


@dataclass(frozen=True, slots=True)
class Disconnect:
    """End a session with a clean DISCONNECT."""

    session: int


@dataclass(frozen=True, slots=True)
class Use:
    """From now on messages go through this session: publish the birth there, then send. `via` is as in the birth."""

    session: int
    via: str


@dataclass(frozen=True, slots=True)
class Halt:
    """No path works; send nothing."""


@dataclass(frozen=True, slots=True)
class Search:
    """Search connectors by SSDP; report each as `ConnectorFound`, the end as `SearchEnded`."""


@dataclass(frozen=True, slots=True)
class Remember:
    """Keep these site brokers on disk, the best first: the next start needs no search."""

    endpoints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SaveOutage:
    """Keep on disk since when no connector's path is good, or (None) that one is."""

    since: float | None


Event: TypeAlias = (
    SessionOpened | SessionEnded | ConnectorHeard | CloudAcknowledged | ConnectorFound | SearchEnded | Wakeup
)
Command: TypeAlias = Connect | Disconnect | Use | Halt | Search | Remember | SaveOutage
