"""The sampler with sensors that behave, fail, hang and lie, in real threads and a real event loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import orjson
import pytest

from broker.messages import Events, Readings, Value, decode
from config import limits
from hub.entries import ENTRY_MAX_BYTES, EVENTS, READINGS, Entry
from hub.sampler import Sample, Sampler
from hub.sensors import Sampled, SensorSettings, TimedValues, ValueSpec
from hub.sensors.counter import CounterSensor, CounterSettings

PATIENCE_S = 20.0
"""How long a test waits for what must happen; nothing here takes a tenth of it."""


class FakeSensor:
    """A sensor whose samples the test decides."""

    name: ClassVar[str] = "fake"
    Settings: ClassVar[type[SensorSettings]] = SensorSettings

    def __init__(self, name: str, sample: Callable[[], object], interval_s: float = 0.1):
        self.name = name  # type: ignore[misc]  # Several of a kind.
        self.interval_s, self.state = interval_s, None
        self._sample = sample

    @classmethod
    def available(cls) -> bool:
        return True

    def values(self) -> Sequence[ValueSpec]:
        return []

    def sample(self) -> Sampled:
        return self._sample()  # type: ignore[return-value]  # Some lie.


def sampling(
    sensors: Sequence[FakeSensor | CounterSensor],
    until: Callable[[list[Sample]], bool],
    after: Callable[[], None] = lambda: None,
    **bounds: float,
) -> tuple[list[Sample], Sampler]:
    """Run a sampler until the samples are as wanted; `after` is called before it is awaited to its end."""
    samples: list[Sample] = []

    async def main() -> Sampler:
        enough = asyncio.Event()

        def deliver(sample: Sample) -> None:
            samples.append(sample)
            if until(samples):
                enough.set()

        sampler = Sampler(sensors, deliver, **bounds)  # type: ignore[arg-type]
        task = asyncio.create_task(sampler.run())
        try:
            await asyncio.wait_for(enough.wait(), PATIENCE_S)
        finally:
            task.cancel()
            after()
            with pytest.raises(asyncio.CancelledError):
                await task
        return sampler

    return samples, asyncio.run(main())


def points(samples: Sequence[Sample]) -> list[dict[str, Value]]:
    """Return the values of every point, in the order of delivery; checks each against the contract."""
    found = []
    for entry in (entry for sample in samples for entry in sample.points):
        (point,) = decode(READINGS.before + entry.body + READINGS.after, Readings).points
        assert point.ts == entry.ts_ms
        found.append(point.values)
    return found


def events(samples: Sequence[Sample]) -> list[tuple[str | None, str | None, str | None, str | None]]:
    """Return (sensor, from, to, message) of every event; checks each against the contract."""
    found = []
    for entry in (entry for sample in samples for entry in sample.events):
        (event,) = decode(EVENTS.before + entry.body + EVENTS.after, Events).events
        assert (event.event, event.ts) == ("sensor-state", entry.ts_ms)
        found.append((event.sensor, event.from_state, event.to_state, event.message))
    return found


def constant(name: str, value: object = 1) -> FakeSensor:
    return FakeSensor(name, lambda: {f"{name}.value": value})


def has(*names: str) -> Callable[[list[Sample]], bool]:
    """Tell whether each of these sensors has spoken."""
    return lambda samples: {f"{name}.value" for name in names} <= {key for point in points(samples) for key in point}


def test_sensors_due_together_share_a_point() -> None:
    """Half of a small message would else be times and braces."""
    samples, _ = sampling([constant("a", 1), constant("b", True), constant("c", "on")], has("a"))
    assert points(samples)[0] == {"a.value": 1, "b.value": True, "c.value": "on"}


def test_a_sensor_is_sampled_again_and_again() -> None:
    turns = iter(range(100))
    samples, _ = sampling([FakeSensor("a", lambda: {"a.value": next(turns)})], lambda found: len(found) >= 3)
    assert [point["a.value"] for point in points(samples)][:3] == [0, 1, 2]


def test_a_sensor_that_has_nothing_to_say_makes_no_point() -> None:
    """A rate's first sample: an empty point would be refused by the cloud."""
    turns = iter([{}, {"a.value": 1}])
    samples, _ = sampling([FakeSensor("a", lambda: next(turns, {}))], has("a"))
    assert len(samples) == 1


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), None, 2**63, b"bytes", [1], "x" * (limits.VALUE_TEXT_MAX + 1), "\udcff"]
)
def test_a_value_that_cannot_be_sent_is_left_out_and_counted(value: object) -> None:
    """One bad value must neither lose the others nor make a message that the cloud refuses."""
    sensor = FakeSensor("a", lambda: {"a.bad": value, "a.value": 1})
    samples, sampler = sampling([sensor], has("a"))
    assert points(samples)[0] == {"a.value": 1}
    assert sampler.dropped.values >= 1
    assert sampler.failing == []


