"""Who may use the API: every way of not being allowed to, what is written down of it, and names that are meant to break in."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cloud.desk import Listener
from cloud.tokens import Access, Failures, Tokens, first_tokens
from config import limits
from config.errors import SettingsError
from config.tokens import new_token
from tests.cloud.api_desk import T0, Running, running_api
from tests.cloud.stored import query

TASK = {"action": "ping", "targets": {"all": True}}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_api(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Running]:
    with running_api(tmp_path) as running:
        yield running


def operations(api: Running) -> list[tuple[str, str]]:
    """Return method and path of everything that the OpenAPI document knows below /api/v1, with names filled in."""
    document = httpx.get(f"{api.url}/api/v1/openapi.json", trust_env=False).json()
    names = {"{site}": "berlin", "{hub}": "pc-1", "{task}": "0" * 16, "{group}": "laptops", "{scope}": "site"}
    names |= {"{name}": "berlin", "{token}": "reader"}
    found = []
    for template, methods in document["paths"].items():
        path = template.removeprefix("/api/v1")
        for placeholder, name in names.items():
            path = path.replace(placeholder, name)
        if path != "/metrics":
            found += [(method.upper(), path) for method in methods]
    assert len(found) > 25
    return found


# --- Tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Basic YTpi", "Bearer x", "bearer  hubline_x", "expired", "revoked"]
)
def test_nothing_answers_without_a_token_that_counts(api: Running, header: str | None) -> None:
    """Each operation of the document, so that no new one can be forgotten."""
    text = f"Bearer {api.tokens[header]}" if header in api.tokens else header
    headers = {} if text is None else {"Authorization": text}
    statuses = set()
    with httpx.Client(base_url=f"{api.url}/api/v1", headers=headers, trust_env=False) as client:
        for method, path in operations(api):
            answer = client.request(method, path)
            statuses.add(answer.status_code)
            assert set(answer.json()) == {"error"}
    assert statuses <= {401, 429}


def test_ended_tokens_say_that_they_have_ended(own: Running) -> None:
    """Whoever holds one must know whether to look for a typing mistake or for an administrator."""
    for name, reason in (("expired", "the token has expired"), ("revoked", "the token was revoked")):
        with own.client(name) as client:
            answer = client.get("/hubs")
        assert (answer.status_code, answer.json()) == (401, {"error": reason})
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/hubs", "read"),
        ("GET", "/status", "read"),
        ("GET", "/settings/fleet/-", "read"),
        ("POST", "/hubs/berlin/pc-1/resume", "operate"),
        ("POST", "/tasks", "operate"),
        ("POST", f"/tasks/{'0' * 16}/cancel", "operate"),
        ("PUT", "/settings/fleet/-", "operate"),
        ("PUT", "/groups/x/members/berlin/pc-1", "operate"),
        ("DELETE", "/groups/x/members/berlin/pc-1", "operate"),
        ("DELETE", "/hubs/berlin/pc-none", "admin"),
        ("GET", "/audit", "admin"),
        ("GET", "/tokens", "admin"),
        ("POST", "/tokens", "admin"),
        ("DELETE", "/tokens/x", "admin"),
    ],
)
def test_scope_says_how_far_a_token_reaches(api: Running, method: str, path: str, scope: str) -> None:
    """A dashboard's token that leaks must not be able to restart hubs."""
    body = {"/tasks": TASK, "/settings/fleet/-": {"content": {}}, "/tokens": {"name": "x", "scope": "read"}}
    order = ("read", "operate", "admin")
    for token, has in (("reader", "read"), ("operator", "operate"), ("admin", "admin")):
        with api.client(token) as client:
            answer = client.request(method, path, json=body.get(path) if method != "GET" else None)
        assert (answer.status_code == 403) == (order.index(has) < order.index(scope)), (token, answer.text)
        if answer.status_code == 403:
            assert answer.json() == {"error": f"this needs a token of the scope {scope}, this one has {has}"}


