"""Provisioning: bundles that run as they are, an index that forgets nothing, and a way out of every mistake."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509

from config import files, members, pki, provision, settings, tokens
from config.check import findings
from config.errors import SettingsError
from config.lock import locked
from config.principal import Role, principal_of

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such file modes")


def certificate(folder: Path, name: str = "cert.pem") -> x509.Certificate:
    return pki.load_certificates((folder / name).read_bytes())[0]


def refusal(*args: object, **kwargs: object) -> str:
    function, *rest = args
    assert callable(function)
    with pytest.raises(SettingsError) as refused:
        function(*rest, **kwargs)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def all_files(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


# --- What is made --------------------------------------------------------------------------------------------------


def test_every_bundle_is_complete_and_passes_its_own_check(fleet: Path) -> None:
    """A bundle is copied and run: whatever is missing is found out at a distant site."""
    checked = []
    for file in sorted((fleet / "bundles").glob("*/*/*.toml")):
        role = settings.role_of(file)
        loaded = settings.load(file, settings.SHAPES[role], {})
        assert findings(loaded, role) == []
        proven = principal_of(certificate(file.parent))
        assert (proven.role, proven.name, proven.site) == (role, file.parent.name, loaded.identity.site)
        assert (file.parent / "crl.pem").exists() == (role == "broker")
        checked.append(f"{role}/{file.parent.name}")
    assert checked == [
        "broker/berlin-1",
        "broker/cloud",
        "cloud/cloud",
        "connector/berlin-1",
        "hub/pc-17",
        "reader/ann",
    ]


def test_addresses_given_once_reach_every_file_that_needs_them(fleet: Path) -> None:
    """Nobody should edit a bundle for the ordinary case."""

    def load(role: Role, name: str) -> settings.Settings:
        return settings.load(fleet / "bundles" / role / name / f"{role}.toml", settings.SHAPES[role], {})

    cloud = ["cloud.example.com:8883", "192.0.2.7:443"]
    hub, connector = load("hub", "pc-17"), load("connector", "berlin-1")
    assert isinstance(hub, settings.HubSettings)
    assert isinstance(connector, settings.ConnectorSettings)
    assert hub.cloud.endpoints == connector.cloud.endpoints == cloud
    assert hub.connector.endpoints == ["gw.example.com:18883"]
    assert connector.connector.site_broker == "127.0.0.1:18883"
    site_broker, cloud_broker = load("broker", "berlin-1"), load("broker", "cloud")
    assert isinstance(site_broker, settings.BrokerSettings)
    assert isinstance(cloud_broker, settings.BrokerSettings)
    assert site_broker.broker.listen == ["0.0.0.0:18883"]
    assert cloud_broker.broker.listen == ["0.0.0.0:8883", "0.0.0.0:443"]
    service, reader = load("cloud", "cloud"), load("reader", "ann")
    assert isinstance(service, settings.CloudSettings)
    assert isinstance(reader, settings.ReaderSettings)
    assert service.cloud.broker == "127.0.0.1:8883"
    assert reader.reader.broker == "cloud.example.com:8883"


def test_a_fleet_without_a_cloud_address_still_works_on_one_machine(tmp_path: Path) -> None:
    """The first steps of a newcomer."""
    provision.init(tmp_path / "f", "acme")
    made = provision.reader(tmp_path / "f", "ann")
    assert settings.load(made.settings, settings.ReaderSettings, {}).reader.broker == "127.0.0.1:8883"
    hub = provision.hub(tmp_path / "f", "pc-1", "berlin")
    assert settings.load(hub.settings, settings.HubSettings, {}).cloud.endpoints == []


def test_the_loopback_is_no_address_for_a_hub_elsewhere(tmp_path: Path) -> None:
    """Every broker proves it, no other machine can use it."""
    provision.init(tmp_path / "f", "acme")
    provision.connector(tmp_path / "f", "c", "berlin", hosts_of_broker=["127.0.0.1", "localhost", "::1", "2001:db8::1"])
    hub = provision.hub(tmp_path / "f", "pc-1", "berlin")
    assert settings.load(hub.settings, settings.HubSettings, {}).connector.endpoints == ["[2001:db8::1]:8883"]


def test_many_hubs_are_added_at_once_or_none_of_them(fleet: Path) -> None:
    """A list of a thousand names with one mistake must not leave a person to find out which are in."""
    before = [str(member) for member in provision.members(fleet)]
    for wrong in ("PC", "pc-17", "b"):
        with pytest.raises(SettingsError, match=r"NAME|hub/pc-17"):
            provision.hubs(fleet, ["a", "b", wrong], "paris")
    assert [str(member) for member in provision.members(fleet)] == before
    made = provision.hubs(fleet, ["b", "a"], "paris")
    assert [(bundle.name, bundle.settings.exists()) for bundle in made] == [("b", True), ("a", True)]
    assert {str(member) for member in provision.members(fleet)} == {*before, "hub/a", "hub/b"}


@posix
def test_keys_and_tokens_are_private_and_so_is_the_authority(fleet: Path) -> None:
    """Whoever reads one of them is the machine, the console or the fleet."""
    private = [*fleet.rglob("*key.pem"), *fleet.rglob("tokens.json"), fleet / "admin.token", fleet / "fleet.json"]
    assert len(private) == 9 + 1 + 2
    assert {stat.S_IMODE(file.stat().st_mode) for file in private} == {0o600}
    assert stat.S_IMODE((fleet / "authority").stat().st_mode) == 0o700


def test_the_admin_token_is_kept_as_a_digest_only(fleet: Path) -> None:
    """The cloud knows it when it sees it, and a copy of the cloud's files tells nobody."""
    token = (fleet / "admin.token").read_text().strip()
    kept = (fleet / "bundles/cloud/cloud/tokens.json").read_bytes()
    assert token.encode() not in kept
    assert tokens.name_of(token, tokens.decoded(kept).tokens) == "admin"
    assert tokens.name_of(token + "x", tokens.decoded(kept).tokens) is None