@pytest.mark.parametrize("name", ["b.value", "value", "ab.value", "a.värde", "a. value", "a." + "x" * 128, "", 5])
def test_a_name_that_is_not_the_sensors_own_is_left_out_and_counted(name: object) -> None:
    """No plug-in can pass its values off as the processor's."""
    sensor = FakeSensor("a", lambda: {name: 1, "a.value": 1})
    samples, sampler = sampling([sensor], has("a"))
    assert points(samples)[0] == {"a.value": 1}
    assert sampler.dropped.names >= 1


def test_kinds_of_numbers_that_json_does_not_know_are_made_plain() -> None:
    """numpy's float64 is such a float."""

    class Celsius(float):
        pass

    samples, _ = sampling([constant("a", Celsius(36.6))], has("a"))
    assert points(samples)[0] == {"a.value": 36.6}


@pytest.mark.parametrize(
    "sample",
    [
        lambda: 1 / 0,
        lambda: None,
        lambda: 5,
        lambda: ["text"],
        lambda: [TimedValues(-1, {"a.value": 1})],
        lambda: [TimedValues("now", {"a.value": 1})],  # type: ignore[arg-type]
        lambda: [TimedValues(1, None)],  # type: ignore[arg-type]
        lambda: {f"a.{n}": n for n in range(limits.VALUES_MAX + 1)},
        lambda: {f"a.{n}": "x" * 4000 for n in range(70)},
        lambda: exec("raise SystemExit"),
        lambda: exec("raise OSError('\udcff')"),
    ],
)
def test_a_sensor_that_fails_is_reported_once_and_keeps_nobody_else_from_being_heard(
    sample: Callable[[], object],
) -> None:
    broken = FakeSensor("a", sample)
    turns = 0

    def count() -> Mapping[str, Value]:
        nonlocal turns
        turns += 1
        return {"b.value": turns}

    samples, sampler = sampling([broken, FakeSensor("b", count)], lambda found: turns >= 4 and bool(events(found)))
    assert [event[:3] for event in events(samples)] == [("a", "ok", "error")]
    assert events(samples)[0][3]
    assert sampler.failing == ["a"]
    assert {"b.value"} == {name for point in points(samples) for name in point}


def test_a_sensor_that_works_again_is_reported_once() -> None:
    turns = 0

    def sample() -> Mapping[str, Value]:
        nonlocal turns
        turns += 1
        if turns < 3:
            raise OSError("no such device")
        return {"a.value": turns}

    samples, sampler = sampling([FakeSensor("a", sample)], lambda _: turns >= 5)
    assert [event[:3] for event in events(samples)] == [("a", "ok", "error"), ("a", "error", "ok")]
    assert events(samples)[0][3] == "OSError: no such device"
    assert sampler.failing == []


