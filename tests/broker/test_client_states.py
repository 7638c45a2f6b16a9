"""What a session that asks again for states lets through: each word once, and none that is older than what came live."""

from __future__ import annotations

from broker.client_states import States
from config import limits

STATE = "hl1/acme/berlin/hub/pc-1/state"
OTHER = "hl1/acme/berlin/hub/pc-2/state"
OF_STATES = [("hl1/acme/berlin/hub/+/state", 1)]
OF_CONNECTORS = [("hl1/acme/berlin/connector/+/state", 1)]
FILTERS = [("hl1/acme/berlin/hub/+/heartbeat", 1), *OF_STATES]


def asked(*retained: tuple[str, bytes]) -> States:
    """Return what has asked once, has heard this, and has just asked again."""
    states = States(limits.SUBSCRIBE_AGAIN_S)
    states.asked(1, FILTERS)
    for topic, payload in retained:
        assert states.heard(topic, payload, True)
    assert states.granted(1) is not None
    states.ask_again()
    return states


def test_only_states_are_asked_for_again_twice_and_then_never_more() -> None:
    """Heartbeats are not retained; an endless circle of subscriptions would be a load of its own."""
    states = States(limits.SUBSCRIBE_AGAIN_S)
    states.asked(1, FILTERS[:1])
    assert states.granted(1) is None
    states.asked(2, FILTERS)
    states.asked(3, OF_CONNECTORS)
    first_s, second_s = limits.SUBSCRIBE_AGAIN_S
    assert (states.granted(2), states.granted(3)) == (first_s, first_s)
    assert states.granted(2) is None, "the answer to what was asked for again"
    assert states.ask_again() == ([*OF_STATES, *OF_CONNECTORS], second_s)
    assert states.ask_again() == ([*OF_STATES, *OF_CONNECTORS], None)


def test_what_was_missed_is_heard_and_what_was_heard_is_not_heard_again() -> None:
    """Each answer holds everything that is retained."""
    states = asked((STATE, b"born"))
    assert not states.heard(STATE, b"born", True)
    assert states.heard(OTHER, b"born", True)
    assert states.heard(STATE, b"ended", True), "published meanwhile"


def test_a_copy_that_comes_after_a_live_word_is_older() -> None:
    """A hub that has just died would be there again, for good."""
    states = asked((STATE, b"born"))
    assert states.heard(STATE, b"ended", False)
    assert not states.heard(STATE, b"born", True)
    assert states.heard(STATE, b"ended", False), "whatever comes live is news"


def test_who_asks_anew_hears_anew_what_he_has_asked_for() -> None:
    """A bridge tells a cloud that was away all states again."""
    states = asked((STATE, b"born"))
    states.heard(STATE, b"ended", False)
    states.asked(2, OF_CONNECTORS)
    assert not states.heard(STATE, b"born", True)
    states.asked(3, FILTERS)
    assert states.heard(STATE, b"ended", True)


def test_what_is_left_is_not_asked_for_again() -> None:
    """A subscription that was ended in the meantime would come back."""
    states = asked()
    states.left([OF_STATES[0][0]])
    assert states.ask_again()[0] == []
    states.asked(2, FILTERS)
    assert states.ask_again()[0] == OF_STATES


def test_other_messages_are_all_heard() -> None:
    """An acknowledgement is none of ours, whatever it repeats."""
    states = asked()
    for _ in range(2):
        assert states.heard("hl1/acme/berlin/hub/pc-1/down/ack", b"same", True)


def test_who_listens_to_everything_hears_everything() -> None:
    """He has not asked for states, so nobody asks again for him, and nothing is held back."""
    states = States(limits.SUBSCRIBE_AGAIN_S)
    states.asked(1, [("hl1/acme/#", 0)])
    assert states.granted(1) is None
    assert states.heard(STATE, b"ended", False)
    assert states.heard(STATE, b"born", True)


def test_a_wider_subscription_makes_everything_news_again() -> None:
    """Retained messages that match a filter come again each time that it is asked for."""
    states = asked((STATE, b"born"))
    states.asked(2, [("hl1/acme/#", 0)])
    assert states.heard(STATE, b"born", True)


def test_what_is_remembered_is_bounded() -> None:
    """Beyond it nothing is held back; whoever listens is told what he knows."""
    states = asked()
    for number in range(limits.STATES_REMEMBERED):
        assert states.heard(f"hl1/acme/berlin/hub/{number}/state", b"born", True)
    for _ in range(2):
        assert states.heard(STATE, b"born", True)
