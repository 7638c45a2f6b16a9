"""One cloud and the hubs of one site on a clock that jumps: what they say, and what the presence machine makes of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from broker.machine import Wakeup
from broker.messages import ConnectorState, HubState
from cloud.hub_key import HubKey
from cloud.presence import Presence
from cloud.presence_events import (
    Clear,
    Command,
    Connected,
    ConnectorSaid,
    Disconnected,
    Event,
    HeartbeatCame,
    HubSaid,
    Log,
    MessageCame,
    PollCame,
    Publish,
    Save,
)
from cloud.presence_facts import Record, Status
from config.settings import CloudPresence
from tests.cloud.wire import EPOCH, SITE, T0

MINUTE = 60.0
HOUR = 3600.0
DAY = 86_400.0
KEY: HubKey = (SITE, "pc-1")


class Play:
    """A machine and everything that it has asked for. `now` is in seconds since T0."""

    def __init__(
        self,
        settings: CloudPresence | None = None,
        *,
        known: Iterable[Record] = (),
        now: float = 0.0,
        connect: bool = True,
    ):
        self.settings = settings or CloudPresence()
        self.now = now
        self.machine = Presence(self.settings, started_at=now, started_ms=self.ms(), known=known)
        self.saved: dict[HubKey, Record] = {record.key: record for record in known}
        self.published: dict[HubKey, Status] = {}
        self.log: list[tuple[HubKey, str, str]] = []
        self.commands: list[Command] = []
        self.publishes = 0
        if connect:
            self.feed(Connected())

    def ms(self, now: float | None = None) -> int:
        """Return the wall clock."""
        return T0 + round((self.now if now is None else now) * 1000)

    def feed(self, event: Event) -> list[Command]:
        """Hand over an event and carry out what the machine answers."""
        commands = self.machine.handle(event, self.now)
        seen_publish = False
        for command in commands:
            match command:
                case Save(record):
                    assert not seen_publish, "durable first"
                    assert record.status is not None, "nothing is kept of whom nothing is concluded"
                    self.saved[record.key] = record
                case Log(entry):
                    assert not seen_publish, "durable first"
                    self.log.append((entry.key, entry.connection, entry.reason))
                case Publish(key, status):
                    seen_publish = True
                    self.publishes += 1
                    self.published[key] = status
                case Clear(key):
                    self.published.pop(key, None)
        self.commands += commands
        return commands

    def run_to(self, now: float) -> Play:
        """Let time pass, waking the machine whenever it wants to be."""
        for _ in range(100_000):
            deadline = self.machine.deadline()
            if deadline is None or deadline > now:
                break
            self.now = max(self.now, deadline)
            self.feed(Wakeup())
        else:
            raise AssertionError("the machine does not let time pass")
        self.now = max(self.now, now)
        return self

    def run(self, seconds: float) -> Play:
        """Let some time pass."""
        return self.run_to(self.now + seconds)

    def restarted(self, *, away_s: float = 0.0, connect: bool = True) -> Play:
        """Return the cloud after its process was killed and started again, with the records that it had saved."""
        after = Play(self.settings, known=self.saved.values(), now=self.now + away_s, connect=connect)
        after.log = self.log
        return after

    def outage(self, seconds: float) -> Play:
        """Lose the cloud broker for some time."""
        self.feed(Disconnected())
        self.run(seconds)
        self.feed(Connected())
        return self

    # --- What is said -----------------------------------------------------------------------------------------------

    def hears(self, state: HubState, *, hub_id: str = "pc-1", retained: bool = False) -> Play:
        """Let a state of a hub arrive."""
        self.feed(HubSaid(SITE, hub_id, state, self.ms(), retained))
        return self

    def birth(self, session: int = 1, **said: Any) -> HubState:
        """Return a birth that is sent now."""
        fields = {"online": True, "epoch": EPOCH, "via": "c-1", "mode": "continuous", "ts": self.ms(), "version": "1.0"}
        return HubState(session=session, **{**fields, **said})

    def born(self, session: int = 1, *, hub_id: str = "pc-1", retained: bool = False, **said: Any) -> Play:
        """Let a birth arrive that is sent now."""
        return self.hears(self.birth(session, **said), hub_id=hub_id, retained=retained)

    def dies(self, session: int = 1, *, epoch: str = EPOCH, hub_id: str = "pc-1", retained: bool = False) -> Play:
        """Let a last will arrive."""
        return self.hears(HubState(online=False, epoch=epoch, session=session), hub_id=hub_id, retained=retained)

    def leaves(self, session: int = 1, reason: str = "stopped", *, epoch: str = EPOCH, hub_id: str = "pc-1") -> Play:
        """Let a clean stop arrive, or the word of a polling hub that it disconnects."""
        state = HubState(online=False, epoch=epoch, session=session, ts=self.ms(), reason=reason)
        return self.hears(state, hub_id=hub_id)

    def connector(
        self,
        session: int = 1,
        *,
        name: str = "c-1",
        online: bool = True,
        site: str | None = "up",
        retained: bool = False,
    ) -> Play:
        """Let a connector's state or will arrive."""
        state = ConnectorState(online=online, session=session)
        if online:
            state = ConnectorState(True, session, "up", site="down" if site == "down" else "up", ts=self.ms())
        self.feed(ConnectorSaid(SITE, name, state, self.ms(), retained))
        return self

    def message(self, *, epoch: str = EPOCH, hub_id: str = "pc-1", ahead_s: float = 0.0, delay_s: float = 0.0) -> Play:
        """Let a sequenced message arrive."""
        sent_ms = self.ms(self.now + ahead_s - delay_s)
        self.feed(MessageCame((SITE, hub_id), epoch, sent_ms, self.ms(), "readings"))
        return self

    def heartbeat(self, session: int = 1, *, epoch: str = EPOCH, hub_id: str = "pc-1", delay_s: float = 0.0) -> Play:
        """Let a heartbeat arrive."""
        self.feed(HeartbeatCame((SITE, hub_id), epoch, session, self.ms(self.now - delay_s), self.ms()))
        return self

    def poll(self, session: int = 1, *, epoch: str = EPOCH, hub_id: str = "pc-1") -> Play:
        """Let a poll arrive."""
        self.feed(PollCame((SITE, hub_id), epoch, session, self.ms(), self.ms()))
        return self

    # --- What is shown ----------------------------------------------------------------------------------------------

    def status(self, hub_id: str = "pc-1") -> Status:
        """Return the status of a hub."""
        status = self.machine.status((SITE, hub_id))
        assert status is not None
        return status

    def shown(self, hub_id: str = "pc-1") -> tuple[str, str]:
        """Return the connection of a hub and its reason."""
        status = self.status(hub_id)
        return status.connection, status.reason

    def history(self, hub_id: str = "pc-1") -> list[tuple[str, str]]:
        """Return the connection log of a hub."""
        return [(connection, reason) for key, connection, reason in self.log if key == (SITE, hub_id)]


def settings(**changed: Any) -> CloudPresence:
    """Return the cloud's settings with some changed."""
    fields = {name: getattr(CloudPresence(), name) for name in CloudPresence.__struct_fields__}
    return CloudPresence(**{**fields, **changed})
