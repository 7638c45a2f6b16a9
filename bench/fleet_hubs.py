"""Many hubs in one process, each with its own certificate and connection: what a cloud sees of a fleet in operation.

Each says its birth and what it is, measures at the default intervals, numbers and repeats its messages with the courier of the
real hub, and carries out every task at once. Sensors, outbox and journal are missing: they cost on the hubs' own machines.
`python -m bench.fleet_hubs ENDPOINT BUNDLES FLEET SITE NAME...`; a line of JSON on standard output every second.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import orjson

from bench.load import Line
from broker.backoff import Backoff
from broker.clock import unix_ms
from broker.control import Reported, Results, Task, TaskReport
from broker.messages import DIRECT, Ack, HubState, decode, encode, encode_envelope
from broker.runner import Runner
from broker.tls import client_context
from broker.topics import Topic, hub_filter
from config import limits
from config.principal import CLOUD_SITE, server_name
from config.settings import Identity
from hub import courier
from hub.courier import Courier

INTERVAL_S: Final = 10.0
SELDOM: Final = 6
"""The sensors with an interval of a minute speak in every sixth message."""
OFTEN_VALUES: Final = (
    *("cpu.percent", "cpu.user", "cpu.system", "cpu.iowait", "cpu.steal"),
    *("memory.percent", "memory.available", "memory.total", "load.1min", "load.5min", "load.15min"),
    *("network.received", "network.sent", "network.errors", "network.eth0.received", "network.eth0.sent"),
)
SELDOM_VALUES: Final = (
    *("disk.root.free", "disk.root.used", "disk.root.percent"),
    *("uptime.machine", "uptime.hub", "processes.count"),
)
TELL_S: Final = 1.0


@dataclass(slots=True)
class Tally:
    """What all hubs of this process have done. `lost` counts connections that were open and broke."""

    connected: int = 0
    sent: int = 0
    sent_again: int = 0
    acknowledged: int = 0
    tasks: int = 0
    refused: int = 0
    lost: int = 0


class FleetHub:
    """One hub that speaks with the cloud broker directly."""

    def __init__(self, identity: Identity, endpoint: str, tally: Tally):
        self._identity, self._endpoint, self._tally = identity, endpoint, tally
        self._random = random.Random(identity.name)
        self._epoch = hashlib.sha256(identity.name.encode()).hexdigest()[:16]
        self._line = Line(identity.name)
        self._session = 0
        self._seq = 0
        self._turn = self._random.randrange(SELDOM)
        self._outbox: dict[int, tuple[bytes, bytes]] = {}
        self._first_sent = 0
        self._results: dict[str, TaskReport] = {}
        self._runner: Runner[courier.Event, courier.Command] = Runner(Courier(self._epoch), self._execute)

    async def run(self) -> None:
        """Keep a session, for ever."""
        measuring = asyncio.create_task(self._measure())
        backoff = Backoff(self._random)  # As a hub's link: the first wait is up to a second.
        try:
            while True:
                await asyncio.sleep(backoff.next_s())
                try:
                    await self._open()
                except (OSError, TimeoutError):
                    self._tally.refused += 1
                    continue
                self._tally.connected += 1
                await self._line.lost
                self._tally.connected -= 1
                self._tally.lost += 1
                self._runner.feed(courier.PathClosed())
        finally:
            measuring.cancel()
            self._runner.close()

    async def _open(self) -> None:
        fleet, site, name = self._identity.fleet, self._identity.site, self._identity.name
        self._session += 1
        topic = str(Topic.hub_state(fleet, site, name))
        will = encode(HubState(online=False, epoch=self._epoch, session=self._session))
        self._line = Line(name, self._take)
        tls = client_context(self._identity, server_name(fleet, CLOUD_SITE))
        await self._line.open(self._endpoint, tls, (topic, will))
        await self._line.subscribe(hub_filter(fleet, site, name, "down"), 0)
        birth = HubState(
            online=True,
            epoch=self._epoch,
            session=self._session,
            via=DIRECT,
            mode="continuous",
            version="1",
            ts=unix_ms(),
            reason="started" if self._session == 1 else None,
            host=name,
            addresses=["192.0.2.1"],
        )
        self._line.publish(_prefixed(topic), [encode(birth)], retain=True)
        if self._session == 1:
            self._append("reported", encode(_reported(name)))
        self._runner.feed(courier.PathOpened())

    async def _measure(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self._random.uniform(0, INTERVAL_S)
        while True:
            await asyncio.sleep(due - loop.time())
            due += INTERVAL_S
            self._turn += 1
            names = OFTEN_VALUES if self._turn % SELDOM else OFTEN_VALUES + SELDOM_VALUES
            values = {name: round(self._random.uniform(0, 100), 1) for name in names}
            self._append("readings", orjson.dumps({"points": [{"ts": unix_ms(), "values": values}]}))

    # --- Messages -----------------------------------------------------------------------------------------------------

    def _append(self, kind: str, body: bytes) -> None:
        if len(self._outbox) >= limits.WINDOW_MESSAGES and kind == "readings":
            return  # It is cut off: a real hub has a disk for that.
        self._seq += 1
        topic = Topic.up(self._identity.fleet, self._identity.site, self._identity.name, kind)
        self._outbox[self._seq] = (_prefixed(str(topic)), body)
        self._runner.feed(courier.Appended(((self._seq, self._seq),)))

    def _execute(self, command: courier.Command) -> None:
        match command:
            case courier.Send(seqs):
                for seq in seqs:
                    topic, body = self._outbox[seq]
                    payload = encode_envelope(self._epoch, seq, unix_ms(), body)
                    self._line.publish(topic, [payload])
                    self._tally.sent += 1
                    self._tally.sent_again += seq <= self._first_sent
                    self._first_sent = max(self._first_sent, seq)
                    self._runner.feed(courier.Sent(seq, len(payload)))
            case courier.Forget(ranges):
                for first, last in ranges:
                    for seq in range(first, last + 1):
                        del self._outbox[seq]
                        self._tally.acknowledged += 1

    def _take(self, topic: bytes, payload: bytes) -> None:
        if topic.endswith(b"/ack"):
            ack = decode(payload, Ack)
            self._runner.feed(courier.Acknowledged(ack.epoch, tuple(ack.ranges)))
        elif topic.endswith(b"/task"):
            self._do(decode(payload, Task))

    def _do(self, task: Task) -> None:
        """Carry out a task at once, or answer a repetition with how it stands."""
        if task.id not in self._results:
            self._append("results", encode(Results([TaskReport(task.id, "accepted", unix_ms())])))
            self._results[task.id] = TaskReport(task.id, "done", unix_ms(), output={"version": "1"})
            self._tally.tasks += 1
        self._append("results", encode(Results([self._results[task.id]])))


def _prefixed(topic: str) -> bytes:
    raw = topic.encode()
    return len(raw).to_bytes(2, "big") + raw


def _reported(name: str) -> Reported:
    sensors = {sensor: {"interval_s": INTERVAL_S} for sensor in ("cpu", "memory", "load", "network")}
    return Reported("1", name, "Linux 6.1 x86_64", ["192.0.2.1"], "continuous", tasks=["ping"], sensors=sensors)


async def main(endpoint: str, bundles: Path, fleet: str, site: str, names: list[str]) -> None:
    """Run the hubs until killed."""
    tally = Tally()
    hubs = []
    for name in names:
        folder = bundles / "hub" / name
        identity = Identity(fleet, site, name, folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
        hubs.append(FleetHub(identity, endpoint, tally))
    async with asyncio.TaskGroup() as work:
        for hub in hubs:
            work.create_task(hub.run())
        while True:
            print(orjson.dumps(asdict(tally)).decode(), flush=True)
            await asyncio.sleep(TELL_S)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:]))
