"""Modes, with real processes: a hub that only makes contact, one that roams, and two machines with one identity."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import psutil
import pytest
from msgspec import Struct

from broker.client import Opened
from broker.clock import unix_ms
from broker.control import Task
from broker.messages import encode
from broker.tls import client_context
from broker.topics import Topic
from config.principal import server_name
from tests.fleet import HUBLINE, Fleet, running_fleet, until
from tests.sessions import identity_of, is_a, opened

POLLING = {
    "HUBLINE_MODE__KIND": '"polling"',
    "HUBLINE_MODE__HEARTBEAT_MIN": "1",
    "HUBLINE_MODE__POLL_MIN": "1",
    "HUBLINE_MODE__OFFLINE_AFTER_MIN": "2",
}


class Listener:
    """What a reader sees of some topics, as it comes."""

    def __init__(self, fleet: Fleet, *topic_filters: str):
        reader = str(fleet.bundle("reader", "viewer") / "reader.toml")
        self._fleet, self._file = fleet, fleet.logs / "tail.log"
        with self._file.open("wb") as output:
            self._process = subprocess.Popen(
                [*HUBLINE, "tail", "-c", reader, *topic_filters],
                stdout=output,
                stderr=subprocess.DEVNULL,
                env=fleet.environ,
            )

    def connected(self) -> bool:
        return _has_sessions(self._fleet, self._process.pid)

    def seen(self, channel: str) -> list[dict[str, object]]:
        """Return the payloads of a channel, in order."""
        lines = [line for line in self._file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [orjson.loads(line[line.index("{") :]) for line in lines if f"/{channel} " in line[: line.index("{")]]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(20)


@contextmanager
def listening(fleet: Fleet) -> Iterator[Listener]:
    listener = Listener(fleet, f"hl1/{fleet.fleet}/berlin/hub/#")
    try:
        until("the reader is in", listener.connected)
        yield listener
    finally:
        listener.close()


@contextmanager
def heard_from_its_start(fleet: Fleet, *roles: str) -> Iterator[Listener]:
    """Start these roles, then the hub, which says some things once only: by then somebody listens. In the end all are gone."""
    try:
        fleet.start(*roles)
        with listening(fleet) as listener:
            fleet.start("pc-1")
            yield listener
    finally:
        fleet.close()


def has_sessions(fleet: Fleet, hub: str) -> bool:
    """Tell whether a hub's process is connected to a broker."""
    return _has_sessions(fleet, fleet.running[hub].pid)


def _has_sessions(fleet: Fleet, pid: int) -> bool:
    """Only those to brokers count: an MQTT client also has a pair of sockets to wake its own thread with."""
    brokers = (fleet.site_port, fleet.cloud_port)
    found = psutil.Process(pid).net_connections("tcp")
    return any(c.status == psutil.CONN_ESTABLISHED and c.raddr and c.raddr.port in brokers for c in found)


def mode(fleet: Fleet, hub: str) -> dict[str, object]:
    found = fleet.status(hub).get("mode")
    return found if isinstance(found, dict) else {}


@pytest.mark.slow
@pytest.mark.parametrize("path", ["connector", "direct"])
def test_a_polling_hub_has_no_session_between_its_contacts_and_delivers_all(
    tmp_path: Path, unique_name: str, path: str
) -> None:
    """A network that the cloud cannot reach: whatever comes or goes, does so when the hub makes contact."""
    fleet = Fleet(tmp_path, unique_name, hubs=1, environ={**POLLING, "HUBLINE_FAILOVER__START_GRACE_S": "2"})
    roles = ["cloud-broker", "cloud", "site-broker", "connector"] if path == "connector" else ["cloud-broker", "cloud"]
    with heard_from_its_start(fleet, *roles) as listener:
        until("the first contact is made", lambda: fleet.events("pc-1", "contact_made"), timeout_s=90)
        first = fleet.events("pc-1", "path_taken")[0]
        assert first["via"] == ("berlin-1" if path == "connector" else "direct")
        until("it has left", lambda: not has_sessions(fleet, "pc-1"))
        confirmed = fleet.confirmed("pc-1")
        assert confirmed > 0
        written = fleet.status("pc-1")["outbox"]["points_written"]  # type: ignore[index]
        until(
            "it measures on",
            lambda: fleet.status("pc-1")["outbox"]["points_written"] > written + 20,  # type: ignore[index]
        )
        until("it has left again, if a heartbeat was due", lambda: not has_sessions(fleet, "pc-1"))
        assert mode(fleet, "pc-1")["kind"] == "polling"
        until("it says that it waits", lambda: "keeps everything for its next contact" in _told(fleet))
        assert "next poll at" in _told(fleet)
        until("the second contact is made", lambda: len(fleet.events("pc-1", "contact_made")) >= 2, timeout_s=100)
        until("more is stored", lambda: fleet.confirmed("pc-1") > confirmed + 20)
        births = [state for state in listener.seen("state") if state["online"]]
        ends = [state for state in listener.seen("state") if not state["online"]]
        assert [birth.get("reason") for birth in births[:2]] == ["started", None]
        assert {birth["mode"] for birth in births} == {"polling"}
        assert all(birth["host"] and isinstance(birth["addresses"], list) for birth in births)
        assert {end.get("reason") for end in ends} == {"polling"}
        assert [end["session"] for end in ends] == [birth["session"] for birth in births][: len(ends)]
        polls = listener.seen("poll")
        assert polls
        assert {poll["epoch"] for poll in polls} == {births[0]["epoch"]}
        fleet.stop("pc-1")
        (row,) = fleet.audit()
        assert row["missing"] == []
        values = fleet.counted("pc-1")
        assert values == list(range(1, len(values) + 1))


