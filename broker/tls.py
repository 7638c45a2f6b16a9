"""Mutual TLS ≥ 1.2, always: a client verifies a *name* at any address; a broker refuses strangers during the handshake.

Certificates, authorities and the revocation list are read again when their files change, without a restart. No session
is resumed past a revocation: there are no tickets, and whoever passed the handshake is checked against the list again.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from config import limits
from config.errors import RefusedError, SettingsError
from config.settings import Identity

if TYPE_CHECKING:  # Only servers read certificates; a hub has no memory to spare for the library.
    from cryptography import x509

CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20:@SECLEVEL=2"
"""For TLS 1.2: forward secrecy and authenticated encryption only. Level 2 refuses keys weaker than RSA-2048."""

EC_MIN_BITS: Final = 256

ALPN: Final = ("mqtt",)
"""What MQTT is called inside TLS, as registered with IANA: on port 443 it tells our connections from the web's."""

_CLOCK: Final = "check the clocks of both machines"

# The codes of X509_verify_cert (OpenSSL, X509_STORE_CTX_get_error(3)) that a person can do something about.
_VERIFY_WORDS: Final = {
    3: "no revocation list of the authority that issued it",
    7: "issued by a foreign certificate authority",
    9: f"not yet valid: {_CLOCK}",
    10: f"expired: renew it, or {_CLOCK}",
    11: f"the revocation list is not yet valid: {_CLOCK}",
    12: f"the revocation list has expired: write a new one, or {_CLOCK}",
    18: "issued by a foreign certificate authority (self-signed)",
    19: "issued by a foreign certificate authority",
    20: "issued by a foreign certificate authority",
    21: "issued by a foreign certificate authority",
    23: "revoked",
    26: "not made for this purpose: brokers and clients have different certificates",
    30: "issued by a foreign certificate authority",
    62: "of a broker with another name: another fleet or site",
    64: "of a broker with another address",
    66: "its key is too small: RSA needs 2048 bits",
    67: "the key of its authority is too small: RSA needs 2048 bits",
}

# Reasons of ssl.SSLError: alerts that the peer sent about us (RFC 8446, 6.2), then what we found ourselves.
_REASON_WORDS: Final = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the peer asks for a certificate, and none was sent",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": f"the peer refuses our certificate: it or the CRL has expired; {_CLOCK}",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "the peer refuses our certificate: revoked",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the peer refuses our certificate",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "the peer refuses our certificate: not made for this purpose",
    "SSLV3_ALERT_BAD_CERTIFICATE": f"the peer refuses our certificate: damaged or not yet valid; {_CLOCK}",
    "TLSV1_ALERT_UNKNOWN_CA": "the peer refuses our certificate: issued by a certificate authority foreign to it",
    "TLSV1_ALERT_DECRYPT_ERROR": "the peer refuses our certificate: its signature or ours is wrong",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the peer wants another version of TLS; 1.2 or newer is needed",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the peer found no common way to encrypt, or asks for a certificate",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no certificate was sent",
    "UNSUPPORTED_PROTOCOL": "a version of TLS older than 1.2",
    "NO_SHARED_CIPHER": "no common way to encrypt",
    "WRONG_VERSION_NUMBER": "not TLS",
    "HTTP_REQUEST": "not TLS (plain HTTP)",
    "EE_KEY_TOO_SMALL": "the certificate's key is too small: RSA needs 2048 bits",
    "CA_KEY_TOO_SMALL": "the authority's key is too small: RSA needs 2048 bits",
    "UNEXPECTED_EOF_WHILE_READING": "the peer closed the connection during the handshake",
}


