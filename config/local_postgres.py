"""A PostgreSQL server of one's own for the time of a demo, a measurement or a test: in a folder, on loopback, gone at the end."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import psutil

from config import limits
from config.errors import HublineError, SettingsError

PACKAGE: Final = "postgresql"
USER: Final = "hubline"
"""The server's administrator."""
_APT: Final = (
    *("apt-get", "-q", "-y", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20"),
    *("-o", "DPkg::Lock::Timeout=60"),
)


def programs() -> Path | None:
    """Return the folder of PostgreSQL's server programs, the newest if there are several, or None."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda place: place.parts[-2].zfill(4), reverse=True
    )
    return next((place for place in places if (place / "postgres").exists() and (place / "initdb").exists()), None)


def install() -> Path:
    """Return the folder of the server programs; install them first where they are missing and this process may.

    Raises SettingsError with what a person must do.
    """
    found = programs()
    if found is not None:
        return found
    problem = f"PostgreSQL's server is not installed: apt-get install {PACKAGE} (Debian's package: {PACKAGE})"
    if _is_root() and shutil.which("apt-get"):
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["install", "--no-install-recommends", PACKAGE], ["update"]) * 2:
            done = subprocess.run(
                [*_APT, *command], env=environ, stdin=subprocess.DEVNULL, capture_output=True, check=False
            )
            if done.returncode == 0 and (found := programs()) is not None:
                return found
        problem = f"PostgreSQL's server is not installed, and apt-get could not install {PACKAGE}"
    raise SettingsError(problem)


class LocalPostgres:
    """One server in `folder`, which must not exist. It syncs every commit, unless `options` say otherwise."""

    def __init__(self, folder: Path, port: int, options: Mapping[str, str] | None = None):
        """Make its files. Raises SettingsError if PostgreSQL is not there, HublineError if it can't be used."""
        self.folder, self.port = folder, port
        self.password: Final = secrets.token_hex(16)
        self._programs = install()
        self._options = {"listen_addresses": "127.0.0.1", "max_connections": "60", **(options or {})}
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        if _is_root():
            _check_way_to(folder)
        password_file = folder / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self.password)
        if _is_root():
            for place in (folder, password_file):
                shutil.chown(place, "postgres", "postgres")
        arguments = ["--pgdata", str(folder / "pg"), "--username", USER, "--pwfile", str(password_file)]
        arguments += ["--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"]
        if self._options.get("fsync") == "off":
            arguments.append("--no-sync")
        self._run("initdb", arguments)

    def start(self) -> None:
        """Start it, and wait until it answers; after `kill`, until it has recovered. Raises HublineError.

        Where this process is root, the server ends when the thread that has started it does.
        """
        assert self._process is None
        options = [part for name, value in self._options.items() for part in ("-c", f"{name}={value}")]
        command = [*_as_somebody("--pdeathsig=KILL"), str(self._programs / "postgres"), "-D", str(self.folder / "pg")]
        with (self.folder / "log").open("ab") as out:
            self._process = subprocess.Popen(
                [*command, "-k", str(self.folder), "-p", str(self.port), *options],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # Ctrl-C is ours to pass on.
            )
        wait = ["--host", "127.0.0.1", "--port", str(self.port), "--quiet", "--timeout", "1"]
        for _ in range(int(limits.ENGINE_READY_S * 10)):
            if self._process.poll() is not None:
                raise HublineError(f"PostgreSQL did not start: {self._last_words()}")
            if subprocess.run([self._programs / "pg_isready", *wait], check=False).returncode == 0:
                return
            try:
                self._process.wait(0.1)
            except subprocess.TimeoutExpired:
                pass
        raise HublineError(f"PostgreSQL did not answer within {limits.ENGINE_READY_S:g} s: {self._last_words()}")

    def create(self, name: str) -> str:
        """Create a database and return what `cloud.database` says of it."""
        self._run("createdb", ["--host", "127.0.0.1", "--port", str(self.port), "--username", USER, name])
        return f"postgresql+asyncpg://{USER}:{self.password}@127.0.0.1:{self.port}/{name}"

    @property
    def pid(self) -> int | None:
        """Return the process id of the server while it runs."""
        return None if self._process is None else self._process.pid

    def stop(self) -> None:
        """End it in order, throwing its clients out."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(limits.ENGINE_READY_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def kill(self) -> None:
        """End all of its processes at once, as a power cut does."""
        process, self._process = self._process, None
        if process is None:
            return
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for each in family:
            try:
                each.kill()
            except psutil.NoSuchProcess:
                pass
        process.wait()
        psutil.wait_procs(family, limits.ENGINE_READY_S)

    def _run(self, program: str, arguments: list[str]) -> None:
        done = subprocess.run(
            [*_as_somebody(), str(self._programs / program), *arguments],
            env={**os.environ, "PGPASSWORD": self.password},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise HublineError(f"{program} failed: {lines[-1] if lines else f'status {done.returncode}'}")

    def _last_words(self) -> str:
        lines = (self.folder / "log").read_text("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def _is_root() -> bool:
    return sys.platform != "win32" and os.geteuid() == 0


def _as_somebody(*more: str) -> list[str]:
    """Return what a command begins with: PostgreSQL refuses to be root."""
    if not _is_root():
        return []
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *more]


def _check_way_to(folder: Path) -> None:
    """Raise SettingsError if others can't pass through the folders above: PostgreSQL's user is one of them."""
    for parent in folder.parents:
        if not parent.stat().st_mode & 0o001:
            raise SettingsError(
                f"PostgreSQL runs as the user postgres, who can't reach {folder}: chmod o+x {parent}, or take another folder"
            )
