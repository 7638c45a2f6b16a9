"""A fleet of real processes for end-to-end tests: real TLS, real brokers, real SSDP, all on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import orjson

from cloud.fleet_client import Api, place_from
from config import provision
from config.ports import free_ports

HUBLINE = (sys.executable, "-c", "from config.cli import main; main()")
WAIT_S = 60.0
STOPS = 3
"""So often a hub may be stopped until it holds nothing any more."""
T = TypeVar("T")

COUNTER_ONLY = {
    **{f"HUBLINE_SENSORS__{name}__ENABLED": "false" for name in ("CPU", "MEMORY", "LOAD", "DISK", "NETWORK")},
    **{f"HUBLINE_SENSORS__{name}__ENABLED": "false" for name in ("UPTIME", "PROCESSES", "TEMPERATURE")},
    "HUBLINE_SENSORS__COUNTER__ENABLED": "true",
    "HUBLINE_SENSORS__COUNTER__RATE_HZ": "50",
    "HUBLINE_SENSORS__COUNTER__INTERVAL_S": "0.1",
    "HUBLINE_LOG__FORMAT": '"json"',
}

QUICK = {
    "HUBLINE_FAILOVER__OUTAGE_S": "4",
    "HUBLINE_FAILOVER__START_GRACE_S": "4",
    "HUBLINE_FAILBACK__PROBE_S": "1",
    "HUBLINE_FAILBACK__STABLE_S": "1",
    "HUBLINE_FAILBACK__JITTER_S": "1",
    "HUBLINE_PRESENCE__OUTAGE_S": "4",
}
"""The rules about paths, in seconds instead of minutes."""

BRIDGED = {"HUBLINE_CONNECTOR__KEEP_ALIVE_S": "2", "HUBLINE_HUB__KEEP_ALIVE_S": "5"}
"""For a site whose Mosquitto bridges by itself: by its keep alive also go the waits before it connects again."""


def until(what: str, check: Callable[[], T], timeout_s: float = WAIT_S) -> T:
    """Return the first true answer of `check`; fail with `what` if there is none in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = check()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.02)


