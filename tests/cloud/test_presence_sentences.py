"""The sentences of the mission, section 2, that are about what the cloud shows of a hub: each has a test that names it."""

from __future__ import annotations

from typing import Literal

import pytest

from cloud.presence_events import ModeChanged
from cloud.presence_facts import Policy
from config.settings import CloudPresence
from tests.cloud.presence_play import DAY, HOUR, KEY, MINUTE, Play, settings

ON = ("unreachable-online", "connected")
ON_STARTED = ("unreachable-online", "started")
MISSED = ("unreachable-offline", "heartbeat missed")


def polling(**policy: int) -> Play:
    """Return a fleet with a hub that was registered in polling mode."""
    play = Play().born(1, mode="polling", reason="started").run(1)
    play.feed(ModeChanged(KEY, Policy(**{"offline_after_min": 60, **policy})))
    return play.leaves(1, "polling")


def test_online_is_a_continuous_connection() -> None:
    """ "Online: continuous connection; the server can start tasks and deploy settings." """
    play = Play().connector(1).born(1).run(30 * DAY)
    assert play.status().connection == "online"


def test_offline_is_disconnected() -> None:
    """ "Offline: disconnected; the server cannot manage the client." """
    play = Play().connector(1).born(1).run(HOUR).dies(1)
    assert play.status().connection == "offline"


def test_roaming_is_entered_by_the_user() -> None:
    """ "Roaming: entered by the user where the privilege allows it (a presentation, say)." """
    play = Play().connector(1).born(1).run(60)
    play.born(1, mode="roaming")
    assert play.shown() == ("roaming", "connected")
    play.run(60).dies(1)
    assert play.shown() == ("roaming", "lost contact")
    play.run(60).born(2, mode="roaming")
    assert play.run(60).born(2, mode="continuous").shown() == ("online", "connected")


@pytest.mark.parametrize("end", ["will", "stopped", "path"])
def test_roaming_is_given_to_clients_that_lose_the_connection_for_long(end: str) -> None:
    """ "Roaming: … or given to clients that lose the connection for long." """
    play = Play(settings(roaming_after_days=7)).connector(1).born(1).run(HOUR).message()
    match end:
        case "will":
            play.dies(1)
        case "stopped":
            play.leaves(1)
        case "path":
            play.connector(1, online=False)
    assert play.run(7 * DAY - 1).status().connection == "offline"
    assert play.run(1).status().connection == "roaming"
    assert play.restarted(away_s=60).status().connection == "roaming"
    assert play.born(2).run(15).shown() == (("path-down", "path down") if end == "path" else ("online", "connected"))
    assert play.born(3, via="direct").shown() == ("online", "connected")


def test_roaming_is_given_to_nobody_unless_it_is_set() -> None:
    """By default an absent hub is offline for ever."""
    assert Play().connector(1).born(1).dies(1).run(400 * DAY).status().connection == "offline"


@pytest.mark.parametrize("word", ["heartbeat", "poll"])
def test_unreachable_client_is_treated_as_online_on_its_heartbeat_or_poll(word: Literal["heartbeat", "poll"]) -> None:
    """ "The server turns passive …; it waits for the client's heartbeat or poll, and on either treats it as online." """
    play = polling().run(2 * HOUR)
    assert play.shown() == MISSED
    play.born(2, mode="polling")
    assert play.shown() == MISSED
    play.heartbeat(2) if word == "heartbeat" else play.poll(2)
    assert play.shown() == ON


def test_unreachable_client_is_shown_as_online_or_offline() -> None:
    """ "Shown as Unreachable/Online and Unreachable/Offline." """
    play = polling()
    assert play.shown() == ON_STARTED
    assert play.run(2 * HOUR).shown() == MISSED


@pytest.mark.parametrize("word", ["registration", "reload", "heartbeat", "poll"])
def test_only_these_count_for_an_unreachable_client(word: str) -> None:
    """ "Only registration, restart/reload, heartbeat and poll count." """
    play = Play() if word == "registration" else polling().run(2 * HOUR)
    match word:
        case "registration" | "reload":
            play.born(2, mode="polling", reason="started")
        case "heartbeat":
            play.heartbeat(2)
        case "poll":
            play.poll(2)
    assert play.shown() == (ON if word in ("heartbeat", "poll") else ON_STARTED)
    assert play.run(60 * MINUTE - 1).status().connection == "unreachable-online"
    assert play.run(1).shown() == MISSED


@pytest.mark.parametrize("offline", [True, False])
def test_other_events_must_not_change_the_status_of_an_unreachable_client(offline: bool) -> None:
    """ "Other client-initiated events (manual update, sending logs) must not change the status." """
    play = polling()
    if offline:
        play.run(2 * HOUR)
    before, log, published = play.shown(), list(play.log), play.publishes
    for session in range(2, 30):
        play.born(session, mode="polling").message().message(delay_s=5)
        play.dies(session) if session % 2 else play.leaves(session, "polling")
        play.run(60)
    assert (play.shown(), play.log, play.publishes) == (before, log, published)
    assert play.status().last_seen_ms is not None
    assert play.status().last_seen_ms >= play.ms(play.now - 61)
    assert play.run(HOUR).shown() == MISSED  # Nor do they prolong it.


