"""Certificates: what they say, whom they let in, and that real OpenSSL agrees."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage

from config import limits, pki
from config.errors import RefusedError, SettingsError
from config.principal import CLOUD_SITE, Principal, Role, principal_of, server_name

NOW = pki.utc_now()
BERLIN = server_name("acme", "berlin")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine")


def principal(role: Role, name: str = "one", site: str = "berlin") -> Principal:
    return Principal("acme", CLOUD_SITE if role == "cloud" else site, role, name)


@pytest.fixture(scope="module")
def authority() -> pki.Authority:
    return pki.create_authority("acme", 1, "ec-p256", NOW)


def leaf_of(authority: pki.Authority, role: Role, name: str = "one", site: str = "berlin", *hosts: str) -> pki.Leaf:
    return pki.issue(authority, principal(role, name, site), hosts, "ec-p256", NOW)


@pytest.mark.parametrize("role", ["hub", "connector", "broker", "cloud", "reader"])
def test_a_leaf_says_who_its_holder_is(authority: pki.Authority, role: Role) -> None:
    """Every right in the system follows from this one reading."""
    leaf = leaf_of(authority, role)
    assert principal_of(leaf.certificate) == principal(role)
    assert leaf.certificate.subject.rfc4514_string() == f"O=acme,OU={role},CN=one"


@pytest.mark.parametrize("role", ["hub", "connector", "broker", "cloud", "reader"])
def test_only_a_broker_may_serve_and_it_may_do_nothing_else(authority: pki.Authority, role: Role) -> None:
    """A stolen hub must not be able to pose as a broker, nor a broker as a hub."""
    usage = leaf_of(authority, role).certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [Usage.SERVER_AUTH if role == "broker" else Usage.CLIENT_AUTH]


def test_a_brokers_names_are_its_sites_its_own_and_the_loopbacks(authority: pki.Authority) -> None:
    """Clients verify the site's name; tools of third parties a host name; connector and cloud service the loopback."""
    leaf = leaf_of(authority, "broker", "berlin-1", "berlin", "gw.example.com", "192.0.2.7", "localhost")
    names = leaf.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [BERLIN, "gw.example.com", "localhost"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "127.0.0.1", "::1"]


def test_a_client_has_no_host_names(authority: pki.Authority) -> None:
    """What isn't there can't be misused."""
    names = leaf_of(authority, "hub", "pc-17", "berlin", "gw.example.com").certificate.extensions
    assert len(list(names.get_extension_for_class(x509.SubjectAlternativeName).value)) == 1


def test_a_leaf_can_sign_nothing_and_an_authority_only_leaves(authority: pki.Authority) -> None:
    """Else any member could make members."""
    leaf = leaf_of(authority, "hub").certificate.extensions
    assert not leaf.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.get_extension_for_class(x509.BasicConstraints).critical
    usage = leaf.get_extension_for_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_cert_sign, usage.crl_sign) == (True, False, False)
    above = authority.certificate.extensions
    assert above.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(ca=True, path_length=0)
    assert above.get_extension_for_class(x509.KeyUsage).value.crl_sign
    signer = leaf.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert signer == above.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


def test_certificates_hold_from_before_their_issue_and_no_longer_than_their_authority(authority: pki.Authority) -> None:
    """A machine whose clock runs behind joins at once; a leaf past its authority would fail without a reason anyone sees."""
    leaf = leaf_of(authority, "hub").certificate
    assert leaf.not_valid_before_utc == NOW - timedelta(seconds=limits.CERTIFICATE_BACKDATE_S)
    assert leaf.not_valid_after_utc == NOW + timedelta(days=limits.LEAF_VALID_DAYS)
    ends = authority.certificate.not_valid_after_utc
    late = pki.issue(authority, principal("hub"), (), "ec-p256", ends - timedelta(days=10))
    assert late.certificate.not_valid_after_utc == ends
    with pytest.raises(RefusedError, match="has expired"):
        pki.issue(authority, principal("hub"), (), "ec-p256", ends)


@pytest.mark.parametrize(("kind", "bits"), [("ec-p256", 256), ("ec-p384", 384), ("rsa-2048", 2048), ("rsa-3072", 3072)])
def test_keys_are_as_strong_as_asked_for(kind: str, bits: int) -> None:
    """The operator's policy decides between them."""
    made = pki.create_authority("acme", 1, pki.key_kind(kind), NOW)
    assert isinstance(made.key, ec.EllipticCurvePrivateKey if kind.startswith("ec") else rsa.RSAPrivateKey)
    assert made.key.key_size == bits


