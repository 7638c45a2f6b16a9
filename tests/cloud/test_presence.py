"""Every rule of presence: what was heard, in which order, and the one status that follows."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from broker.messages import HubState
from cloud.presence_events import (
    Clear,
    Connected,
    Forgotten,
    Log,
    ModeChanged,
    Paused,
    Publish,
    Reported,
    Resumed,
    RosterEntry,
    RosterRead,
    Save,
)
from cloud.presence_facts import Policy
from cloud.presence_rules import hidden
from config import limits
from tests.cloud.presence_play import DAY, HOUR, KEY, MINUTE, Play, settings
from tests.cloud.wire import EPOCH, OTHER_EPOCH, SITE, T0

ONLINE = ("online", "connected")
STARTED = ("online", "started")
LOST = ("offline", "lost contact")
STOPPED = ("offline", "stopped cleanly")
DOWN = ("path-down", "path down")
DUPLICATE = ("online", "rejected: duplicate identity")

# --- Births and ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [False, True], ids=["unknown", "with another outbox before"])
def test_nothing_is_concluded_from_messages_while_the_birth_is_on_its_way(known: bool) -> None:
    """A hub that polls would pass for one that keeps its session, until its retained birth has come too."""
    play = Play()
    if known:
        play.born(1, epoch=OTHER_EPOCH, mode="polling").leaves(1, epoch=OTHER_EPOCH).run(HOUR)
    before = play.history()
    play.message().run(1)
    assert play.history() == before
    play.born(1, mode="polling", reason="started", retained=True)
    assert play.history() == [*before, ("unreachable-online", "started")]


def test_hub_whose_birth_is_lost_is_online_all_the_same() -> None:
    """Its messages prove that it lives; a moment is enough for a birth that is under way."""
    play = Play().message()
    assert play.history() == []
    play.run(limits.BIRTH_WAIT_S)
    assert play.shown() == ONLINE


def test_first_birth_of_a_process_is_told_from_a_change_of_path() -> None:
    """Who looks for the restart of a machine must not find every failover."""
    play = Play().connector().born(1, reason="started")
    assert play.shown() == STARTED
    assert play.born(2, via="direct").shown() == ONLINE
    assert play.status().via == "direct"


def test_restart_is_in_the_log_even_if_nothing_else_has_changed() -> None:
    """A machine that restarts every hour looks online whenever one looks; its log must tell."""
    play = Play().connector().born(1, reason="started").run(HOUR)
    play.born(2, reason="started")
    assert play.history() == [STARTED, STARTED]
    assert play.status().since_ms == play.ms()


def test_will_and_clean_stop_have_different_reasons() -> None:
    """A machine that was shut down needs nobody; one that has vanished does."""
    play = Play().born(1).run(5).dies(1)
    assert play.shown() == LOST
    assert play.born(2).leaves(2).shown() == STOPPED
    assert play.dies(2).shown() == STOPPED  # Its broker may publish the will all the same.


def test_births_and_wills_count_in_the_order_of_their_sessions() -> None:
    """Two paths carry them, each at its own speed; a late will never overrides a newer birth."""
    start = Play()
    states = [
        start.birth(1, ts=T0 + 1),
        HubState(online=False, epoch=EPOCH, session=1),
        start.birth(2, ts=T0 + 2, via="direct"),
    ]
    for order in permutations([*states, states[0], states[1]]):
        play = Play()
        for state in order:
            play.hears(state)
        assert play.shown() == ONLINE, order
        assert play.status().via == "direct"


def test_stale_states_change_neither_the_status_nor_the_log_nor_what_is_published() -> None:
    """A site that reconnects repeats everything that it has; nobody is to be told twice."""
    play = Play().born(2).run(5)
    before = play.publishes, len(play.log)
    play.dies(1).born(1, ts=T0 - 5).born(2, ts=T0).run(5)
    assert (play.publishes, len(play.log)) == before


def test_will_of_a_session_that_carried_nothing_is_disproved_by_what_the_hub_sends_on() -> None:
    """A hub that tries a second path may lose it again: then it still speaks over the first."""
    play = Play().connector().born(4).run(60).dies(5)
    assert play.shown() == LOST
    play.run(2).message(delay_s=2.5)
    assert play.shown() == LOST  # It was under way when the hub ended.
    play.run(20).message()
    assert play.shown() == ONLINE
    assert play.dies(5, retained=True).shown() == ONLINE
    assert play.dies(4).shown() == LOST  # The session that did carry.


# --- Paths ------------------------------------------------------------------------------------------------------------


def test_hub_behind_a_dead_connector_is_path_down_until_it_comes_directly() -> None:
    """It is not gone: it is expected directly, five minutes and a little later."""
    play = Play().connector(1).born(1).run(HOUR).message().run(10)
    play.connector(1, online=False)
    assert play.shown() == DOWN
    status = play.status()
    assert status.via == "c-1"
    assert status.last_seen_ms == play.ms(play.now - 10)
    assert status.expected_direct_by_ms is not None
    assert 300_000 < status.expected_direct_by_ms - play.ms() < 360_000
    assert status.evidence["path"] == {"state": "connector offline", "since": play.ms()}
    play.run(304).born(2, via="direct")
    assert play.shown() == ONLINE
    assert play.status().expected_direct_by_ms is None


def test_hub_that_does_not_come_directly_has_lost_contact() -> None:
    """The path's fall explains silence only as long as the hub could not help it."""
    play = Play().connector(1).born(1).run(HOUR).connector(1, online=False)
    fell = play.now
    assert play.run_to(fell + 334 + limits.DIRECT_GRACE_S - 1).shown() == DOWN
    assert play.run(2).shown() == LOST
    assert play.history() == [ONLINE, DOWN, LOST]


