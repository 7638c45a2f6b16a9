"""One real nats-server under a real `hubline broker run`, reached by real TLS: who gets in, what he may do, and until when."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from nats.aio.client import Client

from broker.client import Opened, Received
from broker.engines import nats_stream
from broker.engines.nats_rights import DELIVERIES_STREAM, RETAINED_STREAM
from broker.tls import client_context
from broker.topics import Topic, everything_filter, hub_filter
from config import limits, provision
from config.errors import HublineError
from config.principal import CLOUD_SITE, server_name
from tests.broker.raw_mqtt import CONNACK, RawClient, connect, publish, subscribe
from tests.fleet import until
from tests.nats import Cluster, needs_nats, running_cluster
from tests.sessions import is_a, opened

pytestmark = needs_nats

PUBACK = 0x40
SMALL_BYTES = 1_000_000
NOT_AUTHORIZED = b"\x20\x02\x00\x05"
REFUSED = b"\x90\x03\x00\x07\x80"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Return a node that all tests of this module share; each takes hubs of its own."""
    with running_cluster(tmp_path_factory.mktemp("node")) as running:
        yield running


def up(hub_id: str) -> str:
    return str(Topic.up("acme", "berlin", hub_id, "readings"))


async def subscribed(client: RawClient, topic_filter: str) -> RawClient:
    client.send(subscribe(topic_filter))
    assert (await client.answer())[-1] in (0, 1), topic_filter
    return client


async def closed(*clients: RawClient) -> None:
    for client in clients:
        await client.close()


def test_hub_publishes_what_is_its_own_and_nothing_else_arrives(node: Cluster) -> None:
    """nats-server acknowledges even what it drops: only what the cloud hears counts."""
    own = node.hub("own-1")

    async def story() -> None:
        service = await subscribed(await node.join(node.service, "cloud_own"), everything_filter("acme"))
        member = await node.join(own, will=(str(Topic.hub_state("acme", "berlin", "own-2")), b"forged"))
        for topic in (
            up("own-2"),
            str(Topic.down("acme", "berlin", "own-1", "ack")),
            str(Topic.presence("acme", "berlin", "own-1")),
            "elsewhere",
            up("own-1"),
        ):
            member.send(publish(topic, topic.encode()))
            assert (await member.answer())[0] == PUBACK
        await member.close()  # Its will is not its own either.
        assert [topic for topic, _, _ in await service.expect(1)] == [up("own-1")]
        last = await node.join(own)
        last.send(publish(up("own-1"), b"later than any will"))
        assert [topic for topic, _, _ in await service.expect(2)] == [up("own-1")] * 2
        await closed(last, service)

    asyncio.run(story())


def test_hub_subscribes_to_what_is_its_own_and_to_nothing_inside_the_server(node: Cluster) -> None:
    """What is delivered to another session passes by internal subjects; whoever reads them reads everything."""
    own = node.hub("sub-1")

    async def story() -> None:
        member = await subscribed(await node.join(own), hub_filter("acme", "berlin", "sub-1", "down"))
        for topic_filter in (
            hub_filter("acme", "berlin", "sub-2", "down"),
            hub_filter("acme", "berlin", "+", "down"),
            everything_filter("acme"),
            "#",
            "+/#",
            *("$MQTT/#", "$MQTT/sub/#", "$MQTT/sub/+", "$MQTT/msgs/#", "$JS/#", "$SYS/#", "$KV/#", "_INBOX/#", "_R_/#"),
        ):
            member.send(subscribe(topic_filter))
            assert await member.answer() == REFUSED, topic_filter
        service = await node.join(node.service, "cloud_sub")
        service.send(publish(str(Topic.down("acme", "berlin", "sub-1", "ack")), b"yours"))
        assert [payload for _, payload, _ in await member.expect(1)] == [b"yours"]
        await closed(member, service)

    asyncio.run(story())


