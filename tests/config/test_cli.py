"""The command line: starts fast, says one line when something is wrong, and exits as scripts expect."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from config import provision, settings
from config.cli import COMMANDS
from tests.config.conftest import Hubline

RUN = "import sys; from config.cli import main; main()"


def imported_by(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has imported after `code`."""
    show = f"{code}\nimport sys; print('\\n' + ' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


HEAVY = {"cryptography", "msgspec", "structlog", "orjson", "amqtt", "paho", "psutil", "sqlalchemy", "rich", "asyncio"}


def test_the_commands_module_imports_nothing_heavy() -> None:
    """`hubline hub status` on a small machine must not load a database for it."""
    assert not imported_by("import config.cli") & (HEAVY | {"hub", "cloud", "connector", "broker"})


def test_help_imports_no_command() -> None:
    """The list is the first thing a person sees, and the most often."""
    code = "import sys; sys.argv = ['hubline', '--help']\nfrom config.cli import main\ntry: main()\nexcept SystemExit: pass"
    assert not imported_by(code) & (HEAVY | {"hub", "cloud", "connector", "broker"})


def test_settings_are_read_without_cryptography_and_without_the_roles() -> None:
    """A hub has 40 MB for everything."""
    assert not imported_by("import config.settings") & {
        "cryptography",
        "hub",
        "cloud",
        "connector",
        "broker",
        "structlog",
    }


def test_help_lists_every_command_with_a_line(hubline: Hubline) -> None:
    """What isn't listed isn't found."""
    said = hubline("--help")
    assert said.status == 0
    for name, lazy in COMMANDS.items():
        assert f"{name} " in said.out
        assert lazy.help in said.out


def test_wrong_usage_exits_with_2_and_what_is_refused_with_1(hubline: Hubline, tmp_path: Path) -> None:
    """Scripts tell a typing error from a failure by it."""
    assert hubline("provision", "init").status == 2
    assert hubline("bogus").status == 2
    assert hubline("provision", "connector", "c", "--site", "s", "--port", "x", "--dir", tmp_path).status == 2
    refused = hubline("provision", "init", "acme", "--dir", tmp_path, "--key", "rsa-1024")
    assert (refused.status, refused.out) == (1, "")
    assert refused.err.startswith("hubline: key = 'rsa-1024': is too weak")
    assert refused.err.count("\n") == 1


def test_version_is_shown(hubline: Hubline) -> None:
    """The first question of every support call."""
    said = hubline("--version")
    assert said.status == 0
    assert said.out.startswith("hubline ")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
def test_ctrl_c_at_a_prompt_exits_with_130_and_no_traceback(tmp_path: Path) -> None:
    """That is where people change their mind."""
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", RUN, "provision", "init", "acme", "--dir", str(tmp_path / "f"), "--ask-passphrase"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as process:
        os.close(theirs)
        said = b""
        while b"New passphrase" not in said:
            said += os.read(ours, 1000)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(30) == 130
        finally:
            process.kill()  # Leaving the block would wait for ever for one that has not heard.
        said += os.read(ours, 10_000)
    os.close(ours)
    assert b"interrupted" in said
    assert b"Traceback" not in said
    assert not (tmp_path / "f").exists()


# --- provision -----------------------------------------------------------------------------------------------------


def test_a_fleet_is_made_by_the_commands_of_the_documentation(hubline: Hubline, tmp_path: Path) -> None:
    """From nothing to bundles, each step telling the next."""
    directory = tmp_path / "acme"
    made = hubline("provision", "init", "acme", "--dir", directory, "--cloud-host", "cloud.example.com:443")
    assert made.status == 0
    assert "hubline broker run -c broker.toml" in made.out
    assert str(directory / "admin.token") in made.out
    assert "provision connector NAME" in made.out
    made = hubline("provision", "hub", "pc-17", "--site", "berlin", "--dir", directory)
    assert "Site berlin has no connector yet" in made.out
    made = hubline(
        "provision", "connector", "b-1", "--site", "berlin", "--host", "gw", "--port", "18883", "--dir", directory
    )
    assert made.status == 0
    assert "Site berlin" not in hubline("provision", "hub", "pc-18", "--site", "berlin", "--dir", directory).out
    assert hubline("provision", "reader", "ann", "--site", "berlin", "--dir", directory).status == 0
    token = (directory / "admin.token").read_text().strip()
    assert token not in made.out


def test_the_list_is_readable_and_the_same_as_json(hubline: Hubline, fleet: Path) -> None:
    """For people and for inventory scripts."""
    provision.revoke(fleet, "hub/pc-17")
    rows = json.loads(hubline("provision", "list", "--dir", fleet, "--json").out)
    assert [(row["role"], row["name"], row["site"]) for row in rows] == [
        ("hub", "pc-17", "berlin"),
        ("connector", "berlin-1", "berlin"),
        ("broker", "berlin-1", "berlin"),
        ("broker", "cloud", "-"),
        ("cloud", "cloud", "-"),
        ("reader", "ann", "-"),
    ]
    assert [row["name"] for row in rows if row["revoked"]] == ["pc-17"]
    assert all(set(row) == {"role", "name", "site", "serial", "not_after", "revoked"} for row in rows)
    lines = hubline("provision", "list", "--dir", fleet).out.splitlines()
    assert lines[0].split() == ["MEMBER", "SITE", "UNTIL", "STATE"]
    assert lines[1].startswith("hub/pc-17           berlin  ")
    assert "revoked" in lines[1]
    assert lines[2].endswith("ok")


