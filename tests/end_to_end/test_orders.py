"""What the cloud asks of hubs, with real processes: tasks and settings come to an end, once, on whichever path.

All tests share one fleet, in which each leaves things as it found them; at the end nothing was lost, nothing doubled.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any

import orjson
import pytest

from tests.fleet import QUICK, Fleet, until

CONNECTOR = "berlin-1"
ENDED = ("done", "failed", "refused", "expired", "cancelled")
TRIAL_S = 15.0
UNREACHED = f"the cloud could not be reached with them for {TRIAL_S:g} s, over each path that they change"
HELD = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
with (folder / "runs").open("a") as runs:
    runs.write("begun\\n")
while not (folder / "release").exists():
    time.sleep(0.02)
print("OK - released")
"""
"""A check that runs until it is let go, and leaves a line whenever it is started."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    environ = {**QUICK, "HUBLINE_PRIVILEGES__ROAM": "true", "HUBLINE_REMOTE__TRIAL_S": f"{TRIAL_S:g}"}
    this = Fleet(tmp_path_factory.mktemp("orders"), f"t{token_hex(4)}", hubs=3, environ=environ)
    for hub in this.hubs:
        _give_checks(this, hub)
    this.roles["pc-2"][2]["HUBLINE_TASKS__ALLOW"] = '["ping", "run-check"]'
    this.add_hub("meter", {"HUBLINE_SENSORS__UPTIME__ENABLED": "true"})
    try:
        this.start()
        this.wait_until_flowing()
        yield this
        this.wait_until_flowing()
        this.assert_nothing_lost_or_doubled()
    finally:
        for hub in this.hubs:
            release(this, hub)
        this.close()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """Let a test leave to the next one what it has started: the fleet is ended with its fixture, and the run looks that it is."""


@pytest.fixture(autouse=True)
def calm(fleet: Fleet) -> None:
    """Begin with all well, whatever has become of the test before."""
    for name in fleet.roles:
        if name not in fleet.running:
            fleet.start(name)
    wait_for_path(fleet, CONNECTOR)


# --- The stage -------------------------------------------------------------------------------------------------------


def _give_checks(fleet: Fleet, hub: str) -> None:
    """Write into the hub's own file what it may run: nobody else can say so."""
    checks = {
        "fine": ["-c", "print('OK - all well | load=1')"],
        "bad": ["-c", "print('CRITICAL - disk is full'); raise SystemExit(2)"],
        "count": ["-c", "import sys; open(sys.argv[1], 'a').write('begun\\n')", str(_folder(fleet, hub) / "counted")],
        "held": ["-c", HELD, str(_folder(fleet, hub))],
    }
    with fleet.settings(hub).open("a") as file:
        for name, arguments in checks.items():
            file.write(f"\n[checks.{name}]\ncommand = {orjson.dumps([sys.executable, *arguments]).decode()}\n")


def _folder(fleet: Fleet, hub: str) -> Path:
    return fleet.bundle("hub", hub)


def begun(fleet: Fleet, hub: str, file: str = "runs") -> int:
    """Return how often a check of a hub was ever started."""
    path = _folder(fleet, hub) / file
    return path.read_text().count("begun") if path.exists() else 0


def hold(fleet: Fleet, hub: str) -> None:
    (_folder(fleet, hub) / "release").unlink(missing_ok=True)


def release(fleet: Fleet, hub: str) -> None:
    (_folder(fleet, hub) / "release").touch()


def wait_for_path(fleet: Fleet, via: str) -> None:
    for hub in fleet.hubs:
        until(f"{hub} is online via {via}", lambda hub=hub: fleet.is_online(hub, via))  # type: ignore[misc]


# --- Tasks -----------------------------------------------------------------------------------------------------------


def order(fleet: Fleet, action: str, hub: str, *arguments: str) -> str:
    """Order a task for one hub and return its id."""
    made = fleet.hubline("fleet", "task", action, "--hub", hub, "--json", *arguments)
    task: str = orjson.loads(made.stdout)["task"]
    return task


def standing(fleet: Fleet, task: str) -> dict[str, Any]:
    (target,) = fleet.ask(f"/tasks/{task}")["targets"]["items"]
    return dict(target)


def end_of(fleet: Fleet, task: str) -> dict[str, Any]:
    """Wait for the end of a task for one hub and return how it stands then."""
    until(f"task {task} ends", lambda: standing(fleet, task)["state"] in ENDED)
    return standing(fleet, task)


def wait_for_state(fleet: Fleet, task: str, state: str) -> None:
    until(f"task {task} is {state}", lambda: standing(fleet, task)["state"] == state)