def test_every_certificate_in_the_directory_is_in_the_index(fleet: Path) -> None:
    """What is not in the index can never be revoked."""
    listed = {int(each.serial, 16) for member in provision.members(fleet) for each in member.certificates}
    assert listed == {certificate(file.parent).serial_number for file in (fleet / "bundles").rglob("cert.pem")}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine")
def test_openssl_agrees_with_every_bundle_and_every_revocation(fleet: Path) -> None:
    """Mosquitto and NATS will read the same files."""
    provision.hub(fleet, "pc-18", "berlin")
    provision.revoke(fleet, "hub/pc-17")
    broker = fleet / "bundles/broker/berlin-1"
    verdicts = {}
    for cert in (fleet / "bundles").rglob("cert.pem"):
        command = [
            "openssl",
            "verify",
            "-crl_check",
            "-CAfile",
            broker / "ca.pem",
            "-CRLfile",
            broker / "crl.pem",
            cert,
        ]
        verdicts[cert.parent.name] = subprocess.run(command, capture_output=True, text=True)
    assert [name for name, verdict in verdicts.items() if verdict.returncode] == ["pc-17"]
    assert "revoked" in verdicts["pc-17"].stderr


# --- What is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "PC-17", "pc_17", "-pc", "pc-", "a/b", "../x", "a.b", "+", "#", "x" * 64, "ä", "pc\n"]
)
def test_a_name_that_is_no_label_is_refused_everywhere(fleet: Path, name: str) -> None:
    """It becomes a topic level, a folder and a certificate's subject."""
    before = all_files(fleet)
    assert "a-z, 0-9" in refusal(provision.hub, fleet, name, "berlin")
    assert "a-z, 0-9" in refusal(provision.hub, fleet, "good", name)
    assert "a-z, 0-9" in refusal(provision.connector, fleet, name, "berlin")
    assert "a-z, 0-9" in refusal(provision.reader, fleet, name)
    assert "a-z, 0-9" in refusal(provision.init, fleet.parent / "new", name)
    assert all_files(fleet) == before
    assert not (fleet.parent / "new").exists()


def test_a_second_provisioning_is_refused_with_the_way_out_and_changes_nothing(fleet: Path) -> None:
    """The machine that runs with the first bundle must not be locked out by a slip of the hand."""
    before = all_files(fleet)
    assert "`hubline provision renew hub/pc-17`" in refusal(provision.hub, fleet, "pc-17", "paris")
    assert "`hubline provision renew broker/berlin-1`" in refusal(provision.connector, fleet, "berlin-1", "berlin")
    assert "is a fleet directory already" in refusal(provision.init, fleet, "acme")
    assert all_files(fleet) == before
    provision.revoke(fleet, "hub/pc-17")
    assert "renew --reinstate hub/pc-17" in refusal(provision.hub, fleet, "pc-17", "berlin")


def test_one_name_is_one_client_whatever_its_role(fleet: Path) -> None:
    """Two clients with one MQTT client id would throw each other out of the cloud broker for ever."""
    before = all_files(fleet)
    for taken in ("berlin-1", "ann", "cloud"):
        said = refusal(provision.hub, fleet, taken, "berlin")
        assert f'choose another, for example "{taken}-hub"' in said
    assert "hub/pc-17 has this name" in refusal(provision.connector, fleet, "pc-17", "berlin")
    assert "hub/pc-17 has this name" in refusal(provision.reader, fleet, "pc-17")
    assert all_files(fleet) == before


