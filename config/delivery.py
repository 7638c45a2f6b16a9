"""Writes bundles: a folder that is there whole or not at all, renewed in place, with what every member must trust.

Nothing of a running machine is touched: what a person or a process has put into the folder stays.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final

from config import bundles, files, hosts, members, pki, roster
from config.errors import RefusedError
from config.fleet import Fleet, Member
from config.principal import Role

_NOTHING: Final[Mapping[str, bytes]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Bundle:
    """What was made for one member."""

    role: Role
    name: str
    site: str
    folder: Path
    not_after: datetime

    @property
    def settings(self) -> Path:
        """Return the settings file of the bundle."""
        return self.folder / f"{self.role}.toml"


def written(fleet: Fleet, member: Member, leaf: pki.Leaf, more: Mapping[str, bytes] = _NOTHING) -> Bundle:
    """Write a whole bundle, with `more` files, beside its place, then move it there."""
    folder = fleet.bundle(member.role, member.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.new")
    fresh.mkdir()
    try:
        settings = {f"{member.role}.toml": _settings_toml(fleet, member).encode()}
        contents = _contents(fleet, member, leaf) | settings | dict(more)
        for name, content in contents.items():
            files.create(fresh / name, content, _mode(name))
        fresh.rename(folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    files.sync_folder(folder.parent)
    return Bundle(member.role, member.name, member.site, folder, member.newest.not_after)


def renewed(fleet: Fleet, member: Member, leaf: pki.Leaf, more: Mapping[str, bytes] = _NOTHING) -> Bundle:
    """Replace a bundle's key and certificate, and `more` files.

    The old pair is kept, unless a broken renewal left two that don't match.
    """
    folder = fleet.bundle(member.role, member.name)
    if not folder.exists():
        return written(fleet, member, leaf, more)
    key, cert = folder / "key.pem", folder / "cert.pem"
    if key.exists() and cert.exists() and _is_pair(key.read_bytes(), cert.read_bytes()):
        for file in (key, cert):
            files.replace(file.with_name(file.name + ".old"), file.read_bytes(), _mode(file.name))
    for name, content in (_contents(fleet, member, leaf) | dict(more)).items():
        files.replace(folder / name, content, _mode(name))
    settings = folder / f"{member.role}.toml"
    if not settings.exists():
        files.create(settings, _settings_toml(fleet, member).encode())
    return Bundle(member.role, member.name, member.site, folder, member.newest.not_after)


def spread(fleet: Fleet, name: str, content: bytes) -> None:
    """Replace a file of the authority, and in every bundle that has it."""
    files.replace(fleet.directory / "authority" / name, content)
    for file in (fleet.directory / "bundles").glob(f"*/*/{name}"):
        files.replace(file, content)


def spread_members(fleet: Fleet) -> None:
    """Bring up to date what the bundles of the cloud service and of all brokers say of the fleet's members."""
    contents = {
        "cloud": (roster.FILE, roster.encoded(fleet.index)),
        "broker": (members.FILE, members.encoded(fleet.index)),
    }
    for member in fleet.index.members:
        if member.role in contents and (folder := fleet.bundle(member.role, member.name)).is_dir():
            name, content = contents[member.role]
            files.replace(folder / name, content)


def _settings_toml(fleet: Fleet, member: Member) -> str:
    principal, endpoints = fleet.principal(member), fleet.index.endpoints
    match member.role:
        case "hub":
            return bundles.hub_toml(principal, endpoints, _known_brokers(fleet, member.site))
        case "broker":
            return bundles.broker_toml(principal, member.ports)
        case "connector":
            return bundles.connector_toml(principal, endpoints, member.ports[0])
        case "cloud":
            return bundles.cloud_toml(principal, member.ports[0])
        case "reader":
            return bundles.reader_toml(principal, endpoints)


def _known_brokers(fleet: Fleet, site: str) -> list[str]:
    """Return the addresses under which a site's brokers were provisioned: where SSDP can't reach, a hub tries them."""
    return [
        endpoint
        for member in fleet.index.members
        if member.role == "broker" and member.site == site and member.newest.revoked is None
        for endpoint in hosts.reachable(member.hosts, member.ports[0])
    ]


def _contents(fleet: Fleet, member: Member, leaf: pki.Leaf) -> dict[str, bytes]:
    contents = {
        "key.pem": pki.key_pem(leaf.key),
        "cert.pem": pki.certificate_pem(leaf.certificate),
        "ca.pem": fleet.ca_pem(),
    }
    if member.role == "broker":
        contents["crl.pem"] = fleet.crl_pem()
        contents[members.FILE] = members.encoded(fleet.index)
    if member.role == "cloud":
        contents[roster.FILE] = roster.encoded(fleet.index)
    return contents


def _is_pair(key: bytes, cert: bytes) -> bool:
    try:
        return pki.is_pair(pki.load_certificates(cert)[0], pki.load_key(key))
    except RefusedError:
        return False


def _mode(name: str) -> int:
    return files.PRIVATE if name.endswith("key.pem") else files.PUBLIC
