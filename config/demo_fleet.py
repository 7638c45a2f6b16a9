"""A whole fleet as separate processes on this machine: every role as an administrator would run it, by command line only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import orjson

from config import limits, provision
from config.demo_engines import Database, Engine, Landscape
from config.errors import HublineError

_ASKED_TO_STOP: Final = (signal.SIGINT, signal.SIGTERM)
HUBLINE: Final = (sys.executable, "-c", "from config.cli import main; main()")
SITE: Final = "berlin"
CONNECTOR: Final = "berlin-1"
FLEET: Final = "demo"


class Outbox(msgspec.Struct, frozen=True):
    """What the demo reads of a hub's outbox."""

    pending: int
    last_seq: int
    points: int
    points_written: int
    points_lost: int


class HubPath(msgspec.Struct, frozen=True):
    """What the demo reads of a hub's path."""

    kind: str
    connector: str | None
    switch_at: int | None = None


class HubStatus(msgspec.Struct, frozen=True):
    """What the demo reads of a hub's status file."""

    hub: str
    path: HubPath
    epoch: str
    outbox: Outbox


class HubAudit(msgspec.Struct, frozen=True):
    """What the demo reads of the cloud's audit."""

    hub: str
    epoch: str
    points: int
    missing: list[tuple[int, int]]
    last_seq: int | None = None
    duplicates_refused: int = 0


