"""The doctor's checks one by one: what is wrong is found, named in plain words, and followed by what to do."""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from broker.clock import unix_ms
from broker.messages import ConnectorState
from broker.proxy import Proxy
from broker.server import Server
from broker.ssdp import Address
from config import limits, pki
from config.errors import SettingsError
from config.ports import free_ports
from config.settings import Failover, HubCloud, HubConnector, HubProcess, HubSettings, Identity
from hub import doctor_checks, doctor_surroundings
from hub.diagnosis import Check, Report, State, Verdict, span
from hub.discovery import Answer
from hub.doctor_cli import told
from hub.doctor_probe import IN_SETTINGS, Probed, Target, probe
from hub.doctor_surroundings import Heard
from hub.doctor_verdict import Situation, verdict
from hub.entries import Entry
from hub.link import Kind
from hub.memory import Remembered
from hub.outbox import Outbox
from hub.status import PathStatus
from tests.broker.certificates import DAY, FleetFiles
from tests.proxies import scripted_proxy

OK, WARNING, PROBLEM = State.OK, State.WARNING, State.PROBLEM


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> FleetFiles:
    return FleetFiles(tmp_path_factory.mktemp("doctor"))


@pytest.fixture(scope="module")
def ours(files: FleetFiles) -> Identity:
    return files.identity("hub", "pc-1", "berlin")


def settings_for(
    identity: Identity,
    data_dir: Path = Path("data"),
    cloud: Sequence[str] = ("cloud.invalid:8883",),
    connectors: Sequence[str] = (),
    discovery: bool = True,
    proxy: str = "none",
) -> HubSettings:
    return HubSettings(
        identity,
        HubProcess(data_dir),
        HubConnector(discovery, list(connectors)),
        HubCloud(list(cloud), proxy),
    )


# --- The machine itself --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shift", "file_shift", "state", "words"),
    [
        (timedelta(0), timedelta(0), OK, "agree"),
        (timedelta(0), timedelta(seconds=limits.CLOCK_SKEW_MAX_S - 1), OK, "agree"),
        (timedelta(0), timedelta(hours=1), WARNING, "the clock is wrong, it is behind"),
        (-400 * DAY, 400 * DAY, PROBLEM, "outbox.db was written at"),
        (-400 * DAY, timedelta(0), PROBLEM, "before the certificate begins"),
        (6 * 366 * DAY, timedelta(0), WARNING, "after the certificate's end"),
    ],
)
def test_the_clock_is_held_against_certificates_and_files(
    ours: Identity, shift: timedelta, file_shift: timedelta, state: State, words: str
) -> None:
    """A cold start with the clock of 1970 must not look like bad credentials."""
    now = pki.utc_now() + shift
    leaves = doctor_checks.leaves_in(ours.cert)
    check = doctor_checks.clock(now, leaves, {"outbox.db": now + file_shift})
    assert check.state is state
    assert words in check.text
    assert (check.todo is None) == (state is OK)
    assert check.todo is None or "clock" in check.todo


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({}, OK, "hub pc-1 of site berlin, fleet acme"),
        ({"cloud": ()}, WARNING, "no cloud broker is named"),
        ({"discovery": False}, WARNING, "discovery is off"),
        ({"discovery": False, "connectors": ["10.0.0.1:8883"]}, OK, "is all right"),
    ],
)
def test_settings_that_leave_no_way_are_pointed_out(
    ours: Identity, changes: Mapping[str, object], state: State, words: str
) -> None:
    check = doctor_checks.settings_read(Path("hub.toml"), settings_for(ours, **changes))  # type: ignore[arg-type]
    assert (check.state, words in check.text) == (state, True)


def _certificate_cases(files: FleetFiles) -> Iterator[tuple[str, Identity, State, str]]:
    good = files.identity("hub", "pc-1", "berlin")
    other = files.identity("hub", "pc-9", "berlin")
    yield "good", good, OK, "hub/pc-1, ECDSA with 256 bits, issued by Hubline authority 1 of acme"
    yield "expired", files.expired("hub", "pc-2", "berlin"), PROBLEM, "has expired on"
    yield "early", files.early("hub", "pc-3", "berlin"), PROBLEM, "clock"
    yield "foreign", files.foreign("hub", "pc-4", "berlin"), PROBLEM, "was issued by none of the authorities"
    yield "role", files.identity("connector", "pc-5", "berlin"), PROBLEM, "is for role 'connector'"
    yield "key", Identity("acme", "berlin", "pc-1", good.ca, good.cert, other.key), PROBLEM, "is not the key of"
    yield (
        "gone",
        Identity("acme", "berlin", "pc-1", good.ca, files.folder / "no.pem", good.key),
        PROBLEM,
        "no such file",
    )


