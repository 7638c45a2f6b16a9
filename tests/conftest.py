"""What all tests share: a name of their own, and that none leaves a process, a thread or a network namespace behind."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

RUN = "PYTEST_HUBLINE_RUN"
"""In the environment of every process that this run starts, directly or not."""
GRACE_S = 5.0
"""How long what a test has told to end may take to do so."""
NETWORK_NAMESPACES = Path("/run/netns")

FLEETS = tuple(f"end_to_end/test_{name}" for name in ("presence", "orders", "modes", "roles"))
NETWORKS = ("end_to_end/", "connector/test_ssdp_network", "broker/test_multicast", "hub/test_discovery")
"""Whole fleets, on loopback or in networks of their own, and what shares port 1900: of each sort only one at a time."""

_names: list[str] = []


@pytest.fixture
def unique_name() -> str:
    """Return a name that no other test has: a DNS label of 9 characters, with room to grow into an interface's."""
    _names.append(f"t{secrets.token_hex(4)}")
    return _names[-1]


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves child processes, threads or its network namespaces to the tests after it."""
    children, threads, named = _children(), set(threading.enumerate()), len(_names)
    yield
    left = [*_left_processes(children), *_left_threads(threads), *_left_namespaces(_names[named:])]
    assert not left, f"left behind: {', '.join(left)}"


@pytest.hookimpl(tryfirst=True)  # pytest-xdist looks at the groups in the same hook.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep together, for pytest-xdist, what must not run at the same time."""
    for item in items:
        place = item.path.relative_to(Path(__file__).parent).as_posix()
        if place.startswith(FLEETS):
            item.add_marker(pytest.mark.xdist_group("fleets"))
        elif place.startswith(NETWORKS) or item.get_closest_marker("root") is not None:
            item.add_marker(pytest.mark.xdist_group("networks"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """See that pytest-xdist has found the groups: with a pytest that it does not know yet, it passes over them in silence."""
    grouped = [item for item in session.items if item.get_closest_marker("xdist_group") is not None]
    if getattr(session.config.option, "loadgroup", False) and not all("@" in item.nodeid for item in grouped):
        raise pytest.UsageError(
            "pytest-xdist does not keep groups of tests together: it needs another version of pytest"
        )


def pytest_configure() -> None:
    """Mark this process, so that its descendants can be told from everything else on the machine."""
    os.environ[RUN] = secrets.token_hex(8)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # Else each of many hundred processes compiles its modules anew.
    # How long an example takes says how busy the machine is, not whether it is right.
    settings.register_profile("hubline", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("hubline")
    # As a shell's background job has it, and our children would inherit it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End what is left of this run, orphans too, and fail the run for it."""
    workers = {worker for worker in psutil.Process().children() if _is_worker(worker)}
    orphans = [
        process
        for process in psutil.process_iter()
        if process.pid != os.getpid() and process not in workers and _is_ours(process)
    ]
    for process in orphans:
        print(f"\nleft behind by the tests, and killed: {_describe(process)}", file=sys.stderr)
        process.kill()
    if orphans:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _children() -> set[psutil.Process]:
    if hasattr(os, "waitid"):  # One system call instead of a look at every process of the machine.
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return set()
    return {process for process in psutil.Process().children(recursive=True) if _is_alive(process)}


def _left_processes(before: set[psutil.Process]) -> list[str]:
    new = list(_children() - before)
    if not new:
        return []
    _, alive = psutil.wait_procs(new, GRACE_S)
    left = [_describe(process) for process in alive if _is_alive(process)]
    for process in alive:
        process.kill()
    return left


def _left_threads(before: set[threading.Thread]) -> list[str]:
    deadline_at = time.monotonic() + GRACE_S
    new = set(threading.enumerate()) - before
    for thread in new:
        thread.join(max(0.0, deadline_at - time.monotonic()))
    return [f"thread {thread.name}" for thread in new if thread.is_alive()]


def _left_namespaces(names: list[str]) -> list[str]:
    if not names or not NETWORK_NAMESPACES.is_dir():
        return []
    there = [entry.name for entry in NETWORK_NAMESPACES.iterdir()]
    return [f"network namespace {entry}" for entry in there if any(entry.startswith(name) for name in names)]


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _is_ours(process: psutil.Process) -> bool:
    try:
        return _is_alive(process) and process.environ().get(RUN) == os.environ[RUN]
    except (psutil.Error, OSError):
        return False


def _is_worker(process: psutil.Process) -> bool:
    """Tell whether this is a worker of pytest-xdist, which ends by itself."""
    try:
        return any("execnet" in part for part in process.cmdline())
    except psutil.Error:
        return True


def _describe(process: psutil.Process) -> str:
    try:
        return f"process {process.pid} ({' '.join(process.cmdline())[:120]})"
    except psutil.Error:
        return f"process {process.pid}"
