"""One sensor hub: sensors, outbox, courier and paths, wired together. It opens no listening socket."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from random import SystemRandom
from typing import Any

import msgspec
import structlog

from broker.clock import unix_ms
from broker.control import DesiredSettings, Mode, Reported, SettingsReport, Task, TaskReport
from broker.messages import Ack, HubState, Value, encode_envelope
from broker.process import StatusFile, watched
from broker.runner import Runner, monotonic_s
from broker.topics import Topic
from config import limits, remote
from config import log as logging
from config.errors import SettingsError, StorageError
from config.settings import HubSettings
from hub import courier, mode, network
from hub.courier import Courier
from hub.desired_keeper import SettingsKeeper
from hub.keeper import Keeper, Loaded, Report, Written
from hub.logs import LogCollector, plain
from hub.memory import PathMemory
from hub.mode_line import Line
from hub.mode_roaming import is_roaming
from hub.outbox import Entry, Outbox, OutboxDamagedError
from hub.outbox_origin import this_machine
from hub.reporting import Reporter, host_name, hubline_version, reported_of
from hub.sampler import Sample, Sampler
from hub.sensors import load_sensors
from hub.status_content import content_of
from hub.task_runner import TaskRunner
from hub.trial import Trial

log = structlog.get_logger(__name__)


async def run_hub(file: Path, own: HubSettings, stop: asyncio.Event) -> None:
    """Run a hub until `stop` is set; `file` is its hub.toml, and `own` what that says.

    One that is to begin anew, with other settings or because somebody wants it to, does so in this process. So does one
    whose outbox breaks on the way, which is set aside.
    """
    agent: Agent | None = None

    def begin_anew(_: HubSettings) -> None:
        if agent is not None:
            agent.restart()

    def report(_: SettingsReport) -> None:
        if agent is not None:
            agent.report_settings()

    desired = SettingsKeeper(file, own, apply=begin_anew, report=report)
    while not stop.is_set():
        settings = desired.effective()
        logging.set_up(settings.log)
        try:
            agent = Agent(settings, desired)
        except SettingsError as exc:
            if not desired.cannot_start(exc):
                raise
            continue
        try:
            await agent.run(stop)
        except OutboxDamagedError as exc:
            log.error("outbox_broke", reason=exc.reason)


OUTBOX_FILE = "outbox.db"
STATUS_FILE = "status.json"
"""In the hub's data_dir: what `hubline hub status` reads."""


TASKS_FILE = "tasks.db"


