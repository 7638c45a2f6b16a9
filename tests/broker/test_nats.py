"""What nats-server is told: rights as subjects, its configuration, and the answers to its questions about clients."""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from broker.engines.nats import FILE, Nats
from broker.engines.nats_callout import Answer, Doorkeeper
from broker.engines.nats_rights import DELIVERIES, permissions, subject_of, subjects_of, topic_of
from broker.engines.nats_tokens import Issuer
from broker.topics import Topic
from config.errors import ProtocolError, SettingsError
from config.members import Entry, Members
from config.principal import Principal, Role
from config.settings import BrokerSettings, Identity
from tests.broker.certificates import FleetFiles

NOW_S = 1_800_000_000
SERVER = "NSERVER"


# --- Subjects ---------------------------------------------------------------------------------------------------------


def test_subjects_are_those_of_nats_server_and_lead_back_to_the_topic() -> None:
    """A worker answers to the hub whose topic it reads from a subject; a sensor's dot must not become a level."""
    topic = str(Topic.last("acme", "berlin", "pc-1", "disk.data"))
    assert subject_of(topic).endswith(".hub.pc-1.last.disk//data")
    assert topic_of(subject_of(topic)) == topic
    assert subjects_of("a/+/b") == ("a.*.b",)
    assert subjects_of("a/#") == ("a", "a.>"), "MQTT 3.1.1, 4.7.1.2: the parent level matches too"
    assert subjects_of("#") == (">",)


@pytest.mark.parametrize(("role", "site"), [("hub", "berlin"), ("connector", "berlin"), ("reader", "-")])
def test_only_the_cloud_service_speaks_nats_or_sees_anything_of_its_inside(role: Role, site: str) -> None:
    """By the protocol of NATS itself a hub could read what is delivered to others."""
    granted = permissions(Principal("acme", site, role, "x"), "-")
    assert granted is not None
    assert granted.connections == ("MQTT",)
    assert not any(subject.startswith(("$", "_")) for subject in granted.publish)
    assert [subject for subject in granted.subscribe if subject.startswith(("$", "_"))] == [DELIVERIES]


def test_who_publishes_nothing_is_told_so() -> None:
    """To nats-server an empty list of rights means all of them."""
    reader = permissions(Principal("acme", "-", "reader", "x"), "-")
    assert reader is not None
    assert reader.publish_rule() == {"deny": [">"]}


def test_the_cloud_service_reaches_its_stream_and_no_other() -> None:
    """The streams of the MQTT sessions hold everybody's subscriptions. Two others it may bound."""
    granted = permissions(Principal("acme", "-", "cloud", "cloud"), "-")
    assert granted is not None
    inside = {subject for subject in granted.publish if subject.startswith("$") and "HUBLINE_UP" not in subject}
    bounding = {f"$JS.API.STREAM.{what}.$MQTT_{own}" for what in ("INFO", "UPDATE") for own in ("msgs", "rmsgs")}
    assert inside == {"$JS.API.INFO", *bounding}


def test_who_has_no_rights_at_this_broker_gets_no_permissions() -> None:
    """Not even an empty session."""
    assert permissions(Principal("acme", "rome", "hub", "pc-1"), "berlin") is None
    assert permissions(Principal("acme", "-", "broker", "cloud"), "-") is None


# --- The configuration ------------------------------------------------------------------------------------------------


def settings(fleet: FleetFiles, **nats: object) -> BrokerSettings:
    made = fleet.broker_settings("-", listen=("127.0.0.1:8883",))
    return msgspec.structs.replace(made, nats=msgspec.structs.replace(made.nats, **nats))


def planned(made: BrokerSettings, *entries: Entry) -> dict[str, object]:
    plan = Nats().plan(made, Members("acme", list(entries)), Path("unused"))
    loaded = orjson.loads(plan.files[FILE])
    assert isinstance(loaded, dict)
    return loaded


def test_everybody_proves_himself_and_what_is_confirmed_is_on_the_disk(tmp_path: Path) -> None:
    """The two promises that nats-server's defaults do not keep."""
    conf = planned(settings(FleetFiles(tmp_path)))
    mqtt = conf["mqtt"]
    assert isinstance(mqtt, dict)
    for tls in (conf["tls"], mqtt["tls"]):
        assert isinstance(tls, dict)
        assert tls["verify"] is True
        assert tls["min_version"] == "1.2"
    jetstream = conf["jetstream"]
    assert isinstance(jetstream, dict)
    assert jetstream["sync_interval"] == "always"
    assert mqtt["reject_qos2_publish"] is True
    assert conf["max_payload"] >= 256 * 1024  # type: ignore[operator]


