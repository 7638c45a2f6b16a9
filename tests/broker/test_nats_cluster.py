"""Three real nodes that serve as one cloud broker, and lose one of them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from nats.errors import Error

from broker.engines import nats_stream
from broker.topics import Topic, everything_filter, hub_filter
from config import limits
from tests.broker.raw_mqtt import RawClient, publish, subscribe
from tests.nats import Cluster, needs_nats, running_cluster

pytestmark = [needs_nats, pytest.mark.slow]
WITHIN_S = 60 + 2 * limits.NATS_STREAM_ACK_WAIT_S


async def listening(cluster: Cluster, node: int) -> RawClient:
    """Subscribe to everything: again, as clients do, while a stream has no leader and the node refuses it."""
    while True:
        client = await cluster.join(cluster.service, f"cloud_{node}", node)
        client.send(subscribe(everything_filter("acme")))
        with suppress(TimeoutError):  # Or says nothing at all.
            if (await client.answer())[-1:] == b"\1":
                return client
        await client.close()


async def led(cluster: Cluster) -> None:
    """Wait until the stream for the workers has a leader, and the first node knows of it: what comes before that is lost.

    Hubs send it again until the cloud has it; here nobody does.
    """
    client = await nats_stream.connect(cluster.nats[:1], cluster.service)
    while True:
        with suppress(Error, TimeoutError):
            await client.jetstream().stream_info(nats_stream.STREAM)  # Its leader answers.
            break
    await client.close()


async def retained(client: RawClient) -> bool:
    """Tell whether what is retained has come, once there was time for it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(2):
            await client.expect(1)
    return bool(client.messages)


def test_three_nodes_are_one_broker_and_lose_nothing_with_one_of_them(tmp_path: Path) -> None:
    """A hub may be at any node and the cloud service at any other; a node's death must cost neither of them a message."""
    with running_cluster(tmp_path, 3) as cluster:
        own = cluster.hub("pc-1")
        topic, state = (
            str(Topic.up("acme", "berlin", "pc-1", "readings")),
            str(Topic.hub_state("acme", "berlin", "pc-1")),
        )

        async def send(member: RawClient, number: int) -> None:
            member.send(publish(topic, b"%d" % number, packet_id=number + 1))
            assert await member.answer()

        async def before() -> None:
            client = await nats_stream.connect(cluster.nats, cluster.service)
            await nats_stream.ensure_stream(client.jetstream(), "acme", 3)
            await client.close()
            member, service = await cluster.join(own), await listening(cluster, 2)
            member.send(publish(state, b"born", retain=True))
            await member.answer()
            await send(member, 0)
            assert [(name, payload) for name, payload, _ in await service.expect(2)] == [
                (state, b"born"),
                (topic, b"0"),
            ]
            late = await listening(cluster, 1)
            assert [(name, kept) for name, _, kept in await late.expect(1)] == [(state, True)]
            for each in (member, service, late):
                await each.close()

        async def without_one() -> None:
            service = await listening(cluster, 2)
            while not await retained(service):  # As long as its stream has no new leader.
                await service.close()
                service = await listening(cluster, 2)
            await led(cluster)
            member = await cluster.join(own, node=0)
            for number in range(1, 50):
                await send(member, number)
            got = await service.expect(50)
            assert {int(payload) for _, payload, _ in got[1:]} == set(range(1, 50))
            await member.close()
            await service.close()

        async def after() -> None:
            client = await nats_stream.connect(cluster.nats[1:2], cluster.service)
            pulled = await nats_stream.pull(client.jetstream())
            found: set[int] = set()
            while len(found) < 50:
                with suppress(TimeoutError):  # What was handed out while the leaders changed comes again later.
                    for each in await pulled.fetch(100, timeout=10):
                        found.add(int(each.data))
                        await each.ack()
            assert found == set(range(50))
            await client.close()
            member = await cluster.join(own, node=1)
            member.send(subscribe(hub_filter("acme", "berlin", "pc-1", "down")))
            assert (await member.answer())[-1] == 1
            await member.close()

        asyncio.run(before())
        cluster.kill("cloud-2")
        cluster.wait_until_serving("cloud")
        cluster.wait_until_serving("cloud-3")
        asyncio.run(without_one())
        cluster.start("cloud-2")
        asyncio.run(asyncio.wait_for(after(), WITHIN_S))
        assert cluster.stop("cloud-3") == 0
