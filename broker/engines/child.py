"""Runs an engine as our child: writes its files, starts it, passes its log on, renews it when anything changes, ends it.

It never outlives us, and while we live it is never gone for long. Nobody whose certificate is revoked keeps rights.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final, Literal, TypeAlias

from broker.admission import Admission
from broker.backoff import Backoff
from broker.clock import unix_ms
from broker.engines import tether
from broker.engines.plan import Engine, Heard, Plan
from broker.process import StatusFile
from broker.refusals import Refusals
from broker.runner import monotonic_s
from broker.tls import ServerContext
from broker.topics import is_label
from config import files, limits, log
from config import members as member_lists
from config.errors import SettingsError
from config.members import Members
from config.principal import CLOUD_SITE
from config.settings import BrokerSettings

FOLDER: Final = "engine"
"""Where in `broker.data_dir` an engine's files are."""
_MORE_PLACES: Final = ("/usr/sbin", "/usr/local/sbin")
"""Where systems put servers, and the path of an ordinary user doesn't lead."""
_LOUD: Final = ("warning", "error")

Stamp: TypeAlias = tuple[int, int, int] | None
Change: TypeAlias = Literal["nothing", "reload", "restart"]
State: TypeAlias = Literal["starting", "running", "down", "stopped"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """An engine's plan, and all that it was made from, at one time."""

    plan: Plan
    program: Path
    members: Members
    revoked: frozenset[tuple[bytes, int]]
    stamps: Mapping[Path, Stamp]


class EngineProcess:
    """One engine under our care, with the life of `broker.server.Server`: `run` it until `stop`."""

    def __init__(self, settings: BrokerSettings, engine: Engine):
        self.settings = settings
        self.name: Final = settings.broker.engine
        self.folder: Final = settings.broker.data_dir / FOLDER
        self.state: State = "starting"
        self.restarts = 0
        self.reloads = 0
        self._engine = engine
        self._prepared: Prepared | None = None
        self._process: Process | None = None
        self._has_served = asyncio.Event()
        self._to_reload = False
        self._to_restart = False
        self._restart_waits = False
        self._cut_waits = False
        self._uncut: Prepared | None = None  # Since when there may be sessions of certificates that are revoked.
        self._renewed_at = float("-inf")
        self._said = ""
        self._lines = Admission(limits.ENGINE_LINES_PER_S, monotonic_s())
        self._lines_dropped = 0
        self._refusals = Refusals()
        self._status = StatusFile(settings.broker.data_dir / "status.json", self._describe, in_thread=True)
        self._log = log.get(__name__)

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. Raises SettingsError if it cannot start."""
        prepared = await asyncio.to_thread(self._prepare)
        await asyncio.to_thread(self._write, prepared.plan)
        self._prepared = prepared
        beside = self._engine.companions(self.settings, lambda: self._current().members, self.folder)
        tasks = [
            asyncio.create_task(self._keep_running(), name="engine"),
            asyncio.create_task(self._keep_current(), name="engine-files"),
            asyncio.create_task(self._keep_status(), name="status"),
            *(asyncio.create_task(companion, name="companion") for companion in beside),
        ]
        stopping = asyncio.create_task(stop.wait(), name="stopping")
        try:
            done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (stopping, *tasks):
                task.cancel()
            await asyncio.gather(stopping, *tasks, return_exceptions=True)
            if self._has_served.is_set():
                self.state = "stopped"
                await asyncio.to_thread(self._status.write)
                self._log.info("broker_stopped", engine=self.name)
        for task in done - {stopping}:
            task.result()  # None of them ends but by an exception, which ends the process.

    # --- Its process -----------------------------------------------------------------------------------------------

    async def _keep_running(self) -> None:
        backoff = Backoff(Random(), max_s=limits.ENGINE_BACKOFF_MAX_S)  # noqa: S311 jitter, no secret
        while True:
            self.state, self._said = "starting", ""
            # What starts now, starts with the newest files and without a session.
            self._to_reload = self._to_restart = self._restart_waits = self._cut_waits = False
            self._uncut = self._prepared
            started_at = monotonic_s()
            code = await self._run_once()
            if self._to_restart:
                continue
            backoff.lived(monotonic_s() - started_at)
            self.restarts += 1
            wait_s = backoff.next_s()
            self._log.warning(
                "engine_died", engine=self.name, status=code, said=self._said, again_in_s=round(wait_s, 1)
            )
            await asyncio.sleep(wait_s)

    async def _run_once(self) -> int:
        """Run the engine until it ends, and return its exit status. Raises SettingsError if it never served at all."""
        prepared = self._current()
        plan = prepared.plan
        command = [str(prepared.program), *plan.arguments]
        if os.name == "posix":
            tied = (sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), str(limits.ENGINE_OPEN_FILES))
            command = [*tied, *command]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            cwd=self.folder,
            env={**os.environ, **plan.environ},
            start_new_session=True,  # Ctrl-C is for us to pass on.
        )
        self._process = process
        hearing = asyncio.create_task(self._hear(process), name="engine-log")
        slow = asyncio.get_running_loop().call_later(limits.ENGINE_READY_S, self._warn_if_starting)
        try:
            code = await process.wait()
            self.state = "starting" if self._to_restart else "down"
            with suppress(TimeoutError):  # Not wait_for: before Python 3.12 it may swallow that we are cancelled.
                async with asyncio.timeout(limits.ENGINE_LINES_END_S):
                    await hearing
        finally:
            slow.cancel()
            hearing.cancel()
            await _end(process)
            self._process = None
        if not self._has_served.is_set() and not self._to_restart:
            problem = f"ended with status {code} before it served{': ' if self._said else ''}{self._said}"
            raise SettingsError(problem, key="broker.engine", value=self.name)
        return code

    async def _hear(self, process: Process) -> None:
        assert process.stdout is not None
        async for line in lines_of(process.stdout):
            heard = self._engine.hear(line)
            if heard is None:
                continue
            if heard.refused is not None:
                self._refusals.note(*heard.refused, monotonic_s())
                continue
            if heard.level in _LOUD:
                self._said = heard.text
            self._pass_on(heard)
            if heard.ready and self.state == "starting":
                self._serves(process)

    def _pass_on(self, heard: Heard) -> None:
        if not self._lines.take(monotonic_s()):
            self._lines_dropped += 1
            return
        if self._lines_dropped:
            self._log.warning("engine_lines_dropped", engine=self.name, count=self._lines_dropped)
            self._lines_dropped = 0
        say = {"debug": self._log.debug, "info": self._log.info, "warning": self._log.warning, "error": self._log.error}
        say[heard.level]("engine_said", engine=self.name, line=heard.text)

    def _serves(self, process: Process) -> None:
        self.state = "running"
        event = "engine_restarted" if self._has_served.is_set() else "broker_started"
        identity = self.settings.identity
        self._has_served.set()
        self._log.info(
            event,
            fleet=identity.fleet,
            site=identity.site,
            listen=list(self.settings.broker.listen),
            engine=self.name,
            engine_pid=process.pid,
        )
        if self._to_reload:
            self._reload(process)

    def _warn_if_starting(self) -> None:
        if self.state == "starting":
            self._log.warning("engine_not_ready", engine=self.name, after_s=limits.ENGINE_READY_S, said=self._said)

    async def _keep_status(self) -> None:
        await self._has_served.wait()  # Until then a person finds the last status, or an error.
        await self._status.keep()

    # --- Its files -------------------------------------------------------------------------------------------------

    async def _keep_current(self) -> None:
        """Renew the engine's files, and the engine, when what they were made from has changed."""
        seen = self._current().stamps
        while True:
            await asyncio.sleep(limits.CERTIFICATES_CHECK_S)
            self._refusals.end_streaks(monotonic_s())
            stamps = await asyncio.to_thread(_stamps, self._current().stamps)
            if stamps != seen:
                seen = await self._take_up(stamps)
            if self._restart_waits or self._must_cut():
                await self._apply("restart")

    async def _take_up(self, stamps: Mapping[Path, Stamp]) -> Mapping[Path, Stamp]:
        """Make the plan anew, and have the engine follow it; return the stamps of the files that it was made from."""
        former = self._current()
        try:
            prepared = await asyncio.to_thread(self._prepare)
            change = change_between(former, prepared)
            if change != "nothing":
                await asyncio.to_thread(self._write, prepared.plan)
        except SettingsError as exc:
            self._log.warning("engine_not_reloaded", engine=self.name, reason=str(exc))
            return stamps
        self._prepared = prepared
        if change == "restart":
            self._restart_waits = True
        else:
            await self._apply(change)
        return prepared.stamps

    def _must_cut(self) -> bool:
        """Tell whether only a restart ends all sessions that must end. The list of members may come a bit later."""
        if self._uncut is None or not outlived(self._uncut, self._current()):
            self._uncut, self._cut_waits = self._prepared, False
            return False
        before, self._cut_waits = self._cut_waits, True
        return before

    async def _apply(self, change: Change) -> None:
        process = self._process
        if process is None or change == "nothing":
            return  # It will be started with the new files.
        if change == "restart":
            if monotonic_s() < self._renewed_at + limits.ENGINE_RENEWAL_S:
                return  # Asked again with the next look at the files.
            self._log.info("engine_renewed", engine=self.name, by="restart")
            self._to_restart, self._renewed_at = True, monotonic_s()
            self.state = "starting"
            self.restarts += 1
            await _end(process)
        elif self.state == "running":
            self._reload(process)
        else:
            self._to_reload = True  # As soon as it can hear of it: before that, the signal would end it.

    def _reload(self, process: Process) -> None:
        number = self._current().plan.reload_signal
        assert number is not None
        self._to_reload = False
        self.reloads += 1
        with suppress(ProcessLookupError):
            process.send_signal(number)
            self._log.info("engine_renewed", engine=self.name, by="reload")

    def _prepare(self) -> Prepared:
        """Make the plan anew. Raises SettingsError, also for certificates that don't work: no engine shall meet them."""
        broker, identity = self.settings.broker, self.settings.identity
        always = (identity.ca, identity.cert, identity.key, broker.crl, broker.members)
        watched = {path for path in always if path is not None}
        while True:
            stamps = _stamps(watched)
            context = ServerContext(identity, broker.crl)
            members = read_members(self.settings)
            plan = self._engine.plan(self.settings, members, self.folder)
            if plan.watched <= watched:
                return Prepared(plan, find_program(self.settings, plan), members, context.revoked, stamps)
            watched |= plan.watched

    def _write(self, plan: Plan) -> None:
        try:
            write_files(plan, self.folder)
        except OSError as exc:
            problem = f"cannot be written: {exc.strerror}"
            raise SettingsError(problem, key="broker.data_dir", value=str(self.folder)) from exc

    def _current(self) -> Prepared:
        assert self._prepared is not None
        return self._prepared

    def _describe(self) -> dict[str, object]:
        process = self._process
        return {
            "role": "broker",
            "pid": os.getpid(),
            "ts": unix_ms(),
            "engine": self.name,
            "engine_pid": None if process is None else process.pid,
            "state": self.state,
            "listen": list(self.settings.broker.listen) if self.state == "running" else [],
            "reloads": self.reloads,
            "restarts": self.restarts,
            "counters": {
                "refused": dict(self._refusals.by_kind),
                "refused_by_client": self._refusals.by_client(),
            },
        }


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
    places = (os.environ.get("PATH", os.defpath), *_MORE_PLACES, str(Path(sys.executable).parent))
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


async def lines_of(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Yield the lines of a stream, each cut at LOG_TEXT_MAX bytes; what is longer costs no memory."""
    line = bytearray()
    while chunk := await stream.read(limits.READ_BUFFER_BYTES):
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            line += part[: limits.LOG_TEXT_MAX - len(line)]
            yield line.decode("utf-8", "replace").rstrip("\r")
            line.clear()
        line += rest[: limits.LOG_TEXT_MAX - len(line)]
    if line:
        yield line.decode("utf-8", "replace")


async def _end(process: Process) -> None:
    """End a process: SIGTERM, and SIGKILL if that is not enough."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(limits.ENGINE_STOP_S):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _stamps(paths: Iterable[Path]) -> dict[Path, Stamp]:
    found: dict[Path, Stamp] = {}
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            found[path] = None
        else:
            found[path] = status.st_mtime_ns, status.st_size, status.st_ino
    return found