class NamedContext(ssl.SSLContext):
    """A client context that asks for, and verifies, one name at whatever address it is connected to.

    `before_handshake`, if set, gets every socket first, still without TLS: for a proxy on the way.
    """

    server_name: str
    before_handshake: Callable[[socket.socket], None] | None = None

    def wrap_socket(
        self,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLSocket:
        """Wrap a socket; `server_hostname` is the address that was dialled and is not used."""
        if self.before_handshake is not None:
            self.before_handshake(sock)
        return super().wrap_socket(
            sock, server_side, do_handshake_on_connect, suppress_ragged_eofs, self.server_name, session
        )

    def wrap_bio(self, incoming, outgoing, server_side=False, server_hostname=None, session=None):  # type: ignore[no-untyped-def]
        """Wrap a pair of buffers; `server_hostname` is not used either."""
        return super().wrap_bio(incoming, outgoing, server_side, self.server_name, session)


def client_context(identity: Identity, server_name: str) -> NamedContext:
    """Return the context of a client that verifies `server_name` at whatever address. Raises SettingsError."""
    context = NamedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.server_name = server_name
    _load_identity(context, identity)
    return context


def key_secret(identity: Identity, what: str) -> str:
    """Return what only the holder of a private key knows, the same after every restart, and another one for each `what`.

    For the ends of client ids: 16 hexadecimal digits. Raises SettingsError if the key can't be read.
    """
    try:
        key = identity.key.read_bytes()
    except OSError as exc:
        raise SettingsError(f"can't be read: {exc.strerror}", file=identity.key, key="identity.key") from exc
    return sha256(b"hubline client\0" + what.encode() + b"\0" + key).hexdigest()[: 2 * limits.CLIENT_ID_SECRET_BYTES]


class ServerContext:
    """The context of a broker: demands a certificate of the fleet, valid and not revoked. Raises SettingsError."""

    def __init__(self, identity: Identity, crl: Path | None):
        self._identity = identity
        self._crl = crl
        self._stamp = self._stamp_of_files()
        self.current, self._revoked = self._load()

    def reload_if_changed(self) -> bool:
        """Read the files again if one has changed, and tell whether that was so.

        Raises SettingsError if the new files cannot be used: the old ones stay in force until they change once more.
        """
        stamp = self._stamp_of_files()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        self.current, self._revoked = self._load()
        return True

    @property
    def revoked(self) -> frozenset[tuple[bytes, int]]:
        """Return whom the revocation list names, as `certificate_id` does."""
        return self._revoked

    def is_revoked(self, certificate_id: tuple[bytes, int]) -> bool:
        """Tell whether the revocation list names a certificate, given as `certificate_id` returns it."""
        return certificate_id in self._revoked

    def check(self, certificate: x509.Certificate) -> None:
        """Check what a handshake does not, or did not if it resumed a session. Raises RefusedError."""
        from cryptography.hazmat.primitives.asymmetric import ec, rsa

        if self.is_revoked(certificate_id(certificate)):
            raise RefusedError("certificate", "revoked")
        now = datetime.now(UTC)
        if now > certificate.not_valid_after_utc:
            raise RefusedError("certificate", _VERIFY_WORDS[10])
        if now < certificate.not_valid_before_utc:
            raise RefusedError("certificate", _VERIFY_WORDS[9])
        key = certificate.public_key()
        if (isinstance(key, rsa.RSAPublicKey) and key.key_size < limits.RSA_MIN_BITS) or (
            isinstance(key, ec.EllipticCurvePublicKey) and key.key_size < EC_MIN_BITS
        ):
            raise RefusedError("certificate", f"its key of {key.key_size} bits is too small")

    def _load(self) -> tuple[ssl.SSLContext, frozenset[tuple[bytes, int]]]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        context.num_tickets = 0
        context.set_alpn_protocols(ALPN)  # Confirmed to whoever offers it, asked of nobody.
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
        _load_identity(context, self._identity)
        if self._crl is None:
            return context, frozenset()
        revoked = frozenset(_revoked_in(self._crl))
        context.load_verify_locations(cafile=self._crl)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        return context, revoked

    def _stamp_of_files(self) -> tuple[tuple[int, int, int] | None, ...]:
        paths = (self._identity.ca, self._identity.cert, self._identity.key, self._crl)
        return tuple(_stamp(path) for path in paths if path is not None)


def certificate_id(certificate: x509.Certificate) -> tuple[bytes, int]:
    """Return what a revocation list knows a certificate by: its issuer and serial number (RFC 5280, 5.1.2.6)."""
    return certificate.issuer.public_bytes(), certificate.serial_number


def describe_tls_error(exc: BaseException) -> str:
    """Return in plain words why a handshake failed, and which clock to look at if it may be that."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        words = _VERIFY_WORDS.get(exc.verify_code, exc.verify_message)
        return words if words.startswith("the ") else f"the peer's certificate is refused: {words}"
    if isinstance(exc, ssl.SSLError):
        reason = exc.reason or ""
        return _REASON_WORDS.get(reason, reason.replace("_", " ").lower() or "the TLS connection broke")
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    return str(exc) or type(exc).__name__


def _load_identity(context: ssl.SSLContext, identity: Identity) -> None:
    """Give a context our certificate, our key, our authorities, and the least that we accept."""
    for key, path in (("identity.ca", identity.ca), ("identity.cert", identity.cert), ("identity.key", identity.key)):
        _read(path, key)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.set_ciphers(CIPHERS)
        context.load_verify_locations(cafile=identity.ca)
    except ssl.SSLError as exc:
        raise SettingsError("holds no certificate authority in PEM form", file=identity.ca, key="identity.ca") from exc
    try:
        # The empty password makes an encrypted key an error instead of a question on the terminal.
        context.load_cert_chain(identity.cert, identity.key, password="")
    except ssl.SSLError as exc:
        reason = exc.reason or ""
        if "MISMATCH" in reason:
            raise SettingsError(f"is not the key of {identity.cert}", file=identity.key, key="identity.key") from exc
        if "TOO_SMALL" in reason or "TOO_WEAK" in reason:
            problem = f"cannot be used: {describe_tls_error(exc)}"
            raise SettingsError(problem, file=identity.cert, key="identity.cert") from exc
        problem = f"holds no certificate in PEM form, or {identity.key} no unencrypted key"
        raise SettingsError(problem, file=identity.cert, key="identity.cert") from exc


def _revoked_in(path: Path) -> Iterable[tuple[bytes, int]]:
    from cryptography import x509

    content = _read(path, "broker.crl")
    end = b"-----END X509 CRL-----"
    blocks = [block + end for block in content.split(end)[:-1]]
    try:
        lists = [x509.load_pem_x509_crl(block) for block in blocks]
    except ValueError as exc:
        raise SettingsError("is not a revocation list in PEM form", file=path, key="broker.crl") from exc
    if not lists:
        raise SettingsError("holds no revocation list in PEM form", file=path, key="broker.crl")
    return ((crl.issuer.public_bytes(), revoked.serial_number) for crl in lists for revoked in crl)


def _read(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as exc:
        raise SettingsError("there is no such file", file=path, key=key) from exc
    except OSError as exc:
        raise SettingsError(f"cannot be read: {exc.strerror}", file=path, key=key) from exc


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
