"""Who gets through a handshake, who does not, and what each side is told: with real certificates and real sockets."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from broker.tls import ServerContext, client_context, describe_tls_error
from config import pki
from config.errors import RefusedError, SettingsError
from config.principal import Principal, server_name
from config.settings import Identity
from tests.broker.certificates import FleetFiles

NAME = server_name("acme", "berlin")


@pytest.fixture
def fleet(tmp_path: Path) -> FleetFiles:
    return FleetFiles(tmp_path / "acme")


@pytest.fixture
def server(fleet: FleetFiles) -> ServerContext:
    return ServerContext(fleet.identity("broker", "broker-1", "berlin"), fleet.crl)


def shake(server: ssl.SSLContext, client: ssl.SSLContext, **options: object) -> tuple[object, object]:
    """Do a handshake and exchange a byte each way. Return what each side got: its TLS socket, or its error."""
    listener = socket.create_server(("127.0.0.1", 0))
    got: list[object] = []

    def serve() -> None:
        accepted, _ = listener.accept()
        accepted.settimeout(10)
        try:
            with server.wrap_socket(accepted, server_side=True) as secured:
                secured.send(b"x")
                secured.recv(1)
                got.append(secured.version())
        except OSError as exc:
            got.append(exc)
        finally:
            accepted.close()

    thread = threading.Thread(target=serve)
    thread.start()
    ours: object
    try:
        with (
            socket.create_connection(listener.getsockname(), timeout=10) as plain,
            client.wrap_socket(plain, **options) as secured,  # type: ignore[arg-type]
        ):
            ours = secured.recv(1) and (secured.getpeercert(), secured.session)
            secured.send(b"x")
    except OSError as exc:
        ours = exc
    finally:
        thread.join()
        listener.close()
    return got[0], ours


def test_a_client_verifies_the_name_of_its_sites_broker_at_any_address(
    fleet: FleetFiles, server: ServerContext
) -> None:
    """Hubs connect to whatever address SSDP gave; the name is what makes a broker the right one."""
    hub = fleet.identity("hub", "pc-1", "berlin")
    theirs, ours = shake(server.current, client_context(hub, NAME), server_hostname="10.0.0.1")
    assert theirs == "TLSv1.3"
    assert isinstance(ours, tuple)


def test_nothing_older_than_tls_1_2_is_offered_or_taken(fleet: FleetFiles, server: ServerContext) -> None:
    """The contract says so; what a system's OpenSSL happens to be built with must not decide it."""
    for context in (server.current, client_context(fleet.identity("hub", "pc-1", "berlin"), NAME)):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("role", ["hub", "connector", "cloud", "reader"])
def test_nobody_but_a_broker_can_pose_as_one(fleet: FleetFiles, role: str) -> None:
    """A hub's certificate is issued by the same authority; purpose and name must both keep it out."""
    impostor = ServerContext(fleet.identity(role, "pc-2", "berlin"), None)  # type: ignore[arg-type]
    _, ours = shake(impostor.current, client_context(fleet.identity("hub", "pc-1", "berlin"), NAME))
    assert isinstance(ours, ssl.SSLCertVerificationError)


def test_the_broker_of_another_site_is_not_ours(fleet: FleetFiles) -> None:
    munich = ServerContext(fleet.identity("broker", "broker-1", "munich"), None)
    _, ours = shake(munich.current, client_context(fleet.identity("hub", "pc-1", "berlin"), NAME))
    assert isinstance(ours, ssl.SSLCertVerificationError)
    assert "another name" in describe_tls_error(ours)


