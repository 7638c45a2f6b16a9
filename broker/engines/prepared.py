"""Makes what an engine runs by, out of the settings, the certificates and the list of members, and writes it.

What does not fit is told to the person who can correct it, and never reaches an engine. What a change needs, to come into
force, is decided here too.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from broker.engines.plan import Engine, Plan
from broker.tls import ServerContext
from broker.topics import is_label
from config import files
from config import members as member_lists
from config.errors import SettingsError
from config.members import Members
from config.principal import CLOUD_SITE
from config.settings import BrokerSettings

FOLDER: Final = "engine"
"""Where in `broker.data_dir` an engine's files are."""
MORE_PLACES: Final = ("/usr/sbin", "/usr/local/sbin")
"""Where systems put servers, and the path of an ordinary user doesn't lead."""

Stamp: TypeAlias = tuple[int, int, int] | None
Change: TypeAlias = Literal["nothing", "reload", "restart"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """An engine's plan, and all that it was made from, at one time."""

    plan: Plan
    program: Path
    members: Members
    revoked: frozenset[tuple[bytes, int]]
    stamps: Mapping[Path, Stamp]


def prepare(settings: BrokerSettings, engine: Engine, folder: Path) -> Prepared:
    """Make a plan anew. Raises SettingsError, also for certificates that don't work: no engine shall meet them."""
    broker, identity = settings.broker, settings.identity
    always = (identity.ca, identity.cert, identity.key, broker.crl, broker.members)
    watched = {path for path in always if path is not None}
    while True:
        stamps = stamps_of(watched)
        context = ServerContext(identity, broker.crl)
        members = read_members(settings)
        plan = engine.plan(settings, members, folder)
        if plan.watched <= watched:
            return Prepared(plan, find_program(settings, plan), members, context.revoked, stamps)
        watched |= plan.watched


def outlived(former: Prepared, prepared: Prepared) -> bool:
    """Tell whether a session may have outlived its certificate since the former plan.

    A certificate that was revoked while its holder stays a member (it has a newer one) may have a session open, and some
    engines close it by no reload. Who is no member any more has lost all rights by the reload.
    """
    gone = set(former.members.members) - set(prepared.members.members)
    return prepared.plan.restart_on_revocation and len(prepared.revoked - former.revoked) > len(gone)


def change_between(former: Prepared, prepared: Prepared) -> Change:
    """Return what an engine that runs by the former plan needs, to run by the new one."""
    old, new = former.plan, prepared.plan
    stamps = {path.name for path, stamp in prepared.stamps.items() if former.stamps.get(path) != stamp}
    changed = {name for name in {*old.files, *new.files} if old.files.get(name) != new.files.get(name)}
    how = (former.program, old.arguments, old.environ) != (prepared.program, new.arguments, new.environ)
    if how or (changed | stamps) & new.restart_on:
        return "restart"
    if changed or (stamps - {member_lists.FILE} and not new.self_contained):
        return "reload" if new.reload_signal is not None else "restart"
    return "nothing"


def read_members(settings: BrokerSettings) -> Members:
    """Return whom the engine has to know. Raises SettingsError."""
    broker = settings.broker
    if broker.members is None:
        problem = (
            f"is needed by the engine {broker.engine}: name members.json, which `hubline provision` keeps in the bundle"
        )
        raise SettingsError(problem, key="broker.members")
    members = member_lists.read(broker.members)
    for each in members.members:
        if not is_label(each.name) or not (each.site == CLOUD_SITE or is_label(each.site)):
            problem = f"has a member {each.name!r} of site {each.site!r}: names are of a-z, 0-9 and inner hyphens"
            raise SettingsError(problem, file=broker.members)
    if members.fleet != settings.identity.fleet:
        raise SettingsError(f"lists the members of another fleet, {members.fleet}", file=broker.members)
    return members


def find_program(settings: BrokerSettings, plan: Plan) -> Path:
    """Return the engine's program. Raises SettingsError, with what to install, if it is not here."""
    named = settings.broker.program
    if named is not None:
        if not named.is_file() or not os.access(named, os.X_OK):
            raise SettingsError("is no program that can be started", key="broker.program", value=str(named))
        return named
    places = (os.environ.get("PATH", os.defpath), *MORE_PLACES, str(Path(sys.executable).parent))
    found = shutil.which(plan.program, path=os.pathsep.join(places))
    if found is None:
        problem = f"the program {plan.program} is not here: install {plan.package}, or name it in broker.program"
        raise SettingsError(problem, key="broker.engine", value=settings.broker.engine)
    return Path(found)


def write_files(plan: Plan, folder: Path) -> None:
    """Write a plan's files where they differ, each in one step. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in plan.files.items():
        file = folder / name
        mode = files.PRIVATE if name in plan.private else files.PUBLIC
        with suppress(OSError):
            if file.read_bytes() == content and file.stat().st_mode & 0o777 == mode:
                continue
        files.replace(file, content, mode)


def stamps_of(paths: Iterable[Path]) -> dict[Path, Stamp]:
    """Return by what to see that a file has changed, for each."""
    found: dict[Path, Stamp] = {}
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            found[path] = None
        else:
            found[path] = status.st_mtime_ns, status.st_size, status.st_ino
    return found
