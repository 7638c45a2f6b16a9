"""How what a hub says changes what is known of it, in whatever order and however often it comes (pure).

A hub's outbox has an epoch: one life of it. Each life has its own order of births and ends, by session. A new outbox is a new
life, which takes the place of the one before; if both speak on, two machines use one identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from msgspec.structs import replace

from broker.messages import HubState
from cloud.presence_facts import End, Life, Record
from cloud.states import hub_state_holds
from config import limits

Kind: TypeAlias = Literal["message", "heartbeat", "poll"]

_HOUR_MS: Final = 3_600_000
_SLACK_MS: Final = int(limits.WORD_SLACK_S * 1000)
_CLOCKS_SLACK_MS: Final = int(limits.CLOCKS_SLACK_S * 1000)
_QUIET_MS: Final = int(limits.DUPLICATE_QUIET_S * 1000)


@dataclass(frozen=True, slots=True)
class Word:
    """A message that only a living hub sends. `arrived_ms` is by the cloud's clock, `ts` its sending by the hub's.

    `skew_ms`: how far the hub's clock is ahead, as measured. `session` is told by heartbeats and polls.
    """

    kind: Kind
    epoch: str
    ts: int
    received_ms: int
    arrived_ms: int
    skew_ms: int
    session: int | None = None

    @property
    def told_ms(self) -> int:
        """Return when it was sent, by the cloud's clock."""
        return self.arrived_ms - max(0, self.received_ms - self.ts + self.skew_ms)


def arrival_ms(received_ms: int, at_ms: int) -> int:
    """Return when something came, on the clock of `at_ms`: it may have waited for the database, but not for ever."""
    return received_ms if 0 <= at_ms - received_ms <= _HOUR_MS else at_ms


# --- Signs of life --------------------------------------------------------------------------------------------------


def hear_word(record: Record, word: Word) -> Record:
    """Return what is known after a message, heartbeat or poll."""
    told_ms = word.told_ms
    life = record.life_of(word.epoch) or Life(
        epoch=word.epoch, first_ms=told_ms, told_ms=told_ms, first_ts=word.ts, heard_ms=word.arrived_ms
    )
    life = replace(
        life,
        told_ms=max(life.told_ms, told_ms),
        last_ts=max(life.last_ts or 0, word.ts),
        skew_ms=word.skew_ms,
    )
    if life.online is False and life.ended_ms is not None and told_ms > life.ended_ms + _SLACK_MS:
        # Only the end of a session that carried nothing: the hub speaks on.
        life = replace(life, online=True, session=life.born, disproved=life.session, end=None, ended_ms=None)
    record = _with_life(record, life, told_ms, word.ts)
    record = replace(record, seen_ms=max(record.seen_ms or 0, word.arrived_ms))
    if not _counts(record, life):
        return record
    record = replace(record, confirmed=True, skew_ms=word.skew_ms, word_ms=max(record.word_ms or 0, told_ms))
    if record.fell_ms is not None and told_ms > record.fell_ms + _SLACK_MS:
        record = replace(record, fell_ms=None, fell=None, fell_shown_ms=0, fell_held=False)
    over = life.online is False and life.end == "stopped" and (word.session or 0) <= life.session
    if word.kind == "message" or over:  # Nothing is learnt from what was under way when the hub stopped.
        return record
    return replace(record, contact_ms=max(record.contact_ms or 0, word.arrived_ms), contact=word.kind)


# --- Births and ends ------------------------------------------------------------------------------------------------


