"""Client ids, wills and take-overs: who a session belongs to, and what is said when it ends."""

from __future__ import annotations

import asyncio

from broker.client_ids import client_id_of
from broker.topics import Topic, everything_filter
from config import limits
from tests.broker import raw_mqtt as raw
from tests.broker.raw_mqtt import RawClient
from tests.conformance.engines import Check
from tests.conformance.ground import (
    BYSTANDER,
    CONNECTOR,
    FLEET,
    READER,
    SITE,
    Ground,
    Visit,
    fresh_id,
    outcome,
    readings_of,
    state_of,
    who,
)

PC_1 = who("hub", "pc-1")

# --- Client ids --------------------------------------------------------------------------------------------------------


def test_a_client_id_is_bound_to_its_certificate_or_cannot_be_guessed(ground: Ground) -> None:
    """Who takes over a session ends it; where an engine lets anybody, nobody may know the id."""

    async def story(visit: Visit) -> None:
        owner = visit.ground.spare_hub()
        client_id = fresh_id(owner)
        victim = await visit.join(owner, client_id)
        came = await visit.connack(visit.ground.spare_hub(), client_id)
        let_in = came == raw.CONNACK
        assert ("is accepted" if let_in else "is refused at CONNECT") == visit.ground.expects(Check.CLIENT_ID)
        assert (await outcome(victim) == "ended") == let_in

    ground.tell(story)
    assert len(fresh_id(BYSTANDER)) == len(client_id_of(BYSTANDER.name, "")) + 2 * limits.CLIENT_ID_SECRET_BYTES


def test_a_newer_session_of_the_same_client_ends_the_older_one(ground: Ground) -> None:
    """A hub that comes back before its old connection was missed must not be there twice, one half of it dead."""

    async def story(visit: Visit) -> None:
        this_hub = visit.ground.spare_hub()
        topic, client_id = str(state_of(this_hub)), fresh_id(this_hub)
        witness = await visit.witness()
        older = await visit.join(this_hub, client_id, will=(topic, b"first"), will_retain=False)
        newer = await visit.join(this_hub, client_id, will=(topic, b"second"), will_retain=False)
        assert await older.ended()
        assert await outcome(newer) == "served"
        heard = [payload for _, payload, _ in await witness.something(0.5)]
        assert heard in ([], [b"first"])
        assert ("is sent" if heard else "is not sent") == visit.ground.expects(Check.TAKEN_OVER)
        newer.send(raw.publish(str(readings_of(this_hub)), b"here"))
        assert (await newer.answer())[0] == 0x40
        assert await witness.payloads() == [b"here"]

    ground.tell(story)


# --- Wills -------------------------------------------------------------------------------------------------------------


def test_a_will_is_sent_when_a_session_ends_without_a_word_and_is_retained(ground: Ground) -> None:
    """It is how the cloud learns of a power cut, a killed process, or a pulled cable."""

    async def story(visit: Visit) -> None:
        witness = await visit.witness()
        lively = await visit.join(visit.ground.spare_hub(), keep_alive_s=1)
        pinging = asyncio.create_task(ping(lively))
        leaving = {}
        for way in ("reset", "close", "silence"):
            this_hub = visit.ground.spare_hub()
            will, keep_alive_s = (str(state_of(this_hub)), way.encode()), 1 if way == "silence" else 60
            leaving[way] = this_hub, await visit.join(this_hub, will=will, keep_alive_s=keep_alive_s)
        await leaving["reset"][1].close()
        leaving["close"][1].writer.close()
        heard: list[tuple[str, bytes, bool]] = []
        while len(heard) < len(leaving):
            new = await witness.something()
            assert new, heard
            heard += new
        assert not pinging.done(), "one who answers was taken for silent"
        pinging.cancel()
        assert sorted(heard) == sorted((str(state_of(one)), way.encode(), False) for way, (one, _) in leaving.items())
        assert await leaving["silence"][1].ended()
        for way, (this_hub, _) in leaving.items():
            topic = str(state_of(this_hub))
            later = await visit.listen(READER, topic)
            assert await later.expect(1) == [(topic, way.encode(), True)]
            await forget(await visit.join(this_hub), topic)

    ground.tell(story)


def test_a_clean_stop_sends_no_will(ground: Ground) -> None:
    """Otherwise every restart of a hub would look like a loss."""

    async def story(visit: Visit) -> None:
        this_hub = visit.ground.spare_hub()
        witness = await visit.witness()
        leaving = await visit.join(this_hub, will=(str(state_of(this_hub)), b"gone"))
        leaving.send(raw.DISCONNECT)
        assert await leaving.ended()
        assert not await witness.all()
        later = await visit.join(READER)
        later.send(raw.subscribe(str(state_of(this_hub))))
        assert (await later.answer())[0] == 0x90
        assert not await later.quiet()

    ground.tell(story)


