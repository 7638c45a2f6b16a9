"""`config check`: every way in which a bundle's files can be wrong is named, with what to do."""

from __future__ import annotations

import os
import shutil
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from broker.engines.prepared import FOLDER, MORE_PLACES, prepare
from broker.engines.registry import engine_named
from config import limits, pki, provision, settings
from config.check import findings
from config.errors import SettingsError
from config.principal import Principal, Role

HUB = "bundles/hub/pc-17"
BROKER = "bundles/broker/berlin-1"
CLOUD = "bundles/cloud/cloud"
BRIDGE = "../../connector/berlin-1/connector.toml"


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


def changed(fleet: Path, folder: str, role: Role, *changes: tuple[str, str]) -> Path:
    """Return a file of settings that are changed so."""
    file = fleet / folder / f"{role}.toml"
    content = file.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in content
        content = content.replace(old, new)
    made = file.with_name("changed.toml")
    made.write_text(content, encoding="utf-8")
    return made


def checked(fleet: Path, folder: str, role: Role, *changes: tuple[str, str]) -> list[str]:
    """Return what is said of settings that are changed so."""
    file = changed(fleet, folder, role, *changes)
    return [str(each) for each in findings(settings.load(file, settings.SHAPES[role], {}), role)]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the one folder of the path: with programs that say that they are new enough, whatever is installed here."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, says in (("mosquitto", "mosquitto version 2.0.18"), ("nats-server", "nats-server: v2.15.1")):
        write_program(folder / name, says)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)  # Else a nats-server of the tests' own environment comes first.
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    return folder


def write_program(file: Path, says: str) -> None:
    """Write a program that says its version."""
    file.write_text(f"#!/bin/sh\necho '{says}'\n", encoding="utf-8")
    file.chmod(0o755)


on_posix = pytest.mark.skipif(os.name == "nt", reason="the programs that stand in are shell scripts")


@on_posix
@pytest.mark.usefixtures("programs")
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


@on_posix
def test_a_program_that_is_missing_or_too_old_is_named(fleet: Path, programs: Path) -> None:
    """It is the first thing that is forgotten on a new machine."""
    use = ("[broker]\n", '[broker]\nengine = "nats"\n')
    old = programs / "old"
    write_program(old, "nats-server: v2.9.10")
    (said,) = checked(fleet, BROKER, "broker", ("[broker]\n", f'{use[1]}program = "{old}"\n'))
    assert said.startswith(f"broker.program: {old} is of version 2.9.10, and 2.12 or newer is needed: install ")
    if shutil.which("nats-server", path=os.pathsep.join(MORE_PLACES)) is not None:
        pytest.skip("a nats-server is where it is found without a path")
    (programs / "nats-server").unlink()
    (said,) = checked(fleet, BROKER, "broker", use)
    assert said.startswith("broker.engine = 'nats': the program nats-server is not here: install ")


@on_posix
@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize(
    ("engine", "old", "new", "problem"),
    [
        (
            "mosquitto",
            "crl =",
            'bridge = "nothing.toml"\ncrl =',
            "nothing.toml': is no file: name the site's connector.toml",
        ),
        (
            "nats",
            "crl =",
            'bridge = "nothing.toml"\ncrl =',
            "nothing.toml': is no file: name the site's connector.toml",
        ),
        ("mosquitto", "crl =", f'bridge = "{BRIDGE}"\ncrl =', "connector.bridge = 'own': lets the connector itself"),
        ("nats", "crl =", f'bridge = "{BRIDGE}"\ncrl =', "connector.bridge = 'own': lets the connector itself"),
        ("mosquitto", "0.0.0.0:18883", "0.0.0.0:0", "Mosquitto can't choose a port"),
        ("nats", "[broker]", '[nats]\nlisten = "127.0.0.1:0"\n[broker]', "nats.listen = '127.0.0.1:0': needs a port"),
        ("nats", "[broker]", '[nats]\nleaf_remotes = ["a:1"]\n[broker]', "nats.leaf_remotes = ['a:1']: is for a node"),
        ("nats", "[broker]", '[nats]\nleaf_listen = "a:1"\n[broker]', "nats.leaf_listen = 'a:1': only nodes of"),
    ],
)
def test_the_check_says_what_the_engine_would_be_refused_for(
    fleet: Path, engine: str, old: str, new: str, problem: str
) -> None:
    """Else it takes a broker that ends at its start, and another one, to find them."""
    use = ("[broker]\n", f'[broker]\nengine = "{engine}"\n')
    loaded = settings.load(changed(fleet, BROKER, "broker", use, (old, new)), settings.BrokerSettings, {})
    with pytest.raises(SettingsError) as refused:
        prepare(loaded, engine_named(engine), loaded.broker.data_dir / FOLDER)
    assert problem in str(refused.value)
    assert [str(each) for each in findings(loaded, "broker")] == [str(refused.value)]


