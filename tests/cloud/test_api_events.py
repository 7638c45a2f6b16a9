"""Changes as they happen, and how the server starts and ends with streams open."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloud import api_events
from cloud.api import create_app
from cloud.api_server import ApiServer
from cloud.tokens import Tokens
from config import limits, provision
from config.errors import SettingsError
from config.settings import Api
from tests.cloud.api_desk import Running, SqliteDesk, running_api, settings_of

PC_1 = ("berlin", "pc-1")
LAP_1 = ("munich", "lap-1")


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Running]:
    with running_api(tmp_path) as running:
        yield running


@contextmanager
def listening(api: Running, token: str = "reader", **parameters: Any) -> Iterator[Iterator[tuple[str, dict[str, Any]]]]:
    """Open a stream of events and return them once its `hello` has come."""
    with api.client(token) as client, client.stream("GET", "/events", params=parameters) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = parsed(answer.iter_lines())
        assert next(events)[0] == "hello"
        yield events


def parsed(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    name = ""
    for line in lines:
        key, _, value = line.partition(": ")
        if key == "event":
            name = value
        elif key == "data":
            yield name, json.loads(value)


def test_change_is_heard_as_it_happens(api: Running) -> None:
    """`fleet watch` and the console live on it."""
    with listening(api) as events:
        api.run(api.desk.set_presence(PC_1, "offline", "lost contact"))
        name, event = next(events)
        assert (name, event["key"], event["body"]["reason"]) == ("presence", "berlin/pc-1", "lost contact")
        with api.client() as client:
            client.post("/tasks", json={"action": "ping", "targets": {"hubs": ["berlin/pc-1"]}})
            client.put("/settings/fleet/-", json={"content": {}})
        assert [next(events)[0] for _ in range(2)] == ["task", "settings"]


def test_listener_hears_only_of_its_site_and_what_it_asked_for(api: Running) -> None:
    """The stream is bound by the same rights as every list."""
    with listening(api, "berlin", kind=["presence"]) as events, listening(api) as everything:
        with api.client() as client:
            client.put("/settings/fleet/-", json={"content": {}})
            client.post("/tasks", json={"action": "ping", "targets": {"all": True}})
        for key in (LAP_1, PC_1):
            api.run(api.desk.set_presence(key, "offline", "stopped"))
        assert next(events)[1]["key"] == "berlin/pc-1"
        assert [next(everything)[0] for _ in range(8)] == ["settings", *["task"] * 5, "presence", "presence"]


def test_listener_that_lost_something_is_told_to_read_anew(api: Running) -> None:
    """A slow listener costs bounded memory and never believes what is no longer true."""
    with listening(api, "berlin", kind=["task"]) as events:
        api.run(api.desk.reload())
        assert next(events)[0] == "reload"


def test_silent_stream_shows_that_it_lives_and_ends_with_its_token(
    api: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxies close what is silent; and a revoked token must not go on listening for ever."""
    monkeypatch.setattr(limits, "API_HEARTBEAT_S", 0.05)
    with api.client("operator") as client, client.stream("GET", "/events") as answer, api.client() as admin:
        lines = answer.iter_lines()
        while next(lines) != ": still here":
            pass
        assert admin.delete("/tokens/operator").status_code == 200
        assert list(lines)[-1] == ""
    assert api_events.limits is limits