@pytest.mark.parametrize("path", ["connector", "direct"])
def test_a_roaming_hub_keeps_its_log_lines_until_it_roams_no_more(tmp_path: Path, unique_name: str, path: str) -> None:
    """In the middle of a presentation nothing but readings is sent; afterwards nothing is missing."""
    environ = {"HUBLINE_PRIVILEGES__ROAM": "true", "HUBLINE_LOGS__LEVEL": '"info"'}
    environ |= {"HUBLINE_FAILOVER__OUTAGE_S": "2", "HUBLINE_FAILOVER__START_GRACE_S": "2"}
    fleet = Fleet(tmp_path, unique_name, hubs=1, environ=environ)
    with heard_from_its_start(fleet, "cloud-broker", "cloud", "site-broker", "connector") as listener:
        fleet.wait_until_flowing()
        if path == "direct":
            fleet.kill("connector", "site-broker")
            until("it has gone to the cloud", lambda: fleet.path("pc-1") == "direct")
            fleet.wait_until_flowing()
        until("its log lines come", lambda: listener.seen("up/logs"))
        settings = str(fleet.settings("pc-1"))
        assert "roams from now on" in fleet.hubline("hub", "roam", "on", "-c", settings).stdout
        until("the birth says so", lambda: listener.seen("state")[-1].get("mode") == "roaming")
        born = listener.seen("state")[-1]
        assert (born["online"], born["session"]) == (True, fleet.status("pc-1")["session"])
        until("the report says so", lambda: _last_mode(listener) == "roaming")
        waiting = fleet.bundle("hub", "pc-1") / "data" / "logs.jsonl"
        until("its lines wait", lambda: waiting.exists() and b"roaming_entered" in waiting.read_bytes())
        fleet.stop("pc-1")
        fleet.start("pc-1")
        fleet.wait_until_flowing()
        until("it roams after a restart, too", lambda: mode(fleet, "pc-1").get("kind") == "roaming")
        until("the lines of the start wait, too", lambda: waiting.read_bytes().count(b"hub_started") >= 1)
        assert b"hub_started" not in _logged_after(listener, b"roaming_entered")
        assert "does not roam from now on" in fleet.hubline("hub", "roam", "off", "-c", settings).stdout
        until("what waited is sent", lambda: _sent(listener, "roaming_entered") and _sent(listener, "roaming_left"))
        until("nothing waits any more", lambda: not waiting.exists())
        bodies = {envelope["seq"]: envelope["body"] for envelope in listener.seen("up/logs")}
        lines = [(body["boot"], record["n"]) for body in bodies.values() for record in body["records"]]  # type: ignore[index]
        assert len(lines) == len(set(lines))
        until("the report says so", lambda: _last_mode(listener) == "continuous")
        fleet.assert_nothing_lost_or_doubled()


def _last_mode(listener: Listener) -> object:
    return (listener.seen("up/reported") or [{}])[-1].get("body", {}).get("mode")  # type: ignore[union-attr]


def _sent(listener: Listener, event: str) -> bool:
    bodies = [envelope["body"] for envelope in listener.seen("up/logs")]
    return any(record["event"] == event for body in bodies for record in body["records"])  # type: ignore[index]


def _logged_after(listener: Listener, event: bytes) -> bytes:
    """Return what was sent of the hub's log since an event, as bytes."""
    return orjson.dumps(listener.seen("up/logs")).partition(event)[2]


