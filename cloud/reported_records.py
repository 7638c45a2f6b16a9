"""What hubs last reported of themselves, read back (SQL)."""

from __future__ import annotations

import msgspec
from msgspec import Struct
from sqlalchemy import Connection, select

from broker.control import Protection
from cloud.fleet_schema import REPORTED
from cloud.schema import HUBS


class _Body(Struct, frozen=True):
    protection: Protection | None = None


def protections(connection: Connection) -> dict[tuple[str, str], Protection]:
    """Return the endpoint protection of every hub, by (site, hub id), that has reported one."""
    query = select(HUBS.c.site, HUBS.c.hub, REPORTED.c.body).join(REPORTED, REPORTED.c.hub_no == HUBS.c.hub_no)
    found = {(row.site, row.hub): msgspec.json.decode(row.body, type=_Body) for row in connection.execute(query)}
    return {key: body.protection for key, body in found.items() if body.protection is not None}
