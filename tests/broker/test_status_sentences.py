"""What similar systems print in tables, held against the rules: each test names the sentence that it proves."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest

from broker.control import Connection, Protection
from broker.status import ICONS, assess
from broker.status_table import protections

CONNECTIONS: tuple[Connection, ...] = get_args(Connection)
UNREACHABLE: tuple[Connection, ...] = ("unreachable-online", "unreachable-offline")


def protection(
    scan: str = "conventional", pattern: str = "current", realtime: str = "enabled", reputation: str = "reachable"
) -> Protection:
    """Return a protection that is good but for what is said."""
    return Protection(scan, pattern, realtime, reputation)  # type: ignore[arg-type]


def required(connection: Connection, lacking: Protection | None, reason: str = "") -> list[tuple[str, str]]:
    """Return who must do what, in order."""
    return [(action.who, action.id) for action in assess(connection, lacking, reason=reason).actions]


# --- Status vector ----------------------------------------------------------------------------------------------------


def test_status_vector_is_connection_by_scan_by_pattern_by_realtime_by_reputation() -> None:
    """ "Connection {online, offline, roaming, unreachable} × scan method {conventional, smart} × pattern {up to date, not updated
    for a while} × real-time scan {enabled, disabled, service stopped} × reputation service {reachable, unreachable}."
    """
    assert {name.split("-")[0] for name in CONNECTIONS} - {"path"} == {"online", "offline", "roaming", "unreachable"}
    cells = {(connection, str(each)) for connection in CONNECTIONS for each in protections()}
    assert len(cells) == 6 * 2 * 2 * 3 * 2


@pytest.mark.parametrize("connection", CONNECTIONS)
def test_printed_table_has_no_row_for_pattern_fresh_and_reputation_unreachable(connection: Connection) -> None:
    """ "The suite's printed table has no row for 'pattern fresh, reputation unreachable'." Here it has, for every scan."""
    for scan, realtime in itertools.product(("conventional", "smart"), ("enabled", "disabled", "stopped")):
        reachable = assess(connection, protection(scan, "current", realtime))
        unreachable = assess(connection, protection(scan, "current", realtime, "unreachable"))
        assert unreachable.text != reachable.text
        assert len(unreachable.actions) > len(reachable.actions)


def test_printed_table_has_no_icon_for_unreachable() -> None:
    """ "And no icon for 'unreachable'." Here there are six, two of them for a machine that lacks nothing."""
    found = {assess(connection, each).icon for connection in UNREACHABLE for each in (None, *protections())}
    assert len(found) == 6
    assert found <= set(ICONS)
    assert not found & {
        assess(other, each).icon for other in ("online", "offline", "roaming") for each in protections()
    }


def test_no_cell_can_be_missing() -> None:
    """ "Derive icon, sentence and actions by rule from the vector: no cell can be missing.\""""
    for connection, each in itertools.product(CONNECTIONS, (None, *protections())):
        told = assess(connection, each)
        assert told.icon in ICONS
        assert told.text


def test_unreachable_is_shown_as_unreachable_online_and_unreachable_offline() -> None:
    """ "Shown as Unreachable/Online and Unreachable/Offline.\""""
    assert assess("unreachable-online", None).text.startswith("Unreachable/Online: ")
    assert assess("unreachable-offline", None).text.startswith("Unreachable/Offline: ")


def test_roaming_sends_no_logs_and_takes_no_tasks_and_settings() -> None:
    """ "A roaming client sends no logs, and the server starts no tasks and deploys no settings": its sentence says so."""
    text = assess("roaming", protection()).text
    assert all(word in text for word in ("no logs", "no tasks", "settings"))


def test_hub_behind_a_dead_connector_is_path_down_last_seen_and_not_offline() -> None:
    """ "Hubs behind a dead connector are 'path down, last seen …', not 'offline'.\""""
    told = assess("path-down", None, reason="path down", last_seen_ms=1_763_798_400_000)
    assert told.text.startswith("Path down: ")
    assert "last seen 2025-11-22 08:00 UTC" in told.text
    assert "offline" not in (told.icon + told.text).lower()


@pytest.mark.parametrize("reason", ["stopped cleanly", "lost contact", "rejected: clock", "rejected: certificate",
                                    "rejected: duplicate identity", "paused"])  # fmt: skip
