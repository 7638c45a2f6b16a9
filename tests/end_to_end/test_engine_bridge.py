"""A site whose Mosquitto bridges by itself: messages cross both ways, and hubs go around the bridge when it fails."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from broker import client
from broker.client import Session, SessionOptions
from broker.tls import client_context
from broker.topics import hub_filter
from config.ports import free_ports
from config.principal import server_name
from config.settings import ReaderSettings, load
from connector.bridge_watch import NOT_CONNECTED, UNKNOWN
from tests.end_to_end.conftest import NEEDS_MOSQUITTO
from tests.fleet import QUICK, WAIT_S, Fleet, edit, until

pytestmark = NEEDS_MOSQUITTO
RELAY = """
import asyncio, sys

async def pour(reader, writer):
    while chunk := await reader.read(65536):
        writer.write(chunk)
        await writer.drain()
    writer.close()

async def serve(reader, writer):
    try:
        onward = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    except OSError:
        return writer.close()
    await asyncio.gather(pour(reader, onward[1]), pour(onward[0], writer), return_exceptions=True)
    onward[1].close()
    writer.close()

async def main():
    async with await asyncio.start_server(serve, sys.argv[3], int(sys.argv[1])) as server:
        print("ready", flush=True)
        await server.serve_forever()

asyncio.run(main())
"""


class BridgedFleet(Fleet):
    """A fleet whose site broker is a Mosquitto that bridges, to the cloud over a relay of which only the site knows."""

    def __init__(self, directory: Path, fleet: str, hubs: int, host: str = "127.0.0.1"):
        super().__init__(directory, fleet, hubs, QUICK, "engine")
        (relay_port,) = free_ports(1)
        self.relay = subprocess.Popen(
            [sys.executable, "-c", RELAY, str(relay_port), str(self.cloud_port), host], stdout=subprocess.PIPE
        )
        assert self.relay.stdout is not None
        self.relay.stdout.readline()
        edit(self.settings("connector"), (f"127.0.0.1:{self.cloud_port}", f"{host}:{relay_port}"))

    def close(self) -> None:
        super().close()
        self.relay.kill()
        self.relay.communicate()

    def upstream(self) -> object:
        return self.status("connector").get("upstream")

    def failure(self, of: str) -> object:
        failures = self.status("connector").get("failures")
        return failures.get(of) if isinstance(failures, dict) else None

    def wait_for_path(self, kind: str) -> None:
        until(f"all hubs are {kind}", lambda: all(self.path(hub) == kind for hub in self.hubs))

    def retained_states(self) -> list[str]:
        """Return the topics of hubs' states that a newcomer at the cloud broker gets as retained."""
        return asyncio.run(self._retained_states())

    async def _retained_states(self) -> list[str]:
        settings = load(self.bundle("reader", "viewer") / "reader.toml", ReaderSettings)
        opened, found = asyncio.Event(), asyncio.Queue[client.Received]()

        def hear(event: client.SessionEvent) -> None:
            match event:
                case client.Opened():
                    opened.set()
                case client.Received():
                    found.put_nowait(event)

        tls = client_context(settings.identity, server_name(self.fleet, "-"))
        session = Session(SessionOptions(f"127.0.0.1:{self.cloud_port}", "viewer", tls), hear)
        session.open()
        try:
            async with asyncio.timeout(WAIT_S):
                await opened.wait()
                session.subscribe([(hub_filter(self.fleet, "+", "+", "state"), 1)])
                got = [await found.get() for _ in self.hubs]
        finally:
            await session.close()
        return sorted(message.topic for message in got if message.retain)


@contextmanager
def bridged(directory: Path, fleet: str, hubs: int, host: str = "127.0.0.1") -> Iterator[BridgedFleet]:
    this = BridgedFleet(directory, fleet, hubs, host)
    try:
        yield this
    finally:
        this.close()


def test_hubs_live_behind_a_bridging_mosquitto_and_go_around_it_when_it_fails(tmp_path: Path, unique_name: str) -> None:
    """One story, since each begins with a fleet: the cloud broker is killed, then the WAN falls silent.

    That each process may be killed in the stream, and that hubs leave and return by a connector's will, is shown for both
    kinds of bridges in test_faults and test_presence.
    """
    with bridged(tmp_path, unique_name, hubs=2) as site:
        site.start()
        site.wait_for_path("connector")
        site.wait_until_flowing()
        assert site.retained_states() == [f"hl1/{unique_name}/berlin/hub/{hub}/state" for hub in site.hubs]
        assert not site.events("site-broker", "refused")

        site.kill("cloud-broker")
        until("the connector sees it", lambda: site.upstream() == "down")
        site.start("cloud-broker")
        until("the connector sees it", lambda: site.upstream() == "up")
        site.wait_until_flowing()
        assert len(site.retained_states()) == 2

        site.wait_for_path("connector")  # On a busy machine they may have left while the cloud broker was away.
        site.relay.send_signal(signal.SIGSTOP)
        site.wait_for_path("direct")
        assert site.upstream() == "down"
        site.wait_until_flowing()
        site.relay.send_signal(signal.SIGCONT)
        site.wait_for_path("connector")
        site.wait_until_flowing()
        site.assert_nothing_lost_or_doubled()


def test_the_bridge_refuses_a_cloud_broker_of_another_name(tmp_path: Path, unique_name: str) -> None:
    """Mosquitto verifies the address as written; whoever answers there with another certificate gets no message."""
    with bridged(tmp_path, unique_name, hubs=0, host="127.0.0.2") as site:
        site.start("cloud-broker", "site-broker", "connector")
        until(
            "the bridge refuses it",
            lambda: any("verification failed" in str(line.get("line")) for line in site.log("site-broker")),
        )
        until("the connector itself reaches it", lambda: len(site.events("connector", "broker_connected")) == 2)
        until("the connector tells of the bridge", lambda: site.failure("bridge") == NOT_CONNECTED)
        assert not site.failure("cloud")
        assert site.upstream() == "down"


def test_a_site_broker_without_a_bridge_is_told_of(tmp_path: Path, unique_name: str) -> None:
    """The connector leaves the bridging to an engine that does not do it: hubs must not wait for it."""
    with bridged(tmp_path, unique_name, hubs=0) as site:
        file = site.settings("site-broker")
        lines = file.read_text("utf-8").splitlines(keepends=True)
        file.write_text("".join(line for line in lines if not line.startswith(("engine =", "bridge ="))), "utf-8")
        site.start("cloud-broker", "site-broker", "connector")
        until("the connector says so", lambda: site.failure("bridge") == UNKNOWN)
        assert site.upstream() == "down"
        assert [line["reason"] for line in site.events("connector", "bridge_failed")] == [UNKNOWN]
