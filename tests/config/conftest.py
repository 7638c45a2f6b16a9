"""A provisioned fleet, a plug-in sensor and the command line, all real."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from config import provision
from config.cli import main

SENSOR = """
from msgspec import Struct

class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True
    interval_s: float = 30.0
    bus: str = "1-wire"

class Thermometer:
    Settings = Settings

class Broken:
    pass
"""

ENTRY_POINTS = """[hubline.sensors]
thermometer = {module}:Thermometer
barometer = {module}_missing:Barometer
shapeless = {module}:Broken
"""


@dataclass(frozen=True)
class Said:
    """What a command has left behind."""

    status: int
    out: str
    err: str


Hubline = Callable[..., Said]


@pytest.fixture
def hubline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Hubline:
    """Return a function that runs the command line as `hubline ARGS` would."""

    def run(*args: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["hubline", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, said.out, said.err)

    return run


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """Return a fleet directory with one site: connector berlin-1 and hub pc-17, and a reader of everything."""
    directory = tmp_path / "acme"
    provision.init(directory, "acme", cloud_hosts=["cloud.example.com", "192.0.2.7:443"])
    provision.connector(directory, "berlin-1", "berlin", hosts_of_broker=["gw.example.com"], port=18883)
    provision.hub(directory, "pc-17", "berlin")
    provision.reader(directory, "ann")
    return directory


@pytest.fixture
def thermometer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a third party's sensors, one that works and two that don't, as a distribution of its own."""
    folder, module = tmp_path / "site-packages", f"thermometer_{tmp_path.name.replace('-', '_')}"
    (folder / "thermometer-1.0.dist-info").mkdir(parents=True)
    (folder / f"{module}.py").write_text(SENSOR)
    (folder / "thermometer-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: thermometer\nVersion: 1.0\n"
    )
    (folder / "thermometer-1.0.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS.format(module=module))
    monkeypatch.syspath_prepend(folder)