@pytest.mark.parametrize("case", ["good", "expired", "early", "foreign", "role", "key", "gone"])
def test_certificate_chain_role_and_key_are_looked_at(files: FleetFiles, case: str) -> None:
    _, identity, state, words = next(each for each in _certificate_cases(files) if each[0] == case)
    for key in files.folder.glob("*.key.pem"):
        key.chmod(0o600)
    check = doctor_checks.certificate(settings_for(identity))
    assert check.state is state
    assert words in check.text
    assert (check.todo is None) == (state is OK)


def outbox_with(folder: Path, messages: int) -> Outbox:
    outbox = Outbox.open(folder / "outbox.db")
    for _ in range(messages):
        outbox.append("events", [Entry(unix_ms() - 60_000, b'{"event":"x"}')])
    return outbox


def test_an_outbox_in_use_is_looked_at_without_disturbing_its_hub(ours: Identity, tmp_path: Path) -> None:
    """While it runs, and after it was killed."""
    outbox = outbox_with(tmp_path, 1)
    try:
        check = doctor_checks.outbox(settings_for(ours, tmp_path), os.getpid(), unix_ms())
        assert check.state is OK
        assert f"in use by the running hub, process {os.getpid()}" in check.text
        assert check.details["pending"] == outbox.pending_messages
        assert "the oldest for 1 min" in check.text
        outbox.append("events", [Entry(unix_ms(), b'{"event":"y"}')])
    finally:
        outbox.close()


def test_an_outbox_at_rest_is_left_as_it_is(ours: Identity, tmp_path: Path) -> None:
    """Not even a file of SQLite's own appears, which another user could not remove."""
    outbox_with(tmp_path, 2).close()
    lock = tmp_path / "outbox.db.lock"
    lock.write_text("999999999\n")
    before = sorted(tmp_path.iterdir())
    check = doctor_checks.outbox(settings_for(ours, tmp_path), None, unix_ms())
    assert check.state is OK
    assert "no hub runs" in check.text
    assert sorted(tmp_path.iterdir()) == before


def test_a_hub_that_hangs_is_told_from_one_that_does_not_run(ours: Identity, tmp_path: Path) -> None:
    """The lock's file names a process that lives; one that began later only has its number."""
    outbox = outbox_with(tmp_path, 0)
    try:
        check = doctor_checks.outbox(settings_for(ours, tmp_path), None, unix_ms())
        assert (check.state, check.details["holder_pid"]) == (WARNING, os.getpid())
        os.utime(tmp_path / "outbox.db.lock", (1, 1))
        assert doctor_checks.outbox(settings_for(ours, tmp_path), None, unix_ms()).state is OK
    finally:
        outbox.close()


def test_a_missing_or_damaged_outbox_is_named(ours: Identity, tmp_path: Path) -> None:
    settings = settings_for(ours, tmp_path / "not" / "yet")
    check = doctor_checks.outbox(settings, None, unix_ms())
    assert (check.state, "there is none yet" in check.text) == (OK, True)
    assert not (tmp_path / "not").exists()
    (tmp_path / "outbox.db").write_bytes(b"not a database at all" * 100)
    damaged = doctor_checks.outbox(settings_for(ours, tmp_path), None, unix_ms())
    assert (damaged.state, "can't be read" in damaged.text) == (PROBLEM, True)
    (tmp_path / "outbox.db").unlink()
    sqlite3.connect(tmp_path / "outbox.db").execute("CREATE TABLE a (b)").connection.close()
    stranger = doctor_checks.outbox(settings_for(ours, tmp_path), None, unix_ms())
    assert (stranger.state, "it is no outbox" in stranger.text) == (PROBLEM, True)


