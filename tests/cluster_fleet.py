"""A fleet that has outgrown one machine, in real processes: three NATS nodes, PostgreSQL, two workers, operations and a standby.

Real hubs are behind a connector and an embedded site broker. 50 more send their stream to the nodes directly, from a thread of
this process, by the courier of the real hub.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import orjson
import psutil

from broker.engines.nats_stream import STREAM, connect, subject_of
from broker.topics import hub_filter
from config import provision
from config.bundles import toml_string, toml_strings
from config.errors import HublineError
from config.ports import free_ports
from config.principal import CLOUD_SITE, Role
from config.settings import Identity
from tests.cluster_stream import Stream
from tests.fleet import COUNTER_ONLY, HUBLINE, WAIT_S, Fleet, until
from tests.postgres import Server

if TYPE_CHECKING:
    from nats.js.api import StreamInfo

SITE: Final = "berlin"
NODES: Final = {"node-1": "cloud", "node-2": "cloud-2", "node-3": "cloud-3"}
"""The nodes, as roles of a `Fleet`, and their names in the cluster."""
WORKERS: Final = ("worker-1", "worker-2")
OPERATIONS: Final = ("operations-1", "operations-2")
DATABASE: Final = "hubline"


class ClusterFleet(Fleet):
    """Roles: NODES, WORKERS, OPERATIONS, "site-broker", "connector" and the hubs; `stream` are the hubs of this process."""

    def __init__(self, directory: Path, fleet: str, hubs: int = 2, senders: int = 50):
        self.directory, self.fleet = directory / "fleet", fleet
        self.hubs = [f"pc-{number}" for number in range(1, hubs + 1)]
        self.logs = directory / "logs"
        self.logs.mkdir()
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        ports = [f"127.0.0.1:{port}" for port in free_ports(4 * len(NODES))]
        self.endpoints, self.nats, routes, self.leaves = (
            ports[at : at + len(NODES)] for at in range(0, len(ports), len(NODES))
        )
        self.site_port, self.api_port = free_ports(2)
        self.of_api = {
            "HUBLINE_API_URL": f"http://127.0.0.1:{self.api_port}",
            "HUBLINE_FLEET_DIR": str(self.directory),
        }
        self.environ = {**os.environ, **COUNTER_ONLY, **self.of_api}
        provision.init(self.directory, fleet, cloud_hosts=self.endpoints[:1])
        for name, endpoint in zip(list(NODES.values())[1:], self.endpoints[1:], strict=True):
            provision.broker(self.directory, name, hosts_of_broker=[endpoint])
        provision.connector(self.directory, "berlin-1", SITE, port=self.site_port)
        names = [f"sender-{number}" for number in range(1, senders + 1)]
        provision.hubs(self.directory, [*self.hubs, *names], SITE)
        self.database = Server(hard=True)
        self.database.create(DATABASE)
        self._settle_the_cloud()
        self.roles = {
            **{role: ("broker", name, self._of_node(at, routes)) for at, (role, name) in enumerate(NODES.items())},
            **{role: ("cloud", "cloud", {}) for role in (*WORKERS, *OPERATIONS)},
            "site-broker": ("broker", "berlin-1", {"HUBLINE_BROKER__LISTEN": f'["127.0.0.1:{self.site_port}"]'}),
            "connector": ("connector", "berlin-1", {}),
            **{hub: ("hub", hub, {}) for hub in self.hubs},
        }
        self.stream: Final = Stream([self.identity("hub", name, SITE) for name in names], self.endpoints)

    def _settle_the_cloud(self) -> None:
        """Write into the cloud service's settings what an administrator writes there."""
        file = self.settings("cloud")
        own = f"""[cloud]
intake = "jetstream"
nats = {toml_strings(self.nats)}
other_brokers = {toml_strings(self.endpoints[1:])}
database = {toml_string(self.database.url(DATABASE))}"""
        text = file.read_text().replace('database = "sqlite:///cloud.db"\n', "").replace("[cloud]", own, 1)
        file.write_text(text.replace('listen = "127.0.0.1:8480"', f'listen = "127.0.0.1:{self.api_port}"'))

    def _of_node(self, at: int, routes: Sequence[str]) -> dict[str, str]:
        return {
            "HUBLINE_BROKER__ENGINE": '"nats"',
            "HUBLINE_BROKER__LISTEN": f'["{self.endpoints[at]}"]',
            "HUBLINE_NATS__LISTEN": f'"{self.nats[at]}"',
            "HUBLINE_NATS__LEAF_LISTEN": f'"{self.leaves[at]}"',
            "HUBLINE_NATS__CLUSTER_LISTEN": f'"{routes[at]}"',
            "HUBLINE_NATS__ROUTES": toml_strings([route for route in routes if route != routes[at]]),
            "HUBLINE_NATS__REPLICAS": str(len(NODES)),
            **{f"HUBLINE_NATS__CLUSTER_{key.upper()}": f'"cluster-{key}.pem"' for key in ("ca", "cert", "key")},
        }

    def identity(self, role: Role, name: str, site: str = CLOUD_SITE) -> Identity:
        """Return what a member proves itself with."""
        folder = self.bundle(role, name)
        return Identity(self.fleet, site, name, folder / "ca.pem", folder / "cert.pem", folder / "key.pem")

    # --- Processes -----------------------------------------------------------------------------------------------------

    def settings(self, name: str) -> Path:
        return self.bundle("cloud", "cloud") / "cloud.toml" if name == "cloud" else super().settings(name)

    def start(self, *names: str) -> None:
        for name in names or self.roles:
            role, _, environ = self.roles[name]
            part = ["--only", name.partition("-")[0].replace("worker", "ingest")] if role == "cloud" else []
            with (self.logs / f"{name}.log").open("ab") as log:
                self.running[name] = subprocess.Popen(
                    [*HUBLINE, role, "run", "-c", str(self.settings(name)), *part],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**self.environ, **environ},
                    start_new_session=True,
                )

    def kill(self, *names: str) -> None:
        """As a power cut does: also what a role has started itself."""
        families = {name: psutil.Process(self.running[name].pid).children(recursive=True) for name in names}
        super().kill(*names)
        for family in families.values():
            for each in family:
                try:
                    each.kill()
                except psutil.NoSuchProcess:
                    pass
            psutil.wait_procs(family, WAIT_S)

    @contextmanager
    def hanging(self, name: str) -> Iterator[None]:
        """Let a role stand still, with what it has started itself, for the time of a block or until it is killed."""
        process = psutil.Process(self.running[name].pid)
        family = [process, *process.children(recursive=True)]
        for each in family:
            each.suspend()
        try:
            yield
        finally:
            for each in family:
                with suppress(psutil.NoSuchProcess):
                    each.resume()

    def start_again(self, node: str) -> None:
        """Start a node that was killed, and wait until it serves again."""
        before = len(self.events(node, "broker_started"))
        self.start(node)
        until(f"{node} serves again", lambda: len(self.events(node, "broker_started")) > before)

    @contextmanager
    def site_as_leaf(self) -> Iterator[None]:
        """Let the site's broker be a leaf node of all three nodes for the time of a block, and then the embedded one again."""
        bridging, alone = {"HUBLINE_CONNECTOR__BRIDGE": '"engine"'}, self.roles
        leaf = {
            "HUBLINE_BROKER__ENGINE": '"nats"',
            "HUBLINE_BROKER__BRIDGE": toml_string(str(self.settings("connector"))),
            "HUBLINE_NATS__LISTEN": f'"127.0.0.1:{free_ports(1)[0]}"',
            "HUBLINE_NATS__LEAF_REMOTES": toml_strings(self.leaves),
        }
        added = {"site-broker": {**bridging, **leaf}, "connector": bridging}
        self.stop(*added)
        self.roles = alone | {
            name: (alone[name][0], alone[name][1], {**alone[name][2], **more}) for name, more in added.items()
        }
        try:
            self.start(*added)
            yield
        finally:
            self.stop(*added)
            self.roles = alone
            self.start(*added)

    def revive(self) -> list[str]:
        """Start what has ended by itself, as a service manager does, and return what that was."""
        ended = [name for name, process in self.running.items() if process.poll() is not None]
        self.start(*ended) if ended else None
        return ended

    def close(self) -> None:
        self.stream.close()
        super().close()
        self.database.close()

    # --- Who is where --------------------------------------------------------------------------------------------------

    def active(self) -> str | None:
        """Return which of the operations is the active one."""
        for name in OPERATIONS:
            if name in self.running and self.status_of(name).get("state") == "active":
                return name
        return None

    def stored_by(self, worker: str) -> int:
        """Return how many messages a worker has stored since it was started."""
        found = self.status_of(worker).get("stored_messages")
        return found if isinstance(found, int) else 0

    def unsettled(self, hub: str) -> list[str]:
        """Return the subjects of what the stream holds of a hub ("+": of any): on its way to a worker, or in its hands."""
        of_hub = subject_of(hub_filter(self.fleet, SITE, hub, "up"))
        told = until("the stream answers", lambda: asyncio.run(self._stream_info(of_hub)))
        assert told is not None
        return list(told.state.subjects or ())

    def status_of(self, name: str) -> dict[str, object]:
        """Return the status file that a process of the cloud service writes: whichever it has found free."""
        for file in (self.bundle("cloud", "cloud") / "data").glob("status-*.json"):
            status: dict[str, object] = orjson.loads(file.read_bytes())
            if status.get("pid") == self.running[name].pid:
                return status
        return {}

    async def _stream_info(self, of: str) -> StreamInfo | None:
        from nats.errors import Error

        try:
            nats = await connect([place for place in self.nats if self._runs(place)], self.identity("cloud", "cloud"))
        except HublineError:
            return None
        try:
            return await nats.jetstream().stream_info(STREAM, subjects_filter=of)
        except (Error, TimeoutError):
            return None
        finally:
            await nats.close()

    def _runs(self, place: str) -> bool:
        return list(NODES)[self.nats.index(place)] in self.running

    # --- The books -----------------------------------------------------------------------------------------------------

    def wait_until_flowing(self, more: int = 20) -> None:
        """Wait until the cloud has acknowledged more of each hub, also of the stream."""
        since = time.monotonic()
        before = {hub: self.confirmed(hub) for hub in self.hubs if hub in self.running}
        try:
            self.stream.wait_until_flowing()
            for hub, points in before.items():  # Their connector may be patient: it has failed several times lately.
                until(f"{hub} is stored", lambda: self.confirmed(hub) >= points + more, 2 * WAIT_S)  # noqa: B023
        except AssertionError as exc:
            stream_s, sender_s = self.stream.stalls(since)
            raise AssertionError(f"{exc}; the stream stalled {stream_s:.1f} s, a sender {sender_s:.1f} s") from exc

    def assert_the_stream_is_stored_once(self) -> None:
        """Let the stream pause until all of it is acknowledged, and look for each message in the database."""
        with self.stream.paused():
            found = {epoch: counts for epoch, *counts in self.database.query(_STORED, database=DATABASE)}
            for sender in self.stream.senders:
                assert found[sender.epoch] == [sender.measured] * 3, sender.name

    def assert_nothing_lost_or_doubled(self, *hubs: str) -> None:
        super().assert_nothing_lost_or_doubled(*hubs)
        with self.stream.paused():
            audits = {row["epoch"]: row for row in self.audit()}
            for sender in self.stream.senders:
                row = audits[sender.epoch]
                assert (row["hub"], row["missing"], row["points"]) == (sender.name, [], sender.measured)


_STORED: Final = """
SELECT s.epoch, count(*), count(DISTINCT m.seq), max(m.seq) FROM messages m JOIN streams s ON s.stream_no = m.stream_no
    GROUP BY s.epoch"""
