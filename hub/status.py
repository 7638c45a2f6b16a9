"""What a person is told of a hub, from its status file: a hub opens no socket to be asked on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import msgspec
import orjson
from msgspec import Struct

from broker.clock import unix_ms
from config import limits
from config.errors import SettingsError
from config.settings import HubSettings
from hub.agent import OUTBOX_FILE, STATUS_FILE
from hub.outbox_file import holder_of


class PathStatus(Struct, frozen=True):
    """Where messages go, since when, and what comes next; all times in Unix milliseconds.

    `kind` is "connector", "direct" or "none"; `failures` are the last ones by kind of path. `outage_since`: no connector's
    path has been good since then; `switch_at`: when the hub goes to the cloud directly. While it is there, `watched` is the
    site broker that is watched for the way back, and `return_at` when it will be taken if it stays good.
    """

    kind: str
    connector: str | None
    endpoint: str | None
    since: int
    outage_since: int | None
    switch_at: int | None
    watched: str | None
    return_at: int | None
    failures: dict[str, str]


class OutboxStatus(Struct, frozen=True):
    """What waits: messages, bytes, readings; `oldest` in Unix milliseconds; `refusal` is why the disk takes nothing."""

    pending: int
    last_seq: int
    bytes: int
    oldest: int | None
    gaps: int
    points: int
    points_written: int
    points_lost: int
    refusal: str | None


class SensorsStatus(Struct, frozen=True):
    """Names of the sensors that run, and of those that failed last."""

    running: list[str]
    failing: list[str]


class HubStatus(Struct, frozen=True):
    """The content of the status file."""

    hub: str
    site: str
    pid: int
    ts: int
    path: PathStatus
    epoch: str
    session: int
    outbox: OutboxStatus
    sensors: SensorsStatus


@dataclass(frozen=True, slots=True)
class Found:
    """A status, whether a hub runs here, and whether it shows that it lives: one that hangs, or whose disk is full, does not."""

    status: HubStatus
    running: bool
    fresh: bool = True

    @property
    def json(self) -> str:
        """Return the status as one JSON object."""
        return orjson.dumps({**msgspec.to_builtins(self.status), "running": self.running, "fresh": self.fresh}).decode()


def read_status(settings: HubSettings) -> Found:
    """Read the status of the hub with these settings. Raises SettingsError if it never ran."""
    file = settings.hub.data_dir / STATUS_FILE
    try:
        status = msgspec.json.decode(file.read_bytes(), type=HubStatus)
    except FileNotFoundError:
        if (pid := holder_of(settings.hub.data_dir / OUTBOX_FILE)) is not None:
            raise SettingsError(
                f"is not there, though a hub runs, process {pid}: can it write there?", file=file
            ) from None
        raise SettingsError("the hub has never run here; start it with: hubline hub run -c FILE", file=file) from None
    except OSError as exc:
        raise SettingsError(f"can't be read: {exc.strerror}", file=file) from exc
    except (msgspec.DecodeError, RecursionError) as exc:
        raise SettingsError(f"is not a hub's status: {exc}", file=file) from exc
    fresh = unix_ms() - status.ts < limits.STATUS_STALE_S * 1000
    return Found(status, holder_of(settings.hub.data_dir / OUTBOX_FILE) is not None, fresh)


def told(found: Found) -> str:
    """Return the status as a few lines for a person, the most important first."""
    status = found.status
    outbox = status.outbox
    lines = [f"{status.hub} at {status.site}: {_headline(found)}"]
    lines += _prospects(found) if found.running else []
    oldest = "" if outbox.oldest is None else f", the oldest of {_moment(outbox.oldest)}"
    lines.append(f"  waiting          {outbox.pending} messages, {outbox.bytes:,} bytes{oldest}")
    lines.append(
        f"  written so far   {outbox.points_written:,} points in {outbox.last_seq:,} messages, epoch {status.epoch}"
    )
    if outbox.gaps:
        lines.append(f"  given up         {outbox.points_lost:,} points, told in {outbox.gaps} gap records")
    if outbox.refusal is not None:
        lines.append(f"  disk             takes nothing: {outbox.refusal}")
    lines.append(f"  sensors          {', '.join(status.sensors.running) or 'none'}")
    if status.sensors.failing:
        lines.append(f"  failing          {', '.join(status.sensors.failing)}")
    return "\n".join(lines)


def _prospects(found: Found) -> list[str]:
    """Return what was tried, and what comes next."""
    path = found.status.path
    lines = []
    match path.kind:
        case "connector":
            lines.append(
                f"  why              the site broker answers, and {path.connector} says that its way to the cloud is open"
            )
            lines.append(
                "  other path       directly to the cloud, when no connector has been good for failover.outage_s"
            )
        case "direct":
            lines.append(
                "  why              no connector was good for failover.outage_s, or none was found at the start"
            )
    if path.kind != "connector" and path.outage_since is not None:
        lines.append(f"  connector        out since {_moment(path.outage_since)}")
    lines += [
        f"  last failure     {'connector' if kind == 'connector' else 'cloud'}: {reason}"
        for kind, reason in path.failures.items()
        if path.kind != "connector"
    ]
    if path.kind == "none" and path.switch_at is not None:
        wait_s = max(0, round((path.switch_at - unix_ms()) / 1000))
        when = f"in {wait_s // 60} min {wait_s % 60} s, at {_moment(path.switch_at)}" if wait_s else "now"
        lines.append(f"  to the cloud     {when}, unless a connector comes back")
    if path.kind == "direct" and path.watched is not None:
        back = (
            "is not good yet" if path.return_at is None else f"is taken at {_moment(path.return_at)} if it stays good"
        )
        lines.append(f"  way back         {path.watched} {back}")
    return lines


def _headline(found: Found) -> str:
    status = found.status
    if not found.running:
        return f"does not run (last sign of life {_moment(status.ts)})"
    if not found.fresh:
        return (
            f"runs, but has told nothing since {_moment(status.ts)}: it hangs, or its disk is full; what it told then:"
        )
    match status.path.kind:
        case "connector":
            where = f"sends through connector {status.path.connector} ({status.path.endpoint})"
        case "direct":
            where = f"sends to the cloud directly ({status.path.endpoint})"
        case _:
            where = "has no path; it measures on and keeps everything"
    return f"{where} since {_moment(status.path.since)}"


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
