"""Hands out identities: a certificate each, in a bundle that is copied to its machine and run.

What a crash may not lose comes first: a certificate is in the index before it exists anywhere else, so it can always be
revoked. A bundle is there whole or not at all, and nothing is ever overwritten.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from config import bundles, cluster, delivery, files, hosts, limits, pki, tokens
from config import fleet as fleets
from config.delivery import Bundle
from config.errors import RefusedError, SettingsError
from config.fleet import Fleet, Issued, Member
from config.lock import locked
from config.principal import CLOUD_SITE, ROLES, Role

CLOUD: Final = "cloud"
"""The name of the cloud broker and of the cloud service."""
ADMIN_TOKEN: Final = "admin.token"  # noqa: S105 the name of a file


@dataclass(frozen=True, slots=True)
class Revoked:
    """A revocation as it counts: since when, and where the new list must be copied to."""

    member: Member
    time: datetime
    was_revoked: bool
    crl: Path
    brokers: list[Member]


def init(
    directory: Path,
    fleet: str,
    *,
    cloud_hosts: Sequence[str] = (),
    key: str = "ec-p256",
    passphrase: bytes | None = None,
) -> list[Bundle]:
    """Make a fleet directory: authority, cloud broker, cloud service and an admin token. Raises SettingsError.

    `cloud_hosts` are "host" or "host:port" of the cloud broker as clients see it; `directory` must be missing or empty.
    """
    fleets.label(fleet, "FLEET")
    kind = pki.key_kind(key)
    endpoints = hosts.endpoints(cloud_hosts)
    _refuse_used(directory)
    with _disk(directory):
        made = not directory.exists()
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory / fleets.LOCK):
            _refuse_used(directory)
            try:
                return _filled(directory, fleet, kind, endpoints, passphrase)
            except BaseException:
                _emptied(directory, with_folder=made)
                raise


def connector(
    directory: Path,
    name: str,
    site: str,
    *,
    hosts_of_broker: Sequence[str] = (),
    port: int = bundles.DEFAULT_PORT,
    passphrase: bytes | None = None,
) -> list[Bundle]:
    """Add a connector and the site broker beside it, which also proves `hosts_of_broker`."""
    names = [hosts.host(text) for text in hosts_of_broker]
    if not 1 <= port <= 65535:
        raise SettingsError("must be a port, 1 to 65535", key="--port", value=port)
    wanted = [_Wanted("broker", name, site, names, [port]), _Wanted("connector", name, site, [], [port])]
    return _add(directory, wanted, passphrase)


def broker(
    directory: Path, name: str, *, hosts_of_broker: Sequence[str] = (), passphrase: bytes | None = None
) -> Bundle:
    """Add a cloud broker: one more node of a cluster that serves as one.

    `hosts_of_broker` are "host" or "host:port", all with the same port; who is provisioned from now on knows them too.
    """
    endpoints = hosts.endpoints(hosts_of_broker)
    ports = hosts.ports(endpoints) or [bundles.DEFAULT_PORT]
    wanted = _Wanted("broker", name, CLOUD_SITE, hosts.names(endpoints), ports)
    return _add(directory, [wanted], passphrase, endpoints)[0]


def hub(directory: Path, name: str, site: str, *, passphrase: bytes | None = None) -> Bundle:
    """Add a sensor hub."""
    return hubs(directory, [name], site, passphrase=passphrase)[0]


def hubs(directory: Path, names: Sequence[str], site: str, *, passphrase: bytes | None = None) -> list[Bundle]:
    """Add sensor hubs of one site, in a fraction of the time that they take one by one. Is one refused, none is added."""
    return _add(directory, [_Wanted("hub", name, site) for name in names], passphrase)


def reader(directory: Path, name: str, site: str | None = None, *, passphrase: bytes | None = None) -> Bundle:
    """Add a subscriber, of one site or (None) of the whole fleet."""
    return _add(directory, [_Wanted("reader", name, CLOUD_SITE if site is None else site)], passphrase)[0]


def renew(directory: Path, who: str, *, reinstate: bool = False, passphrase: bytes | None = None) -> Bundle:
    """Give a member (ROLE/NAME) a new key and certificate; the old pair stays beside it as .old, and valid.

    A bundle that is no longer there is made anew. A revoked member must be reinstated on purpose.
    """
    with _disk(directory), fleets.opened(directory) as fleet:
        member = _member(fleet, who)
        if member.newest.revoked is not None and not reinstate:
            raise SettingsError(
                f"was revoked on {member.newest.revoked:%Y-%m-%d}: `renew --reinstate {who}` lets it in again, with a new key",
                key=who,
            )
        leaf, issued = _issued(fleet, member, passphrase)
        renewed = replace(member, certificates=[*member.certificates, issued])
        fleet.put(renewed)
        bundle = delivery.renewed(fleet, renewed, leaf, cluster.node_files(fleet, renewed, passphrase))
        delivery.spread_members(fleet)
        return bundle


def revoke(directory: Path, who: str, *, passphrase: bytes | None = None) -> Revoked:
    """Revoke every certificate of a member (ROLE/NAME), and write the new list to the authority and all brokers' bundles."""
    with _disk(directory), fleets.opened(directory) as fleet:
        member = _member(fleet, who)
        fleet.authority(passphrase)  # A wrong passphrase must not leave a half-done revocation.
        since = member.newest.revoked
        if since is None:
            now = pki.utc_now()
            marked = [issued if issued.revoked else replace(issued, revoked=now) for issued in member.certificates]
            member = replace(member, certificates=marked)
            fleet.put(member)
        delivery.spread_members(fleet)
        fleet.record(replace(fleet.index, crl_number=fleet.index.crl_number + 1))
        delivery.spread(fleet, "crl.pem", fleet.revocation_lists(passphrase, pki.utc_now()))
        brokers = [other for other in fleet.index.members if other.role == "broker" and other.newest.revoked is None]
        time = member.newest.revoked
        assert time is not None
        return Revoked(member, time, since is not None, directory / "authority" / "crl.pem", brokers)


