"""`hubline broker config`: what it says about the files is true, and what it tells a person to run works."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from broker.cli import broker
from config.members import Entry, Members
from tests.broker.certificates import FleetFiles


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the broker.toml of a site, in a folder whose name a shell would take apart."""
    fleet = FleetFiles(tmp_path / "a fleet")
    identity = fleet.identity("broker", "berlin-1", "berlin")
    (fleet.folder / "members.json").write_bytes(
        msgspec.json.encode(Members("acme", [Entry("hub", "berlin", "pc-1"), Entry("connector", "berlin", "berlin-1")]))
    )
    made = fleet.folder / "broker.toml"
    made.write_text(
        f'[identity]\nfleet = "acme"\nsite = "berlin"\nname = "berlin-1"\nca = "ca.pem"\n'
        f'cert = "{identity.cert.name}"\nkey = "{identity.key.name}"\n'
        f'[broker]\nlisten = ["127.0.0.1:8883"]\ncrl = "crl.pem"\nmembers = "members.json"\n'
    )
    return made


def written(file: Path, engine: str, *arguments: str) -> Result:
    return CliRunner().invoke(broker, ["config", engine, "-c", str(file), *arguments], catch_exceptions=False)


@pytest.mark.parametrize("engine", ["mosquitto", "nats", "emqx"])
def test_what_is_only_shown_is_said_to_be_only_shown(file: Path, engine: str) -> None:
    """A command to run it would name files that are not there."""
    said = written(file, engine)
    assert said.stderr == "# only shown: --out DIRECTORY writes it\n"
    assert "PRIVATE KEY" not in said.output
    assert not (file.parent / "data").exists()


def test_command_that_is_shown_for_mosquitto_has_what_keeps_revoked_sessions_from_being_resumed(file: Path) -> None:
    """Without it a ticket of TLS brings in whoever was revoked since."""
    out = file.parent / "out"
    command = written(file, "mosquitto", "--out", str(out)).stderr.removeprefix("# Run it by: ")
    assert f"OPENSSL_CONF='{out / 'openssl.cnf'}'" in command
    shown = command.replace(" mosquitto -c ", " cat ")  # The same shell, another program.
    done = subprocess.run(["sh", "-c", shown], capture_output=True, text=True, check=True, timeout=10)
    assert done.stdout == (out / "mosquitto.conf").read_text()


def test_configuration_of_nats_says_that_it_lets_nobody_in_by_itself(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each connection is answered by `hubline broker run`; a nats-server that is run by hand would ask in vain."""
    out = str(file.parent / "out")
    assert "lets nobody in" in written(file, "nats", "--out", out).stderr
    monkeypatch.setenv("HUBLINE_NATS__AUTHORIZATION", '"permissions"')
    assert written(file, "nats", "--out", out).stderr == f"# Run it by: cd '{out}' && nats-server --config nats.conf\n"


def test_configuration_of_emqx_is_to_be_included_by_its_whole_path(file: Path) -> None:
    """EMQX's own file has the same name."""
    out = file.parent / "out"
    said = written(file, "emqx", "--out", str(out)).stderr
    assert said == f'# Add this to the configuration of EMQX: include "{out / "emqx.conf"}"\n'