def test_connectors_fall_concerns_every_hub_behind_it_and_no_other() -> None:
    """One connector's end must not darken the hubs that speak directly, through another one, or were stopped."""
    play = Play().connector(1).connector(1, name="c-2")
    play.born(1).born(1, hub_id="pc-2").born(1, hub_id="pc-3", via="c-2").born(1, hub_id="pc-4", via="direct")
    play.born(1, hub_id="pc-5").leaves(1, hub_id="pc-5").run(HOUR).connector(1, online=False)
    assert [play.shown(f"pc-{number}") for number in range(1, 6)] == [DOWN, DOWN, ONLINE, ONLINE, STOPPED]


@pytest.mark.parametrize("fall", [{"online": False}, {"site": "down"}])
def test_path_is_down_whichever_part_of_it_is(fall: dict[str, Any]) -> None:
    """If the site's broker dies, its hubs' wills die with it."""
    play = Play().connector(1).born(1).run(HOUR).connector(1, **fall)
    assert play.shown() == DOWN


def test_stale_will_of_a_connector_changes_nothing() -> None:
    """A connector that was restarted in a second leaves a will behind that arrives late."""
    play = Play().connector(2).born(1).run(HOUR).connector(1, online=False)
    assert play.shown() == ONLINE


@pytest.mark.parametrize("hub_first", [True, False])
def test_hub_whose_path_is_back_must_be_heard_of(hub_first: bool) -> None:
    """The site's broker may have come back without the hub, and without its will."""
    play = Play().connector(1).born(1).born(1, hub_id="pc-2").run(HOUR).connector(1, site="down").run(60)
    again = play.birth(1, ts=T0)
    if hub_first:
        play.hears(again)
    play.connector(1)
    if not hub_first:
        assert play.shown() == DOWN
        play.hears(again)
    assert play.shown() == ONLINE
    assert play.shown("pc-2") == DOWN
    assert play.run(HOUR).shown("pc-2") == LOST
    assert play.message(hub_id="pc-2").shown("pc-2") == ONLINE


def test_message_that_was_under_way_when_the_path_fell_does_not_mend_it() -> None:
    """The last messages before a fall are stored after it."""
    play = Play().connector(1).born(1).run(HOUR).message().connector(1, online=False).run(5)
    assert play.message(delay_s=6).shown() == DOWN


def test_own_will_counts_more_than_the_path() -> None:
    """The hub died first; whoever mends the connector must know that this brings nothing back."""
    play = Play().connector(1).born(1).run(HOUR).dies(1).connector(1, online=False)
    assert play.shown() == LOST


# --- Grace ------------------------------------------------------------------------------------------------------------


