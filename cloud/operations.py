"""Presence, tasks and settings at work: what comes from hubs goes to their machines, what these want is done in order.

A change is committed before anything is told of it (`cloud.lane`). What hubs answer is in the database before it gets here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from random import SystemRandom
from typing import Final, TypeAlias

import msgspec

from broker.backoff import Backoff
from broker.clock import unix_ms
from broker.control import Logs, Poll, Presence, Protection, Reported, Results
from broker.messages import encode
from broker.runner import Runner, monotonic_s
from broker.topics import Topic
from cloud import desired, desired_records, presence, presence_events, presence_records, task_events, task_records
from cloud.batch import Answered, Batch, Outcome
from cloud.database import Database
from cloud.desired import Desired
from cloud.desk import Change, Changes
from cloud.hub_key import HubKey
from cloud.ingest import Heard
from cloud.lane import Lane
from cloud.notices import Word, words_of
from cloud.presence_facts import Policy, Record
from cloud.reported_records import protections
from cloud.roster_watch import RosterWatch
from cloud.status_words import StatusWords
from cloud.task_standing import TargetChange
from cloud.tasks import Tasks
from config import limits, log
from config.errors import StorageError
from config.settings import CloudSettings

_log: Final = log.get(__name__)

Publish: TypeAlias = Callable[[str, bytes, int, bool], None]
"""(topic, payload, qos, retain); what it can't send is lost."""


