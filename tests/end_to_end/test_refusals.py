"""Who may not connect, what may not be said, and that nobody else notices."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from broker import messages
from broker.client import Lost, Opened, Refused, Session, Will
from broker.tls import client_context
from config import pki, provision
from config.fleet import opened as opened_fleet
from config.principal import Principal, server_name
from tests.fleet import Fleet, running_fleet, until
from tests.sessions import Ears, identity_of, is_a, opened

EPOCH = "00000000000000aa"
EMBEDDED = pytest.mark.parametrize("bridge", ["own"], indirect=True)
"""What another engine does instead, tests/conformance shows."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, bridge: str) -> Iterator[Fleet]:
    """One fleet for all of them: whatever is refused, it goes on."""
    directory = tmp_path_factory.mktemp("refusals")
    this = Fleet(directory, "acme", hubs=2, bridge=bridge)
    provision.hub(this.directory, "bad-1", "berlin")
    provision.hub(this.directory, "revoked-1", "berlin")
    try:
        this.start()
        this.wait_until_flowing()
        yield this
    finally:
        this.close()


@pytest.fixture(autouse=True)
def others_are_unaffected(fleet: Fleet) -> Iterator[None]:
    """No session of an honest hub ends, and its data goes on."""
    before = {hub: fleet.status(hub)["session"] for hub in fleet.hubs}
    yield
    fleet.wait_until_flowing(5)
    assert {hub: fleet.status(hub)["session"] for hub in fleet.hubs} == before


def hub_with(fleet: Fleet, name: str, prepare: Callable[[Path], None]) -> tuple[str, Path]:
    """Run a real hub from a copy of a bundle that `prepare` has spoilt; return its first complaint and its bundle."""
    bundle = fleet.logs / name
    shutil.copytree(fleet.bundle("hub", "bad-1"), bundle)
    prepare(bundle)
    fleet.roles[name] = ("hub", name, {})
    target = fleet.bundle("hub", name)
    if not target.exists():
        shutil.copytree(bundle, target)
    (target / "hub.toml").write_text((bundle / "hub.toml").read_text())
    fleet.start(name)
    try:
        complaint = until(f"{name} complains", lambda: _complaint(fleet, name))
    finally:
        fleet.kill(name)
        del fleet.roles[name]
    return complaint, target


def _complaint(fleet: Fleet, name: str) -> str | None:
    # The broker listens on loopback only: at its other addresses, which SSDP finds as well, nobody is.
    # And another test's broker, which has our fleet's name too, may answer the search.
    ours = (f":{fleet.site_port}", f":{fleet.cloud_port}")
    lines = [line for line in fleet.events(name, "broker_unreachable") if str(line["endpoint"]).endswith(ours)]
    reasons = [str(line["reason"]) for line in lines]
    told = next((reason for reason in reasons if reason != "connection refused"), None)
    if told is not None:
        return told
    process = fleet.running[name]
    if process.poll() is not None:
        return (fleet.logs / f"{name}.log").read_text().strip().splitlines()[-1]
    return None


def counters(fleet: Fleet) -> str:
    return str(fleet.status("site-broker")["counters"])


def test_a_hub_without_a_certificate_says_what_is_missing(fleet: Fleet) -> None:
    complaint, _ = hub_with(fleet, "no-cert", lambda bundle: (bundle / "cert.pem").unlink())
    assert "cert.pem" in complaint
    assert "\n" not in complaint


def _foreign(fleet: Fleet, tmp_path: Path) -> Callable[[Path], None]:
    provision.init(tmp_path / "other", "acme")
    provision.hub(tmp_path / "other", "bad-1", "berlin")

    def prepare(bundle: Path) -> None:
        for file in ("cert.pem", "key.pem"):
            shutil.copy(tmp_path / "other" / "bundles" / "hub" / "bad-1" / file, bundle / file)

    return prepare


def test_a_hub_of_a_foreign_authority_is_refused_in_the_handshake(fleet: Fleet, tmp_path: Path, bridge: str) -> None:
    complaint, _ = hub_with(fleet, "foreign", _foreign(fleet, tmp_path))
    assert "authority" in complaint.lower() or "certificate" in complaint.lower()
    until("the broker has a line", lambda: _said_by_broker(fleet, "authority", bridge))


