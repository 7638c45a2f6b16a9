"""Makes what an engine runs by, out of the settings, the certificates and the list of members, and writes it.

What does not fit is told to the person who can correct it, and never reaches an engine. What a change needs, to come into
force, is decided here too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from broker.engines.plan import Engine, Plan
from broker.engines.registry import engine_named
from broker.tls import ServerContext
from broker.topics import is_label
from config import files, limits
from config import members as member_lists
from config.errors import SettingsError
from config.members import Members
from config.principal import CLOUD_SITE
from config.settings import BrokerSettings

FOLDER: Final = "engine"
"""Where in `broker.data_dir` an engine's files are."""
MORE_PLACES: Final = ("/usr/sbin", "/usr/local/sbin")
"""Where systems put servers, and the path of an ordinary user doesn't lead."""

NEEDED: Final[Mapping[str, tuple[str, re.Pattern[bytes], tuple[int, ...]]]] = {
    "mosquitto": ("-h", re.compile(rb"mosquitto version (\d+(?:\.\d+)+)"), (2, 0, 11)),
    "nats-server": ("--version", re.compile(rb"nats-server: v(\d+(?:\.\d+)+)"), (2, 12)),
}
"""By program: what makes it say its version, how it says it, and the oldest that our configuration fits."""

Stamp: TypeAlias = tuple[int, int, int] | None
Change: TypeAlias = Literal["nothing", "reload", "restart"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """An engine's plan, and all that it was made from, at one time.

    `dangling` are the certificates that are revoked while their holder may still be a member.
    """

    plan: Plan
    program: Path
    members: Members
    dangling: frozenset[tuple[bytes, int]]
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
            dangling = dangling_among(context.revoked, members)
            return Prepared(plan, find_program(settings, plan), members, dangling, stamps)
        watched |= plan.watched


def complaints(settings: BrokerSettings) -> list[SettingsError]:
    """Return why `prepare` would refuse the engine of these settings: all that can be told at once, none twice."""
    found: dict[str, SettingsError] = {}
    members = Members(settings.identity.fleet, [])

    @contextmanager
    def noting() -> Iterator[None]:
        try:
            yield
        except SettingsError as exc:
            found.setdefault(str(exc), exc)

    with noting():
        ServerContext(settings.identity, settings.broker.crl)
    with noting():
        members = read_members(settings)
    with noting():
        engine, folder = engine_named(settings.broker.engine), settings.broker.data_dir / FOLDER
        plan = engine.plan(settings, members, folder)
        refuse_old(find_program(settings, plan), plan, settings)
    return list(found.values())


def outlived(former: Prepared, prepared: Prepared) -> bool:
    """Tell whether a session may have outlived its certificate since the former plan, and have rights.

    A certificate that was revoked while its holder stays a member (it has a newer one), or whose holder has become one again,
    may have a session open, and some engines close it by no reload. Who is no member has lost all rights by the reload.
    """
    return prepared.plan.restart_on_revocation and not prepared.dangling <= former.dangling


def dangling_among(revoked: Iterable[tuple[bytes, int]], members: Members) -> frozenset[tuple[bytes, int]]:
    """Return those of the certificates whose holder may be a member. What the list doesn't know is one of them: it may be old."""
    outsiders = frozenset(members.outsiders)
    return frozenset((issuer, serial) for issuer, serial in revoked if f"{serial:X}" not in outsiders)


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
    found = shutil.which(plan.program, path=os.pathsep.join(_places()))
    if found is None:
        problem = f"the program {plan.program} is not here: install {plan.package}, or name it in broker.program"
        raise SettingsError(problem, key="broker.engine", value=settings.broker.engine)
    return Path(found)


def _places() -> list[str]:
    """Return where to look for a program. What was installed with us, in an environment of our own, was chosen for us."""
    own, others = str(Path(sys.executable).parent), [os.environ.get("PATH", os.defpath), *MORE_PLACES]
    return [own, *others] if sys.prefix != sys.base_prefix else [*others, own]


def refuse_old(program: Path, plan: Plan, settings: BrokerSettings) -> None:
    """Raise SettingsError if the program says that it is older than what our configuration fits; it may take a moment to say it.

    For a start only: what runs must be told who is revoked, whatever has been installed meanwhile.
    """
    if plan.program not in NEEDED:
        return
    *_, oldest = NEEDED[plan.program]
    version = version_of(program, plan.program)
    if version is None or version >= oldest:
        return
    is_old = f"{program} is of version {_dotted(version)}, and {_dotted(oldest)} or newer is needed"
    problem = f"{is_old}: install {plan.package}, or name another program in broker.program"
    if settings.broker.program is not None:
        raise SettingsError(problem, key="broker.program")
    raise SettingsError(problem, key="broker.engine", value=settings.broker.engine)


def version_of(program: Path, kind: str) -> tuple[int, ...] | None:
    """Ask a program for its version; None if it doesn't say it, or not in time."""
    option, words, _ = NEEDED[kind]
    try:
        asked = subprocess.run(
            (program, option),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limits.ENGINE_VERSION_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    said = words.search(asked.stdout)
    return None if said is None else tuple(map(int, said[1].split(b".")))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def write_files(plan: Plan, folder: Path) -> None:
    """Write a plan's files where they differ, each in one step; keys that it has no use for any more go. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for key in folder.glob("*key.pem"):
        if key.name not in plan.files:
            key.unlink()
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