@dataclass(slots=True)
class Process:
    """One role that runs. `failure` is told if it ends by itself."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def last_words(self) -> str:
        """Return the last line of its log."""
        lines = self.log.read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


@dataclass(slots=True)
class Counts:
    """Of one hub, as any subscriber sees it: how many values the cloud has stored, the newest, and its one status."""

    stored: dict[str, int] = field(default_factory=dict)
    values: dict[str, object] = field(default_factory=dict)
    presence: str = ""


class DemoFleet:
    """Provisions a fleet under `directory`, runs it, and reads what an administrator could read."""

    def __init__(
        self,
        directory: Path,
        hubs: int,
        environ: Mapping[str, str],
        *,
        engine: Engine = "amqtt",
        database: Database = "sqlite",
    ):
        self.directory = directory
        self.hubs = [f"hub-{number}" for number in range(1, hubs + 1)]
        self.processes: dict[str, Process] = {}
        self.counts: dict[str, Counts] = {hub_id: Counts() for hub_id in self.hubs}
        self._environ = {**os.environ, **environ}
        self._bundles = directory / "bundles"
        self.landscape = Landscape(engine, database, self._bundles)
        self.cloud_port, self.site_port = self.landscape.cloud_port, self.landscape.site_port
        self.api_port = self.landscape.api_port

    def provision(self) -> None:
        """Make the authority and a bundle for every process, as `hubline provision` does."""
        first, *others = self.landscape.hosts.items()
        provision.init(self.directory, FLEET, cloud_hosts=[first[1]])
        for name, host in others:
            provision.broker(self.directory, name, hosts_of_broker=[host])
        provision.connector(self.directory, CONNECTOR, SITE, port=self.site_port)
        for hub_id in self.hubs:
            provision.hub(self.directory, hub_id, SITE)
        bundle = provision.reader(self.directory, "viewer")
        assert bundle.settings.is_file()

    def start(self) -> None:
        """Start every role. They may come up in any order; each waits for the others by itself."""
        (self.directory / "logs").mkdir(exist_ok=True)
        self._environ |= self.landscape.start_database(self.directory / "postgres")
        for each in (*self.landscape.brokers(CONNECTOR), *self.landscape.services()):
            self.run(each.name, each.command, each.role, each.member, each.environ)
        self.start_connector()
        for hub_id in self.hubs:
            self.run(hub_id, ["hub", "run"], "hub", hub_id)
        self._watch()

    def run(
        self, name: str, command: Sequence[str], role: str, member: str, environ: Mapping[str, str] | None = None
    ) -> None:
        """Start one role in a process of its own, its log in a file."""
        log = self.directory / "logs" / f"{name.replace(' ', '-')}.log"
        with log.open("ab") as stream, _undisturbed():
            popen = subprocess.Popen(
                [*HUBLINE, *command, "-c", str(self._bundles / role / member / f"{role}.toml")],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env={**self._environ, **(environ or {})},
                start_new_session=True,  # Ctrl-C is ours to pass on.
            )
            self.processes[name] = Process(name, popen, log)

    def check(self) -> None:
        """Raise HublineError if a role has ended by itself."""
        for process in self.processes.values():
            status = process.popen.poll()
            if status is not None:
                raise HublineError(f"{process.name} ended with status {status}: {process.last_words()}")

    def kill(self, name: str) -> None:
        """End a role as a power cut does."""
        process = self.processes.pop(name)
        process.popen.kill()
        process.popen.wait()

    def start_connector(self) -> None:
        """Start the site's connector, at first or again."""
        self.run("connector", ["connector", "run"], "connector", CONNECTOR, self.landscape.connector)

    def all_on(self, kind: str) -> bool:
        """Tell whether every hub sends over this kind of path: "connector", "direct" or "none"."""
        statuses = [self.status(hub_id) for hub_id in self.hubs]
        return all(status is not None and status.path.kind == kind for status in statuses)

    def stop(self, *names: str) -> None:
        """Stop roles cleanly, as a service manager does; one that does not end in time is killed."""
        stopping = [self.processes.pop(name) for name in names if name in self.processes]
        for process in stopping:
            if process.popen.poll() is None:
                process.popen.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 2 * limits.STOP_TIMEOUT_S
        for process in stopping:
            try:
                process.popen.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()

    def stop_all(self) -> None:
        """Stop everything that still runs, hubs first."""
        self.stop(*self.hubs)
        self.stop(*list(self.processes))
        self.landscape.stop_database()

    # --- What can be read of it ----------------------------------------------------------------------------------------

    def status(self, hub_id: str) -> HubStatus | None:
        """Return a hub's status, or None if it has not written one yet."""
        try:
            content = (self._bundles / "hub" / hub_id / "data" / "status.json").read_bytes()
            return msgspec.json.decode(content, type=HubStatus)
        except FileNotFoundError:
            return None

    def audit(self) -> list[HubAudit]:
        """Return what the database holds. Raises HublineError if the audit can't be made."""
        done = subprocess.run(
            [*HUBLINE, "cloud", "audit", "-c", str(self._bundles / "cloud" / "cloud" / "cloud.toml"), "--json"],
            capture_output=True,
            env=self._environ,
            check=False,
        )
        try:
            return [msgspec.convert(row, HubAudit) for row in _rows(done.stdout)]
        except (orjson.JSONDecodeError, msgspec.ValidationError) as exc:
            reason = done.stderr.decode("utf-8", "replace").strip() or str(exc)
            raise HublineError(f"the audit failed: {reason}") from exc

    def _watch(self) -> None:
        """Subscribe as any reader may, and take what the cloud says it has stored."""
        command = [*HUBLINE, "tail", "-c", str(self._bundles / "reader" / "viewer" / "reader.toml")]
        log = self.directory / "logs" / "viewer.log"
        with log.open("ab") as errors, _undisturbed():
            popen = subprocess.Popen(
                [*command, f"hl1/{FLEET}/+/hub/+/last/+", f"hl1/{FLEET}/+/hub/+/presence"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**self._environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
            self.processes["viewer"] = Process("viewer", popen, log)
        threading.Thread(target=self._take, args=(popen,), daemon=True, name="viewer").start()

    def _take(self, popen: subprocess.Popen[bytes]) -> None:
        assert popen.stdout is not None
        for line in popen.stdout:
            words = line.decode("utf-8", "replace").split(" ", 2)
            if len(words) < 3:
                continue
            _, _, _, _, hub_id, channel, *sensor = words[1].split("/")
            said = orjson.loads(words[2].removeprefix("retained "))
            counts = self.counts.setdefault(hub_id, Counts())
            if channel == "presence":
                counts.presence = said["connection"]
            else:
                counts.values[sensor[0]] = said["value"]
                counts.stored[sensor[0]] = said["count"]


def _rows(output: bytes) -> Iterator[object]:
    """Read JSON that is a list, or one object a line."""
    if output.lstrip().startswith(b"["):
        yield from orjson.loads(output)
    else:
        for line in output.splitlines():
            yield orjson.loads(line)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Put off a Ctrl-C: within the start of a process it would leave one that nobody knows."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda asked, _: came.append(asked)) for number in _ASKED_TO_STOP}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for each in came[:1]:
            signal.raise_signal(each)
