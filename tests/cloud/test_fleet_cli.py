"""`hubline fleet` against a real API: what an administrator sees, and one clear line for whatever is wrong."""

from __future__ import annotations

import json
import os
import pty
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cloud.fleet_cli import fleet
from cloud.fleet_client import Place, place_from
from config import limits, provision
from config.errors import HublineError, SettingsError
from config.ports import free_ports
from tests.cloud.api_desk import Running, running_api

HUBLINE = (sys.executable, "-c", "from config.cli import main; main()", "fleet")
PC_1 = ("berlin", "pc-1")
WAIT_S = 30.0


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_api(tmp_path_factory.mktemp("api")) as running:
        yield running


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Running]:
    with running_api(tmp_path) as running:
        yield running


def environ(api: Running, token: str = "admin") -> dict[str, str]:
    return {"HUBLINE_API_URL": api.url, "HUBLINE_API_TOKEN": api.tokens.get(token, token), "HUBLINE_FLEET_DIR": ""}


def run(api: Running, *arguments: str, token: str = "admin", stdin: str | None = None) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(fleet, list(arguments), env=environ(api, token), input=stdin)


def said(api: Running, *arguments: str, token: str = "admin") -> str:
    """Return what a command that must succeed has written."""
    result = run(api, *arguments, token=token)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def said_json(api: Running, *arguments: str) -> Any:
    return json.loads(said(api, *arguments, "--json"))


def error_of(result: Result) -> str:
    """Return the one line that a person would see."""
    assert isinstance(result.exception, HublineError), (result.output, result.exception)
    text = str(result.exception)
    assert "\n" not in text
    return text


@contextmanager
def started(api: Running, *arguments: str, extra: Mapping[str, str] = {}) -> Iterator[queue.Queue[str]]:
    """Run a command in a process of its own and return its lines as they come."""
    env = {**os.environ, **environ(api), **extra}
    process = subprocess.Popen(
        [*HUBLINE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, text=True
    )
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    stream = process.stdout

    def read() -> None:
        for line in stream:
            lines.put(line.rstrip("\n"))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield lines
    finally:
        process.kill()
        process.wait()
        reader.join()
        stream.close()


# --- Seeing ----------------------------------------------------------------------------------------------------------


def test_list_shows_each_hub_with_its_status_and_why(api: Running) -> None:
    """The first command of the morning."""
    lines = said(api, "list").splitlines()
    assert lines[0].split() == ["HUB", "STATUS", "SINCE", "VIA", "LAST", "SEEN", "WHY"]
    assert [line.split()[:2] for line in lines[1:]] == [
        ["berlin/pc-1", "online"],
        ["berlin/pc-2", "offline"],
        ["berlin/pc-3", "online"],
        ["munich/lap-1", "roaming"],
        ["munich/pc-1", "offline"],
    ]
    assert lines[2].endswith("lost contact")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--site", "berlin"], {"pc-1", "pc-2", "pc-3"}),
        (["--group", "laptops"], {"pc-1", "lap-1"}),
        (["--connection", "roaming"], {"lap-1"}),
        (["--hidden"], {"old-1"}),
        (["--all", "--site", "munich"], {"lap-1", "pc-1", "old-1"}),
        (["--text", "lap"], {"lap-1"}),
    ],
)
def test_list_is_filtered(api: Running, options: list[str], names: set[str]) -> None:
    """As the API filters."""
    assert {entry["hub"] for entry in said_json(api, "list", *options)} == names


def test_show_tells_all_of_a_hub(api: Running) -> None:
    """Status, reason, what to do, and what it last measured, in one screen."""
    text = said(api, "show", "pc-2")
    for part in ("berlin/pc-2", "It is offline: lost contact.", "1. Verify the connection. (admin)", '{"session": 7}'):
        assert part in text
    text = said(api, "show", "berlin/pc-1")
    for part in ("pc-1.example", "version 3: waiting", "cpu.percent", "laptops"):
        assert part in text
    found = said_json(api, "show", "berlin/pc-1")
    assert found["reported"]["body"]["system"] == "Linux"
    assert len(found["connection_log"]) == 1