@pytest.mark.parametrize("path", [CONNECTOR, "direct"])
def test_every_action_ends_the_same_on_either_path(fleet: Fleet, path: str) -> None:
    """An administrator need not know by which path a hub is reached."""
    if path == "direct":
        fleet.kill("connector")
        wait_for_path(fleet, path)
    until("it has reported once", lambda: fleet.ask("/hubs/berlin/pc-1")["reported"])
    reported = fleet.ask("/hubs/berlin/pc-1")["reported"]["received"]
    ordered = {
        name: order(fleet, action, hub, *(f"--arg={argument}" for argument in arguments))
        for name, action, hub, *arguments in (
            ("ping", "ping", "pc-1"),
            ("sample", "sample-now", "meter"),
            ("report", "report-now", "pc-1"),
            ("logs", "collect-logs", "pc-1", "limit=3"),
            ("fine", "run-check", "pc-1", "name=fine"),
            ("bad", "run-check", "pc-1", "name=bad"),
            ("no check", "run-check", "pc-1", "name=rm"),
            ("no update", "update-now", "pc-1"),
            ("not allowed", "sample-now", "pc-2"),
        )
    }
    ends = {name: end_of(fleet, task) for name, task in ordered.items()}
    assert {name: end["state"] for name, end in ends.items()} == {
        **dict.fromkeys(("ping", "sample", "report", "logs", "fine", "bad"), "done"),
        **dict.fromkeys(("no check", "no update", "not allowed"), "refused"),
    }
    assert ends["ping"]["output"]["pid"] == fleet.running["pc-1"].pid
    assert ends["sample"]["output"]["values"]["uptime.hub"] > 0
    assert len(ends["logs"]["output"]["records"]) == 3
    fine, bad = ends["fine"]["output"], ends["bad"]["output"]
    assert (fine["state"], fine["exit_code"], fine["message"], fine["perfdata"]) == ("ok", 0, "OK - all well", "load=1")
    assert (bad["state"], bad["exit_code"], ends["bad"]["message"]) == ("error", 2, "CRITICAL - disk is full")
    assert ends["no check"]["message"].startswith("there is no [checks.rm] in this machine's hub.toml; there is bad,")
    assert ends["no update"]["message"] == "updates are not set up on this hub"
    assert ends["not allowed"]["message"].startswith('not allowed here: add "sample-now" to tasks.allow')
    until("it has reported", lambda: fleet.ask("/hubs/berlin/pc-1")["reported"]["received"] > reported)
    assert fleet.presence("pc-1")["via"] == path
    _restart_from_afar(fleet, path)


def _restart_from_afar(fleet: Fleet, path: str) -> None:
    starts, process = len(fleet.events("pc-1", "hub_started")), fleet.running["pc-1"].pid
    done = fleet.hubline("fleet", "task", "restart-hub", "--hub", "pc-1", "--wait", "--json")
    (target,) = orjson.loads(done.stdout)["targets"]
    assert (target["state"], target["hub"]) == ("done", "pc-1")
    assert len(fleet.events("pc-1", "hub_started")) == starts + 1
    until("it is back where it was", lambda: fleet.is_online("pc-1", path))
    assert (fleet.status("pc-1")["pid"], fleet.running["pc-1"].poll()) == (process, None)
    assert len(fleet.events("pc-1", "hub_started")) == starts + 1, "once"


def test_tasks_ordered_while_the_path_changes_are_done_once(fleet: Fleet) -> None:
    """One runs while the connector dies; others are ordered just before, in the outage, and on the way back."""
    hold(fleet, "pc-1")
    runs, counted = begun(fleet, "pc-1"), begun(fleet, "pc-1", "counted")
    long = order(fleet, "run-check", "pc-1", "--arg=name=held")
    until("it runs", lambda: begun(fleet, "pc-1") == runs + 1)
    tasks = [order(fleet, "run-check", "pc-1", "--arg=name=count")]
    fleet.kill("connector")
    until("the path is down", lambda: fleet.presence("pc-1")["connection"] == "path-down")
    tasks.append(order(fleet, "run-check", "pc-1", "--arg=name=count"))
    assert standing(fleet, tasks[-1])["state"] == "queued"
    assert [end_of(fleet, task)["state"] for task in tasks] == ["done", "done"]
    assert fleet.path("pc-1") == "direct"
    release(fleet, "pc-1")
    assert end_of(fleet, long)["output"]["message"] == "OK - released"
    fleet.start("connector")
    while fleet.path("pc-1") != "connector":
        tasks.append(order(fleet, "run-check", "pc-1", "--arg=name=count"))
    tasks.append(order(fleet, "run-check", "pc-1", "--arg=name=count"))
    assert {end_of(fleet, task)["state"] for task in tasks} == {"done"}
    assert begun(fleet, "pc-1", "counted") - counted == len(tasks)
    assert begun(fleet, "pc-1") - runs == 1


