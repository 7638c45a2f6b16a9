"""What follows from what is known of a hub: its one status, when that will change by itself, and whether it is hidden (pure).

In the grace after an outage of ours, a hub that was in contact stays so unless its own word says otherwise: what it missed, it
may have missed because of us. A hub that was not in contact stays that way until it is heard of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from broker.control import Connection
from cloud.presence_facts import (
    CERTIFICATE,
    CLOCK,
    CONNECTED,
    DUPLICATE,
    LOST,
    MISSED,
    NEVER_SEEN,
    PATH_DOWN,
    PAUSED,
    REVOKED,
    STARTED,
    STOPPED,
    Life,
    Record,
)
from cloud.presence_lives import rivals_until_ms
from config import limits
from config.settings import CloudPresence, Failover, Machine

DAY_MS = 86_400_000
MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class Terms:
    """Durations that the rules go by, in ms; `roaming_ms` is 0 if roaming is never granted."""

    direct_ms: int
    direct_grace_ms: int
    grace_ms: int
    roaming_ms: int
    skew_max_ms: float

    @classmethod
    def of(cls, settings: CloudPresence, outage_s: float = Failover().outage_s) -> Terms:
        """Return the terms for hubs that go direct `outage_s` after they have noticed an outage."""
        direct_s = outage_s + limits.SWITCH_JITTER_S + limits.KEEP_ALIVE_S * limits.KEEP_ALIVE_GRACE
        return cls(
            direct_ms=int(direct_s * 1000),
            direct_grace_ms=int(limits.DIRECT_GRACE_S * 1000),
            grace_ms=int(max(settings.grace_s, limits.PRESENCE_GRACE_MIN_S) * 1000),
            roaming_ms=int(settings.roaming_after_days * DAY_MS),
            skew_max_ms=settings.skew_max_s * 1000,
        )


_REVOKED_SILENT_MS: Final = int(limits.REVOKED_SILENT_S * 1000)


class Verdict(NamedTuple):
    """The status that holds. `out`: there is no contact."""

    connection: Connection
    reason: str
    via: str | None
    expected_direct_by_ms: int | None
    out: bool


class _Contact(NamedTuple):
    state: Literal["in", "path", "out"]
    reason: str
    expected_ms: int | None = None


def is_undecided(record: Record, at_ms: int) -> bool:
    """Tell whether a hub has spoken before its birth has come, which is on its way: until then its mode is not known."""
    due_ms = _birth_due_ms(record)
    return due_ms is not None and at_ms < due_ms


def _birth_due_ms(record: Record) -> int | None:
    life = record.life
    return None if life is None or life.online is not None else life.heard_ms + int(limits.BIRTH_WAIT_S * 1000)


def verdict(record: Record, at_ms: int, grace_until_ms: float, terms: Terms) -> Verdict:
    """Return the status of a hub. `grace_until_ms` is infinite while we are not connected ourselves."""
    life = record.life
    contact = _contact(record, life, at_ms, grace_until_ms, terms)
    out = contact.state == "out"
    connection: Connection
    if record.mode == "polling" and life is not None:
        connection = "unreachable-offline" if out else "unreachable-online"
    elif life is not None and (record.mode == "roaming" or (out and _granted(record, at_ms, grace_until_ms, terms))):
        connection = "roaming"
    elif out:
        connection = "offline"
    else:
        connection = "online" if contact.state == "in" else "path-down"
    via = None if life is None else life.via
    return Verdict(connection, _reason(record, contact, at_ms), via, contact.expected_ms, out)


def _contact(record: Record, life: Life | None, at_ms: int, grace_until_ms: float, terms: Terms) -> _Contact:
    if life is None:
        return _Contact("out", NEVER_SEEN)

    def lapsed(due_ms: float, since_ms: float = 0) -> bool:
        listening = at_ms >= grace_until_ms or since_ms >= grace_until_ms - terms.grace_ms  # All the time since then.
        return at_ms >= due_ms and (listening or record.out)

    if record.mode == "polling":
        if record.stopped_ms is not None and record.stopped_ms >= (record.contact_ms or 0):
            return _Contact("out", STOPPED)
        if record.contact_ms is None or lapsed(record.contact_ms + _offline_after_ms(record), record.contact_ms):
            return _Contact("out", MISSED)
        return _Contact("in", STARTED if record.contact == "started" else CONNECTED)
    if not record.alive:
        return _Contact("out", STOPPED if life.end == "stopped" else LOST)
    if not record.confirmed and lapsed(0):
        return _Contact("out", LOST)
    if _is_down(record, at_ms, grace_until_ms):
        assert record.fell_ms is not None
        expected_ms = record.fell_ms + terms.direct_ms
        if lapsed(expected_ms + terms.direct_grace_ms, record.fell_ms):
            return _Contact("out", LOST)
        return _Contact("path", PATH_DOWN, expected_ms)
    if (due_ms := _heartbeat_due_ms(record)) is not None and lapsed(due_ms, record.word_ms or 0):
        return _Contact("out", MISSED)
    if (due_ms := _mute_from_ms(record)) is not None and lapsed(due_ms, due_ms - _REVOKED_SILENT_MS):
        return _Contact("out", LOST)
    return _Contact("in", STARTED if life.started else CONNECTED)


def _is_down(record: Record, at_ms: int, grace_until_ms: float) -> bool:
    if record.fell_ms is None:
        return False
    return record.out or (at_ms >= record.fell_shown_ms and (not record.fell_held or at_ms >= grace_until_ms))


def _reason(record: Record, contact: _Contact, at_ms: int) -> str:
    if contact.state == "out" and record.revoked_ms is not None:
        return REVOKED
    if contact.state == "out" and record.not_after_ms is not None and at_ms >= record.not_after_ms:
        return CERTIFICATE
    if record.rivals is not None:
        return DUPLICATE
    if contact.state != "out" and record.clock_wrong:
        return CLOCK
    return contact.reason if record.paused_by is None else PAUSED


def _granted(record: Record, at_ms: int, grace_until_ms: float, terms: Terms) -> bool:
    """Tell whether roaming is granted to a hub that was out of contact for long."""
    due_ms = _granted_from_ms(record, terms)
    already = record.status is not None and record.status.connection == "roaming"
    return due_ms is not None and at_ms >= due_ms and (at_ms >= grace_until_ms or already)


def _granted_from_ms(record: Record, terms: Terms) -> int | None:
    if not terms.roaming_ms or record.seen_ms is None or record.revoked_ms is not None or record.mode == "polling":
        return None
    return record.seen_ms + terms.roaming_ms


def _offline_after_ms(record: Record) -> int:
    return record.policy.offline_after_min * MINUTE_MS


def _heartbeat_due_ms(record: Record) -> int | None:
    """Return when a hub that keeps a session, and sends heartbeats all the same, counts as gone."""
    if record.policy.heartbeat != "all" or record.word_ms is None:
        return None
    return record.word_ms + _offline_after_ms(record)


def _mute_from_ms(record: Record) -> int | None:
    """Return when a revoked hub counts as gone: not every engine ends its session, and none delivers its last will."""
    return None if record.revoked_ms is None else max(record.revoked_ms, record.word_ms or 0) + _REVOKED_SILENT_MS


# --- When ------------------------------------------------------------------------------------------------------------


def next_change_ms(
    record: Record, at_ms: int, grace_until_ms: float, terms: Terms, settings: CloudPresence
) -> float | None:
    """Return when the status may change although nothing happens, or None if it can't."""
    dues: list[float | None] = [rivals_until_ms(record), grace_until_ms, _birth_due_ms(record)]
    if record.out:
        dues += [record.not_after_ms, _granted_from_ms(record, terms), hidden_from_ms(record, record.machine, settings)]
    elif record.mode == "polling":
        dues.append(None if record.contact_ms is None else record.contact_ms + _offline_after_ms(record))
    else:
        gone_ms = terms.direct_ms + terms.direct_grace_ms
        dues += [None if record.fell_ms is None else record.fell_ms + gone_ms, _heartbeat_due_ms(record)]
        dues += [None if record.fell_ms is None else record.fell_shown_ms, _mute_from_ms(record)]
    return min((due for due in dues if due is not None and at_ms < due < float("inf")), default=None)


