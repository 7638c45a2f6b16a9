"""What an engine runs by: which program, of which version, and when only a restart puts out whose certificate is revoked."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import orjson
import pytest

from broker.engines.plan import Engine, Plan
from broker.engines.prepared import (
    MORE_PLACES,
    NEEDED,
    Prepared,
    find_program,
    outlived,
    prepare,
    refuse_old,
    version_of,
    write_files,
)
from config import limits, pki
from config.errors import SettingsError
from config.members import Members
from config.settings import BrokerSettings, Identity
from tests.broker.certificates import FleetFiles

on_posix = pytest.mark.skipif(sys.platform == "win32", reason="the programs that stand in are shell scripts")


@dataclass
class Script(Engine):
    """An engine that does nothing."""

    program: str = sys.executable
    restart_on_revocation: bool = True

    def plan(self, settings: BrokerSettings, members: Members, folder: Path) -> Plan:
        return Plan(self.program, "its package", (), {}, restart_on_revocation=self.restart_on_revocation)


# --- Who is revoked ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """What a broker sees at one look: members by name, the outsiders of their list (None: it is an old one), who is revoked."""

    members: str = "x y"
    outsiders: str | None = ""
    revoked: str = ""


@dataclass
class Scene:
    """A fleet of x and y with three certificates each, and a broker that has one."""

    folder: Path
    fleet: FleetFiles = field(init=False)
    settings: BrokerSettings = field(init=False)
    serials: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.fleet = FleetFiles(self.folder / "acme")
        settings = self.fleet.broker_settings()
        broker = msgspec.structs.replace(settings.broker, engine="mosquitto", members=self.folder / "members.json")
        self.settings = msgspec.structs.replace(settings, broker=broker)
        self.serials["broker"] = _serial(self.settings.identity)
        for name in ("x1", "x2", "x3", "y1", "y2", "y3"):
            self.serials[name] = _serial(self.fleet.identity("hub", name[0], "berlin"))

    def prepared(self, look: Look, engine: Engine) -> Prepared:
        entries = [{"role": "hub", "site": "berlin", "name": name} for name in look.members.split()]
        listed: dict[str, object] = {"fleet": "acme", "members": entries}
        if look.outsiders is not None:
            listed["outsiders"] = [f"{self.serials[name]:X}" for name in look.outsiders.split()]
        assert self.settings.broker.members is not None
        self.settings.broker.members.write_bytes(orjson.dumps(listed))
        self.fleet.revoked = [pki.Revocation(self.serials[name], self.fleet.now) for name in look.revoked.split()]
        self.fleet.write_crl()
        return prepare(self.settings, engine, self.folder)


def _serial(identity: Identity) -> int:
    return pki.load_certificates(identity.cert.read_bytes())[0].serial_number


ONE_OUT = Look("y", "x1", "x1")


@pytest.mark.parametrize(
    ("former", "now", "restart"),
    [
        pytest.param(Look(), Look(), False, id="nothing has changed"),
        pytest.param(Look(), ONE_OUT, False, id="a member is revoked"),
        pytest.param(Look(), Look("y", "x1 x2 x3", "x1 x2 x3"), False, id="a member that was renewed is revoked"),
        pytest.param(Look(), Look("x y", "", "y1"), True, id="a member has a newer certificate"),
        pytest.param(Look(), Look("y", "x1", "x1 y1"), True, id="one member has a newer certificate, and another is gone"),
        pytest.param(Look(), Look("y", "x1 x2", "x1 x2 y1"), True, id="the same, and the other was renewed"),
        pytest.param(Look("x y", "", "x1"), Look("y", "x1", "x1 y1"), True, id="the same, one list having come before"),
        pytest.param(Look(), Look("y", "x1", "y1"), True, id="the same, one list coming later"),
        pytest.param(Look(), Look("y", "x1", ""), False, id="the list of members has come, the other one not yet"),
        pytest.param(Look("y", "x1", ""), ONE_OUT, False, id="then the other one comes"),
        pytest.param(Look(), Look("x y", "", "x1"), True, id="the revocation list has come, that of members not yet"),
        pytest.param(ONE_OUT, Look("x y", "", "x1"), True, id="who was revoked is a member again"),
        pytest.param(ONE_OUT, Look("", "x1 y1", "x1 y1"), False, id="one more is revoked"),
        pytest.param(Look("y", "", "x1"), Look("y", "", "x1 y1"), True, id="one more has a newer one"),
        pytest.param(Look("x y", "", "x1"), Look("x y", "", "x1"), False, id="who is out already stays out"),
        pytest.param(Look(), Look("x y", "broker", "broker"), False, id="a broker is revoked"),
        pytest.param(Look("x y", None), Look("x y", None), False, id="old list: nothing has changed"),
        pytest.param(Look("x y", None), Look("y", None, "x1"), True, id="old list: nobody knows whose it was"),
        pytest.param(Look("y", None, "x1"), Look("y", None, "x1"), False, id="old list: known already"),
        pytest.param(Look("y", None, "x1"), ONE_OUT, False, id="the first new list"),
        pytest.param(Look("y", None, "x1"), Look("", "x1 y1", "x1 y1"), False, id="the first new list, with its reason"),
    ],
)  # fmt: skip
def test_a_restart_puts_out_exactly_those_whom_their_rights_do_not_silence(
    tmp_path: Path, former: Look, now: Look, restart: bool
) -> None:
    """It ends all sessions of a site, so none may be needless; and a stolen key must not keep one."""
    scene, engine = Scene(tmp_path), Script()
    before = scene.prepared(former, engine)
    assert outlived(before, scene.prepared(now, engine)) is restart


def test_an_engine_that_ends_such_sessions_itself_is_not_restarted(tmp_path: Path) -> None:
    scene, engine = Scene(tmp_path), Script(restart_on_revocation=False)
    before = scene.prepared(Look(), engine)
    assert not outlived(before, scene.prepared(Look("x y", "", "y1"), engine))


# --- Its program -------------------------------------------------------------------------------------------------------


def stand_in(folder: Path, name: str, does: str) -> Path:
    """Write a program that does this."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o755)
    return program


