"""`hubline fleet token`: who may use the API."""

from __future__ import annotations

from pathlib import Path

import click

from broker.clock import unix_ms
from cloud.fleet_output import ago, api_at, clock, say_json, table, with_api


@click.group()
def token() -> None:
    """Tokens for the API: whom they let do what, where, and how long."""


@token.command("list")
@with_api
def list_tokens(directory: Path | None, as_json: bool) -> None:
    """List the tokens; their texts are kept nowhere."""
    found = list(api_at(directory).get("/tokens")["items"])
    if as_json:
        say_json(found)
        return
    rows = []
    for entry in found:
        state = "valid"
        if entry["revoked"] is not None:
            state = "revoked"
        elif entry["expires"] is not None and entry["expires"] <= unix_ms():
            state = "expired"
        ends = "never" if entry["expires"] is None else clock(entry["expires"])
        rows.append((entry["name"], entry["scope"], entry["site"] or "all", state, ends, ago(entry["used"])))
    table(("name", "scope", "site", "state", "ends", "used"), rows)


@token.command()
@click.argument("name")
@click.option("--scope", type=click.Choice(("read", "operate", "admin")), default="read", show_default=True)
@click.option("--site", help="Only for this site's hubs.")
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="How long it holds.")
@with_api
def create(directory: Path | None, as_json: bool, name: str, scope: str, site: str | None, days: int) -> None:
    """Make a token, and show it this once."""
    wanted = {"name": name, "scope": scope, "site": site, "expires_days": days}
    made = api_at(directory).call("POST", "/tokens", body=wanted)
    if as_json:
        say_json(made)
        return
    click.echo(made["token"])
    click.echo(f"Keep it now: it can't be shown again. It ends on {clock(made['expires'])}.", err=True)


@token.command()
@click.argument("name")
@with_api
def revoke(directory: Path | None, as_json: bool, name: str) -> None:
    """End a token from now on."""
    done = api_at(directory).call("DELETE", f"/tokens/{name}")
    if as_json:
        say_json(done)
    else:
        click.echo(f"The token {name} is revoked.")
