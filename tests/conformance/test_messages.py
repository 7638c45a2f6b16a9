"""What is retained, how large a message may be, and that a slow or greedy client takes nothing from the others."""

from __future__ import annotations

import asyncio
import random

from broker.topics import Topic, everything_filter, hub_filter
from config import limits
from tests.broker import raw_mqtt as raw
from tests.conformance.engines import Check
from tests.conformance.ground import (
    BYSTANDER,
    CONNECTOR,
    FLEET,
    READER,
    SERVICE,
    SITE,
    Ground,
    Visit,
    outcome,
    readings_of,
    state_of,
    who,
)

PC_1 = who("hub", "pc-1")

# --- Retained ----------------------------------------------------------------------------------------------------------


def test_a_new_subscriber_gets_what_is_retained_marked_as_such_and_only_the_newest(ground: Ground) -> None:
    """Without the mark nobody could tell news from what was said an hour ago (MQTT 3.1.1, 3.3.1.3)."""

    async def story(visit: Visit) -> None:
        this_hub, other = visit.ground.spare_hub(), visit.ground.spare_hub()
        topic = str(state_of(this_hub))
        teller = await visit.join(this_hub)
        live = await visit.listen(READER, topic)
        for payload in (b"one", b"two"):
            teller.send(raw.publish(topic, payload, retain=True))
            assert (await teller.answer())[0] == 0x40
        teller.send(raw.publish(topic, b"passing"))
        assert (await teller.answer())[0] == 0x40
        assert await live.expect(3) == [(topic, b"one", False), (topic, b"two", False), (topic, b"passing", False)]
        for topic_filter in (topic, everything_filter(FLEET, SITE)):
            for qos in (0, 1):
                later = await visit.listen(READER, topic_filter, qos=qos)
                while not [message for message in later.messages if message[0] == topic]:
                    await later.expect(len(later.messages) + 1)
                assert [message for message in await later.quiet() if message[0] == topic] == [(topic, b"two", True)]
        teller.send(raw.publish(topic, b"", retain=True))
        assert (await teller.answer())[0] == 0x40
        assert (await live.expect(4))[3] == (topic, b"", False)
        marker = await visit.join(other)
        after = await visit.listen(READER, topic, str(state_of(other)))
        marker.send(raw.publish(str(state_of(other)), b"mark"))
        assert await after.expect(1) == [(str(state_of(other)), b"mark", False)]

    ground.tell(story)


def test_what_is_retained_beyond_the_rights_of_a_reader_is_not_delivered(ground: Ground) -> None:
    """B4: stock amqtt sends every new client what matches the subscriptions of others."""

    async def story(visit: Visit) -> None:
        this_hub = visit.ground.spare_hub()
        private, common = str(state_of(this_hub)), str(Topic.connector_state(FLEET, SITE, CONNECTOR.name))
        connector, teller = await visit.join(CONNECTOR), await visit.join(this_hub)
        connector.send(raw.publish(common, b"up", retain=True))
        teller.send(raw.publish(private, b"private", retain=True))
        assert (await connector.answer())[0] == (await teller.answer())[0] == 0x40
        stranger = await visit.join(BYSTANDER)
        assert not await stranger.quiet(), "something came before anything was asked for"
        stranger.send(raw.subscribe(common))
        assert (await stranger.answer())[0] == 0x90
        assert await stranger.expect(1) == [(common, b"up", True)]
        far = await visit.join(who("reader", "munich-desk", "munich"))
        far.send(raw.subscribe(everything_filter(FLEET, "munich")))
        assert (await far.answer())[0] == 0x90
        curious = await visit.join(BYSTANDER)
        curious.send(raw.subscribe(private, everything_filter(FLEET), "#"))
        await outcome(curious)
        for heard in (stranger.messages, await far.quiet(), curious.messages):
            assert b"private" not in {payload for _, payload, _ in heard}
        for client, topic in ((connector, common), (teller, private)):
            client.send(raw.publish(topic, b"", retain=True))
            assert (await client.answer())[0] == 0x40

    ground.tell(story)


# --- Sizes -------------------------------------------------------------------------------------------------------------


def test_the_largest_message_of_the_contract_passes(ground: Ground) -> None:
    async def story(visit: Visit) -> None:
        topic = str(readings_of(PC_1))
        heard = await visit.listen(READER, topic)
        teller = await visit.join(PC_1)
        payload = random.Random(1).randbytes(limits.MESSAGE_MAX_BYTES)
        teller.send(raw.publish(topic, payload))
        assert (await teller.answer())[0] == 0x40
        assert await heard.expect(1) == [(topic, payload, False)]

    ground.tell(story)


def test_a_larger_message_is_refused_and_harms_nobody(ground: Ground) -> None:
    """100 MB that were accepted would be 100 MB for every subscriber."""

    async def story(visit: Visit) -> None:
        topic = str(readings_of(PC_1))
        witness = await visit.witness(topic)
        for extra in (1, 2000, 1024 * 1024):
            teller = await visit.join(PC_1)
            teller.send(
                raw.publish(topic, b"%d " % extra + bytes(limits.MESSAGE_MAX_BYTES + extra - len(b"%d " % extra)))
            )
            await outcome(teller)
        announcing = await visit.join(PC_1)
        announcing.send(b"\x32\x80\xc2\xd7\x2f" + raw.text(topic) + bytes(100_000))
        passed = [int(payload.split()[0]) for payload in await witness.payloads()]
        assert passed in ([], [1])
        assert ("passes" if passed else "is refused") == ground.expects(Check.TOO_LARGE)

    ground.tell(story)