def test_one_status_with_its_reason_and_never_two_that_contradict_each_other(reason: str) -> None:
    """ "One status with its reason (stopped, lost contact, path down, rejected: clock, certificate, duplicate identity; roaming;
    paused). Never two that contradict each other."
    """
    told = {assess("offline", None, reason=reason).text for reason in ("stopped cleanly", "lost contact", "paused")}
    assert len(told) == 3
    text = assess("offline", None, reason=reason).text
    assert "Online" not in text
    assert text.count(":") == 1
    assert assess("online", None, reason=reason).text.startswith("Online")


# --- Required actions -------------------------------------------------------------------------------------------------

SEES_PROTECTION: tuple[Connection, ...] = ("online", "roaming", "unreachable-online")


@pytest.mark.parametrize("connection", SEES_PROTECTION)
@pytest.mark.parametrize("scan", ["conventional", "smart"])
def test_pattern_not_updated_for_a_while(connection: Connection, scan: str) -> None:
    """ "User: update now. Admin: configure component updates or grant the update privilege.\""""
    assert required(connection, protection(scan, pattern="old")) == [
        ("user", "update-now"),
        ("admin", "configure-updates"),
    ]
    text = assess(connection, protection(scan, pattern="old")).actions[1].text
    assert "Configure component updates" in text
    assert "update privilege" in text


@pytest.mark.parametrize("connection", SEES_PROTECTION)
def test_realtime_scan_service_stopped_and_manual_and_scheduled_scan_are_gone_too(connection: Connection) -> None:
    """ "Real-time scan service stopped (manual and scheduled scan are gone too): user or admin: start the service.\""""
    stopped = protection(realtime="stopped")
    assert required(connection, stopped) == [("user or admin", "start-realtime-service")]
    assert "no real-time, manual or scheduled scan" in assess(connection, stopped).text


def test_realtime_scan_disabled() -> None:
    """ "Real-time scan disabled: admin: enable it from the console.\""""
    for connection in ("online", "unreachable-online"):
        assert required(connection, protection(realtime="disabled")) == [("admin", "enable-realtime")]
    assert "from the console" in assess("online", protection(realtime="disabled")).actions[0].text


def test_realtime_scan_disabled_and_roaming() -> None:
    """ "User: leave roaming first; then admin enables it: order matters.\""""
    disabled = protection(realtime="disabled")
    assert required("roaming", disabled) == [("user", "leave-roaming"), ("admin", "enable-realtime")]
    assert required("online", disabled) == [("admin", "enable-realtime")], "after the first step, the second is left"
    assert required("roaming", protection()) == [], "roaming alone is nothing to be ended"
    for realtime in ("enabled", "stopped"):
        assert ("user", "leave-roaming") not in required("roaming", protection(realtime=realtime))


@pytest.mark.parametrize("connection", SEES_PROTECTION)
def test_smart_client_disconnected_from_every_smart_protection_server(connection: Connection) -> None:
    """ "Check location (inside: local server; outside: global server), then internal and external proxy settings.\""""
    cut_off = protection("smart", reputation="unreachable")
    assert [action for _, action in required(connection, cut_off)] == ["check-location", "check-proxies"]
    location, proxies = (action.text for action in assess(connection, cut_off).actions)
    assert location.index("inside") < location.index("local") < location.index("outside") < location.index("global")
    assert proxies.index("internal") < proxies.index("external")


@pytest.mark.parametrize("connection", SEES_PROTECTION)
def test_web_reputation_server_unreachable(connection: Connection) -> None:
    """ "Check server, name resolution, proxy.\""""
    cut_off = protection(reputation="unreachable")
    assert [action for _, action in required(connection, cut_off)] == ["check-web-reputation"]
    text = assess(connection, cut_off).actions[0].text
    assert text.index("server") < text.index("name resolution") < text.index("proxy")


@pytest.mark.parametrize("reason", ["lost contact", "heartbeat missed", ""])
def test_offline_inside_the_company_network(reason: str) -> None:
    """ "Verify the connection to connector and cloud.\""""
    assert [action for _, action in required("offline", None, reason)] == ["check-connection"]
    text = assess("offline", None, reason=reason).actions[0].text
    assert all(word in text for word in ("company network", "connector", "cloud"))


def test_everything_at_once_comes_in_an_order_in_which_it_can_be_done() -> None:
    """Contact, then the missing protection, then the weakened one: each step makes the next one possible."""
    worst = protection("smart", "old", "disabled", "unreachable")
    assert required("roaming", worst, "rejected: clock") == [
        ("user or admin", "set-clock"),
        ("user", "leave-roaming"),
        ("admin", "enable-realtime"),
        ("user or admin", "check-location"),
        ("admin", "check-proxies"),
        ("user", "update-now"),
        ("admin", "configure-updates"),
    ]
