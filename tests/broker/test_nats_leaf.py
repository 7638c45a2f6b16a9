"""Leaf nodes of NATS: what a site's node and the cloud's are told, and what a real node of the cloud takes from a hostile one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import orjson
import pytest
from msgspec.structs import replace

from broker.engines import nats_stream
from broker.engines.nats import FILE, Nats
from broker.engines.nats_callout import Doorkeeper
from broker.engines.nats_link import notice_of
from broker.engines.nats_rights import INSIDE, leaf_permissions
from broker.engines.nats_tokens import Issuer
from broker.engines.site_bridge import Notice, rights_to_watch
from broker.tls import client_context
from broker.topics import Topic, everything_filter
from config import provision
from config.endpoint import split_endpoint
from config.errors import SettingsError
from config.members import Members
from config.principal import CLOUD_SITE, Principal, Role, server_name
from config.settings import BrokerSettings, ConnectorSettings, Identity, load
from tests.broker.certificates import FleetFiles
from tests.broker.raw_mqtt import WAIT_S, RawClient, publish, subscribe
from tests.broker.test_nats import answered, asked, claims
from tests.fleet import until
from tests.nats import Cluster, needs_nats, running_cluster

# --- What the two nodes are told --------------------------------------------------------------------------------------


def of_site(fleet: FleetFiles, **nats: object) -> BrokerSettings:
    """Return the settings of a site's node that bridges by itself, and write its connector's."""
    connector = fleet.identity("connector", "berlin-1", "berlin")
    file = fleet.folder / "connector.toml"
    file.write_text(
        f"""[identity]