def test_names_that_are_too_long_are_refused_or_go_no_further(ground: Ground) -> None:
    async def story(visit: Visit) -> None:
        long = str(readings_of(PC_1)).removesuffix("readings") + "x" * limits.TOPIC_MAX_BYTES
        witness = await visit.witness()
        teller = await visit.join(PC_1)
        teller.send(raw.publish(long, b"long"))
        await outcome(teller)
        passed = await witness.payloads()
        assert ("is delivered" if passed else "is refused") == ground.expects(Check.LONG_TOPIC)
        assert (
            await visit.connack(PC_1, "x" * 60_000) != raw.CONNACK or ground.expects(Check.CLIENT_ID) == "is accepted"
        )
        longest = await visit.join(PC_1)
        longest.send(raw.publish("hl1/" + "x" * 65_000, b"longer"))
        await outcome(longest)
        assert not await witness.payloads()

    ground.tell(story)


def test_qos_2_is_not_part_of_the_contract(ground: Ground) -> None:
    """Its four packets would promise nothing that the end-to-end acknowledgement does not."""

    async def story(visit: Visit) -> None:
        teller = await visit.join(PC_1)
        teller.send(raw.publish(str(readings_of(PC_1)), b"two", qos=2))
        came = await teller.answer()
        assert ("is served" if came[:1] == b"\x50" else "ends the session") == ground.expects(Check.QOS_2)

    ground.tell(story)


def test_what_is_heard_has_no_higher_qos_than_it_was_published_with(ground: Ground) -> None:
    """A broker that raised it would keep queues that nobody has asked for."""

    async def story(visit: Visit) -> None:
        topic, came = str(readings_of(PC_1)), set[int]()
        teller = await visit.join(PC_1)
        for wanted in (1, 2):
            heard = await visit.listen(READER, topic, qos=wanted)
            for qos in (0, 1):
                teller.send(raw.publish(topic, b"x", qos=qos))
                got = (await heard.packet())[0] >> 1 & 3
                assert got <= qos
                came.add(got)
        expects = {"comes with QoS 0": {0}, "comes with QoS 1 if it was published so": {0, 1}}
        assert came == expects[ground.expects(Check.HEARD_QOS)]

    ground.tell(story)


# --- Many, slow and greedy -------------------------------------------------------------------------------------------------


def test_messages_of_many_hubs_all_arrive_in_order(ground: Ground) -> None:
    async def story(visit: Visit) -> None:
        hubs = [visit.ground.spare_hub() for _ in range(5)]
        heard = await visit.listen(SERVICE, hub_filter(FLEET, SITE, "+", "up"), qos=1)
        clients = [await visit.join(each) for each in hubs]

        async def speak(number: int) -> None:
            for count in range(1, 101):
                clients[number].send(raw.publish(str(readings_of(hubs[number])), b"%d" % count, packet_id=count))
            for _ in range(100):
                assert (await clients[number].answer())[0] == 0x40

        await asyncio.gather(heard.expect(500), *(speak(number) for number in range(5)))
        for each in hubs:
            got = [int(payload) for topic, payload, _ in heard.messages if topic == str(readings_of(each))]
            assert got == list(range(1, 101))

    ground.tell(story)


def test_a_subscriber_that_does_not_read_stalls_nobody(ground: Ground) -> None:
    """B18: one console that hangs must not stop a fleet."""

    async def story(visit: Visit) -> None:
        topic = str(readings_of(PC_1))
        deaf = await visit.listen(READER, topic)
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
        heard = await visit.listen(READER, topic)
        teller = await visit.join(PC_1)
        payload = bytes(limits.MESSAGE_MAX_BYTES // 2)
        for count in range(1, 101):
            teller.send(raw.publish(topic, payload, packet_id=count))
            assert (await teller.answer())[0] == 0x40
            await heard.expect(count)

    ground.tell(story)


def test_a_flood_of_connections_stalls_nobody_for_long(ground: Ground) -> None:
    async def story(visit: Visit) -> None:
        topic = str(readings_of(PC_1))
        heard, teller = await visit.listen(READER, topic), await visit.join(PC_1)
        flood = [asyncio.create_task(visit.dial(None)) for _ in range(200)]
        flood += [asyncio.create_task(visit.dial(visit.ground.spare_hub())) for _ in range(30)]
        for count in range(1, 21):
            teller.send(raw.publish(topic, b"%d" % count, packet_id=count))
            assert (await teller.answer())[0] == 0x40
            await heard.expect(count)
        for client in await asyncio.gather(*flood):
            await client.close()
        assert await outcome(await visit.join(visit.ground.spare_hub())) == "served"

    ground.tell(story)


def test_one_certificate_cannot_open_any_number_of_sessions(ground: Ground) -> None:
    async def story(visit: Visit) -> None:
        this_hub = visit.ground.spare_hub()
        came = [await visit.connack(this_hub) for _ in range(limits.SESSIONS_PER_CERTIFICATE_MAX + 1)]
        assert all(each == raw.CONNACK for each in came[:-1])
        assert ("are served" if came[-1] == raw.CONNACK else "are refused") == ground.expects(Check.MANY_SESSIONS)

    ground.tell(story)