def test_token_of_a_site_sees_and_touches_only_its_hubs(own: Running) -> None:
    """Several customers on one cloud: not even the existence of another's machine is told."""
    with own.client() as admin:
        everywhere = admin.post("/tasks", json=TASK).json()["task"]
        elsewhere = admin.post("/tasks", json={"action": "ping", "targets": {"sites": ["munich"]}}).json()["task"]
    with own.client("berlin") as client:
        for path in ("/hubs?hidden=all", "/connection-log", "/storage", "/groups/laptops"):
            found = client.get(path).json()["items"]
            assert {entry["site"] for entry in found} == {"berlin"}, path
        assert client.get("/hubs?site=munich").json()["items"] == []
        assert client.get("/connection-log?site=munich").json()["items"] == []
        assert client.get("/groups").json()["items"] == [{"group": "laptops", "hubs": 1}]
        assert client.get("/status").json()["hubs"] == {"online": 2, "offline": 1}
        assert "stored_messages" not in client.get("/status").json()["service"]
        for method, path in (
            ("GET", "/hubs/munich/lap-1"),
            ("GET", "/hubs/munich/lap-1/values"),
            ("GET", "/hubs/munich/lap-1/settings"),
            ("GET", "/connection-log?site=munich&hub=lap-1"),
            ("GET", "/readings?site=munich&hub=lap-1"),
            ("GET", "/readings/sums?site=munich&hub=lap-1&sensor=x"),
            ("GET", "/logs?site=munich&hub=lap-1"),
            ("POST", "/hubs/munich/lap-1/pause"),
            ("PUT", "/groups/laptops/members/munich/lap-1"),
            ("DELETE", "/groups/laptops/members/munich/lap-1"),
            ("GET", f"/tasks/{elsewhere}"),
            ("POST", f"/tasks/{elsewhere}/cancel"),
            ("GET", "/tasks?site=munich&hub=lap-1"),
        ):
            answer = client.request(method, path)
            assert answer.status_code == 404, path
            assert "pc-" not in answer.text
        for document in ("fleet/-", "site/munich", "group/laptops", "hub/munich:lap-1"):
            for method, body in (("GET", None), ("PUT", {"content": {}})):
                assert client.request(method, f"/settings/{document}", json=body).status_code == 404
            assert client.get(f"/settings/{document}/history").status_code == 404
            assert client.get(f"/settings/{document}/diff?before=0").status_code == 404
        assert client.put("/settings/site/berlin", json={"content": {}}).status_code == 200
        assert client.get("/settings/hub/berlin:pc-1").status_code == 200
        assert [entry["task"] for entry in client.get("/tasks").json()["items"]] == [everywhere]
        assert client.get(f"/tasks/{everywhere}").json()["states"] == {"queued": 3}
        assert client.post("/tasks", json=TASK).json()["targets"] == 3
        named = {"action": "ping", "targets": {"hubs": ["munich/lap-1"]}}
        assert client.post("/tasks", json=named).status_code == 404
        assert client.post(f"/tasks/{everywhere}/cancel").status_code == 200
    with own.client() as admin:
        assert admin.get(f"/tasks/{everywhere}").json()["states"] == {"cancelled": 3, "queued": 2}
    with own.client("berlin-admin") as client:
        assert client.delete("/hubs/munich/lap-1").status_code == 404
        assert client.delete("/hubs/berlin/pc-3").status_code == 200
        for method, path in (("GET", "/audit"), ("GET", "/tokens"), ("DELETE", "/tokens/reader")):
            assert client.request(method, path).status_code == 403
        assert client.post("/tokens", json={"name": "mine", "scope": "admin"}).status_code == 403
        metrics = httpx.get(f"{own.url}/metrics", headers=dict(client.headers), trust_env=False)
        assert (metrics.status_code, "pc-" in metrics.text) == (403, False)


def test_token_lives_from_its_making_to_its_revocation(own: Running) -> None:
    """Its text is shown once; what the database holds lets nobody in."""
    with own.client() as admin:
        made = admin.post(
            "/tokens", json={"name": "board", "scope": "read", "site": "berlin", "expires_days": 7}
        ).json()
        with own.client(made["token"]) as client:
            assert len(client.get("/hubs").json()["items"]) == 3
            [listed] = [entry for entry in admin.get("/tokens").json()["items"] if entry["name"] == "board"]
            assert (listed["scope"], listed["site"], listed["revoked"]) == ("read", "berlin", None)
            assert listed["used"] is not None
            assert listed["expires"] == made["expires"]
            assert made["token"] not in admin.get("/tokens").text
            with own.client(query(own.desk.file, "SELECT sha256 FROM tokens WHERE name = 'board'")[0][0]) as thief:
                assert thief.get("/hubs").status_code == 401
            taken = admin.post("/tokens", json={"name": "board", "scope": "read"})
            assert (taken.status_code, taken.json()["key"]) == (422, "name")
            assert admin.delete("/tokens/board").status_code == 200
            assert client.get("/hubs").status_code == 401
        assert admin.post("/tokens", json={"name": "board", "scope": "read"}).status_code == 422
        assert admin.delete("/tokens/nobody").status_code == 404
        assert "hubline_" not in str(query(own.desk.file, "SELECT * FROM tokens, audit_log"))