def test_no_client_id_of_a_stranger_and_no_certificate_of_another_authority(node: Cluster) -> None:
    """Else anybody could end a stranger's session by taking it over."""
    mine, others = node.hub("id-1"), node.hub("id-2")

    async def story() -> None:
        victim = await node.join(others)
        thief = await node.dial(mine)
        thief.send(connect("id-2"))
        assert await thief.packet() == NOT_AUTHORIZED
        assert await victim.quiet() == []
        more = await node.join(mine, "id-1_more")
        await closed(victim, thief, more)

    asyncio.run(story())
    until(
        "it is said who was refused",
        lambda: any((line.get("kind"), line.get("client")) == ("client-id", "hub/id-1") for line in node.log("cloud")),
    )


def test_the_port_for_workers_is_closed_to_hubs(node: Cluster) -> None:
    """By the protocol of NATS a hub could name internal subjects that MQTT has no words for."""
    own = node.hub("port-1")

    async def story() -> None:
        with pytest.raises(HublineError):
            await nats_stream.connect(node.nats, own)
        client = await nats_stream.connect(node.nats, node.service)
        await client.close()

    asyncio.run(story())


def test_revoked_hub_is_put_out_and_stays_out_while_others_stay(node: Cluster) -> None:
    """Without a restart: it would put out everybody."""
    bad, good, before = node.hub("bad-1"), node.hub("good-1"), node.engine("cloud")

    async def story() -> None:
        leaving, staying = await node.join(bad), await node.join(good)
        await asyncio.to_thread(provision.revoke, node.directory, "hub/bad-1")
        assert await leaving.ended()
        again = await node.dial(bad)
        again.send(connect("bad-1"))
        assert await again.packet() == NOT_AUTHORIZED
        assert await staying.quiet() == []
        await closed(leaving, again, staying)

    asyncio.run(story())
    assert node.engine("cloud") == before


def test_sighup_neither_ends_the_broker_nor_its_engine_nor_a_session(node: Cluster) -> None:
    """Administrators send it to have files read again; whoever ends by it takes a whole site along."""
    own, before = node.hub("hup-1"), node.engine("cloud")

    async def story() -> None:
        member = await node.join(own)
        node.running["cloud"].send_signal(signal.SIGHUP)
        await asyncio.to_thread(
            until, "it is heard", lambda: any(line["event"] == "hangup_ignored" for line in node.log("cloud"))
        )
        assert await member.quiet() == []
        await closed(member, await node.join(node.hub("hup-2")))

    asyncio.run(story())
    assert node.engine("cloud") == before


def test_reinstated_hub_gets_in_with_its_new_certificate_only(node: Cluster) -> None:
    """The old one is on a machine that was stolen."""
    old = node.hub("back-1")
    key, cert = old.key.with_name("stolen.key"), old.cert.with_name("stolen.cert")
    key.write_bytes(old.key.read_bytes())
    cert.write_bytes(old.cert.read_bytes())
    provision.revoke(node.directory, "hub/back-1")
    provision.renew(node.directory, "hub/back-1", reinstate=True)

    async def attempt(stolen: bool) -> bytes:
        from msgspec.structs import replace

        client = await node.dial(replace(old, key=key, cert=cert) if stolen else old)
        client.send(connect("back-1"))
        answer = await client.packet()
        await client.close()
        return answer

    until("the stolen one is refused", lambda: asyncio.run(attempt(True)) == NOT_AUTHORIZED)
    assert asyncio.run(attempt(False)) == CONNACK


