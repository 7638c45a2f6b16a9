"""`hubline fleet watch` and `hubline fleet logs`: what happens, as it happens, through restarts of the cloud service."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from random import SystemRandom
from typing import Any, Final

import click

from broker.clock import unix_ms
from cloud.fleet_client import Api
from cloud.fleet_output import (
    api_at,
    clock,
    compact,
    hub_named,
    instant,
    is_terminal,
    say_json,
    say_line,
    visible,
    with_api,
)
from config import limits
from config.errors import TransportError

_COLOURS: Final = {"online": "green", "offline": "red", "path-down": "yellow", "roaming": "cyan"}


@click.command()
@click.option("--site", help="Only this site.")
@click.option("--tasks", is_flag=True, help="Tasks and settings too.")
@with_api
def watch(directory: Path | None, as_json: bool, site: str | None, tasks: bool) -> None:
    """Print a line for every change of a hub's status as it happens, until interrupted.

    What has changed while the API could not be reached is printed when it is back.
    """
    api, wait = api_at(directory), _Patience()
    seen = _Seen(site, as_json)
    kinds = ["presence", "forgotten", *(["task", "settings"] if tasks else [])]
    first = True
    while True:
        try:
            for name, event in api.stream("/events", kind=kinds):
                if name in ("hello", "reload"):  # From here on nothing is missed; what was before, is read.
                    seen.read(Api(api.place), silent=first)
                    first = False
                    wait.over(f"watching {api.place.url}")
                elif name == "presence":
                    seen.take(event["key"], event["body"], event["at"])
                elif name == "forgotten":
                    seen.forget(event["key"], event["at"])
                else:
                    seen.tell(name, event)
            reason = "the stream has ended"
        except TransportError as exc:
            if first:
                raise
            reason = exc.reason
        wait.pause(reason)


class _Seen:
    """What was last printed of each hub, so that nothing is printed twice and nothing is left out."""

    def __init__(self, site: str | None, as_json: bool):
        self._site: Final = site
        self._as_json: Final = as_json
        self._known: Final[dict[str, tuple[object, ...]]] = {}

    def read(self, api: Api, *, silent: bool) -> None:
        """Compare with what is true now, and print the differences."""
        for entry in api.pages("/hubs", site=self._site, hidden="all"):
            if entry["presence"] is not None:
                self.take(f"{entry['site']}/{entry['hub']}", entry["presence"], unix_ms(), silent=silent)
        api.close()

    def take(self, name: str, presence: dict[str, Any], at: int, *, silent: bool = False) -> None:
        """Print a status if it is news."""
        if self._site is not None and name.partition("/")[0] != self._site:
            return
        status = tuple(presence.get(key) for key in ("connection", "reason", "via", "text"))
        if self._known.get(name) == status:
            return
        self._known[name] = status
        if silent:
            return
        if self._as_json:
            say_line({"at": at, "hub": name, **presence})
            return
        connection = str(presence.get("connection"))
        shown = connection.ljust(19)
        colour = _COLOURS.get(connection.removeprefix("unreachable-")) if is_terminal() else None
        reason, text = visible(str(presence.get("reason"))), visible(str(presence.get("text") or ""))
        click.echo(f"{clock(at)}  {name}  {click.style(shown, fg=colour) if colour else shown}  {reason}: {text}")
        sys.stdout.flush()

    def forget(self, name: str, at: int) -> None:
        """Print that a hub is no longer known."""
        if self._known.pop(name, None) is None:
            return
        if self._as_json:
            say_line({"at": at, "hub": name, "connection": None, "reason": "forgotten"})
        else:
            click.echo(f"{clock(at)}  {name}  {'-'.ljust(19)}  forgotten")
            sys.stdout.flush()

    def tell(self, kind: str, event: dict[str, Any]) -> None:
        """Print a change of a task or of settings."""
        if self._as_json:
            say_line({"at": event["at"], "kind": kind, "key": event["key"], **event["body"]})
        else:
            click.echo(f"{clock(event['at'])}  {kind} {visible(event['key'])}  {visible(compact(event['body']))}")
            sys.stdout.flush()


class _Patience:
    """Waits between calls, longer each time, at random; tells a person once that it does."""

    def __init__(self) -> None:
        self._random: Final = SystemRandom()
        self._failures = 0

    def pause(self, reason: str) -> None:
        """Wait before the next call."""
        if self._failures == 0:
            click.echo(f"{reason}; trying again", err=True)
        self._failures += 1
        threading.Event().wait(self._random.uniform(0.1, min(limits.FLEET_RECONNECT_MAX_S, 0.5 * 2**self._failures)))

    def over(self, text: str) -> None:
        """Begin anew: a call has worked."""
        click.echo(text, err=True)
        self._failures = 0


# --- Logs ------------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("hub_name", metavar="HUB")
@click.option("--since", help='ISO 8601 ("2026-11-22T08:00"), a while ago ("2h", "30m", "7d"), or Unix milliseconds.')
@click.option("--level", type=click.Choice(("debug", "info", "warning", "error")), help="This level and above.")
@click.option("--grep", metavar="TEXT", help="Only lines with TEXT in event or fields.")
@click.option("--lines", type=click.IntRange(1, 100_000), default=100, show_default=True, help="At most so many.")
@click.option("--follow", is_flag=True, help="Go on with lines as they arrive, until interrupted.")
@with_api
def logs(
    directory: Path | None,
    as_json: bool,
    hub_name: str,
    since: str | None,
    level: str | None,
    grep: str | None,
    lines: int,
    follow: bool,
) -> None:
    """Print the log of HUB (or SITE/HUB), oldest line first."""
    since_ms = instant(since) if since else None
    api = api_at(directory)
    site, _, hub_id = hub_named(api, hub_name).partition("/")
    wanted = {"site": site, "hub": hub_id, "level": level, "text": grep}
    found: list[dict[str, Any]] = []
    # Taken before the first reading: what arrives during it is printed once, by the following.
    after = api.get("/logs/newest", site=site, hub=hub_id)["no"]
    for entry in api.pages("/logs", **wanted, since=since_ms):
        if not follow or entry["no"] <= after:
            found.append(entry)
        if len(found) == lines:
            break
    found.reverse()
    if as_json and not follow:
        say_json(found)
        return
    for entry in found:
        _print(entry, as_json)
    wait = _Patience()
    while follow:
        try:
            for entry in api.pages("/logs", **wanted, after=after):
                _print(entry, as_json)
                after = entry["no"]
            threading.Event().wait(limits.FLEET_POLL_S)
        except TransportError as exc:
            wait.pause(exc.reason)


def _print(entry: dict[str, Any], as_json: bool) -> None:
    if as_json:
        say_line(entry)
        return
    fields = "  ".join(f"{name}={compact(value)}" for name, value in entry["fields"].items())
    click.echo(f"{clock(entry['ts'])}  {entry['level']:<7}  {visible(entry['event'])}  {visible(fields)}".rstrip())
    sys.stdout.flush()
