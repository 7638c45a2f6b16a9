"""Lets a hub live with settings from the cloud: keeps them on the disk, checks them, and has the agent begin anew.

One keeper outlives all lives of the agent within a process; what it must know afterwards is in its file.

    keeper = SettingsKeeper(file, load(file, HubSettings), apply=…, report=…)
    while …:
        agent = Agent(keeper.effective())  # SettingsError of the agent: unless keeper.cannot_start(exc): raise
        keeper.start()  # In the event loop, once reports can be taken.
        …  # Until `apply` is called, or the process is to stop.
        keeper.close()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from broker.control import DesiredSettings, SettingsReport
from broker.runner import Runner, monotonic_s
from config import remote
from config.errors import SettingsError
from config.settings import HubSettings
from hub import desired_file
from hub.desired import (
    Apply,
    Check,
    Checked,
    Command,
    Deployment,
    Document,
    Event,
    Keep,
    Kept,
    Report,
    ReportAcknowledged,
    Revert,
    RoamingChanged,
    Running,
    SettingsReceived,
    Started,
    StartFailed,
)

log = structlog.get_logger(__name__)


class SettingsKeeper:
    """The settings of one hub. `file` is its hub.toml, and `own` what that says alone.

    `apply` is called when the agent is to begin anew: it must end, and the next one take what `effective` returns. `report`
    is called with what to tell the cloud, in an `up/reported` message; call `acknowledged` when the cloud has committed it.
    Neither is called before `start` or after `close`.
    """

    def __init__(
        self,
        file: Path,
        own: HubSettings,
        *,
        apply: Callable[[HubSettings], None],
        report: Callable[[SettingsReport], None],
        environ: Mapping[str, str] | None = None,
    ):
        self._file = file
        self._kept_file = own.hub.data_dir / desired_file.NAME
        self._environ = environ
        self._apply = apply
        self._report = report
        self._runner: Runner[Event, Command] | None = None
        self._known: dict[str, HubSettings] = {}
        self._machine = Deployment(enabled=own.remote.settings, trial_s=own.remote.trial_s)
        self._tell(Started(desired_file.read_kept(self._kept_file)))

    @property
    def standing(self) -> SettingsReport | None:
        """Return how the newest settings from the cloud stand, for every `up/reported`; None if there were never any."""
        return self._machine.standing

    @property
    def hash(self) -> str:
        """Return the hash of the settings in force, for polls."""
        return self._machine.in_force.hash

    def effective(self) -> HubSettings:
        """Return the settings to work with; what can't be used any more is given up, and the cloud told of it.

        Raises SettingsError if the hub's own file is wrong.
        """
        while True:
            try:
                return self._overlaid(self._machine.in_force)
            except SettingsError as exc:
                if self._own_problem() is not None or not self.cannot_start(exc):
                    raise

    def before_trial(self) -> HubSettings | None:
        """Return the settings that come back unless those on trial prove themselves; None if none are on trial."""
        if self._machine.kept.trial is None:
            return None
        try:
            return self._overlaid(self._machine.kept.good)
        except SettingsError:
            return None  # Nothing to go back to but what the file alone says: then the cloud's word is proof enough.

    def cannot_start(self, error: SettingsError) -> bool:
        """Give up the settings in force because the agent can't work with them; False if none from the cloud are in force."""
        before = self._machine.in_force
        self._tell(StartFailed(str(error)))
        if self._machine.in_force == before:
            return False
        log.error("settings_from_cloud_given_up", version=before.version, hash=before.hash, reason=str(error))
        return True

    def start(self) -> None:
        """Begin to count and to tell: the agent works with what `effective` returned, and can send."""
        self._runner = Runner(self._machine, self._execute)
        self._runner.feed(Running())

    def close(self) -> None:
        """Call nobody any more; the trial, if there is one, goes on."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def received(self, desired: DesiredSettings) -> None:
        """Take what the cloud wants."""
        self._tell(SettingsReceived(desired))

    def acknowledged(self) -> None:
        """Take note that the cloud has committed a report, and can be reached over each path that the settings change."""
        self._tell(ReportAcknowledged())

    def set_roaming(self, roaming: bool) -> None:
        """Take note whether the hub roams: then it takes no new settings."""
        self._tell(RoamingChanged(roaming))

    # --- Inside -------------------------------------------------------------------------------------------------------

    def _tell(self, event: Event) -> None:
        if self._runner is not None:
            self._runner.feed(event)
            return
        for command in self._machine.handle(event, monotonic_s()):  # The agent is between two lives.
            self._execute(command)

    def _execute(self, command: Command) -> None:
        match command:
            case Keep(kept):
                self._save(kept)
            case Check(document):
                self._check(document)
            case Apply(document):
                log.info("settings_from_cloud_tried", version=document.version, hash=document.hash)
                self._begin_anew(document)
            case Revert(document):
                log.warning("settings_from_cloud_taken_back", version=document.version, hash=document.hash)
                self._begin_anew(document)
            case Report(report):
                log.info("settings_from_cloud_reported", version=report.version, hash=report.hash, state=report.state)
                self._report(report)

    def _save(self, kept: Kept) -> None:
        """Keep it. What a disk that refuses holds instead is older, but whole: the next start goes on from there."""
        try:
            desired_file.write_kept(self._kept_file, kept)
        except OSError as exc:
            log.warning("settings_from_cloud_not_saved", file=str(self._kept_file), reason=exc.strerror)

    def _check(self, document: Document) -> None:
        try:
            remote.overlaid(self._file, document.settings, self._environ)
        except SettingsError as exc:
            own = self._own_problem()
            if own is None:
                self._tell(Checked(document, str(exc)))
            else:  # Somebody is writing that file. The cloud sends again.
                log.warning("settings_from_cloud_not_checked", version=document.version, reason=own)
        else:
            self._tell(Checked(document))

    def _begin_anew(self, document: Document) -> None:
        if self._runner is None:
            return  # Whoever starts the agent asks for what is in force.
        try:
            fresh = self._overlaid(document)
        except SettingsError as exc:
            self._tell(StartFailed(str(exc)))
        else:
            self._apply(fresh)

    def _overlaid(self, document: Document) -> HubSettings:
        """Return a document over the hub's own file, or what that came to last time while the file is wrong."""
        try:
            found = remote.overlaid(self._file, document.settings, self._environ)
        except SettingsError:
            known = self._known.get(document.hash)
            own = self._own_problem()
            if known is None or own is None:
                raise
            log.error("settings_not_read", reason=own, consequence="the hub goes on with what the file held before")
            return known
        kept = self._machine.kept
        wanted = {kept.good.hash, kept.trial.hash if kept.trial is not None else ""}
        self._known = {name: each for name, each in self._known.items() if name in wanted} | {document.hash: found}
        return found

    def _own_problem(self) -> str | None:
        try:
            remote.overlaid(self._file, {}, self._environ)
        except SettingsError as exc:
            return str(exc)
        return None
