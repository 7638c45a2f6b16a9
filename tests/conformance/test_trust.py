"""Certificates: who gets through the handshake, and that revocation and additions count without a restart."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from broker.topics import Topic
from config import fleet as fleets
from config import provision
from config.settings import Identity
from tests.broker import raw_mqtt as raw
from tests.broker.certificates import FleetFiles
from tests.conformance.engines import Check
from tests.conformance.ground import (
    CONNECTOR,
    FLEET,
    SERVICE,
    SITE,
    Ground,
    Visit,
    eventually,
    fresh_id,
    outcome,
    readings_of,
    who,
)

PC_1 = who("hub", "pc-1")
DOOMED = who("hub", "doomed")


@pytest.fixture
def forger(ground: Ground, tmp_path: Path) -> FleetFiles:
    """Return one who holds the fleet's own authority, and issues what it never should."""
    files = FleetFiles(tmp_path / "forged")
    with fleets.opened(ground.fleet) as fleet:
        files.authority = fleet.authority(None)
    files.ca = ground.fleet / "authority" / "ca.pem"
    return files


def refused(ground: Ground, identity: Identity) -> None:
    """Check that a certificate does not get so far as to a session."""

    async def story(visit: Visit) -> None:
        assert await visit.connack(identity, fresh_id(identity)) != raw.CONNACK

    ground.tell(story)


def test_a_bad_certificate_is_refused(ground: Ground, forger: FleetFiles) -> None:
    """Expired, of an authority that only has the right name, and not yet valid."""
    for made in (forger.expired, forger.foreign, forger.early):
        refused(ground, made("hub", "pc-1", SITE))


def test_a_good_certificate_of_the_same_authority_is_let_in(ground: Ground, forger: FleetFiles) -> None:
    """The other refusals would prove nothing if the forger's certificates were bad in another way."""

    async def story(visit: Visit) -> None:
        assert await visit.connack(forger.identity("hub", "pc-1", SITE)) == raw.CONNACK

    ground.tell(story)


def test_a_certificate_of_another_fleet_is_refused(ground: Ground) -> None:
    refused(ground, ground.identity(who("hub", "pc-1", fleet="rival")))


def test_a_certificate_that_names_another_fleet_is_refused(ground: Ground, forger: FleetFiles) -> None:
    """Its authority is ours, its subject is not."""
    identity = forger.identity("hub", "pc-1", SITE, fleet="rival")

    async def story(visit: Visit) -> None:
        came = await visit.connack(identity, fresh_id(identity))
        assert ("is let in" if came == raw.CONNACK else "is refused at CONNECT") == ground.expects(Check.NO_RIGHTS)
        if came == raw.CONNACK:
            witness = await visit.witness()
            client = await visit.join(identity)
            client.send(raw.publish(str(readings_of(PC_1)), b"forged"))
            await outcome(client)
            assert not await witness.all()

    ground.tell(story)


def test_the_certificate_of_a_broker_is_no_clients(ground: Ground) -> None:
    """Who gets hold of a broker's key must not become a client with it: its extended key usage says so."""
    refused(ground, ground.identity(who("broker", "berlin-1")))


def test_a_revoked_certificate_is_refused(ground: Ground) -> None:
    async def story(visit: Visit) -> None:
        thief = ground.identity(who("hub", "thief"))
        client = await visit.dial(thief)
        client.send(raw.connect(fresh_id(thief)))
        try:
            got = await asyncio.wait_for(client.reader.read(4), raw.WAIT_S)
            came = "is refused at CONNECT" if got[:2] == b"\x20\x02" and got[3] else "is let in"
        except (ssl.SSLError, ConnectionError):
            came = "is refused in the handshake"
        assert came == ground.expects(Check.REVOKED)

    ground.tell(story)


