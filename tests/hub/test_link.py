"""The link's table: the failover rule, point by point, with the commands of each step."""

from __future__ import annotations

from random import Random

import pytest

from broker.machine import Wakeup
from broker.messages import DIRECT, ConnectorState
from config import limits
from config.settings import Failback, Failover
from hub.link import (
    CloudAcknowledged,
    Command,
    Connect,
    ConnectorFound,
    ConnectorHeard,
    Disconnect,
    Event,
    Halt,
    Kind,
    Link,
    Remember,
    SaveOutage,
    Search,
    SearchEnded,
    SessionEnded,
    SessionOpened,
    Surroundings,
    Use,
)

A, B, CLOUD = "192.0.2.1:8883", "192.0.2.2:8883", "cloud.example.com:8883"
UP = ConnectorState(online=True, session=5, upstream="up")
DOWN = ConnectorState(online=True, session=5, upstream="down")
WILL = ConnectorState(online=False, session=5)
AGAIN = ConnectorState(online=True, session=6, upstream="up")


class Story:
    """A link, its clock and what it said last."""

    def __init__(self, hub_id: str = "pc-17", seed: int = 1, switch_jitter_s: float = 0.0, **surroundings: object):
        self.now = 0.0
        self.said: list[Command] = []
        known: dict[str, object] = {"cached": (A,), "cloud": (CLOUD,), "discovery": False, **surroundings}
        self.link = Link(
            hub_id,
            Failover(),
            Failback(),
            Surroundings(**known),  # type: ignore[arg-type]
            random=Random(seed),
            started_at=0.0,
            switch_jitter_s=switch_jitter_s,
        )

    def tell(self, event: Event, at: float | None = None) -> list[Command]:
        self.now = self.now if at is None else at
        self.said = self.link.handle(event, self.now)
        return self.said

    def wait(self, until: float) -> list[Command]:
        """Let time pass as the runner does, and return all that was said."""
        said: list[Command] = []
        for _ in range(1000):
            due = self.link.deadline()
            if due is None or due > until:
                self.now = until
                return said
            self.now = max(self.now, due)
            said += self.tell(Wakeup())
        raise AssertionError("the link never rests")

    def connects(self, said: list[Command] | None = None) -> list[Connect]:
        return [command for command in (self.said if said is None else said) if isinstance(command, Connect)]

    def good(self) -> int:
        """Start, and come to be on connector a; return the session."""
        (connect,) = self.connects(self.tell(Wakeup()))
        self.tell(SessionOpened(connect.session))
        self.tell(ConnectorHeard(connect.session, "a", UP))
        self.tell(CloudAcknowledged(connect.session))
        return connect.session

    def direct(self) -> int:
        """Lose connector a for 300 s and come to be on the cloud at t = 1000; return the session."""
        site = self.good()
        self.tell(ConnectorHeard(site, "a", WILL), 700.0)
        cloud = next(c for c in self.connects(self.wait(1000.0)) if c.kind is Kind.DIRECT)
        self.tell(SessionOpened(cloud.session))
        self.tell(CloudAcknowledged(cloud.session))
        return cloud.session


# --- Start -----------------------------------------------------------------------------------------------------------


def test_a_start_takes_the_cached_endpoint_without_a_search() -> None:
    story = Story(discovery=True)
    assert story.tell(Wakeup()) == [Connect(1, Kind.CONNECTOR, A, carrying=True)]


def test_a_session_is_used_only_when_its_connector_is_good() -> None:
    """A site broker without a connector brings nothing to the cloud."""
    story = Story()
    story.tell(Wakeup())
    assert story.tell(SessionOpened(1)) == []
    assert story.tell(ConnectorHeard(1, "a", DOWN)) == []
    assert story.tell(ConnectorHeard(1, "a", UP)) == [SaveOutage(None), Use(1, "a")]