def test_first_token_can_be_revoked_but_not_by_itself(own: Running) -> None:
    """It lies in a file of the bundle; an administrator who fears for it must be able to end it, and keep another."""
    with own.client() as admin:
        assert admin.delete("/tokens/admin").status_code == 409
        second = admin.post("/tokens", json={"name": "second", "scope": "admin"}).json()["token"]
        assert admin.post("/tokens", json={"name": "admin", "scope": "admin"}).status_code == 422
        with own.client(second) as other:
            assert other.delete("/tokens/admin").status_code == 200
            assert admin.get("/hubs").status_code == 401
            assert other.delete("/tokens/second").status_code == 409
            [entry] = [entry for entry in other.get("/tokens").json()["items"] if entry["name"] == "admin"]
            assert entry["revoked"] is not None


def test_token_that_another_process_has_revoked_is_soon_known() -> None:
    """Several services may share a database one day; a revocation counts for all."""
    tokens = Tokens([])
    entry = Access(1, "a", "0" * 64, "read")
    tokens.take([entry])
    assert tokens.still_counts(entry, T0)
    tokens.take([Access(1, "a", "0" * 64, "read", revoked_ms=T0)])
    assert not tokens.still_counts(entry, T0)
    tokens.take([])
    assert not tokens.still_counts(entry, T0)


def test_file_of_the_first_token_is_read_or_named(tmp_path: Path) -> None:
    """Without it only the tokens of the database count; a damaged one is said in one line."""
    assert first_tokens(tmp_path / "none.json") == []
    (tmp_path / "bad.json").write_text('{"tokens": 1}')
    with pytest.raises(SettingsError, match=r"bad\.json: is damaged"):
        first_tokens(tmp_path / "bad.json")


# --- Failures --------------------------------------------------------------------------------------------------------


def test_wrong_tokens_are_answered_at_a_bounded_rate_and_right_ones_always(own: Running) -> None:
    """Guessing is hopeless and costs us nothing; and nobody can lock out who shares an address with him."""
    with own.client(new_token()) as guesser, own.client("reader") as reader:
        answers = [guesser.get("/hubs") for _ in range(limits.API_FAILURES_BURST + 3)]
        assert [answer.status_code for answer in answers[: limits.API_FAILURES_BURST]] == [401] * 10
        assert [answer.status_code for answer in answers[limits.API_FAILURES_BURST :]] == [429] * 3
        assert 1 <= int(answers[-1].headers["Retry-After"]) <= limits.API_FAILURE_REFILL_S
        assert reader.get("/hubs").status_code == 200
    assert len(query(own.desk.file, "SELECT * FROM audit_log")) == limits.API_FAILURES_BURST


def test_failures_are_forgiven_with_time_and_counted_by_network() -> None:
    """An IPv6 host has 2^64 addresses of its own; IPv4 in IPv6 is the same host."""
    failures = Failures()
    for _ in range(limits.API_FAILURES_BURST):
        assert failures.fail("2001:db8::1", 100.0) is None
    assert failures.fail("2001:db8::2", 100.0) == limits.API_FAILURE_REFILL_S
    assert failures.fail("2001:db8:0:1::1", 100.0) is None
    assert failures.fail("2001:db8::3", 100.0 + limits.API_FAILURE_REFILL_S) is None
    assert failures.fail("2001:db8::3", 100.0 + limits.API_FAILURE_REFILL_S) is not None
    for _ in range(limits.API_FAILURES_BURST):
        failures.fail("192.0.2.1", 0.0)
    assert failures.fail("::ffff:192.0.2.1", 0.0) is not None
    for number in range(limits.API_ADDRESSES_REMEMBERED):
        failures.fail(f"no-address-{number}", 0.0)
    assert failures.fail("192.0.2.1", 0.0) is None


def test_header_does_not_change_whose_failure_it_is(own: Running) -> None:
    """Whoever could choose his address could choose a new one for each guess."""
    statuses = []
    with own.client("x") as client:
        for number in range(limits.API_FAILURES_BURST + 1):
            forged = {"X-Forwarded-For": f"192.0.2.{number}", "Forwarded": f"for=192.0.2.{number}"}
            statuses.append(client.get("/hubs", headers=forged).status_code)
    assert statuses[-1] == 429