def test_only_so_many_may_listen_and_places_are_given_back(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams are open for days: their number is bounded, and one that is gone counts no more."""
    monkeypatch.setattr(limits, "API_STREAMS_MAX", 2)
    with listening(api), listening(api), api.client() as client:
        refused = client.get("/events")
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    deadline = time.monotonic() + 10
    with api.client() as client:
        while True:
            with client.stream("GET", "/events") as answer:
                if answer.status_code == 200:
                    break
            assert time.monotonic() < deadline


# --- The server ------------------------------------------------------------------------------------------------------


def test_server_stops_in_time_with_open_streams_and_requests(tmp_path: Path) -> None:
    """A service manager kills what does not end; a console that listens must not be the reason."""
    ended: list[list[str]] = []
    with running_api(tmp_path) as api, api.client() as client, client.stream("GET", "/events") as answer:
        idle = api.client()
        idle.get("/hubs")
        lines = answer.iter_lines()
        next(lines)
        reading = threading.Thread(target=lambda: ended.append(list(lines)))
        reading.start()
        began = time.monotonic()
        api.loop.call_soon_threadsafe(api.server.close)
        api.thread.join(10)
        took_s = time.monotonic() - began
        reading.join(10)
        idle.close()
    assert not api.thread.is_alive()
    assert len(ended) == 1  # The stream has ended in order, not by a reset.
    assert took_s < 2.0
    with pytest.raises(httpx.ConnectError), api.client() as client:
        client.get("/hubs")


def app_in(directory: Path, **api: Any) -> ApiServer:
    settings = settings_of(directory, **api)
    desk = SqliteDesk(directory / "none.db")
    try:
        return ApiServer(create_app(desk, Tokens([]), settings), settings.api)
    finally:
        desk.close()


@pytest.mark.parametrize(
    ("api", "said"),
    [
        ({"listen": "0.0.0.0:0"}, "api.listen = '0.0.0.0:0': is open to the network: set api.cert and api.key too"),
        ({"listen": "[::]:0"}, "is open to the network"),
        ({"listen": "no.such.host.invalid:80"}, "is no address of this machine"),
        ({"listen": "127.0.0.1:0", "cert": "cert.pem"}, "api.key: is missing"),
        ({"listen": "127.0.0.1:0", "cert": "no.pem", "key": "no.key"}, "api.cert = '.*no.pem': can't be read"),
        ({"listen": "127.0.0.1:0", "cert": "x.pem", "key": "x.pem"}, "api.cert: can't be used with .*x.pem"),
    ],
)
def test_address_that_cannot_be_served_is_said_in_one_line(tmp_path: Path, api: dict[str, str], said: str) -> None:
    """Before the service starts: a token must never cross a network in the clear."""
    (tmp_path / "x.pem").write_text("no certificate")
    files = {key: tmp_path / value for key, value in api.items() if key != "listen"}
    with pytest.raises(SettingsError, match=said) as caught:
        app_in(tmp_path, listen=api["listen"], **files)
    assert "\n" not in str(caught.value)


def test_port_in_use_is_said_in_one_line(tmp_path: Path) -> None:
    """The second service on a machine is a common mistake."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            SettingsError, match=f"api.listen = '{listen}': can't be listened on: Address already in use"
        ):
            app_in(tmp_path, listen=listen)


def test_tls_is_served_from_1_2_on(tmp_path: Path) -> None:
    """Beyond this machine the API speaks TLS, and nothing old."""
    provision.init(tmp_path / "fleet", "acme", cloud_hosts=["127.0.0.1:8883"])
    bundle = tmp_path / "fleet" / "bundles" / "broker" / "cloud"
    with running_api(tmp_path, cert=bundle / "cert.pem", key=bundle / "key.pem") as api:
        assert api.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=bundle / "ca.pem")
        headers = {"Authorization": f"Bearer {api.tokens['reader']}"}
        answer = httpx.get(f"{api.url}/api/v1/hubs", headers=headers, verify=trusted, trust_env=False)
        assert answer.status_code == 200
        old = ssl.create_default_context(cafile=bundle / "ca.pem")
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{api.url}/api/v1/hubs", headers=headers, verify=old, trust_env=False)


def test_signals_stay_the_services_own(tmp_path: Path) -> None:
    """The service stops in its own order: first the machines, then the database."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    async def main() -> None:
        server = app_in(tmp_path)
        running = asyncio.create_task(server.run())
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
        writer.write(b"GET /api/v1/openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
        writer.close()
        await writer.wait_closed()
        server.close()
        await running

    with asyncio.Runner() as runner:
        inside = runner.get_loop()
        inside.run_until_complete(main())


def test_settings_of_the_api_name_a_port_of_this_machine_by_default() -> None:
    """Whoever does not ask for more opens nothing to the network."""
    assert Api().listen == "127.0.0.1:8480"