class Fleet:
    """One site and its cloud. Roles have the names "cloud-broker", "cloud", "site-broker", "connector" and the hubs' own."""

    def __init__(
        self, directory: Path, fleet: str, hubs: int = 2, environ: Mapping[str, str] | None = None, bridge: str = "own"
    ):
        self.directory, self.fleet = directory / "fleet", fleet
        self.hubs = [f"pc-{number}" for number in range(1, hubs + 1)]
        self.logs = directory / "logs"
        self.logs.mkdir()
        self.cloud_port, self.site_port, self.api_port = free_ports(3)
        self.of_api = {
            "HUBLINE_API_URL": f"http://127.0.0.1:{self.api_port}",
            "HUBLINE_FLEET_DIR": str(self.directory),
        }
        self.environ = {**os.environ, **COUNTER_ONLY, **self.of_api, **(environ or {})}
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        provision.init(self.directory, fleet, cloud_hosts=[f"127.0.0.1:{self.cloud_port}"])
        provision.connector(self.directory, "berlin-1", "berlin", port=self.site_port)
        for hub in self.hubs:
            provision.hub(self.directory, hub, "berlin")
        provision.reader(self.directory, "viewer")
        listen = "HUBLINE_BROKER__LISTEN"
        self.roles: dict[str, tuple[str, str, dict[str, str]]] = {
            "cloud-broker": ("broker", "cloud", {listen: f'["127.0.0.1:{self.cloud_port}"]'}),
            "cloud": ("cloud", "cloud", {"HUBLINE_API__LISTEN": f'"127.0.0.1:{self.api_port}"'}),
            "site-broker": ("broker", "berlin-1", {listen: f'["127.0.0.1:{self.site_port}"]'}),
            "connector": ("connector", "berlin-1", {}),
            **{hub: ("hub", hub, {}) for hub in self.hubs},
        }
        if bridge == "engine":
            self.environ = {**BRIDGED, **self.environ}
            self.let_the_engine_bridge()

    def let_the_engine_bridge(self, connector: str = "connector", site_broker: str = "site-broker") -> None:
        """Have Mosquitto as site broker, which brings the messages to the cloud itself."""
        edit(self.settings(connector), ("[connector]", '[connector]\nbridge = "engine"'))
        _, name, _ = self.roles[connector]
        bridge = f'engine = "mosquitto"\nbridge = "../../connector/{name}/connector.toml"'
        edit(self.settings(site_broker), ("[broker]", f"[broker]\n{bridge}"))

    def add_hub(self, name: str, environ: Mapping[str, str] | None = None) -> None:
        """Provision one more hub, which is started and looked after by its name only."""
        provision.hub(self.directory, name, "berlin")
        self.roles[name] = ("hub", name, dict(environ or {}))

    # --- Processes -----------------------------------------------------------------------------------------------------

    def bundle(self, role: str, name: str) -> Path:
        return self.directory / "bundles" / role / name

    def settings(self, name: str) -> Path:
        role, member, _ = self.roles[name]
        return self.bundle(role, member) / f"{role}.toml"

    def start(self, *names: str) -> None:
        for name in names or self.roles:
            role, _, environ = self.roles[name]
            with (self.logs / f"{name}.log").open("ab") as log:
                self.running[name] = subprocess.Popen(
                    [*self.inside(name), *HUBLINE, role, "run", "-c", str(self.settings(name))],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**self.environ, **environ},
                    start_new_session=True,
                )

    def inside(self, name: str) -> list[str]:
        """Return what a role's command begins with: nothing, where all share this machine's loopback."""
        return []

    def kill(self, *names: str) -> None:
        """As a power cut does."""
        for name in names:
            self.running[name].kill()
        for name in names:
            self.running.pop(name).wait()

    def stop(self, *names: str, number: int = signal.SIGTERM) -> dict[str, int]:
        """Ask roles to end, and return their exit statuses."""
        for name in names:
            self.running[name].send_signal(number)
        return {name: self.running.pop(name).wait(WAIT_S) for name in names}

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
        for process in self.running.values():
            process.wait()
        self.running.clear()

    def hubline(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*HUBLINE, *arguments], capture_output=True, text=True, env=self.environ, timeout=WAIT_S, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    @contextmanager
    def following(self, *arguments: str) -> Iterator[Follower]:
        """Run a command that ends only when it is told to."""
        follower = Follower(self, *arguments)
        try:
            yield follower
        finally:
            follower.close()

    # --- What the cloud says of it --------------------------------------------------------------------------------------

    def ask(self, path: str, **parameters: object) -> Any:
        """Return what the API says, as its administrator sees it."""
        api = Api(place_from(None, self.of_api))
        try:
            return api.get(path, **parameters)
        finally:
            api.close()

    def presence(self, hub: str) -> dict[str, Any]:
        """Return the one status of a hub."""
        found = self.ask(f"/hubs/berlin/{hub}")["presence"]
        return found if isinstance(found, dict) else {}

    def is_online(self, hub: str, via: str) -> bool:
        found = self.presence(hub)
        return (found.get("connection"), found.get("via")) == ("online", via)

    # --- What can be seen ----------------------------------------------------------------------------------------------

    def log(self, name: str) -> list[dict[str, object]]:
        """Return what a role has logged, as it stands; a last line that is not whole yet is left out."""
        file = self.logs / f"{name}.log"
        lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
        return [orjson.loads(line) for line in lines if line.startswith(b"{") and line.endswith(b"\n")]

    def events(self, name: str, event: str) -> list[dict[str, object]]:
        return [line for line in self.log(name) if line["event"] == event]

    def status(self, name: str) -> dict[str, object]:
        role, member, _ = self.roles[name]
        file = self.bundle(role, member) / "data" / "status.json"
        return orjson.loads(file.read_bytes()) if file.exists() else {}

    def pending(self, hub: str) -> int | None:
        outbox = self.status(hub).get("outbox")
        return outbox["pending"] if isinstance(outbox, dict) else None

    def path(self, hub: str) -> str | None:
        path = self.status(hub).get("path")
        return path["kind"] if isinstance(path, dict) else None

    def audit(self) -> list[dict[str, object]]:
        done = self.hubline("cloud", "audit", "-c", str(self.settings("cloud")), "--json", check=False)
        found = orjson.loads(done.stdout)
        assert isinstance(found, list), found
        return found

    def confirmed(self, hub: str) -> int:
        """Return how many points the cloud has acknowledged to a hub, by the hub's own books."""
        outbox = self.status(hub).get("outbox")
        return outbox["points_written"] - outbox["points"] if isinstance(outbox, dict) else 0

    def counted(self, hub: str) -> list[int]:
        """Return the values of the counter sensor that the database holds, in the order of the hub's messages."""
        done = self.hubline(
            "cloud", "readings", hub, "-c", str(self.settings("cloud")), "--sensor", "counter.value", "--json"
        )
        return [orjson.loads(line)["value"] for line in done.stdout.splitlines()]

    def wait_until_flowing(self, more: int = 20) -> None:
        """Wait until the cloud has acknowledged `more` further points of each running hub."""
        before = {hub: self.confirmed(hub) for hub in self.hubs if hub in self.running}
        for hub, points in before.items():
            until(f"{hub} is stored", lambda hub=hub, points=points: self.confirmed(hub) >= points + more)  # type: ignore[misc]

    def assert_nothing_lost_or_doubled(self, *hubs: str) -> None:
        """Let hubs (by default all) send everything, stop them, and hold their books and counters against the database."""
        hubs = hubs or tuple(self.hubs)
        self._stop_with_nothing_pending([hub for hub in hubs if hub in self.running])
        audits = {row["hub"]: row for row in self.audit()}
        for hub in hubs:
            outbox = self.status(hub)["outbox"]
            assert isinstance(outbox, dict)
            assert outbox["pending"] == 0, f"{hub} still holds messages"
            assert audits[hub]["missing"] == []
            assert audits[hub]["points"] == outbox["points_written"]
            values = self.counted(hub)
            assert values == list(range(1, len(values) + 1)), f"{hub}: {_first_break(values)}"
            assert len(values) == outbox["points_written"]

    def _stop_with_nothing_pending(self, hubs: list[str]) -> None:
        """A machine that is very busy may not answer in the time that a stopping hub has: it sends the rest after a start."""
        for _ in range(STOPS):
            self.wait_until_drained()
            self.stop(*hubs)
            hubs = [hub for hub in hubs if self.pending(hub)]
            if not hubs:
                return
            self.start(*hubs)
            self.wait_until_flowing()

    def wait_until_drained(self) -> None:
        """Wait until no running hub has more waiting than what a healthy path holds."""
        for hub in (hub for hub in self.hubs if hub in self.running):
            until(f"{hub} drains", lambda hub=hub: (self.pending(hub) or 0) <= 5 and self.path(hub) != "none")  # type: ignore[misc]


