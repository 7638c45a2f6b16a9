"""The contract's table of rights, row by row, seen by what arrives: some engines acknowledge what they drop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from broker import rights
from broker.tls import key_secret
from broker.topics import (
    DOWN_KINDS,
    HUB_CHANNELS,
    LEAF_CHANNELS,
    UP_KINDS,
    Topic,
    connector_filter,
    everything_filter,
    hub_filter,
    shared_filter,
)
from config import limits
from config.principal import CLOUD_SITE, Principal
from tests.broker import raw_mqtt as raw
from tests.broker.matching import matches
from tests.broker.raw_mqtt import RawClient
from tests.conformance.engines import Check
from tests.conformance.ground import (
    BYSTANDER,
    CONNECTOR,
    FLEET,
    OTHER_SITE,
    READER,
    SERVICE,
    SITE,
    Ground,
    Visit,
    outcome,
    readings_of,
    who,
)
from tests.conformance.places import everywhere

PC_1 = who("hub", "pc-1")
MU_1 = who("hub", "mu-1", OTHER_SITE)
OTHER_CONNECTOR = who("connector", "munich-1", OTHER_SITE)
LOCAL_READER = who("reader", "berlin-desk")
FAR_READER = who("reader", "munich-desk", OTHER_SITE)
HOLDERS = (PC_1, MU_1, CONNECTOR, OTHER_CONNECTOR, SERVICE, READER, LOCAL_READER, FAR_READER)
WRITERS = (PC_1, MU_1, CONNECTOR, OTHER_CONNECTOR, SERVICE, READER)
"""Of each role that publishes anything, and one that publishes nothing, whatever its site."""
TYPICAL = (PC_1, CONNECTOR, SERVICE)
GROUP_MAX = 40
"""Topic filters of one session; the embedded engine takes 64."""

ODD_TOPICS = (
    "$SYS/broker/uptime",
    "$MQTT/sub/x",
    "$JS/API/STREAM/NAMES",
    "$JS/API/STREAM/PURGE/$MQTT_rmsgs",
    "$JS/ACK/x",
    "$SYS/REQ/SERVER/PING",
    "$share/g/hl1/acme/berlin/hub/pc-1/up/readings",
    "_INBOX/x",
    "x",
    "hl1",
    "hl1/acme",
    "/hl1/acme/berlin/hub/pc-1/state",
    "hl1/acme/berlin/hub/pc-1/up",
    "hl1/acme/berlin/hub/pc-1/up/readings/more",
    "hl1/acme/berlin/hub/pc-1/state/",
    "hl1/acme/berlin/hub/pc-1/elsewhere",
    "hl1/acme/berlin/connector/berlin-1",
    "hl1.acme.berlin.hub.pc-1.presence",
    "hl2/acme/berlin/hub/pc-1/state",
)
"""No role may publish to any of these."""

ODD_FILTERS = (
    "#",
    "+/#",
    "hl1/#",
    "hl1/+/#",
    "+/acme/#",
    "+/+/+/+/+/+",
    "+/+/+/+/+/+/+",
    "hl1/rival/#",
    "hl1/+/berlin/hub/pc-2/down/+",
    "$SYS/#",
    "$SYS/+/+",
    "$MQTT/#",
    "$MQTT/msgs/#",
    "$MQTT/sub/#",
    "$JS/#",
    "_INBOX/#",
    "$share/ingest/hl1/#",
    "$share/ingest/#",
    "$share/g/#",
)
"""No role may have any of these, whatever they would bring."""


def topics() -> Iterator[Topic]:
    """Yield every kind of topic of the contract: of own and other members, sites and fleets."""
    own = {"up": (*UP_KINDS[:2], "a-kind-of-tomorrow"), "down": DOWN_KINDS[:2], "last": ("cpu.percent",)}
    foreign = {channel: leaves[:1] for channel, leaves in own.items()}
    for fleet, site, name in (
        (FLEET, SITE, "pc-1"),
        (FLEET, SITE, "pc-2"),
        (FLEET, OTHER_SITE, "mu-1"),
        (FLEET, OTHER_SITE, "pc-1"),
        ("rival", SITE, "pc-1"),
    ):
        leaves = own if (fleet, site, name) == (FLEET, SITE, "pc-1") else foreign
        for channel in HUB_CHANNELS:
            for leaf in leaves[channel] if channel in LEAF_CHANNELS else (None,):
                yield Topic(fleet, site, "hub", name, channel, leaf)
    for fleet, site, name in (
        (FLEET, SITE, "berlin-1"),
        (FLEET, SITE, "berlin-2"),
        (FLEET, OTHER_SITE, "munich-1"),
        (FLEET, OTHER_SITE, "berlin-1"),
        ("rival", SITE, "berlin-1"),
    ):
        yield Topic.connector_state(fleet, site, name)


def filters() -> Iterator[str]:
    """Yield every kind of topic filter that anybody may have, and the next wider ones."""
    for fleet, site in ((FLEET, SITE), (FLEET, OTHER_SITE), (FLEET, "+"), ("rival", SITE)):
        for channel in HUB_CHANNELS:
            for name in ("pc-1", "pc-2", "+") if (fleet, site) == (FLEET, SITE) else ("+",):
                yield hub_filter(fleet, site, name, channel)
        yield connector_filter(fleet, site)
        yield everything_filter(fleet, site)
    yield connector_filter(FLEET, SITE, "berlin-1")
    yield str(Topic.down(FLEET, SITE, "pc-1", "ack"))
    yield f"hl1/{FLEET}/{SITE}/hub/pc-1/#"
    yield f"hl1/{FLEET}/{SITE}/hub/pc-1/down/#"
    yield f"hl1/{FLEET}/{SITE}/hub/#"
    yield f"hl1/{FLEET}/{SITE}/+/berlin-1/state"
    yield f"hl1/{FLEET}/{SITE}/connector/#"
    yield everything_filter(FLEET)


def welcome(holder: Principal, place: str) -> bool:
    return not rights.Rights(holder, place).none


async def publish_each(visit: Visit, holder: Principal, sent: dict[bytes, str], *, retain: bool = False) -> set[str]:
    """Publish to every topic, in a new session wherever one was ended, and return what befell sessions by what is forbidden."""
    place, seen = visit.ground.place, set[str]()
    client: RawClient | None = None
    for payload, topic in sent.items():
        client = client or await visit.join(holder)
        client.send(raw.publish(topic, payload, retain=retain))
        allowed = rights.Rights(holder, place).may_publish(topic, retain=retain)
        if allowed:
            assert (await client.answer())[:2] == b"\x40\x02", topic
            continue
        came = await outcome(client)
        seen.add("ends the session" if came == "ended" else "is acknowledged and dropped")
        client = client if came == "served" else None
    return seen


@everywhere
def test_what_is_published_arrives_if_and_only_if_the_contract_allows_it(ground: Ground) -> None:
    """A wrong row lets one machine speak for another, or a reader for the cloud."""

    async def story(visit: Visit) -> None:
        witness = await visit.witness()
        sent: dict[Principal, dict[bytes, str]] = {}
        for holder in filter(lambda holder: welcome(holder, ground.place), WRITERS):
            every = [*map(str, topics()), *(ODD_TOPICS if holder in TYPICAL else ())]
            sent[holder] = {b"%d %s" % (number, str(holder).encode()): topic for number, topic in enumerate(every)}
        seen = await asyncio.gather(*(publish_each(visit, holder, own) for holder, own in sent.items()))
        heard = await witness.payloads()
        for holder, own in sent.items():
            allowed = [topic for topic in own.values() if rights.may_publish(holder, ground.place, topic)]
            assert [own[payload] for payload in heard if payload in own] == allowed, holder
        assert len(heard) == len(set(heard))
        assert set[str]().union(*seen) == {ground.expects(Check.FORBIDDEN_PUBLISH)}

    ground.tell(story)


@pytest.mark.parametrize(
    ("holder", "place", "topic", "allowed"),
    [
        (PC_1, SITE, "hl1/acme/berlin/hub/pc-1/up/readings", True),
        (PC_1, SITE, "hl1/acme/berlin/hub/pc-1/poll", True),
        (PC_1, CLOUD_SITE, "hl1/acme/berlin/hub/pc-1/heartbeat", True),
        (PC_1, SITE, "hl1/acme/berlin/hub/pc-2/up/readings", False),
        (PC_1, CLOUD_SITE, "hl1/acme/munich/hub/pc-1/state", False),
        (PC_1, SITE, "hl1/acme/berlin/connector/berlin-1/state", False),
        (CONNECTOR, SITE, "hl1/acme/berlin/hub/pc-1/down/ack", True),
        (CONNECTOR, SITE, "hl1/acme/berlin/hub/pc-1/up/readings", False),
        (CONNECTOR, CLOUD_SITE, "hl1/acme/berlin/hub/pc-1/up/readings", True),
        (CONNECTOR, CLOUD_SITE, "hl1/acme/munich/hub/mu-1/up/readings", False),
        (CONNECTOR, CLOUD_SITE, "hl1/acme/berlin/hub/pc-1/down/ack", False),
        (CONNECTOR, CLOUD_SITE, "hl1/acme/berlin/connector/berlin-2/state", False),
        (SERVICE, CLOUD_SITE, "hl1/acme/munich/hub/mu-1/last/cpu.percent", True),
        (SERVICE, CLOUD_SITE, "hl1/acme/berlin/hub/pc-1/up/readings", False),
        (READER, CLOUD_SITE, "hl1/acme/berlin/hub/pc-1/presence", False),
    ],
    ids=lambda value: str(value),
)
def test_the_rows_that_matter_most_are_written_by_hand(
    holder: Principal, place: str, topic: str, allowed: bool
) -> None:
    """The oracle of the other tests is our own code: it must not be wrong in the same way."""
    assert rights.may_publish(holder, place, topic) == allowed


def test_what_may_be_published_may_be_retained_only_where_the_contract_retains(ground: Ground) -> None:
    """Otherwise one hub could fill a broker with messages that nobody ever reads."""

    async def story(visit: Visit) -> None:
        hub = visit.ground.spare_hub()
        sent = {
            topic.channel.encode(): str(topic)
            for topic in (
                Topic.up(FLEET, SITE, hub.name, "readings"),
                Topic.heartbeat(FLEET, SITE, hub.name),
                Topic.poll(FLEET, SITE, hub.name),
            )
        }
        witness = await visit.witness()
        for payload, topic in sent.items():
            client = await visit.join(hub)
            client.send(raw.publish(topic, payload, retain=True))
            await outcome(client)
        await witness.all()
        later = await visit.listen(READER, *(sorted(sent.values())), str(Topic.hub_state(FLEET, SITE, hub.name)))
        teller = await visit.join(hub)
        teller.send(raw.publish(str(Topic.hub_state(FLEET, SITE, hub.name)), b"end"))
        while not any(payload == b"end" for _, payload, _ in later.messages):
            await later.expect(len(later.messages) + 1)
        kept = {topic for topic, _, retained in later.messages if retained}
        for topic in kept:
            teller.send(raw.publish(topic, b"", retain=True))
        await outcome(teller)
        want = {"is refused": set[str](), "is kept": set(sent.values())}
        assert kept == want[ground.expects(Check.RETAINED_ELSEWHERE)]

    ground.tell(story)


def test_a_kind_without_a_name_in_the_contract_goes_no_further_than_its_own_hub_could(ground: Ground) -> None:
    """An engine that knows rights only as filters lets any last level through; the cloud refuses it."""

    async def story(visit: Visit) -> None:
        hub = visit.ground.spare_hub()
        before = str(Topic.up(FLEET, SITE, hub.name, "readings")).removesuffix("readings")
        odd = [before + leaf for leaf in ("", "two words", "ä", "x" * 200, "a\tb")]
        witness = await visit.witness()
        for topic in odd:
            client = await visit.join(hub)
            client.send(raw.publish(topic, topic.encode()))
            await outcome(client)
        heard = set(await witness.payloads())
        # NATS, as MQTT asks, has no subject for blanks, and ends such a session.
        want = {"is refused": set[bytes](), "is delivered": {topic.encode() for topic in odd}}
        expects = ground.expects(Check.ODD_KIND)
        assert heard <= want[expects]
        assert bool(heard) == bool(want[expects])

    ground.tell(story)


@dataclass(frozen=True, slots=True)
class Listener:
    """A session of a holder, and what it must hear; None if what it has asked for is beyond its rights."""

    holder: Principal
    client: RawClient
    asked: tuple[str, ...]
    must_hear: list[str] | None


@everywhere
def test_what_is_subscribed_to_brings_all_of_it_if_allowed_and_nothing_beyond_the_rights(ground: Ground) -> None:
    """A filter that is too wide must not bring a single message of somebody else, not even by a wildcard."""

    async def story(visit: Visit) -> None:
        present = [one for one in HOLDERS if welcome(one, ground.place)]
        speakers = {one: await visit.join(one) for one in present}
        published = [
            (one, str(topic))
            for topic in topics()
            for one in speakers
            if rights.may_publish(one, ground.place, str(topic))
        ]
        witness = await visit.witness()
        for some in (present[: len(present) // 2], present[len(present) // 2 :]):
            listeners = [each for one in some for each in await listeners_of(visit, one, [t for _, t in published])]
            for number, (one, topic) in enumerate(published, start=1):
                speakers[one].send(raw.publish(topic, topic.encode(), packet_id=number))
            for one, _ in published:
                assert (await speakers[one].answer())[0] == 0x40
            for each in listeners:
                await compare(each, ground.place)
            assert len(await witness.all()) == len(published)

    ground.tell(story)


async def listeners_of(visit: Visit, holder: Principal, published: list[str]) -> list[Listener]:
    """Subscribe to every filter: to those that bring the same messages in different sessions, each of which gets them once."""
    mine, found = rights.Rights(holder, visit.ground.place), []
    wanted = [*dict.fromkeys(filters()), *ODD_FILTERS]
    for group in disjoint([each for each in wanted if mine.may_subscribe(each)], published):
        client = await visit.listen(holder, *group)
        fitting = sorted(topic for topic in published if any(matches(one, topic) for one in group))
        found.append(Listener(holder, client, group, fitting))
    beyond = tuple(each for each in wanted if not mine.may_subscribe(each))
    for start in range(0, len(beyond), limits.SUBSCRIPTIONS_MAX // 2):
        group = beyond[start : start + limits.SUBSCRIPTIONS_MAX // 2]
        client = await visit.join(holder)
        client.send(raw.subscribe(*group, qos=0))
        got = await client.answer()
        came = granted(got, len(group), await outcome(client))
        assert came == visit.ground.expects(Check.FORBIDDEN_SUBSCRIBE), (holder, group, got)
        found.append(Listener(holder, client, group, None))
    return found


def disjoint(topic_filters: list[str], published: list[str]) -> list[tuple[str, ...]]:
    """Group filters so that no two of a group match the same of the topics that are published."""
    groups: list[tuple[list[str], set[str]]] = []
    for topic_filter in topic_filters:
        fitting = {topic for topic in published if matches(topic_filter, topic)}
        room = next((group for group in groups if not fitting & group[1] and len(group[0]) < GROUP_MAX), None)
        if room is None:
            groups.append(room := ([], set()))
        room[0].append(topic_filter)
        room[1].update(fitting)
    return [tuple(group) for group, _ in groups]


async def compare(listener: Listener, place: str) -> None:
    """Compare what a session has heard with what it must."""
    client, mine = listener.client, rights.Rights(listener.holder, place)
    while listener.must_hear is not None and len(live(client)) < len(listener.must_hear):
        await client.expect(len(client.messages) + 1)
    await outcome(client)
    if listener.must_hear is not None:
        assert live(client) == listener.must_hear, (listener.holder, listener.asked)
    assert not [topic for topic, _, _ in client.messages if not mine.may_subscribe(topic)], listener
    await client.close()


def live(client: RawClient) -> list[str]:
    """Return the topics of what has come, sorted, without what was retained before."""
    return sorted(topic for topic, _, retained in client.messages if not retained)


def granted(suback: bytes, count: int, came: str) -> str:
    """Return what befell subscriptions beyond the rights."""
    if not suback:
        return "ends the session"
    refused = suback[4:].count(0x80)
    if refused == count:
        return "is refused and ends the session" if came == "ended" else "is refused"
    return "is granted, and brings nothing beyond the rights" if not refused else "is refused in part"


@everywhere
def test_who_has_nothing_to_do_at_a_broker_gets_nothing_there(ground: Ground) -> None:
    """A stolen certificate of one site is worth nothing at another one; a broker's is worth nothing anywhere."""

    async def story(visit: Visit) -> None:
        assert await visit.connack(who("broker", "berlin-1")) != raw.CONNACK
        for holder in (MU_1, OTHER_CONNECTOR):
            if welcome(holder, ground.place):
                continue
            let_in = await visit.connack(holder) == raw.CONNACK
            assert ("is let in" if let_in else "is refused at CONNECT") == ground.expects(Check.NO_RIGHTS), holder
            if let_in:
                await can_do_nothing(visit, holder)

    ground.tell(story)


