"""What a hub tells of itself: whole, at once when it changes, and known by its number when the cloud has it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from broker.control import ModePolicy, Protection, Reported, SettingsReport
from config.settings import HubSettings, load
from hub.keeper import Keeper
from hub.outbox import Outbox
from hub.reporting import Reporter, reported_of
from hub.sensors import load_sensors

HUB_TOML = """
[identity]
fleet = "acme"
site = "berlin"
name = "pc-17"
ca = "ca.pem"
cert = "cert.pem"
key = "key.pem"
"""


def settings_of(tmp_path: Path, more: str = "") -> HubSettings:
    file = tmp_path / "hub.toml"
    file.write_text(HUB_TOML + more)
    return load(file, HubSettings, {})


def reported(tmp_path: Path, more: str = "", **changes: object) -> Reported:
    settings = settings_of(tmp_path, more)
    known: dict[str, object] = {"addresses": ["10.0.0.7"], "mode": "continuous", "settings_report": None, **changes}
    return reported_of(settings, load_sensors(settings.sensors, {}), **known)  # type: ignore[arg-type]


def test_a_report_says_what_the_hub_is(tmp_path: Path) -> None:
    more = """
[hub]
machine = "laptop"
[privileges]
roam = true
[tasks]
allow = ["ping", "run-check"]
[checks.disk]
command = ["true"]
[protection]
source = "settings"
pattern = "old"
[sensors.cpu]
interval_s = 7
[mode]
heartbeat = "off"
heartbeat_min = 5
poll_min = 15
offline_after_min = 45
"""
    standing = SettingsReport(3, "0123456789abcdef", "trial")
    found = reported(tmp_path, more, mode="roaming", settings_report=standing)
    assert (found.addresses, found.mode, found.machine) == (["10.0.0.7"], "roaming", "laptop")
    assert found.privileges == {"roam": True, "update": False, "scheduled_update_while_roaming": False}
    assert (found.tasks, found.checks) == (["ping", "run-check"], ["disk"])
    assert found.protection == Protection("conventional", "old", "enabled", "reachable")
    assert found.settings == standing
    assert found.sensors["cpu"] == {"interval_s": 7.0}
    assert found.policy == ModePolicy("off", 5, 15, 45)
    assert found.host
    assert found.system
    assert found.version
    assert msgspec.json.decode(msgspec.json.encode(found), type=Reported) == found


def test_a_protection_that_nobody_has_told_is_not_made_up(tmp_path: Path) -> None:
    assert reported(tmp_path).protection is None


def story(tmp_path: Path, tell: Callable[[Keeper, Outbox], Awaitable[None]]) -> None:
    async def run() -> None:
        outbox = Outbox.open(tmp_path / "outbox.db")
        keeper = Keeper(outbox, lambda _report: None)
        working = asyncio.create_task(keeper.run())
        try:
            await tell(keeper, outbox)
        finally:
            working.cancel()
            await asyncio.wait([working])
            await keeper.close()

    asyncio.run(run())


def test_only_a_change_is_reported_unless_asked_for(tmp_path: Path) -> None:
    standing = [reported(tmp_path)]

    async def tell(keeper: Keeper, outbox: Outbox) -> None:
        reporter = Reporter(keeper, lambda: standing[0])
        for anew in (True, False, False):
            reporter.look(anew=anew)
        standing[0] = msgspec.structs.replace(standing[0], mode="roaming")
        for anew in (False, False, True):
            reporter.look(anew=anew)
        await keeper.flushed()
        messages = await keeper.call(lambda: outbox.load(range(1, 9)))
        assert [message.kind for message in messages] == ["reported"] * 3
        modes = [msgspec.json.decode(message.body, type=Reported).mode for message in messages]
        assert modes == ["continuous", "roaming", "roaming"]

    story(tmp_path, tell)


@pytest.mark.parametrize(
    ("ranges", "newest"),
    [([(1, 1)], False), ([(2, 2)], True), ([(1, 5)], True), ([(3, 9)], False), ([(1, 1), (2, 2)], True), ([], False)],
)
def test_only_the_newest_report_proves_that_the_cloud_knows_all(
    tmp_path: Path, ranges: list[tuple[int, int]], newest: bool
) -> None:
    """Settings on trial are good when the report made with them has arrived, not an earlier one."""
    standing = [reported(tmp_path)]

    async def tell(keeper: Keeper, _: Outbox) -> None:
        reporter = Reporter(keeper, lambda: standing[0])
        assert not reporter.acknowledged([(1, 99)])
        reporter.look()
        await keeper.flushed()
        reporter.look(anew=True)
        assert not reporter.acknowledged([(1, 1)]), "the newest is not even on the disk"
        await keeper.flushed()
        assert reporter.acknowledged(ranges) is newest

    story(tmp_path, tell)
