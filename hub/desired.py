"""Which settings from the cloud are in force at this hub (pure): new ones are on trial until the cloud is reached with them.

    good ── new ──▶ checked ──▶ trial ── a report is acknowledged, and the hub stays alive ──▶ good
                       │          └── not within the trial's time ──▶ the last good ones, "rolled-back"
                       └── invalid ──▶ "refused", nothing changes

The trial's time goes on over restarts, and is saved ahead: what is saved has always elapsed by the next save, so a hub that
new settings bring down again and again comes back with the last good ones. Whatever is decided is kept before it is done:
a crash at any step ends in the good settings or in the trial. Documents of an older version are answered, not obeyed. A hub
that roams takes no new ones; the cloud sends them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Annotated, Any, Final, TypeAlias

from msgspec import Meta, Struct

from broker.control import DesiredSettings, SettingsHash, SettingsReport
from broker.machine import Wakeup
from broker.messages import Count
from config import limits, remote

SWITCHED_OFF: Final = "this hub takes no settings from the cloud: remote.settings is false in its own file"


class Document(Struct, frozen=True):
    """Settings from the cloud. Version 0: there are none, the hub's own file alone counts."""

    version: Count = 0
    hash: SettingsHash = remote.EMPTY_HASH
    settings: dict[str, dict[str, Any]] = {}


NONE: Final = Document()


class Kept(Struct, frozen=True, omit_defaults=True):
    """What outlives the process. `elapsed_s` of the trial have passed; `declined` is the last document that did not stay."""

    good: Document = NONE
    trial: Document | None = None
    elapsed_s: Annotated[float, Meta(ge=0)] = 0.0
    declined: SettingsReport | None = None


# --- Events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The process has begun, and this is what was kept."""

    kept: Kept


@dataclass(frozen=True, slots=True)
class Running:
    """The hub works, with the settings in force: what it sends from now on, it sends with them."""


@dataclass(frozen=True, slots=True)
class SettingsReceived:
    """The cloud wants these settings."""

    desired: DesiredSettings


@dataclass(frozen=True, slots=True)
class Checked:
    """A document fits this hub's own file and this machine, or (`problem`) it does not."""

    document: Document
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class ReportAcknowledged:
    """The cloud has committed a report; its word has reached us with the settings in force, and they cut no path."""


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The hub can't work with the settings in force."""

    reason: str


@dataclass(frozen=True, slots=True)
class RoamingChanged:
    """The hub roams now, or no longer."""

    roaming: bool


Event: TypeAlias = (
    Started | Running | SettingsReceived | Checked | ReportAcknowledged | StartFailed | RoamingChanged | Wakeup
)

# --- Commands -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Keep:
    """Make this durable before the next command."""

    kept: Kept


@dataclass(frozen=True, slots=True)
class Check:
    """See whether the hub could start with these settings; answer with `Checked`."""

    document: Document


@dataclass(frozen=True, slots=True)
class Apply:
    """Begin anew with new settings, which are on trial; answer with `Running` or `StartFailed`."""

    document: Document