async def can_do_nothing(visit: Visit, holder: Principal) -> None:
    """Check that who was let in without any right can neither say nor hear anything."""
    witness = await visit.witness()
    client = await visit.join(holder)
    client.send(raw.subscribe("#", everything_filter(FLEET, holder.site), qos=0))
    await outcome(client)
    for topic in topics():
        client.send(raw.publish(str(topic), b"x", qos=0))
    await outcome(client)
    assert not await witness.all()
    assert not client.messages


async def shared(visit: Visit, of_worker: str, of_thief: str) -> tuple[bool, int]:
    """Have a worker and a stranger join shares of what hubs send; tell whether the worker could, and how much of ten it got."""
    wanted = hub_filter(FLEET, SITE, "+", "up")
    worker, thief, witness = await visit.join(SERVICE), await visit.join(BYSTANDER), await visit.witness()
    worker.send(raw.subscribe(shared_filter(of_worker, wanted), qos=0))
    served = (await worker.answer())[-1:] == b"\0"
    thief.send(raw.subscribe(shared_filter(of_thief, wanted), qos=0))
    await thief.answer()
    teller = await visit.join(PC_1)
    for number in range(1, 11):
        teller.send(raw.publish(str(readings_of(PC_1)), b"%d" % number, packet_id=number))
    for _ in range(10):
        assert (await teller.answer())[0] == 0x40
    assert len(await witness.all()) == 10
    await outcome(worker)
    await outcome(thief)
    assert not thief.messages
    for client in (worker, thief):
        client.send(raw.DISCONNECT)
        assert await client.ended()
    return served, len(worker.messages)


def test_a_share_of_somebody_elses_messages_cannot_be_had(ground: Ground) -> None:
    """Who joins the share of the ingest workers takes messages away from them, where an engine lets anybody."""

    async def story(visit: Visit) -> None:
        served, came = await shared(visit, "ingest", "ingest")
        was = "lose what falls to a stranger who knows their name" if served else "are not served"
        assert came < 10
        assert was == ground.expects(Check.SHARES)

    ground.tell(story)


def test_the_share_of_the_ingest_workers_is_joined_by_nobody_else(ground: Ground) -> None:
    """Its name ends in what only who has the cloud's key can know (`cloud.intake`)."""

    async def story(visit: Visit) -> None:
        secrets = [key_secret(ground.identity(one), "ingest") for one in (SERVICE, BYSTANDER)]
        for guessed in ("ingest", f"ingest-{secrets[1]}", "+", "#"):
            served, came = await shared(visit, f"ingest-{secrets[0]}", guessed)
            assert came == (10 if served else 0), guessed

    ground.tell(story)
