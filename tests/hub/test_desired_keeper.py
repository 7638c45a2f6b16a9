"""The keeper of settings from the cloud, with real files: what is in force, over restarts, damage and edited files."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from broker.control import DesiredSettings, SettingsReport
from config import remote, settings
from config.errors import SettingsError
from config.settings import HubSettings
from hub import desired_file
from hub.desired import Document, Kept
from hub.desired_keeper import SettingsKeeper

HEAD = """[identity]
fleet = "acme"
site = "berlin"
name = "pc-17"
ca = "ca.pem"
cert = "cert.pem"
key = "key.pem"
[failover]
outage_s = 60
"""
SLOW, FAST = {"failover": {"outage_s": 600.0}}, {"failover": {"outage_s": 6.0}}
SOON_S = 5.0


def document(version: int, content: dict[str, Any]) -> Document:
    return Document(version, remote.hash_of(content), content)


def wanted(version: int, content: dict[str, Any]) -> DesiredSettings:
    return DesiredSettings(version, remote.hash_of(content), 1, content)


class Machine:
    """A hub's folder and its keeper, which can be started anew."""

    def __init__(self, folder: Path, remote_section: str = ""):
        self.file = folder / "hub.toml"
        (folder / "data").mkdir(exist_ok=True)
        self.kept_file = folder / "data" / "settings.json"
        if not self.file.exists():
            self.file.write_text(HEAD + remote_section)
        self.applied: list[HubSettings] = []
        self.reports: list[SettingsReport] = []
        self.happened = asyncio.Event()
        self.keeper = self.process()

    def process(self) -> SettingsKeeper:
        """Return the keeper of a new process."""
        own = settings.load(self.file, HubSettings, {})
        self.keeper = SettingsKeeper(self.file, own, apply=self._apply, report=self._report, environ={})
        return self.keeper

    def _apply(self, fresh: HubSettings) -> None:
        self.applied.append(fresh)
        self.happened.set()

    def _report(self, report: SettingsReport) -> None:
        self.reports.append(report)
        self.happened.set()

    def begin_anew(self) -> HubSettings:
        """Do what the agent does when it is told to."""
        self.keeper.close()
        found = self.keeper.effective()
        self.keeper.start()
        return found

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(SOON_S):
            while not condition():
                self.happened.clear()
                await self.happened.wait()

    @property
    def states(self) -> list[tuple[int, str]]:
        return [(report.version, report.state) for report in self.reports]

    @property
    def kept(self) -> Kept:
        return desired_file.decode(self.kept_file.read_bytes())


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await story()

    asyncio.run(whole())


def test_new_settings_are_tried_proven_and_stay_over_a_restart(tmp_path: Path) -> None:
    """The good case, with the agent beginning anew in the same process."""

    async def story() -> None:
        machine = Machine(tmp_path, "[remote]\ntrial_s = 60\n")
        keeper = machine.keeper
        assert keeper.effective().failover.outage_s == 60.0
        keeper.start()
        assert (machine.reports, keeper.standing, keeper.hash) == ([], None, remote.EMPTY_HASH)
        keeper.received(wanted(1, SLOW))
        assert [each.failover.outage_s for each in machine.applied] == [600.0]
        assert machine.kept.trial == document(1, SLOW)
        assert machine.reports == []  # Not before it works with them.
        assert machine.begin_anew().failover.outage_s == 600.0
        assert machine.states == [(1, "trial")]
        keeper.close()
        machine.kept_file.write_bytes(msgspec.json.encode(Kept(document(1, SLOW))))
        keeper = machine.process()  # Another process, after the trial.
        assert keeper.effective().failover.outage_s == 600.0
        keeper.start()
        assert machine.states == [(1, "trial"), (1, "applied")]
        assert keeper.hash == remote.hash_of(SLOW)
        keeper.close()

    run(story)