fleet = "acme"
site = "berlin"
name = "berlin-1"
ca = "{connector.ca}"
cert = "{connector.cert}"
key = "{connector.key}"
[connector]
bridge = "engine"
[cloud]
endpoints = ["cloud.example:8883"]
"""
    )
    made = fleet.broker_settings("berlin", listen=("127.0.0.1:8883",))
    chosen = {"leaf_remotes": ["cloud-1.example:7422", "cloud-2.example:7422"], **nats}
    return replace(made, broker=replace(made.broker, bridge=file), nats=replace(made.nats, **chosen))


def of_cloud(fleet: FleetFiles, site: str = "-", **nats: object) -> BrokerSettings:
    made = fleet.broker_settings(site, listen=("127.0.0.1:8883",))
    return replace(made, nats=replace(made.nats, leaf_listen="127.0.0.1:7422", **nats))


def planned(made: BrokerSettings) -> dict[str, dict[str, object]]:
    loaded = orjson.loads(Nats().plan(made, Members("acme", []), Path("unused")).files[FILE])
    assert isinstance(loaded, dict)
    return loaded


def test_a_site_connects_with_its_connectors_certificate_and_verifies_the_cloud(tmp_path: Path) -> None:
    """By it the cloud knows for whose hubs it speaks."""
    conf = planned(of_site(FleetFiles(tmp_path)))
    (remote,) = conf["leafnodes"]["remotes"]  # type: ignore[misc]
    assert remote["urls"] == ["tls://cloud-1.example:7422", "tls://cloud-2.example:7422"]
    assert (remote["tls"]["cert_file"], remote["tls"]["ca_file"]) == ("leaf-cert.pem", "leaf-ca.pem")
    assert remote["tls"]["min_version"] == "1.2"
    assert remote["tls"]["handshake_first"] is True
    assert "insecure" not in remote["tls"]
    assert conf["server_name"] == "berlin-1_leaf"


def test_streams_and_sessions_of_site_and_cloud_know_nothing_of_each_other(tmp_path: Path) -> None:
    """Else a session at the site would be looked for in the cloud."""
    at_site, at_cloud = planned(of_site(FleetFiles(tmp_path))), planned(of_cloud(FleetFiles(tmp_path)))
    assert at_site["jetstream"]["domain"] == "site-berlin"
    assert "domain" not in at_cloud["jetstream"]
    (remote,) = at_site["leafnodes"]["remotes"]  # type: ignore[misc]
    for way in ("deny_exports", "deny_imports"):
        assert set(INSIDE) <= set(remote[way])
        assert "hl1.*.*.hub.*.state" in remote[way]
        assert "hl1.*.*.connector.*.state" in remote[way]
    assert "hl1.*.*.hub.*.down.*" in remote["deny_exports"]


def test_the_cloud_takes_leaf_nodes_in_with_a_certificate_only(tmp_path: Path) -> None:
    leafnodes = planned(of_cloud(FleetFiles(tmp_path)))["leafnodes"]
    assert leafnodes["listen"] == "127.0.0.1:7422"
    assert leafnodes["no_advertise"] is True
    assert leafnodes["tls"]["verify"] is True  # type: ignore[index]


def test_a_node_without_leaf_settings_is_as_it_was(tmp_path: Path) -> None:
    conf = planned(FleetFiles(tmp_path).broker_settings("berlin", listen=("127.0.0.1:8883",)))
    assert "leafnodes" not in conf
    assert "domain" not in conf["jetstream"]
    assert "users" not in conf["accounts"]["HUBLINE"]  # type: ignore[operator]


def test_who_tells_of_the_bridge_may_say_that_and_nothing_else(tmp_path: Path) -> None:
    """It comes by password, without a certificate of the fleet."""
    conf = planned(of_site(FleetFiles(tmp_path)))
    (user,) = conf["accounts"]["HUBLINE"]["users"]  # type: ignore[index]
    assert user["permissions"] == {
        "publish": {"allow": ["$SYS.broker.connection.berlin-1.state"]},
        "subscribe": {"deny": [">"]},
    }
    assert user["user"] in conf["authorization"]["auth_callout"]["auth_users"]  # type: ignore[index]


def test_a_new_certificate_of_the_connector_starts_the_node_anew(tmp_path: Path) -> None:
    """nats-server changes no leaf connection by a reload."""
    fleet = FleetFiles(tmp_path)
    made = of_site(fleet)
    plan = Nats().plan(made, Members("acme", []), tmp_path)
    assert {"leaf-cert.pem", "leaf-key.pem", "leaf-ca.pem", FILE} == plan.restart_on
    assert "leaf-key.pem" in plan.private
    assert {path.name for path in plan.watched} >= {"connector.toml", "connector-berlin-berlin-1.cert.pem"}


@pytest.mark.parametrize(
    ("nats", "key"),
    [
        ({"leaf_remotes": []}, "nats.leaf_remotes"),
        ({"leaf_remotes": ["cloud.example:7422", "192.0.2.1:7422"]}, "nats.leaf_remotes"),
        ({"authorization": "permissions"}, "broker.bridge"),
        ({"cluster_listen": "127.0.0.1:6222"}, "nats.cluster_listen"),
        ({"leaf_listen": "127.0.0.1:7422"}, "nats.leaf_listen"),
    ],
)
def test_what_a_site_cannot_be_is_refused_by_its_key(tmp_path: Path, nats: dict[str, object], key: str) -> None:
    with pytest.raises(SettingsError) as refused:
        planned(of_site(FleetFiles(tmp_path), **nats))
    assert refused.value.key == key
    assert "\n" not in str(refused.value)


def test_other_mistakes_are_told_of_in_one_line(tmp_path: Path) -> None:
    fleet = FleetFiles(tmp_path)
    site = of_site(fleet)
    text = (tmp_path / "connector.toml").read_text()
    for made, connector_toml, words in (
        (of_cloud(fleet, authorization="permissions"), text, "let in by Hubline's own answer"),
        (replace(site, broker=replace(site.broker, bridge=None)), text, "for a node that bridges by itself"),
        (site, text.replace('bridge = "engine"', ""), 'write bridge = "engine" there'),
        (site, f'{text}proxy = "http://proxy.example:3128"\n', "can't be used by a leaf node of NATS"),
        (site, text.replace('site = "berlin"', 'site = "rome"'), "is of rome in acme"),
    ):
        (tmp_path / "connector.toml").write_text(connector_toml)
        with pytest.raises(SettingsError, match=words) as refused:
            planned(made)
        assert "\n" not in str(refused.value)


# --- Who may be a leaf node -------------------------------------------------------------------------------------------


def test_only_a_connector_may_be_a_leaf_node_and_only_of_the_cloud(tmp_path: Path) -> None:
    """With a hub's certificate a leaf would be one more way to say what the hub may say: nobody needs it."""
    for role, site in (("hub", "berlin"), ("reader", "-"), ("cloud", "-"), ("broker", "berlin")):
        assert leaf_permissions(Principal("acme", site, role, "x"), CLOUD_SITE) is None  # type: ignore[arg-type]
    assert leaf_permissions(Principal("acme", "berlin", "connector", "x"), "berlin") is None