def test_metrics_are_for_this_machine_or_a_token_of_the_fleet(own: Running) -> None:
    """Behind a proxy every request comes from this machine: then it needs a token."""

    def ask(**headers: str) -> int:
        return httpx.get(f"{own.url}/metrics", headers=headers, trust_env=False).status_code

    assert ask() == 200
    assert ask(**{"X-Forwarded-For": "192.0.2.1"}) == 401
    assert ask(Authorization="Bearer x") == 401
    assert ask(Authorization=f"Bearer {own.tokens['reader']}") == 200
    assert ask(Authorization=f"Bearer {own.tokens['reader']}", Forwarded="for=192.0.2.1") == 200


# --- The audit log ---------------------------------------------------------------------------------------------------


def test_everything_that_changes_or_is_refused_is_written_down(own: Running) -> None:
    """Who did what, from where, to what, and how it ended; reading leaves no trace."""
    with own.client("operator") as client:
        client.get("/hubs")
        client.get("/hubs/berlin/pc-9")
        client.post("/hubs/berlin/pc-1/pause")
        client.post("/hubs/munich/lap-1/pause")
        client.post("/hubs/berlin/pc-9/pause")
        client.delete("/hubs/berlin/pc-1")
        client.post("/tasks", json={**TASK, "arguments": {"password": "secret"}})
        client.post("/tasks", json={"action": "ping"})
        client.put("/settings/fleet/-", json={"content": {"logs": {"level": "debug"}}})
        client.get("/audit")
    with own.client("berlin") as client:
        client.post("/hubs/munich/lap-1/pause")
    with own.client("wrong") as client:
        client.get("/hubs")
    found = [(entry["who"], entry["action"], entry["target"], entry["outcome"]) for entry in own.audited()]
    unknown = "there is no hub"
    assert found[::-1] == [
        ("operator", "pause_hub", "berlin/pc-1", "done"),
        ("operator", "pause_hub", "munich/lap-1", "refused: 409 it was never seen: there is nothing to pause"),
        ("operator", "pause_hub", "berlin/pc-9", f"refused: 404 {unknown} berlin/pc-9: did you mean {MEANT}?"),
        ("operator", "forget_hub", "/api/v1/hubs/berlin/pc-1", f"refused: 403 {ADMIN_ONLY}"),
        ("operator", "create_task", "task 0000000000000001", "done"),
        ("operator", "create_task", "/api/v1/tasks", "refused: 422 targets: Field required"),
        ("operator", "put_settings", "settings fleet/-", "done"),
        ("operator", "list_audit", "/api/v1/audit", f"refused: 403 {ADMIN_ONLY}"),
        ("berlin", "pause_hub", "munich/lap-1", f"refused: 404 {unknown} munich/lap-1"),
        ("-", "get", "/api/v1/hubs", "refused: 401 the token is unknown"),
    ]
    assert {entry["address"] for entry in own.audited()} == {"127.0.0.1"}
    assert [entry["detail"] for entry in own.audited(action="put_settings")] == [{"version": 1}]
    assert len(own.audited(who="berlin")) == 1
    assert own.audited(until=str(T0)) == []
    assert "secret" not in str(query(own.desk.file, "SELECT * FROM audit_log"))


MEANT = "berlin/pc-3 or berlin/pc-2 or berlin/pc-1"
ADMIN_ONLY = "this needs a token of the scope admin, this one has operate"


def test_entry_is_stored_before_the_answer_goes_out(own: Running) -> None:
    """Whoever has an answer can rely on the entry, whatever happens next."""
    with own.client() as client:
        for number in range(1, 6):
            client.post("/hubs/berlin/pc-1/resume")
            assert query(own.desk.file, "SELECT count(*) FROM audit_log") == [(number,)]


# --- What is meant to break in ---------------------------------------------------------------------------------------

COUNTS = "SELECT (SELECT count(*) FROM hubs), (SELECT count(*) FROM tokens), (SELECT count(*) FROM tasks)"
EVIL = (
    "' OR '1'='1",
    "x'; DROP TABLE hubs; --",
    '" UNION SELECT sha256 FROM tokens --',
    "../../etc/passwd",
    "..%2f..%2ftokens",
    "berlin/+/#",
    "+",
    "#",
    "$SYS",
    "pc-1\x00",
    "pc-1\n",
    "pc-1\r\nX-Evil: 1",
    "PC-1",
    "-",
    "ﬀ",
    "a" * 64,
    "%",
    "_",
    "\x1b[2J",
)