def test_a_failed_cache_leads_to_a_search_and_then_to_the_configured_ones() -> None:
    story = Story(discovery=True, configured=(B,))
    story.tell(Wakeup())
    assert story.tell(SessionEnded(1, "refused")) == [Search()]
    assert story.tell(SearchEnded()) == [Connect(2, Kind.CONNECTOR, B, carrying=True)]


def test_what_the_search_finds_is_tried_before_it_ends() -> None:
    story = Story(cached=(), discovery=True)
    assert story.tell(Wakeup()) == [Search()]
    assert story.tell(ConnectorFound(B)) == [Connect(1, Kind.CONNECTOR, B, carrying=True)]
    story.tell(SessionOpened(1))
    assert story.tell(ConnectorHeard(1, "b", UP)) == [SaveOutage(None), Use(1, "b"), Remember((B,))]


def test_a_false_connector_costs_one_attempt() -> None:
    """SSDP is never trusted: who fails TLS is passed over for the next answer."""
    story = Story(cached=(), discovery=True)
    story.tell(Wakeup())
    story.tell(ConnectorFound(B))
    story.tell(ConnectorFound(A))
    assert story.connects(story.tell(SessionEnded(1, "certificate of another authority"))) == [
        Connect(2, Kind.CONNECTOR, A, carrying=True)
    ]


def test_only_brokers_that_were_used_are_remembered() -> None:
    """Anyone on the network can answer a search; what has proven nothing must not outlive it."""
    story = Story(cached=(), discovery=True)
    story.tell(Wakeup())
    for number in range(50):
        story.tell(ConnectorFound(f"198.51.100.{number}:8883"))
    (first,) = [session.number for session in story.link._all()]
    story.tell(SessionEnded(first, "certificate of another authority"))
    (second,) = story.connects()
    story.tell(SessionOpened(second.session))
    said = story.tell(ConnectorHeard(second.session, "b", UP))
    assert [command.endpoints for command in said if isinstance(command, Remember)] == [(second.endpoint,)]


def test_what_is_remembered_is_bounded() -> None:
    """A hub whose site broker gets a new address every day."""
    story = Story(cached=tuple(f"192.0.2.{number}:8883" for number in range(50)))
    (connect,) = story.connects(story.tell(Wakeup()))
    story.tell(SessionOpened(connect.session))
    story.tell(ConnectorHeard(connect.session, "a", UP))
    assert len(story.link.candidates.worked) == limits.CANDIDATES_MAX


def test_a_start_without_any_connector_goes_to_the_cloud_after_the_grace() -> None:
    story = Story(cached=(), discovery=False)
    story.tell(Wakeup())
    said = story.wait(59.9)
    assert story.connects(said) == []
    assert [c.kind for c in story.connects(story.wait(60.0))] == [Kind.DIRECT]


def test_away_from_its_network_a_hub_waits_less() -> None:
    story = Story(cached=(), away=True)
    story.tell(Wakeup())
    assert story.connects(story.wait(14.9)) == []
    assert [c.kind for c in story.connects(story.wait(15.0))] == [Kind.DIRECT]


def test_a_restart_does_not_lose_the_outage() -> None:
    story = Story(cached=(), outage_at=-290.0)
    story.tell(Wakeup())
    assert story.connects(story.wait(9.9)) == []
    assert [c.kind for c in story.connects(story.wait(10.0))] == [Kind.DIRECT]


def test_without_a_cloud_endpoint_a_hub_only_looks_for_connectors() -> None:
    story = Story(cloud=())
    story.good()
    story.tell(ConnectorHeard(1, "a", WILL), 100.0)
    assert story.link.switch_at is None
    assert story.connects(story.wait(2000.0)) == []


# --- Outage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [WILL, DOWN])
def test_a_will_or_a_lost_upstream_halts_the_hub_and_starts_the_clock(bad: ConnectorState) -> None:
    story = Story()
    site = story.good()
    assert story.tell(ConnectorHeard(site, "a", bad), 700.0) == [SaveOutage(700.0), Halt()]
    assert story.link.switch_at == 1000.0


