"""`hubline fleet settings`: what is desired of the fleet, a site, a group or a hub; compared and confirmed before it changes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cloud.fleet_client import Api
from cloud.fleet_output import (
    api_at,
    clock,
    compact,
    confirm,
    facts,
    hub_named,
    say_json,
    table,
    visible,
    with_api,
)
from config.errors import SettingsError

_where = click.argument("where", metavar="WHERE")


@click.group()
def settings() -> None:
    """Settings that hubs get from the cloud.

    WHERE is fleet, site/SITE, group/GROUP or hub/SITE/HUB; the later in this order wins.
    """


@settings.command()
@_where
@click.option("--version", type=click.IntRange(min=0), help="By default the newest.")
@with_api
def get(directory: Path | None, as_json: bool, where: str, version: int | None) -> None:
    """Print what is desired of WHERE."""
    api = api_at(directory)
    found = api.get(_path(api, where), version=version)
    if as_json:
        say_json(found)
        return
    if found["version"] == 0:
        click.echo(f"Nothing is set for {where}.")
        return
    click.echo(f"# {where}, version {found['version']}, {clock(found['created'])} by {visible(found['created_by'])}")
    for key, value in _flat(found["content"]).items():
        click.echo(f"{visible(key)} = {visible(compact(value))}")


@settings.command("set")
@_where
@click.argument("changes", metavar="FILE | KEY=VALUE...", nargs=-1)
@click.option("--unset", multiple=True, metavar="KEY", help="Say nothing of this key any more.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@with_api
def put(
    directory: Path | None, as_json: bool, where: str, changes: tuple[str, ...], unset: tuple[str, ...], yes: bool
) -> None:
    """Change what is desired of WHERE.

    A FILE (TOML or JSON) replaces all that is set there; KEY=VALUE ("mode.poll_min=30") changes one key. The differences are
    shown, and for more than a hub a person is asked.
    """
    if not changes and not unset:
        raise click.UsageError("say what to set: a file, KEY=VALUE, or --unset KEY")
    api = api_at(directory)
    path = _path(api, where)
    before = api.get(path)
    content = _changed(before["content"], changes, unset)
    body = {"content": content, "expected_version": before["version"]}
    checked = api.call("PUT", path, {"dry_run": "true"}, body)
    if not as_json:
        _show(checked["changes"])
        for warning in checked["warnings"]:
            click.echo(f"warning: {visible(warning)}", err=True)
    if not checked["changes"]:
        if as_json:
            say_json(checked)
        return
    if not where.startswith("hub/"):
        whom = {"fleet": "every hub of the fleet"}.get(where, f"every hub of {where.replace('/', ' ')}")
        confirm(f"Set this for {whom}?", yes)
    kept = api.call("PUT", path, body=body)
    if as_json:
        say_json(kept)
    else:
        click.echo(f"{where} is at version {kept['version']}.")


@settings.command()
@_where
@with_api
def history(directory: Path | None, as_json: bool, where: str) -> None:
    """List the versions of what is desired of WHERE, newest first."""
    api = api_at(directory)
    found = list(api.pages(f"{_path(api, where)}/history"))
    if as_json:
        say_json(found)
    else:
        rows = [(entry["version"], clock(entry["created"]), entry["created_by"]) for entry in found]
        table(("version", "created", "by"), rows)


@settings.command()
@_where
@click.argument("before", type=click.IntRange(min=0))
@click.argument("after", type=click.IntRange(min=0), required=False)
@with_api
def diff(directory: Path | None, as_json: bool, where: str, before: int, after: int | None) -> None:
    """Print what version AFTER (by default the newest) of WHERE sets otherwise than BEFORE."""
    api = api_at(directory)
    found = api.get(f"{_path(api, where)}/diff", before=before, after=after)
    if as_json:
        say_json(found)
    else:
        _show(found)


@settings.command()
@click.argument("hub_name", metavar="HUB")
@with_api
def show(directory: Path | None, as_json: bool, hub_name: str) -> None:
    """Print what is desired of HUB in all, from where each value comes, and what the hub reports."""
    api = api_at(directory)
    name = hub_named(api, hub_name)
    found = api.get(f"/hubs/{name}/settings")
    if as_json:
        say_json(found)
        return
    state = found["state"]
    if state is None:
        facts((("hub", name), ("settings", "nothing was ever desired of it")))
    else:
        facts(
            (
                ("hub", name),
                ("state", state["state"]),
                ("reason", state["reported_reason"]),
                ("desired", f"version {state['desired_version']} ({state['desired_hash']})"),
                ("reported", f"version {state['reported_version']} ({state['reported_hash']})"),
            )
        )
    rows = [(entry["key"], compact(entry["value"]), entry["origin"]) for entry in found["effective"]]
    table(("key", "value", "from"), rows)


# --- Documents -------------------------------------------------------------------------------------------------------


def _path(api: Api, where: str) -> str:
    """Return the path of a document. Raises SettingsError."""
    if where == "fleet":
        return "/settings/fleet/-"
    scope, _, name = where.partition("/")
    if scope == "hub" and name:
        return f"/settings/hub/{hub_named(api, name).replace('/', ':')}"
    if scope in ("site", "group") and name and "/" not in name:
        return f"/settings/{scope}/{name}"
    raise SettingsError("must be fleet, site/SITE, group/GROUP or hub/SITE/HUB", key="WHERE", value=where)


def _changed(content: dict[str, Any], changes: Sequence[str], unset: Sequence[str]) -> dict[str, Any]:
    if len(changes) == 1 and not re.match("[a-z_]+\\.[A-Za-z0-9_.-]+=", changes[0]):
        if unset:
            raise click.UsageError("a file replaces everything: leave --unset out")
        return _read(Path(changes[0]))
    new = {section: dict(keys) for section, keys in content.items()}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise SettingsError(f'{change!r} is not KEY=VALUE, like "mode.poll_min=30"')
        section, name = _split(key)
        new.setdefault(section, {})[name] = _value(value)
    for key in unset:
        section, name = _split(key)
        if name not in new.get(section, {}):
            raise SettingsError("is not set there", key=key)
        del new[section][name]
        if not new[section]:
            del new[section]
    return new


def _split(key: str) -> tuple[str, str]:
    section, dot, name = key.partition(".")
    if not dot or not section or not name:
        raise SettingsError('is not SECTION.KEY, like "mode.poll_min"', key=key)
    return section, name


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read(file: Path) -> dict[str, Any]:
    import tomllib

    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except OSError as exc:
        raise SettingsError(f"can't be read: {exc.strerror}", file=file) from exc
    except ValueError as exc:
        form = "JSON" if file.suffix == ".json" else "TOML"
        raise SettingsError(f"is not {form}: {exc}", file=file) from exc
    if not isinstance(content, dict) or not all(isinstance(keys, dict) for keys in content.values()):
        raise SettingsError("must consist of sections with keys, like a hub.toml", file=file)
    return content


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    return {f"{section}.{name}": value for section, keys in content.items() for name, value in sorted(keys.items())}


def _show(changes: Sequence[dict[str, Any]]) -> None:
    if not changes:
        click.echo("Nothing changes.")
    for entry in changes:
        key = visible(entry["key"])
        if entry["before"] is not None:
            click.echo(f"- {key} = {visible(compact(entry['before']))}")
        if entry["after"] is not None:
            click.echo(f"+ {key} = {visible(compact(entry['after']))}")
