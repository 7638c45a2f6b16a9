"""The cloud service, whole or one part of it: what comes in, the ingest machine, the database and operations, wired together.

A worker (`--only ingest`) stores and acknowledges; any number may do that. All the rest is done by the one active process of
`--only operations`, which learns from the database what the workers have committed. Without `--only`, one process does it all.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from contextlib import ExitStack
from random import SystemRandom
from typing import Final

from broker.clock import unix_ms
from broker.messages import encode
from broker.process import StatusFile, cancelled
from broker.runner import Runner
from cloud.api_server import ApiServer
from cloud.batch import Batch, NewestValue
from cloud.database import Database, open_database
from cloud.following import Following
from cloud.ingest import (
    Acknowledge,
    Arrived,
    Command,
    Connected,
    Disconnected,
    Event,
    GiveBack,
    Heard,
    Ingest,
    NewestRead,
    PublishLast,
    Settle,
    Stopping,
    Store,
    Stored,
    StoreFailed,
)
from cloud.intake import Intake, Part, check, rest_intake, up_intake, whole_intakes
from cloud.intake_mqtt import MqttIntake
from cloud.notices import announcements
from cloud.operations import Operations
from cloud.service_desk import ServiceDesk
from cloud.standby import Lead
from cloud.status_slot import status_slot
from cloud.tokens import Tokens, first_tokens
from cloud.verification import verify_connections
from config import limits, log
from config.errors import SettingsError
from config.settings import CloudSettings

_log: Final = log.get(__name__)


class Service:
    """The cloud service in the running event loop. Raises SettingsError for what a person must mend before it can run."""

    def __init__(self, settings: CloudSettings, only: Part | None = None):
        self.settings: Final = settings
        self._only: Final = only
        identity, url = settings.identity, settings.cloud.database
        check(settings, only)
        self._prepare_folder()
        worker = only == "ingest"
        self._database: Final[Database] = open_database(url, identity.fleet, announce=announcements if worker else None)
        self._ingest: Final = Ingest(identity.fleet, SystemRandom(), tells_newest=not worker)
        self._runner: Final[Runner[Event, Command]] = Runner(self._ingest, self._execute)
        self._up, self._rest = self._make_intakes()
        self._operations: Final = None if worker else Operations(settings, self._database, self._publish)
        self._desk: Final = (
            None
            if self._operations is None
            else ServiceDesk(self._operations, self._database, lambda: self._describe())
        )
        self._lead: Final = Lead(url, identity.fleet) if only == "operations" else None
        self._following: Final = (
            Following(url, self._database, self._operations.told, self._tell_newest)
            if only == "operations" and self._operations is not None
            else None
        )
        self._status: StatusFile | None = None
        self._api: ApiServer | None = None
        self._idle: Final = asyncio.Event()
        self._stopping = False
        self._tasks: asyncio.TaskGroup | None = None
        self._running: Final[set[asyncio.Task[None]]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Do the part until `stop` is set; then commit what has come, acknowledge it, and disconnect.

        Raises StorageError when another process may be the active one: this one has stopped acting then.
        """
        with ExitStack() as held:
            name = held.enter_context(status_slot(self.settings.cloud.data_dir, self._only))
            self._status = StatusFile(self.settings.cloud.data_dir / name, lambda: self._describe(), in_thread=True)
            if self._lead is None:
                await self._run(stop, self._status)
            else:
                await self._run_in_turn(stop, self._status, self._lead)

    async def _run_in_turn(self, stop: asyncio.Event, status: StatusFile, lead: Lead) -> None:
        """Stand by until no other process is active, then be it until the lock is lost."""
        stopped = asyncio.create_task(stop.wait())
        showing = asyncio.create_task(status.keep())
        winning = asyncio.create_task(lead.win())
        try:
            await asyncio.wait([stopped, winning], return_when=asyncio.FIRST_COMPLETED)
            if not winning.done():
                return
            winning.result()
            showing.cancel()
            keeping = asyncio.create_task(lead.keep())
            acting = asyncio.create_task(self._run(stop, status))
            await asyncio.wait([keeping, acting], return_when=asyncio.FIRST_COMPLETED)
            if not acting.done():
                _log.error("lead_lost", consequence="this process ends; started again, it stands by")
                acting.cancel()
                await cancelled(self._running)
                await asyncio.wait([acting])
                if not acting.cancelled():
                    acting.result()
                keeping.result()
            keeping.cancel()
            acting.result()
        finally:
            for task in (stopped, showing, winning):
                task.cancel()
            await asyncio.gather(stopped, showing, winning, return_exceptions=True)
            await lead.close()
            if not self._stopping:
                await self._database.close()
            self._stopping = True
            status.write()

    async def _run(self, stop: asyncio.Event, status: StatusFile) -> None:
        intakes: list[Intake] = list(dict.fromkeys(each for each in (self._rest, self._up) if each is not None))
        try:
            await self._database.open()
            if self._operations is not None and self.settings.api.enabled:
                self._api = self._make_api()
            _log.info("cloud_started", cloud=self.settings.identity.name, only=self._only, messages=self._stored)
            if self._only == "ingest" and self.settings.cloud.intake == "mqtt":
                _log.warning("intake_not_shared", consequence="every further worker would only repeat this one's work")
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                for intake in intakes:
                    self._start(intake.run())
                self._start(status.keep())
                self._start_operations()
                await stop.wait()
                if self._api is not None:
                    self._api.close()
                await self._drain()
                if self._operations is not None:
                    await self._operations.close()
                await cancelled(self._running)
        finally:
            self._stopping = True
            self._runner.close()
            await self._database.close()
            for intake in intakes:
                await intake.close()
            status.write()
        _log.info("cloud_stopped", cloud=self.settings.identity.name, only=self._only, messages=self._stored)

    def _start_operations(self) -> None:
        if self._operations is None or self._desk is None:
            return
        for work in (self._operations.run(), self._prune()):
            self._start(work)
        if self._following is not None:
            self._start(self._following.run())
        if self._api is not None:
            self._start(self._api.run())
        if (every_h := self.settings.presence.verify_h) > 0:
            self._start(verify_connections(self._operations, self._desk, every_h))

    async def _drain(self) -> None:
        self._runner.feed(Stopping())
        if not self._ingest.idle:
            self._idle.clear()
            try:
                async with asyncio.timeout(limits.STOP_DRAIN_S):
                    await self._idle.wait()
            except TimeoutError:
                _log.warning("stopped_before_all_was_stored", waiting=self._ingest.waiting)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        assert self._tasks is not None
        task = self._tasks.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def _prepare_folder(self) -> None:
        folder = self.settings.cloud.data_dir
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            problem = f"can't be made: {exc.strerror}"
            raise SettingsError(problem, key="cloud.data_dir", value=str(folder)) from exc

    # --- The database -----------------------------------------------------------------------------------------------

    @property
    def _stored(self) -> int:
        return self._database.totals.messages

    async def _commit(self, batch: Batch) -> None:
        outcome = await self._database.commit(batch)
        if outcome is not None and self._operations is not None:
            self._operations.committed(batch, outcome)
        self._runner.feed(StoreFailed() if outcome is None else Stored(outcome))
        if self._ingest.idle:
            self._idle.set()

    async def _prune(self) -> None:
        while True:
            deleted = 0
            while some := await self._database.prune(self.settings.retention):
                deleted += some
            if deleted:
                _log.info("retention_deleted", rows=deleted)
            await asyncio.sleep(limits.RETENTION_INTERVAL_S)

    def _execute(self, command: Command) -> None:
        match command:
            case Store(batch):
                self._start(self._commit(batch))
            case Acknowledge(topic, ack):
                (self._up or self._rest).publish(topic, encode(ack), 0, False)  # type: ignore[union-attr]
            case PublishLast(topic, last):
                self._publish(topic, encode(last), 0, True)
            case Heard():
                if self._operations is not None:
                    self._operations.heard(command)
            case Settle(receipts):
                assert self._up is not None
                self._up.settle(receipts)
            case GiveBack(receipts):
                assert self._up is not None
                self._up.give_back(receipts)

    # --- The API ----------------------------------------------------------------------------------------------------

    def _make_api(self) -> ApiServer:
        from cloud.api import create_app  # FastAPI takes a while, and memory: only where it is wanted.

        assert self._desk is not None
        tokens = Tokens(first_tokens(self.settings.api.tokens))
        return ApiServer(create_app(self._desk, tokens, self.settings), self.settings.api)

    # --- What comes in ----------------------------------------------------------------------------------------------

    def _make_intakes(self) -> tuple[Intake | None, MqttIntake | None]:
        match self._only:
            case "ingest":
                return up_intake(self.settings, self._on_intake), None
            case "operations":
                return None, rest_intake(self.settings, self._on_intake)
            case None:
                return whole_intakes(self.settings, self._on_intake)

    def _on_intake(self, event: Arrived | Connected | Disconnected) -> None:
        self._runner.feed(event)
        match event:
            case Connected():
                if self._operations is not None:
                    self._operations.connected()
                if self._only is None and not self._stopping:  # A broker that was restarted has forgotten them.
                    self._start(self._database.newest(self._tell_newest_again))
                elif self._following is not None:
                    self._following.tell_all()
                self._changed()
            case Disconnected():
                if self._operations is not None:
                    self._operations.disconnected()
                self._changed()
            case Arrived():
                pass

    def _tell_newest(self, page: tuple[NewestValue, ...]) -> None:
        self._runner.feed(NewestRead(page, fresh=True))

    def _tell_newest_again(self, page: tuple[NewestValue, ...]) -> None:
        self._runner.feed(NewestRead(page))

    def _publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> None:
        if self._rest is not None:
            self._rest.publish(topic, payload, qos, retain)

    # --- Status -----------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        if self._status is not None:
            self._status.changed()

    def _describe(self) -> dict[str, object]:
        totals, counts = self._database.totals, self._ingest.counts
        intakes = dict.fromkeys(each for each in (self._up, self._rest) if each is not None)
        return {
            "role": "cloud",
            "cloud": self.settings.identity.name,
            "fleet": self.settings.identity.fleet,
            "pid": os.getpid(),
            "ts": unix_ms(),
            **self._describe_part(),
            "broker": "up" if all(intake.open for intake in intakes) else "down",
            "broker_failure": next((intake.reason for intake in intakes if intake.reason is not None), None),
            "storage": self._database.state,
            "stored_messages": totals.messages,
            "stored_points": totals.points,
            "duplicates_refused": totals.duplicates,
            "quarantined": totals.quarantined,
            "refused": counts.refused,
            "unknown_kinds": counts.unknown,
            "dropped": counts.dropped + sum(intake.dropped for intake in intakes),
            "waiting": self._ingest.waiting,
        }

    def _describe_part(self) -> dict[str, object]:
        """Return what only a part of a divided service tells."""
        match self._only:
            case None:
                return {}
            case "ingest":
                return {"only": "ingest", "intake": self.settings.cloud.intake, "workers": self.settings.cloud.workers}
            case "operations":
                assert self._lead is not None
                assert self._following is not None
                state = "stopped" if self._stopping else "active" if self._lead.active else "standby"
                return {"only": "operations", "state": state, "follows_workers": self._following.listening}