def test_revoking_tells_where_the_list_must_go(hubline: Hubline, fleet: Path) -> None:
    """Until it is there, nobody is shut out."""
    said = hubline("provision", "revoke", "connector/berlin-1", "--dir", fleet)
    assert said.status == 0
    assert f"copy {fleet / 'authority' / 'crl.pem'} over crl.pem of" in said.out
    assert "broker/cloud  (the cloud)" in said.out
    assert "broker/berlin-1  (site berlin)" in said.out
    assert "revoke broker/berlin-1" in said.out
    assert "already revoked" in hubline("provision", "revoke", "connector/berlin-1", "--dir", fleet).out


def test_the_passphrase_comes_from_a_file_or_the_environment(
    hubline: Hubline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scripts have no terminal to be asked at; and a passphrase on the command line would be in `ps`."""
    secret, directory = tmp_path / "secret", tmp_path / "f"
    secret.write_bytes(b"correct horse\r\nsecond line")
    made = hubline("provision", "init", "acme", "--dir", directory, "--passphrase-file", secret)
    assert "protected by your passphrase" in made.out
    command = ("provision", "hub", "pc-1", "--site", "berlin", "--dir", directory)
    refused = hubline(*command)
    assert refused.status == 1
    assert "give --passphrase-file FILE, or set HUBLINE_PASSPHRASE" in refused.err
    monkeypatch.setenv("HUBLINE_PASSPHRASE", "wrong")
    assert "passphrase is wrong" in hubline(*command).err
    monkeypatch.setenv("HUBLINE_PASSPHRASE", "correct horse")
    assert hubline(*command).status == 0
    assert "can't be read" in hubline(*command, "--passphrase-file", tmp_path / "none").err
    (tmp_path / "empty").write_text("\n")
    assert "holds no passphrase" in hubline(*command, "--passphrase-file", tmp_path / "empty").err


def test_an_authority_is_changed_by_command(hubline: Hubline, fleet: Path) -> None:
    """Each step says what to copy before the next."""
    added = hubline("provision", "authority", "add", "--dir", fleet)
    assert f"{fleet / 'authority' / 'ca.pem'} to every machine" in added.out
    assert hubline("provision", "authority", "use", "2", "--dir", fleet).status == 0
    renewed = hubline("provision", "renew", "hub/pc-17", "--dir", fleet)
    assert "key.pem and cert.pem belong together" in renewed.out
    assert hubline("provision", "authority", "use", "3", "--dir", fleet).status == 1


# --- config --------------------------------------------------------------------------------------------------------


def test_show_tells_every_value_and_its_origin(hubline: Hubline, fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to "why does it do that?"."""
    monkeypatch.setenv("HUBLINE_BROKER__HANDSHAKES_PER_S", "7")
    file = fleet / "bundles/broker/berlin-1/broker.toml"
    lines = [line.split("  # ") for line in hubline("config", "show", "-c", file).out.splitlines()]
    shown = {line[0].strip(): line[1] for line in lines}
    assert shown['broker.listen = ["0.0.0.0:18883"]'] == "broker.toml"
    assert shown["broker.handshakes_per_s = 7.0"] == "HUBLINE_BROKER__HANDSHAKES_PER_S"
    assert shown['log.level = "info"'] == "default"
    entries = json.loads(hubline("config", "show", "-c", file, "--json").out)
    assert entries["broker.handshakes_per_s"] == {"value": 7.0, "origin": "HUBLINE_BROKER__HANDSHAKES_PER_S"}
    assert len(entries) == len(lines)


def test_check_says_all_right_or_what_is_wrong(hubline: Hubline, fleet: Path, tmp_path: Path) -> None:
    """Run before a service is started, and in its unit."""
    file = fleet / "bundles/hub/pc-17/hub.toml"
    assert hubline("config", "check", "-c", file).out == f"{file}: all right for a hub\n"
    (file.parent / "cert.pem").unlink()
    refused = hubline("config", "check", "-c", file)
    assert refused.status == 1
    assert refused.err == f"error: {file.parent / 'cert.pem'}: there is no such file: copy it from the bundle\n"
    other = tmp_path / "mine.toml"
    other.write_bytes(file.read_bytes())
    assert "--role" in hubline("config", "check", "-c", other).err
    assert hubline("config", "check", "-c", other, "--role", "king").status == 2
    assert "is missing" not in hubline("config", "show", "-c", other, "--role", "hub").err


def test_what_show_prints_can_be_pasted_into_a_file(hubline: Hubline, fleet: Path) -> None:
    """It is TOML, but for keys that are not set."""
    file = fleet / "bundles/connector/berlin-1/connector.toml"
    shown = hubline("config", "show", "-c", file).out
    copy = fleet / "connector.toml"
    copy.write_text("\n".join(line for line in shown.splitlines() if "(not set)" not in line))
    shape = settings.ConnectorSettings
    assert settings.load(copy, shape, {}) == settings.load(file, shape, {})
