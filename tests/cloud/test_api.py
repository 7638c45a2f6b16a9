"""The resources of the API, asked over HTTP from a real server on a real database."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloud.states import add_hub
from cloud.store import Store
from config import limits
from tests.cloud.api_desk import FLEET, HIDDEN, HUBS_MADE, NOW, T0, Running, presence_of, put_presence, running_api
from tests.cloud.wire import EPOCH, OTHER_EPOCH, batch, one

SHOWN = [f"{site}/{hub_id}" for (site, hub_id), _, _ in HUBS_MADE if (site, hub_id) != HIDDEN]
PC_1 = {"site": "berlin", "hub": "pc-1"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Return an API whose database the tests only read."""
    with running_api(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Running]:
    """Return an API whose database the test may change."""
    with running_api(tmp_path) as running:
        yield running


@pytest.fixture(scope="module")
def client(api: Running) -> Iterator[httpx.Client]:
    with api.client("reader") as made:
        yield made


def items(client: httpx.Client, path: str, **parameters: Any) -> list[dict[str, Any]]:
    """Return all entries of a list, page by page."""
    found: list[dict[str, Any]] = []
    while True:
        answer = client.get(path, params=parameters)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += page["items"]
        if page["next"] is None:
            return found
        parameters["cursor"] = page["next"]


def names(client: httpx.Client, **parameters: Any) -> list[str]:
    return [f"{entry['site']}/{entry['hub']}" for entry in items(client, "/hubs", **parameters)]


# --- Hubs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, SHOWN),
        ({"site": "berlin"}, ["berlin/pc-1", "berlin/pc-2", "berlin/pc-3"]),
        ({"site": "nowhere"}, []),
        ({"group": "laptops"}, ["berlin/pc-1", "munich/lap-1"]),
        ({"group": "laptops", "hidden": "all"}, ["berlin/pc-1", "munich/lap-1", "munich/old-1"]),
        ({"connection": "offline"}, ["berlin/pc-2", "munich/pc-1"]),
        ({"connection": "offline", "hidden": "yes"}, ["munich/old-1"]),
        ({"text": "/pc-1"}, ["berlin/pc-1", "munich/pc-1"]),
        ({"text": "%"}, []),
        ({"text": "pc_1"}, []),
        ({"limit": 1}, SHOWN),
        ({"limit": 2, "site": "berlin"}, ["berlin/pc-1", "berlin/pc-2", "berlin/pc-3"]),
    ],
)
def test_hubs_are_filtered_and_never_repeated(client: httpx.Client, wanted: dict[str, Any], found: list[str]) -> None:
    """A filter that lets too much through shows one customer another's machines; % and _ are letters, not patterns."""
    assert names(client, **wanted) == found
    assert client.get("/hubs", params={**wanted, "limit": max(1, len(found))}).json()["next"] is None


def test_hub_is_shown_with_its_one_status_as_it_is_published(client: httpx.Client) -> None:
    """Two places that tell different states of one hub are worse than none."""
    entry = client.get("/hubs", params={"text": "berlin/pc-2"}).json()["items"][0]
    assert entry["presence"]["connection"] == "offline"
    assert entry["presence"]["icon"] == "offline"
    assert entry["presence"]["text"] == "It is offline: lost contact."
    assert entry["presence"]["actions"] == [
        {"id": "verify-connection", "who": "admin", "text": "Verify the connection."}
    ]
    hub = client.get("/hubs/berlin/pc-2").json()
    assert hub["presence"] == entry["presence"]
    assert hub["presence"]["evidence"] == {"session": 7}


def test_status_of_a_hub_comes_from_the_database_until_it_is_published_again(client: httpx.Client) -> None:
    """After a restart of the service every hub still has the status that it had."""
    presence = client.get("/hubs/munich/lap-1").json()["presence"]
    assert (presence["connection"], presence["reason"], presence["last_seen"]) == ("roaming", "roaming", NOW)


def test_hub_is_shown_with_all_that_is_known_of_it(client: httpx.Client) -> None:
    """One request answers what an administrator asks first."""
    hub = client.get("/hubs/berlin/pc-1").json()
    assert hub["groups"] == ["laptops"]
    assert hub["reported"]["body"]["host"] == "pc-1.example"
    assert hub["settings"]["state"] == "waiting"
    assert hub["values"] == [
        {"sensor": "cpu.percent", "ts": T0 + 7140_000, "value": 9, "count": 120},
        {"sensor": "host", "ts": T0 + 7140_000, "value": "x", "count": 120},
    ]
    assert items(client, "/hubs/berlin/pc-1/values", limit=1) == hub["values"]
    assert client.get("/hubs/munich/old-1").json()["hidden_since"] == NOW


