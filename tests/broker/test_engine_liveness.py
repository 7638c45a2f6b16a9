"""When an engine that runs counts as hung: as a table of what was seen, and of what it means."""

from __future__ import annotations

from typing import TypeAlias

import pytest

from broker.engines.liveness import (
    Answered,
    Ask,
    Bounds,
    Command,
    Condemn,
    Doubt,
    Event,
    GiveUp,
    Liveness,
    NotAsked,
    Refused,
    Spoke,
)
from broker.machine import Wakeup
from config import limits

BOUNDS = Bounds(interval_s=10.0, timeout_s=15.0, unanswered_max=3, late_s=5.0)
ASK, ANEW = [Ask()], [GiveUp(), Ask()]
WAKE = Wakeup()
Step: TypeAlias = tuple[float, Event | Wakeup, list[Command]]

ANSWERED_ONCE: list[Step] = [(0, WAKE, ASK), (1, Answered(), [])]
TWO_MISSED: list[Step] = [*ANSWERED_ONCE, (10, WAKE, ASK), (25, WAKE, ANEW), (40, WAKE, ANEW)]

STORIES: dict[str, list[Step]] = {
    "one that answers is asked at each interval": [*ANSWERED_ONCE, (10, WAKE, ASK), (11, Answered(), []), (20, WAKE, ASK)],
    "it has its time to answer": [*ANSWERED_ONCE, (10, WAKE, ASK), (20, WAKE, []), (24.9, Answered(), []), (25, WAKE, ASK)],
    "one that hangs is condemned once": [
        *TWO_MISSED, (55, WAKE, [GiveUp(), Condemn(3, 54.0)]), (70, WAKE, []), (71, Answered(), []), (72, Refused(), []),
    ],
    "an answer in between takes all back": [
        *TWO_MISSED, (54, Answered(), []), (55, WAKE, ASK), (70, WAKE, ANEW), (85, WAKE, ANEW),
    ],
    "one that is busy and speaks is left alone": [
        *TWO_MISSED, (54, Spoke(), []), (55, WAKE, ANEW), (69, Spoke(), []), (70, WAKE, ANEW), (85, WAKE, ANEW),
        (100, WAKE, [GiveUp(), Condemn(3, 31.0)]),
    ],
    "one where nobody listens any more hangs as well, at its intervals": [
        *ANSWERED_ONCE, (10, WAKE, ASK), (10, Refused(), []), (15, WAKE, []), (20, WAKE, ASK), (20, Refused(), []),
        (30, WAKE, ASK), (30, Refused(), [Condemn(3, 29.0)]),
    ],
    "what could not be asked says nothing": [
        *TWO_MISSED, (41, NotAsked(), []), (41, WAKE, []), (50, WAKE, ASK), (51, NotAsked(), []), (60, WAKE, ASK),
        (75, WAKE, [GiveUp(), Condemn(3, 74.0)]),
    ],
    "a suspended machine begins anew": [
        *TWO_MISSED, (600, WAKE, ANEW), (615, WAKE, ANEW), (630, WAKE, ANEW), (631, Answered(), []),
    ],
    "a machine suspended between two questions, too": [*TWO_MISSED, (54, NotAsked(), []), (300, WAKE, ASK), (315, WAKE, ANEW)],
    "one that was out of reach from the start is reported once, and lives": [
        (0, WAKE, ASK), (15, WAKE, ANEW), (30, WAKE, ANEW), (45, WAKE, [GiveUp(), Doubt(3), Ask()]), (60, WAKE, ANEW),
        (75, WAKE, ANEW), (90, WAKE, ANEW), (91, Answered(), []), (100, WAKE, ASK), (115, WAKE, ANEW), (130, WAKE, ANEW),
        (145, WAKE, [GiveUp(), Condemn(3, 54.0)]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("story", STORIES)
def test_a_verdict_follows_from_what_was_seen(story: str) -> None:
    """A wrong one puts out a whole site, and a missing one leaves it out for good."""
    liveness = Liveness(BOUNDS, 0.0)
    for now, event, commands in STORIES[story]:
        assert liveness.handle(event, now) == commands, (now, event)


def test_it_wants_to_be_woken_for_the_next_question_or_the_end_of_its_patience() -> None:
    liveness = Liveness(BOUNDS, 5.0)
    assert liveness.deadline() == 5.0
    deadlines = []
    for now, event in ((5, WAKE), (6, Answered()), (15, WAKE), (30, WAKE), (45, WAKE), (60, WAKE)):
        liveness.handle(event, now)
        deadlines.append(liveness.deadline())
    assert deadlines == [20, 15, 30, 45, 60, None]


def test_the_bounds_leave_a_busy_engine_a_minute_and_hubs_need_not_go_elsewhere() -> None:
    """What it takes until it serves again is less than what makes a hub go to the cloud for its site's broker."""
    bounds = Bounds()
    longest_s = bounds.interval_s + bounds.unanswered_max * bounds.timeout_s
    back_s = longest_s + limits.ENGINE_STOP_S + limits.ENGINE_BACKOFF_MAX_S + limits.ENGINE_READY_S
    assert longest_s - bounds.interval_s >= 60.0
    assert back_s < 5 * 60.0
