"""The runner: commands in order, events one after the other, and a wake-up at the deadline."""

from __future__ import annotations

import asyncio

from broker.machine import Wakeup
from broker.runner import Runner, monotonic_s


class Echo:
    """A machine that answers each word with two commands, and wants to be woken once."""

    def __init__(self) -> None:
        self.wake_at: float | None = None
        self.woken_at: float | None = None

    def handle(self, event: str | Wakeup, now: float) -> list[str]:
        if isinstance(event, Wakeup):
            self.woken_at, self.wake_at = now, None
            return ["woken"]
        return [f"{event}1", f"{event}2"]

    def deadline(self) -> float | None:
        return self.wake_at


def test_commands_are_carried_out_in_order() -> None:
    async def run() -> None:
        done: list[str] = []
        runner: Runner[str, str] = Runner(Echo(), done.append)
        runner.feed("a")
        runner.feed("b")
        assert done == ["a1", "a2", "b1", "b2"]

    asyncio.run(run())


def test_an_event_from_within_a_command_waits_for_the_commands_before_it() -> None:
    """Else a machine would see itself in the middle of a step."""

    async def run() -> None:
        done: list[str] = []

        def execute(command: str) -> None:
            done.append(command)
            if command == "a1":
                runner.feed("b")

        runner: Runner[str, str] = Runner(Echo(), execute)
        runner.feed("a")
        assert done == ["a1", "a2", "b1", "b2"]

    asyncio.run(run())


def test_the_machine_is_woken_at_its_deadline_and_not_before() -> None:
    async def run() -> None:
        machine, woken = Echo(), asyncio.Event()
        runner: Runner[str, str] = Runner(machine, lambda command: woken.set() if command == "woken" else None)
        wake_at = machine.wake_at = monotonic_s() + 0.05
        runner.feed("a")
        async with asyncio.timeout(20):
            await woken.wait()
        assert machine.woken_at is not None
        assert machine.woken_at >= wake_at - 0.002  # The loop's own resolution.

    asyncio.run(run())


def test_a_closed_runner_wakes_nobody() -> None:
    async def run() -> None:
        machine = Echo()
        runner: Runner[str, str] = Runner(machine, lambda _command: None)
        machine.wake_at = monotonic_s()
        runner.feed("a")
        runner.close()
        done = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, done.set)
        await done.wait()
        assert machine.woken_at is None

    asyncio.run(run())