def test_proof_makes_a_trial_the_last_good_settings(tmp_path: Path) -> None:
    """The cloud's word over the new path, and a moment of life."""

    async def story() -> None:
        machine = Machine(tmp_path, "[remote]\ntrial_s = 3\n")
        machine.begin_anew()
        machine.keeper.received(wanted(1, SLOW))
        machine.keeper.acknowledged()  # For something older: we have not begun anew yet.
        machine.begin_anew()
        machine.keeper.acknowledged()
        await machine.until(lambda: (1, "applied") in machine.states)
        assert machine.kept == Kept(document(1, SLOW))
        machine.keeper.received(wanted(1, SLOW))
        assert machine.states == [(1, "trial"), (1, "applied"), (1, "applied")]
        assert len(machine.applied) == 1
        machine.keeper.close()

    run(story)


def test_without_proof_the_agent_gets_its_last_good_settings_back(tmp_path: Path) -> None:
    """The timer runs whether or not anybody is connected."""

    async def story() -> None:
        machine = Machine(tmp_path, "[remote]\ntrial_s = 0.3\n")
        machine.begin_anew()
        machine.keeper.received(wanted(1, SLOW))
        machine.begin_anew()
        await machine.until(lambda: len(machine.applied) == 2)
        assert machine.applied[1].failover.outage_s == 60.0
        assert machine.begin_anew().failover.outage_s == 60.0
        assert machine.states == [(1, "trial"), (1, "rolled-back")]
        assert (
            machine.reports[-1].reason
            == "the cloud could not be reached with them for 0.3 s, over each path that they change"
        )
        assert machine.kept.trial is None
        machine.keeper.close()

    run(story)


def test_a_trial_goes_on_in_the_next_process_and_ends_there(tmp_path: Path) -> None:
    """A reboot in the middle of it is no way out."""

    async def story() -> None:
        machine = Machine(tmp_path, "[remote]\ntrial_s = 30\n")
        machine.kept_file.write_bytes(msgspec.json.encode(Kept(document(1, SLOW), document(2, FAST), 12.0)))
        assert machine.process().effective().failover.outage_s == 6.0
        assert machine.kept.elapsed_s == 15.0
        machine.kept_file.write_bytes(msgspec.json.encode(Kept(document(1, SLOW), document(2, FAST), 30.0)))
        assert machine.process().effective().failover.outage_s == 600.0
        machine.keeper.start()
        assert machine.states == [(2, "rolled-back")]
        machine.keeper.close()

    run(story)


def test_settings_that_this_hub_can_not_take_are_refused_with_the_reason(tmp_path: Path) -> None:
    """Nothing changes, and the cloud can show why."""

    async def story() -> None:
        machine = Machine(tmp_path)
        machine.begin_anew()
        machine.keeper.received(wanted(1, {"sensors": {"cpux": {"enabled": True}}}))
        machine.keeper.received(wanted(2, {"identity": {"name": "other"}}))
        assert machine.states == [(1, "refused"), (2, "refused")]
        assert "there is no such sensor, did you mean cpu?" in str(machine.reports[0].reason)
        assert "only be set in the hub's own file" in str(machine.reports[1].reason)
        assert machine.applied == []
        machine.keeper.set_roaming(True)
        machine.keeper.received(wanted(3, SLOW))
        assert machine.applied == []
        machine.keeper.set_roaming(False)
        machine.keeper.received(wanted(3, SLOW))
        assert len(machine.applied) == 1
        machine.keeper.close()

    run(story)


def test_settings_that_can_not_be_started_with_go_back_at_the_start(tmp_path: Path) -> None:
    """A sensor was uninstalled, or the agent finds out what no check could."""

    async def story() -> None:
        machine = Machine(tmp_path)
        gone = document(2, {"sensors": {"cpux": {"enabled": True}}})
        machine.kept_file.write_bytes(msgspec.json.encode(Kept(document(1, SLOW), gone)))
        assert machine.process().effective().failover.outage_s == 600.0
        error = SettingsError("no bus", key="sensors.cpu")
        assert machine.keeper.cannot_start(error)
        assert machine.keeper.effective().failover.outage_s == 60.0
        assert not machine.keeper.cannot_start(error)  # Its own file alone counts now.
        machine.keeper.start()
        assert machine.states == [(2, "rolled-back")]
        machine.keeper.close()

    run(story)


