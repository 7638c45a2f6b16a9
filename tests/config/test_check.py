"""`config check`: every way in which a bundle's files can be wrong is named, with what to do."""

from __future__ import annotations

import os
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from config import limits, pki, provision, settings
from config.check import findings
from config.principal import Principal, Role

HUB = "bundles/hub/pc-17"
BROKER = "bundles/broker/berlin-1"


def said(fleet: Path, folder: str = HUB) -> list[str]:
    role = settings.role_of(next((fleet / folder).glob("*.toml")))
    loaded = settings.load(fleet / folder / f"{role}.toml", settings.SHAPES[role], {})
    return [str(finding).removeprefix(f"{fleet / folder}{os.sep}") for finding in findings(loaded, role)]


def give(fleet: Path, who: Principal, age: timedelta = timedelta()) -> None:
    """Give pc-17 a certificate of somebody else, or one that was issued some time ago."""
    authority = pki.Authority(
        pki.load_certificates((fleet / "authority/1/cert.pem").read_bytes())[0],
        pki.load_key((fleet / "authority/1/key.pem").read_bytes()),
    )
    leaf = pki.issue(authority, who, (), "ec-p256", pki.utc_now() - age)
    (fleet / HUB / "cert.pem").write_bytes(pki.certificate_pem(leaf.certificate))
    (fleet / HUB / "key.pem").write_bytes(pki.key_pem(leaf.key))


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
def test_missing_and_damaged_files_are_named(fleet: Path, name: str) -> None:
    """Bundles are copied by hand."""
    (fleet / HUB / name).write_text("nonsense")
    assert [line.startswith(f"{name}: is not a ") for line in said(fleet)] == [True]
    (fleet / HUB / name).unlink()
    assert said(fleet) == [f"{name}: there is no such file: copy it from the bundle"]
    (fleet / HUB / name).mkdir()
    assert said(fleet)[0].startswith(f"{name}: can't be read")


def test_a_key_of_another_certificate_is_named(fleet: Path) -> None:
    """The commonest mistake in renewing by hand."""
    shutil.copy(fleet / "bundles/reader/ann/key.pem", fleet / HUB / "key.pem")
    assert said(fleet) == [f"key.pem: is not the key of {fleet / HUB / 'cert.pem'}: copy both from one bundle"]


def test_an_encrypted_key_is_named(fleet: Path) -> None:
    """A service has nobody to ask for a passphrase."""
    key = pki.load_key((fleet / HUB / "key.pem").read_bytes())
    (fleet / HUB / "key.pem").write_bytes(pki.key_pem(key, b"secret"))
    assert said(fleet) == ["key.pem: is protected by a passphrase, and none was given"]


def test_every_difference_between_certificate_and_settings_is_named(fleet: Path) -> None:
    """Else the broker's refusal, far away, would be the first to tell."""
    give(fleet, Principal("evil", "paris", "reader", "ann"))
    assert [line.split(", and")[0] for line in said(fleet)] == [
        "cert.pem: is for role 'reader'",
        "cert.pem: is for fleet 'evil'",
        "cert.pem: is for site 'paris'",
        "cert.pem: is for name 'ann'",
    ]


def test_a_certificate_that_is_none_of_ours_is_named(fleet: Path) -> None:
    """Somebody uses the one of the web server."""
    shutil.copy(fleet / "authority/1/cert.pem", fleet / HUB / "cert.pem")
    shutil.copy(fleet / "authority/1/key.pem", fleet / HUB / "key.pem")
    assert said(fleet) == [
        "cert.pem: is no certificate of Hubline's: certificate refused: has no subject alternative name"
    ] or (said(fleet) == ["cert.pem: is no certificate of Hubline's: has no subject alternative name"])


def test_a_foreign_authority_is_named(fleet: Path, tmp_path: Path) -> None:
    """Two fleets of one name, a test and the real one, are mixed up easily."""
    provision.init(tmp_path / "other", "acme")
    shutil.copy(tmp_path / "other/authority/ca.pem", fleet / HUB / "ca.pem")
    assert said(fleet) == [f"cert.pem: was issued by none of the authorities in {fleet / HUB / 'ca.pem'}"]


def test_dates_are_named_and_the_clock_as_a_possible_cause(fleet: Path) -> None:
    """An expired certificate and a wrong clock look the same from here."""
    who = Principal("acme", "berlin", "hub", "pc-17")
    give(fleet, who, timedelta(days=limits.LEAF_VALID_DAYS - 10, hours=-1))
    assert said(fleet) == ["cert.pem: expires in 10 days: hubline provision renew in time"]
    give(fleet, who, timedelta(days=limits.LEAF_VALID_DAYS + 1))
    assert said(fleet)[0].startswith("cert.pem: has expired on ")
    give(fleet, who, timedelta(days=-3))
    assert said(fleet)[0].startswith("cert.pem: is valid from ")
    assert said(fleet)[0].endswith("check this machine's clock")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such file modes")
def test_a_key_that_others_can_read_is_a_warning(fleet: Path) -> None:
    """It works, so it is no error; but it should not stay so."""
    (fleet / HUB / "key.pem").chmod(0o640)
    loaded = settings.load(fleet / HUB / "hub.toml", settings.HubSettings, {})
    (finding,) = findings(loaded, "hub")
    assert not finding.fatal
    assert "chmod 600" in finding.problem


