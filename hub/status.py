"""What a person is told of a hub, from its status file: a hub opens no socket to be asked on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import msgspec
import orjson
from msgspec import Struct

from broker.clock import unix_ms
from broker.control import Connection, Mode, Protection, SettingsReport
from broker.status import Assessment, assess
from broker.status_text import Language
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


class ModeStatus(Struct, frozen=True):
    """How the hub keeps contact. While it polls, `contact` is what it is in contact for, or None between two contacts.

    `next_heartbeat` and `next_poll` in Unix milliseconds, None if there is none, or it is under way.
    """

    kind: Mode = "continuous"
    polling: bool = False
    contact: Literal["heartbeat", "poll"] | None = None
    next_heartbeat: int | None = None
    next_poll: int | None = None


class HubStatus(Struct, frozen=True):
    """The content of the status file. `tasks` are those that run, `settings` which ones from the cloud are in force."""

    hub: str
    site: str
    pid: int
    ts: int
    path: PathStatus
    epoch: str
    session: int
    outbox: OutboxStatus
    sensors: SensorsStatus
    mode: ModeStatus = ModeStatus()
    tasks: list[str] = []
    settings: SettingsReport | None = None
    protection: Protection | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A status, whether a hub runs here, and whether it shows that it lives: one that hangs, or whose disk is full, does not."""

    status: HubStatus
    running: bool
    fresh: bool = True

    def json(self, language: Language = "en") -> str:
        """Return the status, and what follows from it, as one JSON object."""
        content = {**msgspec.to_builtins(self.status), "running": self.running, "fresh": self.fresh}
        shown = self.assessed(language)
        return orjson.dumps(
            {**content, "icon": shown.icon, "text": shown.text, "actions": msgspec.to_builtins(shown.actions)}
        ).decode()

    def assessed(self, language: Language = "en") -> Assessment:
        """Return the one icon, the one sentence, and what must be done by whom: as this machine can know it."""
        status = self.status
        return assess(
            self._connection(),
            status.protection,
            reason="" if self.running else "stopped cleanly",
            language=language,
            last_seen_ms=status.ts if not self.running else None,
        )

    def _connection(self) -> Connection:
        status = self.status
        reached = status.path.kind != "none"
        if not self.running or not self.fresh:
            return "offline"
        if status.mode.kind == "roaming":
            return "roaming" if reached or status.mode.polling else "offline"
        if status.mode.polling:
            # Between two contacts nothing is missing; a contact that finds no path is one.
            return "unreachable-offline" if status.path.failures and not reached else "unreachable-online"
        return "online" if reached else "offline"


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


def told(found: Found, language: Language = "en") -> str:
    """Return the status as a few lines for a person, the most important first; `language`: of the sentence and of what to do."""
    status = found.status
    outbox = status.outbox
    shown = found.assessed(language)
    lines = [f"{status.hub} at {status.site}: {_headline(found)}", f"  status           [{shown.icon}] {shown.text}"]
    lines += [f"  to do            {action.who}: {action.text}" for action in shown.actions]
    if found.running:
        lines += [f"  mode             {line}" for line in _mode(status.mode)]
        lines += _prospects(found)
    oldest = "" if outbox.oldest is None else f", the oldest of {_moment(outbox.oldest)}"
    lines.append(f"  waiting          {outbox.pending} messages, {outbox.bytes:,} bytes{oldest}")
    lines.append(
        f"  written so far   {outbox.points_written:,} points in {outbox.last_seq:,} messages, epoch {status.epoch}"
    )
    if outbox.gaps:
        lines.append(f"  given up         {outbox.points_lost:,} points, told in {outbox.gaps} gap records")
    if outbox.refusal is not None:
        lines.append(f"  disk             takes nothing: {outbox.refusal}")
    if status.settings is not None:
        told = status.settings
        why = "" if told.reason is None else f": {told.reason}"
        lines.append(f"  settings         version {told.version} from the cloud, {told.state}{why}")
    if status.tasks:
        lines.append(f"  tasks            {', '.join(status.tasks)}")
    lines.append(f"  sensors          {', '.join(status.sensors.running) or 'none'}")
    if status.sensors.failing:
        lines.append(f"  failing          {', '.join(status.sensors.failing)}")
    return "\n".join(lines)


def _mode(mode: ModeStatus) -> list[str]:
    """Return in which mode the hub is, and when it is heard of next."""
    what = {
        "continuous": "continuous: keeps a session",
        "polling": "polling: keeps no session, and connects for its heartbeats and polls",
        "roaming": "roaming: log lines wait, no task starts, no setting is taken; end it with: hubline hub roam off",
    }
    lines = [what[mode.kind]]
    if mode.contact is not None:
        lines.append(f"in contact now, for a {mode.contact}")
    for name, at in (("heartbeat", mode.next_heartbeat), ("poll", mode.next_poll)):
        if at is not None:
            lines.append(f"next {name} at {_moment(at)}")
    return lines


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
        case _ if status.mode.polling and status.mode.contact is None:
            where = "measures, and keeps everything for its next contact"
        case _:
            where = "has no path; it measures on and keeps everything"
    return f"{where} since {_moment(status.path.since)}"


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