def no_certificate(fleet: FleetFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(fleet.ca)
    return context


def of(identity: Identity) -> ssl.SSLContext:
    return client_context(identity, NAME)


def revoked(fleet: FleetFiles) -> ssl.SSLContext:
    identity = fleet.identity("hub", "pc-1", "berlin")
    fleet.revoke(identity)
    return of(identity)


def tls_1_1(fleet: FleetFiles) -> ssl.SSLContext:
    context = no_certificate(fleet)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


def weak(fleet: FleetFiles, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> ssl.SSLContext:
    principal = Principal("acme", "berlin", "hub", "pc-1")
    model = pki.issue(fleet.authority, principal, (), "ec-p256", fleet.now).certificate
    builder = (
        x509.CertificateBuilder()
        .subject_name(model.subject)
        .issuer_name(model.issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(model.not_valid_before_utc)
        .not_valid_after(model.not_valid_after_utc)
    )
    for extension in model.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    leaf = pki.Leaf(builder.sign(fleet.authority.key, hashes.SHA256()), key)
    identity = fleet.write(leaf, principal, "weak")
    context = no_certificate(fleet)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.load_cert_chain(identity.cert, identity.key)
    return context


@pytest.mark.parametrize(
    ("client", "at_the_broker", "at_the_client"),
    [
        (no_certificate, "no certificate", "none was sent"),
        (lambda fleet: of(fleet.expired("hub", "pc-1", "berlin")), "expired", "expired"),
        (lambda fleet: of(fleet.early("hub", "pc-1", "berlin")), "clock", "clock"),
        (lambda fleet: of(fleet.foreign("hub", "pc-1", "berlin")), "foreign", "refuses our certificate"),
        (revoked, "revoked", "revoked"),
        (lambda fleet: of(fleet.identity("broker", "b", "berlin")), "purpose", "purpose"),
        (tls_1_1, "older than 1.2", "TLS"),
        (lambda fleet: weak(fleet, rsa.generate_private_key(65537, 1024)), "too small", "refuses our certificate"),
    ],
    ids=["none", "expired", "not yet valid", "foreign", "revoked", "a broker's", "TLS 1.1", "RSA-1024"],
)
def test_a_client_is_refused_in_the_handshake_and_both_sides_can_say_why(
    fleet: FleetFiles, client: Callable[[FleetFiles], ssl.SSLContext], at_the_broker: str, at_the_client: str
) -> None:
    """The administrator looks at either end; neither may say only "handshake failure"."""
    context = client(fleet)
    server = ServerContext(fleet.identity("broker", "broker-1", "berlin"), fleet.crl)
    theirs, ours = shake(server.current, context)
    assert isinstance(theirs, ssl.SSLError)
    assert at_the_broker in describe_tls_error(theirs)
    assert isinstance(ours, OSError)
    assert at_the_client in describe_tls_error(ours)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_resumed_session_does_not_outlive_a_revocation(fleet: FleetFiles, version: ssl.TLSVersion) -> None:
    """A resumed handshake verifies no certificate: so there are no tickets, and a new list starts a new memory."""
    server = ServerContext(fleet.identity("broker", "broker-1", "berlin"), fleet.crl)
    hub = fleet.identity("hub", "pc-1", "berlin")
    context = client_context(hub, NAME)
    context.maximum_version = version
    _, ours = shake(server.current, context)
    assert isinstance(ours, tuple)
    session = ours[1]
    assert not session.has_ticket
    fleet.revoke(hub)
    assert server.reload_if_changed()
    theirs, ours = shake(server.current, context, session=session)
    assert isinstance(theirs, ssl.SSLCertVerificationError)
    assert isinstance(ours, OSError)


def test_what_a_resumed_handshake_has_not_checked_is_checked_again(fleet: FleetFiles, server: ServerContext) -> None:
    hub = fleet.identity("hub", "pc-1", "berlin")
    (good,) = pki.load_certificates(hub.cert.read_bytes())
    server.check(good)
    fleet.revoke(hub)
    assert server.reload_if_changed()
    for bad in (hub, fleet.expired("hub", "pc-2", "berlin"), fleet.early("hub", "pc-3", "berlin")):
        (certificate,) = pki.load_certificates(bad.cert.read_bytes())
        with pytest.raises(RefusedError):
            server.check(certificate)


def test_a_curve_below_p_256_is_refused(fleet: FleetFiles, server: ServerContext) -> None:
    """OpenSSL would take P-224, the contract does not."""
    weak(fleet, ec.generate_private_key(ec.SECP224R1()))
    (certificate,) = pki.load_certificates((fleet.folder / "weak.cert.pem").read_bytes())
    with pytest.raises(RefusedError):
        server.check(certificate)


def test_new_certificates_are_used_without_a_restart(fleet: FleetFiles, server: ServerContext) -> None:
    """Two authorities overlap while a fleet changes from one to the other."""
    new = pki.create_authority("acme", 2, "ec-p256", fleet.now)
    hub = fleet.identity("hub", "pc-1", "berlin", authority=new)
    assert isinstance(shake(server.current, of(hub))[0], ssl.SSLError)
    with fleet.ca.open("ab") as file:
        file.write(pki.certificate_pem(new.certificate))
    with fleet.crl.open("ab") as file:
        file.write(pki.revocation_list(new, [], 1, fleet.now))
    assert server.reload_if_changed()
    assert not server.reload_if_changed()
    assert shake(server.current, of(hub))[0] == "TLSv1.3"
    assert shake(server.current, of(fleet.identity("hub", "pc-2", "berlin")))[0] == "TLSv1.3"


def test_files_that_cannot_be_used_leave_the_old_ones_in_force(fleet: FleetFiles, server: ServerContext) -> None:
    """A renewal writes certificate and key one after the other: in between they do not fit."""
    identity = server._identity
    before = identity.cert.read_bytes()
    other = fleet.identity("broker", "broker-2", "berlin")
    identity.cert.write_bytes(other.cert.read_bytes())
    with pytest.raises(SettingsError, match="is not the key of"):
        server.reload_if_changed()
    assert not server.reload_if_changed(), "the same broken files were read again"
    hub = of(fleet.identity("hub", "pc-1", "berlin"))
    assert shake(server.current, hub)[0] == "TLSv1.3"
    identity.cert.write_bytes(before)
    os.utime(identity.cert, ns=(1, 1))
    assert server.reload_if_changed()
    assert shake(server.current, hub)[0] == "TLSv1.3"


@pytest.mark.parametrize(
    ("which", "content", "problem"),
    [
        ("ca", None, "no such file"),
        ("cert", None, "no such file"),
        ("key", None, "no such file"),
        ("ca", b"nonsense", "authority"),
        ("cert", b"nonsense", "PEM"),
        ("key", b"nonsense", "unencrypted key"),
        ("crl", None, "no such file"),
        ("crl", b"nonsense", "revocation list"),
        ("crl", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "revocation list"),
    ],
)
def test_a_file_that_is_missing_or_wrong_is_named(
    fleet: FleetFiles, which: str, content: bytes | None, problem: str
) -> None:
    identity = fleet.identity("broker", "broker-1", "berlin")
    file = fleet.crl if which == "crl" else getattr(identity, which)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=problem) as caught:
        ServerContext(identity, fleet.crl)
    assert str(identity.cert if which == "key" and content else file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_encrypted_key_is_an_error_and_not_a_question(fleet: FleetFiles) -> None:
    """A service has no terminal to answer on."""
    identity = fleet.identity("hub", "pc-1", "berlin")
    key = pki.load_key(identity.key.read_bytes())
    identity.key.write_bytes(pki.key_pem(key, b"secret"))
    with pytest.raises(SettingsError, match="unencrypted"):
        client_context(identity, NAME)


def test_an_outdated_revocation_list_is_named_as_such(fleet: FleetFiles) -> None:
    """It refuses everyone: the administrator must not look for the fault at the hubs."""
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(fleet.authority.certificate.subject)
        .last_update(fleet.now - timedelta(days=2))
        .next_update(fleet.now - timedelta(days=1))
        .sign(fleet.authority.key, hashes.SHA256())
    )
    fleet.crl.write_bytes(crl.public_bytes(pki.serialization.Encoding.PEM))
    server = ServerContext(fleet.identity("broker", "broker-1", "berlin"), fleet.crl)
    theirs, _ = shake(server.current, of(fleet.identity("hub", "pc-1", "berlin")))
    assert isinstance(theirs, ssl.SSLError)
    assert "revocation list has expired" in describe_tls_error(theirs)
