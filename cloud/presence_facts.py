"""What the cloud knows of one hub: its lives (one per outbox), what was asked of it, and the one status that follows.

Values that can be written as JSON, so that a restart goes on where the process has ended. Times in `_ms` are by the cloud's
clock, those in `_ts` by the hub's.
"""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct

from broker.control import Connection, Mode
from cloud.hub_key import HubKey
from config.settings import Machine

End: TypeAlias = Literal["will", "stopped", "polling"]

STARTED: Final = "started"
CONNECTED: Final = "connected"
STOPPED: Final = "stopped cleanly"
LOST: Final = "lost contact"
PATH_DOWN: Final = "path down"
MISSED: Final = "heartbeat missed"
NEVER_SEEN: Final = "never seen"
PAUSED: Final = "paused"
CLOCK: Final = "rejected: clock"
CERTIFICATE: Final = "rejected: certificate"
REVOKED: Final = "rejected: revoked"
DUPLICATE: Final = "rejected: duplicate identity"


class Policy(Struct, frozen=True, omit_defaults=True):
    """What a hub's settings say of its signs of life. `mode` counts until a birth says which it is."""

    heartbeat: Literal["off", "all", "unreachable"] = "unreachable"
    offline_after_min: int = 60
    mode: Mode | None = None


class Life(Struct, frozen=True, omit_defaults=True):
    """What one outbox of a hub has said: in `session`, it was `online` or came to its `end`. `born` is its newest birth.

    `online` is None while only messages have come. A will of session `disproved` was wrong: the hub has spoken since.
    It went back from session `left` to `session`: it keeps the path that it leaves until the new one is proven.
    `first_ms` and `told_ms` are when its first and its newest word were sent; `heard_ms` is when its messages came first, if they
    came before its birth.
    """

    epoch: str
    first_ms: int
    told_ms: int
    first_ts: int | None = None
    last_ts: int | None = None
    skew_ms: int | None = None
    session: int = 0
    online: bool | None = None
    born: int = 0
    birth_ts: int | None = None
    heard_ms: int = 0
    started: bool = False
    end: End | None = None
    ended_ms: int | None = None
    disproved: int = -1
    left: int = -1
    via: str | None = None
    mode: Mode | None = None
    version: str | None = None
    host: str | None = None
    addresses: tuple[str, ...] = ()


class Status(Struct, frozen=True, omit_defaults=True):
    """The one status of a hub, and what it was concluded from."""

    connection: Connection
    since_ms: int
    reason: str
    via: str | None = None
    last_seen_ms: int | None = None
    expected_direct_by_ms: int | None = None
    skew_ms: int | None = None
    evidence: dict[str, Any] = {}


class Record(Struct, frozen=True, omit_defaults=True):
    """All that is known of a hub; `lives[0]` is the one that counts.

    `word_ms`: its last sign of life. `contact_ms`: the last one that counts while it polls, and `contact` what it was.
    `fell_ms`: since when its path is down without a word from it, as `fell` says, to be shown from `fell_shown_ms` on;
    `fell_held` if that may be an effect of our own outage. `confirmed`: heard of since our last outage. `out`: there is no
    contact. `rivals`: two epochs in use at once.
    """

    site: str
    hub_id: str
    status: Status | None = None
    lives: tuple[Life, ...] = ()
    rivals: tuple[str, str] | None = None
    seen_ms: int | None = None
    word_ms: int | None = None
    contact_ms: int | None = None
    contact: str | None = None
    stopped_ms: int | None = None
    fell_ms: int | None = None
    fell: str | None = None
    fell_shown_ms: int = 0
    fell_held: bool = False
    confirmed: bool = True
    out: bool = False
    policy: Policy = Policy()
    machine: Machine = "server"
    paused_by: str | None = None
    rostered: bool = False
    revoked_ms: int | None = None
    not_after_ms: int | None = None
    skew_ms: int | None = None
    clock_wrong: bool = False
    hidden_ms: int | None = None

    @property
    def key(self) -> HubKey:
        """Return the hub's site and id."""
        return self.site, self.hub_id

    @property
    def life(self) -> Life | None:
        """Return the life that counts, or None if nothing was ever heard of the hub."""
        return self.lives[0] if self.lives else None

    def life_of(self, epoch: str) -> Life | None:
        """Return the life with this epoch, if it is remembered."""
        return next((life for life in self.lives if life.epoch == epoch), None)

    @property
    def mode(self) -> Mode:
        """Return the mode that the hub is in, as far as it is known."""
        said = self.lives[0].mode if self.lives else None
        return said or self.policy.mode or "continuous"

    @property
    def alive(self) -> bool:
        """Tell whether its newest state says that it is there; of rivals one is enough."""
        counting = self.lives[:1] if self.rivals is None else [x for x in self.lives if x.epoch in self.rivals]
        return any(life.online is not False for life in counting)
