"""`hubline broker run` as service managers and administrators meet it: a process, its signals and its words."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from broker.tls import client_context
from config import limits
from config.endpoint import split_endpoint
from config.principal import server_name
from tests.broker import raw_mqtt as raw
from tests.broker.certificates import FleetFiles

COMMAND = [sys.executable, "-c", "from config.cli import main; main()", "broker", "run", "-c"]


@pytest.fixture
def fleet(tmp_path: Path) -> FleetFiles:
    return FleetFiles(tmp_path / "acme")


def broker_toml(fleet: FleetFiles, listen: str = "127.0.0.1:0") -> Path:
    identity = fleet.identity("broker", "broker-1", "berlin")
    file = fleet.folder / "broker.toml"
    file.write_text(
        f'[identity]\nfleet = "acme"\nsite = "berlin"\nname = "broker-1"\nca = "ca.pem"\n'
        f'cert = "{identity.cert.name}"\nkey = "{identity.key.name}"\n'
        f'[broker]\nlisten = ["{listen}"]\ncrl = "crl.pem"\n'
    )
    return file


@contextmanager
def running(file: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a broker until it listens, and yield it with its endpoint."""
    process = subprocess.Popen([*COMMAND, str(file)], stderr=subprocess.PIPE, text=True)
    try:
        status = file.parent / "data" / "status.json"
        deadline = time.monotonic() + 30
        while not status.exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process, orjson.loads(status.read_bytes())["listen"][0]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows stops services otherwise")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_in_time_and_its_clients_see_the_end(fleet: FleetFiles, number: signal.Signals) -> None:
    hub = fleet.identity("hub", "pc-1", "berlin")

    async def story(process: subprocess.Popen[str], endpoint: str) -> None:
        host, port = split_endpoint(endpoint)
        context = client_context(hub, server_name("acme", "berlin"))
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        client = raw.RawClient(reader, writer)
        client.send(raw.connect("pc-1"))
        assert await client.packet() == raw.CONNACK
        process.send_signal(number)
        assert await client.ended()
        await client.close()

    with running(broker_toml(fleet)) as (process, endpoint):
        asyncio.run(story(process, endpoint))
        _, said = process.communicate(timeout=limits.STOP_TIMEOUT_S)
        assert process.returncode == 0
        events = [orjson.loads(line)["event"] for line in said.splitlines()]
        assert events == ["broker_started", "broker_stopped"]


def test_what_cannot_work_is_said_in_one_line(fleet: FleetFiles) -> None:
    """No traceback: the person at the machine must see what to change."""
    with running(broker_toml(fleet)) as (_, endpoint):
        second = subprocess.run(
            [*COMMAND, str(broker_toml(fleet, endpoint))], capture_output=True, text=True, timeout=30, check=False
        )
    assert second.returncode != 0
    assert second.stderr.count("\n") == 1
    assert endpoint in second.stderr
    assert "in use" in second.stderr
