"""One broker per engine and place, for all tests of the suite; with pytest-xdist, an engine's tests share a worker."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from broker.engines.child import _MORE_PLACES
from config import provision
from config.principal import CLOUD_SITE
from tests.conformance.engines import ENGINES, PROGRAMS, EngineName
from tests.conformance.ground import SITE, Ground

PLACES = {"site": SITE, "cloud": CLOUD_SITE}
GROUNDS = [
    pytest.param((engine, place), id=f"{engine}-{title}", marks=pytest.mark.xdist_group(f"conformance-{engine}"))
    for engine in ENGINES
    for title, place in PLACES.items()
]


@pytest.fixture(scope="session")
def rival(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a foreign fleet, with a hub of the same site and name."""
    folder = tmp_path_factory.mktemp("rival") / "fleet"
    provision.init(folder, "rival")
    provision.hub(folder, "pc-1", SITE)
    return folder


@pytest.fixture(scope="session", params=GROUNDS)
def ground(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, rival: Path) -> Iterator[Ground]:
    """Run a broker for every test of one engine at one place."""
    engine, place = cast(tuple[EngineName, str], request.param)
    program = PROGRAMS[engine]
    if program is not None and not _is_here(program):
        pytest.skip(f"{program} is not installed")
    this = Ground(engine, place, tmp_path_factory.mktemp(f"{engine}-"), rival)
    this.provision()
    try:
        this.start()
        yield this
    finally:
        this.stop()


def _is_here(program: str) -> bool:
    import sys

    places = [*_MORE_PLACES, str(Path(sys.executable).parent)]
    return any(shutil.which(program, path=place) for place in (None, *places))