@pytest.mark.parametrize("kind", ["rsa-1024", "rsa-2047", "dsa", "ec-p192", "", "rsa"])
def test_weak_and_unknown_kinds_of_keys_are_refused(kind: str) -> None:
    """The contract asks for RSA-2048 or better, always."""
    with pytest.raises(SettingsError, match="choose one of ec-p256"):
        pki.key_kind(kind)


def test_a_weak_key_from_elsewhere_is_refused() -> None:
    """Somebody will bring a key of their own."""
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    with pytest.raises(RefusedError, match="1024 bits"):
        pki.load_key(weak.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def test_only_the_true_authority_is_found_as_issuer_among_two(authority: pki.Authority) -> None:
    """Two authorities overlap during a change, and foreign fleets may have the same names."""
    second = pki.create_authority("acme", 2, "ec-p256", NOW)
    impostor = pki.create_authority("acme", 1, "ec-p256", NOW)
    leaf = leaf_of(second, "hub").certificate
    assert pki.issuer_of(leaf, [authority.certificate, second.certificate]) == second.certificate
    assert pki.issuer_of(leaf, [authority.certificate]) is None
    assert pki.issuer_of(leaf_of(authority, "hub").certificate, [impostor.certificate]) is None


def test_a_passphrase_protects_a_key_and_a_needless_one_does_no_harm(authority: pki.Authority) -> None:
    """HUBLINE_PASSPHRASE may be set for another fleet."""
    pem = pki.key_pem(authority.key, b"correct horse")
    assert pki.is_locked(pem)
    assert pki.is_pair(authority.certificate, pki.load_key(pem, b"correct horse"))
    with pytest.raises(RefusedError, match="passphrase is wrong"):
        pki.load_key(pem, b"battery staple")
    with pytest.raises(RefusedError, match="none was given"):
        pki.load_key(pem)
    assert pki.is_pair(authority.certificate, pki.load_key(pki.key_pem(authority.key), b"needless"))
    for bad in (b"", b"x" * (limits.PASSPHRASE_MAX_BYTES + 1)):
        with pytest.raises(SettingsError, match="passphrase"):
            pki.key_pem(authority.key, bad)


def test_what_is_no_pem_is_told() -> None:
    """People swap files."""
    with pytest.raises(RefusedError, match="not a private key"):
        pki.load_key(b"-----BEGIN CERTIFICATE-----")
    with pytest.raises(RefusedError, match="not a certificate"):
        pki.load_certificates(b"nothing")


def test_a_revocation_list_outlives_every_pause_of_the_operator(authority: pki.Authority) -> None:
    """A list that ran out would cut off the whole fleet at once, with nothing revoked at all."""
    gone = leaf_of(authority, "hub", "gone").certificate
    pem = pki.revocation_list(authority, [pki.Revocation(gone.serial_number, NOW)], 7, NOW)
    revocations = x509.load_pem_x509_crl(pem)
    assert revocations.next_update_utc == authority.certificate.not_valid_after_utc
    assert revocations.last_update_utc < NOW
    assert revocations.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 7
    assert revocations.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    assert [each.serial_number for each in revocations] == [gone.serial_number]


# --- Real handshakes -----------------------------------------------------------------------------------------------


class Hands:
    """Two TLS endpoints that shake hands in memory."""

    def __init__(self, folder: Path, trusted: bytes):
        self._folder = folder
        self._ca = folder / "ca.pem"
        self._ca.write_bytes(trusted)

    def shake(self, server: pki.Leaf, client: pki.Leaf, name: str = BERLIN, crl: bytes | None = None) -> None:
        """Raise ssl.SSLError if one side refuses the other."""
        serving, asking = self._context(ssl.PROTOCOL_TLS_SERVER, server), self._context(ssl.PROTOCOL_TLS_CLIENT, client)
        if crl is not None:
            (self._folder / "crl.pem").write_bytes(crl)
            serving.load_verify_locations(self._folder / "crl.pem")
            serving.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        sides = [
            asking.wrap_bio(to_client, to_server, server_hostname=name),
            serving.wrap_bio(to_server, to_client, server_side=True),
        ]
        waiting = sides
        for _ in range(10):
            waiting = [side for side in waiting if not done(side.do_handshake)]
        assert not waiting

    def _context(self, protocol: int, leaf: pki.Leaf) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self._ca)
        pair = self._folder / "pair.pem"
        pair.write_bytes(pki.key_pem(leaf.key) + pki.certificate_pem(leaf.certificate))
        context.load_cert_chain(pair)
        return context


def done(step: Callable[[], None]) -> bool:
    try:
        step()
    except ssl.SSLWantReadError:
        return False
    return True