def test_unknown_hub_is_named_with_what_there_is_instead(client: httpx.Client) -> None:
    """Most unknown names are typing mistakes."""
    answer = client.get("/hubs/berlin/pc-11")
    assert answer.status_code == 404
    assert answer.json()["error"].startswith("there is no hub berlin/pc-11: did you mean berlin/pc-1")


def test_page_goes_on_where_it_was_while_hubs_come_and_go(own: Running) -> None:
    """A cursor is a place, not a count: whoever reads a large fleet sees every hub that stays, once."""
    with own.client() as client:
        first = client.get("/hubs", params={"limit": 3}).json()
        own.run(own.desk.write(lambda c: put_presence(c, ("aachen", "new"), presence_of("online", "started"))))
        own.run(own.desk.write(lambda c: put_presence(c, ("munich", "zzz"), presence_of("online", "started"))))
        own.run(own.desk.forget(("berlin", "pc-3"), by="test"))
        rest = client.get("/hubs", params={"limit": 100, "cursor": first["next"]}).json()
    seen = [f"{entry['site']}/{entry['hub']}" for entry in first["items"] + rest["items"]]
    assert seen == ["berlin/pc-1", "berlin/pc-2", "berlin/pc-3", "munich/lap-1", "munich/pc-1", "munich/zzz"]


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/hubs",
            "/connection-log",
            "/tasks",
            "/groups",
            "/groups/x",
            "/storage",
            "/audit",
            "/hubs/berlin/pc-1/values",
        ),
        *("/logs?site=berlin&hub=pc-1", "/readings?site=berlin&hub=pc-1", "/logs?site=berlin&hub=pc-1&after=0"),
    ],
)
def test_foreign_cursor_is_refused_in_one_line(api: Running, path: str) -> None:
    """A cursor of another list must not be taken for a place in this one, or bring the service down."""
    cursors = ("x", "!!", "W10", "WzFd", "WyJhIl0", "eyJhIjoxfQ", "W251bGxd", "a" * 999, "%00", "WzllOTld", "WzFlOTld")
    refused = 0
    with api.client() as client:
        for cursor in cursors:
            answer = client.get(f"{path}{'&' if '?' in path else '?'}cursor={cursor}")
            assert answer.status_code in (200, 422), cursor
            if answer.status_code == 422:
                assert answer.json()["key"] == "cursor"
                refused += 1
    assert refused >= len(cursors) - 1  # Two lists may have places of one form.


def test_connection_log_tells_who_came_and_went(own: Running) -> None:
    """The history answers "since when, and why"."""
    own.run(own.desk.set_presence(("berlin", "pc-1"), "offline", "stopped"))
    with own.client() as client:
        newest = client.get("/connection-log", params={**PC_1, "limit": 1}).json()["items"][0]
        assert (newest["connection"], newest["reason"], newest["evidence"]) == ("offline", "stopped", {"session": 7})
        assert len(items(client, "/connection-log", limit=1)) == len(HUBS_MADE) + 1
        assert len(items(client, "/connection-log", limit=1, **PC_1)) == 2
        assert len(items(client, "/connection-log", site="munich", connection="offline")) == 2
        assert items(client, "/connection-log", until=T0) == []
        assert client.get("/connection-log", params={"hub": "pc-1"}).json()["key"] == "hub"


def test_hub_is_paused_resumed_and_forgotten(own: Running) -> None:
    """What is asked reaches the service with the name of who asks; forgetting is the administrator's."""
    with own.client("operator") as client, own.client() as admin:
        assert client.post("/hubs/berlin/pc-1/pause").json() == {"done": True}
        assert client.post("/hubs/berlin/pc-1/resume").status_code == 200
        refused = client.post("/hubs/munich/lap-1/pause")
        assert (refused.status_code, refused.json()) == (409, {"error": "it was never seen: there is nothing to pause"})
        assert client.delete("/hubs/berlin/pc-1").status_code == 403
        assert admin.delete("/hubs/berlin/pc-1").status_code == 200
        assert admin.delete("/hubs/berlin/pc-1").status_code == 404
    key = ("berlin", "pc-1")
    assert own.desk.calls == [("pause", key, "operator"), ("resume", key, "operator"), ("forget", key, "admin")]