def test_after_our_own_outage_nobody_gets_worse_before_the_grace_is_over() -> None:
    """Five minutes of ours must not raise an alarm for every hub."""
    play = Play().connector(1).born(1).born(1, hub_id="pc-2").run(HOUR).outage(600)
    play.connector(1, online=False, retained=True).run(100).message()
    assert play.run(190).shown() == play.shown("pc-2") == ONLINE
    play.connector(2).message()
    assert play.run(20).shown() == ONLINE
    assert play.shown("pc-2") == LOST
    assert play.history("pc-2") == [ONLINE, LOST]


def test_own_word_is_believed_in_the_grace() -> None:
    """A hub that says goodbye just after our restart is gone."""
    play = Play().born(1).born(1, hub_id="pc-2").run(HOUR).restarted(away_s=60)
    assert play.dies(1, retained=True).shown() == LOST
    assert play.leaves(1, hub_id="pc-2").shown("pc-2") == STOPPED


@pytest.mark.parametrize("confirm", ["birth", "retained", "message", "heartbeat"])
def test_hub_that_was_heard_of_in_the_grace_stays_online(confirm: str) -> None:
    """Whatever shows that it is there is enough."""
    play = Play().connector(1).born(1, ts=T0).run(HOUR).restarted(away_s=60).connector(1)
    match confirm:
        case "birth":
            play.born(2)
        case "retained":
            play.born(1, ts=T0, retained=True)
        case "message":
            play.message()
        case "heartbeat":
            play.heartbeat()
    assert play.run(DAY).shown() == ONLINE


def test_fall_of_a_connector_that_was_heard_good_since_our_restart_is_news() -> None:
    """The grace covers what our outage may explain, and that it can't."""
    play = Play().connector(1).born(1).run(HOUR).restarted().connector(1).born(2).run(30).connector(1, online=False)
    assert play.shown() == DOWN


def test_hub_that_was_offline_does_not_come_back_by_a_restart_of_ours() -> None:
    """The grace protects the good from becoming worse; it does not make the lost good."""
    play = Play().connector(1).born(1).run(HOUR).connector(1, online=False).run(HOUR)
    assert play.shown() == LOST
    again = play.restarted(away_s=10)
    assert again.run(HOUR).shown() == LOST
    assert again.history() == play.history()
    polling = Play().born(1, mode="polling", reason="started").run(2 * HOUR)
    assert polling.shown() == ("unreachable-offline", "heartbeat missed")
    assert polling.restarted(away_s=10).shown() == ("unreachable-offline", "heartbeat missed")


def test_path_that_was_down_before_our_restart_stays_down_and_ends_after_the_grace() -> None:
    """A restart in the middle of an outage neither hides it nor forgets it."""
    play = Play().connector(1).born(1).run(HOUR).connector(1, online=False).run(60).restarted(away_s=10)
    assert play.shown() == DOWN
    assert play.run(295).shown() == DOWN
    assert play.run(HOUR).shown() == LOST


def test_while_we_are_not_connected_nothing_is_concluded_or_published() -> None:
    """Without a broker, silence is ours."""
    play = Play(connect=False)
    assert play.machine.deadline() is None
    play = Play().born(1, mode="polling", reason="started").run(1).restarted(connect=False)
    assert play.run(DAY).shown() == ("unreachable-online", "started")
    assert play.publishes == 0


def test_everything_is_published_again_after_a_reconnect_in_bursts() -> None:
    """The broker may have forgotten what is retained, and acknowledgements must not wait for a thousand statuses."""
    play = Play()
    for number in range(120):
        play.born(1, hub_id=f"pc-{number}")
    play.run(60)
    before = play.publishes
    play.outage(5)
    assert play.publishes - before == limits.PRESENCE_BURST
    play.run(1)
    assert play.publishes - before == 120


def test_nothing_is_published_that_has_not_changed() -> None:
    """A thousand hubs that measure must not make a thousand messages a second."""
    play = Play().connector(1).born(1).run(1)
    before = play.publishes, len(play.log)
    for _ in range(100):
        play.run(7).message().heartbeat()
    assert (play.publishes, len(play.log)) == before
    assert play.status().last_seen_ms == play.ms()


def test_when_hubs_were_last_seen_is_saved_once_a_minute() -> None:
    """A restart may forget a minute of it; a row for every message would be too much."""
    play = Play().connector(1).born(1).run(1)
    play.commands.clear()
    for _ in range(60):
        play.run(10).message()
    assert 9 <= sum(isinstance(command, Save) for command in play.commands) <= 12
    assert play.restarted().status().last_seen_ms is not None