def test_a_silent_loss_counts_from_the_last_sign_of_life() -> None:
    story = Story()
    site = story.good()
    story.tell(SessionEnded(site, "no life sign", alive_at=660.0), 700.0)
    assert story.link.out_at == 660.0


def test_the_hub_goes_direct_five_minutes_after_the_will_and_not_before() -> None:
    story = Story()
    site = story.good()
    story.tell(ConnectorHeard(site, "a", WILL), 700.0)
    assert story.connects(story.wait(999.9)) == []
    (cloud,) = story.connects(story.wait(1000.0))
    assert cloud.kind is Kind.DIRECT
    assert cloud.carrying
    assert story.tell(SessionOpened(cloud.session), 1000.2) == [Use(cloud.session, DIRECT)]


def test_a_connector_that_is_good_again_in_time_is_used_again_at_once() -> None:
    story = Story()
    site = story.good()
    story.tell(ConnectorHeard(site, "a", WILL), 700.0)
    assert story.tell(ConnectorHeard(site, "a", AGAIN), 710.0) == [SaveOutage(None), Use(site, "a")]
    assert story.connects(story.wait(1200.0)) == []


def test_a_late_will_of_an_older_session_changes_nothing() -> None:
    story = Story()
    site = story.good()
    story.tell(ConnectorHeard(site, "a", AGAIN), 600.0)
    assert story.tell(ConnectorHeard(site, "a", WILL), 601.0) == []
    assert story.link.out_at is None


def test_failed_attempts_do_not_restart_the_clock() -> None:
    story = Story()
    site = story.good()
    story.tell(SessionEnded(site, "closed"), 700.0)
    direct_at = None
    while direct_at is None:
        due = story.link.deadline()
        assert due is not None
        for connect in story.connects(story.tell(Wakeup(), due)):
            if connect.kind is Kind.DIRECT:
                direct_at = story.now
            else:
                story.tell(SessionEnded(connect.session, "refused"), due + 0.5)
    assert 1000.0 <= direct_at < 1001.0


def test_an_attempt_at_a_broker_without_a_connector_does_not_restart_the_clock() -> None:
    """The site broker is back, its connector is not."""
    story = Story()
    site = story.good()
    story.tell(SessionEnded(site, "closed"), 700.0)
    (again,) = story.connects(story.wait(702.0))
    story.tell(SessionOpened(again.session))
    story.tell(ConnectorHeard(again.session, "a", DOWN), 703.0)
    assert story.link.switch_at == 1000.0


def test_the_next_session_of_a_lost_broker_is_tried_within_a_moment() -> None:
    story = Story()
    site = story.good()
    story.tell(SessionEnded(site, "closed"), 700.0)
    assert [c.endpoint for c in story.connects(story.wait(701.0))] == [A]


def test_another_connector_of_the_site_is_taken_without_waiting_for_the_outage() -> None:
    story = Story(configured=(B,))
    site = story.good()
    story.tell(ConnectorHeard(site, "a", WILL), 700.0)
    (trial,) = story.connects(story.wait(701.0))
    assert (trial.endpoint, trial.carrying) == (B, True)
    story.tell(SessionOpened(trial.session))
    assert story.tell(ConnectorHeard(trial.session, "b", UP)) == [
        SaveOutage(None),
        Use(trial.session, "b"),
        Remember((B, A)),
    ]
    assert story.tell(CloudAcknowledged(trial.session)) == [Disconnect(site)]


def test_a_trial_that_hears_of_no_good_connector_is_given_up_in_time() -> None:
    story = Story(configured=(B,))
    site = story.good()
    story.tell(ConnectorHeard(site, "a", WILL), 700.0)
    (trial,) = story.connects(story.wait(701.0))
    story.tell(SessionOpened(trial.session), 701.0)
    assert Disconnect(trial.session) in story.wait(701.0 + limits.STATE_WAIT_S)


