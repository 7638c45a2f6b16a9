"""Three NATS nodes as the cloud's broker, two ingest workers on PostgreSQL: what they carry, and nodes that are killed.

50 hubs of the load, each with the courier of the real hub, are connected to the nodes directly and come back to another one when
theirs dies, as a hub does. A kill is that of a power cut: supervisor and server at once.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import median
from typing import Final

import psutil

from bench.contest import Ledger, Plan, Tell, audit
from bench.flows import Load
from bench.gauge import family_cpu_s, family_memory
from bench.load import CourierHub, Line, Readings
from bench.network import LOOPBACK
from bench.operations_table import p95
from bench.report import Found, Goal, Grid
from bench.rig import POSTGRES, Database, Rig
from bench.scenarios import a_rig
from broker.backoff import Backoff
from broker.tls import client_context
from broker.topics import Topic, hub_filter
from config import provision
from config.bundles import toml_strings
from config.demo_fleet import FLEET, SITE
from config.errors import HublineError
from config.ports import free_ports
from config.principal import CLOUD_SITE, server_name

NODES: Final = ("cloud", "cloud-2", "cloud-3")
WORKERS: Final = 2
KILLS_PER_NODE: Final = 10
RATE: Final = 500.0
WARM_S: Final = 10.0
DOWN_S: Final = 5.0
"""How long a killed node stays away at least."""
BETWEEN_S: Final = 8.0
"""From when it serves again until the next kill."""
STALL_MAX_S: Final = 15.0
PATIENCE_S: Final = 120.0
TICK_S: Final = 0.05
DATABASE: Final[Database] = "postgresql"


@dataclass(slots=True)
class Stall:
    """After one kill: the longest that nothing at all was acknowledged, and that a hub with something to send got nothing."""

    node: str
    stream_s: float = 0.0
    hub_s: float = 0.0


class Nodes:
    """The cluster's processes, and the workers behind it."""

    def __init__(self, rig: Rig):
        self._rig = rig
        self._known: dict[str, int] = {}
        ports = free_ports(3 * len(NODES))
        groups = [ports[number : number + len(NODES)] for number in range(0, len(ports), len(NODES))]
        self.endpoints, self._nats, self._routes = ([f"127.0.0.1:{port}" for port in group] for group in groups)
        for name, endpoint in zip(NODES[1:], self.endpoints[1:], strict=True):
            provision.broker(rig.directory, name, hosts_of_broker=[endpoint])

    def start(self) -> None:
        """Start the nodes together, then the workers and the rest of the cloud service."""
        for name in NODES:
            self.start_node(name, wait=False)
        for name in NODES:
            self._rig.until(f"{name} serves", lambda: self.has_served(name))  # noqa: B023
        for number in range(WORKERS):
            self._start_service(f"worker {number + 1}", "ingest")
        self._start_service("operations", "operations")

    def start_node(self, name: str, *, wait: bool = True) -> None:
        """Start one node, and wait until it serves."""
        at = NODES.index(name)
        log = self._rig.log(name)
        self._known[name] = log.stat().st_size if log.exists() else 0
        environ = {
            "HUBLINE_BROKER__ENGINE": '"nats"',
            "HUBLINE_BROKER__LISTEN": f'["{self.endpoints[at]}"]',
            "HUBLINE_NATS__LISTEN": f'"{self._nats[at]}"',
            "HUBLINE_NATS__CLUSTER_LISTEN": f'"{self._routes[at]}"',
            "HUBLINE_NATS__ROUTES": toml_strings([route for route in self._routes if route != self._routes[at]]),
            "HUBLINE_NATS__REPLICAS": str(len(NODES)),
            **{f"HUBLINE_NATS__CLUSTER_{key.upper()}": f'"cluster-{key}.pem"' for key in ("ca", "cert", "key")},
        }
        self._rig.run(name, "broker", name, "", LOOPBACK.in_cloud, environ)
        if wait:
            self._rig.until(f"{name} serves", lambda: self.has_served(name))

    def has_served(self, name: str) -> bool:
        """Tell whether a node has said since its start that it serves."""
        return '"broker_started"' in self._rig.log(name).read_text("utf-8", "replace")[self._known[name] :]

    def kill(self, name: str) -> None:
        """End a node as a power cut does."""
        process = psutil.Process(self._rig.pid(name))
        family = [process, *process.children(recursive=True)]
        for each in family:
            try:
                each.kill()
            except psutil.NoSuchProcess:
                continue
        self._rig.fleet.processes.pop(name).popen.wait()
        psutil.wait_procs(family, timeout=PATIENCE_S)

    def _start_service(self, name: str, only: str) -> None:
        environ = {
            "HUBLINE_API__ENABLED": "false",
            "HUBLINE_CLOUD__BROKER": f'"{self.endpoints[0]}"',
            "HUBLINE_CLOUD__INTAKE": '"jetstream"',
            "HUBLINE_CLOUD__NATS": toml_strings(self._nats),
            **self._rig.storing(DATABASE),
        }
        self._rig.run(name, "cloud", "cloud", '"cloud_started"', LOOPBACK.in_cloud, environ, ("--only", only))


