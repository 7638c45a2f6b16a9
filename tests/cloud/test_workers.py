"""Workers and operations in processes of their own: everything once, and everybody knows what one process would know."""

# ruff: noqa: F811 (fixtures are imported by name)
from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import orjson
import pytest

from broker.clock import unix_ms
from broker.runner import monotonic_s
from broker.topics import Topic, everything_filter
from config import limits, provision
from config.ports import free_ports
from config.principal import CLOUD_SITE
from config.settings import Identity
from tests.cloud.divided import Divided, Peer, connected, until
from tests.cloud.wire import SITE, payload
from tests.fleet import HUBLINE
from tests.nats import Cluster, needs_nats
from tests.postgres import Postgres, postgres, postgres_server  # noqa: F401

MOSQUITTO = shutil.which("mosquitto", path=os.pathsep.join((os.environ["PATH"], "/usr/sbin")))
needs_mosquitto = pytest.mark.skipif(MOSQUITTO is None, reason="needs mosquitto: apt install mosquitto")


def stored(database: Postgres) -> tuple[int, int]:
    """Return how many messages there are, and how many different ones."""
    [(rows, seqs)] = database.query("select count(*), count(distinct (stream_no, seq)) from messages")
    return rows, seqs


@asynccontextmanager
async def cluster_of_one(folder: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(folder)
    try:
        await asyncio.to_thread(cluster.start)
        yield cluster
    finally:
        await asyncio.to_thread(cluster.close)


async def send_until_acknowledged(peer: Peer, hub_id: str, most: int) -> None:
    """Send as a hub does: a window of messages, and those again that were not acknowledged in time."""
    sent_at: dict[int, float] = {}
    while list(peer.acknowledged()) != [(1, most)]:
        acknowledged, now = peer.acknowledged(), monotonic_s()
        window = [seq for seq in range(1, most + 1) if seq not in acknowledged][: limits.WINDOW_MESSAGES]
        due = [seq for seq in window if now - sent_at.get(seq, -9.0) > limits.RETRANSMIT_MIN_S]
        peer.send(hub_id, *due)
        sent_at.update(dict.fromkeys(due, now))
        await asyncio.sleep(0.01)


@needs_nats
def test_workers_share_a_stream_and_operations_know_what_they_commit(tmp_path: Path, postgres: Postgres) -> None:
    """Presence, newest values and tasks are as if one process did it all; rubbish is set aside and stops nobody."""

    async def story() -> None:
        async with cluster_of_one(tmp_path) as cluster:
            hub, viewer = await asyncio.to_thread(
                lambda: (cluster.hub("pc-1"), provision.reader(cluster.directory, "eve"))
            )
            broker = cluster.endpoints[0]
            place = Divided(cluster.service, tmp_path, broker, postgres.url, "jetstream", cluster.nats)
            everything = [(everything_filter(cluster.fleet), 1)]
            async with (
                place.part("operations") as operations,
                place.part("ingest") as first,
                place.part("ingest") as second,
                connected(cluster.identity("reader", "eve"), broker, everything) as eve,
                connected(hub, broker) as pc,
            ):
                pc.born("pc-1")
                pc.session.publish(str(Topic.up(cluster.fleet, SITE, "pc-1", "readings")), b"\xffgarbage")
                pc.session.publish(str(Topic.up(cluster.fleet, SITE, "pc-1", "odd.kind")), b"{}")
                pc.send("pc-1", *range(1, 401))
                await until("all are acknowledged", lambda: list(pc.acknowledged()) == [(1, 400)])
                assert stored(postgres) == (400, 400)
                last = str(Topic.last(cluster.fleet, SITE, "pc-1", "counter"))
                await until("the newest value is told", lambda: eve.of("last").get(last, {}).get("count") == 400)
                desk = operations.service._desk
                assert desk is not None
                where = str(Topic.presence(cluster.fleet, SITE, "pc-1"))
                await until("it is online", lambda: eve.of("presence").get(where, {}).get("connection") == "online")
                task = await desk.create_task(
                    [(SITE, "pc-1")], "ping", {}, expires_s=600, skip_if_offline=False, by="ann"
                )
                await until("the task has come", lambda: any(b"ping" in got.payload for got in pc.received))
                done = {"results": [{"task": task, "state": "done", "ts": unix_ms()}]}
                pc.session.publish(
                    str(Topic.up(cluster.fleet, SITE, "pc-1", "results")), payload(done, 401, sent=unix_ms())
                )
                machine = operations.service._operations
                assert machine is not None
                await until("operations know that it is done", lambda: not machine._tasks._targets)
                await until(
                    "the rubbish is set aside", lambda: postgres.query("select count(*) from quarantine") == [(2,)]
                )
                await until(
                    "nothing waits at the stream",
                    lambda: first.service._up.waiting + second.service._up.waiting == 0,  # type: ignore[union-attr]
                )
                assert operations.status()["stored_messages"] == 0
                assert (tmp_path / "data" / "status-ingest-2.json").exists()
            assert viewer is not None

    asyncio.run(story())


@contextmanager
def process(place: Divided, folder: Path, only: str, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a part in a process of its own."""
    identity = place.identity
    settings = folder / "cloud.toml"
    settings.write_text(
        f"""[identity]
fleet = "{identity.fleet}"
site = "-"
name = "{identity.name}"
ca = "{identity.ca}"
cert = "{identity.cert}"
key = "{identity.key}"
[cloud]
broker = "{place.broker}"
intake = "{place.intake}"
nats = {list(place.nats)!r}
database = "{place.database}"
data_dir = "{folder / "data"}"
[api]
enabled = false
[log]
format = "json"
level = "debug"
""".replace("'", '"')
    )
    with (folder / f"{name}.log").open("ab") as log:
        running = subprocess.Popen(
            [*HUBLINE, "cloud", "run", "-c", str(settings), "--only", only],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def events(folder: Path, name: str) -> list[str]:
    """Return what a process has logged, by event."""
    lines = (folder / f"{name}.log").read_bytes().splitlines(keepends=True)
    return [orjson.loads(line)["event"] for line in lines if line.startswith(b"{") and line.endswith(b"\n")]


@needs_nats
def test_a_worker_that_is_killed_in_mid_stream_loses_and_doubles_nothing(tmp_path: Path, postgres: Postgres) -> None:
    """What it had goes on to the other one, or comes again from the hub; the database has it once."""

    async def story() -> None:
        async with cluster_of_one(tmp_path) as cluster:
            hub = await asyncio.to_thread(cluster.hub, "pc-1")
            place = Divided(cluster.service, tmp_path, cluster.endpoints[0], postgres.url, "jetstream", cluster.nats)
            with ExitStack() as held:
                victim = held.enter_context(process(place, tmp_path, "ingest", "victim"))
                held.enter_context(process(place, tmp_path, "ingest", "other"))
                for name in ("victim", "other"):
                    await until(f"{name} works", lambda name=name: "stream_connected" in events(tmp_path, name))  # type: ignore[misc]
                async with connected(hub, cluster.endpoints[0]) as pc:
                    sending = asyncio.create_task(send_until_acknowledged(pc, "pc-1", 1000))
                    await until("some are committed", lambda: 200 in pc.acknowledged())
                    victim.send_signal(signal.SIGKILL)
                    await asyncio.wait_for(sending, 30)
                assert stored(postgres) == (1000, 1000)
                other = orjson.loads((tmp_path / "data" / "status-ingest-2.json").read_bytes())
                first = orjson.loads((tmp_path / "data" / "status-ingest-1.json").read_bytes())
                assert victim.pid in (other["pid"], first["pid"])

    asyncio.run(story())


@contextmanager
def mosquitto(folder: Path) -> Iterator[tuple[Path, str]]:
    """Run Mosquitto as cloud broker of a fresh fleet."""
    directory = folder / "fleet"
    [port] = free_ports(1)
    provision.init(directory, "acme", cloud_hosts=[f"127.0.0.1:{port}"])
    provision.hub(directory, "pc-1", SITE)
    environ = {
        **os.environ,
        "HUBLINE_BROKER__ENGINE": '"mosquitto"',
        "HUBLINE_BROKER__LISTEN": f'["127.0.0.1:{port}"]',
        "HUBLINE_BROKER__PROGRAM": f'"{MOSQUITTO}"',
    }
    with (folder / "mosquitto.log").open("ab") as log:
        running = subprocess.Popen(
            [*HUBLINE, "broker", "run", "-c", str(directory / "bundles" / "broker" / "cloud" / "broker.toml")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environ,
        )
    try:
        yield directory, f"127.0.0.1:{port}"
    finally:
        running.terminate()
        running.wait(20)


def identity(directory: Path, role: str, name: str, site: str) -> Identity:
    folder = directory / "bundles" / role / name
    return Identity("acme", site, name, folder / "ca.pem", folder / "cert.pem", folder / "key.pem")


@needs_mosquitto
def test_workers_share_a_subscription_and_each_message_is_stored_by_one_of_them(
    tmp_path: Path, postgres: Postgres
) -> None:
    """MQTT 5 gives each message to one of those who share: two workers do half of the work each."""

    async def story() -> None:
        with mosquitto(tmp_path) as (directory, broker):
            place = Divided(identity(directory, "cloud", "cloud", CLOUD_SITE), tmp_path, broker, postgres.url, "shared")
            async with place.part("ingest") as first, place.part("ingest") as second:
                async with connected(identity(directory, "hub", "pc-1", SITE), broker) as pc:
                    for start in range(1, 1001, 100):  # As fast as they are acknowledged, so that both have their turn.
                        pc.send("pc-1", *range(start, start + 100))
                        await until("they are acknowledged", lambda start=start: start + 99 in pc.acknowledged())  # type: ignore[misc]
                    await until("all are acknowledged", lambda: list(pc.acknowledged()) == [(1, 1000)])
                counts = [part.service._ingest.counts.arrived for part in (first, second)]
                assert sum(counts) == 1000
                assert min(counts) > 100
            assert stored(postgres) == (1000, 1000)

    asyncio.run(story())


@needs_mosquitto
def test_a_standby_takes_over_when_the_active_one_is_killed_or_loses_its_lock(
    tmp_path: Path, postgres: Postgres
) -> None:
    """And who loses the lock ends, so that its service manager starts it as standby."""

    async def story() -> None:
        with mosquitto(tmp_path) as (directory, broker), ExitStack() as held:
            place = Divided(identity(directory, "cloud", "cloud", CLOUD_SITE), tmp_path, broker, postgres.url)
            one = held.enter_context(process(place, tmp_path, "operations", "one"))
            await until("the first one is active", lambda: "broker_connected" in events(tmp_path, "one"))
            two = held.enter_context(process(place, tmp_path, "operations", "two"))
            await until("the second one waits", lambda: "standby_waiting" in events(tmp_path, "two"))
            one.kill()
            await until("the second one is active", lambda: "broker_connected" in events(tmp_path, "two"))
            three = held.enter_context(process(place, tmp_path, "operations", "three"))
            await until("the third one waits", lambda: "standby_waiting" in events(tmp_path, "three"))
            postgres.query("select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted")
            assert await asyncio.to_thread(two.wait, 10) == 1
            await until("the third one is active", lambda: "broker_connected" in events(tmp_path, "three"))
            assert three.poll() is None
            assert "this process is not the active one any more" in (tmp_path / "two.log").read_text()

    asyncio.run(story())
