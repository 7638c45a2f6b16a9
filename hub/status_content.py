"""What a running hub writes into its status file; `hub.status` reads it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from broker.clock import unix_ms
from broker.control import Mode, Reported
from broker.runner import monotonic_s
from config.settings import HubSettings
from hub.courier import Courier
from hub.keeper import Keeper
from hub.link import Kind
from hub.mode import Contact
from hub.mode_line import Line


def content_of(
    settings: HubSettings,
    line: Line,
    keeper: Keeper,
    courier: Courier,
    *,
    mode: Mode,
    sensors: Sequence[str],
    failing: Sequence[str],
    tasks: Sequence[str],
    reported: Reported,
) -> dict[str, object]:
    """Return the content as of now."""
    holds = keeper.standing
    return {
        "hub": settings.identity.name,
        "site": settings.identity.site,
        "pid": os.getpid(),
        "ts": unix_ms(),
        "path": _path(line),
        "mode": {
            "kind": mode,
            "polling": not line.continuous,
            "contact": None if line.contact is None else line.contact.value,
            "next_heartbeat": _wall_ms(line.due_at(Contact.HEARTBEAT)),
            "next_poll": _wall_ms(line.due_at(Contact.POLL)),
        },
        "tasks": list(tasks),
        "settings": None if reported.settings is None else msgspec.to_builtins(reported.settings),
        "protection": None if reported.protection is None else msgspec.to_builtins(reported.protection),
        "epoch": courier.epoch,
        "session": line.session_number,
        "outbox": {
            "pending": courier.unacknowledged,
            "last_seq": holds.last_seq,
            "bytes": holds.size_bytes,
            "oldest": holds.oldest_ms,
            "gaps": holds.gaps,
            "points": holds.points,
            "points_written": holds.points_written,
            "points_lost": holds.points_lost,
            "refusal": keeper.refusal,
        },
        "sensors": {"running": list(sensors), "failing": list(failing)},
    }


def _path(line: Line) -> dict[str, object]:
    link = line.link
    if link is None:
        nothing = dict.fromkeys(("connector", "endpoint", "outage_since", "switch_at", "watched", "return_at"))
        return {"kind": "none", "since": line.since_ms, **nothing, "failures": {}}
    using, watched = link.using, link.watched
    kind = "none" if using is None else using.kind.value
    return {
        "kind": kind,
        "connector": link.using_via if using is not None and using.kind is Kind.CONNECTOR else None,
        "endpoint": None if using is None else using.endpoint,
        "since": line.since_ms,
        "outage_since": _wall_ms(link.out_at),
        "switch_at": None if kind == "direct" else _wall_ms(link.switch_at),
        "watched": None if watched is None else watched[0],
        "return_at": None if watched is None else _wall_ms(watched[1]),
        "failures": {kind.value: reason for kind, reason in link.failures.items()},
    }


def _wall_ms(at: float | None) -> int | None:
    """Return a monotonic instant as Unix milliseconds, to the second: the two clocks drift, and a person reads it."""
    return None if at is None else round(unix_ms() / 1000 + at - monotonic_s()) * 1000