@EMBEDDED
def test_a_revoked_hub_is_refused_and_its_open_session_ends(fleet: Fleet) -> None:
    """Without a restart of the broker."""
    fleet.roles["revoked-1"] = ("hub", "revoked-1", {})
    fleet.start("revoked-1")
    until("it is connected", lambda: fleet.path("revoked-1") == "connector")
    provision.revoke(fleet.directory, "hub/revoked-1")
    until("it has no path", lambda: fleet.path("revoked-1") == "none")
    complaint = until(
        "it knows why",
        lambda: [line["reason"] for line in fleet.log("revoked-1") if "revoked" in str(line.get("reason"))],
    )
    assert complaint
    fleet.kill("revoked-1")
    del fleet.roles["revoked-1"]


def test_an_expired_hub_is_told_what_to_look_at(fleet: Fleet, bridge: str) -> None:
    """By the real process: one clear line at the hub, and one at the broker."""

    def expire(bundle: Path) -> None:
        then = pki.utc_now() - timedelta(days=3650)
        with opened_fleet(fleet.directory) as made:
            principal = Principal("acme", "berlin", "hub", "bad-1")
            leaf = pki.issue(made.authority(None), principal, [], pki.key_kind("ec-p256"), then)
        (bundle / "cert.pem").write_bytes(pki.certificate_pem(leaf.certificate))
        (bundle / "key.pem").write_bytes(pki.key_pem(leaf.key))

    complaint, _ = hub_with(fleet, "expired", expire)
    assert "expired" in complaint
    until("the broker has a line", lambda: _said_by_broker(fleet, "expired", bridge))


def _said_by_broker(fleet: Fleet, word: str, bridge: str) -> list[dict[str, object]]:
    word = word if bridge == "own" else "certificate"  # Mosquitto does not say what is wrong with it.
    return [line for line in fleet.events("site-broker", "client_refused") if word in str(line["reason"])]


@EMBEDDED
def test_a_hub_with_a_connectors_name_is_refused(fleet: Fleet) -> None:
    """It can't take a session that isn't its own, whatever client id its settings say."""

    async def story() -> None:
        identity = identity_of(fleet.bundle("hub", "bad-1"), "acme", "berlin")
        tls = client_context(identity, server_name("acme", "berlin"))
        _session, ears = opened(f"127.0.0.1:{fleet.site_port}", tls, client_id="berlin-1")
        await ears.hear(is_a(Lost, Refused))
        assert not any(isinstance(event, Opened) for event in ears.heard)

    asyncio.run(story())


def as_bad_hub(fleet: Fleet, story: Callable[[Session, Ears], Awaitable[None]], will: Will | None = None) -> Ears:
    """Open a session with a good certificate, and misbehave."""

    async def run() -> Ears:
        identity = identity_of(fleet.bundle("hub", "bad-1"), "acme", "berlin")
        tls = client_context(identity, server_name("acme", "berlin"))
        session, ears = opened(f"127.0.0.1:{fleet.site_port}", tls, client_id="bad-1", will=will)
        await story(session, ears)
        await session.close()
        return ears

    return asyncio.run(run())


@EMBEDDED
@pytest.mark.parametrize(
    "topic",
    [
        "hl1/acme/berlin/hub/pc-1/up/readings",
        "hl1/acme/berlin/hub/bad-1/presence",
        "hl1/acme/berlin/hub/bad-1/down/ack",
        "hl1/acme/hamburg/hub/bad-1/up/readings",
        "hl1/acme/berlin/connector/berlin-1/state",
        "$SYS/broker/uptime",
        "anything",
    ],
)
def test_what_is_not_a_hubs_to_say_ends_its_session_and_is_counted(fleet: Fleet, topic: str) -> None:
    before = counters(fleet)

    async def story(session: Session, ears: Ears) -> None:
        await ears.hear(is_a(Opened))
        session.publish(topic, b"{}")
        await ears.hear(is_a(Lost))

    as_bad_hub(fleet, story)
    until("it is counted", lambda: counters(fleet) != before)
    assert "bad-1" in counters(fleet)


@EMBEDDED
def test_a_will_that_is_not_a_hubs_is_refused(fleet: Fleet) -> None:
    async def story(_session: Session, ears: Ears) -> None:
        await ears.hear(is_a(Lost, Refused))
        assert not any(isinstance(event, Opened) for event in ears.heard)

    as_bad_hub(fleet, story, will=Will("hl1/acme/berlin/hub/pc-1/state", b"{}"))