def test_searches_and_attempts_become_rarer_during_a_long_outage() -> None:
    story = Story(discovery=True, cloud=())
    site = story.good()
    story.tell(SessionEnded(site, "closed"), 700.0)
    attempts = 0
    while story.now < 700.0 + 3600.0:
        due = story.link.deadline()
        assert due is not None
        for command in story.tell(Wakeup(), due):
            attempts += isinstance(command, Connect | Search)
            if isinstance(command, Connect):
                story.tell(SessionEnded(command.session, "refused"), story.now)
                if Search() in story.said:
                    attempts += 1
                    story.tell(SearchEnded(), story.now + 1.5)
    assert attempts < 400


# --- Make before break ------------------------------------------------------------------------------------------------


def test_the_old_path_is_dropped_only_after_an_acknowledgement_through_the_new_one() -> None:
    story = Story()
    site = story.good()
    story.tell(ConnectorHeard(site, "a", WILL), 700.0)
    (cloud,) = story.connects(story.wait(1000.0))
    assert Disconnect(site) not in story.tell(SessionOpened(cloud.session))
    assert Disconnect(site) not in story.tell(CloudAcknowledged(site))
    assert Disconnect(site) in story.tell(CloudAcknowledged(cloud.session))


def test_a_connector_that_comes_back_before_the_cloud_is_proven_is_still_there_to_use() -> None:
    story = Story()
    site = story.good()
    story.tell(ConnectorHeard(site, "a", WILL), 700.0)
    (cloud,) = story.connects(story.wait(1000.0))
    story.tell(SessionOpened(cloud.session))
    assert Use(site, "a") in story.tell(ConnectorHeard(site, "a", AGAIN), 1000.5)
    assert Disconnect(cloud.session) in story.tell(CloudAcknowledged(site))


# --- Return -----------------------------------------------------------------------------------------------------------


def test_while_direct_the_connector_is_watched_by_a_silent_session() -> None:
    story = Story()
    story.direct()
    (observer,) = story.connects(story.wait(1000.0 + 75.0))
    assert (observer.kind, observer.endpoint, observer.carrying) == (Kind.CONNECTOR, A, False)


def _observed(story: Story) -> Connect:
    (observer,) = story.connects(story.said) or story.connects(story.wait(1080.0))
    story.tell(SessionOpened(observer.session))
    return observer


def test_the_hub_returns_when_the_connector_was_good_without_a_break_and_its_jitter_is_over() -> None:
    story = Story()
    cloud = story.direct()
    observer = _observed(story)
    good_at = story.now
    story.tell(ConnectorHeard(observer.session, "a", AGAIN))
    assert story.connects(story.wait(good_at + 60.0 - 0.1)) == []
    (back,) = story.connects(story.wait(good_at + 120.0))
    assert (back.endpoint, back.carrying) == (A, True)
    story.tell(SessionOpened(back.session))
    said = story.tell(ConnectorHeard(back.session, "a", AGAIN))
    assert Use(back.session, "a") in said
    assert Disconnect(observer.session) in said
    assert Disconnect(cloud) not in said
    assert story.tell(CloudAcknowledged(back.session)) == [Disconnect(cloud)]


def test_a_break_while_it_proves_itself_starts_the_watch_anew() -> None:
    story = Story()
    story.direct()
    observer = _observed(story)
    good_at = story.now
    story.tell(ConnectorHeard(observer.session, "a", AGAIN))
    story.wait(good_at + 50.0)
    assert story.tell(ConnectorHeard(observer.session, "a", ConnectorState(online=False, session=6))) == [
        SaveOutage(story.now),
        Disconnect(observer.session),
    ]
    assert not any(connect.carrying for connect in story.connects(story.wait(good_at + 150.0)))


