"""Says what is wrong with the files that settings name: certificate, key, authorities and revocation list of one role.

Also what is doubtful in the settings themselves, and what an engine or the cloud service would refuse when it is run.
"""

from __future__ import annotations

import importlib
import os
import re
import stat
from collections.abc import Callable
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple, cast

from cryptography import x509

from config import limits, pki, remote
from config.errors import RefusedError, SettingsError
from config.principal import Role, principal_of
from config.settings import (
    BrokerSettings,
    CloudProcess,
    CloudSettings,
    HubMode,
    HubSettings,
    Identity,
    Nats,
    Settings,
    effective,
)

_CRL: Final = re.compile(b"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)
_CLOCK: Final = "check this machine's clock"
_WITH_PASSWORD: Final = re.compile(r"postgresql[^:]*://[^/@:]*:[^@]+@")

_ENGINE: Final = "broker.engines.prepared:complaints"
_POSTGRESQL: Final = "cloud.postgres_engine:require_driver"
"""What refuses an engine, or the URL of a PostgreSQL, when it is run: loaded by name as commands are, and only when wanted."""


class Finding(NamedTuple):
    """One thing that is wrong; `fatal` if the role can't work with it. `file` is None for the settings themselves."""

    file: Path | None
    problem: str
    fatal: bool = True

    def __str__(self) -> str:
        return self.problem if self.file is None else f"{self.file}: {self.problem}"


def findings(settings: Settings, role: Role, file: Path | None = None) -> list[Finding]:
    """Return everything that is wrong with the files of `settings`, and what is doubtful in them; else an empty list.

    `file` is what they were read from, for what is wrong with that itself.
    """
    identity, found = settings.identity, list[Finding]()
    authorities = _certificates(identity.ca, found)
    leaves = _certificates(identity.cert, found)
    key = _key(identity.key, found)
    if leaves:
        leaf = leaves[0]
        found += _of_identity(leaf, identity, role)
        found += _of_dates(leaf, identity.cert, "hubline provision renew")
        if key and not pki.is_pair(leaf, key):
            found.append(Finding(identity.key, f"is not the key of {identity.cert}: copy both from one bundle"))
        if authorities:
            issuer = pki.issuer_of(leaf, authorities)
            if issuer is None:
                found.append(Finding(identity.cert, f"was issued by none of the authorities in {identity.ca}"))
            else:
                found += _of_dates(issuer, identity.ca, "a second authority")
    if isinstance(settings, BrokerSettings) and settings.broker.crl is not None:
        found += _of_revocation_lists(settings.broker.crl, authorities, leaves)
    if isinstance(settings, BrokerSettings):
        found += _of_engine(settings, found)
    if isinstance(settings, CloudSettings):
        found += _of_intake(settings.cloud) + _of_database(settings.cloud, file)
    if isinstance(settings, HubSettings):
        found += _of_mode(settings.mode)
    return found


def _of_engine(settings: BrokerSettings, so_far: list[Finding]) -> list[Finding]:
    """Return why an engine that exists would not be run; of certificates only what nothing has been found of `so_far`."""
    own, identity = settings.broker, settings.identity
    if own.engine not in ("mosquitto", "nats"):
        if own.bridge is None:
            return []
        doubt = f"counts for mosquitto and nats only: {own.engine} does not bridge by itself"
        return [Finding(None, f"broker.bridge = {str(own.bridge)!r}: {doubt}", fatal=False)]
    found, proofs = list[Finding](), {identity.ca, identity.cert, identity.key}
    if own.crl is not None:
        proofs.add(own.crl)
    if own.engine == "nats":
        node = _proofs_of_node(settings.nats)
        for path in node:
            _content(path, found)
        proofs |= set(node)
        if settings.nats.authorization != "permissions":
            found += _of_nats_py('broker.engine = "nats"')
    is_told = any(each.fatal and each.file in proofs for each in (*so_far, *found))
    complaints = cast(Callable[[BrokerSettings], list[SettingsError]], _named(_ENGINE))
    unfit = [each for each in complaints(settings) if not (is_told and each.file in proofs)]
    return found + [Finding(None, str(each)) for each in unfit]


def _proofs_of_node(node: Nats) -> list[Path]:
    if node.cluster_listen is None:
        return []
    return [path for path in (node.cluster_ca, node.cluster_cert, node.cluster_key) if path is not None]


def _of_intake(process: CloudProcess) -> list[Finding]:
    if process.intake != "jetstream":
        return []
    found = _of_nats_py('cloud.intake = "jetstream"')
    if not process.nats:
        problem = (
            'cloud.nats: names no node of the NATS cluster, so that intake = "jetstream" can do --only operations alone'
        )
        found.append(Finding(None, problem, fatal=False))
    return found


def _of_nats_py(wanted_by: str) -> list[Finding]:
    if find_spec("nats") is not None:
        return []
    return [Finding(None, f"{wanted_by}: needs nats-py, which is not installed: pip install 'hubline[nats]'")]


def _of_database(process: CloudProcess, file: Path | None) -> list[Finding]:
    if not process.database.startswith("postgresql"):
        return []
    found: list[Finding] = []
    try:
        cast(Callable[[str], object], _named(_POSTGRESQL))(process.database)
    except SettingsError as exc:
        found.append(Finding(None, str(exc)))
    if file is not None and _WITH_PASSWORD.match(process.database) and _is_open(file):
        origins = {each.key: each.origin for each in effective(file, CloudSettings)}
        if origins["cloud.database"] == str(file):
            problem = f"holds the password of the database and can be read by others: chmod 600 {file}"
            found.append(Finding(file, problem, fatal=False))
    return found


def _named(place: str) -> object:
    """Return what is at "module:attribute", of a package that none of ours may import."""
    module, _, attribute = place.partition(":")
    return cast(object, getattr(importlib.import_module(module), attribute))


def _of_mode(mode: HubMode) -> list[Finding]:
    doubts = [Finding(None, doubt, fatal=False) for doubt in remote.doubts_about(mode)]
    try:
        remote.check_ranges(mode)
    except SettingsError as exc:
        return [Finding(None, str(exc)), *doubts]
    return doubts


def _of_identity(leaf: x509.Certificate, identity: Identity, role: Role) -> list[Finding]:
    try:
        principal = principal_of(leaf)
    except RefusedError as exc:
        return [Finding(identity.cert, f"is no certificate of Hubline's: {exc.reason}")]
    pairs = (
        ("role", principal.role, role),
        ("fleet", principal.fleet, identity.fleet),
        ("site", principal.site, identity.site),
        ("name", principal.name, identity.name),
    )
    return [
        Finding(identity.cert, f"is for {what} {proven!r}, and the settings say {said!r}: take both from one bundle")
        for what, proven, said in pairs
        if proven != said
    ]


def _of_dates(certificate: x509.Certificate, file: Path, way_out: str) -> list[Finding]:
    now, ends = pki.utc_now(), certificate.not_valid_after_utc
    if now < certificate.not_valid_before_utc:
        return [Finding(file, f"is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC only: {_CLOCK}")]
    if now > ends:
        return [Finding(file, f"has expired on {ends:%Y-%m-%d}: {way_out} mends it; or {_CLOCK}")]
    if ends - now < timedelta(days=limits.LEAF_EXPIRES_SOON_DAYS):
        return [Finding(file, f"expires in {(ends - now).days} days: {way_out} in time", fatal=False)]
    return []


def _of_revocation_lists(
    file: Path, authorities: list[x509.Certificate], leaves: list[x509.Certificate]
) -> list[Finding]:
    found: list[Finding] = []
    content = _content(file, found)
    if content is None:
        return found
    try:
        lists = [x509.load_pem_x509_crl(block) for block in _CRL.findall(content)]
    except ValueError:
        return [Finding(file, "is damaged: copy it from the fleet directory, authority/crl.pem")]
    for authority in authorities:
        mine = [each for each in lists if _is_signed_by(each, authority)]
        name = authority.subject.rfc4514_string()
        if not mine:
            found.append(Finding(file, f"has no list of {name}: brokers would refuse everyone that it has issued"))
        for each in mine:
            if each.next_update_utc is not None and each.next_update_utc < pki.utc_now():
                found.append(
                    Finding(file, f"the list of {name} has expired: write a new one by `hubline provision revoke`")
                )
            if any(each.get_revoked_certificate_by_serial_number(leaf.serial_number) for leaf in leaves):
                found.append(Finding(file, "names this broker's own certificate as revoked"))
    return found


def _is_signed_by(revocations: x509.CertificateRevocationList, authority: x509.Certificate) -> bool:
    public = authority.public_key()
    if revocations.issuer != authority.subject or not isinstance(public, pki.PublicKey):
        return False
    return revocations.is_signature_valid(public)


def _certificates(file: Path, found: list[Finding]) -> list[x509.Certificate]:
    content = _content(file, found)
    if content is None:
        return []
    try:
        return pki.load_certificates(content)
    except RefusedError as exc:
        found.append(Finding(file, exc.reason))
        return []


def _key(file: Path, found: list[Finding]) -> pki.PrivateKey | None:
    content = _content(file, found)
    if content is None:
        return None
    if _is_open(file):
        found.append(Finding(file, f"can be read by others: chmod 600 {file}", fatal=False))
    try:
        return pki.load_key(content)
    except RefusedError as exc:
        found.append(Finding(file, exc.reason))
        return None


def _is_open(file: Path) -> bool:
    """Tell whether others than its owner can read a file. Windows has other rights."""
    return os.name != "nt" and bool(stat.S_IMODE(file.stat().st_mode) & 0o077)


def _content(file: Path, found: list[Finding]) -> bytes | None:
    try:
        with file.open("rb") as stream:
            return stream.read(limits.SETTINGS_FILE_MAX_BYTES)
    except FileNotFoundError:
        found.append(Finding(file, "there is no such file: copy it from the bundle"))
    except OSError as exc:
        found.append(Finding(file, f"can't be read: {exc.strerror}"))
    return None