def test_keys_and_the_file_with_the_password_are_private(tmp_path: Path) -> None:
    """Whoever reads the password may let anybody in."""
    plan = Nats().plan(settings(FleetFiles(tmp_path)), Members("acme", []), tmp_path)
    assert plan.private == {FILE, "key.pem", "supervisor-key.pem"}


def test_a_second_plan_with_nothing_new_is_the_same(tmp_path: Path) -> None:
    """Else every look at the files would renew the engine."""
    engine, made = Nats(), settings(FleetFiles(tmp_path))
    assert engine.plan(made, Members("acme", []), tmp_path) == engine.plan(made, Members("acme", []), tmp_path)


def test_by_permissions_each_member_is_a_user_and_strangers_are_not(tmp_path: Path) -> None:
    """With no user at all nats-server would let in anybody."""
    made = settings(FleetFiles(tmp_path), authorization="permissions")
    accounts = planned(made, Entry("hub", "berlin", "pc-1"))["accounts"]
    assert isinstance(accounts, dict)
    assert [user["user"] for user in accounts["HUBLINE"]["users"]] == ["hubline://acme/berlin/hub/pc-1"]
    nobody = planned(made)["accounts"]
    assert isinstance(nobody, dict)
    assert len(nobody["HUBLINE"]["users"]) == 1


@pytest.mark.parametrize(
    ("nats", "listen", "key"),
    [
        ({"replicas": 3}, ("127.0.0.1:8883",), "nats.replicas"),
        ({"cluster_listen": "127.0.0.1:6222"}, ("127.0.0.1:8883",), "nats.cluster_listen"),
        ({}, ("127.0.0.1:8883", "127.0.0.1:8884"), "broker.listen"),
        ({"listen": "127.0.0.1:0"}, ("127.0.0.1:8883",), "nats.listen"),
    ],
)
def test_what_cannot_be_served_is_refused_by_its_key(
    tmp_path: Path, nats: dict[str, object], listen: tuple[str, ...], key: str
) -> None:
    """A person must hear of it before nats-server is started, in our words."""
    made = settings(FleetFiles(tmp_path), **nats)
    made = msgspec.structs.replace(made, broker=msgspec.structs.replace(made.broker, listen=list(listen)))
    with pytest.raises(SettingsError) as refused:
        planned(made)
    assert refused.value.key == key


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('10.0.0.1:5 - mid:9 - "pc-1" - Publish Violation - Subject "a.b"', ("publish", "pc-1", 'Subject "a.b"')),
        ("Auth callout service returned an error: client-id hub/pc-1 not it", ("client-id", "hub/pc-1", "not it")),
        ("10.0.0.1:5 - mid:3 - TLS handshake error: tls: expired", ("tls", "10.0.0.1", "tls: expired")),
    ],
)
def test_refusals_are_counted_by_who_and_why(line: str, expected: tuple[str, str, str]) -> None:
    """Which client is refused, and why, is what an operator searches for."""
    heard = Nats().hear(f"[12] 2026/11/22 19:55:19.048521 [ERR] {line}")
    assert heard is not None
    assert heard.refused == expected


# --- Its questions ----------------------------------------------------------------------------------------------------


def question(
    identity: Identity | None, client_id: str, *, kind: str = "mqtt", node: str = "broker-1", leaf: bool = False
) -> bytes:
    """Return what nats-server asks about a client, or about a leaf node that calls itself so."""
    tls = {"verified_chains": [[identity.cert.read_text()]]} if identity else {"certs": ["unverified"]}
    body = {
        "server_id": {"id": SERVER, "name": node, "host": "x"},
        "user_nkey": "UUSER",
        "client_info": {"host": "10.0.0.1", "kind": "Leafnode", "name": client_id, "id": 7}
        if leaf
        else {"host": "10.0.0.1", "kind": "Client", "type": kind, "mqtt_id": client_id, "id": 7},
        "client_tls": tls,
    }
    raw = base64.urlsafe_b64encode(orjson.dumps({"nats": body})).rstrip(b"=")
    return b"header." + raw + b".signature"


def asked(doorkeeper: Doorkeeper, *arguments: object, **options: object) -> Answer:
    answer = doorkeeper.answer(question(*arguments, **options), NOW_S)  # type: ignore[arg-type]
    assert answer is not None
    return answer


def claims(token: bytes | str) -> dict[str, object]:
    raw = token if isinstance(token, bytes) else token.encode()
    body = raw.split(b".")[1]
    loaded = orjson.loads(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4)))
    assert isinstance(loaded, dict)
    return loaded


def answered(answer: Answer) -> dict[str, object]:
    nats = claims(answer.reply)["nats"]
    assert isinstance(nats, dict)
    return nats


