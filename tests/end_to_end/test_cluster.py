"""Parts of a large fleet die in the middle of a stream of 50 hubs, and nothing is lost or stored twice.

All tests share one fleet: three NATS nodes, PostgreSQL, two workers, operations with a standby, and a site with real hubs. Each
test leaves it whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from secrets import token_hex

import pytest

from config import limits
from tests.cloud.wire import payload
from tests.cluster_fleet import DATABASE, NODES, OPERATIONS, WORKERS, ClusterFleet
from tests.fleet import until
from tests.nats import needs_nats

pytestmark = [needs_nats, pytest.mark.xdist_group("cluster")]

STALL_MAX_S = 15.0
AWAY_S = 120.0
KILLS_PER_NODE = 10
SILENCE_MAX_S = 3 * limits.KEEP_ALIVE_S
"""A client hears of a node that hangs after two keep alives, and then finds another one."""
PATIENCE_S = 2 * limits.NATS_STREAM_ACK_WAIT_S


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterFleet]:
    this = ClusterFleet(tmp_path_factory.mktemp("cluster"), f"t{token_hex(4)}")
    try:
        this.start()
        this.stream.start()
        this.wait_until_flowing()
        until("one of the operations is active", this.active)
        yield this
        this.wait_until_flowing()
        this.assert_nothing_lost_or_doubled()
    finally:
        this.close()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> None:
    """Let a test leave to the next one what it has started: the fleet is ended with its fixture, and the run looks that it is."""


def kill_and_start_again(fleet: ClusterFleet, node: str) -> tuple[float, float]:
    """Let a node be away until the stream flows without it, and return the stalls: of the stream, and of the worst hub."""
    at = time.monotonic()
    fleet.kill(node)
    fleet.stream.wait_until_flowing()
    fleet.start_again(node)
    return fleet.stream.stalls(at)


def test_each_node_can_be_killed(fleet: ClusterFleet) -> None:
    """Whoever leads the stream or serves the connector or a worker does so until it dies: each of these is hit once at least."""
    for node in NODES:
        kill_and_start_again(fleet, node)
    fleet.wait_until_flowing()
    fleet.assert_the_stream_is_stored_once()


def test_a_worker_can_be_killed(fleet: ClusterFleet) -> None:
    """What it had in hand goes to the other one, or comes again from its hub."""
    worker = WORKERS[0]
    until("it stores", lambda: fleet.stored_by(worker) > 0)
    fleet.kill(worker)
    fleet.wait_until_flowing()
    fleet.start(worker)
    until("it stores again", lambda: fleet.stored_by(worker) > 0)
    fleet.assert_the_stream_is_stored_once()


def test_the_standby_takes_over_tasks_and_presence(fleet: ClusterFleet) -> None:
    """It knows what the other one knew, and hears from the workers what they commit."""
    active = until("one is active", fleet.active)
    assert active is not None
    [standby] = set(OPERATIONS) - {active}
    until("the hubs are online", lambda: all(fleet.is_online(hub, "berlin-1") for hub in fleet.hubs))
    fleet.kill(active)
    fleet.kill("pc-2")
    until("the other one is active", lambda: fleet.active() == standby)
    until("and its API answers", lambda: fleet.hubline("fleet", "list", check=False).returncode == 0)
    until("who has gone is offline", lambda: fleet.presence("pc-2").get("connection") == "offline")
    assert fleet.is_online("pc-1", "berlin-1")
    fleet.start("pc-2")
    done = fleet.hubline("fleet", "task", "ping", "--hub", "pc-1", "--wait")
    assert "done" in done.stdout, done
    until("who has come back is online", lambda: fleet.is_online("pc-2", "berlin-1"))
    fleet.start(active)
    fleet.wait_until_flowing()


def kill_database(fleet: ClusterFleet) -> None:
    """Kill all of PostgreSQL, and let the operations end that have lost the lock by it."""
    active = until("one is active", fleet.active)
    assert active is not None
    fleet.database.kill()
    until("who may not be the active one any more ends", lambda: fleet.running[active].poll() is not None)


def test_the_database_can_be_killed(fleet: ClusterFleet) -> None:
    """What was acknowledged was on its disk; what was not comes again."""
    kill_database(fleet)
    assert len(fleet.revive()) == 1
    fleet.database.start()
    fleet.wait_until_flowing()
    until("one of the operations is active", fleet.active)
    until("and both are there", lambda: all(fleet.running[name].poll() is None for name in OPERATIONS))
    fleet.assert_the_stream_is_stored_once()


def test_both_workers_write_the_same_hub_at_once(fleet: ClusterFleet) -> None:
    """Also the same messages: each is stored once, whoever is first."""
    sender = fleet.stream.senders[0]
    before = {worker: fleet.stored_by(worker) for worker in WORKERS}
    [repeated] = {row["duplicates_refused"] for row in fleet.audit() if row["hub"] == sender.name}
    with fleet.stream.paused():
        for _ in range(4):
            first = sender.measured + 1
            fleet.stream.do(sender.measure, 300)
            fleet.stream.do(lambda first=first: sender.repeat(*range(first, first + 300)))
            until("all are acknowledged", lambda first=first: sender.acknowledged == sender.measured >= first + 299)  # type: ignore[misc]
    until("both have stored", lambda: all(fleet.stored_by(worker) > before[worker] for worker in WORKERS))
    fleet.assert_the_stream_is_stored_once()
    [now] = {row["duplicates_refused"] for row in fleet.audit() if row["hub"] == sender.name}
    assert isinstance(now, int)
    assert isinstance(repeated, int)
    assert now > repeated


POISON = (
    b"",
    b"\xff\x00garbage",
    b'"a text"',
    b"[" * 10_000,
    payload({"points": "none"}, 10**6),
    payload({"points": [{"ts": 2**63 - 1, "values": {"a": 1}}]}, 10**6 + 1),
    payload({"points": [{"ts": 1, "values": {"a\u0000b": "c\u0000d"}}]}, 10**6 + 2),
    payload({"points": [{"ts": 1, "values": {"big": 2**64 - 1}}]}, 10**6 + 3),
    payload({"points": []}, 2**63 - 1),
    payload({"points": []}, 2**64 - 1),
    payload({"points": []}, -1),
    payload({"points": [{"ts": 1, "values": {"a": 1}}]}, 1, epoch="\u0000" * 16),
    payload({"points": [{"ts": 1, "values": {"a": 1}}]}, 10**6 + 4, sent=2**63 - 1),
    payload({"points": [{"ts": 1, "values": {"a": 1}}]}, 10**6 + 5, sent=-(2**63)),
    b'{"epoch":"9f2c4be1d07a6b53","seq":1000006,"sent":1,"body":{"points":[{"ts":1,"values":{"a":1e308}}]}}',
    b'{"epoch":"9f2c4be1d07a6b53","seq":1000007,"sent":1,"body":{"points":[{"ts":1,"values":{"a":"\\ud800"}}]}}',
)


def test_a_poisoned_message_stops_no_worker(fleet: ClusterFleet) -> None:
    """It is set aside, or stored as it is, and the stream is rid of it: it comes to nobody again and again."""
    sender = fleet.stream.senders[1]
    for kind in ("readings", "events", "results", "reported", "logs", "requests", "odd.kind"):
        fleet.stream.do(sender.say, kind, *POISON)
    fleet.wait_until_flowing()
    with fleet.stream.paused():
        until("the stream is rid of it", lambda: not fleet.unsettled(sender.name))
    [(aside,)] = fleet.database.query("SELECT count(*) FROM quarantine", database=DATABASE)
    assert aside > 0
    fleet.wait_until_flowing()
    assert [fleet.status_of(worker)["storage"] for worker in WORKERS] == ["ok", "ok"]
    assert fleet.revive() == []


# --- Long ones -------------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_a_node_that_hangs_stalls_its_own_clients_only(fleet: ClusterFleet) -> None:
    """Its system keeps connections open: who is at another node must not wait for it; who is at it finds out by silence."""
    for node in NODES:
        hung_at = time.monotonic()
        with fleet.hanging(node):
            fleet.stream.wait_until_flowing()
            stream_s, sender_s = fleet.stream.stalls(hung_at)
            print("hung (node, stream, worst sender):", node, stream_s, sender_s, flush=True)
            fleet.wait_until_flowing()
        assert stream_s <= STALL_MAX_S
        assert sender_s <= SILENCE_MAX_S
        fleet.wait_until_flowing()
    fleet.assert_the_stream_is_stored_once()


@pytest.mark.soak
def test_all_nodes_can_lose_their_power_at_once(fleet: ClusterFleet) -> None:
    """What the stream has taken in was on their disks; what it has not is with the hubs. Nothing waits for a person."""
    for _ in range(3):
        fleet.kill(*NODES)
        started = {node: len(fleet.events(node, "broker_started")) for node in NODES}
        fleet.start(*NODES)
        until(
            "all serve again",
            lambda: all(len(fleet.events(node, "broker_started")) > before for node, before in started.items()),  # noqa: B023
        )
        fleet.wait_until_flowing()
        assert fleet.revive() == []
    fleet.assert_the_stream_is_stored_once()


@pytest.mark.soak
def test_what_a_worker_had_that_hangs_or_dies_goes_to_the_other_one(fleet: ClusterFleet) -> None:
    """It had fetched and not acknowledged: the stream waits for it for a while, and no message, no hub and no later one does."""
    worker, other = WORKERS
    for dies in (False, True):
        until("it stores", lambda: fleet.stored_by(worker) > 0)
        with fleet.hanging(worker):
            before = fleet.stored_by(other)
            fleet.wait_until_flowing()
            assert fleet.stored_by(other) > before
            if dies:
                fleet.kill(worker)
            with fleet.stream.paused():
                until("the stream is rid of it", lambda: not _of_senders(fleet), PATIENCE_S)
        if dies:
            fleet.start(worker)
        fleet.assert_the_stream_is_stored_once()


def _of_senders(fleet: ClusterFleet) -> list[str]:
    return [subject for subject in fleet.unsettled("+") if ".sender-" in subject]


@pytest.mark.soak
def test_each_node_killed_ten_times_never_stalls_the_stream_for_15_seconds(fleet: ClusterFleet) -> None:
    """The rule of the fleet: a node's death is no outage."""
    stalls = []
    for node in [*NODES] * KILLS_PER_NODE:
        stalls.append((node, *kill_and_start_again(fleet, node)))
        print("stalled (node, stream, worst sender):", stalls[-1], flush=True)
        fleet.wait_until_flowing()
    fleet.assert_the_stream_is_stored_once()
    assert max(stream_s for _, stream_s, _ in stalls) <= STALL_MAX_S, stalls