def test_what_hubs_send_waits_for_a_worker_and_is_answered_over_nats(node: Cluster) -> None:
    """The worker's way: stream, commit, acknowledgement to the hub, and only then to the stream."""
    own = node.hub("jet-1")

    async def story() -> None:
        client = await nats_stream.connect(node.nats, node.service)
        stream = client.jetstream()
        await nats_stream.ensure_stream(stream, "acme")
        await nats_stream.ensure_stream(stream, "acme")
        member = await subscribed(await node.join(own), hub_filter("acme", "berlin", "jet-1", "down"))
        for number in range(3):
            member.send(publish(up("jet-1"), b"%d" % number, packet_id=number + 1))
            await member.answer()
        member.send(publish(str(Topic.hub_state("acme", "berlin", "jet-1")), b"not of the stream"))
        await member.answer()
        pulled = await nats_stream.pull(stream)
        got = []
        while len(got) < 3:
            got += await pulled.fetch(10, timeout=10)
        assert [(nats_stream.topic_of(each.subject), each.data) for each in got] == [
            (up("jet-1"), b"0"),
            (up("jet-1"), b"1"),
            (up("jet-1"), b"2"),
        ]
        await client.publish(nats_stream.subject_of(str(Topic.down("acme", "berlin", "jet-1", "ack"))), b"stored")
        assert [payload for _, payload, _ in await member.expect(1)] == [b"stored"]
        for each in got:
            await each.ack_sync()
        assert (await stream.stream_info(nats_stream.STREAM)).state.messages == 0
        await client.close()
        await closed(member)

    asyncio.run(story())


def test_a_subscriber_that_never_comes_back_fills_no_disk(node: Cluster) -> None:
    """The least of all members would stop the ingest of a whole fleet: the stream for the workers is on the same disk."""
    own = node.hub("disk-1")
    provision.reader(node.directory, "gone-1")

    async def story() -> None:
        reader = await node.join(node.identity("reader", "gone-1"), "gone-1_x", clean=False)
        await closed(await subscribed(reader, everything_filter("acme")))
        client = await nats_stream.connect(node.nats, node.service)
        await bounded(client, DELIVERIES_STREAM)
        member = await node.join(own)
        for number in range(100):
            member.send(publish(up("disk-1"), b"x" * 20_000, packet_id=number + 1))
            assert (await member.answer())[0] == PUBACK
        assert 0 < (await told_of(client, DELIVERIES_STREAM))["state"]["bytes"] <= SMALL_BYTES
        await nats_stream.bound_others(client)
        kept = (await told_of(client, DELIVERIES_STREAM))["config"]
        assert (kept["max_bytes"], kept["retention"]) == (limits.NATS_DELIVERIES_MAX_BYTES, "interest")
        await client.close()
        await closed(member)

    asyncio.run(story())


def test_a_hub_that_makes_up_topics_without_end_fills_no_disk(tmp_path: Path) -> None:
    """Everybody else's states stay, and go on to be renewed. What it has made up stays too: it has a node of its own."""
    with running_cluster(tmp_path) as node:
        honest, other = node.hub("room-1"), node.hub("room-2")
        state = str(Topic.hub_state("acme", "berlin", "room-1"))

        async def story() -> None:
            first, flood = await node.join(honest), await node.join(other)
            first.send(publish(state, b"before", retain=True))
            await first.answer()
            client = await nats_stream.connect(node.nats, node.service)
            await bounded(client, RETAINED_STREAM)
            for number in range(40):
                topic = str(Topic.up("acme", "berlin", "room-2", f"kind-{number}"))
                flood.send(publish(topic, b"x" * 50_000, retain=True, packet_id=number + 1))
                await flood.answer()
            assert (await told_of(client, RETAINED_STREAM))["state"]["bytes"] <= SMALL_BYTES
            first.send(publish(state, b"after", retain=True))
            await first.answer()
            viewer = await subscribed(await node.join(node.service, "cloud_room"), state)
            assert await viewer.expect(1) == [(state, b"after", True)]
            await nats_stream.bound_others(client)
            await client.close()
            await closed(first, flood, viewer)

        asyncio.run(story())
        until("it is said who it was", lambda: any("room-2" in str(line.get("line")) for line in node.log("cloud")))


