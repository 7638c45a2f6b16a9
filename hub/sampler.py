"""Asks the sensors when they are due, and hands on what they say; one that fails or hangs keeps no other from being heard.

Whatever a sensor returned is delivered, however late, together with its state: a sensor that counts on its state finds
no hole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import structlog

from broker.clock import unix_ms
from broker.messages import Value
from broker.runner import monotonic_s
from config import limits
from hub.entries import Entry
from hub.readings import Dropped, encoded_event, encoded_points, sendable
from hub.schedule import Schedule
from hub.sensors import Sampled, Sensor, TimedValues
from hub.workers import Workers

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Sample:
    """What is to be stored in one transaction: readings, the states of the sensors they are from, and events."""

    points: list[Entry] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)
    events: list[Entry] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came back from a sensor: values and state, or what went wrong instead."""

    sampled: Sampled = field(default_factory=dict)
    state: str | None = None
    failure: str | None = None


@dataclass(slots=True)
class _Question:
    """One sample of one sensor. `asked_at` is set by its thread; `overdue` says that it was reported as failed."""

    sensor: Sensor
    asked_at: float | None = None
    overdue: bool = False


@dataclass(slots=True)
class _Round:
    """Sensors that were due at the same moment. Until it is closed, its answers share a point."""

    ts_ms: int
    questions: dict[str, _Question]
    answers: dict[str, _Answer] = field(default_factory=dict)
    timers: list[asyncio.TimerHandle] = field(default_factory=list)
    closed: bool = False
    values: dict[str, Value] = field(default_factory=dict)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def stop_timers(self) -> None:
        """Let nothing happen any more but answers."""
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()


