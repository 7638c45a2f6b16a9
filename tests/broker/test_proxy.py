"""The way out through a proxy: when it is taken, and that a person can tell why it does not work."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.client import Lost, Opened, Refused, Session, SessionEvent, SessionOptions
from broker.proxy import Proxy, is_exempt, proxy_for, tunnel
from broker.server import Server
from broker.tls import ServerContext, client_context
from config import settings
from config.errors import HublineError, RefusedError, SettingsError, TransportError
from config.ports import free_ports
from config.principal import server_name
from tests.broker.certificates import FleetFiles
from tests.proxies import needs_tinyproxy, scripted_proxy, tinyproxy_command
from tests.sessions import Ears, is_a

CLOUD = "cloud.example.com:8883"
SECRET = "s3cret"


# --- Whether there is one ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "environ", "expected"),
    [
        ("", {}, None),
        ("", {"HTTPS_PROXY": "http://gw:3128"}, Proxy("gw", 3128, None, "HTTPS_PROXY")),
        ("", {"https_proxy": "http://a:1", "HTTPS_PROXY": "http://b:2"}, Proxy("a", 1, None, "https_proxy")),
        ("", {"HTTPS_PROXY": "gw:3128"}, Proxy("gw", 3128, None, "HTTPS_PROXY")),
        ("", {"HTTPS_PROXY": "http://gw"}, Proxy("gw", 80, None, "HTTPS_PROXY")),
        ("", {"HTTPS_PROXY": "HTTP://[2001:db8::1]:3128/"}, Proxy("2001:db8::1", 3128, None, "HTTPS_PROXY")),
        ("", {"HTTPS_PROXY": "  "}, None),
        ("", {"HTTP_PROXY": "http://gw:3128"}, None),
        ("", {"HTTPS_PROXY": "http://gw:3128", "NO_PROXY": "example.com"}, None),
        ("", {"HTTPS_PROXY": "http://gw:3128", "no_proxy": "example.com", "NO_PROXY": ""}, None),
        ("", {"HTTPS_PROXY": "http://me:a%3Ab%40c@gw:1"}, Proxy("gw", 1, "me:a:b@c", "HTTPS_PROXY")),
        ("none", {"HTTPS_PROXY": "http://gw:3128"}, None),
        ("http://me:pw@gw:3128", {"NO_PROXY": "*"}, Proxy("gw", 3128, "me:pw", "cloud.proxy")),
        ("http://gw:3128", {"HTTPS_PROXY": "http://other:1"}, Proxy("gw", 3128)),
    ],
)
def test_settings_count_before_the_environment(
    setting: str, environ: Mapping[str, str], expected: Proxy | None
) -> None:
    found = proxy_for(CLOUD, setting, environ)
    assert found == expected
    assert found is None or expected is None or found.credentials == expected.credentials


@pytest.mark.parametrize(
    "url",
    ["socks5://gw:1080", "https://gw:443", "http://", "http://gw:no", "http://gw:99999", "http://gw:0", "http://[::1"],
)
def test_what_is_no_http_proxy_is_named_with_its_variable(url: str) -> None:
    with pytest.raises(SettingsError, match=r"HTTPS_PROXY = .*: is no HTTP proxy"):
        proxy_for(CLOUD, "", {"HTTPS_PROXY": url})


def test_a_proxy_never_shows_its_password() -> None:
    proxy = proxy_for(CLOUD, f"http://me:{SECRET}@gw:3128", {})
    assert SECRET not in f"{proxy} {proxy!r}"
    with pytest.raises(SettingsError) as caught:
        proxy_for(CLOUD, "", {"HTTPS_PROXY": f"socks5://me:{SECRET}@gw:1080"})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("no_proxy", "endpoint", "exempt"),
    [
        ("", CLOUD, False),
        ("*", CLOUD, True),
        ("cloud.example.com", CLOUD, True),
        ("CLOUD.Example.com", CLOUD, True),
        ("example.com", CLOUD, True),
        (".example.com", CLOUD, True),
        ("*.example.com", CLOUD, True),
        ("ample.com", CLOUD, False),
        ("a.org, example.com", CLOUD, True),
        ("a.org example.com", CLOUD, True),
        ("example.com:8883", CLOUD, True),
        ("example.com:443", CLOUD, False),
        (".", CLOUD, False),
        (",,", CLOUD, False),
        ("cloud.example.com", "cloud.example.com.:8883", True),
        ("10.0.0.0/8", "10.1.2.3:8883", True),
        ("10.0.0.0/8", "11.1.2.3:8883", False),
        ("10.1.2.3", "10.1.2.3:8883", True),
        ("10.1.2.3:443", "10.1.2.3:8883", False),
        ("10.0.0.0/8:8883", "10.1.2.3:8883", True),
        ("10.0.0.0/99", "10.1.2.3:8883", False),
        ("example.com", "10.1.2.3:8883", False),
        ("2001:db8::/32", "[2001:db8::7]:8883", True),
        ("2001:db8::7", "[2001:db8::7]:8883", True),
        ("[2001:db8::7]:443", "[2001:db8::7]:8883", False),
        ("[2001:db8::7]", "[2001:db8::7]:8883", True),
        ("10.0.0.0/8", "[2001:db8::7]:8883", False),
        ("", "127.0.0.1:8883", True),
        ("", "127.8.8.8:8883", True),
        ("", "[::1]:8883", True),
        ("", "localhost:8883", True),
        ("", "localhost.example.com:8883", False),
    ],
)
def test_no_proxy_is_read_as_people_write_it(no_proxy: str, endpoint: str, exempt: bool) -> None:
    """And a broker on this machine is never reached through somebody else's."""
    assert is_exempt(endpoint, no_proxy) is exempt


