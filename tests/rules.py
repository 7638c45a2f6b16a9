"""The rules that a linter doesn't know, as functions from a file's text to what is wrong with it, one line each."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

FORBIDDEN_WORDS = {"util", "utils", "helper", "helpers", "common", "manager", "handler"}
FORBIDDEN_PREFIX = "do_"
MONOTONIC = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns"}
WALL = {
    "time": {"time", "time_ns", "localtime", "gmtime", "strftime"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}
ROOT = "hl" + "1"

PATHS = re.compile(r"/(?:home|Users)/[A-Za-z]|/roo[t]\b|\bC:\\+Users\\+[A-Za-z]")
HOSTS = re.compile(
    r"\b(?:pyp[i]|pythonhoste[d]|npmj[s]|docke[r]|ghc[r]|qua[y]|crate[s]|proxy\.golang)\.(?:org|com|io)\b"
)
TRACKER = re.compile(r"\bissue #?\d|\bissues show\b", re.IGNORECASE)


@dataclass(frozen=True)
class Rule:
    """One rule, with the files that may break it and why, and a snippet that breaks it."""

    name: str
    check: Callable[[str], Iterator[str]]
    violation: str
    innocent: str = ""
    exceptions: dict[str, str] = field(default_factory=dict)


def undocumented(text: str) -> Iterator[str]:
    """A module says the promise that it keeps."""
    if not ast.get_docstring(ast.parse(text)):
        yield "1: no docstring"


def joined_topics(text: str) -> Iterator[str]:
    """Topics are built and parsed in one place."""
    tree = ast.parse(text)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(value)) if ROOT in value and id(node) not in prose:
                yield f"{node.lineno}: {value!r}"
            case ast.ImportFrom(module="broker.topics", names=names) if any(name.name == "ROOT" for name in names):
                yield f"{node.lineno}: imports the root of topics"
            case ast.Call(func=ast.Attribute(value=ast.Constant(value="/"), attr="join")):
                yield f'{node.lineno}: joins with "/"'
            case ast.Call(func=ast.Attribute(value=value, attr="split" | "rsplit"), args=[ast.Constant(value="/"), *_]):
                if "topic" in ast.unparse(value):
                    yield f"{node.lineno}: splits a topic"


def monotonic_clock(text: str) -> Iterator[str]:
    """Time is an argument; the runner alone reads the clock."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Attribute(value=ast.Name(id="time"), attr=attr) if attr in MONOTONIC:
                yield f"{node.lineno}: time.{attr}"
            case ast.ImportFrom(module="time", names=names) if MONOTONIC & {name.name for name in names}:
                yield f"{node.lineno}: imports a monotonic clock"
            case ast.Attribute(value=value, attr="time") if "loop" in ast.unparse(value):
                yield f"{node.lineno}: {ast.unparse(node)}"


def wall_clock(text: str) -> Iterator[str]:
    """Wall time is data in a message, never a reason to act."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Attribute(value=ast.Name(id=owner) | ast.Attribute(attr=owner), attr=attr) if attr in WALL.get(
                owner, ()
            ):
                yield f"{node.lineno}: {owner}.{attr}"
            case ast.ImportFrom(module="time", names=names) if WALL["time"] & {name.name for name in names}:
                yield f"{node.lineno}: imports the wall clock"


def broad_except(text: str) -> Iterator[str]:
    """Failures from outside are events; the unexpected is a bug and must be seen. Tidying up and raising on is fine."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler) and ast.unparse(node.body[-1]) != "raise":
            caught = (
                {part.id for part in ast.walk(node.type) if isinstance(part, ast.Name)} if node.type else {"everything"}
            )
            if caught & {"everything", "Exception", "BaseException"}:
                yield f"{node.lineno}: catches {', '.join(sorted(caught))}"


def sleeps(text: str) -> Iterator[str]:
    """A blocking sleep stops the event loop, or a thread that nobody can stop."""
    yield from _uses(text, "time", "sleep")


def lost_cancellations(text: str) -> Iterator[str]:
    """Before Python 3.12, `asyncio.wait_for` swallows a cancellation that comes with what it waits for: the task goes on."""
    yield from _uses(text, "asyncio", "wait_for")