@pytest.mark.parametrize("hanging", [1, 2, 3])
def test_sensors_that_hang_are_reported_once_and_the_others_go_on(hanging: int) -> None:
    """Also more of them than there are threads: a dead disk must not silence the machine."""
    release = threading.Event()
    asked: list[str] = []

    def hang(name: str) -> Callable[[], Mapping[str, Value]]:
        def sample() -> Mapping[str, Value]:
            asked.append(name)
            release.wait()
            return {f"{name}.value": 1}

        return sample

    stuck = [FakeSensor(f"h{number}", hang(f"h{number}")) for number in range(hanging)]
    turns = 0

    def count() -> Mapping[str, Value]:
        nonlocal turns
        turns += 1
        return {"z.value": turns}

    def enough(found: list[Sample]) -> bool:
        return turns >= 5 and len(events(found)) == hanging

    samples, sampler = sampling([*stuck, FakeSensor("z", count)], enough, release.set, timeout_s=0.2, merge_s=0.1)
    names = [f"h{number}" for number in range(hanging)]
    assert [event[:3] for event in sorted(events(samples))] == [(name, "ok", "error") for name in names]
    assert sampler.failing == names
    assert sorted(asked) == names, "a sensor that hangs is not asked again"


def test_an_answer_that_comes_late_is_delivered_and_the_sensor_goes_on() -> None:
    """Whatever a sensor returned counts: one with a state has counted on already."""
    release = threading.Event()
    turns = 0

    def sample() -> Mapping[str, Value]:
        nonlocal turns
        turns += 1
        if turns == 1:
            assert release.wait(PATIENCE_S)
        return {"a.value": turns}

    def enough(found: list[Sample]) -> bool:
        if events(found):
            release.set()
        return len(points(found)) >= 3

    samples, sampler = sampling([FakeSensor("a", sample)], enough, release.set, timeout_s=0.2, merge_s=0.1)
    assert [event[:3] for event in events(samples)] == [("a", "ok", "error"), ("a", "error", "ok")]
    assert [point["a.value"] for point in points(samples)][:3] == [1, 2, 3]
    assert sampler.failing == []


def test_a_slow_sensor_does_not_hold_back_the_values_of_the_others() -> None:
    """They wait for it for a moment, to share a point, and then go without it."""
    release = threading.Event()

    def slow() -> Mapping[str, Value]:
        assert release.wait(PATIENCE_S)
        return {"slow.value": 1}

    def enough(found: list[Sample]) -> bool:
        if has("fast")(found):
            release.set()
        return has("fast", "slow")(found)

    samples, sampler = sampling(
        [FakeSensor("slow", slow, 60.0), constant("fast")], enough, release.set, timeout_s=PATIENCE_S, merge_s=0.1
    )
    assert points(samples)[0] == {"fast.value": 1}
    assert {"slow.value": 1} in points(samples)
    assert events(samples) == []
    assert sampler.failing == []


def test_values_that_do_not_fit_into_one_point_go_into_several() -> None:
    """Each sensor stays within the contract, yet all together would not."""
    many = [
        FakeSensor(name, lambda name=name: {f"{name}.{n}": n for n in range(600)}, 60.0)  # type: ignore[misc]
        for name in "abc"
    ]
    long = [
        FakeSensor(name, lambda name=name: {f"{name}.{n}": "x" * 4096 for n in range(50)}, 60.0)  # type: ignore[misc]
        for name in "de"
    ]
    samples, _ = sampling([*many, *long], lambda found: sum(len(point) for point in points(found)) >= 1900)
    assert all(len(point) <= limits.VALUES_MAX for point in points(samples))
    assert all(len(entry.body) <= ENTRY_MAX_BYTES for sample in samples for entry in sample.points)
    assert len({key for point in points(samples) for key in point}) == 1900


def test_the_counters_points_and_state_come_together() -> None:
    """They are stored in one transaction: the state is that of the last point, always."""
    counter = CounterSensor(CounterSettings(rate_hz=2000.0), None)
    samples, _ = sampling([counter], lambda found: len(points(found)) >= 1000)
    values = [point["counter.value"] for point in points(samples)]
    assert values == list(range(1, len(values) + 1))
    for sample in samples:
        last = orjson.loads(sample.points[-1].body)["values"]["counter.value"]
        assert sample.states == {"counter": str(last)}


def test_a_state_that_has_not_changed_is_not_written_again() -> None:
    """Each would cost a commit."""
    sensor = constant("a")
    sensor.state = "the same"  # type: ignore[assignment]
    samples, _ = sampling([sensor], lambda found: len(found) >= 3)
    assert [sample.states for sample in samples[:3]] == [{"a": "the same"}, {}, {}]