@pytest.mark.parametrize(
    ("kept", "here", "words", "elsewhere"),
    [
        (Remembered(), "a-1", "no site broker is remembered yet", False),
        (Remembered(("10.0.0.1:8883",), None, "a-1"), "a-1", "10.0.0.1:8883, of this network", False),
        (Remembered(("10.0.0.1:8883",), None, "a-1"), "b-2", "another network than this one", True),
        (Remembered(("10.0.0.1:8883",), None, "a-1"), None, "can't be told", False),
        (Remembered(("10.0.0.1:8883",), None, None), "a-1", "can't be told", False),
        (Remembered((), 1_000, None), None, "no connector has been good for 1 min 1 s", False),
    ],
)
def test_what_is_remembered_is_told(kept: Remembered, here: str | None, words: str, elsewhere: bool) -> None:
    check = doctor_checks.cache(kept, None, here, Failover(), 62_000)
    assert words in check.text
    assert check.details["elsewhere"] is elsewhere
    assert ("15 s" in check.text) is elsewhere


def test_a_damaged_memory_costs_a_warning(tmp_path: Path) -> None:
    assert doctor_checks.remembered(tmp_path) == (Remembered(), None)
    (tmp_path / "paths.json").write_text("{")
    kept, damage = doctor_checks.remembered(tmp_path)
    check = doctor_checks.cache(kept, damage, None, Failover(), 0)
    assert (check.state, "can't be read" in check.text) == (WARNING, True)


# --- Around it -----------------------------------------------------------------------------------------------------------

ETH0 = Address("eth0", 2, IPv4Address("10.0.0.20"), IPv4Network("10.0.0.0/24"))
TUN0 = Address("tun0", 3, IPv4Address("10.9.0.2"), IPv4Network("10.9.0.0/24"))
TAKEN = Answer("10.0.0.1:8883", "eth0", "10.0.0.1", "uuid:a", None)
OTHER_SITE = Answer("10.0.0.9:8883", "eth0", "10.0.0.9", "uuid:b", "a connector of another site")


@pytest.mark.parametrize(
    ("heard", "state", "lines"),
    [
        (
            Heard([ETH0, TUN0], [TAKEN, OTHER_SITE]),
            OK,
            [
                "eth0 10.0.0.20: connector at 10.0.0.1:8883",
                "eth0 10.0.0.20: answer from 10.0.0.9 for 10.0.0.9:8883 not taken: a connector of another site",
                "tun0 10.9.0.2: no answer",
            ],
        ),
        (
            Heard([ETH0], [replace(OTHER_SITE, endpoint="", why_not="malformed: x")]),
            PROBLEM,
            ["eth0 10.0.0.20: answer from 10.0.0.9 not taken: malformed: x"],
        ),
        (Heard([TUN0], [], {TUN0: "network is down"}), PROBLEM, ["tun0 10.9.0.2: can't ask: network is down"]),
        (Heard([], []), PROBLEM, []),
    ],
)
def test_every_answer_is_shown_with_why_it_was_not_taken(
    ours: Identity, heard: Heard, state: State, lines: list[str]
) -> None:
    check = doctor_surroundings.told_search(settings_for(ours), heard)
    assert (check.state, list(check.lines)) == (state, lines)
    assert (check.todo is None) == (state is OK)


def test_a_search_that_is_switched_off_is_no_failure(ours: Identity) -> None:
    settings = settings_for(ours, discovery=False)
    heard = asyncio.run(doctor_surroundings.search(settings))
    check = doctor_surroundings.told_search(settings, heard)
    assert (check.state, check.text) == (OK, "not done: connector.discovery is false")


def test_names_are_resolved_and_one_that_does_not_exist_is_named() -> None:
    """`.invalid` never exists (RFC 6761, 6.4); an address needs no name server."""
    found = asyncio.run(doctor_surroundings.resolve(["localhost", "cloud.invalid", "10.0.0.1", "fe80::1%eth0"]))
    assert sorted(found) == ["cloud.invalid", "localhost"]
    assert "127.0.0.1" in found["localhost"]
    assert isinstance(found["cloud.invalid"], str)
    check = doctor_surroundings.told_names(found, {})
    assert (check.state, check.text.startswith("cloud.invalid can't be resolved: ")) == (PROBLEM, True)
    assert check.todo is not None


def test_behind_a_proxy_names_are_the_proxys_business() -> None:
    proxies = {"cloud.invalid:8883": Proxy("10.0.0.3", 3128, "me:pw", "HTTPS_PROXY"), "10.0.0.4:8883": None}
    check = doctor_surroundings.told_names({}, proxies)
    assert (check.state, check.text) == (OK, "cloud.invalid: left to the proxy")
    shown = doctor_surroundings.told_proxy(proxies, None)
    assert shown.text == "cloud.invalid:8883 through 10.0.0.3:3128 (from HTTPS_PROXY); straight to 10.0.0.4:8883"
    assert "pw" not in f"{shown}"


