"""Random faults for hours: whatever happens, nothing is lost or doubled, no rule of the path is broken, and all drains."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from time import monotonic

import pytest

from tests.world import HOUR_S, World, site
from tests.world_faults import Faults
from tests.world_outbox import quick_folder

SOAK_HOURS_DEFAULT = 4.0
SEEDS = range(1, 21)


def _history(seed: int, folder: Path | None, hours: float = 2.0) -> World:
    """Let one world suffer; then mend it, drain it and audit it. Its size follows from the seed."""
    world = site(hubs=2 + seed % 3, connectors=1 + seed % 2, seed=seed, folder=folder, interval_s=30.0, late_states=0.2)
    faults = Faults(world)
    try:
        world.run(hours * HOUR_S)
        faults.stop()
        world.settle()
    except AssertionError:
        print("\n".join(faults.done))
        raise
    finally:
        world.close()
    return world


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_or_doubled_and_every_rule_holds(seed: int) -> None:
    """The real outbox in a file, the real machines, and everything that can go wrong, in an order that a seed repeats."""
    with quick_folder() as folder:
        world = _history(seed, folder)
    recorded = sum(world.checks.ledger(name).recorded.count() for name in world.hubs)
    assert recorded > 100 * len(world.hubs)


def _fresh(seed: int) -> None:
    """Six hours of one seed; which kind of outbox it has follows from the seed, too."""
    with quick_folder() as folder:
        _history(seed, folder if seed % 2 else None, hours=6.0)


def test_one_seed_is_one_history() -> None:
    """Else a failing seed would tell nothing."""
    first, second = (_history(7, None, hours=1.0) for _ in range(2))
    assert first.steps == second.steps
    for name in first.hubs:
        assert first.checks.ledger(name).switches == second.checks.ledger(name).switches


@pytest.mark.soak
def test_fresh_seeds_for_hours() -> None:
    """HUBLINE_SOAK_HOURS sets for how long; HUBLINE_SOAK_SEED repeats one seed."""
    if only := os.environ.get("HUBLINE_SOAK_SEED"):
        _fresh(int(only))
        return
    until = monotonic() + 3600 * float(os.environ.get("HUBLINE_SOAK_HOURS", SOAK_HOURS_DEFAULT))
    histories = 0
    while monotonic() < until:
        seed = secrets.randbelow(2**31)
        try:
            _fresh(seed)
        except BaseException:
            print(f"failing seed: HUBLINE_SOAK_SEED={seed} (after {histories} good ones)")
            raise
        histories += 1
    print(f"{histories} histories of six hours, nothing lost, nothing doubled")