def test_a_task_for_a_hub_that_is_away_waits_expires_or_is_cancelled(fleet: Fleet) -> None:
    """Whoever orders something on Friday finds on Monday what has become of it."""
    fleet.stop("pc-2")
    until("it is known to be away", lambda: fleet.presence("pc-2")["reason"] == "stopped cleanly")
    waiting = order(fleet, "ping", "pc-2")
    short = order(fleet, "ping", "pc-2", "--expires", "2s")
    unwanted = order(fleet, "run-check", "pc-2", "--arg=name=count")
    skipped = end_of(fleet, order(fleet, "ping", "pc-2", "--skip-if-offline"))
    assert (skipped["state"], skipped["message"]) == ("refused", "skipped: offline")
    expired = end_of(fleet, short)
    assert expired["state"] == "expired"
    assert expired["message"] == "its deadline came before the hub could be reached"
    fleet.hubline("fleet", "tasks", unwanted, "--cancel")
    cancelled = standing(fleet, unwanted)
    assert (cancelled["state"], cancelled["message"]) == ("cancelled", "before it was sent")
    assert standing(fleet, waiting)["state"] == "queued"
    counted = begun(fleet, "pc-2", "counted")
    fleet.start("pc-2")
    assert end_of(fleet, waiting)["state"] == "done"
    assert begun(fleet, "pc-2", "counted") == counted
    assert [standing(fleet, task)["state"] for task in (short, unwanted)] == ["expired", "cancelled"]


def test_a_running_task_is_cancelled(fleet: Fleet) -> None:
    hold(fleet, "pc-2")
    runs = begun(fleet, "pc-2")
    task = order(fleet, "run-check", "pc-2", "--arg=name=held")
    until("it runs", lambda: begun(fleet, "pc-2") == runs + 1)
    wait_for_state(fleet, task, "running")
    fleet.hubline("fleet", "tasks", task, "--cancel")
    ended = end_of(fleet, task)
    assert (ended["state"], ended["message"]) == ("cancelled", "it was stopped")
    release(fleet, "pc-2")


def test_a_hub_that_is_killed_in_the_middle_says_so_and_does_not_begin_again(fleet: Fleet) -> None:
    """Whether it was half done nobody knows: a person decides whether to order it once more."""
    hold(fleet, "pc-2")
    runs = begun(fleet, "pc-2")
    task = order(fleet, "run-check", "pc-2", "--arg=name=held")
    until("it runs", lambda: begun(fleet, "pc-2") == runs + 1)
    wait_for_state(fleet, task, "running")
    fleet.kill("pc-2")
    fleet.start("pc-2")
    ended = end_of(fleet, task)
    assert (ended["state"], ended["message"]) == ("failed", "the hub was restarted while it ran")
    release(fleet, "pc-2")
    assert end_of(fleet, order(fleet, "ping", "pc-2"))["state"] == "done"
    assert begun(fleet, "pc-2") == runs + 1


def test_a_task_for_a_roaming_hub_waits_until_it_roams_no_more(fleet: Fleet) -> None:
    """Nothing happens in the middle of a presentation, and nothing is forgotten."""
    roam(fleet, "pc-3", "on")
    task = order(fleet, "ping", "pc-3")
    fleet.wait_until_flowing()
    assert standing(fleet, task)["state"] == "queued"
    roam(fleet, "pc-3", "off")
    assert end_of(fleet, task)["state"] == "done"


def roam(fleet: Fleet, hub: str, word: str) -> None:
    """Let the person at a machine say that it roams from now on, or no more."""
    fleet.hubline("hub", "roam", word, "-c", str(fleet.settings(hub)))
    connection = "roaming" if word == "on" else "online"
    until(f"it is known to be {connection}", lambda: fleet.presence(hub)["connection"] == connection)


# --- Settings --------------------------------------------------------------------------------------------------------


def put(fleet: Fleet, where: str, *changes: str) -> None:
    fleet.hubline("fleet", "settings", "set", where, *changes, "--yes")


