"""`hubline fleet task`: start an action on hubs and follow it to its end; `hubline fleet tasks`: what was started."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import click

from cloud.fleet_client import Api
from cloud.fleet_output import (
    api_at,
    clock,
    compact,
    facts,
    hub_named,
    is_terminal,
    say_json,
    seconds_of,
    table,
    visible,
    with_api,
)
from config import limits
from config.errors import SettingsError, TransportError

_ACTIONS: Final = ("ping", "sample-now", "report-now", "restart-hub", "collect-logs", "run-check", "update-now")
_ENDED: Final = ("done", "failed", "refused", "expired", "cancelled")
_FORGOTTEN: Final = "forgotten"
"""What becomes of a target whose hub is forgotten before the task has ended there; only who follows the task sees it."""
_PATIENCE: Final = int(limits.FLEET_TIMEOUT_S / limits.FLEET_POLL_S)
"""Polls in a row that may fail while a task is followed: the cloud service may be restarted meanwhile."""


@click.command()
@click.argument("action", type=click.Choice(_ACTIONS))
@click.option("--hub", "hub_names", multiple=True, metavar="HUB", help="On this hub; may be repeated.")
@click.option("--site", "sites", multiple=True, help="On every hub of this site; may be repeated.")
@click.option("--group", "groups", multiple=True, help="On every hub of this group; may be repeated.")
@click.option("--all", "everyone", is_flag=True, help="On every hub that is not hidden.")
@click.option("--arg", "arguments", multiple=True, metavar="NAME=VALUE", help="An argument of the action.")
@click.option("--expires", default="1h", show_default=True, help='It must have begun by then: "10m", "1h", "2d".')
@click.option("--skip-if-offline", is_flag=True, help="Only hubs that are there now.")
@click.option("--wait", is_flag=True, help="Follow it to its end; the exit status is 1 if it failed on a hub.")
@with_api
@click.pass_context
def task(
    ctx: click.Context,
    directory: Path | None,
    as_json: bool,
    action: str,
    hub_names: tuple[str, ...],
    sites: tuple[str, ...],
    groups: tuple[str, ...],
    everyone: bool,
    arguments: tuple[str, ...],
    expires: str,
    skip_if_offline: bool,
    wait: bool,
) -> None:
    """Start ACTION on hubs; those that are away get it when they come."""
    if not (hub_names or sites or groups or everyone):
        raise click.UsageError("say on which hubs: --hub, --site, --group or --all")
    wanted = {
        "action": action,
        "arguments": dict(map(_argument, arguments)),
        "expires_s": seconds_of(expires, "--expires"),
    }
    api = api_at(directory)
    names = [hub_named(api, name) for name in hub_names]
    targets = {"hubs": names, "sites": list(sites), "groups": list(groups), "all": everyone}
    made = api.call("POST", "/tasks", body={**wanted, "targets": targets, "skip_if_offline": skip_if_offline})
    if not wait:
        if as_json:
            say_json(made)
        else:
            click.echo(f"Task {made['task']} is queued for {_hubs(made['targets'])}.")
        return
    ended = _follow(api, made["task"], made["targets"], quiet=as_json)
    if as_json:
        say_json({**api.get(f"/tasks/{made['task']}"), "targets": ended})
    done = sum(entry["state"] == "done" for entry in ended)
    if not as_json:
        click.echo(f"Task {made['task']}: done on {done} of {_hubs(made['targets'])}.")
    if done < made["targets"]:
        ctx.exit(1)


@click.command()
@click.argument("task_id", metavar="[TASK]", required=False)
@click.option("--open", "unended", is_flag=True, help="Only those that have not ended everywhere.")
@click.option("--hub", "hub_name", metavar="HUB", help="Only those for this hub; with --cancel, only there.")
@click.option("--cancel", is_flag=True, help="Cancel TASK, as far as it has not ended.")
@with_api
def tasks(
    directory: Path | None, as_json: bool, task_id: str | None, unended: bool, hub_name: str | None, cancel: bool
) -> None:
    """List the last tasks; show TASK, or cancel it."""
    api = api_at(directory)
    name = None if hub_name is None else hub_named(api, hub_name)
    if task_id is None:
        if cancel:
            raise click.UsageError("say which task")
        site, _, hub_id = (name or "").partition("/")
        found = api.get("/tasks", open=str(unended).lower(), site=site or None, hub=hub_id or None)["items"]
        if as_json:
            say_json(found)
        else:
            rows = [(e["task"], e["action"], clock(e["created"]), e["created_by"], _counts(e["states"])) for e in found]
            table(("task", "action", "created", "by", "hubs"), rows)
        return
    if cancel:
        api.call("POST", f"/tasks/{task_id}/cancel", body={"hub": name})
    found = _whole(api, task_id)
    if as_json:
        say_json(found)
        return
    facts(
        (
            ("task", found["task"]),
            ("action", found["action"]),
            ("arguments", compact(found["arguments"]) if found["arguments"] else None),
            ("created", f"{clock(found['created'])} by {found['created_by']}"),
            ("expires", clock(found["expires"])),
            ("hubs", _counts(found["states"])),
        )
    )
    table(("hub", "state", "since", "progress", "message"), [_target(entry) for entry in found["targets"]["items"]])


def _target(entry: dict[str, Any]) -> tuple[object, ...]:
    progress = None if entry["progress"] is None else f"{entry['progress']} %"
    return f"{entry['site']}/{entry['hub']}", entry["state"], clock(entry["changed"]), progress, entry["message"]


def _counts(states: dict[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items()))


def _hubs(number: int) -> str:
    return "1 hub" if number == 1 else f"{number} hubs"


def _argument(text: str) -> tuple[str, object]:
    """Return name and value of NAME=VALUE: a number or a truth value if it looks like one, else text."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise SettingsError("is not NAME=VALUE", key="--arg", value=text)
    try:
        said = json.loads(value)
    except ValueError:
        return name, value
    return name, said if isinstance(said, bool | int | float | str) else value