def test_logs_are_printed_oldest_first_and_drive_no_terminal(api: Running) -> None:
    """A hub's log holds what programs of its machine wrote."""
    lines = said(api, "logs", "berlin/pc-1", "--level", "warning").splitlines()
    assert [line.split()[3] for line in lines] == ["100%_full", "disk_failed"] * 3
    assert "\x1b" not in "".join(lines)
    assert [entry["no"] for entry in said_json(api, "logs", "berlin/pc-1", "--grep", "disk")] == [4, 8, 12]
    assert len(said_json(api, "logs", "berlin/pc-1", "--lines", "2")) == 2
    assert said_json(api, "logs", "berlin/pc-1", "--since", "1h") == []


def test_table_on_a_terminal_is_coloured_and_summed_up(api: Running) -> None:
    """Colour helps; the words say the same without it."""
    ours, theirs = pty.openpty()
    env = {**os.environ, **environ(api), "TERM": "xterm", "COLUMNS": "200"}
    process = subprocess.Popen([*HUBLINE, "list"], stdout=theirs, stderr=theirs, stdin=theirs, env=env)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:
        pass  # Linux says so when the other side is gone.
    os.close(ours)
    assert process.wait(WAIT_S) == 0
    text = shown.decode()
    assert "\x1b[" in text
    assert "5 hubs: 2 offline, 2 online, 1 roaming." in text


# --- Watching --------------------------------------------------------------------------------------------------------


def test_watch_prints_each_change_with_its_reason_as_it_happens(own: Running) -> None:
    """Killed, stopped, roamed, cut off, cloned: each with its true reason."""
    changes = [
        ("offline", "lost contact"),
        ("online", "started"),
        ("offline", "stopped"),
        ("roaming", "roaming"),
        ("path-down", "path down"),
        ("offline", "rejected: duplicate identity"),
    ]
    with started(own, "watch") as lines, started(own, "watch", "--json", "--site", "berlin") as objects:
        assert lines.get(timeout=WAIT_S) == f"watching {own.url}"
        assert objects.get(timeout=WAIT_S) == f"watching {own.url}"
        own.run(own.desk.set_presence(("munich", "pc-1"), "online", "started"))
        assert lines.get(timeout=WAIT_S).split("  ")[1] == "munich/pc-1"
        for connection, reason in changes:
            own.run(own.desk.set_presence(PC_1, connection, reason, f"It is {connection}."))
            line = lines.get(timeout=WAIT_S).split("  ", 3)
            assert line[1:3] == ["berlin/pc-1", connection]
            assert line[3].strip() == f"{reason}: It is {connection}."
            event = json.loads(objects.get(timeout=WAIT_S))
            assert (event["hub"], event["connection"], event["reason"]) == ("berlin/pc-1", connection, reason)


def test_watch_prints_what_has_changed_while_the_api_was_away(tmp_path: Path) -> None:
    """The service is restarted for an update: nothing that happened meanwhile is left out or told twice."""
    [port] = free_ports(1)
    first = tmp_path / "first"
    first.mkdir()
    with running_api(first, listen=f"127.0.0.1:{port}") as api:
        tokens = dict(api.tokens)
        watching = started(api, "watch")
        lines = watching.__enter__()
        try:
            assert lines.get(timeout=WAIT_S).startswith("watching")
            api.run(api.desk.set_presence(PC_1, "offline", "stopped"))
            assert "stopped" in lines.get(timeout=WAIT_S)
        except BaseException:
            watching.__exit__(None, None, None)
            raise
    try:
        assert lines.get(timeout=WAIT_S).endswith("trying again")
        second = tmp_path / "second"
        second.mkdir()
        with running_api(second, listen=f"127.0.0.1:{port}", admin=tokens["admin"]) as api:
            assert lines.get(timeout=WAIT_S).split()[2:4] == ["berlin/pc-1", "online"]
            assert lines.get(timeout=WAIT_S).startswith("watching")
            api.run(api.desk.set_presence(("berlin", "pc-2"), "online", "started"))
            assert lines.get(timeout=WAIT_S).split()[2:4] == ["berlin/pc-2", "online"]
            assert lines.empty()
    finally:
        watching.__exit__(None, None, None)


