"""What a role loads, and what it leaves out."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOADS = """
import sys
import config.cli, hub.cli, broker.process, hub.agent
print(*sorted(set(sys.argv[1:]) & sys.modules.keys()))
for name in sys.argv[1:]:
    __import__(name)
"""


@pytest.mark.parametrize(
    "name", ["rich", "typing_extensions", "difflib", "cryptography", "amqtt", "sqlalchemy", "urllib.request"]
)
def test_a_hub_loads_nothing_that_it_has_no_use_for(name: str) -> None:
    """Each is some hundred kB up to 9 MB of the 40 that a hub may have; whoever wants it later still gets it."""
    pytest.importorskip(name)
    done = subprocess.run([sys.executable, "-c", LOADS, name], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("\n", "")