# --- One identity, two machines ---------------------------------------------------------------------------------------


def cloned() -> Play:
    """Return a fleet in which a copied machine has begun to speak."""
    play = Play().connector(1).born(3, host="till-1", addresses=["10.0.0.5"]).message().run(60)
    play.born(4, epoch=OTHER_EPOCH, host="till-1-copy", addresses=["10.9.9.9"]).message(epoch=OTHER_EPOCH)
    return play.run(60)


def test_new_outbox_is_no_duplicate() -> None:
    """A machine whose disk was replaced begins anew, and says nothing more of its old life."""
    play = cloned()
    assert play.shown() == ONLINE
    play.dies(3)  # The will of the life before.
    play.born(3, host="till-1", ts=T0, retained=True).message(delay_s=90).run(HOUR)
    assert play.shown() == ONLINE
    assert play.status().evidence["epoch"] == OTHER_EPOCH
    assert "duplicate" not in str(play.log)


@pytest.mark.parametrize("reason", ["will", "stopped"])
def test_end_of_a_life_that_nobody_knew_ends_no_other(reason: str) -> None:
    """The last word of an outbox that was replaced while we did not listen says nothing about the one in use."""
    play = Play().connector(1).born(1).run(60)
    play.dies(9, epoch=OTHER_EPOCH) if reason == "will" else play.leaves(9, epoch=OTHER_EPOCH)
    assert play.shown() == ONLINE


@pytest.mark.parametrize("word", ["birth", "message", "heartbeat"])
def test_two_machines_that_speak_in_turn_are_named(word: str) -> None:
    """Who reads it must be able to find both."""
    play = cloned()
    match word:
        case "birth":
            play.born(4, host="till-1", addresses=["10.0.0.5"])
        case "message":
            play.message()
        case "heartbeat":
            play.heartbeat(3)
    assert play.shown() == DUPLICATE
    machines = play.status().evidence["machines"]
    assert [(machine["host"], machine["addresses"]) for machine in machines] == [
        ("till-1", ["10.0.0.5"]),
        ("till-1-copy", ["10.9.9.9"]),
    ]


def test_two_machines_are_named_even_if_the_clock_of_one_is_wrong() -> None:
    """Copies of a machine that was asleep for a week have a clock to match."""
    for ahead_s in (-2 * HOUR, 2 * HOUR):
        play = Play().connector(1).born(3).message().run(60)
        play.born(4, epoch=OTHER_EPOCH, ts=play.ms(play.now + ahead_s))
        for _ in range(20):
            play.run(10).message(epoch=OTHER_EPOCH, ahead_s=ahead_s).run(10).message()
        assert play.shown() == DUPLICATE


def test_machines_that_throw_each_other_out_stay_online_and_are_logged_once() -> None:
    """Each take-over makes a will; the status must not flicker with them."""
    play = cloned()
    for session in range(10, 30):
        play.born(session).run(1).dies(session - 1, epoch=OTHER_EPOCH).run(20)
        play.born(session, epoch=OTHER_EPOCH).run(1).dies(session).run(20)
        assert play.shown() == DUPLICATE
    assert play.history().count(DUPLICATE) == 1


@pytest.mark.parametrize("via", ["c-1", "direct"])
def test_status_does_not_go_to_and_fro_until_two_machines_are_told_apart(via: str) -> None:
    """Both send ten times a second, through whatever path: each word would be another status."""
    play = Play().connector(1).born(3, reason=None).message().run(60)
    play.born(4, epoch=OTHER_EPOCH, reason="started", via=via)
    for _ in range(200):
        play.run(0.05).message().run(0.05).message(epoch=OTHER_EPOCH)
    assert play.history()[-2:] == [("online", "started"), DUPLICATE]
    assert len(play.history()) == 3