def test_every_client_role_shakes_hands_with_a_broker(authority: pki.Authority, tmp_path: Path) -> None:
    """The positive case that all refusals below are measured against."""
    hands = Hands(tmp_path, pki.certificate_pem(authority.certificate))
    roles: list[Role] = ["hub", "connector", "cloud", "reader"]
    for role in roles:
        hands.shake(leaf_of(authority, "broker"), leaf_of(authority, role))


def test_a_hub_cannot_pose_as_a_broker_nor_a_broker_as_a_hub(authority: pki.Authority, tmp_path: Path) -> None:
    """The extended key usage is what stops it, in both directions, even with the right name."""
    hands = Hands(tmp_path, pki.certificate_pem(authority.certificate))
    names = x509.SubjectAlternativeName([x509.DNSName(BERLIN)])
    hub = leaf_of(authority, "hub")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder(
        issuer_name=authority.certificate.subject,
        subject_name=hub.certificate.subject,
        public_key=key.public_key(),
        serial_number=1,
        not_valid_before=hub.certificate.not_valid_before_utc,
        not_valid_after=hub.certificate.not_valid_after_utc,
        extensions=[
            each for each in hub.certificate.extensions if not isinstance(each.value, x509.SubjectAlternativeName)
        ],
    )
    named_hub = pki.Leaf(builder.add_extension(names, critical=False).sign(authority.key, hashes.SHA256()), key)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"(?i)purpose"):
        hands.shake(named_hub, hub)
    with pytest.raises(ssl.SSLError, match=r"(?i)purpose"):
        hands.shake(leaf_of(authority, "broker"), leaf_of(authority, "broker"))


def test_a_broker_of_another_site_is_refused_by_its_name(authority: pki.Authority, tmp_path: Path) -> None:
    """Sites trust the same authority; only the name keeps them apart."""
    hands = Hands(tmp_path, pki.certificate_pem(authority.certificate))
    with pytest.raises(ssl.SSLCertVerificationError, match=r"(?i)hostname mismatch"):
        hands.shake(leaf_of(authority, "broker", "paris-1", "paris"), leaf_of(authority, "hub"))


def test_revoked_clients_are_refused_and_others_not_with_two_authorities(
    authority: pki.Authority, tmp_path: Path
) -> None:
    """During a change both authorities' lists are needed, or every client of one would be refused."""
    second = pki.create_authority("acme", 2, "ec-p256", NOW)
    hands = Hands(tmp_path, pki.certificate_pem(authority.certificate, second.certificate))
    good, gone = leaf_of(second, "hub", "good"), leaf_of(authority, "hub", "gone")
    crl = pki.revocation_list(authority, [pki.Revocation(gone.certificate.serial_number, NOW)], 2, NOW)
    crl += pki.revocation_list(second, (), 2, NOW)
    broker = leaf_of(authority, "broker")
    hands.shake(broker, good, crl=crl)
    hands.shake(broker, leaf_of(authority, "hub", "other"), crl=crl)
    with pytest.raises(ssl.SSLCertVerificationError, match="revoked"):
        hands.shake(broker, gone, crl=crl)


def test_a_foreign_authoritys_client_is_refused(authority: pki.Authority, tmp_path: Path) -> None:
    """Even one of a fleet with the same name."""
    hands = Hands(tmp_path, pki.certificate_pem(authority.certificate))
    foreign = pki.create_authority("acme", 1, "ec-p256", NOW)
    with pytest.raises(ssl.SSLError):
        hands.shake(leaf_of(authority, "broker"), leaf_of(foreign, "hub"))


@needs_openssl
@pytest.mark.parametrize("kind", ["ec-p256", "rsa-2048"])
def test_openssl_accepts_the_chain_strictly_for_its_purpose_only(tmp_path: Path, kind: str) -> None:
    """Other engines than ours must come to the same verdict."""
    authority = pki.create_authority("acme", 1, pki.key_kind(kind), NOW)
    (tmp_path / "ca.pem").write_bytes(pki.certificate_pem(authority.certificate))
    (tmp_path / "crl.pem").write_bytes(pki.revocation_list(authority, (), 1, NOW))

    def verdict(role: Role, purpose: str) -> bool:
        leaf = pki.issue(authority, principal(role), (), pki.key_kind(kind), NOW)
        (tmp_path / "cert.pem").write_bytes(pki.certificate_pem(leaf.certificate))
        command = [
            "openssl",
            "verify",
            "-x509_strict",
            "-crl_check",
            "-CAfile",
            "ca.pem",
            "-CRLfile",
            "crl.pem",
            "-purpose",
        ]
        return subprocess.run([*command, purpose, "cert.pem"], cwd=tmp_path, capture_output=True).returncode == 0

    assert verdict("broker", "sslserver")
    assert not verdict("broker", "sslclient")
    assert verdict("hub", "sslclient")
    assert not verdict("hub", "sslserver")