def add_authority(directory: Path, *, key: str | None = None, passphrase: bytes | None = None) -> int:
    """Make one more authority, and return its number. Every bundle here trusts it at once, and it signs nothing yet.

    Its key has the passphrase of the others. Once all machines have the new ca.pem (and brokers crl.pem), call `sign_with`.
    """
    with _disk(directory), fleets.opened(directory) as fleet:
        fleet.authority(passphrase)  # A wrong passphrase must not become the new key's.
        number = max(fleet.authorities()) + 1
        while (directory / "authority" / str(number)).exists():
            number += 1  # Past one that a crash left unfinished.
        kind = fleet.index.key if key is None else pki.key_kind(key)
        secret = passphrase if fleet.authority_key_is_locked() else None
        fleets.make_authority(directory, fleet.name, number, kind, secret, pki.utc_now())
        fleet.record(replace(fleet.index, crl_number=fleet.index.crl_number + 1))
        delivery.spread(fleet, "crl.pem", fleet.revocation_lists(passphrase, pki.utc_now()))
        delivery.spread(fleet, "ca.pem", fleet.all_authorities())
        return number


def sign_with(directory: Path, number: int) -> None:
    """Let another of the fleet's authorities issue from now on."""
    with _disk(directory), fleets.opened(directory) as fleet:
        known = fleet.authorities()
        if number not in known:
            raise SettingsError(
                f"is no authority of this fleet: it has {', '.join(map(str, known))}", key="NUMBER", value=number
            )
        fleet.record(replace(fleet.index, signs=number))


def members(directory: Path) -> list[Member]:
    """Return everyone in the fleet, in the order of role and name."""
    found = fleets.read_index(directory).members
    return sorted(found, key=lambda member: (ROLES.index(member.role), member.name))


def needs_passphrase(directory: Path) -> bool:
    """Tell whether the authority's key is protected. Raises SettingsError if this is no fleet directory."""
    return Fleet(directory, fleets.read_index(directory)).authority_key_is_locked()


# --- Adding members ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Wanted:
    role: Role
    name: str
    site: str
    hosts: Sequence[str] = ()
    ports: Sequence[int] = ()


def _add(
    directory: Path, wanted: Sequence[_Wanted], passphrase: bytes | None, endpoints: Sequence[str] = ()
) -> list[Bundle]:
    for each in wanted:
        fleets.label(each.name, "NAME")
        if each.site != CLOUD_SITE or each.role not in ("reader", "broker"):
            _site(each.site)
    named = {(each.role, each.name) for each in wanted}
    if len(named) < len(wanted):
        raise SettingsError("names somebody twice", key="NAME", value=" ".join(each.name for each in wanted))
    with _disk(directory), fleets.opened(directory) as fleet:
        for each in wanted:
            _refuse_taken(fleet, each)
        if endpoints:
            known = list(dict.fromkeys([*fleet.index.endpoints, *endpoints]))
            if len(known) > limits.CLOUD_ENDPOINTS_MAX:
                raise SettingsError(
                    f"a fleet has at most {limits.CLOUD_ENDPOINTS_MAX} cloud hosts", key="--host", value=len(known)
                )
            fleet.record(replace(fleet.index, endpoints=known))
        added = _added(fleet, wanted, passphrase)
        delivery.spread_members(fleet)
        return added