@on_posix
@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("engine", ["mosquitto", "nats"])
@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem", "crl.pem"])
def test_what_is_wrong_with_a_brokers_certificate_is_said_once(fleet: Path, engine: str, name: str) -> None:
    """The engine's complaint says less of it."""
    (fleet / BROKER / name).write_text("nonsense")
    said = checked(fleet, BROKER, "broker", ("[broker]\n", f'[broker]\nengine = "{engine}"\n'))
    assert [name in line for line in said] == [True]


def test_a_bridge_that_nobody_looks_at_is_doubted(fleet: Path) -> None:
    """Somebody has gone back to the default engine, and the connector still waits for the bridge."""
    (said,) = checked(fleet, BROKER, "broker", ("crl =", 'bridge = "nothing.toml"\ncrl ='))
    assert "counts for mosquitto and nats only: amqtt does not bridge by itself" in said


@on_posix
@pytest.mark.usefixtures("programs")
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
    assert "nats.cluster_listen = '127.0.0.1:6222': the nodes of a cluster need" in unnamed
    two = ("[broker]\n", '[broker]\nengine = "nats"\n')
    assert "serves MQTT at one address" in checked(fleet, folder, "broker", two)[0]


INTAKE = ("[cloud]\n", '[cloud]\nintake = "jetstream"\n')


def database(url: str) -> tuple[str, str]:
    """Return the change of settings that makes this the database."""
    return "sqlite:///cloud.db", url


def test_an_intake_from_a_cluster_without_nodes_is_doubted(fleet: Path) -> None:
    """Only a process of operations can run so."""
    assert "cloud.nats: names no node" in checked(fleet, CLOUD, "cloud", INTAKE)[0]


@on_posix
@pytest.mark.usefixtures("programs")
def test_a_package_that_only_some_settings_need_is_named(fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `pip install hubline` alone does not bring is missed when the service is started, not before."""
    monkeypatch.setitem(sys.modules, "nats", None)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    node = ("[broker]\n", '[broker]\nengine = "nats"\n')
    (said,) = checked(fleet, BROKER, "broker", node)
    assert said.startswith('broker.engine = "nats": needs nats-py, which is not installed: pip install')
    alone = ("[broker]\n", '[nats]\nauthorization = "permissions"\n[broker]\n')
    assert checked(fleet, BROKER, "broker", node, alone) == []
    assert 'cloud.intake = "jetstream": needs nats-py' in checked(fleet, CLOUD, "cloud", INTAKE)[0]
    (said,) = checked(fleet, CLOUD, "cloud", database("postgresql://hubline:secret@db/hubline"))
    assert "needs asyncpg, which is not installed: pip install 'hubline[postgresql]'" in said
    assert "secret" not in said


def test_a_database_that_can_not_be_is_named(fleet: Path) -> None:
    """A special character in a password is the commonest mistake; it must not end up in a terminal."""
    (said,) = checked(fleet, CLOUD, "cloud", database("postgresql://hubline:sec@ret@db/hubline"))
    assert said.startswith("cloud.database = ")
    assert "ret@" not in said
    assert checked(fleet, CLOUD, "cloud", database("postgresql+asyncpg://hubline:secret@db/hubline")) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such file modes")
@pytest.mark.parametrize(
    ("url", "variable", "mode", "is_told"),
    [
        ("postgresql://hubline:secret@db/hubline", "", 0o644, True),
        ("postgresql+asyncpg://hubline:secret@db/hubline", "", 0o640, True),
        ("postgresql://hubline:secret@db/hubline", "", 0o600, False),
        ("postgresql://hubline:secret@db/hubline", "postgresql://hubline:other@db/hubline", 0o644, False),
        ("sqlite:///cloud.db", "postgresql://hubline:other@db/hubline", 0o644, False),
        ("postgresql://hubline@db/hubline", "", 0o644, False),
        ("postgresql://db:5432/hubline", "", 0o644, False),
        ("sqlite:///cloud.db", "", 0o644, False),
    ],
)
def test_a_password_in_a_file_that_others_can_read_is_a_warning(
    fleet: Path, monkeypatch: pytest.MonkeyPatch, url: str, variable: str, mode: int, is_told: bool
) -> None:
    """cloud.toml holds nothing secret until somebody writes that into it; a password of the environment is not in it."""
    file = changed(fleet, CLOUD, "cloud", database(url))
    file.chmod(mode)
    if variable:
        monkeypatch.setenv("HUBLINE_CLOUD__DATABASE", variable)
    found = findings(settings.load(file, settings.CloudSettings), "cloud", file)
    problem = f"{file}: holds the password of the database and can be read by others: chmod 600 {file}"
    assert [(str(each), each.fatal) for each in found] == [(problem, False)] * is_told


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
