"""An engine as our child: started, heard, renewed, mourned and ended; here a script that does what engines do, and worse."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import orjson
import psutil
import pytest
from structlog.testing import capture_logs

from broker.engines.child import EngineProcess
from broker.engines.plan import Engine, Heard, Plan
from broker.engines.prepared import find_program
from broker.engines.registry import ENGINES, engine_named
from broker.engines.voice import lines_of
from config import limits, pki
from config.errors import SettingsError
from config.members import Entry, Members
from config.settings import BrokerSettings
from tests.broker.certificates import FleetFiles
from tests.broker.raw_mqtt import until

Logs: TypeAlias = list[MutableMapping[str, Any]]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="engines are run on POSIX systems")

SERVES = """
import signal, sys, time
def say(text):
    print(text, flush=True)
signal.signal(signal.SIGHUP, lambda *_: say("read again " + open("members").read()))
say("[pid] running")
while True:
    signal.pause()
"""


@dataclass
class Script(Engine):
    """An engine that is a few lines of Python."""

    text: str = SERVES
    can_reload: bool = True
    restart_on: frozenset[str] = frozenset()
    cuts: bool = True
    program: str = sys.executable

    def plan(self, settings: BrokerSettings, members: Members, folder: Path) -> Plan:
        names = " ".join(member.name for member in members.members)
        return Plan(
            program=self.program,
            package="the package of scripts",
            arguments=("engine.py",),
            files={"engine.py": self.text.encode(), "members": names.encode(), "secret": b"s"},
            private=frozenset(("secret",)),
            restart_on=self.restart_on,
            restart_on_revocation=self.cuts,
            environ={"SCRIPT": "here"},
            reload_signal=signal.SIGHUP if self.can_reload else None,
        )

    def hear(self, line: str) -> Heard | None:
        if line.startswith("refused "):
            return Heard("warning", line, refused=("tls", line.split()[1], "expired"))
        return Heard("error" if line.startswith("Error") else "info", line, ready=line == "[pid] running")


@dataclass
class Scene:
    """A fleet's files, and an engine that runs by them."""

    fleet: FleetFiles
    settings: BrokerSettings

    @property
    def members_file(self) -> Path:
        assert self.settings.broker.members is not None
        return self.settings.broker.members

    def write_members(self, *names: str, outsiders: tuple[str, ...] = ()) -> None:
        entries = [Entry("hub", "berlin", name) for name in names]
        fresh = self.members_file.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(Members("acme", entries, outsiders)))
        fresh.replace(self.members_file)

    def status(self) -> dict[str, Any]:
        file = self.settings.broker.data_dir / "status.json"
        found = orjson.loads(file.read_bytes()) if file.exists() else {}
        assert isinstance(found, dict)
        return found


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(limits, "CERTIFICATES_CHECK_S", 0.2)
    fleet = FleetFiles(tmp_path / "acme")
    settings = fleet.broker_settings(listen=("127.0.0.1:8883",))
    broker = msgspec.structs.replace(settings.broker, engine="mosquitto", members=fleet.folder / "members.json")
    made = Scene(fleet, msgspec.structs.replace(settings, broker=broker))
    made.write_members("pc-1")
    return made


@asynccontextmanager
async def running(scene: Scene, engine: Engine) -> AsyncIterator[EngineProcess]:
    """Run an engine until it serves, and end it afterwards."""
    process, stop = EngineProcess(scene.settings, engine), asyncio.Event()
    task = asyncio.create_task(process.run(stop))
    try:
        await until(lambda: task.done() or process.state == "running")
        yield process
    finally:
        stop.set()
        await task


def play(story: Callable[[], Coroutine[Any, Any, None]]) -> Logs:
    with capture_logs() as logs:
        asyncio.run(story())
    return logs


def said(logs: Logs) -> list[str]:
    return [entry["line"] for entry in logs if entry["event"] == "engine_said"]


def events(logs: Logs) -> list[str]:
    return [entry["event"] for entry in logs if entry["event"] != "engine_said"]


def engine_pid(process: EngineProcess, scene: Scene) -> int:
    pid = scene.status().get("engine_pid")
    assert isinstance(pid, int)
    return pid


# --- Its life ----------------------------------------------------------------------------------------------------------