# --- Readings --------------------------------------------------------------------------------------------------------


def test_raw_readings_are_those_that_were_sent_in_any_page_size(client: httpx.Client) -> None:
    """A page may end in the middle of a message, of which one holds hundreds of readings."""
    all_at_once = items(client, "/readings", **PC_1, since=0, limit=1000)
    assert len(all_at_once) == 240
    assert [entry["ts"] for entry in all_at_once if entry["sensor"] == "host"] == [
        T0 + second * 1000 for second in range(0, 7200, 60)
    ]
    assert all_at_once[0] == {
        "ts": T0, "sensor": "cpu.percent", "value": 0, "epoch": EPOCH, "seq": 1, "skew_ms": 0
    }  # fmt: skip
    for limit in (7, 20, 21, 240):
        assert items(client, "/readings", **PC_1, since=0, limit=limit) == all_at_once
    assert items(client, "/readings", **PC_1, since=0, until=T0 + 360_000, limit=1) == all_at_once[:12]


def test_raw_readings_are_bounded_by_time_and_sensor(client: httpx.Client) -> None:
    """The bounds hold inside a message too."""
    wanted = {**PC_1, "since": T0 + 60_000, "until": T0 + 240_000, "sensor": "cpu"}
    found = items(client, "/readings", **wanted, limit=2)
    assert [(entry["ts"] - T0, entry["value"]) for entry in found] == [(60_000, 1), (120_000, 2), (180_000, 3)]
    assert items(client, "/readings", **PC_1, sensor="cp") == []
    assert [entry["epoch"] for entry in items(client, "/readings", site="berlin", hub="pc-2", since=0)] == [
        EPOCH,
        EPOCH,
        OTHER_EPOCH,
    ]


def test_page_of_readings_decodes_only_so_much(own: Running) -> None:
    """A filter that matches nothing must not make one request read a year."""
    store, count = Store(own.desk.file, FLEET), limits.API_SCAN_MESSAGES + 100
    store.commit(batch(*(one(seq) for seq in range(1, count + 1)), hub_id="pc-3"))
    store.close()
    wanted = {"site": "berlin", "hub": "pc-3", "since": 0}
    with own.client() as client:
        first = client.get("/readings", params={**wanted, "sensor": "no.such"}).json()
        assert first["items"] == []
        rest = client.get("/readings", params={**wanted, "sensor": "no.such", "cursor": first["next"]}).json()
        assert rest == {"items": [], "next": None}
        for limit in (1000, 499):
            found = items(client, "/readings", **wanted, limit=limit)
            assert [entry["seq"] for entry in found] == list(range(1, count + 1))


@pytest.mark.parametrize(
    ("interval", "sums"),
    [
        ("5min", [(5, 0, 2.0, 4), (5, 5, 7.0, 9)] * 12),
        ("10min", [(10, 0, 4.5, 9)] * 12),
        ("1h", [(60, 0, 4.5, 9)] * 2),
        ("2h", [(120, 0, 4.5, 9)]),
        ("3h", [(60, 0, 4.5, 9)] * 2),
        ("31d", [(120, 0, 4.5, 9)]),
    ],
)
@pytest.mark.parametrize("limit", [1, 3, 1000])
def test_readings_are_summed_up_by_interval(
    client: httpx.Client, interval: str, sums: list[tuple[int, float, float, float]], limit: int
) -> None:
    """Charts of a year must not read a year's messages. Intervals count from the epoch."""
    wanted = {**PC_1, "sensor": "cpu.percent", "interval": interval, "since": 0}
    found = items(client, "/readings/sums", **wanted, limit=limit)
    assert [(entry["count"], entry["min"], entry["mean"], entry["max"]) for entry in found] == sums
    assert [entry["ts"] for entry in found] == sorted({entry["ts"] for entry in found})


@pytest.mark.parametrize("interval", ["7min", "0h", "1s", "32d", "99999d", "1h; DROP TABLE hubs"])
def test_interval_that_is_not_stored_is_refused(client: httpx.Client, interval: str) -> None:
    """What can't be put together from what is stored is said, not guessed."""
    answer = client.get("/readings/sums", params={**PC_1, "sensor": "cpu.percent", "interval": interval})
    assert (answer.status_code, answer.json()["key"]) == (422, "interval")


