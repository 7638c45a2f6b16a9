"""Who brings a site's messages to the cloud: what holds for the connector's own bridge holds for the site broker's, too."""

from __future__ import annotations

import shutil

import pytest

NEEDS_MOSQUITTO = pytest.mark.skipif(
    shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin") is None,
    reason="Mosquitto is not installed (package mosquitto)",
)
ENGINE = pytest.param("engine", marks=NEEDS_MOSQUITTO)
IN_BOTH = pytest.mark.parametrize("bridge", ["own", ENGINE], indirect=True)
"""For a test that stands for the others in every run: those come on the site broker's bridge only in `make soak`."""


@pytest.fixture(scope="module", params=["own", pytest.param("engine", marks=(NEEDS_MOSQUITTO, pytest.mark.soak))])
def bridge(request: pytest.FixtureRequest) -> str:
    """Return who bridges: "own" (the connector) or "engine" (the site's Mosquitto)."""
    return str(request.param)
