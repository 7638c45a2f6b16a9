"""What happens to the presence machine, and what it asks to be done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from broker.machine import Wakeup
from broker.messages import ConnectorState, HubState
from cloud.hub_key import HubKey
from cloud.presence_facts import Policy, Record, Status
from config.settings import Machine

# --- Events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connected:
    """The cloud broker has accepted our session; it may have forgotten what is retained."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """Our session has ended: from now on, silence says nothing about any hub."""


@dataclass(frozen=True, slots=True)
class HubSaid:
    """A birth, a clean stop or a last will. `retained`: it was waiting at the broker when we subscribed (again)."""

    site: str
    hub_id: str
    state: HubState
    received_ms: int
    retained: bool = False


@dataclass(frozen=True, slots=True)
class ConnectorSaid:
    """A connector's state, or its last will."""

    site: str
    connector_id: str
    state: ConnectorState
    received_ms: int
    retained: bool = False


@dataclass(frozen=True, slots=True)
class HeartbeatCame:
    """A sign of life; `ts` is by the hub's clock."""

    key: HubKey
    epoch: str
    session: int
    ts: int
    received_ms: int


@dataclass(frozen=True, slots=True)
class PollCame:
    """A hub asks for tasks and settings."""

    key: HubKey
    epoch: str
    session: int
    ts: int
    received_ms: int


@dataclass(frozen=True, slots=True)
class MessageCame:
    """A sequenced message of any kind; `sent_ms` is its sending, not its content's age, so a backlog looks fresh."""

    key: HubKey
    epoch: str
    sent_ms: int
    received_ms: int
    kind: str = "readings"


@dataclass(frozen=True, slots=True)
class ModeChanged:
    """A hub's settings say something else about its signs of life."""

    key: HubKey
    policy: Policy


@dataclass(frozen=True, slots=True)
class Reported:
    """A hub has said what kind of machine it is."""

    key: HubKey
    machine: Machine


@dataclass(frozen=True, slots=True)
class RosterEntry:
    """A hub that was provisioned; `not_after_ms` is the end of its newest certificate."""

    key: HubKey
    revoked_ms: int | None
    not_after_ms: int


@dataclass(frozen=True, slots=True)
class RosterRead:
    """The whole roster, as it is now."""

    entries: tuple[RosterEntry, ...]


@dataclass(frozen=True, slots=True)
class Paused:
    """Somebody expects nothing of a hub for a while."""

    key: HubKey
    by: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """The pause is over."""

    key: HubKey
    by: str


@dataclass(frozen=True, slots=True)
class Forgotten:
    """Somebody has deleted a hub; if it speaks again it is a new one."""

    key: HubKey


Event: TypeAlias = (
    Connected
    | Disconnected
    | HubSaid
    | ConnectorSaid
    | HeartbeatCame
    | PollCame
    | MessageCame
    | ModeChanged
    | Reported
    | RosterRead
    | Paused
    | Resumed
    | Forgotten
    | Wakeup
)

# --- Commands -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Save:
    """Keep the record of a hub in place of its last one."""

    record: Record


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the connection log: what the status became, and why."""

    key: HubKey
    at_ms: int
    connection: str
    reason: str
    via: str | None
    evidence: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Log:
    """Add a line to the connection log, in the transaction that saves the record."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Publish:
    """Renew the retained presence of a hub."""

    key: HubKey
    status: Status


@dataclass(frozen=True, slots=True)
class Clear:
    """Take the retained presence of a hub away."""

    key: HubKey


Command: TypeAlias = Save | Log | Publish | Clear