def test_hubs_return_at_different_moments() -> None:
    moments = set()
    for seed in range(20):
        story = Story(seed=seed)
        story.direct()
        observer = _observed(story)
        story.tell(ConnectorHeard(observer.session, "a", AGAIN))
        started_at = story.now
        while not any(connect.carrying for connect in story.connects()):
            due = story.link.deadline()
            assert due is not None
            story.tell(Wakeup(), due)
        assert 60.0 <= story.now - started_at <= 120.0
        moments.add(round(story.now - started_at))
    assert len(moments) > 10


def test_a_lost_cloud_makes_a_good_connector_wanted_at_once() -> None:
    """Stability is asked of a connector only while another path works."""
    story = Story()
    cloud = story.direct()
    observer = _observed(story)
    story.tell(ConnectorHeard(observer.session, "a", AGAIN))
    said = story.tell(SessionEnded(cloud, "closed"))
    assert Halt() in said
    assert (A, True) in [(c.endpoint, c.carrying) for c in story.connects(story.wait(story.now + 1.0))]


def test_if_neither_path_works_both_are_tried() -> None:
    story = Story()
    cloud = story.direct()
    story.tell(SessionEnded(cloud, "closed"), 1001.0)
    kinds: set[Kind] = set()
    while story.now < 1300.0:
        due = story.link.deadline()
        assert due is not None
        for connect in story.connects(story.tell(Wakeup(), due)):
            kinds.add(connect.kind)
            story.tell(SessionEnded(connect.session, "refused"))
    assert kinds == set(Kind)


def test_the_cloud_addresses_are_tried_in_turn() -> None:
    story = Story(cached=(), cloud=("one:8883", "two:8883"))
    story.tell(Wakeup())
    tried = []
    for _ in range(3):
        while not story.connects():
            due = story.link.deadline()
            assert due is not None
            story.tell(Wakeup(), due)
        (connect,) = story.connects()
        tried.append(connect.endpoint)
        story.tell(SessionEnded(connect.session, "refused"))
    assert tried == ["one:8883", "two:8883", "one:8883"]


def test_word_of_a_session_that_was_given_up_is_ignored() -> None:
    story = Story()
    site = story.good()
    before = story.link.deadline()
    for event in (SessionOpened(99), SessionEnded(99, "late"), ConnectorHeard(99, "a", WILL), CloudAcknowledged(99)):
        assert story.tell(event) == []
    assert story.link.deadline() == before
    assert story.link.using is not None
    assert story.link.using.number == site


# --- What the simulation has found --------------------------------------------------------------------------------------


def test_hubs_that_lose_their_connector_together_go_to_the_cloud_within_a_few_seconds_but_not_together() -> None:
    moments = []
    for seed in range(100):
        story = Story(seed=seed, switch_jitter_s=limits.SWITCH_JITTER_S)
        site = story.good()
        story.tell(ConnectorHeard(site, "a", WILL), 700.0)
        while not any(connect.kind is Kind.DIRECT for connect in story.connects()):
            due = story.link.deadline()
            assert due is not None
            story.tell(Wakeup(), due)
        moments.append(story.now)
    assert min(moments) >= 1000.0
    assert max(moments) <= 1000.0 + limits.SWITCH_JITTER_S
    assert len({int(moment * 10) for moment in moments}) > 25


def test_a_birth_after_the_will_of_its_session_is_late() -> None:
    """Within a session the will is the last word; else a repeated birth would make a dead connector look good for ever."""
    story = Story()
    site = story.good()
    story.tell(ConnectorHeard(site, "a", WILL), 700.0)
    assert story.tell(ConnectorHeard(site, "a", UP), 701.0) == []
    assert story.link.using is None