def test_no_site_can_take_the_cloud_brokers_name(fleet: Path) -> None:
    """Its broker's certificate would say cloud.acme.hubline.internal: it could pose as the cloud."""
    assert "cloud broker's own name" in refusal(provision.connector, fleet, "x", "cloud")
    assert "cloud broker's own name" in refusal(provision.hub, fleet, "x", "cloud")
    assert "a-z, 0-9" in refusal(provision.hub, fleet, "x", "-")


def test_a_stray_bundle_is_never_overwritten(fleet: Path) -> None:
    """Somebody put it there, and its key may be in use."""
    stray = fleet / "bundles/hub/pc-9"
    stray.mkdir()
    (stray / "key.pem").write_text("precious")
    assert "move it away first" in refusal(provision.hub, fleet, "pc-9", "berlin")
    assert (stray / "key.pem").read_text() == "precious"
    assert all(member.name != "pc-9" for member in provision.members(fleet))


def test_directories_that_cannot_be_a_fleets_are_told(tmp_path: Path, fleet: Path) -> None:
    """Each with what to do instead."""
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("x")
    assert "is not empty" in refusal(provision.init, tmp_path / "used", "acme")
    assert "can't be used" in refusal(provision.init, tmp_path / "file", "acme")
    assert "`hubline provision init FLEET --dir" in refusal(provision.hub, tmp_path / "used", "x", "berlin")
    assert "there is no such directory" in refusal(provision.hub, tmp_path / "missing", "x", "berlin")
    assert list((tmp_path / "used").iterdir()) == [tmp_path / "used" / "letter.txt"]
    (fleet / "fleet.json").write_text('{"format": 2}')
    assert "is damaged" in refusal(provision.members, fleet)


def test_an_init_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """The next try must not be told that the directory is in use."""
    (tmp_path / "empty").mkdir()
    for directory in (tmp_path / "new", tmp_path / "empty"):
        assert "passphrase" in refusal(provision.init, directory, "acme", passphrase=b"")
        provision.init(directory, "acme")


def test_who_is_not_in_the_fleet_is_told(fleet: Path) -> None:
    """Typing errors in a revocation must not look like success."""
    for function in (provision.revoke, provision.renew):
        assert "provision list" in refusal(function, fleet, "hub/pc-1")
        for who in ("pc-17", "hub/", "/", "king/pc-17", "hub/pc-17/x"):
            refusal(function, fleet, who)


# --- The passphrase ------------------------------------------------------------------------------------------------


def test_a_protected_authority_signs_only_with_its_passphrase(tmp_path: Path) -> None:
    """And a wrong one changes nothing at all."""
    directory = tmp_path / "f"
    provision.init(directory, "acme", passphrase=b"correct horse")
    assert provision.needs_passphrase(directory)
    provision.hub(directory, "pc-1", "berlin", passphrase=b"correct horse")
    before = all_files(directory)
    assert "passphrase is wrong" in refusal(provision.hub, directory, "pc-2", "berlin", passphrase=b"wrong")
    assert "none was given" in refusal(provision.hub, directory, "pc-2", "berlin")
    assert "passphrase is wrong" in refusal(provision.revoke, directory, "hub/pc-1", passphrase=b"wrong")
    assert "passphrase is wrong" in refusal(provision.renew, directory, "hub/pc-1", passphrase=b"wrong")
    assert "passphrase is wrong" in refusal(provision.add_authority, directory, passphrase=b"wrong")
    assert all_files(directory) == before


# --- Renewal and revocation ----------------------------------------------------------------------------------------


def test_renewal_makes_a_new_pair_and_keeps_the_old_one(fleet: Path) -> None:
    """The machine goes on with the old pair until it gets the new one."""
    folder = fleet / "bundles/hub/pc-17"
    (folder / "hub.toml").write_text("# edited\n")
    (folder / "outbox.db").write_text("precious")
    old_cert, old_key = (folder / "cert.pem").read_bytes(), (folder / "key.pem").read_bytes()
    provision.renew(fleet, "hub/pc-17")
    assert (folder / "cert.pem.old").read_bytes() == old_cert
    assert (folder / "key.pem.old").read_bytes() == old_key
    new = certificate(folder)
    assert new.serial_number != certificate(folder, "cert.pem.old").serial_number
    assert principal_of(new) == principal_of(certificate(folder, "cert.pem.old"))
    assert pki.is_pair(new, pki.load_key((folder / "key.pem").read_bytes()))
    assert not pki.is_pair(new, pki.load_key(old_key))
    assert (folder / "hub.toml").read_text() == "# edited\n"
    assert (folder / "outbox.db").read_text() == "precious"