@pytest.mark.soak
def test_no_other_death_stalls_the_stream_for_15_seconds(fleet: ClusterFleet) -> None:
    """That of either worker, and that of PostgreSQL, which is started again at once."""
    stalls = []
    for worker in WORKERS:
        killed_at = time.monotonic()
        fleet.kill(worker)
        fleet.stream.wait_until_flowing()
        stalls.append((worker, *fleet.stream.stalls(killed_at)))
        fleet.start(worker)
        until("it stores again", lambda: fleet.stored_by(worker) > 0)  # noqa: B023
    killed_at = time.monotonic()
    kill_database(fleet)
    fleet.database.start()
    fleet.stream.wait_until_flowing()
    stalls.append(("PostgreSQL", *fleet.stream.stalls(killed_at)))
    fleet.revive()
    until("one of the operations is active", fleet.active)
    print("stalled (what, stream, worst sender):", stalls, flush=True)
    fleet.wait_until_flowing()
    fleet.assert_the_stream_is_stored_once()
    assert max(stream_s for _, stream_s, _ in stalls) <= STALL_MAX_S, stalls


@pytest.mark.soak
def test_the_database_can_be_away_for_two_minutes(fleet: ClusterFleet) -> None:
    """Hubs and stream keep what comes meanwhile, and it is stored when the database is back."""
    kill_database(fleet)
    gone_at = time.monotonic()
    until("the time is over", lambda: time.monotonic() - gone_at >= AWAY_S, 2 * AWAY_S)
    fleet.revive()
    fleet.database.start()
    back_at = time.monotonic()
    fleet.wait_until_flowing()
    assert fleet.stream.stalls(back_at)[0] <= STALL_MAX_S
    until("one of the operations is active", fleet.active)
    fleet.wait_until_drained()
    fleet.assert_the_stream_is_stored_once()


@pytest.mark.soak
def test_a_site_can_be_a_leaf_of_the_cluster(fleet: ClusterFleet) -> None:
    """Whichever node its leaf is connected to may die: the site's node goes to the next one, and comes back for nothing."""
    with fleet.site_as_leaf():
        for node in NODES:
            kill_and_start_again(fleet, node)
            until("there is a way up", lambda: fleet.status("connector").get("upstream") == "up")
            until("the hubs use it", lambda: all(fleet.path(hub) == "connector" for hub in fleet.hubs))
            fleet.wait_until_flowing()
        assert fleet.status("connector")["bridge"] == "engine"
        fleet.assert_the_stream_is_stored_once()
    until("the hubs are back", lambda: all(fleet.path(hub) == "connector" for hub in fleet.hubs))
    fleet.wait_until_flowing()
