"""The fleet directory: its authorities, and an index of every certificate they have issued. Files are replaced whole.

fleet.json             the index: who there is, with which certificates
authority/<n>/         cert.pem and key.pem of the fleet's n-th authority
authority/ca.pem       all authorities: what every bundle trusts
authority/crl.pem      one revocation list of each authority: what every broker refuses
bundles/<role>/<name>/ what is copied to a machine
admin.token            the console's first token
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from config import files, limits, pki
from config.errors import RefusedError, SettingsError
from config.lock import locked
from config.principal import Principal, Role

INDEX: Final = "fleet.json"
LOCK: Final = ".lock"
_LABEL: Final = re.compile("[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class Issued(Struct, frozen=True, forbid_unknown_fields=True):
    """One certificate of a member. `serial` is in hexadecimal, as `openssl x509 -serial` shows it."""

    serial: Annotated[str, Meta(pattern=r"^[0-9A-F]+\Z")]
    authority: int
    not_after: datetime
    revoked: datetime | None = None


class Member(Struct, frozen=True, forbid_unknown_fields=True):
    """One identity of the fleet; its newest certificate is the last. `hosts` and `ports` are a broker's."""

    role: Role
    name: str
    site: str
    hosts: list[str]
    ports: list[int]
    certificates: Annotated[list[Issued], Meta(min_length=1)]

    @property
    def newest(self) -> Issued:
        """Return the certificate that counts."""
        return self.certificates[-1]

    def __str__(self) -> str:
        return f"{self.role}/{self.name}"


class Index(Struct, frozen=True, forbid_unknown_fields=True):
    """What fleet.json holds. `signs` is the number of the authority that issues; `endpoints` are the cloud broker's."""

    format: Literal[1]
    fleet: str
    key: pki.KeyKind
    signs: int
    crl_number: int
    endpoints: list[str]
    members: list[Member]


@dataclass(slots=True)
class Fleet:
    """A fleet directory that this process has locked. Change `index` by `record`, which makes it durable."""

    directory: Path
    index: Index

    @property
    def name(self) -> str:
        """Return the fleet's name."""
        return self.index.fleet

    def record(self, index: Index) -> None:
        """Make a new index durable."""
        files.replace(self.directory / INDEX, _encoded(index), files.PRIVATE)
        self.index = index

    def member(self, role: Role, name: str) -> Member | None:
        """Return the member of that role and name, if there is one."""
        return next((member for member in self.index.members if (member.role, member.name) == (role, name)), None)

    def put(self, *members: Member) -> None:
        """Record members, new or changed, at once."""
        changed = {(member.role, member.name): member for member in members}
        kept = [changed.pop((member.role, member.name), member) for member in self.index.members]
        self.record(msgspec.structs.replace(self.index, members=[*kept, *changed.values()]))

    def bundle(self, role: Role, name: str) -> Path:
        """Return the folder of a member's bundle."""
        return self.directory / "bundles" / role / name

    def principal(self, member: Member) -> Principal:
        """Return who a member is."""
        return Principal(self.name, member.site, member.role, member.name)

    def ca_pem(self) -> bytes:
        """Return ca.pem: what every bundle trusts."""
        return self._read("authority/ca.pem")

    def all_authorities(self) -> bytes:
        """Return the certificates of all authorities from their own folders: what ca.pem should hold."""
        return b"".join(self._read(f"authority/{number}/cert.pem") for number in self.authorities())

    def crl_pem(self) -> bytes:
        """Return crl.pem: what every broker refuses."""
        return self._read("authority/crl.pem")

    def authorities(self) -> list[int]:
        """Return the numbers of all authorities, oldest first; one without a certificate was never finished."""
        folders = [file.parent for file in (self.directory / "authority").glob("*/cert.pem")]
        return sorted(int(folder.name) for folder in folders if folder.name.isdigit())

    def authority_key_is_locked(self) -> bool:
        """Tell whether signing needs a passphrase."""
        return pki.is_locked(self._read(f"authority/{self.index.signs}/key.pem"))

    def authority(self, passphrase: bytes | None, number: int | None = None) -> pki.Authority:
        """Return an authority, ready to sign; by default the one that issues. Raises SettingsError."""
        folder = f"authority/{self.index.signs if number is None else number}"
        try:
            key = pki.load_key(self._read(f"{folder}/key.pem"), passphrase)
        except RefusedError as exc:
            raise SettingsError(exc.reason, file=self.directory / folder / "key.pem") from exc
        try:
            certificate, *_ = pki.load_certificates(self._read(f"{folder}/cert.pem"))
        except RefusedError as exc:
            raise SettingsError(exc.reason, file=self.directory / folder / "cert.pem") from exc
        return pki.Authority(certificate, key)

    def revocation_lists(self, passphrase: bytes | None, now: datetime) -> bytes:
        """Return freshly signed lists of everything that the index calls revoked: one of each authority."""
        lists = []
        for number in self.authorities():
            revoked = [
                pki.Revocation(int(issued.serial, 16), issued.revoked)
                for member in self.index.members
                for issued in member.certificates
                if issued.revoked is not None and issued.authority == number
            ]
            lists.append(pki.revocation_list(self.authority(passphrase, number), revoked, self.index.crl_number, now))
        return b"".join(lists)

    def _read(self, name: str) -> bytes:
        try:
            return (self.directory / name).read_bytes()
        except OSError as exc:
            raise SettingsError(f"can't be read: {exc.strerror}", file=self.directory / name) from exc