@dataclass(frozen=True, slots=True)
class Revert:
    """Begin anew with the last good settings; answer with `Running` or `StartFailed`."""

    document: Document


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the cloud."""

    report: SettingsReport


Command: TypeAlias = Keep | Check | Apply | Revert | Report

# --- The machine ----------------------------------------------------------------------------------------------------


class Deployment:
    """The settings of one hub. `enabled` and `trial_s` are the `[remote]` of its own file."""

    def __init__(self, *, enabled: bool, trial_s: float):
        self.kept = Kept()
        self._enabled = enabled
        self._trial_s = trial_s
        self._save_s = min(limits.SETTINGS_TRIAL_SAVE_S, trial_s * limits.SETTINGS_TRIAL_SHARE)
        self._ends_at = inf
        self._save_at = inf
        self._stable_s = min(limits.SETTINGS_STABLE_S, trial_s * limits.SETTINGS_TRIAL_SHARE)
        self._stable_at = inf
        self._reached = False
        self._asked: Document | None = None
        self._running = False
        self._roaming = False

    @property
    def in_force(self) -> Document:
        """Return the settings that the hub is to work with, over its own file."""
        return self.kept.trial or self.kept.good

    @property
    def standing(self) -> SettingsReport | None:
        """Return what there is to tell of the newest document, or None if the cloud has never sent any."""
        known = []
        if self.kept.good.version:
            known.append(SettingsReport(self.kept.good.version, self.kept.good.hash, "applied"))
        if self.kept.declined is not None:
            known.append(self.kept.declined)
        if self.kept.trial is not None:
            known.append(SettingsReport(self.kept.trial.version, self.kept.trial.hash, "trial"))
        return max(known, key=lambda report: report.version, default=None)

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take what has happened and return what to do."""
        match event:
            case Started(kept):
                return self._start(kept, now)
            case Running():
                self._running, self._reached, self._stable_at = True, False, now + self._stable_s
                return self._tell()
            case SettingsReceived() if self._roaming:
                return []  # They are sent again when it is over.
            case SettingsReceived(desired):
                return self._receive(desired, now)
            case Checked(document) if document != self._asked or self._roaming:
                return []  # About one that is not wanted any more, or not now.
            case Checked(document, problem):
                self._asked = None
                return self._decline(document, problem) if problem is not None else self._try(document, now)
            case ReportAcknowledged() if not self._running:
                return []  # That report was made by a life before.
            case ReportAcknowledged():
                self._reached = True
                return self._wake(now)
            case StartFailed(reason):
                return self._retreat(reason)
            case RoamingChanged(roaming):
                self._roaming = roaming
                return []
            case Wakeup():
                return self._wake(now)

    def deadline(self) -> float | None:
        """Return when the trial ends, or is to be saved."""
        if self.kept.trial is None:
            return None
        return min(self._save_at, self._stable_at if self._reached else self._ends_at)

    # --- Start and time -----------------------------------------------------------------------------------------------

    def _start(self, kept: Kept, now: float) -> list[Command]:
        self.kept = kept
        if not self._enabled:
            newest = self.standing
            if newest is None or newest.reason == SWITCHED_OFF:
                return []
            return self._keep(declined=SettingsReport(newest.version, newest.hash, "refused", SWITCHED_OFF))
        if kept.declined is not None and kept.declined.reason == SWITCHED_OFF:
            return self._keep()  # It takes them now: as if the cloud had never sent any.
        if kept.trial is None:
            return []
        self._ends_at = now + self._trial_s - kept.elapsed_s
        if now >= self._ends_at:
            return self._give_up(self._unreached())  # Nothing runs yet that had to begin anew.
        return self._save_ahead(now)

    def _wake(self, now: float) -> list[Command]:
        if self.kept.trial is None:
            return []
        if self._reached and now >= self._stable_at:
            return self._confirm(self.kept.trial)
        if now >= self._ends_at and not self._reached:
            return self._roll_back(self._unreached())
        return self._save_ahead(now) if now >= self._save_at else []

    def _save_ahead(self, now: float) -> list[Command]:
        self._save_at = now + self._save_s
        elapsed_s = min(self._trial_s, max(0.0, self._trial_s - (self._ends_at - self._save_at)))
        return self._keep(self.kept.good, self.kept.trial, elapsed_s, self.kept.declined)

    def _unreached(self) -> str:
        return f"the cloud could not be reached with them for {self._trial_s:g} s, over each path that they change"

    # --- What the cloud wants -----------------------------------------------------------------------------------------

    def _receive(self, desired: DesiredSettings, now: float) -> list[Command]:
        document = Document(desired.version, desired.hash, desired.settings)
        newest = self.standing
        if newest is not None and document.version <= newest.version:
            return self._tell()  # Late, or repeated: tell again how we stand.
        self._asked = None
        if not self._enabled:
            return self._decline(document, SWITCHED_OFF)
        if remote.hash_of(document.settings) != document.hash:
            return self._decline(document, "their hash is not that of their content")
        good, trial = self.kept.good, self.kept.trial
        if trial is not None and trial.hash == document.hash:
            return [*self._keep(good, document, self.kept.elapsed_s), *self._tell()]
        if good.hash == document.hash and trial is None:
            return [*self._keep(document), *self._tell()]
        if good.hash == document.hash:
            return [*self._keep(document), *self._begin_anew(Revert(document))]
        self._asked = document
        return [Check(document)]

    def _decline(self, document: Document, problem: str) -> list[Command]:
        report = SettingsReport(document.version, document.hash, "refused", _reason(problem))
        return [*self._keep(self.kept.good, self.kept.trial, self.kept.elapsed_s, report), *self._tell()]

    def _try(self, document: Document, now: float) -> list[Command]:
        self._ends_at, self._save_at = now + self._trial_s, now + self._save_s
        return [*self._keep(self.kept.good, document, self._save_s), *self._begin_anew(Apply(document))]

    def _confirm(self, trial: Document) -> list[Command]:
        declined = self.kept.declined
        later = declined if declined is not None and declined.version > trial.version else None
        return [*self._keep(trial, declined=later), *self._tell()]

    def _roll_back(self, reason: str) -> list[Command]:
        return [*self._give_up(reason), *self._begin_anew(Revert(self.kept.good))]

    def _give_up(self, reason: str) -> list[Command]:
        trial, declined = self.kept.trial, self.kept.declined
        assert trial is not None
        if declined is None or declined.version < trial.version:
            declined = SettingsReport(trial.version, trial.hash, "rolled-back", _reason(reason))
        return self._keep(self.kept.good, declined=declined)

    def _retreat(self, reason: str) -> list[Command]:
        """Give up the trial, or else the good settings, which this machine or its own file don't allow any more."""
        if self.kept.trial is not None:
            return self._roll_back(f"the hub could not start with them: {reason}")
        good, declined = self.kept.good, self.kept.declined
        if good.hash == remote.EMPTY_HASH:
            return []  # Its own file is at fault.
        if declined is None or declined.version < good.version:
            problem = _reason(f"the hub can't start with them any more: {reason}")
            declined = SettingsReport(good.version, good.hash, "refused", problem)
        return [*self._keep(declined=declined), *self._begin_anew(Revert(NONE))]

    # --- Steps --------------------------------------------------------------------------------------------------------

    def _keep(
        self,
        good: Document = NONE,
        trial: Document | None = None,
        elapsed_s: float = 0.0,
        declined: SettingsReport | None = None,
    ) -> list[Command]:
        self.kept = Kept(good, trial, elapsed_s, declined)
        return [Keep(self.kept)]

    def _begin_anew(self, command: Apply | Revert) -> list[Command]:
        self._running = self._reached = False
        return [command]

    def _tell(self) -> list[Command]:
        """Report how we stand; in between two lives the next one does it."""
        standing = self.standing
        return [] if standing is None or not self._running else [Report(standing)]


def _reason(text: str) -> str:
    return text[: limits.VALUE_TEXT_MAX]
