"""Every combination of the status vector has its icon, its sentence and its actions, by rule."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from broker import status
from broker.control import Connection, Presence, Protection
from broker.messages import DIRECT, decode, encode
from broker.status import CONDITIONS, ICONS, Reason, Severity, Vector, assess
from broker.status_icons import read_icon
from broker.status_table import protections
from broker.status_text import WORDS, Language, Words

CONNECTIONS: tuple[Connection, ...] = get_args(Connection)
LANGUAGES: tuple[Language, ...] = get_args(Language)
REASONS = (*get_args(Reason), "", "something new", "rejected: something new")
GOOD = Protection("conventional", "current", "enabled", "reachable")
T0 = 1_763_798_400_000
FOLDER = Path(status.__file__).parent / "icons"
SVG = "{http://www.w3.org/2000/svg}"


def vectors() -> Iterator[tuple[Connection, Protection | None, str]]:
    """Return every vector there is, with every reason."""
    yield from itertools.product(CONNECTIONS, (None, *protections()), REASONS)


def ids(connection: Connection, protection: Protection | None, reason: str = "") -> list[str]:
    """Return the ids of the required actions, in order."""
    return [action.id for action in assess(connection, protection, reason=reason).actions]


# --- Every combination ------------------------------------------------------------------------------------------------


def test_there_are_as_many_combinations_as_the_dimensions_have_values() -> None:
    """A test of all combinations is worth what its list is."""
    assert len(set(map(str, protections()))) == len(list(protections())) == 2 * 2 * 3 * 2
    assert len(list(vectors())) == 6 * (24 + 1) * len(REASONS)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_combination_has_an_icon_a_sentence_and_actions_that_fit_the_contract(language: Language) -> None:
    """A cell that nobody thought of would show an operator nothing at all, on the day it happens."""
    for connection, protection, reason in vectors():
        told = assess(
            connection,
            protection,
            reason=reason,
            language=language,
            via="berlin-1",
            last_seen_ms=T0,
            expected_direct_by_ms=T0,
        )
        assert told.icon in ICONS
        assert re.fullmatch(r"[A-ZÄÖÜ][^.{}]+\.", told.text), told.text
        assert len(told.text) <= 400, told.text
        assert len({action.id for action in told.actions}) == len(told.actions)
        presence = Presence(connection, T0, "berlin-1", reason, T0, told.icon, told.text, list(told.actions))
        assert decode(encode(presence), Presence) == presence


def test_both_languages_say_the_same_with_other_words() -> None:
    """Whoever switches the language must not get another diagnosis."""
    for connection, protection, reason in vectors():
        english, german = (assess(connection, protection, reason=reason, language=language) for language in LANGUAGES)
        assert english.icon == german.icon
        assert [(each.id, each.who) for each in english.actions] == [(each.id, each.who) for each in german.actions]
        assert english.text != german.text
        assert all(one.text != other.text for one, other in zip(english.actions, german.actions, strict=True))


def test_different_protection_is_told_differently() -> None:
    """If two vectors had the same sentence, one of them would hide what is wrong."""
    for connection, scan in itertools.product(CONNECTIONS, ("conventional", "smart")):
        of_scan = [each for each in protections() if each.scan == scan]
        assert len({assess(connection, each).text for each in of_scan}) == len(of_scan) == 12
    for protection in (None, *protections()):
        assert len({assess(connection, protection).text for connection in CONNECTIONS}) == 6


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_every_word_is_there_and_used(words: object) -> None:
    """A word that is missing in one language would be a KeyError for its readers only; an unused one is a lie."""
    assert isinstance(words, Words)
    silent = {"roaming-bars-console"}
    assert set(words.clauses) == {each.id for each in CONDITIONS} - silent
    assert set(words.actions) == {step.id for each in CONDITIONS for step in each.steps}
    assert set(words.names) == set(get_args(status.State))
    assert set(words.calm) == set(status.CONNECTED)
    assert all(text.endswith(".") and len(text) <= 140 for text in words.actions.values())


# --- Actions close themselves -----------------------------------------------------------------------------------------

STEPS_OF = {each.id: [step.id for step in each.steps] for each in CONDITIONS}


def steps(*conditions: str) -> set[str]:
    """Return the ids of the steps of some conditions."""
    return {step for condition in conditions for step in STEPS_OF[condition]}


def without(protection: Protection, dimension: str) -> Protection:
    """Return the protection with one dimension made good."""
    return msgspec.structs.replace(protection, **{dimension: getattr(GOOD, dimension)})


def test_removing_a_condition_removes_exactly_its_actions_and_keeps_the_order_of_the_others() -> None:
    """Nobody ticks an action off: it goes when its cause is gone, and takes no other with it."""
    for connection, protection, reason in vectors():
        if protection is None:
            continue
        before = ids(connection, protection, reason)
        gone = {
            "pattern": steps("pattern-old"),
            "realtime": steps("realtime-disabled", "realtime-stopped", "roaming-bars-console"),
            "reputation": steps("smart-unreachable", "web-unreachable"),
        }
        for dimension, closed in gone.items():
            good = getattr(protection, dimension) == getattr(GOOD, dimension)
            after = ids(connection, without(protection, dimension), reason)
            assert after == [each for each in before if each not in closed]
            assert (after == before) == good
        of_protection = set().union(*gone.values())
        assert ids(connection, None, reason) == [each for each in before if each not in of_protection]


def test_good_connection_removes_the_actions_of_the_bad_one_and_no_other() -> None:
    """What the machine itself lacks is still lacking when the contact is back."""
    contact = steps(*(each.id for each in CONDITIONS if each.about == "contact"))
    for connection, protection, reason in vectors():
        left = [each for each in ids(connection, protection, reason) if each not in contact | {"leave-roaming"}]
        assert ids("online", protection) == left


def test_nothing_to_do_if_nothing_is_wrong() -> None:
    """An action that is always there is soon not read any more."""
    for connection in status.CONNECTED:
        for protection in (None, GOOD, msgspec.structs.replace(GOOD, scan="smart")):
            told = assess(connection, protection, reason="started")
            assert (told.icon, told.actions) == (f"{connection}-ok", ())


def test_contact_comes_before_everything_that_is_done_from_afar() -> None:
    """The console reaches nothing while the clock is wrong or the cable is out."""
    worst = Protection("smart", "old", "disabled", "unreachable")
    for connection, reason in itertools.product(CONNECTIONS, REASONS):
        alone = ids(connection, None, reason)
        assert ids(connection, worst, reason)[: len(alone)] == alone


# --- One status that does not contradict itself -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("connection", "reason", "state"),
    [
        ("online", "started", "online"),
        ("online", "stopped cleanly", "online"),
        ("online", "never seen", "online"),
        ("online", "rejected: duplicate identity", "online"),
        ("roaming", "lost contact", "roaming"),
        ("offline", "", "offline"),
        ("offline", "started", "offline"),
        ("offline", "lost contact", "offline"),
        ("offline", "heartbeat missed", "offline"),
        ("offline", "stopped cleanly", "stopped"),
        ("offline", "paused", "paused"),
        ("offline", "never seen", "never-seen"),
        ("offline", "rejected: clock", "rejected"),
        ("offline", "rejected: certificate", "rejected"),
        ("offline", "rejected: revoked", "rejected"),
        ("offline", "rejected: duplicate identity", "rejected"),
        ("unreachable-online", "heartbeat missed", "unreachable-online"),
        ("unreachable-offline", "heartbeat missed", "unreachable-offline"),
        ("unreachable-offline", "stopped cleanly", "stopped"),
        ("path-down", "path down", "path-down"),
        ("path-down", "stopped cleanly", "path-down"),
        ("path-down", "rejected: clock", "path-down"),
        ("offline", "rejected: something new", "rejected"),
    ],
)
def test_reason_says_more_than_the_connection_but_never_the_opposite(
    connection: Connection, reason: str, state: status.State
) -> None:
    """A hub that is online was not "never seen", whatever an old reason says."""
    assert Vector(connection, None, reason).state == state
    assert assess(connection, None, reason=reason).text.startswith(WORDS["en"].names[state])


@pytest.mark.parametrize(
    ("connection", "reason", "icon", "text", "actions"),
    [
        ("online", "rejected: clock", "online-warning", "Online, but its clock is wrong.", ["set-clock"]),
        ("online", "rejected: duplicate identity", "online-error", "Online, but two machines use the same identity.",
         ["separate-machines"]),
        ("offline", "rejected: clock", "rejected-warning", "Rejected: its clock is wrong.", ["set-clock"]),
        ("offline", "rejected: certificate", "rejected-error", "Rejected: its certificate is not valid.",
         ["renew-certificate"]),
        ("offline", "rejected: revoked", "rejected-error", "Rejected: its certificate has been revoked.", ["settle-revocation"]),
        ("offline", "rejected: duplicate identity", "rejected-error", "Rejected: two machines use the same identity.",
         ["separate-machines"]),
        ("offline", "never seen", "never-seen", "Never seen: it has not reported yet.", ["install-hub"]),
        ("offline", "stopped cleanly", "stopped", "Stopped: its service was shut down properly.", ["start-hub"]),
        ("offline", "paused", "paused", "Paused: nothing is expected of it at present.", ["end-pause"]),
        ("offline", "lost contact", "offline", "Offline: there is no contact with it.", ["check-connection"]),
        ("offline", "heartbeat missed", "offline", "Offline: its heartbeat has not come in time.", ["check-connection"]),
        ("unreachable-offline", "heartbeat missed", "unreachable-offline",
         "Unreachable/Offline: neither heartbeat nor poll has come in time.", ["check-way-out"]),
        ("path-down", "path down", "path-down", "Path down: the way through its connector is interrupted.", ["check-connector"]),
    ],
)  # fmt: skip
def test_each_reason_of_ours_has_its_icon_its_sentence_and_its_action(
    connection: Connection, reason: str, icon: str, text: str, actions: list[str]
) -> None:
    """ "Offline" alone sends people to the wrong place: a wrong clock is not a cut cable."""
    told = assess(connection, None, reason=reason)
    assert (told.icon, told.text, [each.id for each in told.actions]) == (icon, text, actions)


# --- Details of the sentence ------------------------------------------------------------------------------------------


def test_path_that_is_down_is_told_with_connector_last_sign_and_what_is_expected() -> None:
    """The hub is not offline: it will come by another way, and the reader wants to know until when to wait."""
    told = assess("path-down", None, via="berlin-1", last_seen_ms=T0, expected_direct_by_ms=T0 + 300_000)
    assert told.text == (
        "Path down: the way through connector berlin-1 is interrupted, last seen 2025-11-22 08:00 UTC, "
        "expected directly by 2025-11-22 08:05 UTC."
    )
    assert told.actions[0].text.startswith("Look at connector berlin-1 ")
    german = assess(
        "path-down", None, language="de", via="berlin-1", last_seen_ms=T0, expected_direct_by_ms=T0 + 300_000
    )
    assert german.text == (
        "Weg unterbrochen: der Weg über den Connector berlin-1 ist unterbrochen, zuletzt gesehen 2025-11-22 08:00 UTC, "
        "direkt erwartet bis 2025-11-22 08:05 UTC."
    )
    assert assess("path-down", None, via=DIRECT) == assess("path-down", None)


def test_moments_are_told_only_while_there_is_no_contact_and_only_if_they_exist() -> None:
    """A sentence with the time of the last message in it would be published again with every message."""
    for connection in CONNECTIONS:
        told = assess(connection, None, last_seen_ms=T0, expected_direct_by_ms=T0)
        assert ("last seen" in told.text) == (connection not in status.CONNECTED)
        assert ("expected" in told.text) == (connection == "path-down")
        for impossible in (2**53, -1):
            assert assess(connection, None, last_seen_ms=impossible) == assess(connection, None)


def test_roaming_hub_that_is_away_is_told_so_and_nobody_has_to_act() -> None:
    """A laptop in a bag: its roaming is meant, and what it said last is not the present."""
    old = msgspec.structs.replace(GOOD, pattern="old")
    told = assess("roaming", old, reason="lost contact", last_seen_ms=T0)
    assert told.text == (
        "Roaming: there is no contact with it, last seen 2025-11-22 08:00 UTC; last reported: the virus patterns are old."
    )
    assert assess("roaming", None, reason="lost contact").actions == ()


def test_hub_without_contact_is_told_with_what_it_reported_last() -> None:
    """Its protection may be better or worse by now; the sentence says that it is not the present."""
    told = assess(
        "offline", msgspec.structs.replace(GOOD, realtime="disabled", pattern="old"), reason="stopped cleanly"
    )
    assert told.icon == "stopped-error"
    assert told.text == (
        "Stopped: its service was shut down properly; last reported: real-time scanning is switched off and the virus "
        "patterns are old."
    )


# --- Icons ------------------------------------------------------------------------------------------------------------


def drawn(name: str) -> str:
    """Return an icon without its title and without every colour but white, as somebody sees it who sees no colours."""
    root = ET.parse(FOLDER / f"{name}.svg").getroot()
    for title in root.findall(f"{SVG}title"):
        root.remove(title)
    for each in root.iter():
        for paint in ("fill", "stroke"):
            if each.get(paint) not in (None, "none", "#ffffff"):
                each.set(paint, "black")
    return ET.tostring(root, encoding="unicode")


def test_there_is_a_file_for_every_icon_and_an_icon_for_every_file() -> None:
    """A missing picture is a hole in the matrix, whatever the rules say."""
    assert sorted(file.name for file in FOLDER.iterdir()) == sorted(f"{name}.svg" for name in ICONS)
    assert len(set(ICONS)) == len(ICONS) == 29
    reached = {assess(connection, protection, reason=reason).icon for connection, protection, reason in vectors()}
    assert reached == set(ICONS)


def test_icons_differ_without_their_colours() -> None:
    """One man in twelve does not see the difference between red and green."""
    assert len({drawn(name) for name in ICONS}) == len(ICONS)


@pytest.mark.parametrize("name", ICONS)
def test_icon_is_a_small_picture_with_a_title_and_nothing_else(name: str) -> None:
    """It is put into pages: no script, no reference to elsewhere; a screen reader reads its title."""
    content = read_icon(name)
    assert content is not None
    root = ET.fromstring(content)
    assert root.attrib == {"width": "24", "height": "24", "viewBox": "0 0 24 24", "role": "img"}
    title, *shapes = root
    assert title.tag == f"{SVG}title"
    assert title.text is not None
    assert title.text.lower().startswith(WORDS["en"].names[name_of_state(name)].lower())
    assert shapes
    assert {each.tag for each in shapes} <= {f"{SVG}path", f"{SVG}circle"}
    assert all(set(each.attrib) <= {"d", "cx", "cy", "r", "fill", "stroke", "stroke-width"} for each in shapes)


def name_of_state(icon: str) -> str:
    """Return the state of an icon's name."""
    return re.sub(r"-(ok|warning|error)$", "", icon)