def test_storage_tells_what_is_missing_and_what_was_dropped(client: httpx.Client) -> None:
    """The proof that nothing is lost, for whoever has no shell on the cloud."""
    found = items(client, "/storage", limit=1)
    assert [(entry["site"], entry["hub"], entry["epoch"]) for entry in found] == [
        ("berlin", "pc-1", EPOCH),
        ("berlin", "pc-2", EPOCH),
        ("berlin", "pc-2", OTHER_EPOCH),
    ]
    assert (found[1]["missing"], found[1]["duplicates_refused"], len(found[1]["gaps"])) == ([[3, 3]], 1, 1)
    assert items(client, "/storage", site="berlin", hub="pc-1") == found[:1]


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        ({}, list(range(12, 0, -1))),
        ({"level": "warning"}, [12, 11, 8, 7, 4, 3]),
        ({"event": "100%_full"}, [11, 7, 3]),
        ({"text": "0%_f"}, [11, 7, 3]),
        ({"text": "disk"}, [12, 8, 4]),
        ({"text": "C:\\\\1"}, [12, 11, 10, 1]),
        ({"since": T0 + 5, "until": T0 + 8}, [7, 6, 5]),
        ({"after": 9}, [10, 11, 12]),
        ({"after": 9, "level": "error"}, [12]),
        ({"text": "nothing"}, []),
    ],
)
@pytest.mark.parametrize("limit", [1, 2, 1000])
def test_logs_are_searched(client: httpx.Client, wanted: dict[str, Any], numbers: list[int], limit: int) -> None:
    """By level, event, text and time; with `after` in the order of arrival, for whoever follows."""
    assert [entry["no"] for entry in items(client, "/logs", **PC_1, **wanted, limit=limit)] == numbers
    assert client.get("/logs/newest", params=PC_1).json() == {"no": 12}


# --- Tasks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        ({"hubs": ["berlin/pc-1"]}, 1),
        ({"hubs": ["munich/old-1"]}, 1),
        ({"sites": ["munich"]}, 2),
        ({"groups": ["laptops"]}, 2),
        ({"all": True}, 5),
        ({"all": True, "hubs": ["munich/old-1"], "sites": ["berlin"]}, 6),
    ],
)
def test_task_is_for_the_hubs_that_are_meant_each_once(api: Running, targets: dict[str, Any], count: int) -> None:
    """Hidden hubs get one only by name: a machine that comes back after months is not surprised by it."""
    with api.client("operator") as client:
        made = client.post("/tasks", json={"action": "ping", "targets": targets, "arguments": {"n": 1, "s": "x"}})
        assert made.status_code == 201
        assert made.json()["targets"] == count
        task = client.get(made.headers["Location"].removeprefix("/api/v1")).json()
        assert task["states"] == {"queued": count}
        assert task["arguments"] == {"n": 1, "s": "x"}
        assert task["created_by"] == "operator"


@pytest.mark.parametrize(
    ("body", "status", "key"),
    [
        ({"action": "ping", "targets": {}}, 422, "targets"),
        ({"action": "ping", "targets": {"sites": ["nowhere"]}}, 422, "targets"),
        ({"action": "ping", "targets": {"hubs": ["berlin/pc-9"]}}, 404, None),
        ({"action": "rm", "targets": {"all": True}}, 422, "action"),
        ({"action": "update-now", "targets": {"all": True}}, 422, "action"),
        ({"action": "ping", "targets": {"all": True}, "expires_s": 0}, 422, "expires_s"),
        ({"action": "ping", "targets": {"all": True}, "arguments": {"a": [1]}}, 422, None),
        ({"action": "ping", "targets": {"all": True}, "surprise": 1}, 422, "surprise"),
        ({"action": "ping", "targets": {"all": 1}}, 422, "targets.all"),
        ({"action": "ping"}, 422, "targets"),
    ],
)
def test_task_that_makes_no_sense_is_refused_with_its_key(
    api: Running, body: dict[str, Any], status: int, key: str | None
) -> None:
    """One line that says what is wrong, and nothing is queued."""
    with api.client() as client:
        before = client.get("/tasks").json()
        answer = client.post("/tasks", json=body)
        assert answer.status_code == status, answer.text
        assert "\n" not in answer.json()["error"]
        assert key is None or answer.json()["key"] == key
        assert client.get("/tasks").json() == before


