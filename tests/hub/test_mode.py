"""Modes: whose addresses make a hub poll, and contacts that come on their grid, once, however late the machine wakes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest

from broker.control import DesiredSettings, Task
from broker.machine import Wakeup
from broker.messages import Ack, HubState
from broker.runner import monotonic_s
from config import limits
from config.errors import SettingsError
from config.settings import HubMode
from hub.memory import PathMemory
from hub.mode import Begin, Contact, Contacts, Ended, is_within, keeps_session, mode_of, networks_of
from hub.mode_line import Line
from tests.hub.test_reporting import settings_of

HEARTBEAT, POLL = Contact.HEARTBEAT, Contact.POLL
MINUTE_S = 60.0


# --- Which mode ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranges", "address", "inside"),
    [
        (["10.20.0.0/16"], "10.20.255.255", True),
        (["10.20.0.0/16"], "10.21.0.0", False),
        (["10.20.30.40/16"], "10.20.0.1", True),
        (["192.168.1.10-192.168.1.50"], "192.168.1.10", True),
        (["192.168.1.10-192.168.1.50"], "192.168.1.50", True),
        (["192.168.1.10-192.168.1.50"], "192.168.1.51", False),
        (["192.168.1.10-192.168.1.50"], "192.168.1.9", False),
        (["fd00:20::/48"], "fd00:20::7", True),
        (["fd00:20::/48"], "fd00:21::7", False),
        (["fd00:20::/48"], "fd00:20::7%eth0", True),
        (["fd00:20::7"], "fd00:20::7", True),
        (["0.0.0.0/0"], "::1", False),
        (["::/0"], "10.0.0.1", False),
        (["10.0.0.0/8", "172.16.0.0/12"], "172.31.0.1", True),
        (["10.0.0.0/8"], "no address", False),
        ([], "10.0.0.1", False),
    ],
)
def test_an_address_is_in_a_range_or_not(ranges: list[str], address: str, inside: bool) -> None:
    assert is_within([address], networks_of(ranges)) is inside


def test_one_address_of_many_is_enough() -> None:
    assert is_within(["192.0.2.1", "fd00::1", "10.20.0.1"], networks_of(["10.20.0.0/16"]))


@pytest.mark.parametrize(
    "text", ["10.0.0.0/33", "10.0.0.300", "10.0.0.9-10.0.0.1", "fd00::/129", "1.2.3.4-", "10.0.0.1-fd00::1", "::1-::2"]
)
def test_what_is_no_range_is_told_with_its_key(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        networks_of([text])
    assert "mode.unreachable" in str(caught.value)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "address", "keeps"),
    [
        ("auto", "10.20.0.1", False),
        ("auto", "10.21.0.1", True),
        ("continuous", "10.20.0.1", True),
        ("polling", "10.21.0.1", False),
    ],
)
def test_a_hub_polls_if_its_network_or_its_settings_say_so(kind: str, address: str, keeps: bool) -> None:
    ranges = networks_of(["10.20.0.0/16"])
    assert keeps_session(HubMode(kind=kind), ranges, [address]) is keeps  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "unreachable", "present", "keeps"),
    [
        ("auto", ["10.20.0.0/16"], True, True),
        ("auto", ["10.20.0.0/16"], False, False),
        ("auto", ["10.20.0.0/16"], None, False),
        ("auto", [], None, True),
        ("auto", [], False, True),
        ("continuous", ["10.20.0.0/16"], False, True),
        ("polling", ["10.20.0.0/16"], True, False),
    ],
)
def test_without_an_address_a_hub_stays_in_its_mode_and_at_its_start_it_polls_if_it_might_have_to(
    kind: str, unreachable: list[str], present: bool | None, keeps: bool
) -> None:
    """A cable that is out for a moment must not make it keep a session where none may be kept."""
    mode = HubMode(kind=kind)  # type: ignore[arg-type]
    assert keeps_session(mode, networks_of(unreachable), [], present=present) is keeps


def test_roaming_is_told_before_all_else() -> None:
    assert mode_of(continuous=True, roaming=False) == "continuous"
    assert mode_of(continuous=False, roaming=False) == "polling"
    assert {mode_of(continuous=continuous, roaming=True) for continuous in (True, False)} == {"roaming"}


# --- When ------------------------------------------------------------------------------------------------------------


class Worst(Random):
    """Jitter and backoff at their largest: what must hold then holds always."""

    def uniform(self, a: float, b: float) -> float:
        return b


def contacts(
    heartbeat_s: float | None = 600.0, poll_s: float | None = 1800.0, random: Random | None = None
) -> Contacts:
    return Contacts(heartbeat_s, poll_s, random=random or Random(1), started_at=100.0)


def test_the_first_poll_comes_at_the_start() -> None:
    this = contacts()
    assert this.deadline() == 100.0
    assert this.handle(Wakeup(), 100.0) == [Begin(POLL)]
    assert this.under_way is POLL
    assert this.deadline() is None


def test_nothing_begins_while_a_contact_is_under_way() -> None:
    this = contacts()
    this.handle(Wakeup(), 100.0)
    assert this.handle(Wakeup(), 99_999.0) == []


def test_a_hub_that_keeps_its_session_only_has_heartbeats() -> None:
    this = contacts(poll_s=None)
    assert this.handle(Wakeup(), 100.0) == []
    at = this.deadline()
    assert at is not None
    assert 100.0 < at <= 100.0 + 600.0 + limits.CONTACT_JITTER_MAX_S
    assert this.handle(Wakeup(), at) == [Begin(HEARTBEAT)]


def test_without_either_nothing_is_ever_due() -> None:
    this = contacts(None, None)
    assert this.deadline() is None
    assert this.handle(Wakeup(), 1e9) == []


def test_a_poll_comes_before_a_heartbeat_and_stands_for_it() -> None:
    """The machine slept: both are due."""
    this = contacts()
    this.handle(Wakeup(), 100.0)
    this.handle(Ended(POLL, True), 110.0)
    assert this.handle(Wakeup(), 50_000.0) == [Begin(POLL)]
    assert this.handle(Ended(POLL, True), 50_001.0) == []
    assert this.handle(Wakeup(), 50_001.0) == []


def test_a_machine_that_slept_makes_up_for_it_once() -> None:
    this = contacts(poll_s=None)
    assert this.handle(Wakeup(), 1e6) == [Begin(HEARTBEAT)]
    assert this.handle(Ended(HEARTBEAT, True), 1e6) == []
    deadline = this.deadline()
    assert deadline is not None
    assert deadline > 1e6


def test_a_contact_that_reached_nobody_is_tried_again_after_a_wait_that_grows() -> None:
    this = contacts(random=Worst())
    now = 100.0
    waits = []
    for _ in range(8):
        assert this.handle(Wakeup(), now) == [Begin(POLL)]
        assert this.handle(Ended(POLL, False), now) == []
        assert this.handle(Wakeup(), now) == []
        deadline = this.deadline()
        assert deadline is not None
        waits.append(deadline - now)
        now = deadline
    assert waits[0] == limits.CONTACT_RETRY_FIRST_S
    assert waits == sorted(waits)
    assert waits[-1] == min(limits.CONTACT_RETRY_MAX_S, 600.0)
    assert this.due_at(POLL) == now


def test_a_failed_heartbeat_becomes_a_poll_if_that_comes_due_meanwhile() -> None:
    this = contacts(heartbeat_s=600.0, poll_s=700.0, random=Worst())
    this.handle(Wakeup(), 100.0)
    this.handle(Ended(POLL, True), 100.0)
    at = this.due_at(HEARTBEAT)
    assert at is not None
    assert this.handle(Wakeup(), at) == [Begin(HEARTBEAT)]
    this.handle(Ended(HEARTBEAT, False), at)
    poll_at = this.due_at(POLL)
    assert poll_at is not None
    assert this.handle(Wakeup(), max(poll_at, this.deadline() or 0.0)) == [Begin(POLL)]


def test_the_end_of_a_contact_that_is_not_under_way_changes_nothing() -> None:
    this = contacts()
    this.handle(Wakeup(), 100.0)
    assert this.handle(Ended(HEARTBEAT, True), 105.0) == []
    assert this.under_way is POLL
    this.handle(Ended(POLL, True), 110.0)
    deadline = this.deadline()
    assert this.handle(Ended(POLL, True), 111.0) == []
    assert this.deadline() == deadline


@pytest.mark.parametrize("seed", range(40))
def test_no_history_lets_a_hub_be_silent_for_longer_than_its_interval_and_the_jitter(seed: int) -> None:
    """Contacts of any length, late wakeups, failures: what is due comes at once, one at a time, and never in a burst."""
    random = Random(seed)
    heartbeat_s = random.choice([60.0, 600.0, 3600.0])
    poll_s = random.choice([60.0, 1800.0, 86_400.0])
    this = Contacts(heartbeat_s, poll_s, random=Random(seed), started_at=0.0)
    now, life_sign_at, polled_at = 0.0, 0.0, 0.0
    jitter_s = min(limits.CONTACT_JITTER_MAX_S, limits.CONTACT_JITTER_SHARE * heartbeat_s)
    poll_jitter_s = min(limits.CONTACT_JITTER_MAX_S, limits.CONTACT_JITTER_SHARE * poll_s)
    for _ in range(400):
        deadline = this.deadline()
        assert deadline is not None
        late_s = random.choice([0.0, 0.0, 0.0, random.uniform(0.0, 5 * heartbeat_s)])
        now = max(now, deadline) + late_s
        (begin,) = this.handle(Wakeup(), now)
        lasted_s = random.choice([0.5, 5.0, random.uniform(0.0, 600.0)])
        reached = random.random() > 0.2
        if reached and late_s == 0.0:
            assert now - life_sign_at <= heartbeat_s + jitter_s + 1e-6
            assert begin.contact is not POLL or now - polled_at <= poll_s + poll_jitter_s + 1e-6 or polled_at == 0.0
        now += lasted_s
        repeated = this.handle(Ended(begin.contact, reached), now)
        assert len(repeated) <= 1
        if repeated:
            this.handle(Ended(repeated[0].contact, True), now)
        if not reached or repeated:
            life_sign_at = polled_at = now  # The wait after a failure is another matter.
            continue
        life_sign_at = now
        polled_at = now if begin.contact is POLL else polled_at
        assert this.deadline() is not None


def test_hubs_that_start_together_do_not_poll_together_for_ever() -> None:
    """A network's hubs are switched on at the same moment, and share one way out."""
    turns = []
    for seed in range(50):
        this = contacts(random=Random(seed))
        this.handle(Wakeup(), 100.0)
        this.handle(Ended(POLL, True), 101.0)
        turns.append(round((this.due_at(POLL) or 0.0) / MINUTE_S))
    assert max(turns.count(turn) for turn in turns) < 8


