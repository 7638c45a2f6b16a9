"""A fleet in operation: real clients on one cloud, each with its own certificate, and what it costs to watch and to command them.

Ratios are against peers that do the least that could be done with the same messages and answers, in the same run.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import psutil

from bench.gauge import memory_of
from bench.load import Line
from bench.operations_meter import PATIENCE_S, Api, Meter, Window
from bench.rig import COUNTER, STORER, Rig
from broker.tls import client_context
from broker.topics import hub_filter
from config import provision
from config.demo_fleet import FLEET, HUBLINE, SITE
from config.errors import HublineError
from config.ports import free_ports
from config.principal import CLOUD_SITE, server_name

HUBS: Final = 1000
HUBS_QUICK: Final = 100
HUBS_PER_PROCESS: Final = 250
SETTLE_S: Final = 25.0
"""Until the burst of births and first reports is over."""
WINDOW_S: Final = 60.0
WINDOW_QUICK_S: Final = 20.0
REQUESTS: Final = 200
COMMANDS: Final = 30
PINGS: Final = 3
PLAIN: Final = "plain"
"""The reader that counts and keeps nothing."""
SERVICE: Final = "cloud service"
BROKER: Final = "cloud broker"

_FETCH: Final = """
import http.client, json, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
connection.request("GET", "/list")
for entry in json.loads(connection.getresponse().read())["items"]:
    print(entry["site"] + "/" + entry["hub"], entry["presence"] and entry["presence"]["connection"])
"""
"""The peer of `hubline fleet list`: the least that a Python program does to show the same list."""


@dataclass(slots=True)
class Times:
    """Seconds of the same thing many times: ours, and the peer's in turn."""

    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    size_bytes: int = 0


@dataclass(slots=True)
class Operations:
    """What was measured. `steady` is ours alone, `beside` with the peers subscribed too."""

    hubs: int
    arrival: Window = field(default_factory=Window)
    steady: Window = field(default_factory=Window)
    beside: Window = field(default_factory=Window)
    rss: dict[str, int] = field(default_factory=dict)
    requests: dict[str, Times] = field(default_factory=dict)
    command: Times = field(default_factory=Times)
    pings: list[Window] = field(default_factory=list)
    killed: Window = field(default_factory=Window)
    told_s: dict[str, float] = field(default_factory=dict)
    tally: dict[str, int] = field(default_factory=dict)


def measure(tell: Callable[[str], None], *, quick: bool) -> Operations:
    """Provision, start, measure, and end everything. `quick`: a tenth of the hubs, for a third of the time."""
    hubs, window_s = (HUBS_QUICK, WINDOW_QUICK_S) if quick else (HUBS, WINDOW_S)
    with tempfile.TemporaryDirectory(prefix="hubline-bench-") as folder:
        tell(f"{hubs} certificates")
        rig = Rig(Path(folder) / "fleet", hubs)
        provision.reader(rig.directory, PLAIN)
        try:
            return _measured(rig, tell, window_s)
        finally:
            rig.close()


def _measured(rig: Rig, tell: Callable[[str], None], window_s: float) -> Operations:
    found = Operations(len(rig.hubs))
    endpoint, api_at = rig.start_cloud()
    api = Api(api_at, (rig.directory / "admin.token").read_text("ascii").strip())
    meter = Meter(rig, api)
    tell("hubs come")
    with meter.window(found.arrival):
        crowds = _start_hubs(rig, endpoint)
        api.wait_until(lambda: api.hubs("online") == len(rig.hubs), rig)
    time.sleep(SETTLE_S)
    tell("steady state")
    with meter.window(found.steady):
        time.sleep(window_s)
    found.rss = {name: memory_of(psutil.Process(rig.pid(name))).rss for name in (SERVICE, BROKER)}
    tell("beside the peers")
    readers = rig.bundles / "reader"
    rig.start_module("plain reader", "bench.plain_reader", [endpoint, FLEET, str(readers / PLAIN)], "[]")
    rows = [endpoint, FLEET, str(readers / STORER), str(rig.directory / "rows.db")]
    rig.start_module("row store", "bench.row_store", rows, "[]")
    with meter.window(found.beside):
        time.sleep(window_s)
    rig.fleet.stop("plain reader", "row store")
    tell("the API")
    with _peer(rig, api) as port:
        found.requests = _requests(api, Api(f"127.0.0.1:{port}", ""))
        tell("hubline fleet list")
        found.command = _commands(rig, api_at, port)
    for _ in range(PINGS):
        tell("ping to all")
        found.pings.append(Window())
        with meter.window(found.pings[-1]):
            _ping(rig, api)
    found.tally = _tally(rig, crowds)
    tell("all hubs killed")
    found.told_s = asyncio.run(_kill(rig, endpoint, crowds, meter, found.killed))
    rig.fleet.check()
    return found


def _start_hubs(rig: Rig, endpoint: str) -> list[str]:
    crowds = []
    for start in range(0, len(rig.hubs), HUBS_PER_PROCESS):
        names = rig.hubs[start : start + HUBS_PER_PROCESS]
        crowd = f"hubs {start + 1} to {start + len(names)}"
        rig.start_module(crowd, "bench.fleet_hubs", [endpoint, str(rig.bundles), FLEET, SITE, *names], "{")
        crowds.append(crowd)
    return crowds


