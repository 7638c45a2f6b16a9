"""Who a certificate says its holder is (the contract's "Identities and TLS")."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast, get_args

from config.errors import RefusedError

if TYPE_CHECKING:  # A hub never reads a certificate this way, and the library takes a fifth of its memory.
    from cryptography import x509

Role: TypeAlias = Literal["hub", "connector", "broker", "cloud", "reader"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
CLOUD_SITE: Final = "-"
"""The site of cloud-wide roles."""

_LABEL: Final = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_URI: Final = re.compile(
    rf"hubline://(?P<fleet>{_LABEL})/(?P<site>-|{_LABEL})/(?P<role>{'|'.join(ROLES)})/(?P<name>{_LABEL})", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of a leaf certificate. `site` is "-" for cloud-wide roles."""

    fleet: str
    site: str
    role: Role
    name: str

    @property
    def uri(self) -> str:
        """Return the subject alternative name that carries the identity."""
        return f"hubline://{self.fleet}/{self.site}/{self.role}/{self.name}"

    def __str__(self) -> str:
        return f"{self.role}/{self.name}"


def server_name(fleet: str, site: str) -> str:
    """Return the host name that a site's brokers, or (site "-") the cloud broker, prove by certificate."""
    return f"{'cloud' if site == CLOUD_SITE else site}.{fleet}.hubline.internal"


def principal_of(certificate: x509.Certificate) -> Principal:
    """Return who a leaf certificate is for. Raises RefusedError if it does not say so in the contract's way."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as exc:
        raise RefusedError("certificate", "has no subject alternative name") from exc
    except ValueError as exc:
        raise RefusedError("certificate", f"has extensions that can't be read: {exc}") from exc
    uris = [uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith("hubline:")]
    if len(uris) != 1:
        raise RefusedError("certificate", f"must have one hubline:// URI, has {len(uris)}")
    found = _URI.fullmatch(uris[0])
    if found is None:
        raise RefusedError("certificate", f"{uris[0]!r} is not hubline://<fleet>/<site>/<role>/<id>, each a DNS label")
    principal = Principal(found["fleet"], found["site"], cast(Role, found["role"]), found["name"])
    if principal.role in ("hub", "connector") and principal.site == CLOUD_SITE:
        raise RefusedError("certificate", f"{uris[0]}: a {principal.role} belongs to a site")
    for oid, what, expected in (
        (NameOID.COMMON_NAME, "CN", principal.name),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, "OU", principal.role),
        (NameOID.ORGANIZATION_NAME, "O", principal.fleet),
    ):
        said = [attribute.value for attribute in certificate.subject.get_attributes_for_oid(oid)]
        if said != [expected]:
            raise RefusedError("certificate", f"subject {what} is {said}, its URI says {expected}")
    return principal
