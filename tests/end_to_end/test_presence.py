"""Presence, with real processes: what becomes of a hub is seen as it happens, with its true reason, by whoever looks.

All tests share one fleet. Each leaves it as it was, or has a hub of its own; at the end nothing was lost, nothing doubled.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

import orjson
import pytest

from broker.client import Opened
from broker.clock import unix_ms
from broker.messages import HubState, encode, encode_envelope
from broker.tls import client_context
from broker.topics import Topic
from config.principal import server_name
from tests.end_to_end.conftest import IN_BOTH
from tests.fleet import QUICK, Fleet, Follower, until
from tests.sessions import identity_of, is_a, opened

GRACE_S = 8.0
HOUR_MS = 3_600_000
POLLING = {
    "HUBLINE_MODE__KIND": '"polling"',
    "HUBLINE_MODE__HEARTBEAT": '"off"',
    "HUBLINE_MODE__POLL_MIN": "1",
    "HUBLINE_MODE__OFFLINE_AFTER_MIN": "3",
}
CONNECTOR = "berlin-1"


@dataclass(frozen=True)
class Scene:
    """A running fleet, `hubline fleet watch` of it, and a task that waits for the poll of the hub "poller"."""

    fleet: Fleet
    watch: Follower
    waiting_task: str

    def of(self, hub: str) -> Story:
        """Begin to listen to what is told of a hub."""
        return Story(self, hub)


class Story:
    """What `hubline fleet watch` has told of one hub since a moment."""

    def __init__(self, scene: Scene, hub: str):
        self._scene, self._hub = scene, hub
        self._from = len(scene.watch.objects())

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [line for line in self._scene.watch.objects()[self._from :] if line["hub"] == f"berlin/{self._hub}"]

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(line["connection"], line["reason"]) for line in self.lines]

    def wait_for(self, connection: str, reason: str, via: str | None = None) -> dict[str, Any]:
        """Wait until this is what was told last, and return the line."""

        def found() -> bool:
            last = self.lines[-1:]
            return any((x["connection"], x["reason"], via or x["via"]) == (connection, reason, x["via"]) for x in last)

        until(f"{self._hub} is {connection}, {reason}, via {via}; it was {self.told}", found)
        return self.lines[-1]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, bridge: str) -> Iterator[Scene]:
    environ = {**QUICK, "HUBLINE_PRESENCE__GRACE_S": f"{GRACE_S:g}", "HUBLINE_PRIVILEGES__ROAM": "true"}
    fleet = Fleet(tmp_path_factory.mktemp("presence"), f"t{token_hex(4)}", hubs=2, environ=environ, bridge=bridge)
    for name in ("twin", "stolen", "spare", "early"):
        fleet.add_hub(name)
    fleet.add_hub("poller", POLLING)
    try:
        fleet.start("cloud-broker", "cloud", "site-broker", "connector", *fleet.hubs, "poller")
        fleet.wait_until_flowing()
        with fleet.following("fleet", "watch", "--json") as watch:
            until("somebody watches", lambda: any("watching" in line for line in watch.lines()))
            until("the poller has left", lambda: fleet.events("poller", "contact_made"))
            ordered = fleet.hubline("fleet", "task", "ping", "--hub", "poller", "--json")
            yield Scene(fleet, watch, orjson.loads(ordered.stdout)["task"])
        fleet.wait_until_flowing()
        fleet.assert_nothing_lost_or_doubled()
    finally:
        fleet.close()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """Let a test leave to the next one what it has started: the fleet is ended with its fixture, and the run looks that it is."""


@pytest.fixture(autouse=True)
def calm(scene: Scene) -> None:
    """Begin with all well, whatever has become of the test before."""
    always = ("cloud-broker", "cloud", "site-broker", "connector", *scene.fleet.hubs)
    for name in always:
        if name not in scene.fleet.running:
            scene.fleet.start(name)
    for hub in scene.fleet.hubs:
        until(f"{hub} is well", lambda hub=hub: scene.fleet.is_online(hub, CONNECTOR))  # type: ignore[misc]


def settings_of(fleet: Fleet, hub: str) -> str:
    return str(fleet.settings(hub))


# --- As it happens ---------------------------------------------------------------------------------------------------


def test_a_killed_hub_has_lost_contact_and_a_stopped_one_was_stopped(scene: Scene) -> None:
    """The first is a reason to drive there, the second is not: a last will against a clean goodbye."""
    fleet, story = scene.fleet, scene.of("pc-1")
    fleet.kill("pc-1")
    killed = story.wait_for("offline", "lost contact")
    fleet.start("pc-1")
    started = story.wait_for("online", "started", CONNECTOR)
    assert fleet.stop("pc-1") == {"pc-1": 0}
    stopped = story.wait_for("offline", "stopped cleanly")
    fleet.start("pc-1")
    story.wait_for("online", "started", CONNECTOR)
    assert story.told == [
        ("offline", "lost contact"),
        ("online", "started"),
        ("offline", "stopped cleanly"),
        ("online", "started"),
    ]
    assert [line["evidence"]["word"] for line in (killed, started, stopped)] == ["will", "birth", "stopped"]
    assert killed["last_seen"] <= killed["since"] <= started["since"] <= stopped["since"]
    assert stopped["evidence"]["session"] == started["evidence"]["session"] > killed["evidence"]["session"]


def test_a_hub_roams_and_comes_back(scene: Scene) -> None:
    """The person at the machine has said so: nobody needs to look why it does nothing."""
    fleet, story = scene.fleet, scene.of("pc-2")
    fleet.hubline("hub", "roam", "on", "-c", settings_of(fleet, "pc-2"))
    line = story.wait_for("roaming", "connected", CONNECTOR)
    assert line["text"].startswith("Roaming: it sends no logs")
    assert "Roaming" in fleet.hubline("fleet", "show", "pc-2").stdout
    fleet.hubline("hub", "roam", "off", "-c", settings_of(fleet, "pc-2"))
    story.wait_for("online", "connected", CONNECTOR)
    assert [connection for connection, _ in story.told] == ["roaming", "online"]


@IN_BOTH
def test_hubs_behind_a_dead_connector_are_cut_off_and_expected_directly(scene: Scene) -> None:
    """They live, and will speak for themselves: nobody is "offline" for it."""
    fleet, stories = scene.fleet, [scene.of(hub) for hub in scene.fleet.hubs]
    fleet.kill("connector")
    cut = [story.wait_for("path-down", "path down", CONNECTOR) for story in stories]
    for line in cut:
        assert line["last_seen"] <= line["since"] < line["expected_direct_by"]
        assert f"the way through connector {CONNECTOR} is interrupted" in line["text"]
        assert line["evidence"]["path"]["state"] == "connector offline"
    direct = [story.wait_for("online", "connected", "direct") for story in stories]
    for before, after in zip(cut, direct, strict=True):
        assert after["since"] - before["since"] >= float(QUICK["HUBLINE_FAILOVER__OUTAGE_S"]) * 1000 - 500
        assert after["since"] <= before["expected_direct_by"]
    fleet.start("connector")
    for story in stories:
        story.wait_for("online", "connected", CONNECTOR)
        assert story.told == [("path-down", "path down"), ("online", "connected"), ("online", "connected")]


def test_a_cloned_machine_is_named_and_fights_with_nobody(scene: Scene) -> None:
    """One identity, two machines: both are heard, what they say is kept apart, and a person is told to part them."""
    fleet, story = scene.fleet, scene.of("twin")
    fleet.start("twin")
    story.wait_for("online", "started", CONNECTOR)
    bundle = fleet.bundle("hub", "twin")
    shutil.copytree(bundle, bundle.with_name("clone"), ignore=shutil.ignore_patterns("data"))
    fleet.roles["clone"] = ("hub", "clone", {})
    fleet.start("clone")
    line = story.wait_for("online", "rejected: duplicate identity")
    told = {(reason, line["evidence"]["epoch"]) for (_, reason), line in zip(story.told, story.lines, strict=True)}
    assert len(told) == len(story.lines), f"the status went to and fro: {story.told}"
    until("the clone is stored", lambda: fleet.confirmed("clone") > 0)
    machines = {machine["epoch"]: machine for machine in line["evidence"]["machines"]}
    assert machines.keys() == {fleet.status(name)["epoch"] for name in ("twin", "clone")}
    reported = fleet.ask("/hubs/berlin/twin")["reported"]["body"]
    assert all(machine["addresses"] == reported["addresses"] != [] for machine in machines.values())
    assert all(machine["host"] == reported["host"] for machine in machines.values())
    assert [action["who"] for action in line["actions"]] == ["admin"]
    for name in ("twin", "clone"):
        before = fleet.confirmed(name)
        until(f"{name} is stored", lambda name=name, before=before: fleet.confirmed(name) > before + 20)  # type: ignore[misc]
        assert not fleet.events(name, "path_lost")
    assert story.told[-1] == ("online", "rejected: duplicate identity")
    fleet.stop("twin", "clone")
    stored = {row["epoch"]: row for row in fleet.audit() if row["hub"] == "twin"}
    for name in ("twin", "clone"):
        status = fleet.status(name)
        outbox, row = status["outbox"], stored[status["epoch"]]
        assert isinstance(outbox, dict)
        assert (row["missing"], row["points"], outbox["pending"]) == ([], outbox["points_written"], 0)


def test_after_a_power_cut_in_the_cloud_nobody_is_called_offline_but_the_dead_and_not_at_once(scene: Scene) -> None:
    """Everything of ours restarts, and one hub has died meanwhile without a word: no storm of false alarms."""
    fleet, stories = scene.fleet, {hub: scene.of(hub) for hub in scene.fleet.hubs}
    fleet.kill("cloud", "cloud-broker", "connector", "site-broker", "pc-1")
    began_ms = unix_ms()
    fleet.start("cloud-broker", "cloud", "site-broker", "connector")
    lost = stories["pc-1"].wait_for("offline", "lost contact")
    assert lost["since"] - began_ms >= GRACE_S * 1000
    assert lost["evidence"]["confirmed"] is False
    assert all(connection == "online" for connection, _ in stories["pc-2"].told)
    assert [connection for connection, _ in stories["pc-1"].told if connection != "online"] == ["offline"]
    log = fleet.ask("/connection-log", since=began_ms)["items"]
    assert {entry["hub"] for entry in log if entry["connection"] == "offline"} & {*fleet.hubs} == {"pc-1"}
    fleet.start("pc-1")
    stories["pc-1"].wait_for("online", "started", CONNECTOR)


def test_a_restart_of_the_cloud_service_alone_changes_nobodys_status(scene: Scene) -> None:
    fleet, began_ms = scene.fleet, unix_ms()
    before = {hub: fleet.presence(hub)["since"] for hub in fleet.hubs}
    fleet.kill("cloud")
    fleet.start("cloud")
    fleet.wait_until_flowing()
    until("the API is back", lambda: len(fleet.log("cloud")) > 0 and _answers(fleet))
    assert {hub: fleet.presence(hub)["since"] for hub in fleet.hubs} == before
    log = fleet.ask("/connection-log", since=began_ms)["items"]
    assert [entry for entry in log if entry["hub"] in fleet.hubs] == []


def _answers(fleet: Fleet) -> bool:
    return fleet.hubline("fleet", "list", check=False).returncode == 0


# --- Who may not, and who never came -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bridge", ["own"], indirect=True)  # Mosquitto lets an open session be, mute.
def test_a_revoked_hub_is_rejected_and_said_to_be(scene: Scene) -> None:
    """A stolen laptop: it is thrown out although it is connected, and the list says so instead of "lost contact"."""
    fleet, story = scene.fleet, scene.of("stolen")
    fleet.start("stolen")
    story.wait_for("online", "started")
    fleet.hubline("provision", "revoke", "hub/stolen", "--dir", str(fleet.directory))
    line = story.wait_for("offline", "rejected: revoked")
    assert line["evidence"]["revoked"] <= unix_ms()
    until("it is told why", lambda: fleet.events("stolen", "broker_unreachable"))
    assert fleet.path("stolen") != "connector"
    fleet.stop("stolen")
    assert fleet.presence("stolen")["reason"] == "rejected: revoked"


def test_a_hub_that_never_came_is_in_the_list(scene: Scene) -> None:
    """Provisioned and forgotten in its box: it is missed from the first day."""
    fleet = scene.fleet
    until("it is in the list", lambda: "spare" in fleet.hubline("fleet", "list").stdout)
    found = fleet.presence("spare")
    assert (found["connection"], found["reason"], found.get("last_seen")) == ("offline", "never seen", None)


def test_a_hub_whose_clock_is_wrong_is_told_apart_and_its_readings_are_dated_right(scene: Scene) -> None:
    """An hour ahead: "bad clock" is what it is called, not "bad credentials", and its curve lies where it belongs."""
    fleet, story = scene.fleet, scene.of("early")
    now_ms = asyncio.run(_speak_an_hour_ahead(fleet))
    line = story.wait_for("online", "rejected: clock")
    assert abs(line["skew_ms"] - HOUR_MS) < 60_000
    assert abs(line["last_seen"] - now_ms) < 60_000
    (reading,) = until("it is stored", lambda: fleet.ask("/readings", site="berlin", hub="early", since=0)["items"])
    assert reading["value"] == 42
    assert abs(reading["ts"] - now_ms) < 60_000
    assert reading["ts"] + reading["skew_ms"] == now_ms + HOUR_MS


async def _speak_an_hour_ahead(fleet: Fleet) -> int:
    """Be a hub with a wrong clock: say that it is there, and what it has measured; return the true time."""
    fleet_id, epoch, now_ms = fleet.fleet, token_hex(8), unix_ms()
    tls = client_context(identity_of(fleet.bundle("hub", "early"), fleet_id, "berlin"), server_name(fleet_id, "-"))
    session, ears = opened(f"127.0.0.1:{fleet.cloud_port}", tls, client_id=f"early.{epoch}")
    await ears.hear(is_a(Opened))
    early_ms = now_ms + HOUR_MS
    birth = HubState(
        online=True, epoch=epoch, session=1, via="direct", mode="continuous", ts=early_ms, reason="started"
    )
    session.publish(str(Topic.hub_state(fleet_id, "berlin", "early")), encode(birth), retain=True)
    body = orjson.dumps({"points": [{"ts": early_ms, "values": {"counter.value": 42}}]})
    topic = str(Topic.up(fleet_id, "berlin", "early", "readings"))
    session.publish(topic, encode_envelope(epoch, 1, early_ms, body))
    await session.close()
    return now_ms


# --- Who reads it --------------------------------------------------------------------------------------------------------


def test_a_reader_finds_the_status_of_every_hub_at_the_cloud_broker(scene: Scene) -> None:
    """Retained: whoever subscribes knows at once, and hears of changes; the same words as everywhere."""
    fleet = scene.fleet
    settings = str(fleet.bundle("reader", "viewer") / "reader.toml")
    with fleet.following("tail", "-c", settings, f"hl1/{fleet.fleet}/berlin/hub/+/presence") as tail:

        def heard(hub: str) -> list[tuple[bool, dict[str, Any]]]:
            lines = [line for line in tail.lines() if f"/hub/{hub}/presence " in line]
            return [(" retained {" in line, orjson.loads(line[line.index("{") :])) for line in lines]

        for hub in (*fleet.hubs, "spare", "poller"):
            retained, told = until(f"the status of {hub} is read", lambda hub=hub: heard(hub))[0]  # type: ignore[misc]
            assert retained
            known = fleet.presence(hub)
            assert [told[key] for key in ("connection", "reason", "via", "icon", "text")] == [
                known[key] for key in ("connection", "reason", "via", "icon", "text")
            ]
        fleet.stop("pc-1", number=signal.SIGTERM)
        until("the change is heard", lambda: heard("pc-1")[-1][1]["reason"] == "stopped cleanly")
        assert heard("pc-1")[-1][0] is False
        fleet.start("pc-1")
        until("the next, too", lambda: heard("pc-1")[-1][1]["reason"] == "started")


@pytest.mark.slow
def test_a_polling_hub_is_unreachable_online_and_gets_its_task_at_its_poll(scene: Scene) -> None:
    """The cloud starts nothing toward it: what waits is handed out when the hub asks."""
    fleet, task = scene.fleet, scene.waiting_task
    found = fleet.presence("poller")
    assert found["connection"] == "unreachable-online"
    assert found["reason"] in ("started", "connected")

    def target() -> dict[str, Any]:
        (entry,) = fleet.ask(f"/tasks/{task}")["targets"]["items"]
        return dict(entry)

    until("the task is done", lambda: target()["state"] == "done", timeout_s=100)
    assert target()["output"]["pid"] == fleet.running["poller"].pid
    contacts = [str(line["time"]) for line in fleet.events("poller", "contact_made")]
    began = [str(line["time"]) for line in fleet.events("poller", "task_began")]
    assert len(began) == 1
    assert contacts[0] < began[0]
    log = fleet.ask("/connection-log", site="berlin", hub="poller")["items"]
    assert {entry["connection"] for entry in log if entry["reason"] != "never seen"} == {"unreachable-online"}