@contextmanager
def opened(directory: Path) -> Iterator[Fleet]:
    """Lock a fleet directory and read its index. Raises SettingsError if it is none."""
    read_index(directory)  # So that no lock is left in a directory that is no fleet's.
    try:
        with locked(directory / LOCK):
            yield Fleet(directory, read_index(directory))
    except OSError as exc:
        raise SettingsError(f"can't be written: {exc.strerror}", file=exc.filename or directory) from exc


def read_index(directory: Path) -> Index:
    """Return the index of a fleet directory, without a lock. Raises SettingsError if it is none."""
    try:
        content = (directory / INDEX).read_bytes()
    except FileNotFoundError as exc:
        there = (
            "is not a fleet directory (it has no fleet.json)" if directory.is_dir() else "there is no such directory"
        )
        raise SettingsError(
            f"{there}: `hubline provision init FLEET --dir {directory}` makes one", file=directory
        ) from exc
    except OSError as exc:
        raise SettingsError(f"can't be read: {exc.strerror}", file=directory / INDEX) from exc
    try:
        return msgspec.json.decode(content, type=Index)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise SettingsError(f"is damaged ({exc}): bring it back from your backup", file=directory / INDEX) from exc


def make(directory: Path, fleet: str, kind: pki.KeyKind, endpoints: list[str], passphrase: bytes | None) -> Fleet:
    """Make the first authority and the index in an empty folder that the caller has locked."""
    now = pki.utc_now()
    authority = make_authority(directory, fleet, 1, kind, passphrase, now)
    home = directory / "authority"
    files.create(home / "ca.pem", pki.certificate_pem(authority.certificate))
    files.create(home / "crl.pem", pki.revocation_list(authority, (), 1, now))
    index = Index(format=1, fleet=fleet, key=kind, signs=1, crl_number=1, endpoints=endpoints, members=[])
    files.create(directory / INDEX, _encoded(index), files.PRIVATE)
    return Fleet(directory, index)


def make_authority(
    directory: Path, fleet: str, number: int, kind: pki.KeyKind, passphrase: bytes | None, now: datetime
) -> pki.Authority:
    """Make an authority in its own folder; its key is there before anything that it has signed."""
    authority = pki.create_authority(fleet, number, kind, now)
    home = directory / "authority" / str(number)
    home.parent.mkdir(mode=0o700, exist_ok=True)
    home.mkdir(mode=0o700)
    files.create(home / "key.pem", pki.key_pem(authority.key, passphrase), files.PRIVATE)
    files.create(home / "cert.pem", pki.certificate_pem(authority.certificate))
    return authority


def label(text: str, what: str) -> str:
    """Return `text` if it may be the name of a fleet, a site or a member. Raises SettingsError."""
    if _LABEL.fullmatch(text):
        return text
    plain = re.sub("[^a-z0-9-]+", "-", text.lower()).strip("-")[:63].strip("-")
    hint = f', for example "{plain}"' if plain else ""
    shown = text if len(text) <= limits.SHOWN_VALUE_MAX else text[: limits.SHOWN_VALUE_MAX] + " …"
    raise SettingsError(f"must be 1 to 63 of a-z, 0-9 and inner hyphens{hint}", key=what, value=shown)


def _encoded(index: Index) -> bytes:
    return msgspec.json.format(msgspec.json.encode(index), indent=2) + b"\n"