def _tally(rig: Rig, crowds: Sequence[str]) -> dict[str, int]:
    """Return what the hubs have counted, by the newest whole line of each process."""
    total: dict[str, int] = {}
    for crowd in crowds:
        newest = orjson.loads(rig.log(crowd).read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[2])
        for name, count in newest.items():
            total[name] = total.get(name, 0) + count
    return total


# --- The API and its peer --------------------------------------------------------------------------------------------


_PATHS: Final[Mapping[str, str]] = {
    "page": "/api/v1/hubs?limit=100",
    "list": "/api/v1/hubs?limit=1000",
    "hub": f"/api/v1/hubs/{SITE}/hub-7",
    "log": "/api/v1/connection-log?limit=100",
    "hublog": f"/api/v1/connection-log?site={SITE}&hub=hub-7",
}


@contextmanager
def _peer(rig: Rig, api: Api) -> Iterator[int]:
    """Serve copies of the API's answers from memory."""
    folder = rig.directory / "answers"
    folder.mkdir()
    for name, path in _PATHS.items():
        (folder / f"{name}.json").write_bytes(api.fetch(path))
    (port,) = free_ports(1)
    rig.start_module("API's peer", "bench.api_peer", [str(port), str(folder)], "")
    rig.wait_for_port(port)
    yield port
    rig.fleet.stop("API's peer")


def _requests(ours: Api, peer: Api) -> dict[str, Times]:
    found = {}
    for name, path in _PATHS.items():
        times = found[name] = Times(size_bytes=len(ours.fetch(path)))
        for _ in range(REQUESTS):
            times.ours.append(ours.timed(path))
            times.peer.append(peer.timed(f"/{name}"))
    return found


def _commands(rig: Rig, api_at: str, port: int) -> Times:
    environ = {**os.environ, "HUBLINE_API_URL": f"http://{api_at}", "HUBLINE_FLEET_DIR": str(rig.directory)}
    times = Times()
    for _ in range(COMMANDS):
        seconds, output = _run([*HUBLINE, "fleet", "list"], environ)
        times.ours.append(seconds)
        lines = output.count(b"\n")
        if lines < len(rig.hubs):
            raise HublineError(f"`hubline fleet list` has shown {lines} lines")
        seconds, _ = _run([sys.executable, "-c", _FETCH, str(port)], environ)
        times.peer.append(seconds)
    return times


def _run(command: Sequence[str], environ: Mapping[str, str]) -> tuple[float, bytes]:
    began_at = time.perf_counter()
    done = subprocess.run(command, env=dict(environ), capture_output=True, check=False)
    seconds = time.perf_counter() - began_at
    if done.returncode:
        raise HublineError(f"`{' '.join(command[-2:])}`: {done.stderr.decode()[:500]}")
    return seconds, done.stdout


# --- Tasks, and the end ----------------------------------------------------------------------------------------------


def _ping(rig: Rig, api: Api) -> None:
    """Let all hubs do a task, and wait until the last is done."""
    wanted = {"action": "ping", "targets": {"sites": [SITE]}, "skip_if_offline": True}
    task = orjson.loads(api.fetch("/api/v1/tasks", "POST", orjson.dumps(wanted)))["task"]

    def done() -> bool:
        states: dict[str, int] = orjson.loads(api.fetch(f"/api/v1/tasks/{task}?limit=1"))["states"]
        return states.get("done", 0) == len(rig.hubs)

    api.wait_until(done, rig)


async def _kill(rig: Rig, endpoint: str, crowds: Sequence[str], meter: Meter, window: Window) -> dict[str, float]:
    """Kill all hubs; return the seconds until a subscriber had the last "will", the last "presence", and the API "shown" it."""
    of_state, of_presence = set[bytes](), set[bytes]()
    times = {"will": 0.0, "presence": 0.0, "shown": 0.0}
    killed_at = 0.0

    def take(topic: bytes, payload: bytes) -> None:
        told: dict[str, Any] = orjson.loads(payload)
        if topic.endswith(b"/state") and not told["online"]:
            of_state.add(topic)
            times["will"] = time.monotonic() - killed_at
        elif topic.endswith(b"/presence") and told["connection"] == "offline" and killed_at:
            of_presence.add(topic)
            times["presence"] = time.monotonic() - killed_at

    line = Line(COUNTER, take)
    await line.open(endpoint, client_context(rig.identity("reader", COUNTER), server_name(FLEET, CLOUD_SITE)))
    for channel in ("state", "presence"):
        await line.subscribe(hub_filter(FLEET, SITE, "+", channel), 0)
    await asyncio.sleep(2)  # What is retained comes first.
    with meter.window(window):
        processes = [rig.fleet.processes.pop(crowd).popen for crowd in crowds]
        killed_at = time.monotonic()
        for process in processes:
            process.kill()
        await asyncio.to_thread(meter.api.wait_until, lambda: meter.api.hubs("online") == 0, rig)
        times["shown"] = time.monotonic() - killed_at
        ends_at = time.monotonic() + PATIENCE_S
        while min(len(of_state), len(of_presence)) < len(rig.hubs) and time.monotonic() < ends_at:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    for process in processes:
        process.wait()
    if len(of_presence) < len(rig.hubs):
        raise HublineError(f"only {len(of_presence)} of {len(rig.hubs)} hubs were told to be offline")
    line.close()
    return times
