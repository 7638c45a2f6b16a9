"""One session against the real broker: what its user hears, and what the broker sees."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeAlias

import pytest

from broker.client import Closed, Lost, Opened, Received, Refused, Session, Will
from broker.server import Server
from broker.tls import client_context
from config import limits, provision
from config.errors import SettingsError
from config.principal import server_name
from config.settings import BrokerSettings, HubSettings, Identity, load
from tests import sessions
from tests.sessions import Ears, identity_of, is_a

Opening: TypeAlias = Callable[..., tuple[Session, Ears]]
STATE = "hl1/acme/berlin/hub/pc-1/state"
UP = "hl1/acme/berlin/hub/pc-1/up/readings"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("client") / "fleet"
    provision.init(directory, "acme")
    provision.connector(directory, "berlin-1", "berlin")
    provision.hub(directory, "pc-1", "berlin")
    provision.reader(directory, "viewer", "berlin")
    return directory


@pytest.fixture(params=["loop", "thread"])
def opened(request: pytest.FixtureRequest) -> Opening:
    """Return what opens a session: in the event loop, and as where that can't watch a socket."""
    return partial(sessions.opened, in_thread=request.param == "thread")


def identity(fleet: Path, role: str, name: str) -> Identity:
    return identity_of(fleet / "bundles" / role / name, "acme", "berlin")


def context(fleet: Path, role: str = "hub", name: str = "pc-1", server: str | None = None) -> ssl.SSLContext:
    return client_context(identity(fleet, role, name), server or server_name("acme", "berlin"))


def with_broker(fleet: Path, story: Callable[[Server, str], Awaitable[None]]) -> None:
    settings = load(
        fleet / "bundles" / "broker" / "berlin-1" / "broker.toml",
        BrokerSettings,
        {"HUBLINE_BROKER__LISTEN": '["127.0.0.1:0"]'},
    )

    async def run() -> None:
        server = Server(settings)
        await server.start()
        try:
            await story(server, server.listen[0])
        finally:
            if server.listen:
                await server.stop()

    asyncio.run(run())


def test_a_message_goes_from_one_session_to_another(fleet: Path, opened: Opening) -> None:
    async def story(_: Server, endpoint: str) -> None:
        hub, hub_ears = opened(endpoint, context(fleet))
        viewer, viewer_ears = opened(endpoint, context(fleet, "reader", "viewer"), "viewer.1")
        await hub_ears.hear(is_a(Opened))
        await viewer_ears.hear(is_a(Opened))
        assert hub.publish(STATE, b'{"a":1}', retain=True)
        viewer.subscribe([(STATE, 1)])
        came = await viewer_ears.hear(is_a(Received))
        assert came == Received(STATE, b'{"a":1}', retain=True) or came == Received(STATE, b'{"a":1}', retain=False)
        await hub.close()
        await viewer.close()
        assert isinstance(hub_ears.heard[-1], Closed)
        assert hub.in_flight == 0

    with_broker(fleet, story)


def test_messages_of_every_size_arrive_in_order_and_whole(fleet: Path, opened: Opening) -> None:
    """Many at once share TLS records, and a large one takes many; pings and subscriptions pass between them."""

    async def story(_: Server, endpoint: str) -> None:
        hub, ears = opened(endpoint, context(fleet))
        viewer, viewer_ears = opened(endpoint, context(fleet, "reader", "viewer"), "viewer.1")
        await ears.hear(is_a(Opened))
        await viewer_ears.hear(is_a(Opened))
        viewer.subscribe([(UP, 1)])
        viewer.subscribe([(STATE, 1)])
        assert hub.publish(STATE, b"retained", retain=True)
        await viewer_ears.hear(is_a(Received))
        sizes = [0, 1, 100, 127, 128, 16_383, 16_384, limits.MESSAGE_MAX_BYTES] + [500] * 1000
        for number, size in enumerate(sizes):
            assert hub.publish(UP, b"%08d" % number + bytes(size)[8:], qos=number % 2)
        last = b"%08d" % (len(sizes) - 1)
        await viewer_ears.hear(lambda event: isinstance(event, Received) and event.payload.startswith(last))
        came = [event.payload for event in viewer_ears.heard if isinstance(event, Received) and event.topic == UP]
        assert came == [b"%08d" % number + bytes(size)[8:] for number, size in enumerate(sizes)]
        await hub.close()
        await viewer.close()
        assert hub.in_flight == 0

    with_broker(fleet, story)


def test_nothing_is_published_before_the_session_is_open(fleet: Path, opened: Opening) -> None:
    """Paho would queue it for ever."""

    async def story(_: Server, endpoint: str) -> None:
        hub, ears = opened(endpoint, context(fleet))
        assert not hub.publish(UP, b"{}")
        await ears.hear(is_a(Opened))
        assert hub.publish(UP, b"{}")
        await hub.close()
        assert not hub.publish(UP, b"{}")
        assert hub.dropped == 2

    with_broker(fleet, story)


@pytest.mark.parametrize(("clean", "expected"), [(True, []), (False, [b"gone"])])
def test_the_will_is_sent_for_a_crash_and_not_for_a_goodbye(
    fleet: Path, clean: bool, expected: list[bytes], opened: Opening
) -> None:
    async def story(_: Server, endpoint: str) -> None:
        viewer, viewer_ears = opened(endpoint, context(fleet, "reader", "viewer"), "viewer")
        await viewer_ears.hear(is_a(Opened))
        viewer.subscribe([(STATE, 1)])
        hub, ears = opened(endpoint, context(fleet), will=Will(STATE, b"gone"))
        await ears.hear(is_a(Opened))
        hub.publish(STATE, b"here", retain=True)
        await viewer_ears.hear(lambda event: event == Received(STATE, b"here", retain=False))
        if clean:
            await hub.close()
        else:
            hub.abort()
        again, again_ears = opened(endpoint, context(fleet))
        await again_ears.hear(is_a(Opened))
        again.publish(STATE, b"again", retain=True)
        await viewer_ears.hear(lambda event: event == Received(STATE, b"again", retain=False))
        payloads = [event.payload for event in viewer_ears.heard if isinstance(event, Received)]
        assert payloads == [b"here", *expected, b"again"]
        await again.close()
        await viewer.close()

    with_broker(fleet, story)


