"""The commands `hubline provision …`: make a fleet, hand out bundles, renew and revoke."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Final, TypeVar

import click
import orjson

from config import limits, pki
from config import provision as provisions
from config.bundles import DEFAULT_PORT
from config.delivery import Bundle
from config.errors import SettingsError
from config.fleet import Issued
from config.principal import CLOUD_SITE

PASSPHRASE: Final = "HUBLINE_PASSPHRASE"  # noqa: S105 the name of a variable
F = TypeVar("F", bound=Callable[..., None])

_DIR = click.option(
    "--dir",
    "directory",
    required=True,
    type=click.Path(path_type=Path),
    help="The fleet directory; keep it safe, it can sign.",
)
_PASSPHRASE_FILE = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    help=f"Holds the passphrase of the authority's key in its first line (or set {PASSPHRASE}).",
)
_SITE = click.option("--site", required=True, help="The site that it belongs to.")


def _member_options(command: F) -> F:
    return _DIR(_PASSPHRASE_FILE(command))


@click.group()
def provision() -> None:
    """Make a fleet, and the bundles for its machines.

    A bundle is a folder with settings, certificate and key: copy it to its machine and run it there.
    """


@provision.command()
@click.argument("fleet")
@click.option(
    "--cloud-host", "cloud_hosts", multiple=True, metavar="HOST[:PORT]", help="The cloud broker's name or address."
)
@click.option(
    "--key", default="ec-p256", show_default=True, metavar="KIND", help=f"Kind of all keys: {', '.join(pki.KEY_KINDS)}."
)
@click.option("--ask-passphrase", is_flag=True, help="Protect the authority's key by a passphrase that is asked for.")
@_member_options
def init(
    fleet: str,
    cloud_hosts: tuple[str, ...],
    key: str,
    ask_passphrase: bool,
    directory: Path,
    passphrase_file: Path | None,
) -> None:
    """Make a fleet.

    That is: its authority, the bundles of cloud broker and cloud service, and an admin token.
    """
    passphrase = _given_passphrase(passphrase_file)
    if passphrase is None and ask_passphrase:
        passphrase = _bytes(click.prompt("New passphrase", hide_input=True, confirmation_prompt=True, err=True))
    made = provisions.init(directory, fleet, cloud_hosts=cloud_hosts, key=key, passphrase=passphrase)
    protection = "protected by your passphrase" if passphrase else "not protected by a passphrase: guard this directory"
    click.echo(f"Fleet {fleet} made in {directory}. The authority's key is {protection}.")
    _tell(made)
    click.echo(f"The console's admin token is in {directory / provisions.ADMIN_TOKEN}.")
    if not cloud_hosts:
        click.echo(
            "No --cloud-host was given: hubs and connectors get no cloud address, set cloud.endpoints in their files."
        )
    click.echo(f"Next, a site: hubline provision connector NAME --site SITE --dir {directory}")


@provision.command()
@click.argument("name")
@_SITE
@click.option(
    "--host", "hosts", multiple=True, help="A name or address of the site broker, for its certificate and the hubs."
)
@click.option("--port", default=DEFAULT_PORT, show_default=True, help="The site broker's port.")
@_member_options
def connector(
    name: str, site: str, hosts: tuple[str, ...], port: int, directory: Path, passphrase_file: Path | None
) -> None:
    """Add a connector and its site broker."""
    passphrase = _passphrase(directory, passphrase_file)
    _tell(provisions.connector(directory, name, site, hosts_of_broker=hosts, port=port, passphrase=passphrase))


@provision.command()
@click.argument("name")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Its name or address, for its certificate and clients.",
)
@_member_options
def broker(name: str, hosts: tuple[str, ...], directory: Path, passphrase_file: Path | None) -> None:
    """Add a cloud broker, for a cluster.

    All of them serve one name, and each carries a certificate for the others.
    """
    passphrase = _passphrase(directory, passphrase_file)
    _tell([provisions.broker(directory, name, hosts_of_broker=hosts, passphrase=passphrase)])
    if hosts:
        click.echo("Hubs and connectors provisioned from now on know it; add it to cloud.endpoints of the others.")


@provision.command()
@click.argument("name")
@_SITE
@_member_options
def hub(name: str, site: str, directory: Path, passphrase_file: Path | None) -> None:
    """Add a sensor hub."""
    _tell([provisions.hub(directory, name, site, passphrase=_passphrase(directory, passphrase_file))])
    if not any(member.role == "connector" and member.site == site for member in provisions.members(directory)):
        click.echo(
            f"Site {site} has no connector yet: hubline provision connector NAME --site {site} --dir {directory}"
        )


@provision.command()
@click.argument("name")
@click.option("--site", help="Read this site only; else the whole fleet.")
@_member_options
def reader(name: str, site: str | None, directory: Path, passphrase_file: Path | None) -> None:
    """Add a subscriber.

    It may read everything of the fleet or of one site, and publish nothing.
    """
    _tell([provisions.reader(directory, name, site, passphrase=_passphrase(directory, passphrase_file))])


@provision.command()
@click.argument("who", metavar="ROLE/NAME")
@click.option("--reinstate", is_flag=True, help="Let a revoked member in again.")
@_member_options
def renew(who: str, reinstate: bool, directory: Path, passphrase_file: Path | None) -> None:
    """Give a member a new certificate.

    With a new key. The old pair is kept beside it as .old, and stays valid until it expires.
    """
    made = provisions.renew(directory, who, reinstate=reinstate, passphrase=_passphrase(directory, passphrase_file))
    _tell([made])
    click.echo("Copy it over the machine's old bundle: key.pem and cert.pem belong together.")


@provision.command()
@click.argument("who", metavar="ROLE/NAME")
@_member_options
def revoke(who: str, directory: Path, passphrase_file: Path | None) -> None:
    """Shut a member out.

    Revokes all its certificates, and writes the list for the brokers.
    """
    done = provisions.revoke(directory, who, passphrase=_passphrase(directory, passphrase_file))
    again = " already" if done.was_revoked else ""
    click.echo(f"{who} is{again} revoked since {done.time:%Y-%m-%d %H:%M} UTC.")
    click.echo(f"It is shut out where the new list is: copy {done.crl} over crl.pem of")
    for broker in done.brokers:
        place = "the cloud" if broker.site == CLOUD_SITE else f"site {broker.site}"
        click.echo(f"  {broker}  ({place})")
    if done.member.role == "connector":
        click.echo(
            f"Its broker has a certificate of its own: hubline provision revoke broker/{done.member.name} --dir {directory}"
        )
    if done.member.role == "broker":
        click.echo("Hubs and connectors keep no revocation list: take this broker off the network too.")


@provision.group()
def authority() -> None:
    """Change the fleet's authority, without a gap.

    Add one; copy ca.pem to all machines and crl.pem to the brokers; use it; renew the members one by one.
    """


@authority.command()
@click.option("--key", metavar="KIND", help="Kind of its key; else that of the fleet.")
@_member_options
def add(key: str | None, directory: Path, passphrase_file: Path | None) -> None:
    """Make one more authority, which signs nothing yet."""
    number = provisions.add_authority(directory, key=key, passphrase=_passphrase(directory, passphrase_file))
    home = directory / "authority"
    click.echo(f"Authority {number} made; every bundle in {directory} trusts it, and it signs nothing yet.")
    click.echo(f"Next: copy {home / 'ca.pem'} to every machine and {home / 'crl.pem'} to every broker, then")
    click.echo(f"  hubline provision authority use {number} --dir {directory}")


@authority.command()
@click.argument("number", type=int)
@_DIR
def use(number: int, directory: Path) -> None:
    """Let the authority NUMBER issue from now on."""
    provisions.sign_with(directory, number)
    click.echo(
        f"Authority {number} issues from now on. Renew the members: hubline provision renew ROLE/NAME --dir {directory}"
    )


@provision.command("list")
@_DIR
@click.option("--json", "as_json", is_flag=True, help="One JSON array, for scripts.")
def list_(directory: Path, as_json: bool) -> None:
    """Show who is in the fleet."""
    members = provisions.members(directory)
    if as_json:
        rows = [
            {
                "role": member.role,
                "name": member.name,
                "site": member.site,
                "serial": member.newest.serial,
                "not_after": member.newest.not_after.isoformat(),
                "revoked": member.newest.revoked.isoformat() if member.newest.revoked else None,
            }
            for member in members
        ]
        click.echo(orjson.dumps(rows, option=orjson.OPT_INDENT_2))
        return
    table = [("MEMBER", "SITE", "UNTIL", "STATE")]
    table += [
        (str(member), member.site, f"{member.newest.not_after:%Y-%m-%d}", _state(member.newest)) for member in members
    ]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    for row in table:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]))


def _state(issued: Issued) -> str:
    left = issued.not_after - pki.utc_now()
    if issued.revoked is not None:
        return f"revoked {issued.revoked:%Y-%m-%d}"
    if left <= timedelta():
        return "expired"
    return f"expires in {left.days} days" if left < timedelta(days=limits.LEAF_EXPIRES_SOON_DAYS) else "ok"


def _tell(made: list[Bundle]) -> None:
    for bundle in made:
        place = "" if bundle.site == CLOUD_SITE else f", site {bundle.site}"
        click.echo(f"{bundle.role}/{bundle.name}{place}: {bundle.folder}  (until {bundle.not_after:%Y-%m-%d})")
        start = "tail" if bundle.role == "reader" else f"{bundle.role} run"
        click.echo(f"  copy it to its machine, and there: hubline {start} -c {bundle.settings.name}")


def _passphrase(directory: Path, file: Path | None) -> bytes | None:
    """Return the passphrase if the authority needs one: from the file, the environment, or a question."""
    if not provisions.needs_passphrase(directory):
        return None
    given = _given_passphrase(file)
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise SettingsError(f"needs a passphrase: give --passphrase-file FILE, or set {PASSPHRASE}", file=directory)
    return _bytes(click.prompt("Passphrase of the authority", hide_input=True, err=True))


def _given_passphrase(file: Path | None) -> bytes | None:
    if file is not None:
        try:
            with file.open("rb") as stream:
                first = stream.readline(limits.PASSPHRASE_MAX_BYTES + 3).rstrip(b"\r\n")
        except OSError as exc:
            raise SettingsError(f"can't be read: {exc.strerror}", file=file) from exc
        if not first:
            raise SettingsError("holds no passphrase in its first line", file=file)
        return first
    given = os.environ.get(PASSPHRASE)
    return _bytes(given) if given else None


def _bytes(passphrase: object) -> bytes:
    return str(passphrase).encode("utf-8", "surrogateescape")
