"""Says what is wrong with the files that settings name: certificate, key, authorities and revocation list of one role.

Also what is doubtful in the settings themselves, and what an engine needs.
"""

from __future__ import annotations

import os
import re
import stat
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple

from cryptography import x509

from config import limits, members, pki, remote
from config.errors import RefusedError, SettingsError
from config.principal import Role, principal_of
from config.settings import BrokerSettings, CloudProcess, CloudSettings, HubMode, HubSettings, Identity, Settings

_CRL: Final = re.compile(b"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)
_CLOCK: Final = "check this machine's clock"


class Finding(NamedTuple):
    """One thing that is wrong; `fatal` if the role can't work with it. `file` is None for the settings themselves."""

    file: Path | None
    problem: str
    fatal: bool = True

    def __str__(self) -> str:
        return self.problem if self.file is None else f"{self.file}: {self.problem}"


def findings(settings: Settings, role: Role) -> list[Finding]:
    """Return everything that is wrong with the files of `settings`, and what is doubtful in them; else an empty list."""
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
    if isinstance(settings, BrokerSettings) and settings.broker.engine in ("mosquitto", "nats"):
        found += _of_engine(settings)
    if isinstance(settings, CloudSettings):
        found += _of_intake(settings.cloud)
    if isinstance(settings, HubSettings):
        found += _of_mode(settings.mode)
    return found


def _of_engine(settings: BrokerSettings) -> list[Finding]:
    """Return what an engine that exists lacks to be run."""
    own, found = settings.broker, list[Finding]()
    if own.members is None:
        found.append(
            Finding(None, f"broker.members: is needed by {own.engine}: name members.json, which is in the bundle")
        )
    else:
        try:
            listed = members.read(own.members)
        except SettingsError as exc:
            found.append(Finding(None, str(exc)))
        else:
            if listed.fleet != settings.identity.fleet:
                found.append(Finding(own.members, f"lists the members of another fleet, {listed.fleet}"))
    if own.program is not None and not os.access(own.program, os.X_OK):
        found.append(Finding(None, f"broker.program = {str(own.program)!r}: is no program that can be started"))
    return found + (_of_node(settings) if own.engine == "nats" else [])


def _of_node(settings: BrokerSettings) -> list[Finding]:
    node, found = settings.nats, list[Finding]()
    if len(settings.broker.listen) != 1:
        found.append(Finding(None, f"broker.listen = {settings.broker.listen}: nats-server serves MQTT at one address"))
    if node.cluster_listen is None:
        if node.replicas > 1:
            problem = "needs a cluster of as many nodes: set nats.cluster_listen and nats.routes"
            found.append(Finding(None, f"nats.replicas = {node.replicas}: {problem}"))
        return found
    paths = {"ca": node.cluster_ca, "cert": node.cluster_cert, "key": node.cluster_key}
    for name, path in paths.items():
        if path is None:
            found.append(
                Finding(None, f"nats.cluster_{name}: is needed by a node: name cluster-{name}.pem of the bundle")
            )
        else:
            _content(path, found)
    return found


def _of_intake(process: CloudProcess) -> list[Finding]:
    if process.intake != "jetstream" or process.nats:
        return []
    problem = (
        'cloud.nats: names no node of the NATS cluster, so that intake = "jetstream" can do --only operations alone'
    )
    return [Finding(None, problem, fatal=False)]


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
    if os.name != "nt" and stat.S_IMODE(file.stat().st_mode) & 0o077:
        found.append(Finding(file, f"can be read by others: chmod 600 {file}", fatal=False))
    try:
        return pki.load_key(content)
    except RefusedError as exc:
        found.append(Finding(file, exc.reason))
        return None


def _content(file: Path, found: list[Finding]) -> bytes | None:
    try:
        with file.open("rb") as stream:
            return stream.read(limits.SETTINGS_FILE_MAX_BYTES)
    except FileNotFoundError:
        found.append(Finding(file, "there is no such file: copy it from the bundle"))
    except OSError as exc:
        found.append(Finding(file, f"can't be read: {exc.strerror}"))
    return None