def test_machine_that_was_there_before_counts_again_when_the_other_one_has_left() -> None:
    """A copy was switched on for a moment, by mistake: what became of the copy is not the status of the hub."""
    play = Play().connector(1).born(3).message().run(60)
    play.born(4, epoch=OTHER_EPOCH).run(2).leaves(4, epoch=OTHER_EPOCH)
    assert play.shown() == ("offline", "stopped cleanly")
    play.run(5).message()
    assert play.shown() == ("offline", "stopped cleanly"), "it may have been under way"
    play.run(10).message()
    assert play.status().connection == "online"
    assert play.status().evidence["epoch"] == EPOCH


def test_duplicate_ends_when_one_of_them_has_been_quiet_for_long() -> None:
    """When the copy is switched off, the machine is itself again."""
    play = cloned().message()
    for _ in range(9):
        assert play.shown() == DUPLICATE
        play.run(60).message()
    assert play.run(60).message().shown() == ONLINE
    assert play.status().evidence["epoch"] == EPOCH
    assert play.run(60).message().shown() == ONLINE
    play.message(epoch=OTHER_EPOCH).run(60).message()
    assert play.message(epoch=OTHER_EPOCH).shown() == DUPLICATE


def test_duplicate_survives_a_restart_of_ours() -> None:
    """Only the machines can end it."""
    play = cloned().message().run(1).restarted(away_s=5)
    assert play.shown() == DUPLICATE


# --- A path that was not taken after all --------------------------------------------------------------------------------


def returned() -> Play:
    """Return a hub that began a session through its connector, which died at once, and went on with its direct one."""
    play = Play().connector(1).born(4, via="direct").message().run(60)
    play.born(5).run(0.05).connector(1, online=False)
    return play.run(0.05).born(4, via="direct").message()


def test_hub_that_goes_back_to_the_session_it_had_kept_is_online_there() -> None:
    """Make before break: the old path is left only when the new one has proven itself."""
    play = returned()
    assert (play.shown()[0], play.status().via) == ("online", "direct")
    assert play.run(HOUR).message().status().via == "direct"


def test_death_of_a_hub_that_went_back_is_seen() -> None:
    """Its last will bears the number of the session that it went back to."""
    play = returned().run(60).dies(4)
    assert play.shown() == ("offline", "lost contact")


@pytest.mark.parametrize("late", ["birth", "will"])
def test_what_comes_late_of_the_session_that_was_left_changes_nothing(late: str) -> None:
    """The site's broker has kept it, and the connector brings it when it is back."""
    play = returned()
    old = play.birth(5, ts=play.ms(play.now - 0.1))
    play.run(60).connector(2)
    play.hears(old) if late == "birth" else play.dies(5)
    assert (play.shown()[0], play.status().via) == ("online", "direct")
    assert play.dies(4).shown() == ("offline", "lost contact")


def test_hub_that_went_back_counts_by_its_sessions_again_when_it_takes_the_path_at_last() -> None:
    """The next session, or the same one if it has kept that, too."""
    for session in (5, 6):
        play = returned().run(60).connector(2).born(session).dies(4)
        assert (play.shown()[0], play.status().via) == ("online", "c-1")
        assert play.run(60).dies(session).shown() == ("offline", "lost contact")


# --- Clock ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ahead_s", "wrong"), [(0, False), (299, False), (302, True), (-302, True), (-250, False)])
def test_clock_beyond_the_limit_is_a_reason_of_its_own(ahead_s: float, wrong: bool) -> None:
    """ "Bad credentials" would send somebody to the certificates."""
    play = Play().connector(1).born(1).run(10).message(ahead_s=ahead_s)
    assert play.shown() == (("online", "rejected: clock") if wrong else ONLINE)


def test_clock_is_measured_by_the_message_that_was_least_delayed() -> None:
    """A message that waited for ten minutes says nothing about the clock, if others did not wait."""
    play = Play().connector(1).born(1).run(10).message().run(10).message(delay_s=400)
    assert play.shown() == ONLINE
    assert play.status().skew_ms == 0


def test_clock_that_was_set_right_counts_as_right_soon_after() -> None:
    """The person at the machine must see that it has helped."""
    play = Play().connector(1).born(1).run(10).message(ahead_s=4000)
    for _ in range(15):
        play.run(60).message()
    assert play.shown() == ONLINE
    assert play.history() == [ONLINE, ("online", "rejected: clock"), ONLINE]


def test_clock_is_no_reason_for_a_hub_that_is_gone() -> None:
    """It lost contact; that its clock was wrong is in the log."""
    play = Play().connector(1).born(1).run(10).message(ahead_s=4000).dies(1)
    assert play.shown() == LOST


