"""What a session is told when it is made, and what it reports: values that machines and tests compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from broker.proxy import Proxy
from broker.tls import NamedContext
from config import limits


@dataclass(frozen=True, slots=True)
class Opened:
    """The broker has accepted the session."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The session never opened because one side said no: certificates, names or rights must change first."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The session could not be opened or has broken.

    `alive_at` is when the peer was last known to live (monotonic), or None if never: for a connection that the peer's
    system has closed, the moment of the close; for a silent one, the arrival of the last bytes.
    """

    reason: str
    alive_at: float | None


@dataclass(frozen=True, slots=True)
class Closed:
    """We have closed the session ourselves."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message of one of the subscriptions. `retain` says that it was waiting at the broker when we subscribed (again)."""

    topic: str
    payload: bytes
    retain: bool


@dataclass(frozen=True, slots=True)
class Granted:
    """The broker has taken a SUBSCRIBE. It is not reported."""

    packet_id: int


SessionEvent: TypeAlias = Opened | Refused | Lost | Closed | Received


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes, retained, if the session ends without a clean DISCONNECT (MQTT 3.1.1, 3.1.2.5)."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Where to connect, as whom, and with what last will.

    `tls` verifies the peer's name, whatever the address; it is a context of this session's own. On port 443 it offers
    ALPN. With a `proxy` the connection goes through it. `mqtt5` is for what 3.1.1 has not: shared subscriptions.
    `in_thread`: read and write in a thread, as where the event loop can't watch a socket. `ask_again_s`: the waits of
    SUBSCRIBE_AGAIN_S.
    """

    endpoint: str
    client_id: str
    tls: NamedContext
    will: Will | None = None
    proxy: Proxy | None = None
    keep_alive_s: int = limits.KEEP_ALIVE_S
    mqtt5: bool = False
    in_thread: bool = False
    ask_again_s: tuple[float, ...] = limits.SUBSCRIBE_AGAIN_S