def test_a_bundle_that_was_moved_away_is_made_anew_by_renewal(fleet: Path) -> None:
    """A careful administrator leaves no private key lying about."""
    shutil.rmtree(fleet / "bundles/broker/berlin-1")
    made = provision.renew(fleet, "broker/berlin-1")
    loaded = settings.load(made.settings, settings.BrokerSettings, {})
    assert loaded.broker.listen == ["0.0.0.0:18883"]
    assert findings(loaded, "broker") == []
    names = certificate(made.folder).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "gw.example.com" in names.get_values_for_type(x509.DNSName)


def test_an_interrupted_renewal_is_mended_by_the_next_and_the_good_pair_kept(fleet: Path) -> None:
    """A crash between two renames leaves a key and a certificate that don't match."""
    folder = fleet / "bundles/hub/pc-17"
    good = (folder / "key.pem").read_bytes()
    provision.renew(fleet, "hub/pc-17")
    files.replace(folder / "key.pem", (fleet / "bundles/reader/ann/key.pem").read_bytes(), files.PRIVATE)
    provision.renew(fleet, "hub/pc-17")
    assert pki.is_pair(certificate(folder), pki.load_key((folder / "key.pem").read_bytes()))
    assert (folder / "key.pem.old").read_bytes() == good


def test_revocation_reaches_every_broker_and_every_certificate_of_the_member(fleet: Path) -> None:
    """A renewed machine that is stolen has two certificates, and both must be shut out everywhere."""
    provision.renew(fleet, "hub/pc-17")
    shutil.rmtree(fleet / "bundles/hub/pc-17")
    done = provision.revoke(fleet, "hub/pc-17")
    assert [str(broker) for broker in done.brokers] == ["broker/cloud", "broker/berlin-1"]
    lists = [fleet / "authority/crl.pem", *(fleet / "bundles").rglob("crl.pem")]
    assert len(lists) == 3
    serials = {int(each.serial, 16) for each in done.member.certificates}
    assert len(serials) == 2
    for file in lists:
        assert {each.serial_number for each in x509.load_pem_x509_crl(file.read_bytes())} == serials


def test_revoking_twice_keeps_the_first_date_and_raises_the_number(fleet: Path) -> None:
    """Doing it again is how one makes sure; a reader of lists takes the highest number."""

    def number() -> int:
        extensions = x509.load_pem_x509_crl((fleet / "authority/crl.pem").read_bytes()).extensions
        return extensions.get_extension_for_class(x509.CRLNumber).value.crl_number

    first = provision.revoke(fleet, "hub/pc-17")
    before = number()
    again = provision.revoke(fleet, "hub/pc-17")
    assert (first.was_revoked, again.was_revoked) == (False, True)
    assert again.time == first.time
    assert number() > before


def test_a_revoked_member_comes_back_only_on_purpose_and_with_a_new_key(fleet: Path) -> None:
    """A script that renews what expires must not let a stolen laptop in again."""
    stolen = certificate(fleet / "bundles/hub/pc-17").serial_number
    provision.revoke(fleet, "hub/pc-17")
    assert "renew --reinstate hub/pc-17" in refusal(provision.renew, fleet, "hub/pc-17")
    made = provision.renew(fleet, "hub/pc-17", reinstate=True)
    provision.revoke(fleet, "reader/ann")
    revocations = x509.load_pem_x509_crl((fleet / "authority/crl.pem").read_bytes())
    assert revocations.get_revoked_certificate_by_serial_number(stolen)
    assert not revocations.get_revoked_certificate_by_serial_number(certificate(made.folder).serial_number)


def test_brokers_are_told_which_revoked_certificates_are_no_members(fleet: Path) -> None:
    """The others may have a session with rights: who is a member again, or was never gone, has newer ones."""

    def outsiders() -> set[int]:
        lists = [members.read(file) for file in (fleet / "bundles/broker").glob("*/members.json")]
        assert len(lists) == 2
        assert lists[0] == lists[1]
        return {int(serial, 16) for serial in lists[0].outsiders}

    assert outsiders() == set()
    first = certificate(fleet / "bundles/hub/pc-17").serial_number
    provision.renew(fleet, "hub/pc-17")
    assert outsiders() == set()
    provision.revoke(fleet, "hub/pc-17")
    both = {first, certificate(fleet / "bundles/hub/pc-17").serial_number}
    assert outsiders() == both
    provision.revoke(fleet, "reader/ann")
    ann = certificate(fleet / "bundles/reader/ann").serial_number
    assert outsiders() == {*both, ann}
    provision.renew(fleet, "hub/pc-17", reinstate=True)
    assert outsiders() == {ann}
    provision.connector(fleet, "paris-1", "paris")
    gone = certificate(fleet / "bundles/broker/paris-1").serial_number
    shutil.rmtree(fleet / "bundles/broker/paris-1")
    provision.revoke(fleet, "broker/paris-1")
    assert outsiders() == {ann, gone}


