"""The agent in a test's own event loop: what it says of its start, and that it lets go of everything, soon."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from broker.messages import Ack
from config import limits
from config.errors import SettingsError
from config.settings import HubSettings
from hub.agent import OUTBOX_FILE, TASKS_FILE, Agent
from hub.desired_keeper import SettingsKeeper
from hub.outbox import Outbox
from tests.broker.raw_mqtt import until
from tests.hub.test_reporting import settings_of

NO_PATH = "[connector]\ndiscovery = false\n"


def keeper_of(tmp_path: Path, settings: HubSettings) -> SettingsKeeper:
    return SettingsKeeper(tmp_path / "hub.toml", settings, apply=lambda _: None, report=lambda _: None, environ={})


class Broken(SettingsKeeper):
    """Fails where the agent is half made."""

    def set_roaming(self, roaming: bool) -> None:
        raise SettingsError("fails late")


def test_an_agent_that_can_not_be_made_lets_go_of_its_outbox(tmp_path: Path) -> None:
    """The next attempt, with the hub's own settings, needs the same outbox."""

    async def story() -> None:
        settings = settings_of(tmp_path, NO_PATH)
        broken = Broken(tmp_path / "hub.toml", settings, apply=lambda _: None, report=lambda _: None, environ={})
        with pytest.raises(SettingsError, match="fails late"):
            Agent(settings, broken)
        Outbox.open(settings.hub.data_dir / OUTBOX_FILE).close()  # Refused while somebody holds it.

    asyncio.run(story())


def running(tmp_path: Path, told: Callable[[Agent], object]) -> None:
    """Run an agent that finds no path until a condition holds, then stop it, and wait no longer than a service manager."""

    async def story() -> None:
        settings = settings_of(tmp_path, NO_PATH)
        agent, stop = Agent(settings, keeper_of(tmp_path, settings)), asyncio.Event()
        task = asyncio.create_task(agent.run(stop))
        await until(lambda: bool(told(agent)))
        stop.set()
        async with asyncio.timeout(limits.STOP_TIMEOUT_S):
            await asyncio.wait([task])
        task.result()

    asyncio.run(story())


def test_the_start_is_told_until_the_cloud_is_known_to_have_heard_of_it(tmp_path: Path) -> None:
    """A session may die before the birth has left it; and what an earlier process has sent proves nothing."""

    def told(agent: Agent) -> bool:
        if agent._keeper.standing.last_seq == 0:
            return False
        reasons = [agent.introduction(session, "direct").reason for session in (1, 2)]
        agent.acknowledged(Ack("0" * 16, [(1, limits.POINTS_MAX)]))
        reasons.append(agent.introduction(3, "direct").reason)
        assert reasons == ["started"] * 3
        agent.acknowledged(Ack(agent._outbox.epoch, [(1, agent._keeper.standing.last_seq)]))
        return agent.introduction(4, "direct").reason is None

    running(tmp_path, told)


def test_a_journal_that_hangs_does_not_keep_a_hub_from_stopping_in_time(tmp_path: Path) -> None:
    """Service managers kill what needs longer, and then nothing is closed in order."""
    settings = settings_of(tmp_path, NO_PATH)
    settings.hub.data_dir.mkdir()
    with closing(sqlite3.connect(settings.hub.data_dir / TASKS_FILE, isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        running(tmp_path, lambda agent: agent._tasks._loading is not None and agent._keeper.standing.last_seq)