@pytest.mark.parametrize("role", ["hub", "connector"])
@pytest.mark.parametrize(
    ("value", "fits"),
    [
        ("", True),
        ("none", True),
        ("http://gw:3128", True),
        (f"http://me:{SECRET}@gw:3128", True),
        ("http://[::1]:3128/", True),
        ("gw:3128", False),
        ("http://gw", False),
        (f"socks5://me:{SECRET}@gw:1", False),
        ("http://gw:3128/path", False),
    ],
)
def test_the_setting_is_checked_and_its_password_hidden(tmp_path: Path, role: str, value: str, fits: bool) -> None:
    """It would be shown by `hubline config show`, and in errors."""
    file = tmp_path / f"{role}.toml"
    file.write_text(
        f'[identity]\nfleet = "f"\nsite = "s"\nname = "n"\nca = "a"\ncert = "b"\nkey = "c"\n[cloud]\nproxy = "{value}"\n'
    )
    shape = settings.HubSettings if role == "hub" else settings.ConnectorSettings
    if fits:
        assert settings.load(file, shape, {}).cloud.proxy == value
        shown = [each.value for each in settings.effective(file, shape, {}) if each.key == "cloud.proxy"]
        assert SECRET not in str(shown)
        return
    with pytest.raises(SettingsError, match=r"cloud\.proxy") as caught:
        settings.load(file, shape, {})
    assert SECRET not in str(caught.value)


# --- What it says --------------------------------------------------------------------------------------------------------


def through(reply: bytes, credentials: str | None = None, *, pieces: bool = False, timeout_s: float = 20.0) -> bytes:
    """Ask a proxy that answers `reply` for a tunnel; return the first bytes behind it."""

    def talk(sock: socket.socket, _request: bytes) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in [reply[index : index + 1] for index in range(len(reply))] if pieces else [reply]:
            sock.sendall(part)
        if not reply:
            sock.recv(1)

    with scripted_proxy(talk) as port, socket.create_connection(("127.0.0.1", port)) as sock:
        tunnel(sock, Proxy("127.0.0.1", port, credentials), CLOUD, timeout_s)
        return sock.recv(100)


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200 Connection established\r\nVia: a\r\n\r\n"])
def test_a_tunnel_begins_exactly_behind_the_proxys_answer(head: bytes, pieces: bool) -> None:
    """Whatever else it says, and however it cuts it: a byte too many or too few, and TLS breaks."""
    assert through(head + b"!", pieces=pieces)[:1] == b"!"