def test_a_proxy_that_can_not_be_used_is_named(ours: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5://me:secret@gw:1080")
    proxies, problem = doctor_surroundings.proxies_of(settings_for(ours, proxy=""))
    check = doctor_surroundings.told_proxy(proxies, problem)
    assert (check.state, "https_proxy" in check.text, "secret" in check.text) == (PROBLEM, True, False)
    assert doctor_surroundings.told_proxy(*doctor_surroundings.proxies_of(settings_for(ours))).state is OK


# --- One broker ----------------------------------------------------------------------------------------------------------


def probed(ours: Identity, endpoint: str, proxy: Proxy | None = None, kind: Kind = Kind.CONNECTOR) -> Probed:
    return asyncio.run(probe(Target(kind, endpoint, IN_SETTINGS, proxy), ours, {"cloud.invalid": []}, "pc-1.doctor"))


def ends_with(result: Probed, name: str, words: str) -> Check:
    """Assert that all steps went well up to the last one, which failed with these words."""
    *before, last = result.steps
    assert [step.state for step in before] == [OK] * len(before)
    assert (last.name, last.state) == (name, PROBLEM)
    assert words in last.text
    assert last.todo
    assert result.via is None
    return last


def test_a_closed_port_is_told_from_a_name_that_leads_nowhere(ours: Identity) -> None:
    (nobody,) = free_ports(1)
    check = ends_with(probed(ours, f"127.0.0.1:{nobody}"), "tcp", "nothing listens there")
    assert "hubline broker run" in str(check.todo)
    ends_with(probed(ours, "cloud.invalid:8883", kind=Kind.DIRECT), "tcp", "its name can't be resolved")


def test_a_port_that_takes_and_is_silent_is_given_up(ours: Identity) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        check = ends_with(probed(ours, endpoint), "tls", "takes the connection, and says nothing")
    assert "hangs" in str(check.todo)


@contextmanager
def answering(context: ssl.SSLContext | None) -> Iterator[str]:
    """Serve TLS (None: something else) with nothing behind it, and yield the endpoint."""
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)

    def serve() -> None:
        while not over.is_set():
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                continue
            with sock:
                sock.settimeout(20)
                try:
                    if context is None:
                        sock.sendall(b"220 mail.example ESMTP\r\n")
                        sock.recv(4096)
                    else:
                        with context.wrap_socket(sock, server_side=True) as tls:
                            tls.recv(100)
                except OSError:
                    pass  # The client did not like it: that is what is tested.

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        thread.join()
        listener.close()


def serving(identity: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.cert, identity.key)
    return context


def test_another_service_on_the_port_is_recognised(ours: Identity) -> None:
    with answering(None) as endpoint:
        check = ends_with(probed(ours, endpoint), "tls", "not TLS")
    assert "another service" in str(check.todo)


@pytest.mark.parametrize(
    ("case", "words", "todo"),
    [
        ("foreign", "foreign certificate authority", "another fleet's broker"),
        ("expired", "expired", "provision renew"),
        ("early", "not yet valid", "clock"),
        ("hamburg", "another name", "broker of another site"),
    ],
)
def test_a_broker_that_does_not_prove_its_name_is_described(
    files: FleetFiles, ours: Identity, case: str, words: str, todo: str
) -> None:
    """Which name it carries instead, who issued it, and for when: that is what a person needs to see the mistake."""
    site = "hamburg" if case == "hamburg" else "berlin"
    make = {"foreign": files.foreign, "expired": files.expired, "early": files.early}.get(case, files.identity)
    with answering(serving(make("broker", "gw", site))) as endpoint:
        check = ends_with(probed(ours, endpoint), "tls", words)
    assert "does not prove to be berlin.acme.hubline.internal" in check.text
    assert todo in str(check.todo)
    assert f"it says that it is broker/gw of site {site}, fleet acme, issued by Hubline authority 1" in check.lines[0]
    assert f"{site}.acme.hubline.internal" in check.lines[1]
    assert check.details["not_after"]