class Agent:
    """A hub in the running event loop. Raises SettingsError, or StorageError if the outbox can't be used at all."""

    def __init__(self, settings: HubSettings, desired: SettingsKeeper):
        self.settings, self._desired = settings, desired
        data_dir = settings.hub.data_dir
        _make_folder(data_dir)
        outbox = Outbox.open(
            data_dir / OUTBOX_FILE,
            max_bytes=settings.hub.outbox_max_bytes,
            max_age_s=settings.hub.outbox_max_days * 86_400,
            machine=this_machine(),
        )
        if outbox.damage is not None:
            log.error("outbox_damaged", reason=outbox.damage, epoch=outbox.epoch)
        if outbox.copied is not None:
            log.warning("outbox_copied", reason=outbox.copied, epoch=outbox.epoch)
        with ExitStack() as undoing:
            undoing.callback(outbox.close)
            self._wire(outbox, undoing)
            undoing.pop_all()

    def _wire(self, outbox: Outbox, undoing: ExitStack) -> None:
        """Put the parts together; what must be undone if one of them can't be made, goes to `undoing`."""
        settings, data_dir = self.settings, self.settings.hub.data_dir
        self._sensors = load_sensors(settings.sensors, outbox.states())
        self._outbox, self._ranges = outbox, mode.networks_of(settings.mode.unreachable)
        self._last_session = outbox.session
        self._addresses = network.own_addresses()
        self._roaming = is_roaming(settings)
        self._introduced = False  # The cloud knows that this process has started.
        self._unproven = True  # The settings have not shown yet all that they have to.
        self._restart = asyncio.Event()
        self._drained = asyncio.Event()
        self._keeper = Keeper(outbox, self._kept)
        self._courier = Courier(outbox.epoch, tuple(outbox.pending()))
        self._runner: Runner[courier.Event, courier.Command] = Runner(self._courier, self._execute)
        self._sampler = Sampler(self._sensors, self._sampled, random=SystemRandom())
        memory = PathMemory(data_dir / "paths.json")
        had_connector = bool(memory.kept.endpoints) and memory.kept.outage_ms is None
        self._trial = Trial(settings, self._desired.before_trial(), outbox.epoch, had_connector=had_connector)
        memory.distrusted = self._trial.distrusts_memory
        self._line = Line(
            settings,
            memory,
            outbox.epoch,
            self._next_session,
            self,
            continuous=mode.keeps_session(settings.mode, self._ranges, self._addresses),
        )
        self._tasks = TaskRunner(settings, data_dir / TASKS_FILE, self, self._result, version=hubline_version())
        self._tasks.set_roaming(self._roaming)
        self._desired.set_roaming(self._roaming)
        self._reporter = Reporter(self._keeper, self._reported)
        self._logs = LogCollector(settings.logs, data_dir, self._keeper)
        undoing.callback(self._logs.close)
        self._status = StatusFile(data_dir / STATUS_FILE, self._describe)

    async def run(self, stop: asyncio.Event) -> None:
        """Measure and send until `stop` is set, or the hub is to begin anew.

        Then deliver what can be delivered soon, and leave cleanly.
        """
        identity = self.settings.identity
        names = [sensor.name for sensor in self._sensors]
        log.info(
            "hub_started",
            hub=identity.name,
            site=identity.site,
            epoch=self._courier.epoch,
            mode=self._mode,
            sensors=names,
        )
        for doubt in remote.doubts_about(self.settings.mode):
            log.warning("settings_doubtful", doubt=doubt)
        self._reporter.look(anew=True)
        keeping = asyncio.create_task(self._keeper.run(), name="outbox")
        sampling = asyncio.create_task(self._sampler.run(), name="sampler")
        status = asyncio.create_task(self._status.keep(), name="status")
        looking = asyncio.create_task(self._keep_looking(), name="surroundings")
        line = asyncio.create_task(self._line.run(), name="line")
        stopping = [asyncio.create_task(each.wait(), name="stop") for each in (stop, self._restart)]
        self._tasks.start()
        self._desired.start()
        self._trial.start()
        try:
            done, _ = await asyncio.wait(
                [*stopping, keeping, sampling, status, looking, line], return_when=asyncio.FIRST_COMPLETED
            )
            for task in done - {*stopping}:
                task.result()  # None of them ends but by a bug of ours, which must be seen.
        finally:
            leave_by = monotonic_s() + limits.STOP_LEAVE_S
            for task in (sampling, looking, *stopping):
                task.cancel()
            await asyncio.wait([sampling, looking, *stopping])
            self._desired.close()
            await self._trial.close()
            ending = watched(asyncio.create_task(self._tasks.close(), name="end of tasks"))
            await self._drain()
            status.cancel()
            self._runner.close()
            self._line.leave(leave_by, for_good=stop.is_set())
            line.cancel()
            await asyncio.wait([line])
            await asyncio.wait([ending], timeout=max(0.0, leave_by - monotonic_s()))
            if ending.cancel():
                log.warning("tasks_not_ended", tasks=self._tasks.running)
                await asyncio.wait([ending])
            self._logs.close()
            keeping.cancel()
            await asyncio.wait([keeping, status])
            self._status.write()
            await self._keeper.close()
            log.info("hub_stopped", hub=identity.name, pending=self._courier.unacknowledged)

    @property
    def _mode(self) -> Mode:
        return mode.mode_of(continuous=self._line.continuous, roaming=self._roaming)

    async def _keep_looking(self) -> None:
        """See what changes around the hub: its addresses, a person's wish to roam; tell of it, and pass on what was logged."""
        looked_at = monotonic_s()
        while True:
            every_s = limits.ADDRESSES_CHECK_S if self._addresses else limits.ADDRESSES_AGAIN_S
            if monotonic_s() >= looked_at + every_s:
                self._addresses, looked_at = network.own_addresses(), monotonic_s()
            self._settle_mode()
            self._look_at_trial()
            self._reporter.look()
            await self._logs.pass_on(roaming=self._roaming)
            await asyncio.sleep(limits.ROAMING_CHECK_S)

    def _settle_mode(self) -> None:
        """Be in the mode that holds now."""
        present = self._line.continuous
        continuous = mode.keeps_session(self.settings.mode, self._ranges, self._addresses, present=present)
        if continuous != present:
            self._line.set_continuous(continuous)
            log.info("mode_changed", mode=self._mode)
        roaming = is_roaming(self.settings)
        if roaming != self._roaming:
            self._roaming = roaming
            log.info("roaming_entered" if roaming else "roaming_left")
            self._tasks.set_roaming(roaming)
            self._desired.set_roaming(roaming)
            self._line.introduce_again()
            self._status.changed()

    async def _drain(self) -> None:
        """Write what was measured, and give the cloud a moment to acknowledge it."""
        try:
            async with asyncio.timeout(limits.STOP_DRAIN_S):
                await self._logs.pass_on(roaming=self._roaming, at_once=True)
                await self._keeper.flushed()
                while self._courier.open and self._courier.unacknowledged:
                    self._drained.clear()
                    await self._drained.wait()
                await self._keeper.flushed()
        except TimeoutError:
            pass  # What is left is on the disk, and goes out after the next start.

    @property
    def has_waiting(self) -> bool:
        """Tell whether messages wait for their acknowledgement."""
        return self._courier.unacknowledged > 0

    async def delivered(self) -> None:
        """Wait until the cloud has acknowledged all that was measured until now."""
        await self._keeper.flushed()
        mark = self._keeper.standing.last_seq
        while (oldest := self._courier.oldest) is not None and oldest <= mark:
            self._drained.clear()
            await self._drained.wait()
        await self._keeper.flushed()

    # --- Measuring and keeping -----------------------------------------------------------------------------------------

    def _sampled(self, sample: Sample) -> None:
        if sample.points:
            self._keeper.append("readings", sample.points, sample.states)
        if sample.events:
            self._keeper.append("events", sample.events, {})

    def _kept(self, report: Report) -> None:
        match report:
            case Written(appended, dropped):
                if dropped:
                    log.warning("outbox_full", messages=sum(last - first + 1 for first, last in dropped))
                    self._runner.feed(courier.Dropped(dropped))
                self._runner.feed(courier.Appended(appended))
            case Loaded(loaded, asked):
                gone = set(asked)
                for message in loaded:
                    gone.discard(message.seq)
                    self._publish(message.seq, message.kind, message.body)
                    self._runner.feed(courier.Sent(message.seq, message.size_bytes))
                if gone:
                    self._runner.feed(courier.Dropped(tuple((seq, seq) for seq in sorted(gone))))

    def _execute(self, command: courier.Command) -> None:
        match command:
            case courier.Send(seqs):
                self._keeper.load(seqs)
            case courier.Forget(ranges):
                self._keeper.forget(ranges)
        self._drained.set()

    def _publish(self, seq: int, kind: str, body: bytes) -> None:
        identity = self.settings.identity
        topic = str(Topic.up(identity.fleet, identity.site, identity.name, kind))
        self._line.publish(topic, encode_envelope(self._courier.epoch, seq, unix_ms(), body), seq)

    # --- On the line (Subscriber) --------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Tell whether a task runs whose result the cloud waits for."""
        return bool(self._tasks.running)

    @property
    def settings_hash(self) -> str:
        """Return the name of the settings from the cloud that are in force."""
        return self._desired.hash

    def introduction(self, session: int, via: str) -> HubState:
        """Return the birth: who and where this hub is, and until the cloud is known to have it, that it has started."""
        return HubState(
            online=True,
            epoch=self._courier.epoch,
            session=session,
            via=via,
            mode=self._mode,
            version=hubline_version(),
            ts=unix_ms(),
            reason=None if self._introduced else "started",
            host=host_name(),
            addresses=list(self._addresses),
        )

    def path_opened(self) -> None:
        """Send, from the oldest that is not acknowledged."""
        self._runner.feed(courier.PathOpened())

    def path_closed(self) -> None:
        """Keep everything for later."""
        self._runner.feed(courier.PathClosed())

    def acknowledged(self, ack: Ack) -> None:
        """Forget what the cloud has."""
        self._runner.feed(courier.Acknowledged(ack.epoch, tuple(ack.ranges)))
        if ack.epoch == self._courier.epoch and self._reporter.acknowledged(ack.ranges):
            self._introduced = True  # The report was made in this life, and sent after a birth over the same session.
            self._look_at_trial()

    def _look_at_trial(self) -> None:
        """Pass on that the settings in force are proven, once they are."""
        if self._unproven and self._introduced and self._trial.look(self._line.link):
            self._unproven = False
            self._desired.acknowledged()

    def task_received(self, task: Task) -> None:
        """Have it run, once."""
        self._tasks.received(task)

    def settings_received(self, settings: DesiredSettings) -> None:
        """Have them tried."""
        self._desired.received(settings)

    def path_changed(self) -> None:
        """Show it in the status file at once."""
        self._status.changed()

    # --- What tasks need (Doer) ----------------------------------------------------------------------------------------

    async def sample_now(self) -> Mapping[str, Value]:
        """Ask all sensors out of turn, and return what they say; it is stored as ever."""
        return await self._sampler.sample_now()

    def report_now(self) -> None:
        """Tell anew what this hub is."""
        self._addresses = network.own_addresses()
        self._reporter.look(anew=True)

    def report_settings(self) -> None:
        """Tell how the settings from the cloud stand, though it may be nothing new: the cloud has asked again."""
        self._reporter.look(anew=True)

    def restart(self) -> None:
        """Begin anew, in this process: all ends cleanly first."""
        self._restart.set()

    def recent_logs(self, limit: int) -> list[dict[str, Any]]:
        """Return the last lines of the log, the oldest first."""
        return plain(self._logs.recent_logs(limit))

    def _result(self, report: TaskReport) -> None:
        self._keeper.append("results", [Entry(report.ts, msgspec.json.encode(report))], {})

    # --- Numbers -------------------------------------------------------------------------------------------------------

    def _reported(self) -> Reported:
        return reported_of(
            self.settings,
            self._sensors,
            addresses=self._addresses,
            mode=self._mode,
            settings_report=self._desired.standing,
        )

    async def _next_session(self) -> int:
        try:
            number = await self._keeper.call(self._outbox.next_session)
            while number <= self._last_session:  # Numbers were given while the disk refused: let it catch up with them.
                number = await self._keeper.call(self._outbox.next_session)
            self._last_session = number
        except StorageError as exc:
            # A full disk must not keep the hub from sending what fills it.
            log.warning("session_number_not_saved", reason=exc.reason)
            self._last_session += 1
        return self._last_session

    # --- What a person sees --------------------------------------------------------------------------------------------

    def _describe(self) -> dict[str, object]:
        return content_of(
            self.settings,
            self._line,
            self._keeper,
            self._courier,
            mode=self._mode,
            sensors=[sensor.name for sensor in self._sensors],
            failing=self._sampler.failing,
            tasks=self._tasks.running,
            reported=self._reported(),
        )


def _make_folder(data_dir: Path) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise SettingsError(f"can't be made: {exc.strerror}", key="hub.data_dir", value=str(data_dir)) from exc
