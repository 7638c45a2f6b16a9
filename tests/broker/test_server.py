"""The embedded broker over real sockets and real TLS: what it serves, and the defects of its engine that it must not show."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeAlias

import orjson
import pytest
from structlog.testing import capture_logs

from broker import packets
from broker.server import Server
from broker.tls import describe_tls_error
from config import limits
from config.endpoint import split_endpoint
from config.errors import SettingsError
from tests.broker import raw_mqtt as raw
from tests.broker.certificates import FleetFiles
from tests.broker.raw_mqtt import CalledServer, RawClient, dial, join, serving, subscriber, until

SITE = "hl1/acme/berlin"
HUB = f"{SITE}/hub/pc-1"
EVERYTHING = "hl1/acme/#"
Story: TypeAlias = Callable[[CalledServer, FleetFiles], Coroutine[Any, Any, None]]


@pytest.fixture
def tell(tmp_path: Path) -> Callable[..., None]:
    """Run a story against a broker of the site berlin."""

    def run(story: Story, **options: Any) -> None:
        async def main() -> None:
            fleet = FleetFiles(tmp_path / "acme")
            async with serving(fleet.broker_settings(**options)) as server:
                await story(server, fleet)

        asyncio.run(main())

    return run


async def reader(server: CalledServer, fleet: FleetFiles, name: str = "desk") -> RawClient:
    return await subscriber(server, fleet.identity("reader", name, "-"), EVERYTHING)


def refusals(logs: list[Any]) -> list[str]:
    return [entry["kind"] for entry in logs if entry["event"] == "client_refused" and entry["log_level"] == "warning"]


# --- What it serves ----------------------------------------------------------------------------------------------------


def test_messages_of_many_hubs_all_arrive_in_order_and_are_acknowledged(tell: Callable[..., None]) -> None:
    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        heard = await reader(server, fleet)
        hubs = {f"pc-{n}": await join(server, fleet.identity("hub", f"pc-{n}", "berlin")) for n in range(5)}

        async def speak(name: str, hub: RawClient) -> None:
            for number in range(1, 301):
                hub.send(raw.publish(f"{SITE}/hub/{name}/up/readings", b"%d" % number, packet_id=number))
            for number in range(1, 301):
                assert await hub.packet() == b"\x40\x02" + number.to_bytes(2, "big")

        await asyncio.gather(heard.expect(1500), *(speak(name, hub) for name, hub in hubs.items()))
        for name in hubs:
            got = [int(payload) for topic, payload, _ in heard.messages if f"/{name}/" in topic]
            assert got == list(range(1, 301))

    tell(story)


def test_the_largest_message_of_the_contract_passes(tell: Callable[..., None]) -> None:
    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        heard = await reader(server, fleet)
        hub = await join(server, fleet.identity("hub", "pc-1", "berlin"))
        payload = random.Random(1).randbytes(limits.MESSAGE_MAX_BYTES)
        hub.send(raw.publish(f"{HUB}/up/readings", payload))
        assert await heard.expect(1) == [(f"{HUB}/up/readings", payload, False)]

    tell(story)


def test_the_will_comes_when_the_connection_breaks_and_not_after_a_clean_end(tell: Callable[..., None]) -> None:
    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        identity = fleet.identity("hub", "pc-1", "berlin")
        heard = await reader(server, fleet)
        hub = await join(server, identity, will=(f"{HUB}/state", b"gone"))
        await hub.close()
        assert await heard.expect(1) == [(f"{HUB}/state", b"gone", False)]
        hub = await join(server, identity, will=(f"{HUB}/state", b"gone again"))
        hub.writer.close()  # TLS's own farewell is none of MQTT's.
        assert (await heard.expect(2))[1] == (f"{HUB}/state", b"gone again", False)
        hub = await join(server, identity, will=(f"{HUB}/state", b"never"))
        hub.send(raw.DISCONNECT)
        assert await hub.ended()
        assert len(await heard.quiet()) == 2
        assert not server.refusals.by_kind
        later = await reader(server, fleet, "later")
        assert await later.expect(1) == [(f"{HUB}/state", b"gone again", True)]

    tell(story)


def test_more_retained_messages_than_a_queue_holds_reach_a_slow_subscriber(tell: Callable[..., None]) -> None:
    """A console that subscribes to a large fleet must get all of it, and not be thrown out for being behind."""
    count = limits.SUBSCRIBER_QUEUE_MAX + 2000

    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        for number in range(count):
            server.engine.publish(f"{SITE}/hub/pc-{number}/state", b"x" * 1000, retain=True)
        heard = await join(server, fleet.identity("reader", "desk", "-"))
        heard.writer.transport.pause_reading()  # type: ignore[attr-defined]
        heard.send(raw.subscribe(EVERYTHING))
        await until(lambda: server.engine.messages_out > 100)
        server.engine.publish(f"{SITE}/hub/pc-{count - 1}/state", b"news", retain=True)
        heard.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert (await heard.answer())[0] == 0x90
        got = await heard.expect(count + 1)
        assert {topic for topic, _, _ in got} == {f"{SITE}/hub/pc-{number}/state" for number in range(count)}
        assert [payload for topic, payload, _ in got if topic == f"{SITE}/hub/pc-{count - 1}/state"] == [b"news"] * 2

    tell(story)


def test_it_listens_where_it_is_told_and_says_where(tell: Callable[..., None]) -> None:
    """Stock amqtt cannot listen on `[::1]:port`."""

    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        hosts = [split_endpoint(endpoint) for endpoint in server.listen]
        assert [host for host, _ in hosts] == ["127.0.0.1", "::1"]
        assert all(port for _, port in hosts)
        server.listen.reverse()
        await join(server, fleet.identity("hub", "pc-1", "berlin"))
        status = fleet.folder / "data" / "status.json"
        await until(lambda: status.exists() and orjson.loads(status.read_bytes())["sessions"] == 1)

    tell(story, listen=("127.0.0.1:0", "[::1]:0"))


@pytest.mark.parametrize("endpoint", ["127.0.0.1:{taken}", "192.0.2.1:0", "no.such.host.invalid:0"])
def test_an_address_that_cannot_be_had_is_one_clear_line(tmp_path: Path, endpoint: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = endpoint.format(taken=taken.getsockname()[1])

        async def main() -> None:
            fleet = FleetFiles(tmp_path / "acme")
            with pytest.raises(SettingsError, match="cannot listen") as caught:
                await Server(fleet.broker_settings(listen=("127.0.0.1:0", where))).start()
            assert where in str(caught.value)
            assert "broker.listen" in str(caught.value)
            assert "\n" not in str(caught.value)

        asyncio.run(main())


def test_the_status_file_tells_who_is_there_and_what_was_refused(tell: Callable[..., None]) -> None:
    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        file = fleet.folder / "data" / "status.json"

        def status() -> Any:
            return orjson.loads(file.read_bytes()) if file.exists() else {}

        heard = await reader(server, fleet)
        hub = await join(server, fleet.identity("hub", "pc-1", "berlin"))
        hub.send(raw.publish(f"{HUB}/up/readings", b"x"))
        await heard.expect(1)
        hub.send(raw.publish(f"{SITE}/hub/pc-2/up/readings", b"x"))
        assert await hub.ended()
        await until(lambda: status().get("counters", {}).get("refused") == {"publish": 1})
        assert (status()["role"], status()["listen"], status()["sessions"]) == ("broker", server.listen, 1)
        assert status()["counters"]["messages_in"] == 1
        assert status()["counters"]["refused_by_client"] == {"berlin/hub/pc-1": {"publish": 1}}
        await server.stop()
        assert (status()["sessions"], status()["listen"]) == (0, [])

    tell(story)


def test_a_stop_closes_every_session_in_time_even_one_that_does_not_read(tell: Callable[..., None]) -> None:
    """Service managers kill what does not stop in time."""

    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        deaf = await reader(server, fleet)
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
        hub = await join(server, fleet.identity("hub", "pc-1", "berlin"))
        await dial(server, fleet.identity("hub", "pc-2", "berlin"))
        while not any(connection._paused for connection in server._connections):
            server.engine.publish(f"{HUB}/presence", bytes(100_000))
            await asyncio.sleep(0)
        async with asyncio.timeout(limits.STOP_TIMEOUT_S):
            await server.stop()
        assert await hub.ended()
        assert not server._connections

    tell(story)


# --- Its engine's defects ----------------------------------------------------------------------------------------------


def test_a_stranger_cannot_touch_the_session_of_another_client(tell: Callable[..., None]) -> None:
    """B1 to B3: with stock amqtt, one bad CONNECT locks a hub out, deletes its session or publishes a forged will."""

    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        heard = await reader(server, fleet)
        victim = await join(server, fleet.identity("hub", "pc-1", "berlin"), will=(f"{HUB}/state", b"true will"))
        victim.send(raw.subscribe(f"{HUB}/down/+"))
        assert (await victim.answer())[0] == 0x90
        rogue = fleet.identity("hub", "rogue", "berlin")
        for options in ({}, {"clean": False}, {"will": (f"{HUB}/state", b"forged")}, {"level": 5}):
            stranger = await dial(server, rogue)
            stranger.send(raw.connect("pc-1", **options))  # type: ignore[arg-type]
            assert (await stranger.packet())[3] != 0
            assert await stranger.ended()
        server.engine.publish(f"{HUB}/down/ack", b"still here")
        assert await victim.expect(1) == [(f"{HUB}/down/ack", b"still here", False)]
        assert [payload for _, payload, _ in await heard.quiet()] == [b"still here"]

    tell(story)


def test_retained_messages_go_only_to_who_may_and_does_subscribe_to_them(tell: Callable[..., None]) -> None:
    """B4: stock amqtt sends every new client what matches the subscriptions of others."""

    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        await reader(server, fleet)
        connector = await join(server, fleet.identity("connector", "berlin-1", "berlin"))
        connector.send(raw.publish(f"{SITE}/connector/berlin-1/state", b"up", retain=True))
        other = await join(server, fleet.identity("hub", "pc-2", "berlin"))
        other.send(raw.publish(f"{SITE}/hub/pc-2/state", b"private", retain=True))
        assert await other.answer() == b"\x40\x02\0\1"
        hub = await join(server, fleet.identity("hub", "pc-1", "berlin"))
        assert not await hub.quiet()
        hub.send(raw.subscribe(f"{SITE}/connector/+/state", f"{HUB}/down/+"))
        assert (await hub.answer())[0] == 0x90
        assert await hub.quiet() == [(f"{SITE}/connector/berlin-1/state", b"up", True)]

    tell(story)


def test_a_silent_client_is_cut_and_its_will_is_sent(tell: Callable[..., None]) -> None:
    """B5: a pulled cable sends no FIN; without this nobody learns of the outage."""

    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        heard = await reader(server, fleet)
        lively = await join(server, fleet.identity("hub", "pc-2", "berlin"), keep_alive_s=1)
        silent = await join(
            server, fleet.identity("hub", "pc-1", "berlin"), will=(f"{HUB}/state", b"gone"), keep_alive_s=1
        )

        async def ping() -> None:
            while True:
                await lively.quiet()
                await asyncio.sleep(0.5)

        pinging = asyncio.create_task(ping())
        assert await heard.expect(1) == [(f"{HUB}/state", b"gone", False)]
        assert await silent.ended()
        assert not pinging.done()
        pinging.cancel()
        assert server.refusals.by_kind == {"silent": 1}

    tell(story)


def test_nobody_is_blamed_for_a_time_in_which_the_broker_itself_was_held_up(tell: Callable[..., None]) -> None:
    """A machine that was paused would otherwise throw out its whole site when it goes on."""

    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        hub = await join(server, fleet.identity("hub", "pc-1", "berlin"), keep_alive_s=1)
        time.sleep(3)  # noqa: ASYNC251 - the whole process stands still, as if it were paused.
        await asyncio.sleep(limits.CONNECTIONS_CHECK_S)  # It looks at its connections before the hub says a word.
        assert not await hub.quiet()
        assert not server.refusals.by_kind
        assert await hub.ended()  # Silent from now on, it is cut as ever.
        assert server.refusals.by_kind == {"silent": 1}

    tell(story)


def test_a_second_connection_of_the_same_client_ends_the_first(tell: Callable[..., None]) -> None:
    """B10: stock amqtt keeps both connections, and sends no will."""

    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        identity = fleet.identity("hub", "pc-1", "berlin")
        heard = await reader(server, fleet)
        first = await join(server, identity, will=(f"{HUB}/state", b"first"))
        second = await join(server, identity, will=(f"{HUB}/state", b"second"))
        assert await first.ended()
        assert not await second.quiet()
        assert [payload for _, payload, _ in await heard.quiet()] == [b"first"]
        await second.close()
        assert [payload for _, payload, _ in await heard.expect(2)] == [b"first", b"second"]

    tell(story)


VIOLATIONS = {
    "a $ topic": raw.publish("$SYS/x", b"x"),
    "no topic": raw.publish("", b"x"),
    "a wildcard": raw.publish(f"{SITE}/hub/+/state", b"x"),
    "another hub": raw.publish(f"{SITE}/hub/pc-2/state", b"x"),
    "too large": raw.publish(f"{HUB}/up/readings", b"x" * 300 * 1024),
    "100 MB announced": b"\x32\x80\xc2\xd7\x2f" + b"x" * 1000,
    "a length of five bytes": b"\x30\xff\xff\xff\xff\x7f",
    "a server's packet": packets.PINGRESP,
    "a second CONNECT": raw.connect("pc-1"),
    "a reserved type": b"\xf0\0",
    "cut UTF-8": raw.publish(b"\xe2\x82", b"x"),
    "no filters": raw.packet(0x82, b"\0\1"),
    "a right not held": raw.subscribe("#"),
}


@pytest.mark.parametrize("data", VIOLATIONS.values(), ids=VIOLATIONS)
def test_a_violation_closes_that_session_and_no_other(tell: Callable[..., None], data: bytes) -> None:
    """B11, B15, B17: stock amqtt leaves zombies, or hangs."""

    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        heard = await reader(server, fleet)
        bystander = await join(server, fleet.identity("hub", "pc-2", "berlin"))
        hub = await join(server, fleet.identity("hub", "pc-1", "berlin"), will=(f"{HUB}/state", b"gone"))
        with capture_logs() as logs:
            hub.send(data)
            assert await hub.ended()
        assert len(refusals(logs)) == 1
        assert await heard.expect(1) == [(f"{HUB}/state", b"gone", False)]
        assert not await bystander.quiet()
        assert sum(server.refusals.by_client()["berlin/hub/pc-1"].values()) == 1

    tell(story)


@pytest.mark.slow
def test_who_never_gets_to_a_session_is_cut_in_time(tell: Callable[..., None]) -> None:
    """B16: sockets that do nothing, or that trickle, must not add up."""

    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        nothing, trickling = await dial(server, None), await dial(server, None)
        await dial(server, fleet.identity("hub", "pc-1", "berlin"))  # Says nothing after the handshake.
        slow = await dial(server, fleet.identity("hub", "pc-2", "berlin"))
        honest = await join(server, fleet.identity("hub", "pc-3", "berlin"), keep_alive_s=0)

        async def drip(writer: asyncio.StreamWriter, data: bytes) -> None:
            for byte in data:
                writer.write(bytes((byte,)))
                await asyncio.sleep(1)

        drips = [
            asyncio.create_task(drip(trickling.writer, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(100))),
            asyncio.create_task(drip(slow.writer, raw.connect("pc-2") * 10)),
        ]
        await until(lambda: len(server._connections) == 1, limits.CONNECT_TIMEOUT_S + 5)
        for task in drips:
            task.cancel()
        assert server.refusals.by_kind["timeout"] == 4
        assert not await honest.quiet()
        assert await nothing.ended()
        assert await trickling.ended()

    tell(story)


def test_who_does_not_hang_up_after_a_refusal_is_cut(tell: Callable[..., None]) -> None:
    """We let the peer close first; one that never does must not keep its place."""

    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        stubborn = await dial(server, None)
        stubborn.send(b"GET / HTTP/1.1\r\n\r\n")
        await until(lambda: server.refusals.by_kind == {"tls": 1} and not server._connections)
        assert not stubborn.writer.transport.is_closing()

    tell(story)


def test_a_subscriber_that_does_not_keep_up_is_cut_and_costs_no_more_than_its_bound(tell: Callable[..., None]) -> None:
    """B18: stock amqtt grew from 29 to 127 MB for one that did not read."""

    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        deaf = await reader(server, fleet, "deaf")
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
        heard = await reader(server, fleet)
        hub = await join(server, fleet.identity("hub", "pc-1", "berlin"))
        payload = bytes(8192)
        sent = 0
        while not server.refusals.by_kind["too-slow"]:
            assert sent * len(payload) < 4 * limits.SUBSCRIBER_QUEUE_MAX_BYTES, "nothing happened"
            for number in range(100):
                hub.send(raw.publish(f"{HUB}/up/readings", payload, packet_id=number + 1))
            for _ in range(100):
                assert (await hub.packet())[0] == 0x40
            sent += 100
            assert (
                max(c._queued_bytes for c in server._connections)
                <= limits.SUBSCRIBER_QUEUE_MAX_BYTES + len(payload) * 200
            )
            await heard.expect(sent)
        assert "-/reader/deaf" in server.refusals.by_client()
        assert len(server.sessions) == 2
        assert not await hub.quiet()

    tell(story)


# --- Certificates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["expired", "foreign", "early"])
def test_a_bad_certificate_gets_one_log_line_and_disturbs_nobody(tell: Callable[..., None], kind: str) -> None:
    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        bystander = await join(server, fleet.identity("hub", "pc-2", "berlin"))
        bad = getattr(fleet, kind)("hub", "pc-1", "berlin")
        with capture_logs() as logs:
            for _ in range(3):
                stranger = await dial(server, bad)
                stranger.send(raw.connect("pc-1"))
                assert await stranger.ended()
            await until(lambda: server.refusals.by_kind["tls"] == 3)
        assert refusals(logs) == ["tls"]
        assert not await bystander.quiet()

    tell(story)


def test_a_client_that_speaks_at_once_still_hears_why_it_was_refused(tell: Callable[..., None]) -> None:
    """TLS 1.3 lets it send CONNECT before the refusal; closing on unread bytes would lose the refusal on its way."""

    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        stranger = await dial(server, fleet.expired("hub", "pc-1", "berlin"))
        for _ in range(50):
            stranger.send(raw.connect("pc-1"))
            await asyncio.sleep(0)
        with pytest.raises(ssl.SSLError) as caught:
            await stranger.reader.readexactly(1)
        assert "expired" in describe_tls_error(caught.value)
        rogue = await dial(server, fleet.identity("hub", "rogue", "berlin"))
        rogue.send(raw.connect("pc-1"))
        for _ in range(50):
            rogue.send(raw.PINGREQ)
            await asyncio.sleep(0)
        assert await rogue.packet() == packets.CONNACK_WRONG_CLIENT_ID

    tell(story)


def test_a_revoked_certificate_loses_its_session_without_a_restart_and_cannot_come_back(
    tell: Callable[..., None],
) -> None:
    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        heard = await reader(server, fleet)
        stolen = fleet.identity("hub", "pc-1", "berlin")
        thief = await join(server, stolen, will=(f"{HUB}/state", b"gone"))
        bystander = await join(server, fleet.identity("hub", "pc-2", "berlin"))
        fleet.revoke(stolen)
        assert await thief.ended()
        assert await heard.expect(1) == [(f"{HUB}/state", b"gone", False)]
        again = await dial(server, stolen)
        again.send(raw.connect("pc-1"))
        assert await again.ended()
        assert not await bystander.quiet()
        assert server.refusals.by_kind == {"revoked": 1, "tls": 1}

    tell(story)


# --- Many at once ------------------------------------------------------------------------------------------------------


def test_a_site_that_comes_back_at_once_is_let_in_at_the_allowed_rate(tell: Callable[..., None]) -> None:
    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        identities = [fleet.identity("hub", f"pc-{n}", "berlin") for n in range(30)]
        started = server.now()
        joining = [asyncio.create_task(join(server, identity)) for identity in identities]
        hubs = await asyncio.gather(*joining)
        assert len(server.sessions) == 30
        # A fifth of a second's worth at once, the others one by one: no clock of ours can make that quicker.
        assert server.now() - started >= (30 - 20 / 5) / 20 - 0.1
        assert not await hubs[0].quiet()

    tell(story, handshakes_per_s=20)


def test_who_would_wait_too_long_is_turned_away_at_once_and_costs_no_handshake(tell: Callable[..., None]) -> None:
    """A client that gives up while it waits would come again: the work of its handshake would be wasted."""

    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        crowd = [await dial(server, None) for _ in range(20)]
        await until(lambda: server.refusals.by_kind["busy"] >= 20 - 1 - 6)
        assert len(server._waiting) <= 6
        assert await crowd[-1].ended()

    tell(story, handshakes_per_s=1)


def test_a_thousand_random_strings_disturb_nobody(tell: Callable[..., None]) -> None:
    """Before TLS, before CONNECT and after it, with a conversation of others going on all the while."""

    async def story(server: CalledServer, fleet: FleetFiles) -> None:
        chance = random.Random(20261122)
        heard = await reader(server, fleet)
        bystander = await join(server, fleet.identity("hub", "pc-2", "berlin"))
        rogue = fleet.identity("hub", "pc-1", "berlin")
        valid = raw.connect("pc-1") + raw.subscribe(f"{HUB}/down/+") + raw.publish(f"{HUB}/up/readings", b"x" * 50)
        for number in range(1000):
            if number % 10 == 0:
                bystander.send(raw.publish(f"{SITE}/hub/pc-2/up/readings", b"%d" % number, packet_id=number + 1))
            noise = chance.randbytes(chance.randint(1, 200))
            match number % 5:
                case 0:
                    client = await dial(server, None)
                    client.send(noise)
                case 1:
                    client = await dial(server, rogue)
                    client.send(noise)
                case 2:
                    client = await dial(server, rogue)
                    damaged = bytearray(valid)
                    for _ in range(chance.randint(1, 5)):
                        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
                    client.send(bytes(damaged))
                case _:
                    client = await dial(server, rogue)
                    client.send(raw.connect("pc-1"), noise)
            client.writer.close()
        got = await heard_from(heard, f"{SITE}/hub/pc-2/up/readings", 100)
        assert got == [b"%d" % number for number in range(0, 1000, 10)]
        assert all(topic.startswith((f"{HUB}/", f"{SITE}/hub/pc-2/")) for topic, _, _ in heard.messages)
        await until(lambda: len(server._connections) == 2)
        assert len(server.sessions) == 2

    tell(story)


async def heard_from(client: RawClient, topic: str, count: int) -> list[bytes]:
    while len(got := [payload for of, payload, _ in client.messages if of == topic]) < count:
        await client.expect(len(client.messages) + 1)
    return got
