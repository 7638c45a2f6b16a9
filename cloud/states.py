"""Which of two states of a hub or a connector holds (pure), and the rows that keep the newest of each (SQL)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sqlalchemy import Connection, bindparam, select, update

from broker.messages import ConnectorState, HubState
from cloud.batch import ConnectorStateSeen, HubStateSeen
from cloud.schema import CONNECTORS, HUBS
from cloud.statements import Prepared, insert


def hub_state_holds(known: tuple[str, int, bool] | None, state: HubState) -> bool:
    """Tell whether a hub's state replaces the known (epoch, session, online).

    Within an epoch a later session wins, and of one session its end. Another epoch is another outbox, which counts its
    sessions anew: its birth wins, its end is that of a life we have already left.
    """
    if known is None:
        return True
    epoch, session, online = known
    if state.epoch != epoch:
        return state.online
    return (state.session, not state.online) >= (session, not online)


def connector_state_holds(known: tuple[int, bool, int | None] | None, state: ConnectorState) -> bool:
    """Tell whether a connector's state replaces the known (session, online, ts).

    A birth that is later by its own clock wins even with a smaller session: then the connector has lost its counter.
    """
    if known is None:
        return True
    session, online, ts = known
    if state.online and state.ts is not None and ts is not None and state.ts > ts:
        return True
    return (state.session, not state.online) >= (session, not online)


_ADD_HUB: Final = Prepared(
    insert(HUBS).values(site=bindparam("site"), hub=bindparam("hub")).on_conflict_do_nothing(), "site", "hub"
)
_HUB: Final = Prepared(
    select(HUBS.c.hub_no, HUBS.c.epoch, HUBS.c.session, HUBS.c.online).where(
        HUBS.c.site == bindparam("site"), HUBS.c.hub == bindparam("hub")
    ),
    *("site", "hub"),
)
_HUB_SAYS: Final = ("online", "epoch", "session", "via", "mode", "version", "reason", "state_ts", "last_seen_ms")
_SET_HUB: Final = Prepared(
    update(HUBS).where(HUBS.c.hub_no == bindparam("no")).values({HUBS.c[name]: bindparam(name) for name in _HUB_SAYS}),
    *_HUB_SAYS,
    "no",
)
_SET_HUB_ENDED: Final = Prepared(
    update(HUBS)
    .where(HUBS.c.hub_no == bindparam("no"))
    .values(
        online=0,
        epoch=bindparam("epoch"),
        session=bindparam("session"),
        reason=bindparam("reason"),
        last_seen_ms=bindparam("last_seen_ms"),
    ),
    *("online", "epoch", "session", "reason", "last_seen_ms", "no"),
)
_CONNECTOR: Final = Prepared(
    select(CONNECTORS.c.session, CONNECTORS.c.online, CONNECTORS.c.state_ts).where(
        CONNECTORS.c.site == bindparam("site"), CONNECTORS.c.connector == bindparam("connector")
    ),
    *("site", "connector"),
)
_CONNECTOR_SAYS: Final = ("online", "session", "upstream", "since_ts", "reason", "state_ts", "last_seen_ms")


def _set_connector() -> Prepared:
    names = ("site", "connector", *_CONNECTOR_SAYS)
    statement = insert(CONNECTORS).values({name: bindparam(name) for name in names})
    return Prepared(
        statement.on_conflict_do_update(
            index_elements=["site", "connector"], set_={name: statement.excluded[name] for name in _CONNECTOR_SAYS}
        ),
        *names,
    )


_SET_CONNECTOR: Final = _set_connector()


def add_hub(connection: Connection, site: str, hub_id: str) -> int:
    """Return the number of a hub, which is made known if it isn't yet."""
    found = _HUB.rows(connection, site, hub_id)
    if not found:
        _ADD_HUB.run(connection, site, hub_id)
        found = _HUB.rows(connection, site, hub_id)
    return int(found[0][0])


def write_hub_states(connection: Connection, states: Iterable[HubStateSeen]) -> None:
    """Keep each hub's newest state. An end says less than a birth: what the birth said of path and version is kept."""
    for seen in states:
        hub_no = add_hub(connection, seen.site, seen.hub_id)
        [(_, epoch, session, online)] = _HUB.rows(connection, seen.site, seen.hub_id)
        known = None if epoch is None else (epoch, session, bool(online))
        state = seen.state
        if not hub_state_holds(known, state):
            continue
        if state.online:
            said = (state.via, state.mode, state.version, state.reason, state.ts)
            _SET_HUB.run(connection, 1, state.epoch, state.session, *said, seen.received_ms, hub_no)
        else:
            _SET_HUB_ENDED.run(connection, 0, state.epoch, state.session, state.reason, seen.received_ms, hub_no)


def write_connector_states(connection: Connection, states: Iterable[ConnectorStateSeen]) -> None:
    """Keep each connector's newest state."""
    for seen in states:
        found = _CONNECTOR.rows(connection, seen.site, seen.connector_id)
        known = (found[0][0], bool(found[0][1]), found[0][2]) if found else None
        state = seen.state
        if connector_state_holds(known, state):
            said = (state.session, state.upstream, state.since, state.reason, state.ts, seen.received_ms)
            _SET_CONNECTOR.run(connection, seen.site, seen.connector_id, int(state.online), *said)