def test_tasks_are_listed_filtered_and_cancelled(own: Running) -> None:
    """Newest first, and each with how far it has come."""
    with own.client() as client:
        for hub_id in ("pc-1", "pc-2", "pc-3"):
            client.post("/tasks", json={"action": "ping", "targets": {"hubs": [f"berlin/{hub_id}"]}})
        both = client.post("/tasks", json={"action": "sample-now", "targets": {"sites": ["munich"]}}).json()["task"]
        listed = items(client, "/tasks", limit=1)
        assert len(listed) == len({entry["task"] for entry in listed}) == 4
        assert [entry["task"] for entry in items(client, "/tasks", site="berlin", hub="pc-2")] == ["0" * 15 + "2"]
        assert len(items(client, "/tasks", site="berlin")) == 3
        assert len(items(client, "/tasks", action="sample-now")) == 1
        assert client.post(f"/tasks/{both}/cancel", json={"hub": "munich/lap-1"}).status_code == 200
        assert client.get(f"/tasks/{both}").json()["states"] == {"cancelled": 1, "queued": 1}
        assert client.post(f"/tasks/{both}/cancel", json={"hub": "berlin/pc-1"}).status_code == 404
        assert client.post(f"/tasks/{both}/cancel").status_code == 200
        assert len(items(client, "/tasks", open=True)) == 3
        assert len(items(client, "/tasks", state="cancelled")) == 1
        targets = client.get(f"/tasks/{both}", params={"limit": 1}).json()["targets"]
        rest = client.get(f"/tasks/{both}", params={"limit": 1, "cursor": targets["next"]}).json()["targets"]
        assert [entry["hub"] for entry in targets["items"] + rest["items"]] == ["lap-1", "pc-1"]
        assert client.get("/tasks/" + "f" * 16).status_code == 404
        assert client.post("/tasks/" + "f" * 16 + "/cancel").status_code == 404


# --- Settings and groups ---------------------------------------------------------------------------------------------


def test_settings_are_versioned_compared_and_only_replaced_by_who_has_seen_them(own: Running) -> None:
    """Two administrators at once must not undo each other's work unknowingly."""
    with own.client("operator") as client:
        empty = client.get("/settings/site/berlin")
        assert (empty.json()["version"], empty.headers["ETag"]) == (0, '"0"')
        first = client.put("/settings/site/berlin", json={"content": {"mode": {"poll_min": 5}}, "expected_version": 0})
        assert first.json() == {
            "version": 1,
            "warnings": ["mode.poll_min should be at least three heartbeats"],
            "changes": [{"key": "mode.poll_min", "before": None, "after": 5}],
            "kept": True,
        }
        content = {"mode": {"poll_min": 40}, "logs": {"level": "info"}}
        late = client.put("/settings/site/berlin", json={"content": content, "expected_version": 0})
        assert (late.status_code, late.json()["current"]) == (412, 1)
        late = client.put("/settings/site/berlin", json={"content": content}, headers={"If-Match": '"0"'})
        assert late.status_code == 412
        assert client.get("/settings/site/berlin").json()["content"] == {"mode": {"poll_min": 5}}
        dry = client.put("/settings/site/berlin", json={"content": content}, params={"dry_run": True}).json()
        assert (dry["kept"], dry["version"], len(dry["changes"])) == (False, 1, 2)
        kept = client.put("/settings/site/berlin", json={"content": content}, headers={"If-Match": '"1"'})
        assert (kept.status_code, kept.headers["ETag"]) == (200, '"2"')
        assert [entry["version"] for entry in items(client, "/settings/site/berlin/history", limit=1)] == [2, 1]
        assert client.get("/settings/site/berlin", params={"version": 1}).json()["content"] == {"mode": {"poll_min": 5}}
        assert client.get("/settings/site/berlin", params={"version": 3}).status_code == 404
        assert client.get("/settings/site/berlin/diff", params={"before": 1}).json() == [
            {"key": "logs.level", "before": None, "after": "info"},
            {"key": "mode.poll_min", "before": 5, "after": 40},
        ]
        backwards = client.get("/settings/site/berlin/diff", params={"before": 2, "after": 0}).json()
        assert [entry["after"] for entry in backwards] == [None, None]


