"""From a hub's status vector to one icon, one sentence and what must be done by whom, in order (pure).

The vector is connection × reason × scan method × pattern age × real-time scan × reputation. Nothing here is a table of its
cells: each condition says when it holds, how bad it is and what removes it, and an assessment is made of those that hold. So
no combination can be missing, and an action disappears with its condition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Final, Literal, TypeAlias, get_args

from broker.control import Connection, Protection, RequiredAction
from broker.messages import DIRECT
from broker.status_text import WORDS, Language, Words

Reason: TypeAlias = Literal[
    "started",
    "connected",
    "stopped cleanly",
    "lost contact",
    "path down",
    "heartbeat missed",
    "never seen",
    "rejected: clock",
    "rejected: certificate",
    "rejected: revoked",
    "rejected: duplicate identity",
    "paused",
]
"""The reasons that are known here; `assess` takes any other for one that says nothing beyond the connection."""

State: TypeAlias = Literal[
    "online",
    "roaming",
    "unreachable-online",
    "offline",
    "unreachable-offline",
    "path-down",
    "stopped",
    "paused",
    "never-seen",
    "rejected",
]
"""What the sentence begins with and the icon's shape shows: the connection, or what is behind its absence."""

CONNECTED: Final = ("online", "roaming", "unreachable-online")
ABSENCES: Final = ("lost contact", "heartbeat missed", "stopped cleanly")


class Severity(IntEnum):
    """How bad a condition is; the worst one that holds is the badge on the icon."""

    OK = 0
    WARNING = 1
    ERROR = 2


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a person is told: `icon` is the name of a file in broker/icons, `actions` are in the order of doing."""

    icon: str
    text: str
    actions: tuple[RequiredAction, ...]


@dataclass(frozen=True, slots=True)
class Vector:
    """What the conditions look at."""

    connection: Connection
    protection: Protection | None
    reason: str = ""

    @property
    def away(self) -> bool:
        """Tell whether the hub roams, and nothing is heard of it."""
        return self.connection == "roaming" and self.reason in ABSENCES

    @property
    def heard(self) -> bool:
        """Tell whether the hub is heard of, so that what it has reported is the present."""
        return self.connection in CONNECTED and not self.away

    @property
    def state(self) -> State:
        """Return the connection, or the reason why there is none if that says more."""
        if self.connection not in ("offline", "unreachable-offline"):
            return self.connection
        match self.reason:
            case "stopped cleanly":
                return "stopped"
            case "never seen":
                return "never-seen"
            case "paused":
                return "paused"
            case reason if reason.startswith("rejected: "):
                return "rejected"
        return self.connection

    def protects(self, **wanted: str) -> bool:
        """Tell whether the protection is known, and as wanted in each dimension."""
        known = self.protection
        return known is not None and all(getattr(known, dimension) == value for dimension, value in wanted.items())


@dataclass(frozen=True, slots=True)
class Step:
    """An action by its id, and who must do it."""

    id: str
    who: Literal["user", "admin", "user or admin"]


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that is not as it should be: when it holds, and the steps that end it. `id` names its words, if it has any."""

    id: str
    holds: Callable[[Vector], bool]
    about: Literal["contact", "protection"]
    severity: Severity = Severity.OK
    steps: tuple[Step, ...] = ()


