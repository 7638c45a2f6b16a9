"""What a task is for the cloud, how it stands at one hub, and what a hub's report changes in that (pure).

The transaction that stores a report and the machine that waits for it use the same rule, so they never disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

from broker.control import TaskReport
from broker.messages import Value
from cloud.hub_key import HubKey

TargetState: TypeAlias = Literal[
    "queued", "sent", "accepted", "running", "done", "failed", "refused", "expired", "cancelled"
]
OPEN: Final[tuple[TargetState, ...]] = ("queued", "sent", "accepted", "running")
"""In the order in which a target goes through them."""
FINAL: Final[tuple[TargetState, ...]] = ("done", "failed", "refused", "expired", "cancelled")

_RANKS: Final[Mapping[str, int]] = {
    **{state: rank for rank, state in enumerate(OPEN)},
    **dict.fromkeys(FINAL, len(OPEN)),
}


@dataclass(frozen=True, slots=True)
class TaskOrder:
    """What is to be done, and until when it may be begun; times are Unix ms by the cloud's clock."""

    task: str
    action: str
    arguments: Mapping[str, Value]
    created_ms: int
    expires_ms: int
    skip_if_offline: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """How a task stands at one hub. `presumed`: the cloud has concluded it from silence, and may be wrong."""

    state: TargetState = "queued"
    progress: int | None = None
    message: str | None = None
    output: Mapping[str, Any] | None = field(default=None, hash=False)
    presumed: bool = False

    @property
    def final(self) -> bool:
        """Tell whether nothing is waited for any more."""
        return self.state in FINAL


@dataclass(frozen=True, slots=True)
class OpenTarget:
    """A target that is not at its end, as the database knows it."""

    order: TaskOrder
    key: HubKey
    standing: Standing
    changed_ms: int
    cancel_asked: bool = False


@dataclass(frozen=True, slots=True)
class TargetChange:
    """What the cloud itself has decided about one target: how it stands now, and whether its end was asked for."""

    task: str
    key: HubKey
    standing: Standing
    cancel_asked: bool = False


def merged(known: Standing, report: TaskReport) -> Standing | None:
    """Return how a target stands after a hub's report, or None if that changes nothing.

    States only go forward, so repeated, late and reordered reports are harmless. A final state is never left, unless it
    was presumed: then the end that the hub tells is the truth.
    """
    fresh = Standing(report.state, report.progress, report.message, report.output)
    if known.final:
        return fresh if known.presumed and fresh.final else None
    if known.state == "running" and report.state in ("expired", "refused"):
        # It was begun, so the hub that now declines it does not remember it: its answer tells nothing of the end.
        return Standing("failed", known.progress, "the hub has no record of it any more")
    if _RANKS[fresh.state] != _RANKS[known.state]:
        return fresh if _RANKS[fresh.state] > _RANKS[known.state] else None
    if fresh.state != "running" or (fresh.progress or 0) < (known.progress or 0):
        return None
    fresh = replace(fresh, progress=known.progress if fresh.progress is None else fresh.progress)
    return None if fresh == known else fresh