class ClusterHub(CourierHub):
    """A hub that comes back to another node when it has lost its own."""

    def __init__(self, rig: Rig, name: str, endpoints: Sequence[str], readings: Readings):
        super().__init__(Line(name), str(Topic.up(FLEET, SITE, name, "readings")), readings, secrets.token_hex(8))
        self.close_path()
        self._context: ssl.SSLContext = client_context(rig.identity("hub", name), server_name(FLEET, CLOUD_SITE))
        self._endpoints, self._random = endpoints, random.Random(name)
        self.acknowledged_at = time.monotonic()
        self.lost = 0

    async def run(self) -> None:
        """Keep a session, until cancelled."""
        name, turn = self.line.client_id, self._random.randrange(len(self._endpoints))
        backoff, failures = Backoff(self._random), 0
        while True:
            line = Line(name, lambda _, payload: self._take(payload))
            try:
                await line.open(self._endpoints[turn], self._context)
                await line.subscribe(hub_filter(FLEET, SITE, name, "down"), 0)
            except (OSError, TimeoutError):
                line.close()
                turn = (turn + 1) % len(self._endpoints)
                failures += 1  # As the real hub: longer only with each round of all endpoints.
                is_round = failures % len(self._endpoints) == 0
                await asyncio.sleep(backoff.next_s() if is_round else self._random.uniform(0.0, backoff.first_s))
                continue
            self.line, backoff, failures = line, Backoff(self._random), 0
            self.open_path()
            await line.lost
            self.close_path()
            self.lost += 1
            turn = (turn + 1) % len(self._endpoints)

    def _take(self, payload: bytes) -> None:
        self.acknowledged_at = time.monotonic()
        self.acknowledged(payload)


def cluster(plan: Plan, tell: Tell) -> Found:
    """Measure what comes through, kill each node in turn while 500 messages/s come in, then audit the database."""
    kills = 1 if plan.is_quick else KILLS_PER_NODE
    with a_rig() as rig:
        nodes, ledger = Nodes(rig), Ledger()
        nodes.start()
        at_work = asyncio.run(_at_full_speed(rig, nodes, plan, ledger, tell))
        stalls = asyncio.run(_killed(rig, nodes, kills, ledger, tell))
        books = audit(rig, ledger)
    rows: list[tuple[str, ...]] = []
    for what, seconds in (
        ("s without any acknowledgement", [stall.stream_s for stall in stalls]),
        ("s without an acknowledgement, the hub that waited longest", [stall.hub_s for stall in stalls]),
    ):
        rows.append((what, *(f"{value:.1f}" for value in (median(seconds), p95(seconds), max(seconds)))))
    said = (
        f"{len(NODES)} nodes, each killed {kills} times in a stream of {RATE:g} messages/s; {books.messages:,} messages sent,"
        f" {books.lost} lost, {books.doubled} doubled, {books.repeats_refused:,} repetitions recognised."
    )
    longest = max(stall.hub_s for stall in stalls)
    what = f"three-node cloud, each node killed {kills} times in mid-stream"
    goals = [
        Goal(f"{what}: lost / doubled", "0 / 0", f"{books.lost} / {books.doubled}", books.lost == books.doubled == 0),
        Goal(f"{what}: longest stall of any hub", f"≤ {STALL_MAX_S:g} s", f"{longest:.1f} s", longest <= STALL_MAX_S),
    ]
    killed = Grid("Nodes of a cluster killed", said, ("", "median", "95th percentile", "longest"), rows)
    return Found([at_work, killed], goals)