def test_a_member_gets_a_token_with_its_rights_until_its_certificate_ends(tmp_path: Path) -> None:
    """The server takes the token's word for everything, also when the session must end."""
    fleet, issuer = FleetFiles(tmp_path), Issuer()
    doorkeeper = Doorkeeper(fleet.broker_settings("-"), issuer)
    answer = asked(doorkeeper, fleet.identity("hub", "pc-1", "berlin"), "pc-1")
    assert answer.refusal == ""
    said = claims(answer.reply)
    assert (said["aud"], said["sub"], said["iss"]) == (SERVER, "UUSER", issuer.public)
    token = claims(str(answered(answer)["jwt"]))
    nats = token["nats"]
    assert isinstance(nats, dict)
    assert token["sub"] == "UUSER"
    assert token["aud"] == "HUBLINE"
    assert nats["allowed_connection_types"] == ["MQTT"]
    assert all(".hub.pc-1." in subject for subject in nats["pub"]["allow"])
    assert 4 * 365 < (int(str(token["exp"])) - fleet.now.timestamp()) / 86_400 < 6 * 365


def test_tokens_are_signed_by_the_key_that_the_server_knows() -> None:
    """NATS' own form of a key: a prefix, the key, a checksum, in base32."""
    issuer = Issuer()
    raw = base64.b32decode(issuer.public)
    assert issuer.public.startswith("A")
    text, _, signature = issuer.signed({"sub": "x"}).rpartition(".")
    signed = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    Ed25519PublicKey.from_public_bytes(raw[1:33]).verify(signed, text.encode())


@pytest.mark.parametrize(
    ("client_id", "kind"),
    [("pc-1", ""), ("pc-1_a1", ""), ("pc-2", "client-id"), ("pc-11", "client-id"), ("", "client-id")],
)
def test_client_id_is_bound_to_the_certificate(tmp_path: Path, client_id: str, kind: str) -> None:
    """Nobody takes over a stranger's session."""
    fleet = FleetFiles(tmp_path)
    doorkeeper = Doorkeeper(fleet.broker_settings("-"), Issuer())
    answer = asked(doorkeeper, fleet.identity("hub", "pc-1", "berlin"), client_id)
    assert answer.refusal.partition(" ")[0] == kind
    assert bool(answered(answer)["jwt"]) == (not kind)


def test_strangers_and_the_revoked_are_refused_with_the_reason(tmp_path: Path) -> None:
    """nats-server knows no revocation list, so it is ours to look."""
    fleet = FleetFiles(tmp_path)
    doorkeeper = Doorkeeper(fleet.broker_settings("-"), Issuer())
    pc = fleet.identity("hub", "pc-1", "berlin")
    other = fleet.identity("hub", "pc-9", "berlin", fleet="other")
    assert asked(doorkeeper, other, "pc-9").refusal == "certificate hub/pc-9 of another fleet, other"
    assert asked(doorkeeper, fleet.identity("broker", "b", "-"), "b").refusal.startswith("certificate broker/b")
    assert asked(doorkeeper, None, "pc-1").refusal == "certificate 10.0.0.1 none was verified"
    assert asked(doorkeeper, fleet.expired("hub", "pc-3", "berlin"), "pc-3").refusal.startswith("certificate hub/pc-3 ")
    token = claims(str(answered(asked(doorkeeper, pc, "pc-1"))["jwt"]))
    assert not doorkeeper.is_shut_out(str(token["name"]))
    fleet.revoke(pc)
    assert doorkeeper.reload_if_changed()
    assert asked(doorkeeper, pc, "pc-1").refusal == "certificate hub/pc-1 revoked"
    assert doorkeeper.is_shut_out(str(token["name"]))


def test_a_question_of_another_node_is_left_to_its_supervisor(tmp_path: Path) -> None:
    """An answer that is signed by a key it doesn't know would shut the client out."""
    fleet = FleetFiles(tmp_path)
    doorkeeper = Doorkeeper(fleet.broker_settings("-"), Issuer())
    pc = fleet.identity("hub", "pc-1", "berlin")
    assert doorkeeper.answer(question(pc, "pc-1", node="cloud-2"), NOW_S) is None


@pytest.mark.parametrize("raw", [b"", b"a.b", b"a.!!.c", b"a.e30.c"])
def test_what_is_no_question_is_said_to_be_none(tmp_path: Path, raw: bytes) -> None:
    """A supervisor must live through whatever it is sent."""
    with pytest.raises(ProtocolError):
        Doorkeeper(FleetFiles(tmp_path).broker_settings("-"), Issuer()).answer(raw, NOW_S)