class Follower:
    """A command that runs on, and what it has printed until now."""

    def __init__(self, fleet: Fleet, *arguments: str):
        self._file = fleet.logs / f"{arguments[0]}-{len(list(fleet.logs.iterdir()))}.out"
        with self._file.open("wb") as output:
            self._process = subprocess.Popen(
                [*HUBLINE, *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=fleet.environ
            )

    def lines(self) -> list[str]:
        """Return the lines that are whole."""
        text = self._file.read_text()
        return text[: text.rfind("\n") + 1].splitlines()

    def objects(self) -> list[dict[str, Any]]:
        """Return the lines that are JSON."""
        return [orjson.loads(line) for line in self.lines() if line.startswith("{")]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(WAIT_S)


def edit(file: Path, *replaced: tuple[str, str]) -> None:
    """Change a bundle's settings as an administrator does: each text stands there once."""
    text = file.read_text("utf-8")
    for old, new in replaced:
        assert text.count(old) == 1, (file, old)
        text = text.replace(old, new)
    file.write_text(text, "utf-8")


def _first_break(values: Sequence[int]) -> str:
    for expected, value in enumerate(values, start=1):
        if value != expected:
            return f"reading {expected} counts {value}"
    return "no break"


@contextmanager
def running_fleet(
    directory: Path, fleet: str, hubs: int = 2, environ: Mapping[str, str] | None = None, bridge: str = "own"
) -> Iterator[Fleet]:
    """Run a whole fleet, until its hubs' data is in the database; end every process of it afterwards."""
    this = Fleet(directory, fleet, hubs, environ, bridge)
    try:
        this.start()
        this.wait_until_flowing()
        yield this
    finally:
        this.close()
