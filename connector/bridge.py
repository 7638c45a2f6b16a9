"""What crosses between a site's broker and the cloud's, in both directions, bounded and without a spool (pure).

Everything that cannot cross at once is dropped: its sender keeps it until the cloud has stored it, and sends it again.
Only what is true now is repeated by the bridge: hubs' retained states, when the way up opens, and its own state.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from math import inf
from random import Random
from typing import Final, TypeAlias

from msgspec import Struct

from broker.backoff import Backoff
from broker.machine import Wakeup
from broker.topics import Topic, hub_filter
from config import limits
from config.errors import ProtocolError


class Side(Enum):
    """The two brokers."""

    SITE = "site"
    CLOUD = "cloud"

    __hash__ = object.__hash__  # Members are single objects; Enum's own is slow, and asked several times a message.

    @property
    def other(self) -> Side:
        """Return the opposite broker."""
        return Side.CLOUD if self is Side.SITE else Side.SITE


@dataclass(frozen=True, slots=True)
class Started:
    """The connector begins."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A broker has accepted our session."""

    side: Side


@dataclass(frozen=True, slots=True)
class Ended:
    """A session is gone or never came to be."""

    side: Side


class Came(Struct, frozen=True, gc=False):
    """A message has come from a side; `in_flight` messages to the other side are still without PUBACK.

    This and `Forward` are Structs, because they are made for every message: a frozen dataclass costs some times as much to make.
    """

    side: Side
    topic: str
    payload: bytes
    in_flight: int


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a session to one of a side's endpoints; report `Opened` and `Ended`."""

    side: Side
    turn: int


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Subscribe to topic filters, each with its QoS; what is retained comes (again)."""

    side: Side
    filters: tuple[tuple[str, int], ...]


class Forward(Struct, frozen=True, gc=False):
    """Publish a message on a side."""

    side: Side
    topic: str
    payload: bytes
    qos: int
    retain: bool


@dataclass(frozen=True, slots=True)
class Announce:
    """Publish the connector's own state on a side, retained; in the cloud it also says whether the site's broker is reached."""

    side: Side
    upstream_up: bool


Event: TypeAlias = Started | Opened | Ended | Came | Wakeup
Command: TypeAlias = Connect | Subscribe | Forward | Announce


@dataclass(slots=True)
class _Crossing:
    """How the messages of one topic cross: where to, and behind how many others at the most."""

    target: Side
    in_flight_max: float
    qos: int
    retain: bool
    counter: str = field(init=False)

    def __post_init__(self) -> None:
        self.counter = f"to_{self.target.value}"


class Lines:
    """The sessions with both brokers: which are open, and when a lost one is opened again.

    The cloud broker has so many `nodes`: waits grow when all of them have failed in turn, since the next one may be well.
    """

    def __init__(self, random: Random, nodes: int = 1):
        self._random = random
        self._nodes = {Side.SITE: 1, Side.CLOUD: max(1, nodes)}
        self.open: Final = {Side.SITE: False, Side.CLOUD: False}
        self._opened_at = {Side.SITE: 0.0, Side.CLOUD: 0.0}
        self._next_at: dict[Side, float] = {}
        self._turn = {Side.SITE: 0, Side.CLOUD: 0}
        self._backoff = {Side.SITE: Backoff(random), Side.CLOUD: Backoff(random)}

    def opened(self, side: Side, now: float) -> None:
        """Note that a session is open."""
        self.open[side], self._opened_at[side] = True, now

    def ended(self, side: Side, now: float) -> bool:
        """Note that a session is gone or never came to be, and tell whether it was open."""
        was_open, self.open[side] = self.open[side], False
        self._turn[side] += 1
        if was_open:
            self._backoff[side].lived(now - self._opened_at[side])
        if self._turn[side] % self._nodes[side] == 0:
            wait_s = self._backoff[side].next_s()
        else:
            wait_s = self._random.uniform(0.0, limits.BACKOFF_FIRST_S)
        self._next_at[side] = now + wait_s
        return was_open

    def due(self, now: float) -> list[Connect]:
        """Return which sessions to open now; each is named once."""
        due = [side for side in Side if self._next_at.get(side, inf) <= now]
        for side in due:
            del self._next_at[side]
        return [Connect(side, self._turn[side]) for side in due]

    def deadline(self) -> float | None:
        """Return when the next lost session is to be opened again."""
        return min(self._next_at.values(), default=None)


class Bridge:
    """The bridge of one site. `counters` tells an operator what crossed and what was dropped, and why."""

    def __init__(self, fleet: str, site: str, random: Random, *, nodes: int = 1):
        self.fleet, self.site = fleet, site
        self.counters: Counter[str] = Counter()
        self._lines = Lines(random, nodes)
        self._open: Final = self._lines.open
        self._crossing_of: Final = lru_cache(limits.TOPICS_REMEMBERED_MAX)(self._work_out)
        # QoS 0 where messages are many: a lost one comes again by its sender's retransmission.
        self._states = ((hub_filter(fleet, site, "+", "state"), 1),)
        self._up = (
            *((hub_filter(fleet, site, "+", channel), 0) for channel in ("up", "heartbeat", "poll")),
            *self._states,
        )
        self._down = ((hub_filter(fleet, site, "+", "down"), 0),)

    @property
    def upstream_up(self) -> bool:
        """Tell whether there is a way up."""
        return self._open[Side.CLOUD]

    def is_open(self, side: Side) -> bool:
        """Tell whether the session of a side is open."""
        return self._open[side]

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take an event and return what to do; see Machine."""
        match event:
            case Came(side, topic, payload, in_flight):
                return self._came(side, topic, payload, in_flight)
            case Started():
                return [Connect(Side.SITE, 0), Connect(Side.CLOUD, 0)]
            case Opened(side):
                return self._opened(side, now)
            case Ended(side):
                return self._ended(side, now)
            case Wakeup():
                return [*self._lines.due(now)]

    def deadline(self) -> float | None:
        """Return when a lost session is to be opened again."""
        return self._lines.deadline()

    def _opened(self, side: Side, now: float) -> list[Command]:
        self._lines.opened(side, now)
        if side is Side.SITE:
            commands: list[Command] = [Subscribe(side, self._up), Announce(side, self._open[Side.CLOUD])]
            return [*commands, *self._tell_cloud_of_site()]
        commands = [Subscribe(side, self._down), Announce(side, upstream_up=True)]
        if self._open[Side.SITE]:
            # First the retained states, then the word that sets off the hubs' retransmission.
            commands += [Subscribe(Side.SITE, self._states), Announce(Side.SITE, upstream_up=True)]
        return commands

    def _ended(self, side: Side, now: float) -> list[Command]:
        was_open = self._lines.ended(side, now)
        if side is Side.CLOUD and was_open and self._open[Side.SITE]:
            return [Announce(Side.SITE, upstream_up=False)]
        return self._tell_cloud_of_site() if side is Side.SITE and was_open else []

    def _tell_cloud_of_site(self) -> list[Command]:
        """Say in the cloud whether the site's broker is reached: if it dies, its hubs' wills die with it."""
        return [Announce(Side.CLOUD, upstream_up=True)] if self._open[Side.CLOUD] else []

    def _came(self, side: Side, text: str, payload: bytes, in_flight: int) -> list[Command]:
        crossing = self._crossing_of(text)
        if crossing is None or crossing.target is side:
            return self._dropped(side.other, "foreign")
        target = crossing.target
        if len(payload) > limits.MESSAGE_MAX_BYTES:
            return self._dropped(target, "too_large")
        if not self._open[target]:
            return self._dropped(target, "closed")
        if in_flight >= crossing.in_flight_max:
            return self._dropped(target, "full")
        self.counters[crossing.counter] += 1
        return [Forward(target, text, payload, crossing.qos, crossing.retain)]

    def _work_out(self, text: str) -> _Crossing | None:
        """Return how messages of a topic cross, or None if it is not of one of our site's hubs, or stays where it is."""
        try:
            topic = Topic.parse(text)
        except ProtocolError:
            return None
        if (topic.fleet, topic.site, topic.owner) != (self.fleet, self.site, "hub"):
            return None
        match topic.channel:
            case "state":  # Births and wills are few, and nobody sends them again.
                return _Crossing(Side.CLOUD, in_flight_max=inf, qos=1, retain=True)
            case "up" | "heartbeat" | "poll":
                return _Crossing(Side.CLOUD, limits.BRIDGE_IN_FLIGHT_MAX, qos=1, retain=False)
            case "down":
                qos = 0 if topic.leaf == "ack" else 1
                return _Crossing(Side.SITE, limits.BRIDGE_DOWN_IN_FLIGHT_MAX, qos, retain=False)
            case _:
                return None

    def _dropped(self, target: Side, reason: str) -> list[Command]:
        self.counters[f"to_{target.value}_dropped_{reason}"] += 1
        return []