def test_a_broker_of_another_name_is_refused(fleet: Path, opened: Opening) -> None:
    """Whoever answers at the address, the name in the certificate decides."""

    async def story(_: Server, endpoint: str) -> None:
        _session, ears = opened(endpoint, context(fleet, server=server_name("acme", "hamburg")))
        refused = await ears.hear(is_a(Refused))
        assert isinstance(refused, Refused)
        assert "name" in refused.reason.lower()

    with_broker(fleet, story)


def test_a_foreign_client_is_told_that_it_is_refused(fleet: Path, tmp_path: Path, opened: Opening) -> None:
    """With TLS 1.3 the refusal comes after the client's own handshake is done."""
    provision.init(tmp_path / "other", "acme")
    provision.connector(tmp_path / "other", "berlin-1", "berlin")
    provision.hub(tmp_path / "other", "pc-1", "berlin")
    theirs = identity(tmp_path / "other", "hub", "pc-1")
    ours = identity(fleet, "hub", "pc-1")
    mixed = Identity("acme", "berlin", "pc-1", ours.ca, theirs.cert, theirs.key)

    async def story(_: Server, endpoint: str) -> None:
        _session, ears = opened(endpoint, client_context(mixed, server_name("acme", "berlin")))
        await ears.hear(is_a(Refused))
        assert not any(isinstance(event, Opened) for event in ears.heard)

    with_broker(fleet, story)


def test_a_stranger_s_client_id_ends_the_session(fleet: Path, opened: Opening) -> None:
    async def story(_: Server, endpoint: str) -> None:
        _session, ears = opened(endpoint, context(fleet), client_id="pc-2")
        await ears.hear(is_a(Refused, Lost))
        assert not any(isinstance(event, Opened) for event in ears.heard)

    with_broker(fleet, story)


def test_a_subscription_that_is_not_taken_ends_the_session(opened: Opening, fleet: Path) -> None:
    """A session that is open and hears nothing would look well for ever; the next one may be luckier."""

    async def story(_: Server, endpoint: str) -> None:
        viewer, ears = opened(endpoint, context(fleet, "reader", "viewer"), "viewer")
        await ears.hear(is_a(Opened))
        viewer.subscribe([(UP, 1), (UP.replace("berlin", "hamburg"), 1)])
        lost = await ears.hear(is_a(Lost))
        assert isinstance(lost, Lost)
        assert lost.reason == "the broker did not take a subscription"
        assert [type(event) for event in ears.heard if not isinstance(event, Received)] == [Opened, Lost]
        await viewer.close()

    with_broker(fleet, story)


def test_an_address_where_nobody_listens_is_a_loss_without_a_life_sign(fleet: Path, opened: Opening) -> None:
    async def run() -> None:
        _session, ears = opened("127.0.0.1:1", context(fleet))
        lost = await ears.hear(is_a(Lost))
        assert lost == Lost("connection refused", None)

    asyncio.run(run())


def test_a_broker_that_goes_is_a_loss_with_the_moment(fleet: Path, opened: Opening) -> None:
    async def story(server: Server, endpoint: str) -> None:
        _session, ears = opened(endpoint, context(fleet))
        await ears.hear(is_a(Opened))
        await server.stop()
        lost = await ears.hear(is_a(Lost))
        assert isinstance(lost, Lost)
        assert lost.alive_at is not None
        assert [type(event) for event in ears.heard] == [Opened, Lost]

    with_broker(fleet, story)


def test_a_silent_broker_is_given_up(fleet: Path) -> None:
    """A port that accepts and never answers must not hold a hub."""

    async def run() -> None:
        host, port = silent.getsockname()
        _session, ears = sessions.opened(f"{host}:{port}", context(fleet))
        lost = await ears.hear(is_a(Lost))
        assert lost == Lost(f"no answer within {limits.CONNECT_TIMEOUT_S:g} s", None)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(run())


def test_publishes_without_their_puback_are_bounded(fleet: Path, opened: Opening) -> None:
    async def story(_: Server, endpoint: str) -> None:
        hub, ears = opened(endpoint, context(fleet))
        await ears.hear(is_a(Opened))
        taken = sum(hub.publish(UP, b"{}") for _ in range(limits.SESSION_IN_FLIGHT_MAX * 2))
        assert taken >= limits.SESSION_IN_FLIGHT_MAX
        assert hub.in_flight <= limits.SESSION_IN_FLIGHT_MAX
        assert hub.dropped == limits.SESSION_IN_FLIGHT_MAX * 2 - taken
        await hub.close()

    with_broker(fleet, story)


def test_a_missing_key_is_an_error_of_the_settings(fleet: Path, tmp_path: Path) -> None:
    ours = identity(fleet, "hub", "pc-1")
    with pytest.raises(SettingsError, match=r"nothing\.pem"):
        client_context(Identity("acme", "berlin", "pc-1", ours.ca, ours.cert, tmp_path / "nothing.pem"), "x")


def test_settings_of_the_bundle_are_those_of_the_identity(fleet: Path) -> None:
    settings = load(fleet / "bundles" / "hub" / "pc-1" / "hub.toml", HubSettings, {})
    assert settings.identity == identity(fleet, "hub", "pc-1")
