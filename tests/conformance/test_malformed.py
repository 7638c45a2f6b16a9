"""Bytes that no client should send: they end that connection or are ignored, and nobody else notices."""

from __future__ import annotations

import asyncio
import os
import random
from itertools import count

import pytest

from config import limits
from tests.broker import raw_mqtt as raw
from tests.broker.bad_packets import BEGINNINGS, HUB, VIOLATIONS
from tests.broker.raw_mqtt import RawClient
from tests.conformance.engines import Check
from tests.conformance.ground import CONNECTOR, Ground, Visit, fresh_id, who

PC_1 = who("hub", "pc-1")
AT_ONCE = 6
PATIENCE_S = {"is closed within 15 s": limits.CONNECT_TIMEOUT_S + 5, "is closed within 2 minutes": 120.0}
LONG = "HUBLINE_TEST_LONG"
REST_S = 0.3
"""For an end or an answer where the standard lets a broker wait for the rest of the packet."""


async def ends_or_goes_on(client: RawClient, data: bytes = b"") -> bool:
    """Tell whether a connection has ended, answers a ping, or waits as it may for the rest of `data`."""
    waits = waits_rightly(data)
    client.send(raw.PINGREQ)
    try:
        async with asyncio.timeout(REST_S if waits else raw.WAIT_S):
            while (got := await client.answer()) and got[0] != 0xD0:
                pass
    except TimeoutError:
        return waits
    return True


def waits_rightly(data: bytes) -> bool:
    """Tell whether a packet announces more bytes than have come, so that waiting for them is what the standard asks."""
    length, at = 0, 1
    while at < len(data) and at < 5:
        length |= (data[at] & 0x7F) << 7 * (at - 1)
        at += 1
        if not data[at - 1] & 0x80:
            return len(data) + len(raw.PINGREQ) < at + length
    return False


def renamed(data: bytes) -> bytes:
    """Return a CONNECT under an id of its own: who takes over his own sessions all the time is made to wait by nats-server."""
    name = raw.text(PC_1.name)
    if data[:1] != b"\x10" or name not in data or data[1] != len(data) - 2:
        return data
    return raw.packet(0x10, data[2:].replace(name, raw.text(fresh_id(PC_1)), 1))


def test_whatever_begins_a_connection_wrongly_reaches_nobody_and_harms_nobody(ground: Ground) -> None:
    """B15 to B17: stock amqtt keeps most of these connections, open or hung."""

    async def story(visit: Visit) -> None:
        witness = await visit.witness()
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(data: bytes) -> bytes | None:
            async with limit:
                client = await visit.dial(PC_1)
                client.send(renamed(data))
                fine = await ends_or_goes_on(client, data)
                await client.close()
                return None if fine else data

        hung = [data for data in await asyncio.gather(*(one(data) for data, _, _ in BEGINNINGS)) if data is not None]
        assert not hung
        heard = await witness.all()
        assert all(topic.startswith(f"{HUB}/") for topic, _, _ in heard), heard
        await clear(visit)

    ground.tell(story)


def test_whatever_breaks_the_rules_in_a_session_reaches_nobody_and_harms_nobody(ground: Ground) -> None:
    """A second CONNECT, QoS 3, wildcards in topics, packets of servers, cut and doubled ones."""

    async def story(visit: Visit) -> None:
        witness = await visit.witness()
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(data: bytes) -> bytes | None:
            async with limit:
                client = await visit.join(PC_1)
                client.send(data)
                fine = await ends_or_goes_on(client, data)
                await client.close()
                return None if fine else data

        hung = [data for data in await asyncio.gather(*(one(data) for data, _ in VIOLATIONS)) if data is not None]
        assert not hung
        heard = await witness.all()
        assert all(topic.startswith(f"{HUB}/") for topic, _, _ in heard), heard
        await clear(visit)

    ground.tell(story)


def test_random_and_damaged_bytes_disturb_nobody(ground: Ground) -> None:
    """Before TLS, before CONNECT and after it, with a conversation of others going on all the while."""

    async def story(visit: Visit) -> None:
        chance, numbers = random.Random(20261122), count(1)
        witness = await visit.witness()
        lively = await visit.join(visit.ground.spare_hub())
        valid = raw.subscribe(f"{HUB}/down/+") + raw.publish(f"{HUB}/up/readings", b"x" * 50)
        for number in range(60):
            noise = chance.randbytes(chance.randint(1, 200))
            match number % 3:
                case 0:
                    client = await visit.dial(None)
                    client.send(noise)
                case 1:
                    client = await visit.dial(PC_1)
                    client.send(noise)
                case _:
                    client = await visit.dial(PC_1)
                    damaged = bytearray(valid)
                    for _ in range(chance.randint(1, 5)):
                        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
                    client.send(raw.connect(fresh_id(PC_1)), bytes(damaged))
            client.writer.close()
            if number % 10 == 0:
                assert not await lively.quiet()
                next(numbers)
        heard = await witness.all()
        assert all(topic.startswith(f"{HUB}/") for topic, _, _ in heard), heard
        await clear(visit)

    ground.tell(story)


def test_who_never_gets_to_a_session_is_cut_in_time(ground: Ground) -> None:
    """B16: connections that do nothing must not add up."""

    if PATIENCE_S[ground.expects(Check.LATE_CONNECT)] > limits.CONNECT_TIMEOUT_S + 5 and not os.environ.get(LONG):
        pytest.skip(f"takes two minutes here: set {LONG}=1")

    async def story(visit: Visit) -> None:
        idle = ground.idlers()
        lively = await visit.join(CONNECTOR, keep_alive_s=60)
        assert not await lively.quiet()
        await asyncio.to_thread(idle.wait, PATIENCE_S[ground.expects(Check.LATE_CONNECT)])
        assert not idle.open()
        assert not await lively.quiet()

    ground.tell(story)


async def clear(visit: Visit) -> None:
    """Take away what was retained of it, so that the next test does not find it."""
    client = await visit.join(PC_1)
    client.send(raw.publish(f"{HUB}/state", b"", retain=True), raw.publish(f"{HUB}/up/readings", b"", retain=True))
    await ends_or_goes_on(client)