def test_a_later_broker_knows_of_earlier_revocations(fleet: Path) -> None:
    """A site opened next year must refuse the laptop stolen today."""
    stolen = certificate(fleet / "bundles/hub/pc-17").serial_number
    provision.revoke(fleet, "hub/pc-17")
    broker, _ = provision.connector(fleet, "paris-1", "paris")
    revocations = x509.load_pem_x509_crl((broker.folder / "crl.pem").read_bytes())
    assert revocations.get_revoked_certificate_by_serial_number(stolen)


def test_a_fleet_changes_its_authority_without_a_gap(fleet: Path) -> None:
    """Old and new certificates are good at every step, for members that were renewed and for those that were not."""

    def all_right() -> bool:
        return all(
            findings(settings.load(file, settings.SHAPES[settings.role_of(file)], {}), settings.role_of(file)) == []
            for file in (fleet / "bundles").glob("*/*/*.toml")
        )

    number = provision.add_authority(fleet, key="ec-p384")
    assert number == 2
    assert all_right()
    assert (
        certificate(provision.hub(fleet, "pc-18", "berlin").folder).issuer == certificate(fleet / "authority/1").subject
    )
    provision.sign_with(fleet, number)
    assert certificate(provision.renew(fleet, "hub/pc-17").folder).issuer == certificate(fleet / "authority/2").subject
    assert all_right()
    provision.revoke(fleet, "hub/pc-17")  # Has a certificate of each.
    lists = (fleet / "authority/crl.pem").read_bytes().split(b"-----END X509 CRL-----\n")[:-1]
    assert [len(list(x509.load_pem_x509_crl(one + b"-----END X509 CRL-----\n"))) for one in lists] == [1, 1]
    assert "it has 1, 2" in refusal(provision.sign_with, fleet, 3)


# --- Two at once, and crashes --------------------------------------------------------------------------------------


def test_many_provisionings_at_once_lose_nobody(fleet: Path) -> None:
    """Scripts provision whole rooms in parallel, each in a process of its own."""
    code = (
        "import pathlib, sys; from config import provision; provision.hub(pathlib.Path(sys.argv[1]), sys.argv[2], 'x')"
    )
    names = [f"pc-{number}" for number in range(100, 106)]

    def run(name: str) -> int:
        return subprocess.run([sys.executable, "-c", code, str(fleet), name], check=False).returncode

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(run, names)) == [0] * len(names)
    assert {member.name for member in provision.members(fleet)} >= set(names)


def test_a_lock_that_is_held_is_told_and_one_left_over_is_none(tmp_path: Path) -> None:
    """A crashed command must never need a person to remove its lock."""
    (tmp_path / ".lock").touch()
    with locked(tmp_path / ".lock"):
        said = refusal(lambda: locked(tmp_path / ".lock", timeout_s=0.1).__enter__())
        assert "try again when it has ended" in said
    with locked(tmp_path / ".lock", timeout_s=0.1):
        pass


def test_a_crash_before_the_bundle_leaves_a_certificate_that_can_be_revoked_and_made_anew(fleet: Path) -> None:
    """The index is written first: no certificate exists that nobody knows of."""
    blocked = fleet / "bundles" / "hub"
    shutil.rmtree(blocked)
    blocked.write_text("no folder")  # As if the disk refused it.
    assert "can't be written" in refusal(provision.hub, fleet, "pc-9", "berlin")
    assert any(member.name == "pc-9" for member in provision.members(fleet))
    blocked.unlink()
    assert "renew hub/pc-9" in refusal(provision.hub, fleet, "pc-9", "berlin")
    made = provision.renew(fleet, "hub/pc-9")
    assert findings(settings.load(made.settings, settings.HubSettings, {}), "hub") == []


def test_the_index_is_plain_json(fleet: Path) -> None:
    """An inventory script or a worried administrator may read it."""
    index = json.loads((fleet / "fleet.json").read_bytes())
    assert index["fleet"] == "acme"
    assert {"role", "name", "site", "certificates"} <= set(index["members"][0])