def settings_of(fleet: Fleet, hub: str) -> dict[str, Any]:
    """Return how the settings of a hub stand, nothing if there were never any."""
    return fleet.ask(f"/hubs/berlin/{hub}/settings")["state"] or {}


def version_of(fleet: Fleet, hub: str) -> int:
    return int(settings_of(fleet, hub).get("desired_version", 0))


def wait_until_in_force(fleet: Fleet, hub: str, version: int) -> None:
    def found() -> bool:
        state = settings_of(fleet, hub)
        same = state["reported_version"] == state["desired_version"] >= version
        return bool(state["state"] == "in force" and same)

    until(f"{hub} has its settings", found)


def test_what_is_set_for_fleet_site_group_and_hub_is_inherited_and_applied(fleet: Fleet) -> None:
    """The nearer one wins, key by key; the hub says what it works with."""
    before = {hub: version_of(fleet, hub) for hub in fleet.hubs}
    fleet.hubline("fleet", "group", "add", "tills", "pc-2", "pc-3")
    put(fleet, "fleet", "hub.machine=workstation", "mode.poll_min=40")
    put(fleet, "site/berlin", "mode.poll_min=50")
    put(fleet, "group/tills", "mode.poll_min=60", "protection.source=settings")
    put(fleet, "hub/berlin/pc-3", "mode.poll_min=70")
    expected = {"pc-1": (50, "site/berlin"), "pc-2": (60, "group/tills"), "pc-3": (70, "hub/berlin/pc-3")}
    for hub, (minutes, origin) in expected.items():
        wait_until_in_force(fleet, hub, before[hub] + 1)
        shown = orjson.loads(fleet.hubline("fleet", "settings", "show", hub, "--json").stdout)
        effective = {entry["key"]: (entry["value"], entry["origin"]) for entry in shown["effective"]}
        assert effective["mode.poll_min"] == (minutes, origin)
        assert effective["hub.machine"] == ("workstation", "fleet")
        reported = fleet.ask(f"/hubs/berlin/{hub}")["reported"]["body"]
        assert reported["machine"] == "workstation"
        assert reported["settings"]["state"] == "applied"
        assert ("protection" in reported) == (hub != "pc-1")
        told = fleet.hubline("hub", "status", "-c", str(fleet.settings(hub))).stdout
        assert f"version {shown['state']['desired_version']} from the cloud" in told
    fleet.hubline("fleet", "group", "remove", "tills", "pc-2", "pc-3")
    put(fleet, "fleet", "--unset", "hub.machine", "--unset", "mode.poll_min")
    for hub in fleet.hubs:
        wait_until_in_force(fleet, hub, before[hub] + 2)
    until("it is as before", lambda: fleet.ask("/hubs/berlin/pc-1")["reported"]["body"].get("machine") is None)
    until("what its group said is gone", lambda: "protection" not in fleet.ask("/hubs/berlin/pc-2")["reported"]["body"])


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("mode.poll_min=0", "mode.poll_min", "0"),
        ("failover.outage_s=soon", "failover.outage_s", "soon"),
        ("mode.pol_min=5", "mode.pol_min", "poll_min"),
        ('cloud.endpoints=["nowhere"]', "cloud.endpoints", "nowhere"),
        ('tasks.allow=["run-check"]', "tasks", "can only be set in the hub's own file"),
    ],
)
def test_wrong_settings_are_refused_before_they_are_sent(fleet: Fleet, change: str, key: str, value: str) -> None:
    """One line that names key and value; no hub hears of it."""
    before = [version_of(fleet, hub) for hub in fleet.hubs]
    done = fleet.hubline("fleet", "settings", "set", "fleet", change, "--yes", check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert key in done.stderr
    assert value in done.stderr
    assert [version_of(fleet, hub) for hub in fleet.hubs] == before


def test_settings_that_cut_the_hub_off_are_rolled_back_and_said_to_be(fleet: Fleet) -> None:
    """At a site whose connector is dead, a wrong address of the cloud: nobody has to drive there."""
    fleet.kill("connector")
    wait_for_path(fleet, "direct")
    put(fleet, "hub/berlin/pc-3", "failback.stable_s=7")
    good = version_of(fleet, "pc-3")
    wait_until_in_force(fleet, "pc-3", good)
    taken_back = len(fleet.events("pc-3", "settings_from_cloud_taken_back"))
    wrong = ("connector.discovery=false", 'connector.endpoints=["127.0.0.1:1"]', 'cloud.endpoints=["127.0.0.1:1"]')
    put(fleet, "hub/berlin/pc-3", *wrong)
    until("it has no path", lambda: fleet.path("pc-3") == "none")
    until("they are taken back", lambda: settings_of(fleet, "pc-3")["state"] == "rolled-back")
    state = settings_of(fleet, "pc-3")
    assert state["reported_version"] == state["desired_version"] == good + 1
    assert state["reported_reason"] == UNREACHED
    until("it is back", lambda: fleet.is_online("pc-3", "direct"))
    told = fleet.hubline("hub", "status", "-c", str(fleet.settings("pc-3"))).stdout
    assert f"version {good + 1} from the cloud, rolled-back" in told
    fleet.wait_until_flowing()
    assert settings_of(fleet, "pc-3")["state"] == "rolled-back", "they are not tried again and again"
    assert len(fleet.events("pc-3", "settings_from_cloud_taken_back")) == taken_back + 1
    put(fleet, "hub/berlin/pc-3", *(f"--unset={key.partition('=')[0]}" for key in wrong))
    wait_until_in_force(fleet, "pc-3", good + 2)
    fleet.start("connector")


def test_settings_for_a_roaming_hub_wait_until_it_roams_no_more(fleet: Fleet) -> None:
    """It begins anew with what it gets: not now."""
    version = version_of(fleet, "pc-3")
    roam(fleet, "pc-3", "on")
    put(fleet, "hub/berlin/pc-3", f"mode.offline_after_min={100 + version}")
    fleet.wait_until_flowing()
    assert settings_of(fleet, "pc-3")["state"] == "waiting"
    tried = [line["version"] for line in fleet.events("pc-3", "settings_from_cloud_tried")]
    assert version + 1 not in tried
    roam(fleet, "pc-3", "off")
    wait_until_in_force(fleet, "pc-3", version + 1)


# --- Logs ------------------------------------------------------------------------------------------------------------


def test_the_log_of_a_hub_can_be_searched_in_the_cloud(fleet: Fleet) -> None:
    """Who wants to know what happened at a machine does not have to go there."""

    def found(text: str) -> list[dict[str, Any]]:
        lines = orjson.loads(fleet.hubline("fleet", "logs", "pc-1", "--grep", text, "--json").stdout)
        assert all(text in line["event"] or text in orjson.dumps(line["fields"]).decode() for line in lines)
        return list(lines)

    until("how it came is there", lambda: [x["fields"]["via"] for x in found("path_taken")][-1:] == [CONNECTOR])
    assert found("no such line") == []
    version = version_of(fleet, "pc-1")
    put(fleet, "hub/berlin/pc-1", "logs.level=info")
    wait_until_in_force(fleet, "pc-1", version + 1)
    task = order(fleet, "ping", "pc-1")
    assert end_of(fleet, task)["state"] == "done"
    second = order(fleet, "ping", "pc-1")
    until("what it did is there, too", lambda: found("task_ended"))
    until("and by whom it was asked", lambda: found(second))
    put(fleet, "hub/berlin/pc-1", "--unset", "logs.level")
    wait_until_in_force(fleet, "pc-1", version + 2)


def test_a_wrong_address_does_not_hide_behind_the_path_that_works(fleet: Fleet) -> None:
    """It would show only on the day when the other path fails: with every hub of the site cut off."""
    wrong = {
        "pc-1": ('cloud.endpoints=["127.0.0.1:1"]',),
        "pc-3": ("connector.discovery=false", 'connector.endpoints=["127.0.0.1:1"]'),
    }
    versions = {}
    for hub, changes in wrong.items():
        put(fleet, f"hub/berlin/{hub}", *changes)
        versions[hub] = version_of(fleet, hub)
    for hub in wrong:
        until(f"{hub} takes them back", lambda hub=hub: settings_of(fleet, hub)["state"] == "rolled-back")  # type: ignore[misc]
        state = settings_of(fleet, hub)
        assert state["reported_version"] == versions[hub]
        assert state["reported_reason"] == UNREACHED
    wait_for_path(fleet, CONNECTOR)
    put(fleet, "hub/berlin/pc-1", f'cloud.endpoints=["localhost:{fleet.cloud_port}"]')
    wait_until_in_force(fleet, "pc-1", version_of(fleet, "pc-1"))
    assert fleet.is_online("pc-1", CONNECTOR), "it was proven beside the path in use, and nothing has moved for it"
    put(fleet, "hub/berlin/pc-1", "--unset=cloud.endpoints")
    put(fleet, "hub/berlin/pc-3", "--unset=connector.discovery", "--unset=connector.endpoints")
    for hub in wrong:
        wait_until_in_force(fleet, hub, version_of(fleet, hub))
