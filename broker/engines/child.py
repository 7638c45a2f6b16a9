"""Runs an engine as our child: writes its files, starts it, passes its log on, renews it when anything changes, ends it.

It never outlives us, and while we live it is never gone for long. Nobody whose certificate is revoked keeps rights.
"""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import Process
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Final, Literal, TypeAlias

from broker.backoff import Backoff
from broker.clock import unix_ms
from broker.engines.child_process import end, start
from broker.engines.liveness import Bounds, Condemn
from broker.engines.plan import Engine, Plan
from broker.engines.prepared import (
    FOLDER,
    Change,
    Prepared,
    Stamp,
    change_between,
    outlived,
    prepare,
    refuse_old,
    stamps_of,
    write_files,
)
from broker.engines.probe import Probe, address_to_ask
from broker.engines.voice import Voice, lines_of
from broker.process import StatusFile, cancelled, watched
from broker.refusals import Refusals
from broker.runner import monotonic_s
from config import limits, log
from config.errors import SettingsError
from config.settings import BrokerSettings

State: TypeAlias = Literal["starting", "running", "down", "stopped"]


class EngineProcess:
    """One engine under our care, with the life of `broker.server.Server`: `run` it until `stop`."""

    def __init__(self, settings: BrokerSettings, engine: Engine, bounds: Bounds = Bounds()):  # noqa: B008 frozen
        self.settings = settings
        self.name: Final = settings.broker.engine
        self.folder: Final = settings.broker.data_dir / FOLDER
        self.state: State = "starting"
        self.restarts = 0
        self.reloads = 0
        self.hangs = 0
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
        self._voice = Voice(self.name)
        self._bounds = bounds
        self._probe: Probe | None = None
        self._ending: asyncio.Task[None] | None = None
        self._refusals = Refusals()
        self._status = StatusFile(settings.broker.data_dir / "status.json", self._describe, in_thread=True)
        self._log = log.get(__name__)

    @property
    def unanswered(self) -> int | None:
        """Return how often in a row the engine gave no sign of life when asked, or None while it never has."""
        return None if self._probe is None else self._probe.unanswered

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. Raises SettingsError if it cannot start."""
        prepared = await asyncio.to_thread(self._prepare)
        await asyncio.to_thread(refuse_old, prepared.program, prepared.plan, self.settings)
        await asyncio.to_thread(self._write, prepared.plan)
        self._prepared = prepared
        beside = self._engine.companions(self.settings, lambda: self._current().members, self.folder)
        tasks = [
            asyncio.create_task(self._keep_running(), name="engine"),
            asyncio.create_task(self._keep_current(), name="engine-files"),
            asyncio.create_task(self._keep_status(), name="status"),
        ]
        companions = [asyncio.create_task(companion, name="companion") for companion in beside]
        stopping = asyncio.create_task(stop.wait(), name="stopping")
        try:
            done, _ = await asyncio.wait([stopping, *tasks, *companions], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (stopping, *tasks):
                task.cancel()
            await asyncio.gather(stopping, *tasks, cancelled(companions), return_exceptions=True)
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
            self.state, self._voice.last = "starting", ""
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
                "engine_died", engine=self.name, status=code, said=self._voice.last, again_in_s=round(wait_s, 1)
            )
            await asyncio.sleep(wait_s)

    async def _run_once(self) -> int:
        """Run the engine until it ends, and return its exit status. Raises SettingsError if it never served at all."""
        prepared = self._current()
        process = self._process = await start(prepared, self.folder)
        hearing = asyncio.create_task(self._hear(process, prepared.plan.speaks_while_it_serves), name="engine-log")
        slow = asyncio.get_running_loop().call_later(limits.ENGINE_READY_S, self._warn_if_starting)
        try:
            code = await process.wait()
            self.state = "starting" if self._to_restart else "down"
            with suppress(TimeoutError):
                async with asyncio.timeout(limits.ENGINE_LINES_END_S):
                    await hearing
        finally:
            slow.cancel()
            hearing.cancel()
            self._stop_probe()
            await end(process)
            self._process = None
        if not self._has_served.is_set() and not self._to_restart:
            last = self._voice.last
            problem = f"ended with status {code} before it served{': ' if last else ''}{last}"
            raise SettingsError(problem, key="broker.engine", value=self.name)
        return code

    async def _hear(self, process: Process, speaks_while_it_serves: bool) -> None:
        assert process.stdout is not None
        async for line in lines_of(process.stdout):
            if self._probe is not None:
                if speaks_while_it_serves:
                    self._probe.spoke()
                if self._probe.is_meant(line):
                    continue
            heard = self._engine.hear(line)
            if heard is None:
                continue
            if heard.refused is not None:
                self._refusals.note(*heard.refused, monotonic_s())
                continue
            self._voice.pass_on(heard)
            if heard.ready and self.state == "starting":
                self._serves(process)

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
        address = address_to_ask(self.settings.broker.listen)
        if address is not None:
            self._probe = Probe(address, self._bounds, lambda verdict: self._hangs(process, verdict))

    def _hangs(self, process: Process, verdict: Condemn) -> None:
        """Have an engine that serves nobody end: then it is started again as any that has died."""
        if self.state != "running":
            return  # It is on its way out.
        self.state = "down"
        self.hangs += 1
        self._log.error(
            "engine_hung",
            engine=self.name,
            engine_pid=process.pid,
            unanswered=verdict.unanswered,
            silent_s=verdict.silent_s,
        )
        self._ending = watched(asyncio.create_task(end(process), name="engine-end"))

    def _stop_probe(self) -> None:
        if self._probe is not None:
            self._probe.close()
            self._probe = None
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None

    def _warn_if_starting(self) -> None:
        if self.state == "starting":
            self._log.warning(
                "engine_not_ready", engine=self.name, after_s=limits.ENGINE_READY_S, said=self._voice.last
            )

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
            stamps = await asyncio.to_thread(stamps_of, self._current().stamps)
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
            await end(process)
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
        return prepare(self.settings, self._engine, self.folder)

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
            "hangs": self.hangs,
            "unanswered": self.unanswered,
            **self._engine.beside(),
            "counters": {
                "refused": dict(self._refusals.by_kind),
                "refused_by_client": self._refusals.by_client(),
            },
        }