def at_broker(files: FleetFiles, identity: Identity, client_id: str = "pc-1.doctor") -> Probed:
    """Try a real broker where no connector has ever been."""

    async def run() -> Probed:
        server = Server(files.broker_settings())
        await server.start()
        try:
            return await probe(Target(Kind.CONNECTOR, server.listen[0], IN_SETTINGS), identity, {}, client_id)
        finally:
            await server.stop()

    return asyncio.run(run())


def test_a_broker_without_a_connector_is_no_path(files: FleetFiles, ours: Identity) -> None:
    result = at_broker(files, ours)
    assert [step.name for step in result.steps] == ["tcp", "tls", "mqtt", "connector"]
    ends_with(result, "connector", "no connector has said anything")


@pytest.mark.parametrize("case", ["expired", "foreign", "revoked"])
def test_a_broker_that_refuses_our_certificate_says_so(files: FleetFiles, case: str) -> None:
    """With TLS 1.3 its refusal comes after the handshake."""
    if case == "revoked":
        identity = files.identity("hub", "pc-7", "berlin")
        files.revoke(identity)
    else:
        identity = {"expired": files.expired, "foreign": files.foreign}[case]("hub", "pc-7", "berlin")
    check = ends_with(at_broker(files, identity), "mqtt", "it refuses this hub's certificate")
    assert "hubline provision renew" in str(check.todo)


def test_a_certificate_that_can_not_be_used_stops_before_the_network(files: FleetFiles, ours: Identity) -> None:
    broken = Identity("acme", "berlin", "pc-1", ours.ca, files.folder / "nothing.pem", ours.key)
    ends_with(probed(broken, "127.0.0.1:1"), "tls", "there is no such file")


def test_a_proxy_on_the_way_is_blamed_for_what_it_does(ours: Identity) -> None:
    with scripted_proxy(lambda sock, _: sock.sendall(b"HTTP/1.1 407 Auth\r\n\r\n")) as port:
        result = probed(ours, "cloud.example:8883", Proxy("127.0.0.1", port), Kind.DIRECT)
        ends_with(result, "tcp", "wants a user and a password")
    (nobody,) = free_ports(1)
    result = probed(ours, "cloud.example:8883", Proxy("127.0.0.1", nobody), Kind.DIRECT)
    ends_with(result, "tcp", f"proxy 127.0.0.1:{nobody}: nothing listens there")


# --- The verdict ---------------------------------------------------------------------------------------------------------

UP = ConnectorState(online=True, session=1, upstream="up", since=0)
DOWN = ConnectorState(online=True, session=1, upstream="down", since=0)
NOW_MS = 1_000_000_000
SITE = Target(Kind.CONNECTOR, "10.0.0.1:8883", "found by SSDP")
SECOND = Target(Kind.CONNECTOR, "10.0.0.2:8883", "found by SSDP")
CLOUD = Target(Kind.DIRECT, "cloud:8883", IN_SETTINGS)


def fine(target: Target, **connectors: ConnectorState) -> Probed:
    return Probed(target, (Check("tcp", OK, "is reached"), Check("mqtt", OK, "takes us")), connectors)


def broken(target: Target, text: str = "nothing listens there") -> Probed:
    return Probed(target, (Check("tcp", PROBLEM, text),))