class Operations:
    """The three machines. `publish` is the session with the cloud broker; before `run` has loaded them, what comes waits."""

    def __init__(
        self, settings: CloudSettings, database: Database, publish: Publish, patience_s: float = limits.LANE_WAIT_S
    ):
        self.changes: Final = Changes()
        self.lane: Final = Lane(database, patience_s)
        self._settings: Final = settings
        self._fleet: Final = settings.identity.fleet
        self._database: Final = database
        self._publish: Final = publish
        self._early: Final[deque[Callable[[], None]]] = deque(maxlen=limits.INGEST_WAITING_MAX)
        self._connected = False
        self._loaded = False
        self._ready: Final = asyncio.Event()
        self._protections: Final[dict[HubKey, Protection | None]] = {}
        self._words: Final = StatusWords(settings.presence.language)
        self._reachable: Final[set[HubKey]] = set()
        self._roster: Final = RosterWatch(settings.cloud.roster)

    # --- Life ---------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Load what is known, then work, for ever."""
        backoff = Backoff(SystemRandom(), max_s=limits.STORE_RETRY_MAX_S, stable_s=0.0)
        while not self._loaded:
            try:
                await self._load()
            except StorageError as exc:
                _log.debug("operations_wait", reason=exc.reason)
                await asyncio.sleep(backoff.next_s())
        async with asyncio.TaskGroup() as work:
            work.create_task(self.lane.run())
            work.create_task(self._keep_roster())

    async def _load(self) -> None:
        records, open_tasks, wanted, reports = await self._database.change(
            lambda connection: (
                presence_records.load(connection),
                task_records.open_tasks(connection),
                desired_records.load(connection),
                protections(connection),
            )
        )
        at, ms = monotonic_s(), unix_ms()
        self._presence = presence.Presence(
            self._settings.presence,
            started_at=at,
            started_ms=ms,
            known=records,
            outage_s=self._settings.presence.outage_s,
        )
        self._tasks = Tasks(open_tasks, random=SystemRandom(), started_at=at, started_ms=ms)
        self._desired = Desired(wanted, random=SystemRandom(), started_at=at, started_ms=ms)
        self._protections.update(reports)
        self._to_presence: Runner[presence_events.Event, presence_events.Command] = Runner(
            self._presence, self._on_presence
        )
        self._to_tasks: Runner[task_events.Event, task_events.Command] = Runner(self._tasks, self._on_task)
        self._to_desired: Runner[desired.Event, desired.Command] = Runner(self._desired, self._on_desired)
        self._loaded = True
        for record in records:
            self._reach(record)
        self.read_roster()
        if self._connected:
            self.connected()
        while self._early:
            self._early.popleft()()
        self._ready.set()

    async def close(self) -> None:
        """Let what was decided become durable and go out, as far as that is soon possible."""
        if self._loaded:
            for runner in (self._to_presence, self._to_tasks, self._to_desired):
                runner.close()
            try:
                async with asyncio.timeout(limits.STORE_CLOSE_TIMEOUT_S):
                    await self.lane.done()
            except (TimeoutError, StorageError):
                _log.warning("stopped_before_all_was_saved", waiting=self.lane.waiting)

    @property
    def reachable(self) -> list[HubKey]:
        """Return the hubs that anything may be started on now."""
        return sorted(self._reachable)

    async def ready(self) -> None:
        """Wait until what is known is loaded."""
        await self._ready.wait()

    def feed_presence(self, event: presence_events.Event) -> None:
        """Tell the presence machine what a person did."""
        self._to_presence.feed(event)

    def feed_tasks(self, event: task_events.Event) -> None:
        """Tell the task machine what a person did."""
        self._to_tasks.feed(event)

    def feed_desired(self, event: desired.Event) -> None:
        """Tell the settings machine what a person did."""
        self._to_desired.feed(event)

    def forget(self, key: HubKey, sensors: Iterable[str]) -> None:
        """Let the machines know nothing of a hub whose rows are gone, and the broker no values of its sensors."""
        for sensor in sensors:
            self._publish(str(Topic.last(self._fleet, *key, sensor)), b"", 1, True)
        self._reachable.discard(key)
        self._protections.pop(key, None)
        self._to_presence.feed(presence_events.Forgotten(key))
        self._to_tasks.feed(task_events.HubForgotten(key))
        self._to_desired.feed(desired.HubForgotten(key))

    def tell_document(self, scope: str, name: str, version: int) -> None:
        """Let listeners know of a new version of a document."""
        site = name if scope == "site" else name.partition("/")[0] if scope == "hub" else None
        self._tell("settings", f"{scope}/{name}", {"version": version}, site)

    # --- What comes ---------------------------------------------------------------------------------------------------

    def connected(self) -> None:
        """Our session with the cloud broker is open."""
        self._connected = True
        if self._loaded:
            self._to_presence.feed(presence_events.Connected())
            self._to_tasks.feed(task_events.Connected())
            self._to_desired.feed(desired.Connected())

    def disconnected(self) -> None:
        """It is not any more."""
        was, self._connected = self._connected, False
        if self._loaded and was:
            self._to_presence.feed(presence_events.Disconnected())
            self._to_tasks.feed(task_events.Disconnected())
            self._to_desired.feed(desired.Disconnected())

    def committed(self, batch: Batch, outcome: Outcome) -> None:
        """Take in what is in the database now."""
        self._when_loaded(lambda: self._committed(batch, outcome))

    def told(self, words: Iterable[Word], answers: Iterable[Answered]) -> None:
        """Take in what other processes have committed: each stream's newest message, and what hubs have answered."""
        words, answers = tuple(words), tuple(answers)
        self._when_loaded(lambda: self._told(words, answers))

    def heard(self, heard: Heard) -> None:
        """Take in a heartbeat or a poll."""
        self._when_loaded(lambda: self._heard(heard))

    def _when_loaded(self, deed: Callable[[], None]) -> None:
        if self._loaded:
            deed()
        else:
            self._early.append(deed)

    def _committed(self, batch: Batch, outcome: Outcome) -> None:
        feed = self._to_presence.feed
        for of_connector in batch.connector_states:
            place = (of_connector.site, of_connector.connector_id)
            feed(
                presence_events.ConnectorSaid(
                    *place, of_connector.state, of_connector.received_ms, of_connector.retained
                )
            )
        for of_hub in batch.hub_states:
            feed(presence_events.HubSaid(of_hub.site, of_hub.hub_id, of_hub.state, of_hub.received_ms, of_hub.retained))
        self._told(words_of(batch), outcome.answers)

    def _told(self, words: Iterable[Word], answers: Iterable[Answered]) -> None:
        for word in words:
            key = (word.site, word.hub_id)
            self._to_presence.feed(
                presence_events.MessageCame(key, word.epoch, word.sent_ms, word.received_ms, word.kind)
            )
        for answer in answers:
            self._answered((answer.site, answer.hub_id), answer.body)

    def _answered(self, key: HubKey, body: Results | Reported | Logs) -> None:
        match body:
            case Results(results):
                for report in results:
                    self._to_tasks.feed(task_events.Reported(key, report))
                    self._tell("task", report.task, {"hub": key[1], **msgspec.to_builtins(report)}, key[0])
            case Reported() as reported:
                known = self._protections.get(key)
                self._protections[key] = reported.protection
                self._to_presence.feed(presence_events.Reported(key, reported.machine))
                if (policy := reported.policy) is not None:
                    told = Policy(heartbeat=policy.heartbeat, offline_after_min=policy.offline_after_min)
                    self._to_presence.feed(presence_events.ModeChanged(key, told))
                self._to_desired.feed(desired.Reported(key, reported.settings))
                if reported.settings is not None:
                    self._tell("settings", f"hub/{key[0]}/{key[1]}", msgspec.to_builtins(reported.settings), key[0])
                if reported.protection != known:
                    self.lane.then(lambda: self._publish_presence(key))
            case Logs():
                pass  # They are read from the database.

    def _heard(self, heard: Heard) -> None:
        key, signal = (heard.site, heard.hub_id), heard.signal
        place = (key, signal.epoch, signal.session, signal.ts, heard.received_ms)
        if not isinstance(signal, Poll):
            self._to_presence.feed(presence_events.HeartbeatCame(*place))
            return
        self._to_presence.feed(presence_events.PollCame(*place))
        record = self._presence.record(key)
        if record is not None and record.mode == "polling" and _may_be_started(record):
            self._to_desired.feed(desired.Polled(key, signal.settings))
            self._to_tasks.feed(task_events.Polled(key))

    # --- What is to be done -------------------------------------------------------------------------------------------

    def _on_presence(self, command: presence_events.Command) -> None:
        match command:
            case presence_events.Save(record):
                self.lane.change(lambda connection: presence_records.save(connection, [record]), name=record.key)
                self._reach(record)
            case presence_events.Log(entry):
                self.lane.change(lambda connection: presence_records.log(connection, [entry]))
                _log.info(
                    "presence_changed",
                    site=entry.key[0],
                    hub=entry.key[1],
                    connection=entry.connection,
                    reason=entry.reason,
                )
            case presence_events.Publish(key, _):
                self.lane.then(lambda: self._publish_presence(key))
            case presence_events.Clear(key):
                self.lane.then(lambda: self._clear_presence(key))

    def _clear_presence(self, key: HubKey) -> None:
        self._publish(str(Topic.presence(self._fleet, *key)), b"", 1, True)
        self._tell("forgotten", f"{key[0]}/{key[1]}", {}, key[0])

    def _publish_presence(self, key: HubKey) -> None:
        told = self.presence_of(key)
        if told is None:
            return
        self._publish(str(Topic.presence(self._fleet, *key)), encode(told), 1, True)
        self._tell("presence", f"{key[0]}/{key[1]}", msgspec.to_builtins(told), key[0])

    def record(self, key: HubKey) -> Record | None:
        """Return what is known of a hub."""
        return self._presence.record(key)

    def presence_of(self, key: HubKey) -> Presence | None:
        """Return the status of a hub as it is told."""
        status = self._presence.status(key) if self._loaded else None
        return None if status is None else self._words.told(status, self._protections.get(key))

    def _reach(self, record: Record) -> None:
        """Tell tasks and settings whether the cloud may start something toward a hub."""
        status = record.status
        reachable = (
            status is not None
            and status.connection == "online"
            and record.mode == "continuous"
            and _may_be_started(record)
        )
        if reachable == (record.key in self._reachable):
            return
        if reachable:
            self._reachable.add(record.key)
            self._to_desired.feed(desired.Reachable(record.key))
            self._to_tasks.feed(task_events.Reachable(record.key))
        else:
            self._reachable.discard(record.key)
            self._to_desired.feed(desired.Unreachable(record.key))
            self._to_tasks.feed(task_events.Unreachable(record.key))

    def _on_task(self, command: task_events.Command) -> None:
        match command:
            case task_events.Save(changed):
                self.lane.change(lambda connection: task_records.save(connection, changed, unix_ms()))
                for change in changed:
                    self.lane.then(partial(self._tell_task, change))
            case task_events.Send(key, task):
                topic, payload = str(Topic.down(self._fleet, *key, "task")), encode(task)
                self.lane.then(lambda: self._publish(topic, payload, 1, False))

    def _tell_task(self, change: TargetChange) -> None:
        standing = change.standing
        body = {"hub": change.key[1], "state": standing.state, "message": standing.message}
        self._tell("task", change.task, body, change.key[0])

    def _on_desired(self, command: desired.Command) -> None:
        match command:
            case desired.Save(key, version) as saved:
                self.lane.change(lambda connection: desired_records.save(connection, saved, unix_ms()))
                self.lane.then(lambda: self._tell("settings", f"hub/{key[0]}/{key[1]}", {"desired": version}, key[0]))
            case desired.Send(key, wanted):
                topic, payload = str(Topic.down(self._fleet, *key, "settings")), encode(wanted)
                self.lane.then(lambda: self._publish(topic, payload, 1, False))

    def _tell(self, kind: str, key: str, body: Mapping[str, object], site: str | None) -> None:
        self.changes.tell(Change(kind, key, body, site))  # type: ignore[arg-type]

    # --- The roster ---------------------------------------------------------------------------------------------------

    async def _keep_roster(self) -> None:
        while True:
            await asyncio.sleep(limits.ROSTER_LOOK_S)
            self.read_roster()

    def read_roster(self) -> None:
        """Look whether the roster is another one, and take it in."""
        if (read := self._roster.look()) is not None:
            self._to_presence.feed(read)


def _may_be_started(record: Record) -> bool:
    """Tell whether anything may be started toward a hub: somebody wants it, and it is clear which machine it is."""
    return record.paused_by is None and record.rivals is None