def looked_for(name: str, program: Path | None = None) -> Path:
    """Return what an engine with the program of this name, or named in the settings, would be started by."""
    identity = Identity("acme", "berlin", "berlin-1", Path("ca.pem"), Path("cert.pem"), Path("key.pem"))
    settings = BrokerSettings(identity)
    broker = msgspec.structs.replace(settings.broker, engine="nats", program=program)
    settings = msgspec.structs.replace(settings, broker=broker)
    plan = Script(name).plan(settings, Members("acme", []), Path())
    found = find_program(settings, plan)
    refuse_old(found, plan, settings)
    return found


@on_posix
@pytest.mark.parametrize(
    ("name", "says", "old", "needed"),
    [
        ("mosquitto", "echo 'mosquitto version 2.0.9'; exit 3", "2.0.9", "2.0.11"),
        ("mosquitto", "echo 'mosquitto version 1.6.12' >&2; exit 3", "1.6.12", "2.0.11"),
        ("nats-server", "echo 'nats-server: v2.9.25'", "2.9.25", "2.12"),
        ("nats-server", "echo 'nats-server: v2.11.0-beta.13'", "2.11.0", "2.12"),
    ],
)
def test_a_program_that_is_too_old_is_named_with_what_is_needed(
    tmp_path: Path, name: str, says: str, old: str, needed: str
) -> None:
    """Else all that an operator sees is that it ended before it served."""
    program = stand_in(tmp_path, name, says)
    with pytest.raises(SettingsError) as refused:
        looked_for(name, program)
    assert str(refused.value) == (
        f"broker.program: {program} is of version {old}, and {needed} or newer is needed: "
        "install its package, or name another program in broker.program"
    )


@on_posix
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mosquitto", "echo 'mosquitto version 2.0.11'; exit 3"),
        ("mosquitto", "echo 'mosquitto version 2.1'"),
        ("nats-server", "echo 'nats-server: v2.12.0-RC.1'"),
        ("nats-server", "echo 'nats-server: v3.0.0'"),
        ("nats-server", "echo 'mosquitto version 1.0'"),
        ("mosquitto", "exit 1"),
        ("mosquitto", "exec tail -f /dev/null"),
        ("another", "echo 'mosquitto version 1.0'"),
    ],
)
def test_one_that_is_new_enough_or_does_not_tell_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    """A wrapper that knows no such option may run the engine all the same."""
    monkeypatch.setattr(limits, "ENGINE_VERSION_S", 0.5)
    program = stand_in(tmp_path, name, says)
    assert looked_for(name, program) == program


@on_posix
@pytest.mark.parametrize("is_own", [True, False])
def test_what_was_installed_with_us_counts_more_than_the_path_if_the_environment_is_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_own: bool
) -> None:
    """A distribution's nats-server is years older than the one that we ask for."""
    ours = stand_in(tmp_path / "own", "nats-server", "echo 'nats-server: v2.15.1'")
    theirs = stand_in(tmp_path / "path", "nats-server", "echo 'nats-server: v2.14.0'")
    monkeypatch.setenv("PATH", str(theirs.parent))
    monkeypatch.setattr(sys, "executable", str(ours.with_name("python")))
    monkeypatch.setattr(sys, "prefix", str(ours.parent.parent) if is_own else sys.base_prefix)
    assert looked_for("nats-server") == (ours if is_own else theirs)


@on_posix
def test_an_old_one_on_the_path_is_named_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has named it, so it must be told which one it is."""
    program = stand_in(tmp_path, "mosquitto", "echo 'mosquitto version 1.6.9'")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match=rf"broker\.engine = 'nats': {program} is of version 1\.6\.9"):
        looked_for("mosquitto")


@pytest.mark.parametrize("name", list(NEEDED))
def test_the_real_programs_tell_their_versions(name: str) -> None:
    """What they print is theirs to change; then nobody would be warned any more."""
    places = (str(Path(sys.executable).parent), *MORE_PLACES)
    found = next((path for place in places if (path := shutil.which(name, path=place))), None) or shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    version = version_of(Path(found), name)
    assert version is not None
    assert version >= NEEDED[name][-1]


# --- Its files ---------------------------------------------------------------------------------------------------------


def test_keys_that_are_no_more_needed_do_not_stay(tmp_path: Path) -> None:
    """Whoever takes another engine, or gives the bridge up, would leave copies of keys behind that nobody renews or revokes."""
    plan = Plan("engine", "its package", (), {"conf": b"c", "leaf-key.pem": b"k"}, private=frozenset(("leaf-key.pem",)))
    write_files(plan, tmp_path)
    (tmp_path / "engine.state").write_text("its own")
    write_files(replace(plan, files={"conf": b"c"}, private=frozenset()), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["conf", "engine.state"]
