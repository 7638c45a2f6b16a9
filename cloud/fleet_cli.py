"""`hubline fleet`: see the fleet and act on it, through the API of the cloud service."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

import click

from cloud.fleet_output import (
    ago,
    api_at,
    clock,
    compact,
    confirm,
    facts,
    hub_named,
    is_terminal,
    say_json,
    table,
    visible,
    with_api,
)

_ELSEWHERE: Final = {
    "watch": ("cloud.fleet_watch", "watch"),
    "logs": ("cloud.fleet_watch", "logs"),
    "task": ("cloud.fleet_tasks", "task"),
    "tasks": ("cloud.fleet_tasks", "tasks"),
    "settings": ("cloud.fleet_settings", "settings"),
    "token": ("cloud.fleet_tokens", "token"),
}

_CONNECTIONS: Final = ("online", "offline", "roaming", "unreachable-online", "unreachable-offline", "path-down")


class _Group(click.Group):
    """Imports the larger commands when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *_ELSEWHERE]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module, attribute = _ELSEWHERE[cmd_name]
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Group)
def fleet() -> None:
    """See the fleet and act on it.

    The API is at HUBLINE_API_URL, by default http://127.0.0.1:8480. The token is that of --dir FLEETDIR, HUBLINE_API_TOKEN or
    HUBLINE_FLEET_DIR; HUBLINE_API_CA names the authority of an https address.
    """


# --- Who there is ----------------------------------------------------------------------------------------------------


@fleet.command("list")
@click.option("--site", help="Only this site.")
@click.option("--group", help="Only this group.")
@click.option("--connection", type=click.Choice(_CONNECTIONS), help="Only with this connection.")
@click.option("--hidden", is_flag=True, help="Inactive, hidden hubs instead.")
@click.option("--all", "everyone", is_flag=True, help="Inactive, hidden hubs too.")
@click.option("--text", help="Only with this in SITE/HUB.")
@with_api
def list_hubs(
    directory: Path | None,
    as_json: bool,
    site: str | None,
    group: str | None,
    connection: str | None,
    hidden: bool,
    everyone: bool,
    text: str | None,
) -> None:
    """List the hubs with their status."""
    which = "all" if everyone else "yes" if hidden else "no"
    wanted = {"site": site, "group": group, "connection": connection, "hidden": which, "text": text}
    found = list(api_at(directory).pages("/hubs", **wanted))
    if as_json:
        say_json(found)
        return
    table(("hub", "status", "since", "via", "last seen", "why"), [_row(entry) for entry in found])
    if is_terminal():
        click.echo(_summary(found))


def _row(entry: dict[str, Any]) -> tuple[object, ...]:
    name, presence = f"{entry['site']}/{entry['hub']}", entry["presence"]
    if presence is None:
        return name, "unknown", None, None, "never", "never seen"
    seen = ago(presence["last_seen"])
    return name, presence["connection"], clock(presence["since"]), presence["via"], seen, presence["reason"]