CONDITIONS: Final = (
    # Contact first: without it an administrator can change nothing from afar.
    Condition(
        "path-down", lambda vector: vector.state == "path-down", "contact", steps=(Step("check-connector", "admin"),)
    ),
    Condition(
        "clock",
        lambda vector: vector.reason == "rejected: clock",
        "contact",
        Severity.WARNING,
        (Step("set-clock", "user or admin"),),
    ),
    Condition(
        "certificate",
        lambda vector: vector.reason == "rejected: certificate",
        "contact",
        Severity.ERROR,
        (Step("renew-certificate", "admin"),),
    ),
    Condition(
        "revoked",
        lambda vector: vector.reason == "rejected: revoked",
        "contact",
        Severity.ERROR,
        (Step("settle-revocation", "admin"),),
    ),
    Condition(
        "duplicate-identity",
        lambda vector: vector.reason == "rejected: duplicate identity",
        "contact",
        Severity.ERROR,
        (Step("separate-machines", "admin"),),
    ),
    Condition(
        "rejected",
        lambda vector: vector.state == "rejected" and vector.reason not in get_args(Reason),
        "contact",
        Severity.ERROR,
        (Step("check-connection", "user or admin"),),
    ),
    Condition("paused", lambda vector: vector.reason == "paused", "contact", steps=(Step("end-pause", "admin"),)),
    Condition(
        "never-seen", lambda vector: vector.state == "never-seen", "contact", steps=(Step("install-hub", "admin"),)
    ),
    Condition(
        "stopped", lambda vector: vector.state == "stopped", "contact", steps=(Step("start-hub", "user or admin"),)
    ),
    Condition(
        "lost-contact",
        lambda vector: vector.state == "offline" and vector.reason != "heartbeat missed",
        "contact",
        steps=(Step("check-connection", "user or admin"),),
    ),
    Condition(
        "heartbeat-missed",
        lambda vector: vector.state == "offline" and vector.reason == "heartbeat missed",
        "contact",
        steps=(Step("check-connection", "user or admin"),),
    ),
    Condition(
        "unheard",
        lambda vector: vector.state == "unreachable-offline",
        "contact",
        steps=(Step("check-way-out", "user or admin"),),
    ),
    Condition("away", lambda vector: vector.away, "contact"),
    # Then what leaves the machine without protection, then what makes its protection worse.
    Condition(
        "roaming-bars-console",
        lambda vector: vector.connection == "roaming" and vector.protects(realtime="disabled"),
        "protection",
        steps=(Step("leave-roaming", "user"),),
    ),
    Condition(
        "realtime-disabled",
        lambda vector: vector.protects(realtime="disabled"),
        "protection",
        Severity.ERROR,
        (Step("enable-realtime", "admin"),),
    ),
    Condition(
        "realtime-stopped",
        lambda vector: vector.protects(realtime="stopped"),
        "protection",
        Severity.ERROR,
        (Step("start-realtime-service", "user or admin"),),
    ),
    Condition(
        "smart-unreachable",
        lambda vector: vector.protects(scan="smart", reputation="unreachable"),
        "protection",
        Severity.WARNING,
        (Step("check-location", "user or admin"), Step("check-proxies", "admin")),
    ),
    Condition(
        "web-unreachable",
        lambda vector: vector.protects(scan="conventional", reputation="unreachable"),
        "protection",
        Severity.WARNING,
        (Step("check-web-reputation", "admin"),),
    ),
    Condition(
        "pattern-old",
        lambda vector: vector.protects(pattern="old"),
        "protection",
        Severity.WARNING,
        (Step("update-now", "user"), Step("configure-updates", "admin")),
    ),
)


def assess(
    connection: Connection,
    protection: Protection | None,
    *,
    reason: str = "",
    language: Language = "en",
    via: str | None = None,
    last_seen_ms: int | None = None,
    expected_direct_by_ms: int | None = None,
) -> Assessment:
    """Return what to show for a hub, whatever the combination.

    `protection` is None for a machine whose protection is not known. `via` names the connector of a path that is down;
    `last_seen_ms` and `expected_direct_by_ms` (Unix ms) are told while there is no contact, in UTC.
    """
    vector = Vector(connection, protection, reason)
    words = WORDS[language]
    holding = [condition for condition in CONDITIONS if condition.holds(vector)]
    connector = words.its_connector if via in (None, DIRECT) else words.this_connector.format(id=via)
    moments = _moments(vector, words, last_seen_ms, expected_direct_by_ms)
    return Assessment(
        icon_of(vector.state, max((condition.severity for condition in holding), default=Severity.OK)),
        _sentence(vector, holding, words, moments).format(connector=connector),
        tuple(
            RequiredAction(step.id, step.who, words.actions[step.id].format(connector=connector))
            for condition in holding
            for step in condition.steps
        ),
    )


def icon_of(state: State, severity: Severity) -> str:
    """Return the name of the icon: its shape shows the state, its badge the severity."""
    if severity is Severity.OK:
        return f"{state}-ok" if state in CONNECTED else state
    return f"{state}-{severity.name.lower()}"


ICONS: Final = tuple(
    icon_of(state, severity)
    for state in get_args(State)
    for severity in Severity
    if state != "rejected" or severity is not Severity.OK
)
"""Every icon that an assessment can have; no rejection is without a cause that is at least a warning."""


def _sentence(vector: Vector, holding: list[Condition], words: Words, moments: str) -> str:
    contact, protection = (
        [words.clauses[each.id] for each in holding if each.about == about and each.id in words.clauses]
        for about in ("contact", "protection")
    )
    name = words.names[vector.state]
    if vector.heard:
        if clauses := contact + protection:
            return f"{name}{words.but}{words.listed(clauses)}."
        calm = words.calm_connection if vector.state == "online" and vector.protection is None else words.calm
        return f"{name}: {calm[vector.state]}."
    reported = f"{words.last_reported}{words.listed(protection)}" if protection else ""
    return f"{name}: {words.listed(contact)}{moments}{reported}."


def _moments(vector: Vector, words: Words, last_seen_ms: int | None, expected_direct_by_ms: int | None) -> str:
    """Return when a hub that is not heard was heard last, and when it should come directly, as far as that is known."""
    told = ""
    if moment := _moment(last_seen_ms):
        told += f"{words.last_seen} {moment}"
    if vector.state == "path-down" and (moment := _moment(expected_direct_by_ms)):
        told += f"{words.expected_direct} {moment}"
    return told


def _moment(ms: int | None) -> str:
    if ms is None or not 0 <= ms < _CALENDAR_END_MS:
        return ""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


_CALENDAR_END_MS: Final = 253_402_300_800_000