# --- Roster and people ------------------------------------------------------------------------------------------------


def roster(*entries: tuple[str, int | None, float]) -> RosterRead:
    """Return a roster of (hub, revoked_ms, days from T0 to the end of its certificate)."""
    return RosterRead(
        tuple(RosterEntry((SITE, name), revoked, T0 + int(days * DAY * 1000)) for name, revoked, days in entries)
    )


def test_hub_of_the_roster_that_never_came_is_never_seen() -> None:
    """Who provisions ten machines wants to know which of them are missing."""
    play = Play()
    play.feed(roster(("pc-1", None, 365), ("pc-2", T0, 365), ("pc-3", None, -1)))
    assert play.shown() == ("offline", "never seen")
    assert play.status().via is None
    assert list(play.saved) == [KEY]
    assert play.born(1).shown() == ONLINE


def test_revoked_or_expired_hub_that_is_offline_says_so() -> None:
    """It can't come back, and that is why."""
    play = Play().born(1).born(1, hub_id="pc-2").born(1, hub_id="pc-3").run(60)
    play.feed(roster(("pc-1", T0, 365), ("pc-2", None, 1), ("pc-3", None, 365)))
    assert play.shown() == ONLINE  # Its session is still open.
    play.dies(1).dies(1, hub_id="pc-2").leaves(1, hub_id="pc-3")
    assert play.shown() == ("offline", "rejected: revoked")
    assert play.shown("pc-2") == LOST
    play.run(DAY)
    assert play.shown("pc-2") == ("offline", "rejected: certificate")
    assert play.shown("pc-3") == STOPPED
    play.feed(roster(("pc-1", None, 365), ("pc-2", None, 365)))
    assert play.shown() == play.shown("pc-2") == LOST


def test_revoked_hub_that_falls_silent_is_gone_though_no_will_tells() -> None:
    """Some engines leave its session open, mute, and never deliver its last will: it would be online for ever."""
    play = Play().born(1).run(60)
    play.feed(roster(("pc-1", T0, 365)))
    assert play.shown() == ONLINE
    play.run(limits.REVOKED_SILENT_S)
    assert play.shown() == ("offline", "rejected: revoked")


def test_pause_is_shown_until_it_is_over() -> None:
    """Nobody is to look for a machine that is being rebuilt."""
    play = Play().connector(1).born(1).run(60)
    play.feed(Paused(KEY, "alice"))
    assert play.shown() == ("online", "paused")
    assert play.status().evidence["paused_by"] == "alice"
    assert play.leaves(1).shown() == ("offline", "paused")
    play = play.restarted()
    assert play.shown() == ("offline", "paused")
    play.feed(Resumed(KEY, "bob"))
    assert play.shown() == STOPPED
    play.feed(Paused((SITE, "nobody"), "alice"))
    assert play.machine.record((SITE, "nobody")) is None


def test_forgotten_hub_is_gone_until_it_speaks_again() -> None:
    """What waits at the broker from before must not bring it back."""
    play = Play().born(1).run(1).dies(1).run(1)
    assert play.feed(Forgotten(KEY)) == [Clear(KEY)]
    assert play.machine.status(KEY) is None
    assert play.dies(1, retained=True).machine.status(KEY) is None
    assert play.run(1).feed(Forgotten(KEY)) == [Clear(KEY)]
    assert play.run(DAY).born(2).shown() == ONLINE


@pytest.mark.parametrize(("machine", "days"), [("server", 3), ("workstation", 30), ("laptop", 120)])
def test_inactive_hub_is_hidden_after_the_time_of_its_class_and_revives_by_itself(machine: Any, days: float) -> None:
    """A laptop in a drawer is not in the way, and nothing of it is lost."""
    play = Play().born(1)
    play.feed(Reported(KEY, machine))
    play.run(60).dies(1).run(days * DAY - 120)
    assert play.saved[KEY].hidden_ms is None
    assert not hidden(play.saved[KEY], machine, play.ms(), play.settings)
    play.run(120)
    assert play.saved[KEY].hidden_ms is not None
    assert hidden(play.saved[KEY], machine, play.ms(), play.settings)
    assert play.shown() == LOST
    play = play.restarted(away_s=DAY)
    assert play.saved[KEY].hidden_ms is not None
    play.born(2)
    assert play.saved[KEY].hidden_ms is None
    assert not hidden(play.saved[KEY], machine, play.ms(), play.settings)