def test_it_is_started_with_its_files_heard_and_ended(scene: Scene) -> None:
    """What an operator sees is what the embedded broker shows, with the engine's own process beside it."""
    seen: dict[str, Any] = {}

    async def story() -> None:
        async with running(scene, Script()) as process:
            await until(lambda: scene.status().get("state") == "running")
            seen.update(scene.status())
            child = psutil.Process(seen["engine_pid"])
            assert child.environ()["SCRIPT"] == "here"
            assert os.getsid(child.pid) != os.getsid(0)
            assert process.folder.joinpath("secret").stat().st_mode & 0o777 == 0o600

    logs = play(story)
    assert events(logs) == ["broker_started", "broker_stopped"]
    assert said(logs) == ["[pid] running"]
    assert (seen["role"], seen["engine"], seen["pid"]) == ("broker", "mosquitto", os.getpid())
    assert seen["listen"] == ["127.0.0.1:8883"]
    assert not psutil.pid_exists(seen["engine_pid"])
    assert (scene.status()["state"], scene.status()["listen"]) == ("stopped", [])


def test_one_that_dies_is_started_again(scene: Scene) -> None:
    """A site without its broker is a site that nobody hears."""

    async def story() -> None:
        async with running(scene, Script()) as process:
            await until(lambda: scene.status().get("engine_pid") is not None)
            first = engine_pid(process, scene)
            os.kill(first, signal.SIGKILL)
            await until(lambda: process.restarts == 1 and process.state == "running")
            await until(lambda: scene.status().get("engine_pid") not in (None, first))

    logs = play(story)
    assert events(logs) == ["broker_started", "engine_died", "engine_restarted", "broker_stopped"]
    assert next(entry for entry in logs if entry["event"] == "engine_died")["status"] == -signal.SIGKILL


def test_one_that_never_serves_ends_us_with_its_own_words(scene: Scene) -> None:
    """A wrong setting must be read where it was made, not in an endless log of restarts."""
    engine = Script('print("Error: Address already in use"); raise SystemExit(3)')

    async def story() -> None:
        async with running(scene, engine):
            pass

    with pytest.raises(SettingsError, match=r"mosquitto.*status 3.*Address already in use") as caught:
        play(story)
    assert "\n" not in str(caught.value)


