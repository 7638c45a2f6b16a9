"""Status files: whole at every moment, and written only as often as they are needed. And tasks that must end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest
from structlog.testing import capture_logs

from broker.process import StatusFile, cancelled
from config import limits


def test_a_change_is_written_at_once(tmp_path: Path) -> None:
    content: dict[str, object] = {"ts": 1, "n": 1}
    status = StatusFile(tmp_path / "status.json", lambda: dict(content))
    status.changed()
    assert orjson.loads((tmp_path / "status.json").read_bytes()) == content


def test_a_status_that_stands_still_is_renewed_before_it_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk is not written every second for nothing, and a reader can tell a live process from a dead one."""
    monkeypatch.setattr(limits, "STATUS_INTERVAL_S", 0.005)
    written, turns = set[bytes](), 0

    def describe() -> dict[str, object]:
        nonlocal turns
        turns += 1
        return {"ts": turns, "n": 1}

    async def run() -> None:
        status = StatusFile(tmp_path / "status.json", describe)
        keeping = asyncio.create_task(status.keep())
        async with asyncio.timeout(20):
            while turns < 50:
                if (tmp_path / "status.json").exists():
                    written.add((tmp_path / "status.json").read_bytes())
                await asyncio.sleep(0)
        keeping.cancel()
        await asyncio.wait([keeping])

    asyncio.run(run())
    assert 2 < len(written) < 25


def test_a_disk_that_refuses_does_not_end_the_process(tmp_path: Path) -> None:
    status = StatusFile(tmp_path / "missing" / "status.json", lambda: {"ts": 1})
    status.changed()
    status.changed()
    assert not (tmp_path / "missing").exists()


def test_the_reason_of_a_refusal_is_told_though_the_system_has_no_words_for_it(tmp_path: Path) -> None:
    """Some OSErrors have only a text of their own."""

    def describe() -> dict[str, object]:
        raise OSError("the share is gone")

    with capture_logs() as logs:
        StatusFile(tmp_path / "status.json", describe).changed()
    assert [line["reason"] for line in logs] == ["the share is gone"]


def test_who_overhears_once_that_it_is_cancelled_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in asyncio.wait_for before Python 3.12, if what it waits for has just come: a stop would never come to its end."""
    monkeypatch.setattr(limits, "CANCEL_AGAIN_S", 0.01)

    async def story() -> list[str]:
        overheard: list[str] = []

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                overheard.append("once")
            await asyncio.Event().wait()

        async def fail() -> None:
            raise ValueError("of its own")

        tasks = [asyncio.create_task(work()), asyncio.create_task(fail())]
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await cancelled(tasks)
        assert all(task.done() for task in tasks)
        return overheard

    assert asyncio.run(story()) == ["once"]
