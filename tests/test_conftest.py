"""What tests/conftest.py promises: a test that leaves something behind fails, and only that one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parent / "conftest.py"
LEAKS = {
    "a child process": "subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)",
    "a thread": "threading.Thread(target=threading.Event().wait, daemon=True).start()",
}
WAIT = "import signal; signal.pause()"
ORPHANAGE = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {WAIT!r}], start_new_session=True)"


def run_in(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Run a test with the given body, and one after it, with our conftest in a folder of its own."""
    conftest = CONFTEST.read_text(encoding="utf-8").replace("GRACE_S = 5.0", "GRACE_S = 0.2")
    (folder / "conftest.py").write_text(conftest, encoding="utf-8")
    (folder / "test_it.py").write_text(
        f"import subprocess, sys, threading\ndef test_first():\n    {body}\n\ndef test_second(): ...\n",
        encoding="utf-8",
    )
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:randomly",
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore",
            str(folder),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("leak", LEAKS)
def test_a_test_that_leaves_something_behind_fails(tmp_path: Path, leak: str) -> None:
    """Otherwise a later test fails for it, on another day and in another order."""
    result = run_in(tmp_path, LEAKS[leak])
    assert result.returncode == 1
    assert "left behind" in result.stdout, result.stdout
    assert "2 passed, 1 error" in result.stdout, result.stdout


def test_a_clean_test_passes(tmp_path: Path) -> None:
    """The check itself must not be what makes tests fail."""
    result = run_in(tmp_path, "subprocess.run([sys.executable, '-c', 'pass'], check=True)")
    assert result.returncode == 0, result.stdout
    assert "2 passed" in result.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="a process without its parent is a matter of POSIX systems")
def test_an_orphan_ends_with_the_run_and_fails_it(tmp_path: Path) -> None:
    """A killed process leaves its own children to nobody; on a CI machine they would stay for ever."""
    result = run_in(tmp_path, f"subprocess.run([sys.executable, '-c', {ORPHANAGE!r}], check=True)")
    assert result.returncode == 1, result.stdout
    assert "left behind by the tests, and killed: process" in result.stderr
