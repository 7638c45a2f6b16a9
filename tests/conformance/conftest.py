"""One broker per engine and place, for all tests of the suite; with pytest-xdist, an engine's tests share a worker.

What follows from who one is, the rights, is tested at a site's and at the cloud's broker; all else is the same at both, and is
tested where the engine belongs.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, cast

import pytest

from broker.engines.child import _MORE_PLACES
from config import provision
from config.ports import free_ports
from config.principal import CLOUD_SITE
from tests.conformance.engines import PROGRAMS, EngineName
from tests.conformance.ground import SITE, Ground, provision_fleet

HOMES: Final[tuple[tuple[EngineName, str], ...]] = (("amqtt", SITE), ("mosquitto", SITE), ("nats", CLOUD_SITE))
"""Where each engine is tested in everything."""
BEYOND: Final[tuple[tuple[EngineName, str], ...]] = (("amqtt", CLOUD_SITE), ("mosquitto", CLOUD_SITE), ("nats", SITE))
"""Where it is tested in what depends on the place."""
AT_BOTH: Final = "test_rights"
LAST: Final = "test_who_never_gets_to_a_session_is_cut_in_time"
"""Looks at connections that have been open all the time: at the end there is nothing left to wait for."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "ground" in metafunc.fixturenames:
        places = HOMES + BEYOND if metafunc.module.__name__.endswith(AT_BOTH) and not _is_at_home(metafunc) else HOMES
        params = [
            pytest.param(
                place,
                id=f"{place[0]}-{'cloud' if place[1] == CLOUD_SITE else 'site'}",
                marks=pytest.mark.xdist_group(f"conformance-{place[0]}"),
            )
            for place in places
        ]
        metafunc.parametrize("ground", params, indirect=True, scope="session")


def _is_at_home(metafunc: pytest.Metafunc) -> bool:
    return metafunc.definition.get_closest_marker("at_home") is not None