def test_the_outage_begins_when_the_last_good_path_ended_whichever_loss_is_seen_last() -> None:
    """A watched connector was still good when the one in use had already fallen silent, unnoticed."""
    story = Story()
    story.direct()
    observer = _observed(story)
    story.tell(ConnectorHeard(observer.session, "a", AGAIN))
    (back,) = [connect for connect in story.connects(story.wait(story.now + 120.0)) if connect.carrying]
    story.tell(SessionOpened(back.session))
    heard_at = story.now
    story.tell(ConnectorHeard(back.session, "a", AGAIN))
    story.tell(SessionEnded(back.session, "no life sign", alive_at=heard_at - 20.0), heard_at + 20.0)
    assert story.link.out_at == heard_at  # The observer was left at this moment, and was good.


def test_a_running_outage_is_saved_again_so_that_a_step_of_the_clock_does_not_count() -> None:
    story = Story()
    site = story.good()
    story.tell(ConnectorHeard(site, "a", WILL), 700.0)
    said = story.wait(1000.0)
    saved = [command for command in said if command == SaveOutage(700.0)]
    assert len(saved) == pytest.approx(300 / limits.OUTAGE_SAVE_S, abs=1)
    assert SaveOutage(700.0) not in story.wait(1100.0)  # It counts in full by now.


def test_an_outage_from_the_start_on_is_saved_too() -> None:
    """A hub that is restarted again and again must come to its cloud."""
    story = Story()
    story.tell(Wakeup())
    assert SaveOutage(0.0) in story.wait(limits.OUTAGE_SAVE_S)


def test_a_direct_hub_that_loses_the_cloud_does_not_wait_for_another_outage() -> None:
    """It has only looked at the connector from afar, for a moment: that is no reason to be cut off for five minutes."""
    story = Story()
    cloud = story.direct()
    observer = _observed(story)
    story.tell(ConnectorHeard(observer.session, "a", AGAIN))
    story.tell(ConnectorHeard(observer.session, "a", ConnectorState(online=False, session=6)), story.now + 1.0)
    story.tell(SessionEnded(cloud, "closed"))
    assert Kind.DIRECT in [connect.kind for connect in story.connects(story.wait(story.now + 2.0))]


def test_a_connector_that_flickers_before_the_cloud_has_acknowledged_anything_takes_no_right_away() -> None:
    story = Story()
    site = story.good()
    story.tell(ConnectorHeard(site, "a", WILL), 700.0)
    (cloud,) = story.connects(story.wait(1000.0))
    story.tell(SessionOpened(cloud.session))
    story.tell(ConnectorHeard(site, "a", AGAIN), 1001.0)
    story.tell(ConnectorHeard(site, "a", ConnectorState(online=False, session=6)), 1002.0)
    story.tell(SessionEnded(cloud.session, "closed"), 1003.0)
    assert Kind.DIRECT in [connect.kind for connect in story.connects(story.wait(1005.0))]


def test_after_a_proven_return_a_further_outage_counts_from_its_own_beginning() -> None:
    story = Story()
    story.direct()
    observer = _observed(story)
    story.tell(ConnectorHeard(observer.session, "a", AGAIN))
    (back,) = [connect for connect in story.connects(story.wait(story.now + 120.0)) if connect.carrying]
    story.tell(SessionOpened(back.session))
    story.tell(ConnectorHeard(back.session, "a", AGAIN))
    story.tell(CloudAcknowledged(back.session))
    out_at = story.now
    said = story.tell(ConnectorHeard(back.session, "a", ConnectorState(online=False, session=6)))
    assert Kind.DIRECT not in [connect.kind for connect in story.connects(said + story.wait(out_at + 299.9))]


def test_a_session_to_the_cloud_that_was_never_used_ends_when_the_connector_is_good() -> None:
    """Else it would be taken at once at the next outage, long before five minutes."""
    story = Story()
    site = story.good()
    story.tell(ConnectorHeard(site, "a", WILL), 700.0)
    (cloud,) = story.connects(story.wait(1000.0))
    assert Disconnect(cloud.session) in story.tell(ConnectorHeard(site, "a", AGAIN), 1000.1)


