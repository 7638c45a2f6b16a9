"""Whether the site broker's own bridge carries, concluded from its notices, our own sessions and acknowledgements (pure).

    upstream up  =  the notice says connected  and  our own session with the cloud is open  and  no doubt, no conviction

A doubt begins when our session with the cloud was lost: Mosquitto does not always tell that its bridge went the same way. It
ends with a fresh notice, with a proof, or in time.

A bridge that names its connection (a leaf node of NATS) says so again and again: only another connection is news then, and
silence means that it is lost. It carries only what is sent in mass; states, heartbeats and polls are ours to bring.

A proof: a hub's message is seen at the site, and its acknowledgement comes there too. If none comes, the connector brings the
message to the cloud itself. If the cloud acknowledges it then, the bridge is to blame; twice in a row, and it is convicted: until
a proof, a fresh notice, or its parole. If not, it is the cloud, or rights that both lack; that convicts after some minutes. Hubs
fall silent then, so the connector brings the same message again and again, until the cloud acknowledges it.
Without messages there is nothing to prove and nothing to blame.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random
from typing import Final, TypeAlias

from broker.engines.mosquitto_bridge import restart_max_s
from broker.engines.site_bridge import Notice, notification_topic
from broker.machine import Wakeup
from broker.messages import Ack, Envelope, decode
from broker.topics import Topic, hub_filter
from config import limits
from config.errors import ProtocolError
from connector.beside_bridge import Beside
from connector.bridge import (
    Announce,
    Came,
    Command,
    Connect,
    Ended,
    Event,
    Forward,
    Lines,
    Opened,
    Side,
    Started,
    Subscribe,
)

UNKNOWN: Final = (
    'the site broker says nothing of a bridge: its broker.toml needs engine = "mosquitto" or "nats", and bridge = '
    "this connector's connector.toml"
)
NOT_CONNECTED: Final = "the site broker's bridge is not connected to the cloud broker: its log says why"
DOUBTED: Final = "the cloud broker was out of reach, and the site broker's bridge has not shown yet that it is back"
CONVICTED: Final = (
    "the site broker's bridge is connected, but what it carries is not acknowledged: "
    "look whether the cloud broker refuses its messages"
)
UNANSWERED: Final = (
    "what goes up is not acknowledged, not even what the connector sends itself: "
    "look whether the cloud service runs, and whether the cloud broker refuses this connector's messages"
)


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """End subscriptions."""

    side: Side
    filters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tell:
    """Let people know what is wrong with the bridge itself, or that it works again (None)."""

    trouble: str | None


@dataclass(frozen=True, slots=True)
class _Resting:
    """Nothing is followed until then."""

    until: float


@dataclass(frozen=True, slots=True)
class _Looking:
    """Subscribed to what goes up, until the first message; a silent site may keep us waiting."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """One message of a hub, as it was seen at the site."""

    topic: str
    payload: bytes
    hub_id: str
    epoch: str
    seq: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Return what it is known by, whenever and by whomever it is sent."""
        return self.hub_id, self.epoch, self.seq


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Its acknowledgement has to come through the bridge until then."""

    sample: _Sample
    until: float


@dataclass(frozen=True, slots=True)
class _Carried:
    """We have brought it to the cloud ourselves, which has to acknowledge it to us until then."""

    sample: _Sample
    until: float


_Phase: TypeAlias = _Resting | _Looking | _Waiting | _Carried | None
WatchCommand: TypeAlias = Command | Unsubscribe | Tell


class Watch:
    """Watches the bridge of one site's broker. `counters` tells an operator what the samples have shown."""

    def __init__(
        self, fleet: str, site: str, connector_id: str, random: Random, keep_alive_s: int = limits.KEEP_ALIVE_S
    ):
        self.fleet, self.site = fleet, site
        self.counters: Counter[str] = Counter()
        self._random = random
        self._doubt_s = limits.BRIDGE_DOUBT_S - limits.BRIDGE_RESTART_MAX_S + restart_max_s(keep_alive_s)
        self._lines = Lines(random)
        self._notice_topic = notification_topic(connector_id)
        self._ups = hub_filter(fleet, site, "+", "up")
        self._acks = str(Topic.down(fleet, site, "+", "ack"))
        self._beside = Beside(fleet, site, self.counters)
        self._link: str | None = None
        self._connected: bool | None = None
        self._notice_due_at: float | None = None
        self._silent = False
        self._doubted = False
        self._doubt_ends_at: float | None = None
        self._parole_at: float | None = None
        self._verdict = CONVICTED
        self._strikes = self._unanswered = 0
        self._phase: _Phase = None
        self._carried: tuple[str, str, int] | None = None
        self._said: dict[Side, bool] = {}
        self._told: str | None = None

    @property
    def upstream_up(self) -> bool:
        """Tell whether what hubs say at the site broker is believed to reach the cloud, and its answers them."""
        return self._linked and not self._doubted and self._parole_at is None

    @property
    def trouble(self) -> str | None:
        """Return what is wrong with the bridge itself, as far as is known."""
        if self._silent:
            return UNKNOWN
        if self._connected is False:
            return NOT_CONNECTED
        if self._parole_at is not None:
            return self._verdict
        return DOUBTED if self._doubted and self.is_open(Side.CLOUD) else None

    def is_open(self, side: Side) -> bool:
        """Tell whether the session of a side is open."""
        return self._lines.open[side]

    def handle(self, event: Event, now: float) -> list[WatchCommand]:
        """Take an event and return what to do; see Machine."""
        match event:
            case Started():
                return [Connect(Side.SITE, 0), Connect(Side.CLOUD, 0)]
            case Opened(side):
                commands = self._opened(side, now)
            case Ended(side):
                commands = self._ended(side, now)
            case Came(Side.SITE, topic, payload) if topic == self._notice_topic:
                commands = self._noticed(Notice.parse(payload), now)
            case Came(Side.SITE, topic, payload) if self._beside.wanted and (channel := self._beside.channel_of(topic)):
                commands = [*self._beside.carry(channel, topic, payload, cloud_open=self.is_open(Side.CLOUD))]
            case Came(side, topic, payload):
                commands = self._followed(side, topic, payload, now)
            case Wakeup():
                commands = [*self._lines.due(now), *self._overdue(now)]
        self._begin(now)
        return [*self._announced(), *commands]

    def deadline(self) -> float | None:
        """Return when a session is to be opened again, or something has been awaited for long enough."""
        until = None if self._phase is None or isinstance(self._phase, _Looking) else self._phase.until
        dues = (self._lines.deadline(), self._notice_due_at, self._doubt_ends_at, self._parole_at, until)
        return min((due for due in dues if due is not None), default=None)

    # --- Our sessions, and the notices ---------------------------------------------------------------------------------

    @property
    def _linked(self) -> bool:
        return self.is_open(Side.SITE) and self.is_open(Side.CLOUD) and self._connected is True

    def _opened(self, side: Side, now: float) -> list[WatchCommand]:
        self._lines.opened(side, now)
        self._said.clear()
        if side is Side.CLOUD:
            self._doubt_ends_at = now + self._doubt_s if self._doubted else None
            return self._listen_beside()
        self._notice_due_at = now + limits.BRIDGE_NOTICE_S
        return [Subscribe(side, ((self._notice_topic, 1),))]

    def _ended(self, side: Side, now: float) -> list[WatchCommand]:
        if not self._lines.ended(side, now):
            return []
        if side is Side.CLOUD:
            self._doubted, self._doubt_ends_at = self._connected is not False, None
            if self._asking:  # With whom we speak next may answer.
                self._pardon()
            return self._rest(None)
        self._silent = self._connected is None  # A broker without a bridge may end a session that asks for one.
        self._connected = self._notice_due_at = self._link = None
        self._beside.wanted = False
        self._said.pop(Side.CLOUD, None)  # It has to hear that the site's broker is not reached.
        self._forgive()
        return self._rest(None)

    def _noticed(self, notice: Notice, now: float) -> list[WatchCommand]:
        """Take in how the bridge is. Each new "connected" is a new session of it, against which nothing speaks yet."""
        repeats = notice.link is not None
        self._notice_due_at = now + limits.BRIDGE_NOTICE_S if repeats else None
        if repeats and (notice.connected, notice.link) == (self._connected, self._link):
            return []
        if repeats or self._connected is not None:  # Else it was retained, and may be older than our doubt.
            self._acquit()
        self._connected, self._link, self._silent = notice.connected, notice.link, False
        news = repeats and not self._beside.wanted
        self._beside.wanted = repeats
        return [*self._rest(None), *(self._listen_beside() if news else [])]

    def _listen_beside(self) -> list[WatchCommand]:
        ready = self._beside.wanted and self.is_open(Side.SITE) and self.is_open(Side.CLOUD)
        return [self._beside.subscribe()] if ready else []

    def _acquit(self) -> None:
        self._doubted, self._doubt_ends_at = False, None
        self._forgive()

    def _forgive(self) -> None:
        self._parole_at = None
        self._strikes = self._unanswered = 0

    def _announced(self) -> list[WatchCommand]:
        """Say what has changed. While the site's broker is not reached, that is the trouble that the cloud hears of."""
        commands: list[WatchCommand] = []
        if self.trouble != self._told:
            self._told = self.trouble
            commands.append(Tell(self._told))
        for side, upstream_up in (
            (Side.SITE, self.upstream_up),
            (Side.CLOUD, self.upstream_up or not self.is_open(Side.SITE)),
        ):
            if self.is_open(side) and self._said.get(side) is not upstream_up:
                self._said[side] = upstream_up
                commands.append(Announce(side, upstream_up))
        return commands

    def _overdue(self, now: float) -> list[WatchCommand]:
        if self._notice_due_at is not None and self._notice_due_at <= now:
            self._notice_due_at, self._silent = None, True
            lost, self._connected, self._link = self._connected, None, None
            if lost is not None:
                return self._rest(None)
        if self._doubt_ends_at is not None and self._doubt_ends_at <= now:
            self._doubted, self._doubt_ends_at = False, None
        if self._parole_at is not None and self._parole_at <= now:
            ended = self._rest(now) if self._asking else []  # Perhaps that message is one that nobody acknowledges.
            self._pardon()
            if ended:
                return ended
        match self._phase:
            case _Resting(until) if until <= now:
                self._phase = _Looking()
                return [Subscribe(Side.SITE, ((self._acks, 0), (self._ups, 0)))]  # None may slip through in between.
            case _Waiting(sample, until) if until <= now:
                acks = str(Topic.down(self.fleet, self.site, sample.hub_id, "ack"))
                return [Subscribe(Side.CLOUD, ((acks, 0),)), self._carry(sample, now + limits.BRIDGE_CARRY_S)]
            case _Carried(sample, until) if until <= now:  # The cloud acknowledges nobody, or nothing of ours.
                self.counters["samples_unanswered"] += 1
                self._strikes, self._unanswered = 0, self._unanswered + 1
                if self._parole_at is None and self._unanswered >= limits.BRIDGE_UNANSWERED_MAX:
                    self._convict(UNANSWERED, now)
                if self._asking:
                    return [self._carry(sample, now + limits.BRIDGE_SAMPLE_S)]
                return self._rest(now + limits.BRIDGE_SAMPLE_S)
            case _:
                return []

    # --- Samples ---------------------------------------------------------------------------------------------------------

    def _begin(self, now: float) -> None:
        """Follow messages while the bridge is linked: at once if that may end a doubt."""
        if self._linked and self._phase is None:
            wait_s = self._random.uniform(0.0, limits.BRIDGE_SAMPLE_S) if self.upstream_up else 0.0
            self._phase = _Resting(now + wait_s)

    def _convict(self, verdict: str, now: float) -> None:
        self._verdict, self._parole_at = verdict, now + limits.BRIDGE_PAROLE_S

    @property
    def _asking(self) -> bool:
        """Tell whether the cloud is asked again and again for the acknowledgement of one message."""
        return self._parole_at is not None and self._verdict == UNANSWERED

    def _carry(self, sample: _Sample, until: float) -> Forward:
        self._phase, self._carried = _Carried(sample, until), sample.key
        return Forward(Side.CLOUD, sample.topic, sample.payload, 1, retain=False)

    def _pardon(self) -> None:
        """Give the bridge another chance, and only one."""
        self._parole_at = None
        self._strikes, self._unanswered = limits.BRIDGE_STRIKES_MAX - 1, limits.BRIDGE_UNANSWERED_MAX - 1

    def _rest(self, until: float | None) -> list[WatchCommand]:
        """Follow no message any more, before `until` or (None) before the bridge is linked again."""
        phase, self._phase = self._phase, None if until is None else _Resting(until)
        ended: list[tuple[Side, str]] = []
        match phase:
            case _Looking():
                ended = [(Side.SITE, self._acks), (Side.SITE, self._ups)]
            case _Waiting():
                ended = [(Side.SITE, self._acks)]
            case _Carried(sample):
                acks = str(Topic.down(self.fleet, self.site, sample.hub_id, "ack"))
                ended = [(Side.SITE, self._acks), (Side.CLOUD, acks)]
        return [Unsubscribe(side, (topic_filter,)) for side, topic_filter in ended if self.is_open(side)]

    def _followed(self, side: Side, text: str, payload: bytes, now: float) -> list[WatchCommand]:
        try:
            topic = Topic.parse(text)
        except ProtocolError:
            return []
        match self._phase:
            case _Looking() if side is Side.SITE and topic.channel == "up":
                sample = _sample(topic, payload)
                if sample is None or sample.key == self._carried:  # The answer to our own hand would look like a proof.
                    return []
                self._phase = _Waiting(sample, now + limits.BRIDGE_PROOF_S)
                return [Unsubscribe(Side.SITE, (self._ups,))]
            case _Waiting(sample) if side is Side.SITE and _acknowledges(topic, payload, sample):
                self.counters["samples_proven"] += 1
                self._acquit()
                return self._rest(now + limits.BRIDGE_SAMPLE_S)
            case _Carried(sample) if side is Side.CLOUD and _acknowledges(topic, payload, sample):
                if self._asking:  # It answers again; nothing is known of the bridge.
                    self._acquit()
                    return self._rest(now)
                self.counters["samples_failed"] += 1
                self._strikes, self._unanswered = self._strikes + 1, 0
                if self._strikes < limits.BRIDGE_STRIKES_MAX:
                    return self._rest(now)
                self._convict(CONVICTED, now)
                # Hubs leave now, and may bring what they have just sent here over another path: that would prove nothing.
                return self._rest(now + limits.BRIDGE_SAMPLE_S)
            case _:
                return []


def _sample(topic: Topic, payload: bytes) -> _Sample | None:
    try:
        envelope = decode(payload, Envelope)
    except ProtocolError:
        return None
    return _Sample(str(topic), payload, topic.name, envelope.epoch, envelope.seq)


def _acknowledges(topic: Topic, payload: bytes, sample: _Sample) -> bool:
    if (topic.name, topic.channel, topic.leaf) != (sample.hub_id, "down", "ack"):
        return False
    try:
        ack = decode(payload, Ack)
    except ProtocolError:
        return False
    return ack.epoch == sample.epoch and any(first <= sample.seq <= last for first, last in ack.ranges)