def _added(fleet: Fleet, wanted: Sequence[_Wanted], passphrase: bytes | None) -> list[Bundle]:
    made: list[tuple[Member, pki.Leaf]] = []
    for each in wanted:
        blank = Member(each.role, each.name, each.site, list(each.hosts), list(each.ports), [])
        leaf, issued = _issued(fleet, blank, passphrase)
        made.append((replace(blank, certificates=[issued]), leaf))
    fleet.put(*(member for member, _ in made))
    return [
        delivery.written(fleet, member, leaf, cluster.node_files(fleet, member, passphrase)) for member, leaf in made
    ]


def _issued(fleet: Fleet, member: Member, passphrase: bytes | None) -> tuple[pki.Leaf, Issued]:
    now = pki.utc_now()
    try:
        leaf = pki.issue(fleet.authority(passphrase), fleet.principal(member), member.hosts, fleet.index.key, now)
    except RefusedError as exc:
        raise SettingsError(exc.reason, file=fleet.directory / "authority") from exc
    certificate = leaf.certificate
    return leaf, Issued(f"{certificate.serial_number:X}", fleet.index.signs, certificate.not_valid_after_utc)


def _site(site: str) -> None:
    fleets.label(site, "--site")
    if site == CLOUD:
        raise SettingsError(
            "is the cloud broker's own name in certificates: call this site something else", key="--site", value=site
        )


def _refuse_taken(fleet: Fleet, wanted: _Wanted) -> None:
    role, name = wanted.role, wanted.name
    if taken := fleet.member(role, name):
        way_out = f"`hubline provision renew {role}/{name}` gives it a new key and certificate"
        if taken.newest.revoked is not None:
            way_out = f"it is revoked, and `hubline provision renew --reinstate {role}/{name}` lets it in again"
        raise SettingsError(
            f"is provisioned already (site {taken.site}): {way_out}; another machine needs another name",
            key=f"{role}/{name}",
        )
    folder = fleet.bundle(role, name)
    if folder.exists():
        raise SettingsError("is there, but not in the index: move it away first", file=folder)
    for other in fleet.index.members:
        if role != "broker" and other.role != "broker" and other.name == name:
            raise SettingsError(
                f"{other} has this name, and all clients of a fleet share one set of names (MQTT client ids): "
                f'choose another, for example "{name[: 62 - len(role)]}-{role}"',
                key=f"{role}/{name}",
            )


def _member(fleet: Fleet, who: str) -> Member:
    role, slash, name = who.partition("/")
    if not slash or role not in ROLES or not name:
        raise SettingsError(
            f"must be ROLE/NAME, for example hub/pc-17; roles: {', '.join(ROLES)}", key="ROLE/NAME", value=who
        )
    member = fleet.member(role, name)
    if member is None:
        raise SettingsError("is not in this fleet: `hubline provision list` shows who is", key=who)
    return member


# --- A new fleet -------------------------------------------------------------------------------------------------------


def _filled(
    directory: Path, name: str, kind: pki.KeyKind, endpoints: list[str], passphrase: bytes | None
) -> list[Bundle]:
    fleet = fleets.make(directory, name, kind, endpoints, passphrase)
    ports = hosts.ports(endpoints) or [bundles.DEFAULT_PORT]
    made = _added(fleet, [_Wanted("broker", CLOUD, CLOUD_SITE, hosts.names(endpoints), ports)], passphrase)
    made += _added(fleet, [_Wanted("cloud", CLOUD, CLOUD_SITE, (), ports)], passphrase)
    delivery.spread_members(fleet)  # The broker's bundle was there before the cloud service.
    token = tokens.new_token()
    kept = tokens.Tokens([tokens.Token("admin", tokens.digest(token), pki.utc_now())])
    files.create(fleet.bundle("cloud", CLOUD) / "tokens.json", tokens.encoded(kept), files.PRIVATE)
    files.create(directory / ADMIN_TOKEN, token.encode() + b"\n", files.PRIVATE)
    return made


def _refuse_used(directory: Path) -> None:
    if (directory / fleets.INDEX).exists():
        raise SettingsError("is a fleet directory already: add to it, or choose another", file=directory)
    try:
        used = directory.exists() and any(entry.name != fleets.LOCK for entry in directory.iterdir())
    except OSError as exc:
        raise SettingsError(f"can't be used for a fleet: {exc.strerror}", file=directory) from exc
    if used:
        raise SettingsError("is not empty: name a new or empty directory", file=directory)


def _emptied(directory: Path, *, with_folder: bool) -> None:
    """Take back a beginning that failed; the directory was empty before."""
    for entry in directory.iterdir():
        if entry.name != fleets.LOCK:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if with_folder:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _disk(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise SettingsError(f"can't be written: {exc.strerror}", file=exc.filename or directory) from exc