def test_a_leaf_says_what_its_sites_hubs_send_and_hears_what_they_get(tmp_path: Path) -> None:
    """No subject is in both directions, so nothing can go round; states cross beside it."""
    granted = leaf_permissions(Principal("acme", "berlin", "connector", "berlin-1"), CLOUD_SITE)
    assert granted is not None
    assert all(subject.startswith("hl1.acme.berlin.hub.*.up.") for subject in granted.publish)
    assert granted.subscribe == ("hl1.acme.berlin.hub.*.down.*",)
    assert granted.connections == ("LEAFNODE",)
    assert "$MQTT.>" in granted.publish_rule()["deny"]


@pytest.mark.parametrize(
    ("role", "site", "name", "kind"),
    [
        ("connector", "berlin", "berlin-1_leaf", ""),
        ("connector", "berlin", "rome-1_leaf", "client-id"),
        ("connector", "berlin", "", "client-id"),
        ("hub", "berlin", "berlin-1_leaf", "certificate"),
        ("reader", "-", "berlin-1_leaf", "certificate"),
    ],
)
def test_a_leaf_is_called_what_its_certificate_says(
    tmp_path: Path, role: Role, site: str, name: str, kind: str
) -> None:
    """A node ends an older leaf of the same name: of a stranger's, too."""
    fleet, issuer = FleetFiles(tmp_path), Issuer()
    doorkeeper = Doorkeeper(fleet.broker_settings("-"), issuer)
    answer = asked(doorkeeper, fleet.identity(role, "berlin-1", site), name, leaf=True)
    assert answer.refusal.partition(" ")[0] == kind
    if not kind:
        nats = claims(str(answered(answer)["jwt"]))["nats"]
        assert isinstance(nats, dict)
        assert nats["allowed_connection_types"] == ["LEAFNODE"]
        assert nats["pub"]["deny"]


def test_the_connector_reads_notices_at_its_own_site_and_nobody_else_does(tmp_path: Path) -> None:
    fleet = FleetFiles(tmp_path)
    made = of_site(fleet)
    assert made.broker.bridge is not None
    more = rights_to_watch(load(made.broker.bridge, ConnectorSettings))
    doorkeeper = Doorkeeper(made, Issuer(), "berlin-1_leaf", more)
    reads: dict[str, list[str]] = {}
    for role, name in (("connector", "berlin-1"), ("connector", "berlin-2"), ("hub", "berlin-1")):
        member = fleet.identity(role, name, "berlin")  # type: ignore[arg-type]
        nats = claims(str(answered(asked(doorkeeper, member, name, node="berlin-1_leaf"))["jwt"]))["nats"]
        assert isinstance(nats, dict)
        reads[f"{role} {name}"] = nats["sub"]["allow"]
    notice = "$SYS.broker.connection.berlin-1.state"
    assert {who for who, subjects in reads.items() if notice in subjects} == {"connector berlin-1"}


def test_a_nodes_word_about_its_leafs_is_understood() -> None:
    """Another connection, or another start of the node, must look like another one; a leaf node that is ours doesn't count."""

    def told(server: str, *leafs: tuple[int, bool]) -> Notice:
        listed = [{"id": number, "is_spoke": spoke, "name": "cloud"} for number, spoke in leafs]
        return notice_of(orjson.dumps({"server": {"id": server}, "data": {"leafs": listed}}))

    first = told("NABCDEFGHIJ", (9, True))
    assert first == Notice(True, "CDEFGHIJ-9")
    assert not told("NABCDEFGHIJ").connected
    assert not told("NABCDEFGHIJ", (9, False)).connected
    assert len({first.link, told("NABCDEFGHIJ", (10, True)).link, told("NABCDEFGHIX", (9, True)).link}) == 3
    with pytest.raises(msgspec.DecodeError):
        notice_of(b"{}")


# --- A hostile leaf, against a real node ------------------------------------------------------------------------------


