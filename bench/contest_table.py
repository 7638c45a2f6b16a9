"""Contests as tables: what each contestant reached, and the ratio to whom it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from bench.contest import Contest, Sample
from bench.gauge import Memory
from bench.report import Goal, Grid, ratio_goal, spread


def grid(contest: Contest, unit: str) -> Grid:
    """Return one contest. `unit` begins with "readings" if readings are counted."""
    pace = f", {contest.rate:g} messages/s" if contest.rate is not None else ""
    title = f"{contest.title}: {contest.readings} readings in a message of {contest.payload_bytes} bytes{pace}"
    names = [each.name for each in contest.contestants]
    compared = [each for each in contest.contestants if each.against is not None]
    found = Grid(title, "", ("", *names, *(f"{each.name} ÷ {each.against}" for each in compared)))
    per_message = contest.readings if unit.startswith("readings") else 1

    def row(what: str, of: Callable[[Sample], float | None], form: str) -> None:
        cells = [spread(_values(contest.samples(name), of), form) for name in names]
        ratios = [spread(contest.ratios(each.name, of), ".2f") for each in compared]
        found.rows.append((what, *cells, *ratios))

    row(unit, lambda sample: sample.messages_per_s * per_message, ",.0f")
    row("CPU s per 1000 messages, site's machine", lambda sample: sample.site_cpu_s, ".3f")
    row("CPU s per 1000 messages, cloud", lambda sample: sample.cloud_cpu_s, ".3f")
    for process in _processes(contest):
        cells = [spread(_values(contest.samples(name), lambda s: s.cpu_s.get(process)), ".3f") for name in names]  # noqa: B023
        found.rows.append((f"of these: {process}", *(cell.replace("–", "") for cell in cells), *("" for _ in compared)))
    row("WAN bytes per message, up", lambda sample: sample.wan_up, ",.0f")
    row("WAN bytes per message, down", lambda sample: sample.wan_down, ",.1f")
    row("cores that the load itself took", lambda sample: sample.load_cores, ".2f")
    for what, of in _COUNTS:
        totals = [sum(of(sample) for sample in contest.samples(name)) for name in names]
        found.rows.append((what, *(f"{total:,}" for total in totals), *("" for _ in compared)))
    return found


_COUNTS: Final[tuple[tuple[str, Callable[[Sample], int]], ...]] = (
    ("messages sent", lambda sample: sample.sent),
    ("sent again", lambda sample: sample.sent_again),
    ("not arrived", lambda sample: sample.lost),
)


def memory_grid(contests: Sequence[Contest]) -> Grid:
    """Return the most memory of each process, connected and silent, and under each load."""
    said = (
        "Resident, and in brackets of one process alone (RSS and USS), in MB, with descendants. The most of all runs."
    )
    found = Grid("Memory", said, ("process", "connected", *(f"{each.readings} readings" for each in contests)))
    names: dict[tuple[str, str], None] = {}
    for contest in contests:
        for each in contest.contestants:
            names |= {(each.name, process): None for process in contest.rounds[0][each.name].memory}
    for name, process in names:
        silent = [_most(contest, name, lambda sample: sample.idle.get(process)) for contest in contests]  # noqa: B023
        under = [_most(contest, name, lambda sample: sample.memory.get(process)) for contest in contests]  # noqa: B023
        idle = max((each for each in silent if each is not None), key=lambda each: each.rss, default=None)
        found.rows.append((f"{name}: {process}", *(_shown(each) for each in (idle, *under))))
    return found


def ratio(
    what: str, contest: Contest, name: str, of: Callable[[Sample], float | None], limit: float, *, most: bool
) -> Goal:
    """Return the verdict on a contestant."""
    return ratio_goal(what, contest.ratios(name, of), limit, most=most)


def rate(sample: Sample) -> float:
    """Return what a run is first of all about."""
    return sample.messages_per_s


def _processes(contest: Contest) -> list[str]:
    names: dict[str, None] = {}
    for sample in contest.rounds[0].values():
        names |= dict.fromkeys(sample.cpu_s)
    return list(names)


def _most(contest: Contest, name: str, of: Callable[[Sample], Memory | None]) -> Memory | None:
    if name not in contest.rounds[0]:
        return None
    seen = [memory for sample in contest.samples(name) if (memory := of(sample)) is not None]
    return max(seen, key=lambda each: each.rss, default=None)


def _values(samples: Sequence[Sample], of: Callable[[Sample], float | None]) -> list[float]:
    return [value for sample in samples if (value := of(sample)) is not None]


def _shown(memory: Memory | None) -> str:
    return "" if memory is None else f"{memory.rss / 1e6:.1f} ({memory.uss / 1e6:.1f})"
