"""The certificate authority: issues, checks and revokes, exactly as the contract's "Identities and TLS" says.

Pure of files: keys, certificates and revocation lists come and go as values and PEM. Times are UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Final, Literal, TypeAlias, get_args

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from config import limits
from config.errors import RefusedError, SettingsError
from config.principal import Principal, server_name

KeyKind: TypeAlias = Literal["ec-p256", "ec-p384", "rsa-2048", "rsa-3072", "rsa-4096"]
KEY_KINDS: Final[tuple[KeyKind, ...]] = get_args(KeyKind)
PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

LOOPBACK_HOSTS: Final = ("localhost", "127.0.0.1", "::1")
"""Names of every broker: connector and cloud service reach theirs on the machine they share."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority that can sign."""

    certificate: x509.Certificate
    key: PrivateKey


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate with the private key that belongs to it."""

    certificate: x509.Certificate
    key: PrivateKey


@dataclass(frozen=True, slots=True)
class Revocation:
    """A certificate that is no longer trusted, since when."""

    serial: int
    time: datetime


def key_kind(name: str) -> KeyKind:
    """Return a kind of key by its name. Raises SettingsError for one that is unknown or too weak."""
    for kind in KEY_KINDS:
        if name == kind:
            return kind
    family, _, bits = name.partition("-")
    weak = family == "rsa" and bits.isdigit() and int(bits) < limits.RSA_MIN_BITS
    reason = f"is too weak, RSA needs {limits.RSA_MIN_BITS} bits or more" if weak else "is not a kind of key"
    raise SettingsError(f"{reason}: choose one of {', '.join(KEY_KINDS)}", key="key", value=name)


def create_authority(fleet: str, number: int, kind: KeyKind, now: datetime, *, title: str = "authority") -> Authority:
    """Make a new, self-signed authority of a fleet. `title` and `number` tell the authorities of one fleet apart."""
    key = _new_key(kind)
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, f"Hubline {title} {number}"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, fleet),
        ]
    )
    public = key.public_key()
    certificate = (
        _builder(name, name, public, now, now + timedelta(days=limits.CA_VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def issue(
    authority: Authority,
    principal: Principal,
    hosts: Sequence[str],
    kind: KeyKind,
    now: datetime,
    *,
    is_node: bool = False,
) -> Leaf:
    """Make a new key and its certificate for `principal`; `hosts` are a broker's host names and addresses.

    `is_node`: for a broker that is server and client of the others in its cluster; the fleet's authorities sign none. No
    certificate outlives the authority. Raises RefusedError if that itself has ended.
    """
    ends = min(now + timedelta(days=limits.LEAF_VALID_DAYS), authority.certificate.not_valid_after_utc)
    if ends <= now:
        raise RefusedError("authority", f"has expired on {ends:%Y-%m-%d} and can issue nothing any more")
    key = _new_key(kind)
    public = key.public_key()
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, principal.name),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, principal.role),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, principal.fleet),
        ]
    )
    serves = principal.role == "broker"
    usages = [ExtendedKeyUsageOID.SERVER_AUTH if serves else ExtendedKeyUsageOID.CLIENT_AUTH]
    if is_node:
        usages.append(ExtendedKeyUsageOID.CLIENT_AUTH)
    signer = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(subject, authority.certificate.subject, public, now, ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(_names(principal, hosts), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return Leaf(certificate, key)


def revocation_list(authority: Authority, revoked: Iterable[Revocation], number: int, now: datetime) -> bytes:
    """Return the signed list of revoked certificates as PEM; a later list has a higher `number`.

    It holds until the authority itself ends: a list that ran out would make every broker refuse every client, and nobody
    publishes a new one while nothing is revoked. An old list still refuses all that it names.
    """
    signer = authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority.certificate.subject)
        .last_update(now - timedelta(seconds=limits.CERTIFICATE_BACKDATE_S))
        .next_update(max(authority.certificate.not_valid_after_utc, now + timedelta(days=1)))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(signer), critical=False)
    )
    for revocation in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(revocation.serial).revocation_date(revocation.time)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def issuer_of(certificate: x509.Certificate, authorities: Iterable[x509.Certificate]) -> x509.Certificate | None:
    """Return the authority that signed `certificate`, or None."""
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return authority
    return None


def is_pair(certificate: x509.Certificate, key: PrivateKey) -> bool:
    """Tell whether the private key is the certificate's."""
    return bool(certificate.public_key() == key.public_key())


def certificate_pem(*certificates: x509.Certificate) -> bytes:
    """Return certificates as PEM, one after the other."""
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def key_pem(key: PrivateKey, passphrase: bytes | None = None) -> bytes:
    """Return a private key as PKCS #8 PEM, encrypted if there is a passphrase."""
    lock: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        if not 0 < len(passphrase) <= limits.PASSPHRASE_MAX_BYTES:
            raise SettingsError(
                f"a passphrase has 1 to {limits.PASSPHRASE_MAX_BYTES} bytes, this one {len(passphrase)}"
            )
        lock = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)


def is_locked(pem: bytes) -> bool:
    """Tell whether a private key needs a passphrase."""
    return b"ENCRYPTED" in pem


def load_key(pem: bytes, passphrase: bytes | None = None) -> PrivateKey:
    """Read a private key; a passphrase that it doesn't need is ignored. Raises RefusedError with the reason."""
    locked = is_locked(pem)
    if locked and not passphrase:
        raise RefusedError("key", "is protected by a passphrase, and none was given")
    try:
        key = serialization.load_pem_private_key(pem, passphrase if locked else None)
    except (ValueError, TypeError) as exc:
        reason = "the passphrase is wrong (or the file is damaged)" if locked else "is not a private key in PEM form"
        raise RefusedError("key", reason) from exc
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < limits.RSA_MIN_BITS:
            raise RefusedError("key", f"has {key.key_size} bits: RSA needs {limits.RSA_MIN_BITS} or more")
        return key
    raise RefusedError("key", "is neither RSA nor ECDSA")


def load_certificates(pem: bytes) -> list[x509.Certificate]:
    """Read one or more certificates. Raises RefusedError with the reason."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as exc:
        raise RefusedError("certificate", "is not a certificate in PEM form") from exc


def utc_now() -> datetime:
    """Return the time for certificates: UTC, whole seconds, as X.509 has it."""
    return datetime.now(UTC).replace(microsecond=0)


def _new_key(kind: KeyKind) -> PrivateKey:
    match kind:
        case "ec-p256":
            return ec.generate_private_key(ec.SECP256R1())
        case "ec-p384":
            return ec.generate_private_key(ec.SECP384R1())
        case "rsa-2048" | "rsa-3072" | "rsa-4096":
            return rsa.generate_private_key(public_exponent=65537, key_size=int(kind.removeprefix("rsa-")))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: PublicKey,
    now: datetime,
    ends: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(seconds=limits.CERTIFICATE_BACKDATE_S))
        .not_valid_after(ends)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,  # Every cipher suite of ours has an ephemeral key exchange.
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _names(principal: Principal, hosts: Sequence[str]) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(principal.uri)]
    if principal.role == "broker":
        wanted = (server_name(principal.fleet, principal.site), *hosts, *LOOPBACK_HOSTS)
        names.extend(_general_name(host) for host in dict.fromkeys(wanted))
    return x509.SubjectAlternativeName(names)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