async def bounded(client: Client, stream: str) -> None:
    """Give one of the streams a small bound."""
    await nats_stream.bound_others(client, {stream: {**nats_stream.BOUNDS[stream], "max_bytes": SMALL_BYTES}})


async def told_of(client: Client, stream: str) -> dict[str, Any]:
    answer = await client.request(f"$JS.API.STREAM.INFO.{stream}", b"", 5)
    told: dict[str, Any] = orjson.loads(answer.data)
    return told


def test_a_state_that_is_told_while_the_node_takes_the_subscription_is_heard(tmp_path: Path) -> None:
    """nats-server itself sends it neither as retained nor as new."""

    async def story(node: Cluster) -> None:
        speaker = await node.join(node.identity("connector", "berlin-1", "berlin"))
        for number in range(3000):  # To read so many from the disk takes the node a while.
            speaker.send(publish(str(Topic.hub_state("acme", "berlin", f"old-{number}")), b"{}", retain=True))
            assert (await speaker.answer())[0] == PUBACK
        told = [str(Topic.hub_state("acme", "berlin", f"new-{number}")) for number in range(20)]
        tls = client_context(node.service, server_name("acme", CLOUD_SITE))
        session, ears = opened(node.endpoints[0], tls, "cloud")
        await ears.hear(is_a(Opened))
        session.subscribe([(hub_filter("acme", "+", "+", "state"), 0)])
        for topic in told:
            speaker.send(publish(topic, b"{}", retain=True))
            assert (await speaker.answer())[0] == PUBACK
        for topic in told:
            await ears.hear(lambda event, topic=topic: isinstance(event, Received) and event.topic == topic)  # type: ignore[misc]
        topics = [event.topic for event in ears.heard if isinstance(event, Received)]
        assert len(topics) == len(set(topics)), "each once, although asked for again"
        await session.close()
        await speaker.close()

    with running_cluster(tmp_path) as node:
        provision.connector(node.directory, "berlin-1", "berlin")
        asyncio.run(story(node))


def test_hub_that_is_new_after_the_start_gets_in_at_once(node: Cluster) -> None:
    """Nothing needs to be told of it: its certificate says everything."""
    before = [line for line in node.log("cloud") if line["event"] == "engine_renewed"]

    async def story() -> None:
        await closed(await node.join(node.hub("new-1")))

    asyncio.run(story())
    assert [line for line in node.log("cloud") if line["event"] == "engine_renewed"] == before


def test_node_that_is_killed_comes_back_and_lets_clients_in(tmp_path: Path) -> None:
    """The supervisor's connection to it has died with it."""
    with running_cluster(tmp_path) as node:
        own = node.hub("kill-1")

        async def story() -> None:
            member = await node.join(own)
            node.kill_engine("cloud")
            assert await member.ended()

        asyncio.run(story())
        node.wait_until_serving("cloud")


def test_by_permissions_members_come_and_go_by_a_reload(tmp_path: Path) -> None:
    """For who runs nats-server himself: the configuration alone knows everybody."""
    with running_cluster(tmp_path, environ={"HUBLINE_NATS__AUTHORIZATION": '"permissions"'}) as node:
        engine, new = node.engine("cloud"), node.hub("new-1")

        async def story() -> None:
            while True:  # Until the reload has told it of the new one.
                member = await node.dial(new)
                member.send(connect("new-1"))
                if await member.packet() == CONNACK:
                    break
                await member.close()
            service = await subscribed(await node.join(node.service, "cloud_1"), everything_filter("acme"))
            member.send(publish(up("new-2"), b"forged"), publish(up("new-1"), b"mine", packet_id=2))
            assert [topic for topic, _, _ in await service.expect(1)] == [up("new-1")]
            await asyncio.to_thread(provision.revoke, node.directory, "hub/new-1")
            assert await member.ended()
            assert await service.quiet()
            await closed(service)

        asyncio.run(story())
        assert node.engine("cloud") == engine