@pytest.mark.parametrize("evil", EVIL)
def test_evil_names_are_refused_or_find_nothing(api: Running, evil: str) -> None:
    """Names go into SQL as parameters and into topics as labels; what is no label never gets so far."""
    before = query(api.desk.file, COUNTS)
    quoted = "".join(f"%{byte:02X}" for byte in evil.encode())
    with api.client() as client:
        for path in (
            f"/hubs/{quoted}/pc-1",
            f"/hubs/berlin/{quoted}",
            f"/hubs/berlin/{quoted}/settings",
            f"/tasks/{quoted}",
            f"/settings/site/{quoted}",
            f"/groups/{quoted}",
        ):
            answer = client.get(path)
            assert answer.status_code in (404, 405, 422) or (path == "/groups/%2D"), (path, answer.text)
            assert "\n" not in answer.json().get("error", "")
        for name in ("site", "group", "text", "cursor"):
            answer = client.get("/hubs", params={name: evil})
            assert answer.status_code == 422 or (name == "text" and _only(evil, answer)), answer.text
        for name in ("event", "text", "level"):
            answer = client.get("/logs", params={"site": "berlin", "hub": "pc-1", name: evil})
            assert answer.status_code in (200, 422)
        for body in (
            {"action": evil, "targets": {"all": True}},
            {"action": "ping", "targets": {"hubs": [evil]}},
            {"action": "ping", "targets": {"sites": [evil]}},
            {"action": "ping", "targets": {"hubs": [f"berlin/{evil}"]}},
        ):
            assert client.post("/tasks", json=body).status_code == 422
        assert client.put(f"/groups/{quoted}/members/berlin/pc-1").status_code in (404, 405, 422)
        assert client.post("/tokens", json={"name": evil, "scope": "read"}).status_code == 422
        assert client.put("/settings/fleet/-", json={"content": {evil: {"x": 1}}}).status_code == 422
    assert query(api.desk.file, COUNTS) == before


def _only(text: str, answer: httpx.Response) -> bool:
    return all(text.lower() in f"{entry['site']}/{entry['hub']}" for entry in answer.json()["items"])


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=100))
def test_any_text_is_searched_as_it_is_written(api: Running, text: str) -> None:
    """A filter is data: it finds the names that contain it and nothing else."""
    names = [f"{site}/{hub_id}" for site, hub_id in query(api.desk.file, "SELECT site, hub FROM hubs")]
    with api.client() as client:
        answer = client.get("/hubs", params={"text": text, "hidden": "all"})
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        assert answer.status_code == 422
        return
    found = [f"{entry['site']}/{entry['hub']}" for entry in answer.json()["items"]]
    assert found == sorted(name for name in names if _folded(text) in name)


def _folded(text: str) -> str:
    return "".join(char.lower() if char.isascii() else char for char in text)


def test_large_and_broken_bodies_are_refused(api: Running) -> None:
    """A body is read to its bound, declared or not, and judged as JSON."""
    big = b'{"content": {"logs": {"x": "' + b"a" * limits.API_BODY_MAX_BYTES + b'"}}}'
    kind = {"Content-Type": "application/json"}
    with api.client() as client:
        assert client.put("/settings/fleet/-", content=big, headers=kind).status_code == 413
        chunks = iter([big[:1000], big[1000:]])
        assert client.put("/settings/fleet/-", content=chunks, headers=kind).status_code == 413
        for broken in (b"{", b"\xff", b"[" * 100_000, b'{"content": {"logs": {"x": "\\ud800"}}}', b"null", b""):
            answer = client.put("/settings/fleet/-", content=broken, headers=kind)
            assert answer.status_code in (400, 422), broken[:20]
            assert "\n" not in answer.json()["error"]


def test_garbage_on_the_wire_ends_only_its_connection(api: Running) -> None:
    """A scanner finds the port sooner or later."""
    port = int(api.url.rpartition(":")[2])
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n", b"A" * 70_000, b"\r\n" * 1000):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
            raw.sendall(garbage)
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(4096):
                pass
    with api.client() as client:
        assert client.get("/hubs").status_code == 200


def test_listener_of_changes_is_bounded() -> None:
    """What is too much for a listener is dropped as a whole, and it is told to read anew: memory stays bounded."""
    from cloud.desk import Change

    listener = Listener(lambda _: None)
    for number in range(limits.API_CHANGES_WAITING_MAX + 1):
        listener.put(Change("presence", str(number), {}))
    listener.put(Change("presence", "after", {}))
    listener.close()

    async def kinds() -> list[str]:
        return [change.kind async for change in listener]

    import asyncio

    assert asyncio.run(kinds()) == ["reload", "presence"]