def test_the_old_certificate_of_a_reinstated_member_stays_revoked(ground: Ground) -> None:
    """Its key may be in a thief's hands; that its owner has a new one changes nothing."""
    renewed = ground.identity(who("hub", "returned"))
    old = Identity(
        renewed.fleet,
        renewed.site,
        renewed.name,
        renewed.ca,
        renewed.cert.with_name("cert.pem.old"),
        renewed.key.with_name("key.pem.old"),
    )

    async def story(visit: Visit) -> None:
        assert await visit.connack(old) != raw.CONNACK
        assert await visit.connack(renewed) == raw.CONNACK

    ground.tell(story)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.parametrize("kind", ["without a certificate", "TLS 1.1"])
def test_without_a_certificate_or_with_an_old_tls_nobody_gets_in(ground: Ground, kind: str) -> None:
    async def story(visit: Visit) -> None:
        if kind == "TLS 1.1":
            context = ground.context(ground.identity(PC_1))
            context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
            context.set_ciphers("ALL:@SECLEVEL=0")
        else:
            context = ssl.create_default_context(cafile=ground.fleet / "authority" / "ca.pem")
            context.check_hostname = False
        with pytest.raises((ssl.SSLError, ConnectionError)) as caught:
            await answer_to(visit, context)
        assert "NO_PROTOCOLS_AVAILABLE" not in str(caught.value), "our own side refused"

    ground.tell(story)


async def answer_to(visit: Visit, context: ssl.SSLContext) -> None:
    """Connect and ask for a session. Raises what the refusal is."""
    client = await visit.dial(None, context)
    client.send(raw.connect(fresh_id(PC_1)))
    assert not await asyncio.wait_for(client.reader.read(4), raw.WAIT_S), "it was answered"
    raise ConnectionAbortedError


def test_plain_text_is_not_served(ground: Ground) -> None:
    async def story(visit: Visit) -> None:
        for first in (raw.connect("pc-1"), b"GET / HTTP/1.1\r\n\r\n"):
            client = await visit.dial(None)
            client.send(first)
            assert (await client.packet())[:1] != b"\x20"
            await client.close()

    ground.tell(story)


def test_revocation_and_new_members_count_without_a_restart_and_disturb_nobody(ground: Ground) -> None:
    """Within seconds, a revoked hub can neither send nor hear nor come back; nobody else's session ends."""
    newcomer = who("hub", "newcomer")

    async def story(visit: Visit) -> None:
        witness = await visit.witness()
        doomed = await visit.listen(DOOMED, str(Topic.down(FLEET, SITE, DOOMED.name, "task")))
        teller = await visit.join(CONNECTOR if ground.place == SITE else SERVICE)
        stays = await visit.join(who("hub", "pc-1"))
        doomed.send(raw.publish(str(readings_of(DOOMED)), b"before"))
        assert (await doomed.answer())[0] == 0x40
        assert await witness.payloads() == [b"before"]
        await asyncio.to_thread(provision.revoke, ground.fleet, f"hub/{DOOMED.name}")
        await asyncio.to_thread(provision.hub, ground.fleet, newcomer.name, SITE)

        async def is_out() -> bool:
            down = str(Topic.down(FLEET, SITE, DOOMED.name, "task"))
            teller.send(raw.publish(down, b"task"))
            assert (await teller.answer())[0] == 0x40
            doomed.send(raw.publish(str(readings_of(DOOMED)), b"after"))
            await outcome(doomed)
            said = [payload for topic, payload, _ in await witness.all() if topic != down]
            heard = bool(doomed.messages)
            del doomed.messages[:]
            return not said and not heard

        assert await eventually(is_out)
        assert await visit.connack(DOOMED) != raw.CONNACK

        async def is_in() -> bool:
            fresh = await visit.dial(newcomer)
            fresh.send(raw.connect(fresh_id(newcomer)))
            if await fresh.packet() != raw.CONNACK:
                return False
            fresh.send(raw.publish(str(readings_of(newcomer)), b"hello"))
            await outcome(fresh)
            return b"hello" in await witness.payloads()

        assert await eventually(is_in)
        assert not await stays.quiet()

    ground.tell(story)