# --- Hidden ----------------------------------------------------------------------------------------------------------


def hidden(record: Record, machine: Machine, now_ms: int, settings: CloudPresence) -> bool:
    """Tell whether a hub is left out of lists: it was out of contact for as long as its class allows."""
    return record.out and now_ms >= hidden_from_ms(record, machine, settings)


def hidden_from_ms(record: Record, machine: Machine, settings: CloudPresence) -> int:
    """Return when a hub that is out of contact will be hidden."""
    match machine:
        case "server":
            days = settings.hide_server_days
        case "workstation":
            days = settings.hide_workstation_days
        case "laptop":
            days = settings.hide_laptop_days
    since_ms = record.seen_ms or (0 if record.status is None else record.status.since_ms)
    return since_ms + int(days * DAY_MS)


# --- Why -------------------------------------------------------------------------------------------------------------


def evidence(record: Record, found: Verdict) -> dict[str, Any]:
    """Return what has led to a status, as plain JSON."""
    told: dict[str, Any] = {}
    life = record.life
    if life is not None:
        word = "messages only" if life.online is None else "birth" if life.online else life.end
        told = {"epoch": life.epoch, "session": life.session, "word": word, "mode": record.mode}
        told |= {"via": life.via, "host": life.host, "version": life.version, "ended": life.ended_ms}
    if record.fell_ms is not None and not found.connection.startswith("unreachable"):
        told["path"] = {"state": record.fell, "since": record.fell_ms}
    if record.contact_ms is not None and (record.mode == "polling" or found.reason == MISSED):
        told["contact"] = {"kind": record.contact, "at": record.contact_ms}
    if record.rivals is not None:
        rivals = [life for life in record.lives if life.epoch in record.rivals]
        told["machines"] = [_machine(life) for life in sorted(rivals, key=lambda life: life.first_ms)]
    if not record.confirmed:
        told["confirmed"] = False
    if record.clock_wrong:
        told["skew_ms"] = record.skew_ms
    if found.out:
        told |= {"revoked": record.revoked_ms}
        told |= {"not_after": record.not_after_ms} if found.reason == CERTIFICATE else {}
    told["paused_by"] = record.paused_by
    return {name: value for name, value in told.items() if value is not None}


def _machine(life: Life) -> dict[str, Any]:
    told = {"epoch": life.epoch, "host": life.host, "addresses": list(life.addresses), "via": life.via}
    return {**told, "session": life.session, "last_word": life.told_ms}