class RawLeaf:
    """One leaf connection by NATS' own protocol, which keeps no rule. `errors` are what the node said, `told` what it wants."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer
        self.errors: list[bytes] = []
        self.heard: list[str] = []
        self.told: set[str] = set()

    def say(self, subject: str, payload: bytes = b"x") -> None:
        self._writer.write(b"LMSG %b %d\r\n%b\r\n" % (subject.encode(), len(payload), payload))

    def say_as_mqtt(self, subject: str, payload: bytes) -> None:
        """Say it as a node does whose MQTT client has published it with QoS 1."""
        head = b"NATS/1.0\r\nNmqtt-Pub:1\r\n\r\n"
        sizes = b"%d %d" % (len(head), len(head) + len(payload))
        self._writer.write(b"HMSG %b %b\r\n%b%b\r\n" % (subject.encode(), sizes, head, payload))

    def listen(self, subject: str) -> None:
        self._writer.write(b"LS+ %b\r\n" % subject.encode())

    async def quiet(self) -> bool:
        """Take in all that is on its way, and tell whether the connection still stands."""
        self._writer.write(b"PING\r\n")
        async with asyncio.timeout(WAIT_S):
            while line := await self._line():
                if line.startswith(b"PONG"):
                    return True
                if line.startswith(b"LS+"):
                    self.told.add(line.split()[1].decode())
                elif line.startswith(b"-ERR"):
                    self.errors.append(line)
                elif line.startswith((b"LMSG", b"HMSG")):
                    self.heard.append(line.split()[1].decode())
                elif line.startswith(b"PING"):
                    self._writer.write(b"PONG\r\n")
        return False

    async def ended(self) -> bool:
        """Wait until the node has ended the connection."""
        async with asyncio.timeout(WAIT_S):
            while await self.quiet():
                await asyncio.sleep(0.05)
        return True

    async def _line(self) -> bytes:
        try:
            return await self._reader.readline()
        except (ConnectionError, OSError):
            return b""


@asynccontextmanager
async def leaf(node: Cluster, identity: Identity, name: str | None = None) -> AsyncIterator[RawLeaf]:
    assert node.leaf is not None
    host, port = split_endpoint(node.leaf)
    context = client_context(identity, server_name(node.fleet, CLOUD_SITE))
    reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port, ssl=context), WAIT_S)
    words = {"name": name or f"{identity.name}_leaf", "remote_account": "HUBLINE", "compression": "off", "protocol": 1}
    writer.write(b"CONNECT " + orjson.dumps({**words, "headers": True, "tls_required": True}) + b"\r\n")
    try:
        yield RawLeaf(reader, writer)
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("leaf-node"), leaf=True) as running:
        for name, site in (("berlin-1", "berlin"), ("rome-1", "rome"), ("oslo-1", "oslo"), ("bonn-1", "bonn")):
            provision.connector(running.directory, name, site)
        yield running


async def service(node: Cluster, name: str, qos: int = 1) -> RawClient:
    """Return a session that hears everything; with QoS 1 what MQTT's own streams deliver, too."""
    session = await node.join(node.service, f"cloud_{name}")
    session.send(subscribe(everything_filter("acme"), qos=qos))
    assert (await session.answer())[-1] in (0, 1)
    return session


def up(site: str) -> str:
    return nats_stream.subject_of(str(Topic.up("acme", site, "pc-1", "readings")))


@needs_nats
def test_what_a_site_sends_arrives_once_and_is_in_the_stream_once(node: Cluster) -> None:
    """Also a kind that the contract will only have tomorrow."""

    async def story() -> None:
        client = await nats_stream.connect(node.nats, node.service)
        stream = client.jetstream()
        await nats_stream.ensure_stream(stream, "acme")
        await stream.purge_stream(nats_stream.STREAM)
        hears = await service(node, "once")
        async with leaf(node, node.identity("connector", "rome-1", "rome")) as rome:
            assert await rome.quiet()
            for number in range(20):
                rome.say(up("rome"), b"%d" % number)
            assert "hl1.acme.*.hub.*.up.*" in rome.told, "an honest node sends only what the stream is known to want"
            rome.say(up("rome").replace("readings", "later"), b"later")
            assert await rome.quiet()
            assert rome.errors == []
        assert [payload for _, payload, _ in await hears.expect(21)] == [b"%d" % at for at in range(20)] + [b"later"]
        async with asyncio.timeout(WAIT_S):
            while (stored := (await stream.stream_info(nats_stream.STREAM)).state.messages) < 21:
                await asyncio.sleep(0.02)
        assert stored == 21
        await client.close()
        await hears.close()

    asyncio.run(story())


@needs_nats
def test_what_has_qos_1_on_both_sides_does_not_arrive(node: Cluster) -> None:
    """So the leaf carries only what is heard with QoS 0, and docs/engines.md tells subscribers of their own."""

    async def story() -> None:
        certain, likely = await service(node, "certain"), await service(node, "likely", qos=0)
        async with leaf(node, node.identity("connector", "rome-1", "rome")) as rome:
            assert await rome.quiet()
            rome.say_as_mqtt(up("rome"), b"of qos 1")
            rome.say(up("rome"), b"last")
            assert await rome.quiet()
        assert [payload for _, payload, _ in await likely.expect(2)] == [b"of qos 1", b"last"]
        assert [payload for _, payload, _ in await certain.expect(1)] == [b"last"]
        await certain.close()
        await likely.close()

    asyncio.run(story())