def test_hub_in_contact_is_never_hidden() -> None:
    """A quiet machine is not an inactive one."""
    play = Play().connector(1).born(1, via="direct").run(200 * DAY)
    assert play.saved[KEY].hidden_ms is None


# --- Commands ---------------------------------------------------------------------------------------------------------


def test_what_must_be_durable_comes_first() -> None:
    """A status that was published and then forgotten would contradict its own log."""
    commands = Play().run(1).feed(play_birth())
    assert [type(command) for command in commands] == [Save, Log, Publish]


def play_birth() -> Any:
    """Return the event of a first birth."""
    from cloud.presence_events import HubSaid

    return HubSaid(SITE, "pc-1", Play().birth(1), T0)


def test_evidence_names_the_messages_that_led_to_a_status() -> None:
    """An administrator who doubts a status can check it."""
    play = Play().connector(1).born(7, host="till-1").run(60).dies(7)
    assert play.status().evidence == {
        "epoch": EPOCH,
        "session": 7,
        "word": "will",
        "mode": "continuous",
        "via": "c-1",
        "host": "till-1",
        "version": "1.0",
        "ended": play.ms(),
    }


def test_missed_heartbeats_of_a_hub_that_keeps_a_session() -> None:
    """Its connection may live while the hub itself hangs."""
    play = Play().connector(1).born(1)
    play.feed(ModeChanged(KEY, Policy(heartbeat="all", offline_after_min=30)))
    play.run(20 * MINUTE).heartbeat().run(29 * MINUTE)
    assert play.shown() == ONLINE
    assert play.run(MINUTE).shown() == ("offline", "heartbeat missed")
    assert play.heartbeat().shown() == ONLINE
    play.feed(ModeChanged(KEY, Policy(heartbeat="unreachable", offline_after_min=30)))
    assert play.run(DAY).shown() == ONLINE


def test_roaming_is_not_granted_because_of_an_outage_of_ours() -> None:
    """A week of ours is not a week of theirs."""
    play = Play(settings(roaming_after_days=7)).connector(1).born(1).run(60).restarted(away_s=8 * DAY)
    assert play.run(200).shown() == ONLINE
    assert play.message().run(HOUR).shown() == ONLINE


def test_hub_that_was_not_heard_of_since_our_restart_has_lost_contact() -> None:
    """It may have gone while nobody listened; the grace is for it to show that it has not."""
    play = Play().born(1, via="direct").run(HOUR).message().run(61).message().restarted(away_s=60)
    assert play.run(299).shown() == ONLINE
    assert play.run(2).shown() == LOST


def test_second_connection_begins_a_new_grace() -> None:
    """A session that was replaced before its end was noticed has missed as much as one that was lost."""
    play = Play().born(1, via="direct").run(HOUR)
    play.feed(Connected())
    assert play.run(301).shown() == LOST


def test_birth_that_overtakes_the_word_of_its_connector_shows_no_path_down() -> None:
    """A hub that comes back with its connector must not flicker because two messages came in the other order."""
    play = Play().connector(1).born(1, via="direct").run(HOUR).connector(1, online=False).run(60)
    play.born(2).run(2).connector(2)
    assert play.run(HOUR).message().shown() == ONLINE
    assert play.history() == [ONLINE, ONLINE]


def test_word_from_long_before_the_path_came_back_does_not_prove_the_hub() -> None:
    """What was under way when the path fell comes after the fall, and is no sign that the hub has survived it."""
    play = Play().connector(1).born(1, ts=T0).run(HOUR).connector(1, site="down").run(1)
    play.born(1, ts=T0).run(100).connector(1)
    assert play.shown() == DOWN


def test_reason_does_not_flicker_when_a_clock_is_at_the_edge_of_the_limit() -> None:
    """An error that comes and goes every few minutes is looked for twice."""
    play = Play().connector(1).born(1).run(10)
    for number in range(40):
        play.run(400).message(ahead_s=301 if number % 2 else 295)
    assert play.history() == [ONLINE, ("online", "rejected: clock")]