def hear_state(record: Record, state: HubState, arrived_ms: int, *, retained: bool) -> Record:
    """Return what is known after a birth, a clean stop or a will; the same record if that is stale."""
    life = record.life_of(state.epoch)
    if life is None:
        if not state.online and record.lives:
            return record  # The end of a life that we have already left, or never knew.
        life = Life(epoch=state.epoch, first_ms=arrived_ms, told_ms=arrived_ms, first_ts=state.ts)
        life = replace(life, first_ms=_told_ms(record, life, state, arrived_ms))
        life = replace(life, told_ms=life.first_ms)
    known = None if life.online is None else (life.epoch, life.session, life.online)
    is_later = state.online and _is_later(state.ts, life.birth_ts)
    if is_later and state.session < life.session:
        life = replace(life, left=life.session)
    elif not hub_state_holds(known, state) or (not is_later and life.session < state.session <= life.left):
        return record
    if not state.online:
        return _end(record, life, state, arrived_ms, retained=retained)
    if known == (state.epoch, state.session, True) and (state.ts or 0) <= (life.birth_ts or 0):
        return _heard_again(record, life, state, arrived_ms, retained=retained)
    return _birth(record, life, state, arrived_ms, retained=retained)


def _birth(record: Record, life: Life, state: HubState, arrived_ms: int, *, retained: bool) -> Record:
    told_ms = _told_ms(record, life, state, arrived_ms)
    before = record.mode
    life = replace(
        life,
        told_ms=max(life.told_ms, told_ms),
        last_ts=max(life.last_ts or 0, state.ts or 0) or None,
        session=state.session,
        online=True,
        born=state.session,
        birth_ts=state.ts,
        started=state.reason == "started",
        end=None,
        ended_ms=None,
        via=state.via,
        mode=state.mode or life.mode,
        version=state.version or life.version,
        host=state.host or life.host,
        addresses=tuple(state.addresses) or life.addresses,
    )
    record = _with_life(record, life, told_ms, state.ts)
    if not retained or record.seen_ms is None:
        record = replace(record, seen_ms=max(record.seen_ms or 0, arrived_ms))
    if not _counts(record, life):
        return record
    if not retained or not record.confirmed:
        record = replace(record, word_ms=max(record.word_ms or 0, arrived_ms))
    record = replace(record, confirmed=True)
    if life.started or (record.mode == "polling" and before != "polling"):  # Start or reload.
        record = replace(record, contact_ms=max(record.contact_ms or 0, told_ms), contact="started")
    return record


def _heard_again(record: Record, life: Life, state: HubState, arrived_ms: int, *, retained: bool) -> Record:
    """Take a birth that is known: it proves that a broker still has the hub, unless an older copy has come late.

    If only our own broker has kept it, it says nothing new about a path that was down meanwhile.
    """
    if not _counts(record, life) or (state.ts or 0) < (life.birth_ts or 0):
        return record
    if not retained:
        seen_ms, word_ms = max(record.seen_ms or 0, arrived_ms), max(record.word_ms or 0, arrived_ms)
        record = replace(record, seen_ms=seen_ms, word_ms=word_ms)
    return replace(record, confirmed=True)


def _end(record: Record, life: Life, state: HubState, arrived_ms: int, *, retained: bool) -> Record:
    if state.session == life.disproved:
        return record
    end: End = "will"
    match state.reason:
        case "stopped" | "polling" as said:
            end = said
    if (life.online, life.session, life.end) == (False, state.session, end):
        return record
    if life.online is False and life.session == state.session and end == "will":
        return record  # It has stopped cleanly; a will of that session says less.
    ended_ms = _told_ms(record, life, state, arrived_ms) if end == "stopped" else arrived_ms
    mode = "polling" if end == "polling" and life.mode in (None, "continuous") else life.mode
    life = replace(life, session=state.session, online=False, end=end, ended_ms=ended_ms, mode=mode)
    record = _in_place(record, life) if record.life_of(life.epoch) else replace(record, lives=(life, *record.lives))
    if end != "will" and not retained:
        record = replace(record, seen_ms=max(record.seen_ms or 0, arrived_ms))
    if not _counts(record, life):
        return record
    record = replace(record, confirmed=True)
    return replace(record, stopped_ms=arrived_ms) if end == "stopped" else record


# --- Lives ----------------------------------------------------------------------------------------------------------


