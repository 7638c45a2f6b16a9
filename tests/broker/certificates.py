"""A small fleet's certificates in a folder, with everything that can be wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from config import pki
from config.principal import Principal, Role
from config.settings import BrokerProcess, BrokerSettings, Identity

DAY = timedelta(days=1)


@dataclass
class FleetFiles:
    """An authority, the certificates that it has issued, and its revocation list, below `folder`."""

    folder: Path
    name: str = "acme"
    now: datetime = field(default_factory=pki.utc_now)
    revoked: list[pki.Revocation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.authority = pki.create_authority(self.name, 1, "ec-p256", self.now - 20 * DAY)
        self.ca = self.folder / "ca.pem"
        self.ca.write_bytes(pki.certificate_pem(self.authority.certificate))
        self.crl = self.folder / "crl.pem"
        self.write_crl()

    def write_crl(self) -> None:
        """Write the revocation list in one step, as provisioning does."""
        fresh = self.folder / "crl.new"
        fresh.write_bytes(pki.revocation_list(self.authority, self.revoked, len(self.revoked) + 1, self.now))
        fresh.replace(self.crl)

    def identity(
        self,
        role: Role,
        name: str,
        site: str,
        *,
        fleet: str | None = None,
        issued: datetime | None = None,
        authority: pki.Authority | None = None,
    ) -> Identity:
        """Issue a certificate and return where it lies."""
        principal = Principal(fleet or self.name, site, role, name)
        hosts = pki.LOOPBACK_HOSTS if role == "broker" else ()
        leaf = pki.issue(authority or self.authority, principal, hosts, "ec-p256", issued or self.now)
        return self.write(leaf, principal, f"{role}-{site}-{name}")

    def write(self, leaf: pki.Leaf, principal: Principal, stem: str) -> Identity:
        """Write a certificate and its key."""
        cert, key = self.folder / f"{stem}.cert.pem", self.folder / f"{stem}.key.pem"
        cert.write_bytes(pki.certificate_pem(leaf.certificate))
        key.write_bytes(pki.key_pem(leaf.key))
        return Identity(principal.fleet, principal.site, principal.name, self.ca, cert, key)

    def expired(self, role: Role, name: str, site: str) -> Identity:
        """Issue a certificate that has ended yesterday."""
        ending = pki.Authority(_ending(self.authority, self.now - DAY), self.authority.key)
        return self.identity(role, name, site, authority=ending, issued=self.now - 10 * DAY)

    def early(self, role: Role, name: str, site: str) -> Identity:
        """Issue a certificate that begins tomorrow."""
        return self.identity(role, name, site, issued=self.now + 2 * DAY)

    def foreign(self, role: Role, name: str, site: str) -> Identity:
        """Issue a certificate of the same names by an authority of the same name, which is not ours."""
        return self.identity(role, name, site, authority=pki.create_authority(self.name, 1, "ec-p256", self.now - DAY))

    def revoke(self, identity: Identity) -> None:
        """Put a certificate on the revocation list."""
        (certificate,) = pki.load_certificates(identity.cert.read_bytes())
        self.revoked.append(pki.Revocation(certificate.serial_number, self.now))
        self.write_crl()

    def broker_settings(
        self, site: str = "berlin", *, listen: tuple[str, ...] = ("127.0.0.1:0",), handshakes_per_s: float = 1000
    ) -> BrokerSettings:
        """Return the settings of a broker on a free port."""
        process = BrokerProcess(
            listen=list(listen), crl=self.crl, data_dir=self.folder / "data", handshakes_per_s=handshakes_per_s
        )
        return BrokerSettings(self.identity("broker", "broker-1", site), process)


def _ending(authority: pki.Authority, ends: datetime) -> object:
    """Return the authority's certificate as if it ended at `ends`: what it issues ends then too."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    old = authority.certificate
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(old.serial_number)
        .not_valid_before(old.not_valid_before_utc)
        .not_valid_after(ends)
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    return builder.sign(authority.key, hashes.SHA256())
