"""One broker per engine and place, for all tests of the suite that run there."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, cast

import pytest

from broker.engines.prepared import MORE_PLACES
from config import provision
from config.ports import free_ports
from tests.conformance.engines import PROGRAMS, EngineName
from tests.conformance.ground import SITE, Ground, provision_fleet
from tests.conformance.places import HOMES, at

LAST: Final = "test_who_never_gets_to_a_session_is_cut_in_time"
"""Looks at connections that have been open all the time: the later, the less there is to wait for."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test where each engine belongs, unless it says otherwise."""
    said = {mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")}
    if "ground" in metafunc.fixturenames and "ground" not in said:
        metafunc.parametrize("ground", at(*HOMES), indirect=True)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what looks back at a broker's life to the end of it."""
    for late in [item for item in items if getattr(item, "originalname", None) == LAST]:
        items.remove(late)
        items.insert(max(at for at, item in enumerate(items) if _ground_of(item) == _ground_of(late)) + 1, late)


def _ground_of(item: pytest.Item) -> object:
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get("ground")


@pytest.fixture(scope="session")
def rival(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a foreign fleet, with a hub of the same site and name."""
    folder = tmp_path_factory.mktemp("rival") / "fleet"
    provision.init(folder, "rival")
    provision.hub(folder, "pc-1", SITE)
    return folder


@pytest.fixture(scope="session")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the fleet of which every broker gets a copy."""
    folder = tmp_path_factory.mktemp("provisioned") / "fleet"
    provision_fleet(folder)
    return folder


@pytest.fixture(scope="session")
def ground(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, rival: Path, provisioned: Path
) -> Iterator[Ground]:
    """Run a broker for every test of one engine at one place."""
    engine, place = cast(tuple[EngineName, str], request.param)
    program = PROGRAMS[engine]
    if program is not None and not _is_here(program):
        pytest.skip(f"{program} is not installed")
    (port,) = free_ports(1)
    this = Ground(engine, place, tmp_path_factory.mktemp(f"{engine}-"), rival, f"127.0.0.1:{port}")
    shutil.copytree(provisioned, this.fleet)
    try:
        this.start()
        yield this
    finally:
        this.stop()


def _is_here(program: str) -> bool:
    places = [*MORE_PLACES, str(Path(sys.executable).parent)]
    return any(shutil.which(program, path=place) for place in (None, *places))