# --- Who makes contact for what --------------------------------------------------------------------------------------


class Nobody:
    """A subscriber of a line over which nothing comes."""

    busy = has_waiting = False
    settings_hash = "0" * 16

    def introduction(self, session: int, via: str) -> HubState:
        return HubState(online=True, epoch="0" * 16, session=session, via=via)

    async def delivered(self) -> None:
        pass

    def report_now(self) -> None:
        pass

    def path_opened(self) -> None:
        pass

    def path_closed(self) -> None:
        pass

    def path_changed(self) -> None:
        pass

    def acknowledged(self, ack: Ack) -> None:
        pass

    def task_received(self, task: Task) -> None:
        pass

    def settings_received(self, settings: DesiredSettings) -> None:
        pass


@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("heartbeat", ["off", "unreachable", "all"])
def test_heartbeats_are_sent_by_nobody_by_all_or_by_those_that_poll_and_polls_by_the_latter(
    tmp_path: Path, heartbeat: str, continuous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sends one too few is called offline; whoever sends one too many costs its network a session each time."""
    monkeypatch.setattr(limits, "STOP_LEAVE_S", 0.0)  # There is nobody to say goodbye to.
    mode = f'[mode]\nheartbeat = "{heartbeat}"\nheartbeat_min = 10\npoll_min = 40\n'
    settings = settings_of(tmp_path, f"[connector]\ndiscovery = false\n{mode}")

    async def next_session() -> int:
        return 1

    async def due_in_s() -> dict[Contact, float | None]:
        line = Line(settings, PathMemory(tmp_path / "path"), "0" * 16, next_session, Nobody(), continuous=continuous)
        begun = monotonic_s()
        running = asyncio.create_task(line.run())
        await asyncio.sleep(0)  # Its first step makes the plan.
        under_way = line.contact
        due = {contact: line.due_at(contact) for contact in Contact}
        running.cancel()
        await asyncio.wait([running])
        return {
            contact: 0.0 if contact is under_way else None if at is None else at - begun for contact, at in due.items()
        }

    found = asyncio.run(due_in_s())
    beats = heartbeat == "all" or (heartbeat == "unreachable" and not continuous)
    assert (found[HEARTBEAT] is not None) is beats
    assert (found[POLL] is not None) is not continuous
    assert (found[HEARTBEAT] or 0.0) <= 10 * MINUTE_S + limits.CONTACT_JITTER_MAX_S
