"""A fleet whose hubs all lose their connectors at the same moment and go to the cloud: real links, and a broker that admits.

The broker is a queue: it takes so many handshakes a second; who waits too long is closed, who finds the queue full is
refused. So the table shows what a cloud has to bear, with and without the link's jitter.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

from broker.machine import Wakeup
from broker.messages import ConnectorState
from config import limits
from config.settings import Failback, Failover
from hub.link import (
    CloudAcknowledged,
    Command,
    Connect,
    ConnectorHeard,
    Kind,
    Link,
    SessionEnded,
    SessionOpened,
    Surroundings,
    Use,
)

UP = ConnectorState(online=True, session=1, upstream="up")
WILL = ConnectorState(online=False, session=1)
LATENCY_S = (0.02, 0.08)
BEGIN_S = Failover().outage_s - 1.0  # Before, nothing happens at the cloud.


@dataclass(slots=True)
class Storm:
    """What happened, by seconds since the wills. `first_tenths` are attempts by tenths, where peaks are seen."""

    hubs: int
    admitted_per_s: float
    attempts: Counter[int] = field(default_factory=Counter)
    admitted: Counter[int] = field(default_factory=Counter)
    first_tenths: Counter[int] = field(default_factory=Counter)
    switched_at: list[float] = field(default_factory=list)

    def share_at(self, share: float) -> float:
        """Return when this share of the hubs was on the cloud, in seconds since the wills."""
        return sorted(self.switched_at)[max(0, round(share * self.hubs) - 1)]


def storm(hubs: int, *, switch_jitter_s: float, admitted_per_s: float, seed: int, until_s: float = 600.0) -> Storm:
    """Let all hubs lose their connectors at t = 0 and watch the cloud's broker until all are there, or `until_s`."""
    random = Random(seed)
    result = Storm(hubs, admitted_per_s)
    numbers = count()
    agenda: list[tuple[float, int, int, Any]] = []  # When, order, hub, event (None: look at the deadline).
    queue_free_at = 0.0

    def push(at: float, hub: int, event: object) -> None:
        heapq.heappush(agenda, (at, next(numbers), hub, event))

    links = [_on_connector(f"hub-{hub}", switch_jitter_s, random) for hub in range(hubs)]
    for hub, link in enumerate(links):
        link.handle(ConnectorHeard(1, "c", WILL), 0.0)
        push(BEGIN_S, hub, None)
    armed = [BEGIN_S] * hubs

    def attempt(now: float, hub: int, command: Connect) -> None:
        nonlocal queue_free_at
        if command.kind is Kind.CONNECTOR:
            push(now + random.uniform(*LATENCY_S), hub, SessionEnded(command.session, "refused"))
            return
        now += random.uniform(*LATENCY_S)
        result.attempts[int(now)] += 1
        result.first_tenths[int(now * 10)] += 1
        queue_free_at = max(queue_free_at, now)
        wait_s = queue_free_at - now
        if wait_s > min(limits.HANDSHAKE_WAIT_S, limits.HANDSHAKES_WAITING_MAX / admitted_per_s):
            push(now + random.uniform(*LATENCY_S), hub, SessionEnded(command.session, "refused"))
            return
        queue_free_at += 1 / admitted_per_s
        result.admitted[int(queue_free_at)] += 1
        push(queue_free_at + random.uniform(*LATENCY_S), hub, SessionOpened(command.session))

    while agenda and len(result.switched_at) < hubs:
        now, _, hub, event = heapq.heappop(agenda)
        if now > until_s:
            break
        link = links[hub]
        if event is None:
            if armed[hub] != now:
                continue
            event = Wakeup()
        commands: list[Command] = link.handle(event, now)
        for command in commands:
            match command:
                case Connect():
                    attempt(now, hub, command)
                case Use(session, "direct"):
                    result.switched_at.append(now)
                    push(now + random.uniform(*LATENCY_S), hub, CloudAcknowledged(session))
                case _:
                    pass  # Nothing that the cloud's broker sees.
        deadline = link.deadline()
        if deadline is not None:
            armed[hub] = max(now, deadline)
            push(armed[hub], hub, None)
    return result


def _on_connector(hub_id: str, switch_jitter_s: float, random: Random) -> Link:
    surroundings = Surroundings(cached=("site:8883",), cloud=("cloud:8883",), discovery=False)
    link = Link(
        hub_id, Failover(), Failback(), surroundings, random=random, started_at=-1.0, switch_jitter_s=switch_jitter_s
    )
    for event in (Wakeup(), SessionOpened(1), ConnectorHeard(1, "c", UP), CloudAcknowledged(1)):
        link.handle(event, -1.0)
    return link


def table(without: Storm, with_jitter: Storm) -> str:
    """Return both as markdown: the rate at the cloud over time, and when how many hubs were there."""
    rows = [
        "| since the wills | attempts/s without jitter | attempts/s with jitter | on the cloud without | with |",
        "|--:|--:|--:|--:|--:|",
    ]
    for first, last in _spans(max(int(without.share_at(1.0)), int(with_jitter.share_at(1.0)))):
        cells = [f"{first} s" if first == last else f"{first} to {last} s"]
        seconds = range(first, last + 1)
        cells += [f"{sum(one.attempts[s] for s in seconds) / len(seconds):,.0f}" for one in (without, with_jitter)]
        cells += [f"{sum(at < last + 1 for at in one.switched_at) / one.hubs:.1%}" for one in (without, with_jitter)]
        rows.append(f"| {' | '.join(cells)} |")
    peaks = [max(one.first_tenths.values()) for one in (without, with_jitter)]
    rows.append(f"| most in a tenth of a second | {peaks[0]:,} | {peaks[1]:,} | | |")
    rows.append(
        f"| all attempts | {without.attempts.total():,} | {with_jitter.attempts.total():,} | "
        f"95 % after {without.share_at(0.95):.1f} s | 95 % after {with_jitter.share_at(0.95):.1f} s |"
    )
    return "\n".join(rows)


def _spans(last_s: int) -> Iterable[tuple[int, int]]:
    """Yield the first seconds one by one, later ones in tens."""
    begin = int(Failover().outage_s)
    yield from ((second, second) for second in range(begin, min(begin + 10, last_s + 1)))
    for first in range(begin + 10, last_s + 1, 10):
        yield first, min(first + 9, last_s)