# --- Following a task ------------------------------------------------------------------------------------------------


class _Watcher(Protocol):
    """Shows how a task goes on."""

    def ended(self, entry: dict[str, Any]) -> None:
        """Tell of a hub on which it has ended."""


class _Quiet:
    def ended(self, entry: dict[str, Any]) -> None:
        pass


class _Lines:
    def ended(self, entry: dict[str, Any]) -> None:
        message = f": {visible(entry['message'])}" if entry["message"] else ""
        click.echo(f"{entry['site']}/{entry['hub']}  {entry['state']}{message}")


def _follow(api: Api, task_id: str, targets: int, *, quiet: bool) -> list[dict[str, Any]]:
    """Wait until a task has ended on all of its targets and return them.

    One that has vanished before its end, since its hub was forgotten, is returned as "forgotten".
    """
    known: dict[str, dict[str, Any]] = {}
    with _watching(targets, quiet=quiet) as watcher:
        failures = 0
        while True:
            try:
                entries = _whole(api, task_id)["targets"]["items"]
            except TransportError:
                failures += 1
                if failures > _PATIENCE:
                    raise
            else:
                failures = 0
                before, known = known, {f"{entry['site']}/{entry['hub']}": entry for entry in entries}
                for name, entry in before.items():
                    known.setdefault(name, entry if _is_over(entry) else {**entry, "state": _FORGOTTEN})
                for name, entry in known.items():
                    if _is_over(entry) and not (name in before and _is_over(before[name])):
                        watcher.ended(entry)
                if all(map(_is_over, known.values())):
                    return list(known.values())
            threading.Event().wait(limits.FLEET_POLL_S)


def _is_over(entry: dict[str, Any]) -> bool:
    return entry["state"] in _ENDED or entry["state"] == _FORGOTTEN


def _whole(api: Api, task_id: str) -> Any:
    """Return a task with all of its targets, whatever the number of pages."""
    whole = api.get(f"/tasks/{task_id}", limit=limits.API_PAGE_MAX)
    targets = whole["targets"]
    while targets["next"] is not None:
        page = api.get(f"/tasks/{task_id}", limit=limits.API_PAGE_MAX, cursor=targets["next"])["targets"]
        targets["items"] += page["items"]
        targets["next"] = page["next"]
    return whole


@contextmanager
def _watching(targets: int, *, quiet: bool) -> Iterator[_Watcher]:
    if quiet or not is_terminal():
        yield _Quiet() if quiet else _Lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("hubs", total=targets)

        class Bar:
            def ended(self, entry: dict[str, Any]) -> None:
                progress.advance(bar)
                if entry["state"] != "done":
                    message = visible(entry["message"] or "")
                    progress.console.print(
                        f"{entry['site']}/{entry['hub']}  {entry['state']}  {message}", markup=False, highlight=False
                    )

        yield Bar()