def _envelope(seq: int, body: bytes) -> bytes:
    return messages.encode_envelope(EPOCH, seq, 1763798400123, body)


def _many_points(count: int) -> bytes:
    return b'{"points":[' + b",".join([b'{"ts":1,"values":{"a":1}}'] * count) + b"]}"


BAD = [
    b"",
    b"not json",
    b"\xff\xfe\x00",
    b"[]",
    b"{}",
    b"null",
    b'{"epoch":"x","seq":1,"sent":1,"body":{}}',
    _envelope(0, b'{"points":[]}'),
    b'{"epoch":"00000000000000aa","seq":-1,"sent":1,"body":{}}',
    b'{"epoch":"00000000000000aa","seq":"1","sent":1,"body":{}}',
    b'{"epoch":"00000000000000aa","seq":1,"sent":NaN,"body":{}}',
]
BAD_BODIES = [
    b'{"points":[]}',
    b'{"points":"all"}',
    b'{"points":[{"ts":-1,"values":{"a":1}}]}',
    b'{"points":[{"ts":1,"values":{"a/b":1}}]}',
    b'{"points":[{"ts":1,"values":{"a":null}}]}',
    b'{"points":[{"ts":1,"values":{"a":[1]}}]}',
    _many_points(1001),
]


def test_messages_that_the_contract_refuses_are_counted_and_kept_aside(fleet: Fleet) -> None:
    """Cloud and connector go on; one that can be told by its number doesn't block its hub for ever."""
    refused = fleet.status("cloud")["refused"]
    topic = "hl1/acme/berlin/hub/bad-1/up/readings"
    chance = random.Random(1)
    noise = [chance.randbytes(chance.randrange(1, 200)) for _ in range(1000)]

    async def story(session: Session, ears: Ears) -> None:
        await ears.hear(is_a(Opened))
        for payload in [*BAD, *(_envelope(100 + seq, body) for seq, body in enumerate(BAD_BODIES)), *noise]:
            while not session.publish(topic, payload):
                await asyncio.sleep(0.01)
        while session.in_flight:
            await asyncio.sleep(0.01)

    ears = as_bad_hub(fleet, story)
    assert not any(isinstance(event, Lost) for event in ears.heard)
    expected = len(BAD) + len(BAD_BODIES) + len(noise)
    assert isinstance(refused, int)
    until("all are counted", lambda: fleet.status("cloud")["refused"] == refused + expected)
    assert fleet.status("cloud")["quarantined"] != 0
    assert fleet.running["cloud"].poll() is None
    assert fleet.running["connector"].poll() is None


def test_a_message_that_is_too_large_ends_its_session(fleet: Fleet) -> None:
    async def story(session: Session, ears: Ears) -> None:
        await ears.hear(is_a(Opened))
        session.publish("hl1/acme/berlin/hub/bad-1/up/readings", b" " * 300 * 1024)
        await ears.hear(is_a(Lost))

    as_bad_hub(fleet, story)


def test_the_honest_hubs_have_lost_nothing(tmp_path: Path, unique_name: str, bridge: str) -> None:
    """The same, while a hub misbehaves all the time: the audit is clean at the end."""
    with running_fleet(tmp_path, unique_name, bridge=bridge) as fleet:
        provision.hub(fleet.directory, "bad-1", "berlin")

        async def misbehave() -> None:
            identity = identity_of(fleet.bundle("hub", "bad-1"), unique_name, "berlin")
            for _ in range(20):
                tls = client_context(identity, server_name(unique_name, "berlin"))
                session, ears = opened(f"127.0.0.1:{fleet.site_port}", tls, client_id="bad-1")
                await ears.hear(is_a(Opened, Lost, Refused))
                session.publish(f"hl1/{unique_name}/berlin/hub/pc-1/up/readings", b"{}")
                if bridge == "own":
                    await ears.hear(is_a(Lost, Refused))
                else:  # Mosquitto drops it, and lets the session be.
                    await session.close()

        asyncio.run(misbehave())
        fleet.wait_until_flowing()
        fleet.assert_nothing_lost_or_doubled()
