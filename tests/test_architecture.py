"""The layout, the import rules and the few rules of the code that no linter knows hold for every file there is."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rules import CODE_RULES, TEXT_RULES, Rule, is_empty_name

ROOT = Path(__file__).parent.parent
TOP = ("broker", "cloud", "config", "connector", "hub")
MODULES = sorted(file for package in TOP for file in (ROOT / package).rglob("*.py"))
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def setup() -> configparser.ConfigParser:
    """Return setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def name_of(file: Path) -> str:
    """Return a file's path in the project, the same on every system."""
    return file.relative_to(ROOT).as_posix()


def tracked_texts() -> list[Path]:
    """Return every text file of the project: what git tracks or would track, or all but hidden folders without git."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        files = [
            file for file in ROOT.rglob("*") if not any(part.startswith(".") for part in file.relative_to(ROOT).parts)
        ]
    return [file for file in files if file.is_file() and b"\0" not in file.read_bytes()[:1024]]


# --- Rules about the text of a file ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", CODE_RULES, ids=lambda rule: rule.name)
def test_code_keeps_the_rule(rule: Rule) -> None:
    """Each rule protects a promise: determinism, one contract, errors that are seen."""
    broken = [
        f"{name_of(file)}:{line}"
        for file in MODULES
        if name_of(file) not in rule.exceptions
        for line in rule.check(file.read_text(encoding="utf-8"))
    ]
    assert broken == []


@pytest.mark.parametrize("rule", CODE_RULES, ids=lambda rule: rule.name)
def test_every_exception_to_the_rule_is_needed(rule: Rule) -> None:
    """An exception that is no longer used would let the next violation pass unseen."""
    idle = [name for name in rule.exceptions if not list(rule.check((ROOT / name).read_text(encoding="utf-8")))]
    assert idle == []


@pytest.mark.parametrize("rule", TEXT_RULES, ids=lambda rule: rule.name)
def test_every_file_keeps_the_rule(rule: Rule) -> None:
    """What is true on one machine only does not belong into the project."""
    broken = [
        f"{name_of(file)}:{line}" for file in tracked_texts() for line in rule.check(file.read_text(encoding="utf-8"))
    ]
    assert broken == []


@pytest.mark.parametrize("rule", CODE_RULES + TEXT_RULES, ids=lambda rule: rule.name)
def test_rule_finds_each_hand_made_violation_and_leaves_the_innocent_alone(rule: Rule) -> None:
    """A check that cannot fail protects nothing."""
    found = {line.split(":")[0] for line in rule.check(rule.violation)}
    guilty = [
        str(number)
        for number, line in enumerate(rule.violation.splitlines(), 1)
        if not line.startswith(("import ", "try:", '"""'))
    ]
    assert sorted(found, key=int) == guilty
    assert list(rule.check(rule.innocent)) == []


# --- Layout ----------------------------------------------------------------------------------------------------------


def test_every_package_is_listed_typed_and_importable() -> None:
    """A package that setup.cfg forgets works in the working tree and is missing on every machine."""
    found = {name_of(file.parent).replace("/", ".") for file in MODULES}
    assert found == set(setup()["options"]["packages"].split())
    for package in found:
        folder = ROOT / package.replace(".", "/")
        assert (folder / "__init__.py").is_file()
        assert (folder / "py.typed").is_file()
    assert set(setup()["importlinter"]["root_packages"].split()) == set(TOP)
    assert set(setup()["coverage:run"]["source"].split()) == set(TOP)


def test_tests_mirror_the_packages() -> None:
    """Whoever changes a file finds its tests without searching."""
    for folder in (ROOT / "tests", *(ROOT / "tests" / package for package in TOP)):
        assert (folder / "__init__.py").is_file(), folder


def test_no_module_has_an_empty_name() -> None:
    """A file called after nothing collects everything."""
    assert [name_of(file) for file in MODULES if is_empty_name(file.stem)] == []
    assert is_empty_name("topic_utils")
    assert not is_empty_name("envelopes")


# --- Imports ---------------------------------------------------------------------------------------------------------


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the import contracts of the setup.cfg in a folder on the packages there."""
    return subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache", "--no-logo"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def copied(folder: Path, **appended: str) -> Path:
    """Copy the packages into a folder, with a line more in some modules."""
    shutil.copy(ROOT / "setup.cfg", folder)
    for package in TOP:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for module, line in appended.items():
        with (folder / f"{module.replace('__', '/')}.py").open("a", encoding="utf-8") as stream:
            stream.write(f"\n{line}\n")
    return folder


def test_import_contracts_are_kept() -> None:
    """config, then broker, then hub, connector and cloud, which meet on topics only; the cores do no I/O."""
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("config__errors", "import broker.topics"),
        ("broker__topics", "import hub"),
        ("hub__courier", "import cloud"),
        ("connector__bridge", "import hub.courier"),
        ("hub__courier", "import time"),
        ("connector__bridge", "import asyncio"),
        ("broker__rights", "import broker.clock"),
    ],
)
def test_import_contracts_find_a_hand_made_violation(tmp_path: Path, module: str, line: str) -> None:
    """The contracts are not only written down, they bite."""
    result = lint_imports(copied(tmp_path, **{module: line}))
    assert result.returncode != 0
    assert "broken" in result.stdout, result.stdout + result.stderr