def test_a_hub_whose_own_file_forbids_it_takes_nothing(tmp_path: Path) -> None:
    """remote.settings = false is the last word of the machine's own people."""

    async def story() -> None:
        machine = Machine(tmp_path, "[remote]\nsettings = false\n")
        machine.kept_file.write_bytes(msgspec.json.encode(Kept(document(1, SLOW))))
        assert machine.process().effective().failover.outage_s == 60.0
        machine.keeper.start()
        machine.keeper.received(wanted(2, FAST))
        assert machine.states == [(1, "refused"), (2, "refused")]
        machine.keeper.close()

    run(story)


def test_a_file_that_somebody_is_editing_blames_no_settings(tmp_path: Path) -> None:
    """Half a line in hub.toml must neither refuse good settings nor strand a hub with bad ones."""

    async def story() -> None:
        machine = Machine(tmp_path, "[remote]\ntrial_s = 0.3\n")
        machine.begin_anew()
        whole = machine.file.read_text()
        machine.file.write_text(whole + "[fail")
        machine.keeper.received(wanted(1, SLOW))
        assert (machine.applied, machine.reports) == ([], [])
        machine.file.write_text(whole)
        machine.keeper.received(wanted(1, SLOW))
        machine.begin_anew()
        machine.file.write_text(whole + "[fail")
        await machine.until(lambda: len(machine.applied) == 2)
        assert machine.applied[1].failover.outage_s == 60.0
        machine.keeper.close()
        with pytest.raises(SettingsError, match="is not TOML"):
            SettingsKeeper(machine.file, machine.applied[1], apply=print, report=print, environ={}).effective()

    run(story)


def test_a_damaged_file_is_set_aside_and_named_and_the_hub_starts(tmp_path: Path) -> None:
    """The hub's own file alone counts then, and the cloud sends its settings again."""

    async def story() -> None:
        machine = Machine(tmp_path)
        whole = msgspec.json.encode(Kept(document(3, SLOW)))
        for damaged in (b"", whole[:-5], whole.replace(b"600.0", b"601.0"), b"[" * 100_000, b"null", b"\xff\xfe"):
            machine.kept_file.write_bytes(damaged)
            with capture_logs() as logs:
                keeper = machine.process()
            assert keeper.effective().failover.outage_s == 60.0
            assert keeper.standing is None
            aside = machine.kept_file.with_name("settings.json.damaged")
            assert aside.read_bytes() == damaged
            (line,) = (each for each in logs if each["event"] == "settings_from_cloud_damaged")
            assert (line["file"], line["aside"]) == (str(machine.kept_file), str(aside))
            assert not machine.kept_file.exists()

    run(story)


@given(kept=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_whatever_the_file_holds_the_hub_starts(kept: bytes) -> None:
    """Disks return anything."""
    with suppress(ValueError):
        assert isinstance(desired_file.decode(kept), Kept)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such file modes")
def test_what_is_kept_is_private(tmp_path: Path) -> None:
    """A proxy's password may be in it."""
    file = tmp_path / "settings.json"
    desired_file.write_kept(file, Kept(document(1, SLOW)))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert desired_file.read_kept(file) == Kept(document(1, SLOW))


def test_a_disk_that_refuses_keeps_no_hub_from_trying(tmp_path: Path) -> None:
    """What it holds is older, but whole: after a crash the hub goes on from there."""

    async def story() -> None:
        machine = Machine(tmp_path)
        machine.begin_anew()
        machine.kept_file.mkdir()
        with capture_logs() as logs:
            machine.keeper.received(wanted(1, SLOW))
        assert len(machine.applied) == 1
        assert "settings_from_cloud_not_saved" in [each["event"] for each in logs]
        machine.keeper.close()

    run(story)
