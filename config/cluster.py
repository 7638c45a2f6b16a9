"""What the nodes of a cloud broker's cluster know each other by: certificates of an authority of their own.

A node is server and client of the others, which no certificate of the fleet may be; so the fleet's authorities sign none of
these, and nobody but the nodes trusts theirs. Nodes keep no revocation list: to shut one out, move `authority/cluster` away
and renew all the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from config import files, pki
from config.errors import RefusedError, SettingsError
from config.fleet import Fleet, Member
from config.principal import CLOUD_SITE

FOLDER: Final = "cluster"
"""In the folder of the authorities, where the fleet's own have numbers."""
CA: Final = "cluster-ca.pem"
CERT: Final = "cluster-cert.pem"
KEY: Final = "cluster-key.pem"


def node_files(fleet: Fleet, member: Member, passphrase: bytes | None) -> dict[str, bytes]:
    """Return a fresh certificate for a cloud broker, with its key and authority; nothing for anybody else.

    The authority is made with the first; its key has the passphrase of the fleet's. Raises SettingsError.
    """
    if member.role != "broker" or member.site != CLOUD_SITE:
        return {}
    authority = _authority(fleet, passphrase)
    try:
        leaf = pki.issue(authority, fleet.principal(member), member.hosts, fleet.index.key, pki.utc_now(), is_node=True)
    except RefusedError as exc:
        raise SettingsError(exc.reason, file=_home(fleet)) from exc
    return {
        CA: pki.certificate_pem(authority.certificate),
        CERT: pki.certificate_pem(leaf.certificate),
        KEY: pki.key_pem(leaf.key),
    }


def _authority(fleet: Fleet, passphrase: bytes | None) -> pki.Authority:
    home = _home(fleet)
    try:
        if not (home / "cert.pem").exists():
            secret = passphrase if fleet.authority_key_is_locked() else None
            return _made(home, fleet.name, fleet.index.key, secret)
        key = pki.load_key((home / "key.pem").read_bytes(), passphrase)
        return pki.Authority(pki.load_certificates((home / "cert.pem").read_bytes())[0], key)
    except RefusedError as exc:
        raise SettingsError(exc.reason, file=home / "key.pem") from exc


def _made(home: Path, fleet: str, kind: pki.KeyKind, passphrase: bytes | None) -> pki.Authority:
    authority = pki.create_authority(fleet, 1, kind, pki.utc_now(), title="cluster authority")
    home.mkdir(mode=0o700, exist_ok=True)
    files.replace(home / "key.pem", pki.key_pem(authority.key, passphrase), files.PRIVATE)
    files.create(home / "cert.pem", pki.certificate_pem(authority.certificate))
    return authority


def _home(fleet: Fleet) -> Path:
    return fleet.directory / "authority" / FOLDER
