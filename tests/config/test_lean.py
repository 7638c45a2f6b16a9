"""What a role loads, and what it leaves out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOADS = """
import sys
import config.cli, hub.cli, broker.process, hub.agent
print(*sorted(set(sys.argv[1:]) & sys.modules.keys()))
for name in sys.argv[1:]:
    __import__(name)
"""

ASKS = """
import broker.client, socks
from broker.paho_client import paho
print(socks.HTTP, paho.Client(paho.CallbackAPIVersion.VERSION2)._get_proxy())
"""


@pytest.mark.parametrize(
    "name", ["rich", "typing_extensions", "difflib", "cryptography", "amqtt", "sqlalchemy", "urllib.request"]
)
def test_a_hub_loads_nothing_that_it_has_no_use_for(name: str) -> None:
    """Each is some hundred kB up to 9 MB of the 40 that a hub may have; whoever wants it later still gets it."""
    pytest.importorskip(name)
    done = subprocess.run([sys.executable, "-c", LOADS, name], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_a_session_takes_no_proxy_that_the_settings_do_not_name(tmp_path: Path) -> None:
    """With PySocks installed, paho would take the one that a variable of the environment names."""
    (tmp_path / "socks.py").write_text("HTTP, SOCKS4, SOCKS5 = 3, 1, 2\n")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path), "mqtt_proxy": "http://192.0.2.1:3128"}
    done = subprocess.run([sys.executable, "-c", ASKS], capture_output=True, text=True, env=environ, check=False)
    assert done.stdout == "3 None\n", done.stderr
