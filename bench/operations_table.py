"""A fleet in operation as a table, for a terminal and docs/performance.md."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

from bench.operations import BROKER, SERVICE, Operations
from bench.report import Grid

_REQUEST_WORDS: Final[Mapping[str, str]] = {
    "page": "a page of 100 hubs (`GET /hubs`)",
    "list": "all hubs (`GET /hubs?limit=1000`)",
    "hub": "one hub with its values (`GET /hubs/SITE/HUB`)",
    "log": "the connection log's newest 100 (`GET /connection-log`)",
    "hublog": "one hub's connection log",
}


def grid(found: Operations) -> Grid:
    """Return everything as one table."""
    steady, beside = found.steady, found.beside
    rows: list[tuple[str, ...]] = []

    def row(what: str, ours: str, peer: str = "", ratio: float | None = None) -> None:
        rows.append((what, ours, peer, "" if ratio is None else f"{ratio:.2f}"))

    row("s from the start of all hubs until they are shown online", f"{found.arrival.seconds:.1f}")
    row("messages/s stored in the steady state", f"{steady.messages / steady.seconds:.0f}")
    row("% of a core, cloud service", f"{100 * steady.share(SERVICE):.0f}")
    row("% of a core, cloud broker", f"{100 * steady.share(BROKER):.0f}")
    row("CPU s per 1000 messages, cloud broker", f"{steady.per_thousand(BROKER):.2f}")
    row("CPU s per 1000 messages, cloud service", f"{steady.per_thousand(SERVICE):.2f}")
    service = beside.per_thousand(SERVICE)
    for name, what in (("plain reader", "one that counts and keeps nothing"), ("row store", "one that stores rows")):
        peer = beside.per_thousand(name)
        row(f"the same beside another subscriber, {what}", f"{service:.2f}", f"{peer:.2f}", service / peer)
    row("MB resident, cloud service", f"{found.rss[SERVICE] / 1e6:.0f}")
    row("MB resident, cloud broker", f"{found.rss[BROKER] / 1e6:.0f}")
    for name, times in found.requests.items():
        for what, of in (("median", median), ("95th percentile", p95)):
            ours, peer = of(times.ours) * 1000, of(times.peer) * 1000
            size = f", {times.size_bytes / 1000:.1f} kB" if what == "median" else ""
            row(f"ms, {_REQUEST_WORDS[name]}: {what}{size}", f"{ours:.1f}", f"{peer:.1f}", ours / peer)
    for what, of in (("median", median), ("95th percentile", p95)):
        ours, peer = of(found.command.ours), of(found.command.peer)
        row(f"s, `hubline fleet list` as a command: {what}", f"{ours:.2f}", f"{peer:.2f}", ours / peer)
    seconds, service_s, broker_s = (
        [window.seconds for window in found.pings],
        [window.cpu_s[SERVICE] for window in found.pings],
        [window.cpu_s[BROKER] for window in found.pings],
    )
    row(f"s until a ping of all is done (median of {len(seconds)})", f"{median(seconds):.1f}")
    row("CPU s in it, cloud service (readings included)", f"{median(service_s):.1f}")
    row("CPU s in it, cloud broker", f"{median(broker_s):.1f}")
    told = found.told_s
    row("s from SIGKILL of all hubs to the last will at a subscriber", f"{told['will']:.2f}")
    for key, what in (("presence", "last `presence` at a subscriber"), ("shown", "API showing none online")):
        row(
            f"s from SIGKILL of all hubs to the {what}",
            f"{told[key]:.2f}",
            f"{told['will']:.2f}",
            told[key] / told["will"],
        )
    row("CPU s in it, cloud service", f"{found.killed.cpu_s[SERVICE]:.1f}")
    row("CPU s in it, cloud broker", f"{found.killed.cpu_s[BROKER]:.1f}")
    tally = found.tally
    said = (
        f"{found.hubs} hubs, each with its own certificate and connection over mutual TLS to the cloud broker. They have"
        f" sent {tally['sent']:,} messages, {tally['sent_again']:,} of them again, and lost {tally['lost']} connections."
        f" Other work on the machine meanwhile: {_others(found)} cores of {os.cpu_count()}."
    )
    return Grid(f"{found.hubs} hubs at the default intervals", said, ("", "Hubline", "peer", "Hubline ÷ peer"), rows)


def _others(found: Operations) -> str:
    windows = (found.arrival, found.steady, found.beside, *found.pings, found.killed)
    cores = [window.other_cores for window in windows]
    return f"{min(cores):.1f} to {max(cores):.1f}"


def p95(values: Sequence[float]) -> float:
    """Return the 95th percentile."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