async def _at_full_speed(rig: Rig, nodes: Nodes, plan: Plan, ledger: Ledger, tell: Tell) -> Grid:
    """Send as fast as it is acknowledged, from hubs directly through the nodes and the workers into the database."""
    workers = [f"worker {number + 1}" for number in range(WORKERS)]
    processes = {name: psutil.Process(rig.pid(name)) for name in (*NODES, *workers, "operations", POSTGRES)}
    async with _streaming(rig, nodes, None) as (load, _):
        await asyncio.sleep(WARM_S)
        began, seen = time.monotonic(), load.arrived
        before = {name: family_cpu_s(process) for name, process in processes.items()}
        await asyncio.sleep(max(plan.seconds, WARM_S))
        arrived, lasted_s = load.arrived - seen, time.monotonic() - began
        spent = {name: family_cpu_s(process) - before[name] for name, process in processes.items()}
        memory = {name: family_memory(process) for name, process in processes.items()}
        await load.finish(PATIENCE_S)
        ledger.note(DATABASE, load, 10)
    rate = arrived / lasted_s
    tell(f"  as fast as it goes: {rate:,.0f} messages/s")
    rows: list[tuple[str, ...]] = []
    for what, names in (
        ("the three nodes", NODES),
        ("the two workers", workers),
        ("operations", ["operations"]),
        (POSTGRES, [POSTGRES]),
    ):
        cpu = f"{sum(spent[name] for name in names) / arrived * 1000:.3f}" if arrived else ""
        rss = ", ".join(f"{memory[name].rss / 1e6:.0f}" for name in names)
        rows.append((what, cpu, rss))
    said = (
        f"50 hubs, 10 readings in a message, as fast as it goes: {rate:,.0f} messages/s, one run of {lasted_s:.0f} s."
    )
    return Grid("A cluster at full speed", said, ("", "CPU s per 1000 messages", "MB resident, each"), rows)


async def _killed(rig: Rig, nodes: Nodes, kills: int, ledger: Ledger, tell: Tell) -> list[Stall]:
    stalls: list[Stall] = []
    async with _streaming(rig, nodes, RATE) as (load, hubs):
        await asyncio.sleep(WARM_S)
        if not load.arrived:
            raise HublineError("nothing was acknowledged before the first node was killed")
        for number in range(kills * len(NODES)):
            stall = Stall(NODES[number % len(NODES)])
            watching = asyncio.create_task(_watch(load, hubs, stall))
            await asyncio.to_thread(nodes.kill, stall.node)
            await asyncio.sleep(DOWN_S)
            await asyncio.to_thread(nodes.start_node, stall.node)
            await asyncio.sleep(BETWEEN_S)
            await _all_acknowledged(hubs)
            watching.cancel()
            rig.fleet.check()
            stalls.append(stall)
            tell(
                f"  {number + 1}: {stall.node} killed, stream stalled {stall.stream_s:.1f} s, a hub {stall.hub_s:.1f} s"
            )
        await load.finish(PATIENCE_S)
        ledger.note(DATABASE, load, 10)
    return stalls


@asynccontextmanager
async def _streaming(rig: Rig, nodes: Nodes, rate: float | None) -> AsyncIterator[tuple[Load, list[ClusterHub]]]:
    readings = Readings(10)
    hubs = [ClusterHub(rig, name, nodes.endpoints, readings) for name in rig.hubs]
    sessions = [asyncio.create_task(hub.run()) for hub in hubs]
    load = Load(hubs, sessions, reconnects=True)
    try:
        load.start(rate)
        yield load, hubs
    finally:
        for session in sessions:
            session.cancel()
        for hub in hubs:
            hub.close()
            hub.line.close()
        await asyncio.sleep(0.1)


async def _watch(load: Load, hubs: Sequence[ClusterHub], into: Stall) -> None:
    """Keep the longest waits until cancelled."""
    began_at = time.monotonic()
    while True:
        now = time.monotonic()
        load.check()
        waits = [now - max(hub.acknowledged_at, began_at) for hub in hubs]
        into.stream_s, into.hub_s = max(into.stream_s, min(waits)), max(into.hub_s, max(waits))
        await asyncio.sleep(TICK_S)


async def _all_acknowledged(hubs: Sequence[ClusterHub]) -> None:
    """Wait until each hub has got an acknowledgement from now on: it sends ten messages a second."""
    began_at = time.monotonic()
    while any(hub.acknowledged_at < began_at for hub in hubs):
        if time.monotonic() - began_at > PATIENCE_S:
            silent = sum(hub.acknowledged_at < began_at for hub in hubs)
            raise HublineError(f"{silent} hubs got no acknowledgement within {PATIENCE_S:g} s")
        await asyncio.sleep(TICK_S)