def test_a_brokers_revocation_lists_are_checked(fleet: Path, tmp_path: Path) -> None:
    """A broker whose list misses one authority refuses all its clients."""
    crl, whole = fleet / BROKER / "crl.pem", (fleet / BROKER / "crl.pem").read_bytes()
    crl.write_text("")
    assert "crl.pem: has no list of " in said(fleet, BROKER)[0]
    crl.write_bytes(whole[:80] + b"\n-----END X509 CRL-----\n")
    assert "crl.pem: is damaged" in said(fleet, BROKER)[0]
    crl.unlink()
    assert "crl.pem: there is no such file" in said(fleet, BROKER)[0]
    provision.init(tmp_path / "other", "acme")
    shutil.copy(tmp_path / "other/authority/crl.pem", crl)
    assert "crl.pem: has no list of " in said(fleet, BROKER)[0]
    crl.write_bytes(whole)
    provision.add_authority(fleet)
    assert said(fleet, BROKER) == []
    crl.write_bytes(whole)
    assert "authority 2" in said(fleet, BROKER)[0]
    provision.revoke(fleet, "broker/berlin-1")
    assert said(fleet, BROKER) == ["crl.pem: names this broker's own certificate as revoked"]


def test_a_broker_without_a_list_is_all_right(fleet: Path) -> None:
    """The list is a setting, and may be left out."""
    loaded = settings.load(fleet / BROKER / "broker.toml", settings.BrokerSettings, {})
    assert findings(replace(loaded, broker=replace(loaded.broker, crl=None)), "broker") == []


def checked(fleet: Path, folder: str, role: Role, *changes: tuple[str, str]) -> list[str]:
    """Return what is said of settings that are changed so."""
    file = fleet / folder / f"{role}.toml"
    content = file.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in content
        content = content.replace(old, new)
    changed = file.with_name("changed.toml")
    changed.write_text(content, encoding="utf-8")
    return [str(each) for each in findings(settings.load(changed, settings.SHAPES[role], {}), role)]


@pytest.mark.parametrize("engine", ["mosquitto", "nats"])
def test_what_an_engine_lacks_is_named_before_it_is_started(fleet: Path, engine: str) -> None:
    """An operator checks the file, and then restarts the broker that works."""
    use = ("[broker]\n", f'[broker]\nengine = "{engine}"\n')
    assert checked(fleet, BROKER, "broker", use) == []
    assert "broker.members: is needed by" in checked(fleet, BROKER, "broker", use, ("members =", "# members ="))[0]
    no_program = (use[0], f'{use[1]}program = "none/{engine}"\n')
    assert "is no program that can be started" in checked(fleet, BROKER, "broker", no_program)[0]
    lists = fleet / BROKER / "members.json"
    whole = lists.read_bytes()
    lists.write_bytes(b"{")
    assert "members.json: is not a list of members" in checked(fleet, BROKER, "broker", use)[0]
    lists.write_bytes(whole.replace(b'"acme"', b'"other"'))
    assert "members.json: lists the members of another fleet, other" in checked(fleet, BROKER, "broker", use)[0]


def test_what_a_node_of_a_cluster_lacks_is_named(fleet: Path) -> None:
    """One of three that does not start is noticed when a second one dies."""
    folder = "bundles/broker/cloud"
    use = ('listen = ["0.0.0.0:8883", "0.0.0.0:443"]', 'engine = "nats"\nlisten = ["0.0.0.0:8883"]')
    alone = ("# [nats]", "[nats]\nreplicas = 3\n# ")
    assert "nats.replicas = 3: needs a cluster" in checked(fleet, folder, "broker", use, alone)[0]
    files = 'cluster_ca = "cluster-ca.pem"\ncluster_cert = "no.pem"'
    node = ("# [nats]", f'[nats]\ncluster_listen = "127.0.0.1:6222"\n{files}\n# ')
    missing, unnamed = checked(fleet, folder, "broker", use, node)
    assert "no.pem: there is no such file" in missing
    assert "nats.cluster_key: is needed by a node" in unnamed
    two = ("[broker]\n", '[broker]\nengine = "nats"\n')
    assert "serves MQTT at one address" in checked(fleet, folder, "broker", two)[0]


def test_an_intake_from_a_cluster_without_nodes_is_doubted(fleet: Path) -> None:
    """Only a process of operations can run so."""
    use = ("[cloud]\n", '[cloud]\nintake = "jetstream"\n')
    assert "cloud.nats: names no node" in checked(fleet, "bundles/cloud/cloud", "cloud", use)[0]


def test_doubtful_and_impossible_intervals_and_ranges_of_a_hub_are_named(fleet: Path) -> None:
    """The recommended order is heartbeat, three of them below a poll, and offline after more than one."""
    file = fleet / HUB / "hub.toml"
    whole = file.read_text(encoding="utf-8")
    file.write_text(whole + "\n[mode]\nheartbeat_min = 10\npoll_min = 29\noffline_after_min = 10\n", encoding="utf-8")
    found = findings(settings.load(file, settings.HubSettings, {}), "hub")
    assert [finding.fatal for finding in found] == [False, False]
    assert "mode.poll_min = 29 is below three heartbeats" in str(found[0])
    assert "mode.offline_after_min = 10 is not above mode.heartbeat_min = 10" in str(found[1])
    file.write_text(whole + '\n[mode]\nunreachable = ["10.0.0.0/99"]\n', encoding="utf-8")
    (finding,) = findings(settings.load(file, settings.HubSettings, {}), "hub")
    assert finding.fatal
    assert str(finding).startswith("mode.unreachable[0] = '10.0.0.0/99': is no range of addresses")