def hub_is(kind: str, **changes: object) -> PathStatus:
    fields = {"connector": None, "endpoint": None, "since": 0, "outage_since": None, "switch_at": None}
    fields |= {"watched": None, "return_at": None, "failures": {}}
    return PathStatus(kind=kind, **{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "path", "words"),
    [
        ({}, "none", "no connector is known"),
        (
            {"sites": [fine(SITE, a=UP)]},
            "connector",
            "through connector a at 10.0.0.1:8883: found by SSDP; its cloud side is",
        ),
        ({"sites": [fine(SITE, a=DOWN, b=UP)]}, "connector", "through connector b at"),
        ({"sites": [broken(SITE), fine(SECOND, a=UP)]}, "connector", "at 10.0.0.2:8883"),
        (
            {
                "sites": [fine(SITE, a=UP), fine(SECOND, b=UP)],
                "running": hub_is("connector", endpoint="10.0.0.2:8883"),
            },
            "connector",
            "through connector b",
        ),
        ({"sites": [fine(SITE, a=UP)], "clouds": [fine(CLOUD)]}, "connector", "through connector a"),
        ({"sites": [fine(SITE, a=DOWN)]}, "none", "Cloud: none is named in the settings"),
        (
            {"sites": [broken(SITE)], "clouds": [broken(CLOUD, "silent")]},
            "none",
            "nothing listens there. Cloud: silent.",
        ),
        (
            {"sites": [broken(SITE, "one"), Probed(SECOND, (Check("tcp", OK, ""), Check("tls", PROBLEM, "two")))]},
            "none",
            "Connector: two (another address fails, too).",
        ),
        ({"clouds": [fine(CLOUD)]}, "direct", "1 min after the hub starts, unless a connector is good by then"),
        ({"clouds": [fine(CLOUD)], "away": True}, "direct", "15 s after the hub starts"),
        ({"clouds": [fine(CLOUD)], "outage_ms": NOW_MS - 290_000}, "direct", "10 s after the hub starts"),
        ({"clouds": [fine(CLOUD)], "outage_ms": NOW_MS - 400_000}, "direct", "as soon as the hub runs"),
        ({"clouds": [fine(CLOUD)], "outage_ms": NOW_MS + 400_000}, "direct", "1 min after the hub starts"),
        (
            {"clouds": [fine(CLOUD)], "outage_ms": NOW_MS + 400_000, "failover": Failover(start_grace_s=1000)},
            "direct",
            "5 min after the hub starts",
        ),
        (
            {"clouds": [fine(CLOUD)], "sites": [broken(SITE)], "running": hub_is("none", switch_at=NOW_MS + 200_000)},
            "direct",
            "directly to the cloud at cloud:8883 in 3 min 20 s, unless a connector comes back: nothing listens there",
        ),
        ({"clouds": [fine(CLOUD)], "running": hub_is("none", switch_at=NOW_MS - 1)}, "direct", "cloud:8883, now: "),
        ({"clouds": [fine(CLOUD)], "running": hub_is("connector")}, "direct", "in 5 min, unless"),
        (
            {"clouds": [fine(CLOUD)], "running": hub_is("direct", endpoint="cloud:8883")},
            "direct",
            "directly to the cloud at cloud:8883, as since",
        ),
        (
            {
                "clouds": [fine(CLOUD)],
                "sites": [fine(SITE, a=UP)],
                "running": hub_is("direct", return_at=NOW_MS + 65_000),
            },
            "direct",
            "connector a is good again, and the hub goes back to it in 1 min 5 s if that stays good",
        ),
        (
            {"clouds": [broken(CLOUD)], "sites": [fine(SITE, a=UP)], "running": hub_is("direct")},
            "connector",
            "through connector a",
        ),
    ],
)
def test_the_verdict_follows_the_rule_of_failover(changes: Mapping[str, object], path: str, words: str) -> None:
    """The contract's "Which path a hub takes", in words."""
    usual: dict[str, object] = {"sites": [], "clouds": [], "running": None, "outage_ms": None, "failover": Failover()}
    result = verdict(Situation(now_ms=NOW_MS, **{**usual, **changes}))  # type: ignore[arg-type]
    assert result.path == path
    assert words in result.text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "0 s"), (0.4, "0 s"), (59.6, "1 min"), (200, "3 min 20 s"), (3600, "1 h"), (90_061, "1 d 1 h")],
)
def test_times_are_told_as_people_tell_them(seconds: float, words: str) -> None:
    assert span(seconds) == words


# --- What is shown -------------------------------------------------------------------------------------------------------


def test_nothing_from_the_network_steers_a_terminal() -> None:
    """Names in certificates and answers to a search are a stranger's text."""
    evil = "\x1b[2J\x9b\u202e"
    report = Report([Check("tls", PROBLEM, evil, evil, [evil])], Verdict("none", evil))
    shown = "\n".join(line.plain for line in told(report))
    assert all(char.isprintable() or char == "\n" for char in shown)


def test_a_report_in_json_has_what_the_text_has() -> None:
    report = Report([Check("tls", WARNING, "text", "todo", ["line"], {"a": 1})], Verdict("direct", "why"))
    assert report.plain() == {
        "checks": [{"name": "tls", "state": "warning", "text": "text", "todo": "todo", "details": {"a": 1}}],
        "verdict": "why",
        "path": "direct",
    }
    assert report.works


def test_settings_that_can_not_be_read_are_a_report_too() -> None:
    from hub.doctor import unreadable

    report = unreadable(SettingsError("must be text", file="hub.toml", key="cloud.proxy", value=1))
    assert not report.works
    assert "hub.toml: cloud.proxy = 1: must be text" in report.checks[0].text