def test_clean_stop_of_an_unreachable_client_is_shown() -> None:
    """ "The client tells the server on unload, uninstall, service stop and move." """
    play = polling().run(60).born(2, mode="polling").poll(2).leaves(2)
    assert play.shown() == ("unreachable-offline", "stopped cleanly")
    play.run(1).heartbeat(2, delay_s=3)
    assert play.shown() == ("unreachable-offline", "stopped cleanly")  # It was under way.
    play.run(60).born(3, mode="polling")
    assert play.shown() == ("unreachable-offline", "stopped cleanly")
    assert play.heartbeat(3).shown() == ON


def test_cable_pull_is_told_from_a_service_stop() -> None:
    """ "… it does not on cable pull, kill or reformat (in MQTT terms: clean DISCONNECT against last will)." """
    play = Play().born(1).born(1, hub_id="pc-2").run(60).dies(1).leaves(1, hub_id="pc-2")
    assert play.status().reason != play.status("pc-2").reason


@pytest.mark.parametrize("minutes", [1, 60, 129_600])
def test_offline_if_no_heartbeat_for_n_minutes(minutes: int) -> None:
    """ "Offline if no heartbeat for N min. Each number 1..129600." """
    play = polling(offline_after_min=minutes).run(5).heartbeat(1)
    assert play.run(minutes * MINUTE - 1).shown() == ON
    assert play.run(1).shown() == MISSED


def test_heartbeats_count_for_all_clients_or_only_unreachable_ones() -> None:
    """ "Heartbeat on/off, for all clients or only unreachable ones." """
    for heartbeat in ("off", "unreachable", "all"):
        play = Play().connector(1).born(1)
        play.feed(ModeChanged(KEY, Policy(heartbeat=heartbeat, offline_after_min=60)))  # type: ignore[arg-type]
        play.run(HOUR + 1)
        assert play.status().connection == ("offline" if heartbeat == "all" else "online")


def test_polls_are_enough_where_heartbeats_are_off() -> None:
    """ "Poll every N min; heartbeat on/off": a hub that only polls is not missed for want of heartbeats."""
    play = polling()
    play.feed(ModeChanged(KEY, Policy(heartbeat="off", offline_after_min=60)))
    for session in range(2, 10):
        play.run(30 * MINUTE).poll(session)
    assert play.shown() == ON


def test_hub_that_begins_to_poll_or_ends_it_is_reloaded() -> None:
    """A hub whose network becomes unreachable is there at that moment, and expected again from then on."""
    play = Play().connector(1).born(1).run(HOUR).born(2, mode="polling")
    assert play.shown() == ON_STARTED
    assert play.run(HOUR).shown() == MISSED
    assert play.born(3, mode="continuous").shown() == ("online", "connected")
    assert play.dies(3).shown() == ("offline", "lost contact")


def test_connectors_fall_does_not_change_an_unreachable_client() -> None:
    """It is not connected, most of the time; only its own signs of life count."""
    play = Play().connector(1).born(1, mode="polling", reason="started").run(60).connector(1, online=False)
    assert play.shown() == ON_STARTED


def test_our_own_outage_makes_no_unreachable_client_offline() -> None:
    """Its heartbeat came while nobody listened."""
    play = polling().run(50 * MINUTE).outage(20 * MINUTE)
    assert play.shown() == ON_STARTED
    assert play.run(100).heartbeat(9).run(HOUR - 1).shown() == ON
    play = polling().run(50 * MINUTE).outage(20 * MINUTE).run(301)
    assert play.shown() == MISSED


def test_inactive_clients_are_hidden_and_nothing_is_destroyed() -> None:
    """ "Inactive clients are hidden after a time that depends on their class; nothing is destroyed." """
    play = polling().run(10 * DAY)
    assert play.saved[KEY].hidden_ms is not None
    assert play.machine.record(KEY) == play.saved[KEY]
    assert play.poll(9).shown() == ON
    assert play.saved[KEY].hidden_ms is None


def test_client_that_moves_tells_the_server_and_is_lost_for_no_moment() -> None:
    """ "The client tells the server on … move": the session on the new path begins before the old one ends."""
    play = Play().connector(1).born(1).run(HOUR)
    assert play.status().via == "c-1"
    play.born(2, via="direct")
    assert (play.shown(), play.status().via) == (("online", "connected"), "direct")
    play.run(1).dies(1).leaves(1)
    assert (play.shown(), play.status().via) == (("online", "connected"), "direct")
    assert {connection for connection, _ in play.history()} == {"online"}


def test_connections_are_verified_daily_by_default() -> None:
    """ "Verification of connections runs daily by default." """
    assert CloudPresence().verify_h == 24.0


def test_connections_that_fall_silent_are_found_and_logged() -> None:
    """ "… and leaves a log": nobody has to ask, and a finding is logged once."""
    play = polling().run(DAY)
    assert play.history()[-1] == MISSED
    lines = len(play.log)
    assert play.run(30 * DAY).shown() == MISSED
    assert len(play.log) == lines
