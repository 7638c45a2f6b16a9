"""What an examination of a hub finds: one check after the other, in plain words, with what to do; and what follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Literal, TypeAlias

PathName: TypeAlias = Literal["connector", "direct", "none"]


class State(Enum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. `lines` say more, one a line; `details` hold it for programs, fit for JSON."""

    name: str
    state: State
    text: str
    todo: str | None = None
    lines: Sequence[str] = ()
    details: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which path would be used now, and why."""

    path: PathName
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """All checks in the order in which they were done, and the verdict."""

    checks: Sequence[Check]
    verdict: Verdict

    @property
    def works(self) -> bool:
        """Tell whether there is a path."""
        return self.verdict.path != "none"

    def plain(self) -> dict[str, object]:
        """Return the report as it is in JSON."""
        checks = [
            {
                "name": check.name,
                "state": check.state.value,
                "text": check.text,
                "todo": check.todo,
                "details": dict(check.details),
            }
            for check in self.checks
        ]
        return {"checks": checks, "verdict": self.verdict.text, "path": self.verdict.path}


def moment(ms: int) -> str:
    """Return Unix milliseconds as people here read them."""
    return datetime.fromtimestamp(ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def span(seconds: float) -> str:
    """Return a length of time in words: "3 min 20 s"."""
    whole = max(0, round(seconds))
    units = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    parts = []
    for length, unit in units:
        count, whole = divmod(whole, length)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"