def test_one_that_does_not_listen_to_reason_is_killed_in_time(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service manager kills a role that takes longer to stop than it may, and the rest with it."""
    monkeypatch.setattr(limits, "ENGINE_STOP_S", 0.2)
    deaf = SERVES.replace('say("[pid]', 'signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay("[pid]')
    pids: list[int] = []

    async def story() -> None:
        async with running(scene, Script(deaf)) as process:
            await until(lambda: scene.status().get("engine_pid") is not None)
            pids.append(engine_pid(process, scene))

    play(story)
    assert not psutil.pid_exists(pids[0])


def test_a_companion_runs_beside_it_and_its_failure_is_ours(scene: Scene) -> None:
    """An engine that asks us who may enter is worth nothing once nobody answers."""
    seen: list[str] = []

    class Accompanied(Script):
        def companions(
            self, settings: BrokerSettings, members: Callable[[], Members], folder: Path
        ) -> list[Coroutine[Any, Any, None]]:
            async def beside() -> None:
                seen.extend(member.name for member in members().members)
                raise ValueError("a bug")

            return [beside()]

    async def story() -> None:
        with pytest.raises(ValueError, match="a bug"):
            await EngineProcess(scene.settings, Accompanied()).run(asyncio.Event())

    play(story)
    assert seen == ["pc-1"]


def test_a_companion_that_overhears_that_it_shall_end_is_told_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library of another hand may take that for a failure of its own, and a stop would never come to its end."""
    monkeypatch.setattr(limits, "CANCEL_AGAIN_S", 0.05)
    overheard: list[str] = []

    class Accompanied(Script):
        def companions(
            self, settings: BrokerSettings, members: Callable[[], Members], folder: Path
        ) -> list[Coroutine[Any, Any, None]]:
            async def beside() -> None:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    overheard.append("once")
                await asyncio.Event().wait()

            return [beside()]

    async def story() -> None:
        async with asyncio.timeout(30), running(scene, Accompanied()):
            pass

    assert events(play(story))[-1] == "broker_stopped"
    assert overheard == ["once"]


# --- Renewal -----------------------------------------------------------------------------------------------------------


def test_a_new_member_makes_it_read_its_files_again(scene: Scene) -> None:
    heard: list[str] = []

    async def story() -> None:
        async with running(scene, Listening()) as process:
            scene.write_members("pc-1", "pc-2")
            await until(lambda: process.reloads == 1)
            assert process.restarts == 0
            await until(lambda: "read again pc-1 pc-2" in heard)

    class Listening(Script):
        def hear(self, line: str) -> Heard | None:
            heard.append(line)
            return super().hear(line)

    logs = play(story)
    assert events(logs) == ["broker_started", "engine_renewed", "broker_stopped"]


def test_what_cannot_be_reloaded_restarts_it(scene: Scene) -> None:
    async def story() -> None:
        async with running(scene, Script(restart_on=frozenset(("members",)))) as process:
            scene.write_members("pc-1", "pc-2")
            await until(lambda: process.restarts == 1 and process.state == "running")
            assert process.reloads == 0

    logs = play(story)
    assert events(logs) == ["broker_started", "engine_renewed", "engine_restarted", "broker_stopped"]


def test_a_revoked_certificate_of_a_member_that_stays_ends_all_sessions(scene: Scene) -> None:
    """Who has stolen a key loses the session too; until then the reload keeps it from coming in anew."""

    async def story() -> None:
        async with running(scene, Script()) as process:
            scene.fleet.revoke(scene.fleet.identity("hub", "pc-1", "berlin"))
            await until(lambda: process.restarts == 1 and process.state == "running")
            assert process.reloads == 1

    play(story)


@pytest.mark.parametrize("order", ["revoked first", "gone first"])
def test_who_is_no_member_any_more_is_out_without_a_restart(scene: Scene, order: str) -> None:
    """It has lost all rights by the reload. The two files are copied one after the other, and read at any moment."""

    async def story() -> None:
        async with running(scene, Script()) as process:
            identity = scene.fleet.identity("hub", "pc-1", "berlin")
            (certificate,) = pki.load_certificates(identity.cert.read_bytes())
            outsiders = (f"{certificate.serial_number:X}",)
            if order == "gone first":
                scene.write_members(outsiders=outsiders)
            scene.fleet.revoke(identity)
            if order == "revoked first":
                scene.write_members(outsiders=outsiders)
            for number in range(2, 5):
                scene.write_members(f"pc-{number}", outsiders=outsiders)
                await until(lambda: (process.folder / "members").read_bytes() == f"pc-{number}".encode())  # noqa: B023
            assert process.restarts == 0

    play(story)


def test_a_series_of_revocations_puts_everybody_out_once_and_works_meanwhile(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each restart ends the sessions of a whole site; who is revoked must not come back in before the next one."""
    monkeypatch.setattr(limits, "ENGINE_RENEWAL_S", 3600.0)

    async def story() -> None:
        async with running(scene, Script()) as process:
            for number in range(1, 4):
                scene.fleet.revoke(scene.fleet.identity("hub", f"pc-{number}", "berlin"))
                await until(lambda: process.reloads == number)  # noqa: B023
                await until(lambda: process.restarts == 1 and process.state == "running")
            monkeypatch.setattr(limits, "ENGINE_RENEWAL_S", 0.0)
            await until(lambda: process.restarts == 2 and process.state == "running")
            scene.write_members("pc-1", "pc-2")
            await until(lambda: process.reloads == 4)
            assert process.restarts == 2

    play(story)


def test_an_engine_that_died_while_a_restart_was_due_is_not_restarted_once_more(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ENGINE_RENEWAL_S", 3600.0)

    async def story() -> None:
        async with running(scene, Script(restart_on=frozenset(("members",)))) as process:
            scene.write_members("pc-2")
            await until(lambda: process.restarts == 1 and process.state == "running")
            scene.write_members("pc-3")
            written = scene.settings.broker.data_dir / "engine" / "members"
            await until(lambda: written.read_bytes() == b"pc-3")
            await until(lambda: psutil.pid_exists(engine_pid(process, scene)))
            os.kill(engine_pid(process, scene), signal.SIGKILL)
            await until(lambda: process.restarts == 2 and process.state == "running")
            monkeypatch.setattr(limits, "ENGINE_RENEWAL_S", 0.0)
            scene.write_members("pc-3", "pc-4")
            await until(lambda: process.restarts == 3 and process.state == "running")
            assert written.read_bytes() == b"pc-3 pc-4"

    logs = play(story)
    assert events(logs).count("engine_renewed") == 2


def test_files_that_do_not_work_are_told_once_and_never_reach_it(scene: Scene) -> None:
    """A half-copied bundle must not take down a broker that runs."""
    identity = scene.settings.identity

    async def story() -> None:
        async with running(scene, Script()) as process:
            good = identity.key.read_bytes()
            identity.key.write_bytes(
                pki.key_pem(pki.issue(scene.fleet.authority, _stranger(), (), "ec-p256", scene.fleet.now).key)
            )
            with capture_logs() as logs:
                await until(lambda: "engine_not_reloaded" in events(logs))
            assert (process.reloads, process.restarts) == (0, 0)
            identity.key.write_bytes(good)
            await until(lambda: process.reloads == 1)

    play(story)


def _stranger() -> Any:
    from config.principal import Principal

    return Principal("acme", "berlin", "hub", "stranger")


# --- Its log -----------------------------------------------------------------------------------------------------------


def test_its_refusals_are_counted_and_logged_in_streaks(scene: Scene) -> None:
    """A revoked hub knocks every minute, for years."""
    knocks = SERVES.replace("while True", 'for n in range(5): say("refused 10.0.0.9")\nwhile True')

    async def story() -> None:
        async with running(scene, Script(knocks)):
            await until(lambda: scene.status().get("counters", {}).get("refused") == {"tls": 5})
            assert scene.status()["counters"]["refused_by_client"] == {"10.0.0.9": {"tls": 5}}

    logs = play(story)
    assert [entry["log_level"] for entry in logs if entry["event"] == "client_refused"] == ["warning"] + ["debug"] * 4


def test_a_flood_of_lines_is_cut_short_and_counted(scene: Scene) -> None:
    """Strangers who make an engine talk must not fill our disk."""
    floods = SERVES.replace("while True", 'for n in range(5000): say("line")\nsay("refused x")\nwhile True')

    async def story() -> None:
        async with running(scene, Script(floods)) as process:
            await until(lambda: scene.status().get("counters", {}).get("refused") == {"tls": 1})
            os.kill(engine_pid(process, scene), signal.SIGKILL)
            await until(lambda: process.restarts == 1)

    logs = play(story)
    assert len(said(logs)) < 2500
    dropped = sum(entry["count"] for entry in logs if entry["event"] == "engine_lines_dropped")
    assert dropped > 2500


def test_long_lines_are_cut_and_the_next_ones_whole() -> None:
    async def story() -> None:
        stream = asyncio.StreamReader(limit=2**20)
        stream.feed_data(b"short\n" + b"x" * (3 * limits.LOG_TEXT_MAX) + b"\nafter\xff\r\nlast")
        stream.feed_eof()
        lines = [line async for line in lines_of(stream)]
        assert lines == ["short", "x" * limits.LOG_TEXT_MAX, "after\ufffd", "last"]

    asyncio.run(story())


# --- What a person must correct ----------------------------------------------------------------------------------------


def test_a_missing_program_is_named_with_its_package(scene: Scene) -> None:
    plan = Script(program="no-such-broker").plan(scene.settings, Members("acme", []), Path())
    with pytest.raises(SettingsError, match=r"no-such-broker is not here: install the package of scripts"):
        find_program(scene.settings, plan)


def test_a_program_named_in_the_settings_must_be_one(scene: Scene, tmp_path: Path) -> None:
    plan = Script().plan(scene.settings, Members("acme", []), Path())
    file = tmp_path / "text"
    file.write_text("no program")
    broker = msgspec.structs.replace(scene.settings.broker, program=file)
    with pytest.raises(SettingsError, match=r"broker\.program.*no program"):
        find_program(msgspec.structs.replace(scene.settings, broker=broker), plan)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "can't be read"),
        (b"{", "not a list of members"),
        (b'{"fleet":"other","members":[]}', "another fleet"),
        (b'{"fleet":"acme","members":[{"role":"hub","site":"berlin","name":"a\\ntopic write #"}]}', "inner hyphens"),
        (b'{"fleet":"acme","members":[{"role":"hub","site":"+","name":"a"}]}', "inner hyphens"),
    ],
)
def test_a_list_of_members_that_is_none_is_said_in_one_line(scene: Scene, content: bytes | None, problem: str) -> None:
    """A name with a line's end in it would otherwise be a line of an engine's rights."""
    if content is None:
        scene.members_file.unlink()
    else:
        scene.members_file.write_bytes(content)

    async def story() -> None:
        await EngineProcess(scene.settings, Script()).run(asyncio.Event())

    with pytest.raises(SettingsError, match=problem):
        play(story)


def test_every_engine_of_the_list_is_one() -> None:
    for name in ENGINES:
        assert callable(engine_named(name).plan)
    with pytest.raises(SettingsError, match="mosquitto, nats, emqx"):
        engine_named("rabbit")