def test_logs_are_followed(own: Running) -> None:
    """Lines that arrive late count too: the order is that of their arrival."""
    from cloud.fleet_schema import LOGS

    with started(own, "logs", "berlin/pc-1", "--follow", "--lines", "1", "--json") as lines:
        assert json.loads(lines.get(timeout=WAIT_S))["no"] == 12
        row = {"hub_no": 1, "boot": "b" * 16, "n": 1, "ts": 1, "received_ms": 1, "level": "info", "fields": "{}"}
        own.run(own.desk.write(lambda c: c.execute(LOGS.insert().values(**row, event="came_late"))))
        assert json.loads(lines.get(timeout=WAIT_S))["event"] == "came_late"


# --- Tasks -----------------------------------------------------------------------------------------------------------


def test_task_is_queued_listed_shown_and_cancelled(own: Running) -> None:
    """The whole life of an order from the command line."""
    text = said(
        own, "task", "ping", "--hub", "pc-2", "--hub", "munich/lap-1", "--arg", "n=3", "--arg", "s=x", "--expires", "2h"
    )
    assert text == "Task 0000000000000001 is queued for 2 hubs.\n"
    [listed] = said_json(own, "tasks", "--open")
    assert (listed["arguments"], listed["expires"] - listed["created"]) == ({"n": 3, "s": "x"}, 7_200_000)
    assert "2 queued" in said(own, "tasks")
    assert "munich/lap-1  queued" in said(own, "tasks", listed["task"])
    assert said_json(own, "tasks", "--hub", "pc-3") == []
    said(own, "tasks", listed["task"], "--cancel", "--hub", "munich/lap-1")
    assert said_json(own, "tasks", listed["task"])["states"] == {"cancelled": 1, "queued": 1}


@pytest.mark.parametrize(("ends", "status"), [(("done", "done"), 0), (("done", "failed"), 1), (("expired", "done"), 1)])
def test_task_is_followed_to_its_end_and_the_exit_status_tells(
    own: Running, ends: tuple[str, str], status: int
) -> None:
    """Scripts look at the exit status only."""
    keys = (PC_1, ("berlin", "pc-2"))
    arguments = ("task", "ping", "--hub", "berlin/pc-1", "--hub", "berlin/pc-2", "--wait")
    process = subprocess.Popen(
        [*HUBLINE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **environ(own)}
    )
    with own.client() as client:
        deadline = time.monotonic() + WAIT_S
        while not client.get("/tasks").json()["items"]:
            assert time.monotonic() < deadline
    for key, state in zip(keys, ends, strict=True):
        own.run(own.desk.end_task("0" * 15 + "1", state, key, f"because {state}"))
    output = process.communicate(timeout=WAIT_S)[0].decode()
    assert process.returncode == status, output
    assert [f"{'/'.join(key)}  {state}: because {state}" for key, state in zip(keys, ends, strict=True)] == sorted(
        output.splitlines()[:2]
    )
    assert output.splitlines()[2].startswith(f"Task 0000000000000001: done on {ends.count('done')} of 2 hubs")


def test_task_that_is_followed_ends_where_a_hub_is_forgotten(own: Running) -> None:
    """Nobody would tell of it any more: a script that waits for it would wait for ever, and must not take it for done."""
    arguments = ("task", "ping", "--hub", "berlin/pc-1", "--hub", "berlin/pc-2", "--wait")
    process = subprocess.Popen(
        [*HUBLINE, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environ(own)},
        bufsize=0,
    )
    try:
        with own.client() as client:
            deadline = time.monotonic() + WAIT_S
            while not client.get("/tasks").json()["items"]:
                assert time.monotonic() < deadline
        own.run(own.desk.end_task("0" * 15 + "1", "done", PC_1))
        assert process.stdout is not None
        assert process.stdout.readline() == b"berlin/pc-1  done\n"  # It has seen the other one, too.
        own.run(own.desk.forget(PC_1, by="admin"))
        own.run(own.desk.forget(("berlin", "pc-2"), by="admin"))
        rest = process.communicate(timeout=WAIT_S)[0].decode().splitlines()
    finally:
        process.kill()
        process.communicate()
    assert rest == ["berlin/pc-2  forgotten", "Task 0000000000000001: done on 1 of 2 hubs."]
    assert process.returncode == 1