def test_a_state_that_is_no_text_is_the_sensors_failure() -> None:
    sensor = constant("a")
    sensor.state = 5  # type: ignore[assignment]
    samples, _ = sampling([sensor], lambda found: bool(events(found)))
    assert events(samples)[0][:3] == ("a", "ok", "error")
    assert samples[0].points == []


def test_nothing_is_delivered_after_the_end() -> None:
    """The outbox is closed by then."""
    release, asked = threading.Event(), threading.Event()
    samples: list[Sample] = []

    def sample() -> Mapping[str, Value]:
        asked.set()
        assert release.wait(PATIENCE_S)
        return {"a.value": 1}

    async def main() -> None:
        sampler = Sampler([FakeSensor("a", sample)], samples.append, merge_s=0.05, timeout_s=0.1)
        task = asyncio.create_task(sampler.run())
        await until(asked.is_set)
        task.cancel()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not any(thread.name == "sensors" for thread in threading.enumerate()))
        for _ in range(3):  # What its thread has left for the loop.
            await asyncio.sleep(0)

    asyncio.run(main())
    assert samples == []


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # Threads set no asyncio.Event.
            await asyncio.sleep(0.005)


def test_a_hanging_sensor_does_not_keep_the_program_from_ending() -> None:
    """A service must stop within seconds, also with a thread lost in a dead disk."""
    program = (
        "import asyncio, threading\n"
        "from hub.sampler import Sampler\n"
        "from hub.sensors.uptime import UptimeSensor, UptimeSettings\n"
        "asked = threading.Event()\n"
        "class Hanging(UptimeSensor):\n"
        "    def sample(self):\n"
        "        asked.set()\n"
        "        threading.Event().wait()\n"
        "async def main():\n"
        "    task = asyncio.create_task(Sampler([Hanging(UptimeSettings(), None)], print).run())\n"
        "    while not asked.is_set():\n"
        "        await asyncio.sleep(0.01)\n"
        "    task.cancel()\n"
        "asyncio.run(main())\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], timeout=PATIENCE_S, check=False)
    assert ended.returncode == 0


def test_an_entry_of_the_largest_sample_fits_into_a_message() -> None:
    """So the outbox never refuses what the sampler delivers."""
    largest = {f"a.{'n' * 120}{number:04}": 1.2345678901234567e-300 for number in range(limits.VALUES_MAX)}
    samples, _ = sampling([FakeSensor("a", lambda: largest)], lambda found: bool(points(found)))
    assert isinstance(samples[0].points[0], Entry)
    assert len(samples[0].points[0].body) <= ENTRY_MAX_BYTES


# --- Out of turn -----------------------------------------------------------------------------------------------------


def test_sensors_can_be_asked_out_of_turn_and_what_they_say_is_stored_as_ever() -> None:
    """A person at the console wants to see now how the machine is."""
    stuck = threading.Event()
    asked: list[int] = []
    samples: list[Sample] = []

    def count() -> dict[str, int]:
        asked.append(1)
        return {"often.count": len(asked)}

    def hang() -> dict[str, int]:
        stuck.wait(PATIENCE_S)
        return {"slow.value": 1}

    async def main() -> list[dict[str, Value]]:
        first = asyncio.Event()

        def deliver(sample: Sample) -> None:
            samples.append(sample)
            first.set()

        often, slow = FakeSensor("often", count, interval_s=3600.0), FakeSensor("slow", hang, interval_s=3600.0)
        sampler = Sampler([often, slow], deliver, merge_s=0.05)
        before = await sampler.sample_now()
        task = asyncio.create_task(sampler.run())
        try:
            async with asyncio.timeout(PATIENCE_S):
                await first.wait()
                now = await sampler.sample_now()  # The slow one is busy: it is not asked twice at once.
        finally:
            stuck.set()
            task.cancel()
            await asyncio.wait([task])
        return [before, now]

    assert asyncio.run(main()) == [{}, {"often.count": 2}]
    assert [point["often.count"] for point in points(samples) if "often.count" in point] == [1, 2]
