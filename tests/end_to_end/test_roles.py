"""Each role as its operator meets it: it stops cleanly, listens to nobody it shouldn't, and says what is wrong in a line."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import orjson
import psutil
import pytest

from config import limits
from tests.end_to_end.conftest import NEEDS_MOSQUITTO
from tests.fleet import HUBLINE, Fleet, running_fleet, until
from tests.nats import needs_nats
from tests.network import requires_root


@pytest.fixture
def fleet(tmp_path: Path, unique_name: str, bridge: str) -> Iterator[Fleet]:
    with running_fleet(tmp_path, unique_name, hubs=1, bridge=bridge) as this:
        yield this


def test_a_hub_opens_no_listening_socket(fleet: Fleet) -> None:
    """One direction only: hub to broker."""
    hub = psutil.Process(fleet.running["pc-1"].pid)
    assert [c for c in hub.net_connections("inet") if c.status == psutil.CONN_LISTEN] == []
    assert [c for c in hub.net_connections("inet") if c.status == psutil.CONN_ESTABLISHED] != []
    until("its search is over", lambda: not hub.net_connections("udp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_every_role_stops_cleanly_and_in_time(fleet: Fleet, number: int) -> None:
    """Service managers kill what needs longer; a clean DISCONNECT keeps the last will from being sent."""
    watcher = subprocess.Popen(
        [
            *HUBLINE,
            "tail",
            "-c",
            str(fleet.bundle("reader", "viewer") / "reader.toml"),
            f"hl1/{fleet.fleet}/+/+/+/state",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=fleet.environ,
        text=True,
    )
    assert watcher.stdout is not None
    try:
        while "online" not in watcher.stdout.readline():
            pass
        for name in ("pc-1", "connector", "site-broker", "cloud"):
            process = fleet.running.pop(name)
            process.send_signal(number)
            assert process.wait(limits.STOP_TIMEOUT_S) == 0, name
        states = [orjson.loads(line[line.index("{") :]) for line in (watcher.stdout.readline() for _ in range(2))]
        while not any(state.get("reason") == "stopped" and "upstream" not in state for state in states):
            states.append(orjson.loads((line := watcher.stdout.readline())[line.index("{") :]))
        assert all(state["online"] or state.get("reason") == "stopped" for state in states)
    finally:
        watcher.terminate()
        watcher.communicate(timeout=20)
    process = fleet.running.pop("cloud-broker")
    process.send_signal(number)
    assert process.wait(limits.STOP_TIMEOUT_S) == 0
    assert fleet.events("pc-1", "hub_stopped")[-1]["pending"] == 0


def test_a_locked_database_stops_acknowledgements_and_loses_nothing(fleet: Fleet) -> None:
    lock = sqlite3.connect(fleet.bundle("cloud", "cloud") / "cloud.db", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    until("the cloud notices", lambda: fleet.status("cloud")["storage"] != "ok")
    until("messages wait", lambda: (fleet.pending("pc-1") or 0) > 10)
    lock.execute("ROLLBACK")
    lock.close()
    until("the cloud recovers", lambda: fleet.status("cloud")["storage"] == "ok")
    fleet.wait_until_flowing()
    fleet.assert_nothing_lost_or_doubled()


@requires_root
def test_a_full_disk_at_the_hub_is_told_as_a_gap_and_mends_itself(
    tmp_path: Path, unique_name: str, bridge: str
) -> None:
    """By the real process on a real full disk, and with everything away: the worst moment."""
    fast = {"HUBLINE_SENSORS__COUNTER__RATE_HZ": "1000"}
    fleet = Fleet(tmp_path, unique_name, hubs=1, environ=fast, bridge=bridge)
    data = fleet.bundle("hub", "pc-1") / "data"
    data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(data)], check=True)
    try:
        fleet.start("pc-1")
        until("the disk is full", lambda: fleet.events("pc-1", "outbox_refused"))
        assert fleet.running["pc-1"].poll() is None
        fleet.start("cloud-broker", "cloud", "site-broker", "connector")
        until("what is on the disk is sent, and makes room", lambda: fleet.events("pc-1", "outbox_recovered"))
        until("data flows", lambda: [row for row in fleet.audit() if row["points"]])
        fleet.stop("pc-1")
        (row,) = fleet.audit()
        gaps = row["gaps"]
        assert isinstance(gaps, list)
        assert row["missing"] == []
        outbox = orjson.loads((data / "status.json").read_bytes())["outbox"]
        stored, waiting, lost = row["points"], outbox["points"], outbox["points_lost"]
        assert isinstance(stored, int)
        assert stored + waiting + lost == outbox["points_written"]
    finally:
        fleet.close()
        subprocess.run(["umount", str(data)], check=True)


def test_a_damaged_outbox_is_set_aside_and_told_of(fleet: Fleet) -> None:
    fleet.kill("pc-1")
    data = fleet.bundle("hub", "pc-1") / "data"
    epoch = fleet.status("pc-1")["epoch"]
    (data / "outbox.db").write_bytes(b"garbage" * 10_000)
    fleet.start("pc-1")
    until("a new epoch is begun", lambda: fleet.status("pc-1")["epoch"] != epoch)
    fleet.wait_until_flowing()
    assert list(data.glob("outbox.db.damaged-*"))
    assert fleet.events("pc-1", "outbox_damaged")
    epochs = {row["epoch"] for row in fleet.audit() if row["hub"] == "pc-1"}
    assert {epoch, fleet.status("pc-1")["epoch"]} <= epochs


def test_a_database_that_is_removed_gets_no_acknowledgement(fleet: Fleet) -> None:
    """What is committed into a file without a name is gone with the process: nothing may be acknowledged for it."""

    def is_whole() -> bool:
        values = fleet.counted("pc-1")
        return values == list(range(values[0], values[0] + len(values)))

    until("what the cloud's start left behind has come, too", lambda: is_whole() and fleet.counted("pc-1")[0] == 1)
    folder = fleet.bundle("cloud", "cloud")
    for file in folder.glob("cloud.db*"):
        file.unlink()
    until("the cloud notices", lambda: fleet.events("cloud", "storage_failed"))
    until("it begins another", lambda: fleet.events("cloud", "storage_recovered"))
    fleet.wait_until_flowing()
    until("from then on nothing is missing", is_whole)


def test_an_outbox_that_is_removed_is_begun_anew(fleet: Fleet) -> None:
    data = fleet.bundle("hub", "pc-1") / "data"
    epoch = fleet.status("pc-1")["epoch"]
    for name in ("outbox.db", "outbox.db-wal", "outbox.db-shm"):
        (data / name).unlink(missing_ok=True)
    until("a new epoch is begun", lambda: fleet.status("pc-1").get("epoch") not in (None, epoch))
    fleet.wait_until_flowing()
    assert fleet.running["pc-1"].poll() is None


def test_status_knows_a_running_hub_that_tells_nothing(fleet: Fleet) -> None:
    data = fleet.bundle("hub", "pc-1") / "data"
    fleet.running["pc-1"].send_signal(signal.SIGSTOP)
    until("it is seen to be silent", lambda: "has told nothing since" in _told(fleet))
    (data / "status.json").unlink()
    assert f"process {fleet.running['pc-1'].pid}" in _told(fleet)
    fleet.running["pc-1"].send_signal(signal.SIGCONT)
    until("it tells again", lambda: "sends through connector" in _told(fleet))


def _told(fleet: Fleet) -> str:
    done = fleet.hubline("hub", "status", "-c", str(fleet.settings("pc-1")), check=False)
    return done.stdout + done.stderr


def test_a_reader_who_asks_for_more_than_he_may_read_is_told_so(fleet: Fleet) -> None:
    done = fleet.hubline("tail", "-c", str(fleet.bundle("reader", "viewer") / "reader.toml"), "#", check=False)
    assert done.returncode == 1
    assert f"may read hl1/{fleet.fleet}/# only" in done.stderr


def test_a_second_hub_on_the_same_outbox_is_refused_in_one_line(fleet: Fleet) -> None:
    done = fleet.hubline("hub", "run", "-c", str(fleet.settings("pc-1")), check=False)
    assert done.returncode == 1
    assert str(fleet.running["pc-1"].pid) in done.stderr
    assert "Traceback" not in done.stderr


def test_status_tells_a_person_and_a_script_how_the_hub_is(fleet: Fleet) -> None:
    told = fleet.hubline("hub", "status", "-c", str(fleet.settings("pc-1"))).stdout
    assert "sends through connector berlin-1" in told
    assert "berlin-1 says that its way to the cloud is open" in told
    assert "other path" in told
    status = orjson.loads(fleet.hubline("hub", "status", "-c", str(fleet.settings("pc-1")), "--json").stdout)
    assert status["path"]["kind"] == "connector"
    assert status["path"]["connector"] == "berlin-1"
    assert {"hub", "site", "path", "epoch", "session", "outbox"} <= status.keys()
    assert {"pending", "last_seq", "bytes", "oldest", "gaps"} <= status["outbox"].keys()
    fleet.kill("pc-1")
    until(
        "it is seen to be gone",
        lambda: fleet.hubline("hub", "status", "-c", str(fleet.settings("pc-1")), check=False).returncode == 1,
    )


def test_a_restarted_hub_needs_no_search(fleet: Fleet) -> None:
    """What worked is remembered."""
    fleet.stop("pc-1")
    fleet.roles["pc-1"] = ("hub", "pc-1", {"HUBLINE_CONNECTOR__DISCOVERY": "false"})
    fleet.start("pc-1")
    fleet.wait_until_flowing()
    assert fleet.path("pc-1") == "connector"


@pytest.mark.parametrize("bridge", ["own"], indirect=True)  # An engine says it in its own words.
def test_two_roles_on_one_port_give_one_line(fleet: Fleet) -> None:
    environ = fleet.roles["site-broker"][2]
    done = subprocess.run(
        [*HUBLINE, "broker", "run", "-c", str(fleet.settings("site-broker"))],
        env={**fleet.environ, **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert str(fleet.site_port) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "engines",
    [
        pytest.param((), id="embedded"),
        pytest.param(("--engine", "mosquitto"), id="mosquitto", marks=[NEEDS_MOSQUITTO, pytest.mark.soak]),
        pytest.param(
            ("--engine", "nats", "--database", "postgresql"),
            id="nats and postgresql",
            marks=[needs_nats, pytest.mark.soak],
        ),
    ],
)
def test_the_demo_ends_by_itself_with_a_clean_audit(engines: tuple[str, ...]) -> None:
    done = subprocess.run(
        [*HUBLINE, "demo", "--seconds", "8" if not engines else "30", "--hubs", "2", *engines],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 lost, 0 doubled" in done.stdout
    assert done.stdout.count("through berlin-1") >= 2


def test_the_demo_leaves_nothing_behind_however_often_it_is_interrupted(tmp_path: Path) -> None:
    """A person who has no patience presses Ctrl-C again, while roles are being stopped."""
    ours = tmp_path / "demo"
    command = [*HUBLINE, "demo", "--hubs", "1", "--dir", str(ours)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        until("the hub is started", (ours / "logs" / "hub-1.log").exists)
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
    finally:
        process.kill()
    said = process.communicate()[0]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    until("no process of it is left", lambda: not any(str(ours) in command for command in commands()))


def commands() -> list[str]:
    """Return the command lines of all that runs."""
    return [str(each.info["cmdline"]) for each in psutil.process_iter(["cmdline"])]
