"""Which state of a hub or connector holds, and that the database keeps it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.messages import ConnectorState, HubState
from cloud.batch import Batch, ConnectorStateSeen, HubStateSeen
from cloud.states import connector_state_holds, hub_state_holds
from cloud.store import Store
from tests.cloud.stored import query
from tests.cloud.wire import EPOCH, FLEET, OTHER_EPOCH, SITE, T0


@pytest.mark.parametrize(
    ("known", "epoch", "session", "online", "holds"),
    [
        (None, EPOCH, 1, False, True),
        ((EPOCH, 16, True), EPOCH, 17, True, True),
        ((EPOCH, 17, True), EPOCH, 16, False, False),
        ((EPOCH, 17, True), EPOCH, 16, True, False),
        ((EPOCH, 17, True), EPOCH, 17, False, True),
        ((EPOCH, 17, True), EPOCH, 17, True, True),
        ((EPOCH, 17, False), EPOCH, 17, True, False),
        ((EPOCH, 17, False), EPOCH, 17, False, True),
        ((EPOCH, 17, False), EPOCH, 18, True, True),
        ((OTHER_EPOCH, 17, True), EPOCH, 1, True, True),
        ((OTHER_EPOCH, 17, False), EPOCH, 1, True, True),
        ((OTHER_EPOCH, 17, True), EPOCH, 99, False, False),
    ],
)
def test_hub_state_holds_by_epoch_and_session(
    known: tuple[str, int, bool] | None, epoch: str, session: int, online: bool, holds: bool
) -> None:
    """A will of session 16 that arrives after the birth of session 17 changes nothing."""
    assert hub_state_holds(known, HubState(online=online, epoch=epoch, session=session)) is holds


@pytest.mark.parametrize(
    ("known", "session", "online", "ts", "holds"),
    [
        (None, 1, False, None, True),
        ((5, True, T0), 6, True, T0 - 1, True),
        ((5, True, T0), 4, False, None, False),
        ((5, True, T0), 5, False, None, True),
        ((5, False, T0), 5, True, None, False),
        ((5, True, T0), 5, True, T0, True),
        ((5, True, T0), 1, True, T0 + 1, True),
        ((5, True, T0), 1, True, T0 - 1, False),
        ((5, True, T0), 1, False, T0 + 1, False),
        ((5, True, None), 1, True, T0, False),
    ],
)
def test_connector_state_holds_by_session_and_a_later_birth_always(
    known: tuple[int, bool, int | None] | None, session: int, online: bool, ts: int | None, holds: bool
) -> None:
    """A connector whose disk was replaced counts from one again; it is not to be ignored for that."""
    assert connector_state_holds(known, ConnectorState(online=online, session=session, ts=ts)) is holds


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "cloud.db", FLEET)
    yield made
    made.close()


def test_hub_is_known_by_its_newest_state_in_whatever_order_they_come(store: Store, tmp_path: Path) -> None:
    """Two paths carry births and wills, each at its own speed."""
    states = [
        HubState(online=True, epoch=EPOCH, session=1, via="berlin-1", version="1.0", mode="continuous", ts=T0),
        HubState(online=False, epoch=EPOCH, session=1),
        HubState(online=True, epoch=EPOCH, session=2, via="direct", version="1.1", mode="continuous", ts=T0 + 9),
    ]
    for number, order in enumerate(itertools.permutations(states)):
        seen = tuple(HubStateSeen(SITE, f"pc-{number}", state, T0 + 50) for state in order)
        store.commit(Batch(hub_states=seen))
    columns = "online, epoch, session, via, mode, version, reason, state_ts, last_seen_ms"
    rows = query(tmp_path / "cloud.db", f"SELECT DISTINCT {columns} FROM hubs")
    assert rows == [(1, EPOCH, 2, "direct", "continuous", "1.1", None, T0 + 9, T0 + 50)]


def test_end_of_a_hub_keeps_what_its_birth_said(store: Store, tmp_path: Path) -> None:
    """Where it was and what ran there is what one wants to know of a hub that is gone."""
    born = HubState(online=True, epoch=EPOCH, session=1, via="berlin-1", version="1.0", ts=T0)
    died = HubState(online=False, epoch=EPOCH, session=1, reason="stopped")
    store.commit(Batch(hub_states=(HubStateSeen(SITE, "pc-1", born, T0),)))
    store.commit(Batch(hub_states=(HubStateSeen(SITE, "pc-1", died, T0 + 7),)))
    columns = "online, via, version, reason, last_seen_ms"
    assert query(tmp_path / "cloud.db", f"SELECT {columns} FROM hubs") == [(0, "berlin-1", "1.0", "stopped", T0 + 7)]


def test_connector_is_known_by_its_newest_state(store: Store, tmp_path: Path) -> None:
    """Its will of an older session must not take a running site off the map."""
    states = (
        ConnectorState(online=True, session=5, upstream="up", since=T0, ts=T0),
        ConnectorState(online=False, session=4),
    )
    store.commit(Batch(connector_states=tuple(ConnectorStateSeen(SITE, "c-1", state, T0 + 3) for state in states)))
    columns = "site, connector, online, session, upstream, since_ts, last_seen_ms"
    assert query(tmp_path / "cloud.db", f"SELECT {columns} FROM connectors") == [(SITE, "c-1", 1, 5, "up", T0, T0 + 3)]
