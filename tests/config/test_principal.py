"""Who a certificate says its holder is: every right rests on this reading, so nothing doubtful may pass."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from config import pki
from config.errors import RefusedError
from config.principal import Principal, principal_of, server_name

KEY = ec.generate_private_key(ec.SECP256R1())


def certificate(
    *uris: str, cn: str = "pc-17", ou: str = "hub", o: str = "acme", names: bool = True
) -> x509.Certificate:
    now = pki.utc_now()
    said = ((NameOID.COMMON_NAME, cn), (NameOID.ORGANIZATIONAL_UNIT_NAME, ou), (NameOID.ORGANIZATION_NAME, o))
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in said if value])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(KEY.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    if names:
        listed = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(listed, critical=False)
    return builder.sign(KEY, hashes.SHA256())


def test_a_good_certificate_is_read() -> None:
    """The case that all refusals below are measured against; URIs of others beside ours do no harm."""
    read = principal_of(certificate("hubline://acme/berlin/hub/pc-17", "spiffe://acme/x"))
    assert read == Principal("acme", "berlin", "hub", "pc-17")
    assert read.uri == "hubline://acme/berlin/hub/pc-17"
    assert str(read) == "hub/pc-17"


@pytest.mark.parametrize(
    "uri",
    [
        "hubline://acme/berlin/hub",
        "hubline://acme/berlin/hub/pc-17/",
        "hubline://acme/berlin/hub/pc-17/x",
        "hubline://acme/berlin/hub/pc-17?x",
        "hubline://acme/berlin/hub/pc-17#x",
        "hubline://acme/berlin/king/pc-17",
        "hubline://acme/+/hub/pc-17",
        "hubline://acme/berlin/hub/#",
        "hubline://acme/berlin/hub/PC-17",
        "hubline://acme/berlin/hub/-pc",
        f"hubline://acme/berlin/hub/{'x' * 64}",
        "hubline://user@acme/berlin/hub/pc-17",
        "hubline://acme:1/berlin/hub/pc-17",
        "hubline://[acme/berlin/hub/pc-17",
        "hubline:acme/berlin/hub/pc-17",
        "hubline://-/berlin/hub/pc-17",
        "hubline://acme/-/hub/pc-17",
        "hubline://acme/berlin/hub/pc-17\n",
        "HUBLINE://acme/berlin/hub/pc-17",
    ],
)
def test_a_uri_that_is_not_exactly_ours_is_refused(uri: str) -> None:
    """A name with a wildcard or a slash in it would be a right to other hubs' topics."""
    with pytest.raises(RefusedError):
        principal_of(certificate(uri))


@pytest.mark.parametrize(
    ("cn", "ou", "o"),
    [("pc-18", "hub", "acme"), ("pc-17", "cloud", "acme"), ("pc-17", "hub", "evil"), ("", "hub", "acme")],
)
def test_a_subject_that_says_something_else_is_refused(cn: str, ou: str, o: str) -> None:
    """Engines that look at the subject and those that look at the URI must see the same holder."""
    with pytest.raises(RefusedError, match="subject"):
        principal_of(certificate("hubline://acme/berlin/hub/pc-17", cn=cn, ou=ou, o=o))


def test_no_identity_and_two_identities_are_refused() -> None:
    """Whichever of two were taken, somebody could choose it."""
    with pytest.raises(RefusedError, match="no subject alternative name"):
        principal_of(certificate(names=False))
    with pytest.raises(RefusedError, match="has 0"):
        principal_of(certificate("https://acme"))
    with pytest.raises(RefusedError, match="has 2"):
        principal_of(certificate("hubline://acme/berlin/hub/pc-17", "hubline://acme/berlin/hub/pc-18"))


def test_server_names_are_the_contracts() -> None:
    """Both sides of every connection compute this name."""
    assert server_name("acme", "berlin") == "berlin.acme.hubline.internal"
    assert server_name("acme", "-") == "cloud.acme.hubline.internal"