@needs_nats
@pytest.mark.parametrize(
    "subject",
    [
        up("rome"),
        "hl1.acme.berlin.hub.pc-1.state",
        "hl1.acme.berlin.hub.pc-1.down.ack",
        "hl1.acme.berlin.connector.berlin-1.state",
        f"$MQTT.msgs.{up('rome')}",
        "$MQTT.rmsgs.hl1.acme.rome.hub.pc-1.state",
        "$MQTT.sess.anybody",
        "$JS.API.STREAM.PURGE.HUBLINE_UP",
    ],
)
def test_a_leaf_cannot_say_what_its_site_may_not(node: Cluster, subject: str) -> None:
    """nats-server lets what begins with $MQTT pass any list of what is allowed: it has to be denied by name."""

    async def story() -> None:
        hears = await service(node, "forged")
        async with leaf(node, node.identity("connector", "berlin-1", "berlin")) as berlin:
            assert await berlin.quiet()
            berlin.say(subject, b"forged")
            assert await berlin.ended()
            assert len(berlin.errors) == 1
            assert b"Violation" in berlin.errors[0]
        async with leaf(node, node.identity("connector", "rome-1", "rome")) as rome:
            assert await rome.quiet()
            rome.say(up("rome"), b"later than any forgery")
            assert [payload for _, payload, _ in await hears.expect(1)] == [b"later than any forgery"]
        await hears.close()

    asyncio.run(story())
    until("it is counted", lambda: any(line.get("kind") == "leaf" for line in node.log("cloud")))


@needs_nats
def test_a_leaf_hears_what_is_for_its_site_and_nothing_else(node: Cluster) -> None:
    """Whatever it asks for: the other sites' orders and the inside of the MQTT sessions are none of its business."""

    async def story() -> None:
        says = await service(node, "down")
        async with leaf(node, node.identity("connector", "berlin-1", "berlin")) as berlin:
            for subject in (">", "hl1.acme.>", "$MQTT.>", "hl1.acme.*.hub.*.down.*", "hl1.acme.berlin.hub.pc-1.down.*"):
                berlin.listen(subject)
            assert await berlin.quiet()
            for topic in (
                Topic.down("acme", "rome", "pc-1", "task"),
                Topic.presence("acme", "berlin", "pc-1"),
                Topic.down("acme", "berlin", "pc-1", "task"),
            ):
                says.send(publish(str(topic), b"{}"))
                await says.answer()
            async with asyncio.timeout(WAIT_S):
                while not berlin.heard:
                    assert await berlin.quiet()
            assert await berlin.quiet()
            assert set(berlin.heard) == {"hl1.acme.berlin.hub.pc-1.down.task"}
        await says.close()

    asyncio.run(story())


@needs_nats
def test_a_revoked_connector_loses_its_leaf_and_gets_none(node: Cluster) -> None:
    """A stolen certificate must not carry on because its connection was there before."""
    bad, good = node.identity("connector", "oslo-1", "oslo"), node.identity("connector", "rome-1", "rome")

    async def story() -> None:
        async with leaf(node, bad) as leaving, leaf(node, good) as staying:
            assert await leaving.quiet()
            assert await staying.quiet()
            await asyncio.to_thread(provision.revoke, node.directory, "connector/oslo-1")
            assert await leaving.ended()
            assert await staying.quiet()
        async with leaf(node, bad) as again:
            assert not await again.quiet()

    asyncio.run(story())


@needs_nats
def test_nobody_else_gets_a_leaf_and_nobody_ends_a_strangers(node: Cluster) -> None:
    """Names are told to everybody by nats-server; only certificates count."""
    bonn = node.identity("connector", "bonn-1", "bonn")

    async def story() -> None:
        async with leaf(node, bonn) as honest:
            assert await honest.quiet()
            for identity, name in (
                (node.hub("leaf-hub"), None),
                (node.service, None),
                (node.identity("connector", "berlin-1", "berlin"), "bonn-1_leaf"),
            ):
                async with leaf(node, identity, name) as other:
                    assert not await other.quiet()
            assert await honest.quiet()

    asyncio.run(story())