def test_titles_are_all_different() -> None:
    """Two icons with one title are one icon to somebody who hears them."""
    titles = {ET.parse(FOLDER / f"{name}.svg").getroot()[0].text for name in ICONS}
    assert len(titles) == len(ICONS)


def test_badge_shows_the_worst_condition() -> None:
    """Two warnings do not hide an error."""
    old = msgspec.structs.replace(GOOD, pattern="old")
    assert assess("online", old).icon == "online-warning"
    assert assess("online", msgspec.structs.replace(old, realtime="disabled")).icon == "online-error"
    assert assess("online", old, reason="rejected: duplicate identity").icon == "online-error"
    assert assess("online", GOOD, reason="rejected: clock").icon == "online-warning"
    assert max(Severity) is Severity.ERROR


@pytest.mark.parametrize("name", ["", "online", "../status", "online-ok.svg", "/etc/passwd"])
def test_what_is_no_icon_is_not_read(name: str) -> None:
    """The name may come from a URL."""
    assert read_icon(name) is None


def test_conditions_are_told_apart_by_their_ids() -> None:
    """The ids are how programs know an action again, in every language."""
    assert len({each.id for each in CONDITIONS}) == len(CONDITIONS)
    assert replace(CONDITIONS[0]) == CONDITIONS[0]