class Sampler:
    """Runs sensors in a few threads; `deliver` is called in the event loop that `run` is awaited in."""

    def __init__(
        self,
        sensors: Sequence[Sensor],
        deliver: Callable[[Sample], None],
        *,
        random: Random | None = None,
        clock: Callable[[], int] = unix_ms,
        timeout_s: float = limits.SENSOR_TIMEOUT_S,
        merge_s: float = limits.SENSOR_MERGE_S,
    ):
        """Take the sensors over. `random` spreads hubs that start together; `clock` stamps, in Unix milliseconds."""
        self.dropped = Dropped()
        self._sensors = {sensor.name: sensor for sensor in sensors}
        self._deliver, self._random, self._clock = deliver, random, clock
        self._timeout_s, self._merge_s = timeout_s, merge_s
        self._workers = Workers(limits.SENSOR_THREADS, "sensors")
        self._busy: set[str] = set()
        self._rounds: dict[int, _Round] = {}  # Those with answers to come, by identity.
        self._states: dict[str, str] = {}  # As delivered last.
        self._failing_since: dict[str, float] = {}
        self._running = False

    @property
    def failing(self) -> list[str]:
        """Return the sensors whose last sample failed, or is overdue."""
        return sorted(self._failing_since)

    async def run(self) -> None:
        """Sample until cancelled. What is not delivered by then is not: its state is not, either."""
        intervals_s = {name: sensor.interval_s for name, sensor in self._sensors.items()}
        schedule = Schedule(intervals_s, monotonic_s(), self._random)
        self._running = True
        try:
            while (deadline := schedule.deadline()) is not None:
                await asyncio.sleep(max(0.0, deadline - monotonic_s()))
                due = [name for name in schedule.take_due(monotonic_s()) if name not in self._busy]
                if due:
                    self._begin(due)
            await asyncio.Event().wait()  # There are no sensors.
        finally:
            self._running = False
            for this in self._rounds.values():
                this.stop_timers()
            self._workers.close()

    async def sample_now(self) -> dict[str, Value]:
        """Ask all sensors out of turn, those excepted that are being asked; what they say is delivered as ever.

        Returns the values that came soon enough to share a point.
        """
        names = [name for name in self._sensors if name not in self._busy]
        if not names or not self._running:
            return {}
        this = self._begin(names)
        await this.over.wait()
        return dict(this.values)

    # --- Rounds --------------------------------------------------------------------------------------------------------

    def _begin(self, names: Sequence[str]) -> _Round:
        loop = asyncio.get_running_loop()
        this = _Round(self._clock(), {name: _Question(self._sensors[name]) for name in names})
        self._rounds[id(this)] = this
        this.timers = [
            loop.call_later(self._merge_s, self._close, this),
            loop.call_later(self._timeout_s, self._look_after, this),
        ]
        for name, question in this.questions.items():

            def answered(answer: _Answer, name: str = name) -> None:
                loop.call_soon_threadsafe(self._answered, this, name, answer)

            def ask(question: _Question = question, answered: Callable[[_Answer], None] = answered) -> None:
                _ask(question, answered)

            self._busy.add(name)
            self._workers.submit(ask)
        return this

    def _answered(self, this: _Round, name: str, answer: _Answer) -> None:
        if not self._running:
            return
        question = this.questions.pop(name)
        self._workers.finished(was_stuck=question.overdue)
        self._busy.discard(name)
        this.answers[name] = answer
        if this.closed:
            this.ts_ms = self._clock()  # A late answer speaks of now.
            self._hand_on(this)
        elif not this.questions:
            self._close(this)
        if not this.questions:
            this.stop_timers()
            del self._rounds[id(this)]

    def _close(self, this: _Round) -> None:
        """Deliver what was answered in time to share a point."""
        if not this.closed:
            this.closed = True
            self._hand_on(this)
            this.over.set()

    def _look_after(self, this: _Round) -> None:
        """Report those that were asked and have not answered in time, and look again for those asked later."""
        now = monotonic_s()
        waits_s: list[float] = []
        events: list[Entry] = []
        for name, question in this.questions.items():
            if question.overdue:
                continue
            asked_at = now if question.asked_at is None else question.asked_at
            wait_s = asked_at + self._timeout_s - now
            if wait_s > 0:
                waits_s.append(wait_s)
                continue
            question.overdue = True
            self._workers.stuck()
            events += self._failed(name, f"has not answered within {self._timeout_s:g} s", self._clock())
        if waits_s:
            this.timers.append(asyncio.get_running_loop().call_later(min(waits_s), self._look_after, this))
        if events:
            self._deliver(Sample(events=events))

    # --- Answers -------------------------------------------------------------------------------------------------------

    def _hand_on(self, this: _Round) -> None:
        """Deliver what was answered and not delivered yet."""
        answers, this.answers = this.answers, {}
        merged: list[Mapping[str, Value]] = []
        sample = Sample()
        for name, answer in answers.items():
            failure = answer.failure
            if failure is None and not _is_state(answer.state):
                failure = f"its state must be text of at most {limits.SENSOR_STATE_MAX} characters, or None"
            if failure is None:
                try:
                    values, own = self._taken(name, answer.sampled)
                except (TypeError, ValueError, AttributeError) as exc:
                    failure = f"its sample can't be sent: {exc}"
            if failure is not None:
                sample.events.extend(self._failed(name, failure, this.ts_ms))
                continue
            merged.append(values)
            this.values.update(values)
            sample.points.extend(own)
            sample.events.extend(self._recovered(name, this.ts_ms))
            if answer.state is not None and answer.state != self._states.get(name):
                self._states[name] = sample.states[name] = answer.state
        sample.points[:0] = encoded_points(this.ts_ms, merged)
        if sample.points or sample.states or sample.events:
            self._deliver(sample)

    def _taken(self, name: str, sampled: Sampled) -> tuple[Mapping[str, Value], list[Entry]]:
        """Return values to be merged, and points of the sensor's own. Raises if it is no sample."""
        if isinstance(sampled, Mapping):
            return sendable(name, sampled, self.dropped), []
        own: list[Entry] = []
        for timed in sampled:
            if not isinstance(timed, TimedValues) or not 0 <= timed.ts_ms <= 2**53:
                raise TypeError(f"{timed!r} is no TimedValues"[: limits.VALUE_TEXT_MAX])
            own += encoded_points(int(timed.ts_ms), [sendable(name, timed.values, self.dropped)])
        return {}, own

    def _failed(self, name: str, failure: str, ts_ms: int) -> list[Entry]:
        if name in self._failing_since:
            log.debug("sensor_failed", sensor=name, reason=failure)
            return []
        self._failing_since[name] = monotonic_s()
        log.warning("sensor_failed", sensor=name, reason=failure)
        return [encoded_event(ts_ms, name, "ok", "error", failure)]

    def _recovered(self, name: str, ts_ms: int) -> list[Entry]:
        since = self._failing_since.pop(name, None)
        if since is None:
            return []
        lasted_s = round(monotonic_s() - since, 1)
        log.info("sensor_recovered", sensor=name, lasted_s=lasted_s)
        return [encoded_event(ts_ms, name, "error", "ok", f"answers again after {lasted_s:g} s")]


def _is_state(state: object) -> bool:
    return state is None or (isinstance(state, str) and len(state) <= limits.SENSOR_STATE_MAX)


def _ask(question: _Question, answered: Callable[[_Answer], None]) -> None:
    """Take a sample, in a worker's thread."""
    question.asked_at = monotonic_s()
    try:
        sampled = question.sensor.sample()
        answer = _Answer(sampled, question.sensor.state)
    except BaseException as exc:  # noqa: BLE001  # Whatever a sensor raises ends its sample, not the thread.
        answer = _Answer(failure=f"{type(exc).__name__}: {exc}"[: limits.VALUE_TEXT_MAX])
    try:
        answered(answer)
    except RuntimeError:
        pass  # The loop has ended meanwhile: nobody waits for this any more.
