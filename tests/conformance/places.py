"""Where the suite runs: all of it where an engine belongs; what depends on the place, the rights, at both kinds of broker."""

from __future__ import annotations

from typing import Any, Final

import pytest

from config.principal import CLOUD_SITE
from tests.conformance.engines import EngineName
from tests.conformance.ground import SITE

HOMES: Final[tuple[tuple[EngineName, str], ...]] = (("amqtt", SITE), ("mosquitto", SITE), ("nats", CLOUD_SITE))
BEYOND: Final[tuple[tuple[EngineName, str], ...]] = (("amqtt", CLOUD_SITE), ("mosquitto", CLOUD_SITE), ("nats", SITE))


def at(*places: tuple[EngineName, str]) -> list[Any]:
    """Return what makes `ground` a broker at each of these; with pytest-xdist, an engine's tests share a worker."""
    return [
        pytest.param(
            place,
            id=f"{place[0]}-{'cloud' if place[1] == CLOUD_SITE else 'site'}",
            marks=pytest.mark.xdist_group(f"conformance-{place[0]}"),
        )
        for place in places
    ]


everywhere: Final = pytest.mark.parametrize("ground", at(*HOMES, *BEYOND), indirect=True)
"""For a test that is to run at both kinds of broker."""