def _uses(text: str, module: str, name: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Attribute(value=ast.Name(id=owner), attr=attr) if (owner, attr) == (module, name):
                yield f"{node.lineno}: {module}.{name}"
            case ast.ImportFrom(module=origin, names=names) if origin == module:
                if any(each.name == name for each in names):
                    yield f"{node.lineno}: imports {name}"


def empty_names(text: str) -> Iterator[str]:
    """Words that say nothing about what a thing does."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and is_empty_name(node.name):
            yield f"{node.lineno}: {node.name}"


def is_empty_name(name: str) -> bool:
    """Tell whether a name in snake_case or CamelCase has one of the forbidden words."""
    words = re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)
    return name.startswith(FORBIDDEN_PREFIX) or not FORBIDDEN_WORDS.isdisjoint(word.lower() for word in words)


def package_names(text: str) -> Iterator[str]:
    """config, hub and cloud are packages; a variable of that name hides one where somebody will want it."""
    packages = {"config", "hub", "cloud"}
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) if name in packages:
                if not _is_field(text, node):
                    yield f"{node.lineno}: {name}"
            case ast.arg(arg=name) if name in packages:
                yield f"{node.lineno}: {name}"


def _is_field(text: str, name: ast.Name) -> bool:
    classes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
    return any(
        isinstance(statement, ast.AnnAssign) and statement.target.lineno == name.lineno
        for node in classes
        for statement in node.body
    )


def _lines(pattern: re.Pattern[str], text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        for found in pattern.finditer(line):
            yield f"{number}: {found.group()}"


def machine_paths(text: str) -> Iterator[str]:
    """A path of one machine works on no other."""
    yield from _lines(PATHS, text)


def registry_hosts(text: str) -> Iterator[str]:
    """Where packages come from is for the machine's settings to say."""
    yield from _lines(HOSTS, text)


def tracker_numbers(text: str) -> Iterator[str]:
    """A reader of the code has no tracker beside it: say why, not where it was discussed."""
    yield from _lines(TRACKER, text)


CODE_RULES = (
    Rule("every module has a docstring", undocumented, "x = 1", '"""Keeps a promise."""'),
    Rule(
        "only broker/topics.py joins topics",
        joined_topics,
        f'"""Doc."""\nf"{ROOT}/{{fleet}}/x"\nfrom broker.topics import ROOT\n"/".join(levels)\ntopic.split("/")[3]',
        f'"""{ROOT}/…"""\npath.split("/")',
        {
            "broker/topics.py": "the one place",
            "config/demo_fleet.py": "a topic filter as a person types it; config may not import broker",
        },
    ),
    Rule(
        "only broker/runner.py reads the monotonic clock",
        monotonic_clock,
        "import time\ntime.monotonic()\nget_running_loop().time()\nself._loop.time()\nfrom time import perf_counter",
        "now = monotonic_s()",
        {
            "broker/runner.py": "the one place",
            "config/demo.py": "the time of a show; config may not import broker",
            "config/demo_fleet.py": "waits for processes; config may not import broker",
            "config/lock.py": "a command waits for another one; config may not import broker",
        },
    ),
    Rule(
        "only broker/clock.py reads the wall clock",
        wall_clock,
        "import time\ntime.time()\ndatetime.now(UTC)\ndatetime.datetime.now()\nfrom time import time_ns",
        "unix_ms()",
        {
            "broker/clock.py": "the one place",
            "config/demo.py": "counts down to a moment that hubs have written; config may not import broker",
            "broker/tls.py": "validity of certificates",
            "config/log.py": "the time of a log line; config may not import broker",
            "config/pki.py": "validity of certificates; config may not import broker",
            "hub/sensors/uptime.py": "the clock is what it measures",
        },
    ),
    Rule(
        "only the supervisor catches every exception",
        broad_except,
        "try: f()\nexcept Exception: pass\ntry: f()\nexcept: pass\ntry: f()\nexcept (OSError, BaseException): pass",
        "try: f()\nexcept OSError: pass\ntry: f()\nexcept BaseException:\n    tidy_up()\n    raise",
        {
            "broker/client.py": "paho's thread dies in silence otherwise; what it catches becomes an event",
            "hub/sensors/__init__.py": "other people's sensors may raise anything; the hub goes on without them",
            "hub/sampler.py": "the same for a single sample of theirs",
        },
    ),
    Rule(
        "nothing sleeps in a thread",
        sleeps,
        "import time\ntime.sleep(1)\nfrom time import sleep",
        "await asyncio.sleep(1)",
        {
            "config/demo.py": "a command without an event loop: nothing else runs in it",
            "config/lock.py": "a command without an event loop waits for another one",
        },
    ),
    Rule(
        "nothing loses a cancellation",
        lost_cancellations,
        "import asyncio\nawait asyncio.wait_for(f(), 1)\nfrom asyncio import wait_for",
        "async with asyncio.timeout(1):\n    await f()",
    ),
    Rule(
        "names say what a thing does",
        empty_names,
        "class MqttHandler: ...\ndef topic_helper(): ...\nasync def do_connect(): ...\nclass ManagerOfHubs: ...",
        "def handle(event): ...\ndef commonly(): ...",
        {"broker/client_stream.py": "do_handshake is the standard library's name, overridden"},
    ),
    Rule(
        "no variable hides a package",
        package_names,
        "hub = 1\ndef f(config): ...\nfor cloud in clouds: ...",
        "hub_id = 1\nclass A:\n    hub: int = 0\nsettings.hub = 1",
    ),
)

TEXT_RULES = (
    Rule("no path of one machine", machine_paths, "see /" + "home/me/x", "/opt/hubline and /var/lib"),
    Rule("no host name of a registry", registry_hosts, "https://" + "pypi" + ".org/simple", "https://example.com"),
    Rule("no number of a tracker", tracker_numbers, "as iss" + "ue 7 says", "we issue certificates"),
)
