"""What a hub remembers of its paths survives a restart, and its loss is no disaster."""

from __future__ import annotations

from pathlib import Path

from hub.memory import PathMemory


def test_endpoints_and_outage_survive_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "paths.json"
    memory = PathMemory(file)
    memory.remember(("192.0.2.1:8883", "[2001:db8::1]:8883"))
    memory.save_outage(1763798400123)
    kept = PathMemory(file).kept
    assert (kept.endpoints, kept.outage_ms) == (("192.0.2.1:8883", "[2001:db8::1]:8883"), 1763798400123)


def test_the_end_of_an_outage_is_saved_too(tmp_path: Path) -> None:
    file = tmp_path / "paths.json"
    memory = PathMemory(file)
    memory.save_outage(1763798400123)
    memory.save_outage(None)
    assert PathMemory(file).kept.outage_ms is None


def test_a_damaged_file_is_forgotten_and_replaced(tmp_path: Path) -> None:
    file = tmp_path / "paths.json"
    file.write_bytes(b"\x00garbage")
    memory = PathMemory(file)
    assert memory.kept.endpoints == ()
    memory.remember(("192.0.2.1:8883",))
    assert PathMemory(file).kept.endpoints == ("192.0.2.1:8883",)


def test_a_disk_that_refuses_costs_only_the_memory(tmp_path: Path) -> None:
    memory = PathMemory(tmp_path / "missing-folder" / "paths.json")
    memory.remember(("192.0.2.1:8883",))
    assert memory.kept.endpoints == ("192.0.2.1:8883",)