def test_roaming_needs_the_privilege(tmp_path: Path, unique_name: str) -> None:
    fleet = Fleet(tmp_path, unique_name, hubs=1)
    done = fleet.hubline("hub", "roam", "on", "-c", str(fleet.settings("pc-1")), check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "privileges.roam" in done.stderr


def test_two_machines_with_one_identity_do_not_end_each_others_sessions(tmp_path: Path, unique_name: str) -> None:
    """A cloned disk, say: each is heard, both are told apart by their epochs, and neither fights."""
    with running_fleet(tmp_path, unique_name, hubs=1) as fleet, listening(fleet) as listener:
        bundle = fleet.bundle("hub", "pc-1")
        clone = bundle.with_name("clone")
        shutil.copytree(bundle, clone, ignore=shutil.ignore_patterns("data"))
        fleet.roles["clone"] = ("hub", "clone", {})
        fleet.start("clone")
        until("the clone has a path", lambda: fleet.path("clone") == "connector")
        until("the clone's readings are stored", lambda: fleet.confirmed("clone") > 50)
        before = fleet.confirmed("pc-1")
        until("the original's are", lambda: fleet.confirmed("pc-1") > before + 50)
        epochs = {fleet.status(name)["epoch"] for name in ("pc-1", "clone")}
        assert len(epochs) == 2
        assert not fleet.events("pc-1", "path_lost")
        assert not fleet.events("clone", "path_lost")
        births = [state for state in listener.seen("state") if state["online"]]
        assert {birth["epoch"] for birth in births} <= epochs
        assert len(births) <= 3, "each is born once"
        fleet.stop("pc-1", "clone")
        rows = {row["epoch"]: row for row in fleet.audit()}
        assert epochs <= rows.keys()
        assert all(row["missing"] == [] for row in rows.values())


# --- What the cloud says ---------------------------------------------------------------------------------------------


def tell(fleet: Fleet, kind: str, message: Struct) -> None:
    """Say something to the hub in the cloud's name; like everything that goes down, it may come twice."""

    async def story() -> None:
        bundle = fleet.bundle("cloud", "cloud")
        tls = client_context(identity_of(bundle, fleet.fleet, "-"), server_name(fleet.fleet, "-"))
        session, ears = opened(f"127.0.0.1:{fleet.cloud_port}", tls, client_id="cloud.test")
        await ears.hear(is_a(Opened))
        for _ in range(2):
            session.publish(str(Topic.down(fleet.fleet, "berlin", "pc-1", kind)), encode(message))
        await session.close()

    asyncio.run(story())


def _told(fleet: Fleet) -> str:
    return fleet.hubline("hub", "status", "-c", str(fleet.settings("pc-1"))).stdout


def _states(listener: Listener, task_id: str) -> set[object]:
    bodies = [envelope["body"] for envelope in listener.seen("up/results")]
    return {report["state"] for body in bodies for report in body["results"] if report["task"] == task_id}  # type: ignore[index]


def _settings(listener: Listener) -> tuple[object, object]:
    bodies = [envelope["body"] for envelope in listener.seen("up/reported")]
    told = bodies[-1].get("settings") if bodies else None  # type: ignore[attr-defined]
    return (told["version"], told["state"]) if told else (None, None)


def test_tasks_settings_and_a_restart_from_the_cloud_lose_nothing(tmp_path: Path, unique_name: str) -> None:
    """The hub begins anew in its own process: session numbers go on, and so do the readings."""
    with running_fleet(tmp_path, unique_name, hubs=1) as fleet, listening(fleet) as listener:
        process, session = fleet.status("pc-1")["pid"], fleet.status("pc-1")["session"]
        now_ms = unix_ms()
        tell(fleet, "task", Task("0" * 15 + "1", now_ms, "sample-now", {}, now_ms + 60_000))
        until("the task is done", lambda: "done" in _states(listener, "0" * 15 + "1"))
        tell(fleet, "task", Task("0" * 15 + "2", now_ms, "restart-hub", {}, now_ms + 60_000))
        until("it has begun anew", lambda: "done" in _states(listener, "0" * 15 + "2"))
        until("its session is a later one", lambda: fleet.status("pc-1")["session"] > session)  # type: ignore[operator]
        fleet.hubline(
            "fleet", "settings", "set", "hub/berlin/pc-1", "hub.machine=laptop", "failover.outage_s=100", "--yes"
        )
        until("they are applied", lambda: _settings(listener) == (1, "applied"))
        assert listener.seen("up/reported")[-1]["body"]["machine"] == "laptop"  # type: ignore[index]
        assert fleet.status("pc-1")["pid"] == process
        births = [state for state in listener.seen("state") if state["online"]]
        assert [birth["session"] for birth in births] == sorted({birth["session"] for birth in births})  # type: ignore[type-var]
        until("the status says so", lambda: "version 1 from the cloud, applied" in _told(fleet))
        fleet.wait_until_flowing()
        fleet.assert_nothing_lost_or_doubled()
