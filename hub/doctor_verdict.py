"""Which path a hub would take now, and why (pure): what was found, held against the rule of failover."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from config.settings import Failover
from hub.diagnosis import Verdict, moment, span
from hub.doctor_probe import Probed, describe_connector
from hub.status import PathStatus


@dataclass(frozen=True, slots=True)
class Situation:
    """What the verdict follows from.

    `running` is the path of the hub that runs, or None. `outage_ms` is since when the hub remembers no good connector;
    `away` says that its network is another than the one that it remembers.
    """

    now_ms: int
    sites: Sequence[Probed]
    clouds: Sequence[Probed]
    running: PathStatus | None
    outage_ms: int | None
    failover: Failover
    away: bool = False


def verdict(situation: Situation) -> Verdict:
    """Return which path would be used now."""
    running = situation.running
    good = _best(situation.sites, running)
    direct = _best(situation.clouds, running)
    if direct is not None and running is not None and running.kind == "direct":
        return _stays_direct(direct, good, running, situation)
    if good is not None:
        return _through(good)
    if direct is not None:
        return _to_the_cloud(direct, situation)
    return Verdict(
        "none",
        f"none. Connector: {_why_no_site(situation.sites)}. Cloud: {_why_no_cloud(situation.clouds)}. "
        "The hub measures on and keeps everything until a path works.",
    )


def _best(probed: Sequence[Probed], running: PathStatus | None) -> Probed | None:
    """Return the one that works: the one in use, else the first."""
    works = [each for each in probed if each.via is not None]
    in_use = [each for each in works if running is not None and each.target.endpoint == running.endpoint]
    return next(iter(in_use or works), None)


def _through(good: Probed) -> Verdict:
    via = good.via
    assert via is not None
    word = describe_connector(via, good.connectors[via]).partition(", ")[2]
    return Verdict("connector", f"through connector {via} at {good.target.endpoint}: {good.target.origin}; {word}")


def _stays_direct(direct: Probed, good: Probed | None, running: PathStatus, situation: Situation) -> Verdict:
    text = f"directly to the cloud at {running.endpoint or direct.target.endpoint}, as since {moment(running.since)}"
    if good is None:
        return Verdict("direct", f"{text}: {_why_no_site(situation.sites)}")
    back = "when that has been stable for a while"
    if running.return_at is not None:
        back = f"in {span((running.return_at - situation.now_ms) / 1000)} if that stays good"
    return Verdict("direct", f"{text}; connector {good.via} is good again, and the hub goes back to it {back}")


def _to_the_cloud(direct: Probed, situation: Situation) -> Verdict:
    why = _why_no_site(situation.sites)
    wait_s = _wait_s(situation)
    at = f"directly to the cloud at {direct.target.endpoint}"
    if situation.running is None:
        if wait_s <= 0:
            return Verdict("direct", f"{at}, as soon as the hub runs: {why}")
        return Verdict(
            "direct", f"{at}, {span(wait_s)} after the hub starts, unless a connector is good by then: {why}"
        )
    if wait_s <= 0:
        return Verdict("direct", f"{at}, now: {why}")
    return Verdict("direct", f"{at} in {span(wait_s)}, unless a connector comes back: {why}")


def _wait_s(situation: Situation) -> float:
    """Return how long the hub waits before it goes to the cloud; from its start, if it does not run."""
    failover, running, now_ms = situation.failover, situation.running, situation.now_ms
    if running is not None and running.switch_at is not None:
        return (running.switch_at - now_ms) / 1000
    if running is not None:
        return failover.outage_s  # Its own session is still good, or has broken this moment.
    grace_s = failover.away_grace_s if situation.away else failover.start_grace_s
    if situation.outage_ms is None:
        return min(grace_s, failover.outage_s)
    return min(grace_s, failover.outage_s - max(0, now_ms - situation.outage_ms) / 1000)


def _why_no_site(sites: Sequence[Probed]) -> str:
    if not sites:
        return "no connector is known: none is remembered, none has answered the search, none is named in the settings"
    return _why(sites)


def _why_no_cloud(clouds: Sequence[Probed]) -> str:
    return _why(clouds) if clouds else "none is named in the settings"


def _why(probed: Sequence[Probed]) -> str:
    """Return what the one lacks that came furthest, since it says most."""
    furthest = max(probed, key=lambda each: len(each.steps))
    failure = furthest.failure
    text = "it works" if failure is None else failure.text
    others = len(probed) - 1
    return text + {0: "", 1: " (another address fails, too)"}.get(others, f" ({others} other addresses fail, too)")
