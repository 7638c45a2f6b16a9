"""What the cloud can have a hub do: a closed list, of which the hub's own settings allow some. Never a command from outside."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final, Protocol, TypeAlias, get_args

import orjson

from broker.clock import unix_ms
from broker.messages import Value, encode_json
from broker.runner import monotonic_s
from config import limits
from config.errors import HublineError, ProtocolError, SettingsError
from config.settings import Action, HubSettings
from hub.task_checks import run_check
from hub.tasks import RESTART, Outcome

ACTIONS: Final[tuple[str, ...]] = get_args(Action)
"""Every action there is."""

Progress: TypeAlias = Callable[[int | None, str | None], None]
"""Takes how far an action is, in percent, and what it is doing."""


class Doer(Protocol):
    """What actions need of the hub around them."""

    async def sample_now(self) -> Mapping[str, Value]:
        """Ask all sensors now, send their readings as ever, and return the values. Raises HublineError."""

    def report_now(self) -> None:
        """Send a fresh `reported` message."""

    def restart(self) -> None:
        """Begin to end this hub, so that it is started again. Returns before it has ended."""

    def recent_logs(self, limit: int) -> list[dict[str, Any]]:
        """Return the last lines of the hub's log, the oldest first."""


class Actions:
    """The actions of one hub. `version` is the hub's own."""

    def __init__(self, settings: HubSettings, doer: Doer, version: str):
        self._settings, self._doer, self._version = settings, doer, version
        self._started_at = monotonic_s()

    def refusal(self, action: str, arguments: Mapping[str, Value]) -> str | None:
        """Say in one line why this is not run here and what to do about it, or return None if it may be."""
        allowed = self._settings.tasks.allow
        if action not in ACTIONS:
            return f"this hub does not know the action {action}; it knows {', '.join(ACTIONS)}"
        if action == "update-now":
            return "updates are not set up on this hub"
        if action not in allowed:
            return f'not allowed here: add "{action}" to tasks.allow in this machine\'s hub.toml'
        if action == "run-check":
            return self._check_refusal(arguments.get("name"))
        if action == "collect-logs" and not _is_limit(arguments.get("limit", limits.TASK_LOGS)):
            return f"limit must be a whole number from 1 to {limits.TASK_LOGS_MAX}"
        return None

    async def run(self, action: str, arguments: Mapping[str, Value], progress: Progress) -> Outcome:
        """Run an allowed action to its end. Cancelled, it ends what it has started, and raises CancelledError."""
        try:
            if action == "run-check":
                return await self._run_check(str(arguments["name"]), progress)
            async with asyncio.timeout(limits.TASK_ACTION_TIMEOUT_S):
                return await self._run(action, arguments)
        except TimeoutError:
            return Outcome("failed", f"has not ended within {limits.TASK_ACTION_TIMEOUT_S:g} s")
        except (HublineError, OSError) as exc:
            return Outcome("failed", str(exc)[: limits.VALUE_TEXT_MAX])

    async def _run(self, action: str, arguments: Mapping[str, Value]) -> Outcome:
        match action:
            case "ping":
                return _done(self._ping())
            case "sample-now":
                return _done({"values": dict(await self._doer.sample_now())})
            case "report-now":
                self._doer.report_now()
                return Outcome("done")
            case "collect-logs":
                return _logs(self._doer.recent_logs(_limit(arguments)))
            case _:
                assert action == RESTART, action
                self._doer.restart()
                await asyncio.Event().wait()  # It ends with the process, and is done when the next one has started.
                raise AssertionError

    def _ping(self) -> dict[str, Any]:
        return {
            "version": self._version,
            "uptime_s": round(monotonic_s() - self._started_at, 3),
            "clock": unix_ms(),
            "pid": os.getpid(),
            "system": sys.platform,
        }

    async def _run_check(self, name: str, progress: Progress) -> Outcome:
        check = self._settings.checks[name]
        progress(None, f"runs {name}")
        try:
            result = await run_check(check.command, check.timeout_s)
        except SettingsError as exc:
            return Outcome("failed", f"checks.{name}: {exc}"[: limits.VALUE_TEXT_MAX])
        found = {"check": name, **{key: value for key, value in asdict(result).items() if value is not None}}
        return Outcome("failed" if result.exit_code is None else "done", result.message, _bounded(found))

    def _check_refusal(self, name: object) -> str | None:
        if not isinstance(name, str):
            return "run-check needs the argument name"
        if name not in self._settings.checks:
            known = ", ".join(sorted(self._settings.checks)) or "none"
            return f"there is no [checks.{name[:64]}] in this machine's hub.toml; there is {known}"
        return None


def _limit(arguments: Mapping[str, Value]) -> int:
    return int(arguments.get("limit", limits.TASK_LOGS))


def _is_limit(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= limits.TASK_LOGS_MAX


def _done(output: dict[str, Any]) -> Outcome:
    return Outcome("done", None, _bounded(output))


def _logs(records: list[dict[str, Any]]) -> Outcome:
    """Return the newest lines that fit."""
    kept, room = list[dict[str, Any]](), limits.TASK_OUTPUT_MAX_BYTES - 64
    for record in reversed(records):
        try:
            room -= len(encode_json(record)) + 1
        except ProtocolError:
            continue  # A line that JSON can't say.
        if room < 0:
            break
        kept.append(record)
    return _done({"records": kept[::-1], "dropped": len(records) - len(kept)})


def _bounded(output: dict[str, Any]) -> dict[str, Any]:
    """Return the output as JSON has it, or that it can't be sent, and why."""
    try:
        encoded = encode_json(output)
    except ProtocolError as exc:
        return {"omitted": exc.reason}
    if len(encoded) > limits.TASK_OUTPUT_MAX_BYTES:
        return {"omitted": f"{len(encoded)} bytes, at most {limits.TASK_OUTPUT_MAX_BYTES} can be sent"}
    found: dict[str, Any] = orjson.loads(encoded)
    return found