def settle_rivals(record: Record, at_ms: int) -> Record:
    """End the use of one identity by two machines when one of them was quiet for long; the other is the hub then."""
    until_ms = rivals_until_ms(record)
    if until_ms is None or at_ms < until_ms:
        return record
    lives = sorted(record.lives, key=lambda life: life.told_ms, reverse=True)
    return replace(record, rivals=None, lives=tuple(lives))


def rivals_until_ms(record: Record) -> int | None:
    """Return when two machines will no longer count as using one identity, if both are quiet from now on."""
    if record.rivals is None:
        return None
    told = [life.told_ms for life in record.lives if life.epoch in record.rivals]
    return min(told) + _quiet_ms(record) if len(told) == len(record.rivals) else 0


def _counts(record: Record, life: Life) -> bool:
    return record.lives[0].epoch == life.epoch or (record.rivals is not None and life.epoch in record.rivals)


def _in_place(record: Record, life: Life) -> Record:
    return replace(record, lives=tuple(life if other.epoch == life.epoch else other for other in record.lives))


def _with_life(record: Record, life: Life, told_ms: int, ts: int | None) -> Record:
    """Put a life that has just spoken in its place, and see whether another one speaks too."""
    if record.lives and record.lives[0].epoch == life.epoch and len(record.lives) == 1:
        return replace(record, lives=(life,))
    others = [other for other in record.lives if other.epoch != life.epoch]
    rivals = record.rivals
    for other in others:
        slack_ms = _SLACK_MS if _is_later(ts, other.first_ts) else _CLOCKS_SLACK_MS
        began_after = other.first_ms > life.first_ms
        if began_after and told_ms > other.first_ms + slack_ms and told_ms - other.told_ms < _quiet_ms(record):
            rivals = (life.epoch, other.epoch)
    if not record.lives or record.lives[0].epoch == life.epoch or _supersedes(record, life, told_ms, ts):
        lives = [life, *others]
    else:
        lives = [record.lives[0], life, *others[1:]]
    newest = sorted(lives[1:], key=lambda other: other.told_ms, reverse=True)
    return replace(record, lives=(lives[0], *newest[: limits.LIVES_MAX - 1]), rivals=rivals)


def _quiet_ms(record: Record) -> int:
    """Return for how long a machine must be silent to be gone: one that polls speaks seldom."""
    return max(_QUIET_MS, record.policy.offline_after_min * 60_000) if record.mode == "polling" else _QUIET_MS


def _supersedes(record: Record, life: Life, told_ms: int, ts: int | None) -> bool:
    """Tell whether a life that has just spoken takes the place of the one that counts.

    One that began before that one does so only when that one has ended or is silent for long: if both speak on, the status
    must not go to and fro between them until it is sure that they are two machines.
    """
    current = record.lives[0]
    if life.first_ms < current.first_ms:
        ended = current.online is False and current.ended_ms is not None and told_ms > current.ended_ms + _SLACK_MS
        return ended or told_ms >= current.told_ms + _quiet_ms(record)
    if ts is None or current.last_ts is None or ts > current.last_ts:
        return told_ms >= current.first_ms
    return told_ms > current.told_ms + _CLOCKS_SLACK_MS


def _is_later(ts: int | None, other: int | None) -> bool:
    return ts is not None and other is not None and ts > other


def _told_ms(record: Record, life: Life, state: HubState, arrived_ms: int) -> int:
    """Return when a state was sent, by the cloud's clock. It may be much older than its arrival: brokers keep the last one."""
    if state.ts is None:
        return arrived_ms
    if life.skew_ms is not None:
        return min(arrived_ms, state.ts - life.skew_ms)
    current = record.life
    if current is not None and current.epoch != life.epoch and current.first_ts is not None:
        ahead_ms = current.first_ts - state.ts
        if ahead_ms > 0:  # On the same machine it was sent before; on another one, its next words will tell.
            return min(arrived_ms, current.first_ms - ahead_ms)
    return arrived_ms