def test_waits_grow_with_each_round_of_the_clouds_endpoints_and_not_with_each_of_them() -> None:
    """A cluster that has lost a node serves again within seconds; who has met three closed doors must not wait for twice that."""
    endpoints = tuple(f"cloud-{number}.example.com:8883" for number in range(1, 4))
    story = Story(cached=(), cloud=endpoints)
    tried, waits = list[str](), list[float]()
    for _ in range(30):
        ended_at = story.now
        (cloud,) = story.connects(_next(story))
        tried.append(cloud.endpoint)
        waits.append(story.now - ended_at)
        story.tell(SessionEnded(cloud.session, "refused"))
    waits = waits[1:]  # The first one is that of the start.
    assert tried == list(endpoints) * 10
    assert max(wait for number, wait in enumerate(waits, start=1) if number % len(endpoints)) <= limits.BACKOFF_FIRST_S
    rounds = waits[2::3]
    assert max(rounds) > 4 * limits.BACKOFF_FIRST_S
    assert all(wait <= limits.BACKOFF_FIRST_S * 2**number for number, wait in enumerate(rounds))


def _next(story: Story) -> list[Command]:
    """Let time pass until the link connects."""
    while True:
        due = story.link.deadline()
        assert due is not None
        if story.connects(story.tell(Wakeup(), max(story.now, due))):
            return story.said


def test_a_return_that_is_refused_is_tried_again_with_backoff() -> None:
    """The watched broker keeps the session that it has and takes no further ones."""
    story = Story()
    story.direct()
    observer = _observed(story)
    story.tell(ConnectorHeard(observer.session, "a", AGAIN))
    story.wait(story.now + 60.0)
    begun_at, refused = story.now, 0
    while story.now < begun_at + 600.0:
        for connect in story.connects():
            if connect.carrying:
                refused += 1
                story.tell(SessionEnded(connect.session, "refused"))
        due = story.link.deadline()
        assert due is not None
        story.tell(Wakeup(), due)
    assert 3 < refused < 60


def test_a_trial_of_the_outage_ends_when_the_cloud_is_proven() -> None:
    """Else its connector would be gone back to at once, without having been good for a minute."""
    story = Story(configured=(B,))
    site = story.good()
    story.tell(ConnectorHeard(site, "a", WILL), 700.0)
    trial, cloud = story.connects(story.wait(1000.0))
    story.tell(SessionOpened(cloud.session))
    assert Disconnect(trial.session) in story.tell(CloudAcknowledged(cloud.session))


# --- Two connectors ---------------------------------------------------------------------------------------------------


def test_hubs_prefer_different_connectors() -> None:
    links = [Story(hub_id=f"pc-{number}").link for number in range(100)]
    share = sum(link.candidates.rank(A) < link.candidates.rank(B) for link in links)
    assert 30 < share < 70


def test_a_hub_moves_back_to_the_connector_that_it_prefers() -> None:
    hub_id = next(
        name
        for name in (f"pc-{n}" for n in range(50))
        if Story(name).link.candidates.rank(A) < Story(name).link.candidates.rank(B)
    )
    story = Story(hub_id, cached=(B, A))
    (connect,) = story.connects(story.tell(Wakeup()))
    assert connect.endpoint == B
    story.tell(SessionOpened(connect.session))
    story.tell(ConnectorHeard(connect.session, "b", UP))
    story.tell(CloudAcknowledged(connect.session))
    (observer,) = story.connects(story.wait(80.0))
    assert (observer.endpoint, observer.carrying) == (A, False)
    story.tell(SessionOpened(observer.session))
    story.tell(ConnectorHeard(observer.session, "a", UP))
    (back,) = story.connects(story.wait(story.now + 120.0))
    assert (back.endpoint, back.carrying) == (A, True)
