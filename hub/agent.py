"""One sensor hub: sensors, outbox, courier and paths, wired together. It opens no listening socket."""

from __future__ import annotations

import asyncio
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from random import SystemRandom

import structlog

from broker.clock import unix_ms
from broker.messages import Ack, encode_envelope
from broker.process import StatusFile
from broker.runner import Runner, monotonic_s
from broker.topics import Topic
from config import limits
from config.errors import SettingsError, StorageError
from config.settings import HubSettings
from hub import courier
from hub.courier import Courier
from hub.keeper import Keeper, Loaded, Report, Written
from hub.link import Kind
from hub.memory import PathMemory
from hub.outbox import Outbox, OutboxDamagedError
from hub.paths import Paths
from hub.sampler import Sample, Sampler
from hub.sensors import load_sensors

log = structlog.get_logger(__name__)


async def run_hub(settings: HubSettings, stop: asyncio.Event) -> None:
    """Run a hub until `stop` is set. An outbox that breaks on the way is set aside, and the hub begins anew with another."""
    while True:
        try:
            return await Agent(settings).run(stop)
        except OutboxDamagedError as exc:
            log.error("outbox_broke", reason=exc.reason)


OUTBOX_FILE = "outbox.db"
STATUS_FILE = "status.json"
"""In the hub's data_dir: what `hubline hub status` reads."""


class Agent:
    """A hub in the running event loop. Raises SettingsError, or StorageError if the outbox can't be used at all."""

    def __init__(self, settings: HubSettings):
        self.settings = settings
        data_dir = settings.hub.data_dir
        _make_folder(data_dir)
        outbox = Outbox.open(
            data_dir / OUTBOX_FILE,
            max_bytes=settings.hub.outbox_max_bytes,
            max_age_s=settings.hub.outbox_max_days * 86_400,
        )
        if outbox.damage is not None:
            log.error("outbox_damaged", reason=outbox.damage, epoch=outbox.epoch)
        try:
            sensors = load_sensors(settings.sensors, outbox.states())
        except SettingsError:
            outbox.close()
            raise
        self._outbox = outbox
        self._last_session = outbox.session
        self._sensors = [sensor.name for sensor in sensors]
        self._keeper = Keeper(outbox, self._kept)
        self._courier = Courier(outbox.epoch, tuple(outbox.pending()))
        self._runner: Runner[courier.Event, courier.Command] = Runner(self._courier, self._execute)
        self._sampler = Sampler(sensors, self._sampled, random=SystemRandom())
        memory = PathMemory(data_dir / "paths.json")
        self._paths = Paths(settings, memory, outbox.epoch, self._next_session, self, _version())
        self._status = StatusFile(data_dir / STATUS_FILE, self._describe)
        self._drained = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Measure and send until `stop` is set; then deliver what can be delivered soon, and leave cleanly."""
        identity = self.settings.identity
        log.info("hub_started", hub=identity.name, site=identity.site, epoch=self._courier.epoch, sensors=self._sensors)
        keeping = asyncio.create_task(self._keeper.run(), name="outbox")
        sampling = asyncio.create_task(self._sampler.run(), name="sampler")
        status = asyncio.create_task(self._status.keep(), name="status")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        self._paths.start()
        try:
            done, _ = await asyncio.wait([stopping, keeping, sampling, status], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stopping}:
                task.result()  # None of them ends but by a bug of ours, which must be seen.
        finally:
            sampling.cancel()
            stopping.cancel()
            await asyncio.wait([sampling, stopping])
            await self._drain()
            status.cancel()
            self._runner.close()
            await self._paths.stop()
            keeping.cancel()
            await asyncio.wait([keeping, status])
            self._status.write()
            await self._keeper.close()
            log.info("hub_stopped", hub=identity.name, pending=self._courier.unacknowledged)

    async def _drain(self) -> None:
        """Write what was measured, and give the cloud a moment to acknowledge it."""
        try:
            async with asyncio.timeout(limits.STOP_DRAIN_S):
                await self._keeper.flushed()
                while self._courier.open and self._courier.unacknowledged:
                    self._drained.clear()
                    await self._drained.wait()
                await self._keeper.flushed()
        except TimeoutError:
            pass  # What is left is on the disk, and goes out after the next start.

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
        self._paths.publish(topic, encode_envelope(self._courier.epoch, seq, unix_ms(), body), seq)

    # --- On the paths (Passenger) --------------------------------------------------------------------------------------

    def path_opened(self) -> None:
        """Send, from the oldest that is not acknowledged."""
        self._runner.feed(courier.PathOpened())

    def path_closed(self) -> None:
        """Keep everything for later."""
        self._runner.feed(courier.PathClosed())

    def acknowledged(self, ack: Ack) -> None:
        """Forget what the cloud has."""
        self._runner.feed(courier.Acknowledged(ack.epoch, tuple(ack.ranges)))

    def path_changed(self) -> None:
        """Show it in the status file at once."""
        self._status.changed()

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
        identity, link = self.settings.identity, self._paths.link
        using = link.using
        kind = "none" if using is None else using.kind.value
        holds = self._keeper.standing
        return {
            "hub": identity.name,
            "site": identity.site,
            "pid": os.getpid(),
            "ts": unix_ms(),
            "path": {
                "kind": kind,
                "connector": link.using_via if using is not None and using.kind is Kind.CONNECTOR else None,
                "endpoint": None if using is None else using.endpoint,
                "since": self._paths.since_ms,
                "outage_since": _wall_ms(link.out_at),
                "switch_at": None if kind == "direct" else _wall_ms(link.switch_at),
                "watched": None if link.watched is None else link.watched[0],
                "return_at": None if link.watched is None else _wall_ms(link.watched[1]),
                "failures": {kind.value: reason for kind, reason in link.failures.items()},
            },
            "epoch": self._courier.epoch,
            "session": self._paths.session_number,
            "outbox": {
                "pending": self._courier.unacknowledged,
                "last_seq": holds.last_seq,
                "bytes": holds.size_bytes,
                "oldest": holds.oldest_ms,
                "gaps": holds.gaps,
                "points": holds.points,
                "points_written": holds.points_written,
                "points_lost": holds.points_lost,
                "refusal": self._keeper.refusal,
            },
            "sensors": {"running": self._sensors, "failing": self._sampler.failing},
        }


def _wall_ms(at: float | None) -> int | None:
    """Return a monotonic instant as Unix milliseconds, to the second: the two clocks drift, and a person reads it."""
    return None if at is None else round(unix_ms() / 1000 + at - monotonic_s()) * 1000


def _make_folder(data_dir: Path) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise SettingsError(f"can't be made: {exc.strerror}", key="hub.data_dir", value=str(data_dir)) from exc


def _version() -> str:
    try:
        return version("hubline")
    except PackageNotFoundError:
        return "0"