@pytest.mark.parametrize(
    ("document", "content", "status", "key"),
    [
        ("fleet/-", {"logs": {"level": "loud"}}, 422, "logs.level"),
        ("fleet/-", {"identity": {"name": "x"}}, 422, "identity"),
        ("fleet/-", {"logs": 1}, 422, None),
        ("fleet/x", {}, 422, "name"),
        ("site/-", {}, 422, "name"),
        ("group/a:b", {}, 422, "name"),
        ("hub/berlin", {}, 422, "name"),
        ("hub/berlin:pc-9", {}, 404, None),
        ("galaxy/x", {}, 422, "scope"),
    ],
)
def test_settings_that_cannot_hold_are_refused_with_their_key(
    api: Running, document: str, content: Any, status: int, key: str | None
) -> None:
    """Before they are kept, let alone sent."""
    with api.client() as client:
        answer = client.put(f"/settings/{document}", json={"content": content})
    assert answer.status_code == status, answer.text
    assert key is None or answer.json()["key"] == key


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "9" * 30, "-" + "9" * 30, "[1, [NaN]]"])
def test_settings_hold_only_what_json_can_say(api: Running, number: str) -> None:
    """Python reads numbers that no other reader of the database could."""
    body = f'{{"content": {{"mode": {{"poll_min": {number}}}}}}}'
    with api.client() as client:
        answer = client.put("/settings/fleet/-", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


def test_settings_of_a_hub_are_told_with_their_origin(client: httpx.Client) -> None:
    """Whoever wonders why a hub does something finds the document that says so."""
    found = client.get("/hubs/berlin/pc-1/settings").json()
    assert found["state"]["desired_version"] == 3
    assert found["effective"] == [
        {"key": "logs.level", "value": "info", "origin": "site/berlin"},
        {"key": "mode.poll_min", "value": 30, "origin": "fleet"},
    ]
    assert client.get("/hubs/munich/lap-1/settings").json()["state"] is None


def test_groups_have_members(own: Running) -> None:
    """A hub is in a group or not, however often that is said."""
    with own.client("operator") as client:
        for _ in range(2):
            assert client.put("/groups/new/members/berlin/pc-3").status_code == 200
        assert client.put("/groups/new/members/berlin/pc-9").status_code == 404
        assert items(client, "/groups", limit=1) == [{"group": "laptops", "hubs": 3}, {"group": "new", "hubs": 1}]
        assert items(client, "/groups/new") == [{"site": "berlin", "hub": "pc-3"}]
        for _ in range(2):
            assert client.delete("/groups/new/members/berlin/pc-3").status_code == 200
        assert items(client, "/groups/new") == []
        assert len(items(client, "/groups/laptops", limit=1)) == 3


# --- The service -----------------------------------------------------------------------------------------------------


def test_status_counts_the_hubs(client: httpx.Client) -> None:
    """The first look at a fleet."""
    status = client.get("/status").json()
    assert status["hubs"] == {"hidden": 1, "offline": 2, "online": 2, "roaming": 1}
    assert status["service"]["fleet"] == FLEET


def test_metrics_are_sums_without_names(api: Running, client: httpx.Client) -> None:
    """Prometheus keeps what it reads for long: no name of a machine belongs there."""
    client.get("/hubs/berlin/pc-1")
    text = httpx.get(f"{api.url}/metrics", trust_env=False).text
    for line in (
        'hubline_hubs{connection="online"} 2.0',
        "hubline_stored_messages_total 12.0",
        "hubline_duplicates_total 5.0",
        "hubline_ingest_waiting 6.0",
        "hubline_broker_up 1.0",
        'hubline_api_requests_total{method="GET",route="/hubs/{site}/{hub}",status="200"}',
    ):
        assert f"\n{line}" in text
    assert "berlin" not in text


def test_failing_database_is_told_and_ends_nothing(own: Running) -> None:
    """A full disk of the cloud is an answer, not a crash."""
    with own.client() as client:
        assert client.get("/hubs").status_code == 200
        own.desk.broken = "disk full"
        for answer in (client.get("/hubs"), client.post("/hubs/berlin/pc-1/pause")):
            assert (answer.status_code, answer.json()["error"]) == (503, "the database does not answer: disk full")
        own.desk.broken = None
        assert client.get("/hubs").status_code == 200


def test_many_may_ask_at_once(api: Running) -> None:
    """A console, scripts and Prometheus together."""
    with api.client() as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.get("/hubs").status_code, range(80)))
    assert answers == [200] * 80


def test_hub_that_was_only_announced_has_no_status(own: Running) -> None:
    """A hub without presence is listed all the same: nobody looks for what no list shows."""
    own.run(own.desk.write(lambda connection: add_hub(connection, "berlin", "fresh")))
    with own.client() as client:
        [entry] = [entry for entry in items(client, "/hubs", site="berlin") if entry["hub"] == "fresh"]
    assert entry["presence"] is None