@pytest.mark.parametrize(
    ("reply", "credentials", "error", "words"),
    [
        (b"HTTP/1.1 407 Auth\r\nProxy-Authenticate: Basic realm=x\r\n\r\n", None, RefusedError, "wants a user"),
        (b"HTTP/1.1 407 Auth\r\n\r\n", None, RefusedError, 'cloud.proxy, as "http://user:password@'),
        (b"HTTP/1.1 407 Auth\r\nProxy-Authenticate: basic\r\n\r\n", f"me:{SECRET}", RefusedError, "does not accept"),
        (
            b"HTTP/1.1 407 Auth\r\nproxy-authenticate: NTLM\r\nProxy-Authenticate: Negotiate\r\n\r\n",
            None,
            RefusedError,
            "takes Negotiate or Ntlm only",
        ),
        (b"HTTP/1.1 403 Access violation\r\n\r\n", None, RefusedError, f"not let us through to {CLOUD} (403 Access"),
        (b"HTTP/1.1 405 No\r\n\r\n", None, RefusedError, "not let us through"),
        (b"HTTP/1.1 401 No\r\n\r\n", f"me:{SECRET}", RefusedError, "does not accept"),
        (b"HTTP/1.1 503 \x1b[2Jgone\r\n\r\n", None, TransportError, "(503 [2Jgone)"),
        (b"HTTP/1.1 400 Bad\r\n\r\n", None, RefusedError, "(400 Bad)"),
        (b"HTTP/1.1 302 Elsewhere\r\n\r\n", None, RefusedError, "(302 Elsewhere)"),
        (b"HTTP/1.1 502 Bad gateway\r\n\r\n", None, TransportError, f"can't reach {CLOUD} (502 Bad gateway)"),
        (b"HTTP/1.1 504\r\n\r\n", None, TransportError, "(504)"),
        (b"HTTP/1.1 404 Nowhere\r\n\r\n", None, TransportError, "(404 Nowhere)"),
        (b"HTTP/1.1 502 cut", None, TransportError, "(502 cut)"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", None, RefusedError, "no HTTP proxy"),
        (b"x" * 20_000, None, RefusedError, "no HTTP proxy"),
    ],
)
def test_what_the_proxy_says_is_told_in_words(
    reply: bytes, credentials: str | None, error: type[HublineError], words: str
) -> None:
    with pytest.raises(error) as caught:
        through(reply, credentials)
    assert words in str(caught.value)
    assert str(caught.value).startswith("proxy 127.0.0.1:")
    assert SECRET not in str(caught.value)


def test_a_proxy_that_says_nothing_is_given_up() -> None:
    with pytest.raises(TransportError, match="no answer in time"):
        through(b"", timeout_s=0.2)


def test_the_proxy_is_asked_as_the_standard_says() -> None:
    """RFC 9110, 9.3.6 and 11.7.2."""
    asked: list[bytes] = []

    def talk(sock: socket.socket, request: bytes) -> None:
        asked.append(request)
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

    with scripted_proxy(talk) as port, socket.create_connection(("127.0.0.1", port)) as sock:
        tunnel(sock, Proxy("127.0.0.1", port, "me:pä"), "[2001:db8::1]:443")
    lines = asked[0].decode().split("\r\n")
    assert lines[:2] == ["CONNECT [2001:db8::1]:443 HTTP/1.1", "Host: [2001:db8::1]:443"]
    scheme, token = lines[2].removeprefix("Proxy-Authorization: ").split()
    assert (scheme, b64decode(token).decode()) == ("Basic", "me:pä")
    assert lines[3:] == ["", ""]


# --- Sessions through it -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> FleetFiles:
    return FleetFiles(tmp_path_factory.mktemp("proxy"))


@contextmanager
def tinyproxy(folder: Path, *, allow: tuple[int, ...] = (), login: str = "") -> Iterator[int]:
    (port,) = free_ports(1)
    command = tinyproxy_command(folder, "127.0.0.1", port, allow=allow, login=login)
    with (folder / "tinyproxy.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline_at = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline_at, (folder / "tinyproxy.log").read_text()
                time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait()


async def first_event(files: FleetFiles, endpoint: str, proxy: Proxy) -> SessionEvent:
    """Return how a session to the broker of berlin begins."""
    ears = Ears()
    tls = client_context(files.identity("hub", "pc-1", "berlin"), server_name("acme", "berlin"))
    session = Session(SessionOptions(endpoint, "pc-1", tls, proxy=proxy), ears)
    session.open()
    event = await ears.hear(is_a(Opened, Refused, Lost))
    await session.close()
    return event


def with_broker(files: FleetFiles, proxy: Proxy) -> SessionEvent:
    async def run() -> SessionEvent:
        server = Server(files.broker_settings())
        await server.start()
        try:
            return await first_event(files, server.listen[0], proxy)
        finally:
            await server.stop()

    return asyncio.run(run())


@needs_tinyproxy
@pytest.mark.parametrize("login", ["", "me:pw"])
def test_a_session_opens_through_a_real_proxy(files: FleetFiles, tmp_path: Path, login: str) -> None:
    with tinyproxy(tmp_path, login=login) as port:
        assert with_broker(files, Proxy("127.0.0.1", port, login or None)) == Opened()


@needs_tinyproxy
def test_a_real_proxy_that_wants_a_password_is_understood(files: FleetFiles, tmp_path: Path) -> None:
    with tinyproxy(tmp_path, login="me:pw") as port:
        for credentials, words in ((None, "wants a user and a password"), (f"me:{SECRET}", "does not accept")):
            event = with_broker(files, Proxy("127.0.0.1", port, credentials))
            assert isinstance(event, Refused)
            assert words in event.reason
            assert SECRET not in event.reason


@needs_tinyproxy
def test_a_real_proxy_that_forbids_the_port_is_understood(files: FleetFiles, tmp_path: Path) -> None:
    with tinyproxy(tmp_path, allow=(443,)) as port:
        event = with_broker(files, Proxy("127.0.0.1", port))
        assert isinstance(event, Refused)
        assert "does not let us through" in event.reason
        assert "443" in event.reason


@needs_tinyproxy
def test_a_real_proxy_that_finds_no_broker_is_understood(files: FleetFiles, tmp_path: Path) -> None:
    (nobody,) = free_ports(1)
    with tinyproxy(tmp_path) as port:
        event = asyncio.run(first_event(files, f"127.0.0.1:{nobody}", Proxy("127.0.0.1", port)))
        assert isinstance(event, Lost)
        assert f"proxy 127.0.0.1:{port}: it can't reach 127.0.0.1:{nobody}" in event.reason


def test_a_proxy_that_is_not_there_is_named(files: FleetFiles) -> None:
    """Else an administrator would look at the broker."""
    (nobody,) = free_ports(1)
    event = asyncio.run(first_event(files, "127.0.0.1:8883", Proxy("127.0.0.1", nobody)))
    assert event == Lost(f"proxy 127.0.0.1:{nobody}: connection refused", None)


def test_a_silent_proxy_holds_nobody(files: FleetFiles) -> None:
    """A session that is closed meanwhile ends at once, and leaves no thread."""

    async def run(port: int) -> None:
        ears = Ears()
        tls = client_context(files.identity("hub", "pc-1", "berlin"), server_name("acme", "berlin"))
        session = Session(SessionOptions(CLOUD, "pc-1", tls, proxy=Proxy("127.0.0.1", port)), ears)
        session.open()
        await asyncio.to_thread(lambda: asked.append(waiting.accept()))
        session.abort()
        await ears.hear(is_a(Lost))

    asked: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as waiting:
        asyncio.run(run(waiting.getsockname()[1]))
        for sock, _ in asked:  # type: ignore[attr-defined]
            sock.close()


@pytest.mark.parametrize(("port", "expected"), [(443, "mqtt"), (8883, None)])
def test_mqtt_is_named_on_the_port_of_the_web(files: FleetFiles, port: int, expected: str | None) -> None:
    """RFC 7301: so that one port can serve both; and our broker confirms it."""
    spoken: list[str | None] = []
    context = ServerContext(files.identity("broker", "broker-1", "berlin"), None).current

    def talk(sock: socket.socket, _request: bytes) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with context.wrap_socket(sock, server_side=True) as tls:
            spoken.append(tls.selected_alpn_protocol())
            tls.recv(100)

    with scripted_proxy(talk) as proxy_port:
        event = asyncio.run(first_event(files, f"cloud.invalid:{port}", Proxy("127.0.0.1", proxy_port)))
    assert isinstance(event, Lost)
    assert spoken == [expected]


def test_a_client_that_offers_something_else_is_served_all_the_same(files: FleetFiles) -> None:
    """A browser's or a balancer's offer is no reason to break off."""
    server = ServerContext(files.identity("broker", "broker-1", "berlin"), None).current
    client = client_context(files.identity("hub", "pc-1", "berlin"), server_name("acme", "berlin"))
    client.set_alpn_protocols(["http/1.1"])
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    ours = client.wrap_bio(to_client, to_server)
    for _ in range(3):
        for side in (ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert ours.selected_alpn_protocol() is None
    assert ours.version() is not None