def test_task_is_shown_with_all_of_its_hubs_and_not_with_a_page_of_them(
    own: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks for the one hub that has failed among thousands must not miss it in silence."""
    said(own, "task", "ping", "--site", "berlin")
    monkeypatch.setattr(limits, "API_PAGE_MAX", 1)
    found = said_json(own, "tasks", "0" * 15 + "1")["targets"]
    assert [entry["hub"] for entry in found["items"]] == ["pc-1", "pc-2", "pc-3"]
    assert found["next"] is None
    assert said(own, "tasks", "0" * 15 + "1").count("berlin/pc-") == 3


# --- Settings --------------------------------------------------------------------------------------------------------


def test_settings_are_compared_confirmed_and_kept(own: Running, tmp_path: Path) -> None:
    """Nobody changes a fleet without having seen what that does."""
    assert said(own, "settings", "get", "site/berlin") == "Nothing is set for site/berlin.\n"
    refused = run(own, "settings", "set", "site/berlin", "mode.poll_min=5")
    assert "give --yes" in error_of(refused)
    assert refused.stdout == "+ mode.poll_min = 5\n"
    assert "warning: mode.poll_min should be" in refused.stderr
    assert said_json(own, "settings", "history", "site/berlin") == []
    assert said(own, "settings", "set", "site/berlin", "mode.poll_min=40", "logs.level=info", "--yes").splitlines() == [
        '+ logs.level = "info"',
        "+ mode.poll_min = 40",
        "site/berlin is at version 1.",
    ]
    assert (
        said(own, "settings", "set", "site/berlin", "--unset", "logs.level", "--yes").splitlines()[0]
        == '- logs.level = "info"'
    )
    file = tmp_path / "new.toml"
    file.write_text('[logs]\nlevel = "debug"\n')
    assert said(own, "settings", "set", "site/berlin", str(file), "--yes").splitlines() == [
        '+ logs.level = "debug"',
        "- mode.poll_min = 40",
        "site/berlin is at version 3.",
    ]
    assert said(own, "settings", "set", "site/berlin", str(file), "--yes") == "Nothing changes.\n"
    assert len(said(own, "settings", "history", "site/berlin").splitlines()) == 4
    assert 'logs.level = "debug"' in said(own, "settings", "get", "site/berlin")
    assert said_json(own, "settings", "get", "site/berlin", "--version", "1")["content"]["mode"] == {"poll_min": 40}
    assert said(own, "settings", "diff", "site/berlin", "1", "2") == '- logs.level = "info"\n'
    # One hub needs no question, and is found by its name.
    assert said_json(own, "settings", "set", "hub/pc-2", "logs.level=info")["version"] == 1
    assert said_json(own, "settings", "get", "hub/berlin/pc-2")["version"] == 1
    assert "site/berlin" in said(own, "settings", "show", "pc-2")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("set", "fleet", "logs.level=loud", "--yes"), "logs.level = 'loud': must be one of: off, debug"),
        (("set", "fleet", "identity.name=x", "--yes"), "identity: there is no such section"),
        (("set", "fleet", "loglevel=x"), "loglevel=x: can't be read: No such file or directory"),
        (("set", "fleet", "a.b=1", "c"), "'c' is not KEY=VALUE"),
        (("set", "fleet", "--unset", "logs.level"), "logs.level: is not set there"),
        (("get", "planet"), "WHERE = 'planet': must be fleet, site/SITE, group/GROUP or hub/SITE/HUB"),
        (("get", "hub/berlin/pc-11"), "there is no hub berlin/pc-11: did you mean berlin/pc-1"),
        (("get", "site/berlin", "--version", "9"), "there is no version 9 of these settings"),
    ],
)
def test_wrong_settings_are_told_in_one_line(api: Running, arguments: tuple[str, ...], line: str) -> None:
    """With the key that is wrong."""
    assert line in error_of(run(api, "settings", *arguments))


# --- Groups, tokens, forgetting --------------------------------------------------------------------------------------


def test_groups_are_kept(own: Running) -> None:
    """Hubs by their names; a wrong one changes nothing."""
    assert said(own, "group", "add", "new", "pc-2", "munich/lap-1") == "Into new: berlin/pc-2, munich/lap-1\n"
    assert "no such hub" in error_of(run(own, "group", "add", "new", "pc-3", "pc-99"))
    assert said(own, "group", "show", "new").split() == ["HUB", "berlin/pc-2", "munich/lap-1"]
    said(own, "group", "remove", "new", "pc-2")
    assert {"group": "new", "hubs": 1} in said_json(own, "group", "list")


def test_tokens_are_made_shown_once_and_revoked(own: Running) -> None:
    """The text goes to stdout alone, so that a script can take it."""
    made = run(own, "token", "create", "board", "--scope", "read", "--site", "berlin", "--days", "2")
    token = made.stdout.strip()
    assert token.startswith("hubline_")
    assert "can't be shown again" in made.stderr
    assert len(said(own, "list", token=token).splitlines()) == 4
    assert "berlin" in next(line for line in said(own, "token", "list").splitlines() if line.startswith("board"))
    said(own, "token", "revoke", "board")
    assert "the token was revoked" in error_of(run(own, "list", token=token))
    assert "revoked" in next(line for line in said(own, "token", "list").splitlines() if line.startswith("board"))


def test_a_hub_is_paused_and_resumed(own: Running) -> None:
    """Before a machine goes to be repaired, and after."""
    assert "berlin/pc-1 is paused" in said(own, "pause", "berlin/pc-1")
    assert "is no longer paused" in said(own, "resume", "berlin/pc-1")
    assert "there is no" in error_of(run(own, "pause", "nosuch"))


def test_forgetting_needs_a_yes(own: Running) -> None:
    """It is the only deletion there is."""
    assert "give --yes" in error_of(run(own, "forget", "pc-2"))
    assert "is forgotten" in said(own, "forget", "pc-2", "--yes")
    assert "there is no such hub" in error_of(run(own, "forget", "pc-2", "--yes"))


# --- What goes wrong -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("show", "pc-1"), "there are several hubs of this name: say which, berlin/pc-1, munich/pc-1"),
        (("show", "lab-1"), "there is no such hub: did you mean munich/lap-1"),
        (("show", "munich/lap-2"), "there is no hub munich/lap-2: did you mean munich/lap-1"),
        (("show", "' OR 1=1"), "there is no such hub"),
        (("logs", "munich/lap-1", "--since", "yesterday"), "--since = 'yesterday': is no time"),
        (("task", "ping", "--all", "--expires", "soon"), "--expires = 'soon': is no length of time"),
        (("task", "ping", "--all", "--arg", "x"), "--arg = 'x': is not NAME=VALUE"),
        (("task", "ping", "--site", "nowhere"), "targets: no hub is meant by it"),
        (("task", "ping", "--hub", "munich/x"), "there is no hub munich/x"),
        (("tasks", "f" * 16), f"there is no task {'f' * 16}"),
        (("tasks", "x"), "task: String should match pattern"),
        (("list", "--site", "Bad Name"), "site: String should match pattern"),
        (("token", "create", "admin"), "name = 'admin': there is a token of this name"),
        (("token", "revoke", "admin"), "this is the token that you use"),
    ],
)
def test_mistakes_are_told_in_one_line(api: Running, arguments: tuple[str, ...], line: str) -> None:
    """What is wrong, where, and what to do."""
    assert line in error_of(run(api, *arguments))


def test_api_that_cannot_be_reached_is_told_in_one_line(api: Running, tmp_path: Path) -> None:
    """Not running, not an API, not trusted, not allowed."""
    [port] = free_ports(1)

    def line(url: str, token: str = "x", **extra: str) -> str:
        env = {"HUBLINE_API_URL": url, "HUBLINE_API_TOKEN": token, "HUBLINE_FLEET_DIR": "", **extra}
        return error_of(CliRunner().invoke(fleet, ["list"], env=env))

    assert line(f"http://127.0.0.1:{port}") == (
        f"http://127.0.0.1:{port}: nobody listens there: is the cloud service running, and its API switched on?"
    )
    assert "TLS failed" in line(api.url.replace("http:", "https:"))
    assert "can't be read as the authorities" in line("https://127.0.0.1:1", HUBLINE_API_CA=str(tmp_path / "none"))
    assert line(api.url) == "the API refused: the token is unknown"
    assert "there is no token" in line(api.url, "")
    assert "use https" in line("http://cloud.example:8480")
    assert "must be like" in line("cloud.example")


def test_place_comes_from_the_options_the_environment_or_the_fleet_directory(tmp_path: Path) -> None:
    """What is nearer wins; a directory brings its authority along."""
    directory = tmp_path / "fleet"
    provision.init(directory, "acme", cloud_hosts=["127.0.0.1:8883"])
    token, ca = (directory / "admin.token").read_text().strip(), directory / "authority" / "ca.pem"
    url = "http://127.0.0.1:8480"
    assert place_from(directory, {"HUBLINE_API_TOKEN": "x"}) == Place(url, token, ca)
    assert place_from(None, {"HUBLINE_FLEET_DIR": str(directory)}) == Place(url, token, ca)
    assert place_from(None, {"HUBLINE_API_TOKEN": "x", "HUBLINE_FLEET_DIR": str(directory)}) == Place(url, "x")
    other = {"HUBLINE_API_TOKEN": "x", "HUBLINE_API_URL": "https://a.example:1/", "HUBLINE_API_CA": "my.pem"}
    assert place_from(None, other) == Place("https://a.example:1", "x", Path("my.pem"))
    with pytest.raises(SettingsError, match="there is no token for the API: give --dir"):
        place_from(None, {})
    with pytest.raises(SettingsError, match="is this a fleet directory"):
        place_from(tmp_path / "none", {})


def test_command_works_through_tls_with_the_fleets_own_authority(tmp_path: Path) -> None:
    """A cloud elsewhere needs nothing but its fleet directory."""
    directory = tmp_path / "fleet"
    provision.init(directory, "acme", cloud_hosts=["127.0.0.1:8883"])
    bundle = directory / "bundles" / "broker" / "cloud"
    with running_api(tmp_path, cert=bundle / "cert.pem", key=bundle / "key.pem") as api:
        (directory / "admin.token").write_text(api.tokens["admin"] + "\n")
        env = {"HUBLINE_API_URL": api.url, "HUBLINE_API_TOKEN": "", "HUBLINE_FLEET_DIR": ""}
        result = CliRunner().invoke(fleet, ["list", "--dir", str(directory), "--json"], env=env)
        assert len(json.loads(result.output)) == 5
        untrusted = CliRunner().invoke(fleet, ["list"], env={**env, "HUBLINE_API_TOKEN": "x"})
        assert "its certificate is not trusted" in error_of(untrusted)


def test_command_starts_without_the_weight_of_the_service() -> None:
    """`fleet list` in a shell's prompt or a loop must not load a web framework or a database."""
    code = (
        "import sys, importlib\n"
        "for name in ('cli', 'watch', 'tasks', 'settings', 'tokens'): importlib.import_module(f'cloud.fleet_{name}')\n"
        "print(sorted({'fastapi', 'pydantic', 'sqlalchemy', 'httpx', 'rich', 'uvicorn', 'msgspec'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
