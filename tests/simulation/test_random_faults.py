"""Random faults for hours: whatever happens, nothing is lost or doubled, no rule of the path is broken, and all drains."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import pytest

from tests.world import World, site
from tests.world_bridge import bridged_site
from tests.world_faults import suffer
from tests.world_outbox import quick_folder

SOAK_HOURS_DEFAULT = 4.0
SEEDS = range(1, 21)


def _history(seed: int, folder: Path | None, hours: float = 2.0, make: Callable[..., World] = site) -> World:
    """Let one world suffer; its size follows from the seed."""
    return suffer(
        make(hubs=2 + seed % 3, connectors=1 + seed % 2, seed=seed, folder=folder, interval_s=30.0, late_states=0.2),
        hours,
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_or_doubled_and_every_rule_holds(seed: int) -> None:
    """The real outbox in a file, the real machines, and everything that can go wrong, in an order that a seed repeats."""
    with quick_folder() as folder:
        world = _history(seed, folder)
    recorded = sum(world.checks.ledger(name).recorded.count() for name in world.hubs)
    assert recorded > 100 * len(world.hubs)


def _fresh(seed: int) -> None:
    """Six hours of one seed; which kind of outbox it has, and who bridges, follow from the seed, too."""
    with quick_folder() as folder:
        _history(seed, folder if seed % 2 else None, hours=6.0, make=bridged_site if seed % 3 == 0 else site)


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