def test_a_will_beyond_the_rights_never_arrives_retained_or_not(ground: Ground) -> None:
    """A will is a publish like any other; one hub could else declare another one dead."""

    async def story(visit: Visit) -> None:
        own, other = visit.ground.spare_hub(), visit.ground.spare_hub()
        beyond = [
            str(state_of(other)),
            str(Topic.presence(FLEET, SITE, own.name)),
            str(Topic.down(FLEET, SITE, own.name, "task")),
            str(Topic.connector_state(FLEET, SITE, CONNECTOR.name)),
        ]
        witness = await visit.witness()
        seen = set[str]()
        for topic in beyond:
            for retain in (False, True):
                client = await visit.dial(own)
                client.send(raw.connect(fresh_id(own), will=(topic, b"forged"), will_retain=retain))
                let_in = await client.packet() == raw.CONNACK
                seen.add("is accepted, and never sent" if let_in else "is refused at CONNECT")
                await client.close()
        after = await visit.join(own, will=(str(state_of(own)), b"true"))
        await after.close()
        assert [payload for _, payload, _ in await witness.something()] == [b"true"]
        later = await visit.listen(READER, everything_filter(FLEET))
        marker = await visit.join(other)
        marker.send(raw.publish(str(readings_of(other)), b"mark"))
        while not any(payload == b"mark" for _, payload, _ in later.messages):
            await later.expect(len(later.messages) + 1)
        assert b"forged" not in {payload for _, payload, _ in later.messages}
        await forget(await visit.join(own), str(state_of(own)))
        assert seen == {visit.ground.expects(Check.FORBIDDEN_WILL)}

    ground.tell(story)


async def ping(client: RawClient) -> None:
    """Show signs of life, until cancelled."""
    while True:
        await client.quiet()
        await asyncio.sleep(0.4)


async def forget(client: RawClient, topic: str) -> None:
    """Take a retained message away, so that the next test does not find it."""
    client.send(raw.publish(topic, b"", retain=True))
    await client.answer()


# --- Kinds of sessions ---------------------------------------------------------------------------------------------------


def test_only_clean_sessions_of_mqtt_3_1_1_are_part_of_the_contract(ground: Ground) -> None:
    """What an engine offers beyond, none of our clients uses."""

    async def story(visit: Visit) -> None:
        came = {}
        for check, options in (
            (Check.PERSISTENT_SESSION, {"clean": False}),
            (Check.OTHER_VERSION, {"level": 5, "tail": b""}),
            (Check.LONG_CLIENT_ID, {"client_id": client_id_of("pc-1", "x" * 33)}),
        ):
            wanted: dict[str, object] = dict(options)
            client_id = wanted.pop("client_id", None) or fresh_id(PC_1)
            if check is Check.OTHER_VERSION:
                packet = raw.packet(0x10, raw.text("MQTT") + b"\5\2\0\x3c\0" + raw.text(str(client_id)))
                client = await visit.dial(PC_1)
                client.send(packet)
                got = await client.packet()
                let_in = len(got) > 3 and got[3] == 0
            else:
                let_in = await visit.connack(PC_1, str(client_id), **wanted) == raw.CONNACK
            came[check] = "is served" if let_in else "is refused at CONNECT"
        assert came == {check: visit.ground.expects(check) for check in came}

    ground.tell(story)


def test_another_version_of_mqtt_gives_no_other_rights(ground: Ground) -> None:
    """MQTT 5 brings new ways to name topics; none leads past the rights."""

    async def story(visit: Visit) -> None:
        client = await visit.dial(PC_1)
        client.send(raw.packet(0x10, raw.text("MQTT") + b"\5\2\0\x3c\0" + raw.text(fresh_id(PC_1))))
        if (await client.packet())[3:4] != b"\0":
            return  # Not served at all.
        witness = await visit.witness()
        foreign = raw.text(str(readings_of(BYSTANDER)))
        alias = b"\3\x23\0\1"
        client.send(raw.packet(0x30, foreign + b"\0x"))
        client.send(raw.packet(0x30, foreign + alias + b"x"), raw.packet(0x30, raw.text("") + alias + b"x"))
        client.send(raw.packet(0x82, b"\0\7\0" + raw.text("#") + b"\0" + raw.text("$share/g/#") + b"\0"))
        await outcome(client)
        teller = await visit.join(BYSTANDER)
        teller.send(raw.publish(str(readings_of(BYSTANDER)), b"private"))
        assert (await teller.answer())[0] == 0x40
        assert await witness.payloads() == [b"private"]
        await outcome(client)
        assert not client.messages

    ground.tell(story)