def _summary(found: list[dict[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for entry in found:
        state = entry["presence"]["connection"] if entry["presence"] else "unknown"
        counts[state] = counts.get(state, 0) + 1
    parts = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    return f"{len(found)} hubs: {parts}." if found else "There are no such hubs."


@fleet.command()
@click.argument("hub_name", metavar="HUB")
@with_api
def show(directory: Path | None, as_json: bool, hub_name: str) -> None:
    """Show everything about HUB (or SITE/HUB)."""
    api = api_at(directory)
    name = hub_named(api, hub_name)
    found = api.get(f"/hubs/{name}")
    site, _, hub_id = name.partition("/")
    log = api.get("/connection-log", site=site, hub=hub_id, limit=5)["items"]
    if as_json:
        say_json({**found, "connection_log": log})
        return
    presence, reported, state = found["presence"] or {}, found["reported"] or {"body": {}}, found["settings"]
    facts(
        (
            ("hub", name),
            ("status", presence.get("connection", "unknown")),
            ("", presence.get("text")),
            ("reason", presence.get("reason")),
            ("since", clock(presence["since"]) if presence else None),
            ("via", presence.get("via")),
            ("last seen", ago(presence.get("last_seen"))),
            ("evidence", compact(presence["evidence"]) if presence.get("evidence") else None),
            ("hidden since", clock(found["hidden_since"]) if found["hidden_since"] else None),
            ("mode", found["mode"]),
            ("version", found["version"]),
            ("host", reported["body"].get("host")),
            ("system", reported["body"].get("system")),
            ("addresses", ", ".join(reported["body"].get("addresses", []))),
            ("groups", ", ".join(found["groups"])),
            ("settings", None if state is None else f"version {state['desired_version']}: {state['state']}"),
        )
    )
    for number, action in enumerate(presence.get("actions", ()), 1):
        click.echo(f"{number}. {visible(action['text'])} ({visible(action['who'])})")
    if found["values"]:
        click.echo()
        rows = [(value["sensor"], compact(value["value"]), ago(value["ts"])) for value in found["values"]]
        table(("value", "newest", "measured"), rows)
    if log:
        click.echo()
        table(
            ("at", "status", "reason", "via"),
            [(clock(entry["at"]), entry["connection"], entry["reason"], entry["via"]) for entry in log],
        )


@fleet.command()
@click.argument("hub_name", metavar="HUB")
@with_api
def pause(directory: Path | None, as_json: bool, hub_name: str) -> None:
    """Expect nothing of HUB (or SITE/HUB) and start nothing on it, until it is resumed."""
    _pause(directory, as_json, hub_name, "pause", "is paused: it is expected to be away, and no task starts on it")


@fleet.command()
@click.argument("hub_name", metavar="HUB")
@with_api
def resume(directory: Path | None, as_json: bool, hub_name: str) -> None:
    """End the pause of HUB (or SITE/HUB)."""
    _pause(directory, as_json, hub_name, "resume", "is no longer paused")


def _pause(directory: Path | None, as_json: bool, hub_name: str, verb: str, told: str) -> None:
    api = api_at(directory)
    name = hub_named(api, hub_name)
    done = api.call("POST", f"/hubs/{name}/{verb}")
    if as_json:
        say_json(done)
    else:
        click.echo(f"{name} {told}.")


@fleet.command()
@click.argument("hub_name", metavar="HUB")
@click.option("--yes", is_flag=True, help="Don't ask.")
@with_api
def forget(directory: Path | None, as_json: bool, hub_name: str, yes: bool) -> None:
    """Delete HUB (or SITE/HUB) and everything that is stored of it, for ever."""
    api = api_at(directory)
    name = hub_named(api, hub_name)
    api.get(f"/hubs/{name}")  # Whoever mistyped it is told so before being asked.
    confirm(f"Delete {name} with all that was ever stored of it?", yes)
    done = api.call("DELETE", f"/hubs/{name}")
    if as_json:
        say_json(done)
    else:
        click.echo(
            f"{name} is forgotten. If it still runs it will come back as a new hub; if it is provisioned, as never seen."
        )


# --- Groups ----------------------------------------------------------------------------------------------------------


@fleet.group()
def group() -> None:
    """Groups of hubs: settings and tasks can be for a group."""


@group.command("list")
@with_api
def list_groups(directory: Path | None, as_json: bool) -> None:
    """List the groups."""
    found = list(api_at(directory).pages("/groups"))
    if as_json:
        say_json(found)
    else:
        table(("group", "hubs"), [(entry["group"], entry["hubs"]) for entry in found])


@group.command("show")
@click.argument("name", metavar="GROUP")
@with_api
def show_group(directory: Path | None, as_json: bool, name: str) -> None:
    """List the hubs of GROUP."""
    found = list(api_at(directory).pages(f"/groups/{name}"))
    if as_json:
        say_json(found)
    else:
        table(("hub",), [(f"{entry['site']}/{entry['hub']}",) for entry in found])


@group.command("add")
@click.argument("name", metavar="GROUP")
@click.argument("hub_names", metavar="HUB...", nargs=-1, required=True)
@with_api
def add_members(directory: Path | None, as_json: bool, name: str, hub_names: tuple[str, ...]) -> None:
    """Take hubs into GROUP."""
    _members(directory, as_json, "PUT", name, hub_names)


@group.command("remove")
@click.argument("name", metavar="GROUP")
@click.argument("hub_names", metavar="HUB...", nargs=-1, required=True)
@with_api
def remove_members(directory: Path | None, as_json: bool, name: str, hub_names: tuple[str, ...]) -> None:
    """Take hubs out of GROUP."""
    _members(directory, as_json, "DELETE", name, hub_names)


def _members(directory: Path | None, as_json: bool, method: str, group_name: str, hub_names: tuple[str, ...]) -> None:
    api = api_at(directory)
    names = [hub_named(api, hub_name) for hub_name in hub_names]
    for name in names:
        api.call(method, f"/groups/{group_name}/members/{name}")
    if as_json:
        say_json({"group": group_name, "hubs": names})
    else:
        click.echo(f"{'Into' if method == 'PUT' else 'Out of'} {group_name}: {', '.join(names)}")
