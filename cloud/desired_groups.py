"""Groups of hubs, which settings and tasks may name (SQL)."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from sqlalchemy import Connection, delete, func, select

from cloud.fleet_schema import GROUP_MEMBERS
from cloud.statements import insert
from config import limits
from config.errors import SettingsError
from config.settings import Label


def add_to_group(connection: Connection, group: str, hub_nos: Iterable[int]) -> list[int]:
    """Put hubs into a group, and return those that were not in it. Raises SettingsError for a name that can't be."""
    try:
        msgspec.convert(group, Label)
    except msgspec.ValidationError as exc:
        raise SettingsError("must be a name of a-z, 0-9 and inner hyphens", key="group", value=group) from exc
    added = []
    for hub_no in hub_nos:
        mine = groups_of(connection, hub_no)
        if group in mine:
            continue
        if len(mine) >= limits.SETTINGS_GROUPS_MAX:
            problem = f"a hub can be in {limits.SETTINGS_GROUPS_MAX} groups, and one is in {', '.join(mine)} already"
            raise SettingsError(problem, key="group", value=group)
        connection.execute(insert(GROUP_MEMBERS).values(group_name=group, hub_no=hub_no).on_conflict_do_nothing())
        added.append(hub_no)
    return added


def remove_from_group(connection: Connection, group: str, hub_nos: Iterable[int]) -> list[int]:
    """Take hubs out of a group, and return those that were in it. A group without hubs is gone."""
    table = GROUP_MEMBERS.c
    return [
        hub_no
        for hub_no in hub_nos
        if connection.execute(delete(GROUP_MEMBERS).where(table.group_name == group, table.hub_no == hub_no)).rowcount
    ]


def groups(connection: Connection) -> dict[str, int]:
    """Return every group and how many hubs are in it, by name."""
    table = GROUP_MEMBERS.c
    query = select(table.group_name, func.count()).group_by(table.group_name).order_by(table.group_name)
    return {row[0]: row[1] for row in connection.execute(query)}


def members(connection: Connection, group: str) -> list[int]:
    """Return the hubs of a group."""
    table = GROUP_MEMBERS.c
    query = select(table.hub_no).where(table.group_name == group).order_by(table.hub_no)
    return list(connection.scalars(query))


def groups_of(connection: Connection, hub_no: int) -> tuple[str, ...]:
    """Return the groups of a hub, by name."""
    table = GROUP_MEMBERS.c
    query = select(table.group_name).where(table.hub_no == hub_no).order_by(table.group_name)
    return tuple(connection.scalars(query))


def all_groups(connection: Connection) -> dict[int, tuple[str, ...]]:
    """Return the groups of every hub that is in any."""
    found: dict[int, list[str]] = {}
    query = select(GROUP_MEMBERS.c.hub_no, GROUP_MEMBERS.c.group_name).order_by(GROUP_MEMBERS.c.group_name)
    for row in connection.execute(query):
        found.setdefault(row.hub_no, []).append(row.group_name)
    return {hub_no: tuple(names) for hub_no, names in found.items()}
