"""What is known of the status of clients in similar systems, sentence by sentence, and the tests that prove it here.

Each sentence is in our own words. Where a sentence, or a part of it, is not built yet, `later` says which: it stays so until
a test of this file says that it is there.
"""

from __future__ import annotations

import ast
import configparser
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_args

import pytest

from config.settings import Action, HubTasks

TESTS = Path(__file__).parent
OF_PRESENCE = "cloud.test_presence_sentences"
OF_STATUS = "broker.test_status_sentences"
OF_OPERATIONS = "cloud.test_operations_sentences"
NAMED_BY_SENTENCE = (OF_PRESENCE, OF_STATUS, OF_OPERATIONS)
"""Modules whose every test is named after its sentence: none of these may be missing here."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence and its proofs, each "module::function" below `tests`; `later` is what of it is not built yet."""

    text: str
    proofs: tuple[str, ...] = ()
    later: str = ""


def of(module: str, *names: str) -> tuple[str, ...]:
    """Return the full names of tests of a module."""
    return tuple(f"{module}::test_{name}" for name in names)


STATES = (
    Sentence(
        "Online is a continuous connection.",
        of(OF_PRESENCE, "online_is_a_continuous_connection"),
    ),
    Sentence(
        "To an online client the server can start tasks and deploy settings.",
        of(OF_OPERATIONS, "tasks_and_settings_are_started_toward_hubs_that_are_online_and_no_other")
        + of("cloud.test_tasks", "a_task_for_a_hub_in_reach_is_saved_as_sent_and_then_sent")
        + of("cloud.test_desired", "each_event_leads_to_what_the_table_says"),
    ),
    Sentence(
        "Offline is disconnected.",
        of(OF_PRESENCE, "offline_is_disconnected"),
    ),
    Sentence(
        "An offline client can't be managed.",
        of(
            OF_OPERATIONS,
            "tasks_and_settings_are_started_toward_hubs_that_are_online_and_no_other",
            "nothing_is_started_toward_a_hub_whose_path_is_down",
        )
        + of("cloud.test_tasks", "a_task_waits_while_the_hub_is_not_in_reach"),
    ),
    Sentence(
        "Roaming is entered by the user, where the privilege allows it.",
        of(OF_PRESENCE, "roaming_is_entered_by_the_user")
        + of(
            "hub.test_mode_roaming",
            "a_hub_roams_from_the_word_on_until_the_next_one",
            "without_the_privilege_nobody_roams",
            "a_privilege_that_is_taken_away_ends_the_roaming",
            "the_privilege_may_come_from_the_cloud",
        )
        + of("hub.test_mode", "roaming_is_told_before_all_else"),
    ),
    Sentence(
        "Roaming is also given to clients that have lost the connection for long, if that is wanted.",
        of(
            OF_PRESENCE,
            "roaming_is_given_to_clients_that_lose_the_connection_for_long",
            "roaming_is_given_to_nobody_unless_it_is_set",
        ),
    ),
    Sentence(
        "A roaming client can update its components.",
        later="updates of components",
    ),
    Sentence(
        "A roaming client sends no logs.",
        of(OF_STATUS, "roaming_sends_no_logs_and_takes_no_tasks_and_settings")
        + of("hub.test_logs", "while_roaming_lines_wait_on_the_disk_and_come_in_order_afterwards"),
    ),
    Sentence(
        "Toward a roaming client the server starts no tasks.",
        of(OF_STATUS, "roaming_sends_no_logs_and_takes_no_tasks_and_settings")
        + of(
            OF_OPERATIONS,
            "tasks_and_settings_are_started_toward_hubs_that_are_online_and_no_other",
            "a_roaming_hub_gets_what_waits_when_it_roams_no_more",
        )
        + of("hub.test_tasks", "while_roaming_no_task_starts_and_a_new_one_leaves_no_trace")
        + of("hub.test_task_runner", "a_roaming_hub_starts_nothing_until_it_is_back"),
    ),
    Sentence(
        "To a roaming client the server deploys no settings.",
        of(OF_STATUS, "roaming_sends_no_logs_and_takes_no_tasks_and_settings")
        + of(
            OF_OPERATIONS,
            "tasks_and_settings_are_started_toward_hubs_that_are_online_and_no_other",
            "a_roaming_hub_gets_what_waits_when_it_roams_no_more",
        )
        + of("hub.test_desired", "each_event_leads_to_what_the_table_says"),
    ),
    Sentence(
        "A roaming client updates on a manual update by its user.",
        later="updates of components",
    ),
    Sentence(
        "A roaming client updates on an automatic update that includes roaming clients.",
        later="updates of components",
    ),
    Sentence(
        "A roaming client updates on a scheduled update if it has that privilege.",
        later="updates of components; privileges.scheduled_update_while_roaming is a setting without effect",
    ),
    Sentence(
        "Unreachable is a client in a network that the server can't reach: configured ranges of IPv4, prefixes of IPv6.",
        of(
            "hub.test_mode",
            "an_address_is_in_a_range_or_not",
            "one_address_of_many_is_enough",
            "what_is_no_range_is_told_with_its_key",
            "a_hub_polls_if_its_network_or_its_settings_say_so",
        )
        + of(OF_PRESENCE, "hub_that_begins_to_poll_or_ends_it_is_reloaded"),
    ),
    Sentence(
        "Toward unreachable clients the server is passive: it tells them of no updates and no settings.",
        of(
            OF_OPERATIONS,
            "tasks_and_settings_are_started_toward_hubs_that_are_online_and_no_other",
            "a_heartbeat_brings_neither_tasks_nor_settings_and_a_poll_brings_both",
        ),
    ),
    Sentence(
        "It waits for the client's heartbeat or poll, and treats it as online on either.",
        of(
            OF_PRESENCE,
            "unreachable_client_is_treated_as_online_on_its_heartbeat_or_poll",
            "connectors_fall_does_not_change_an_unreachable_client",
            "our_own_outage_makes_no_unreachable_client_offline",
        ),
    ),
    Sentence(
        "Such a client is shown as Unreachable/Online or Unreachable/Offline.",
        of(OF_PRESENCE, "unreachable_client_is_shown_as_online_or_offline")
        + of(OF_STATUS, "unreachable_is_shown_as_unreachable_online_and_unreachable_offline"),
    ),
    Sentence(
        "Only registration, restart or reload, heartbeat and poll count for it.",
        of(OF_PRESENCE, "only_these_count_for_an_unreachable_client"),
    ),
    Sentence(
        "What else it begins, a manual update or sending logs, does not change its status.",
        of(OF_PRESENCE, "other_events_must_not_change_the_status_of_an_unreachable_client"),
    ),
)

INTERVALS = (
    Sentence(
        "A poll comes every so many minutes.",
        of(
            "hub.test_mode",
            "the_first_poll_comes_at_the_start",
            "no_history_lets_a_hub_be_silent_for_longer_than_its_interval_and_the_jitter",
        ),
    ),
    Sentence(
        "Heartbeats are on or off, for all clients or only for unreachable ones.",
        of(
            "hub.test_mode",
            "heartbeats_are_sent_by_nobody_by_all_or_by_those_that_poll_and_polls_by_the_latter",
            "a_hub_that_keeps_its_session_only_has_heartbeats",
        )
        + of(
            OF_PRESENCE,
            "heartbeats_count_for_all_clients_or_only_unreachable_ones",
            "polls_are_enough_where_heartbeats_are_off",
        ),
    ),
    Sentence(
        "A heartbeat comes every so many minutes.",
        of(
            "hub.test_mode",
            "no_history_lets_a_hub_be_silent_for_longer_than_its_interval_and_the_jitter",
            "a_contact_that_reached_nobody_is_tried_again_after_a_wait_that_grows",
        ),
    ),
    Sentence(
        "A client without a heartbeat for so many minutes is offline.",
        of(OF_PRESENCE, "offline_if_no_heartbeat_for_n_minutes")
        + of("cloud.test_presence", "missed_heartbeats_of_a_hub_that_keeps_a_session"),
    ),
    Sentence(
        "Each of these numbers is from 1 to 129600.",
        of("config.test_settings", "minutes_of_the_mode_are_from_1_to_129600")
        + of("config.test_remote", "what_may_not_be_set_or_is_not_valid_is_told_with_key_and_value")
        + of(OF_PRESENCE, "offline_if_no_heartbeat_for_n_minutes"),
    ),
    Sentence(
        "A poll interval below three heartbeat intervals is warned of, and is no error.",
        of("config.test_remote", "intervals_that_are_hardly_meant_are_warned_of")
        + of("config.test_check", "doubtful_and_impossible_intervals_and_ranges_of_a_hub_are_named"),
    ),
    Sentence(
        "An offline-after that is not above the heartbeat interval is warned of, and is no error.",
        of("config.test_remote", "intervals_that_are_hardly_meant_are_warned_of")
        + of("config.test_check", "doubtful_and_impossible_intervals_and_ranges_of_a_hub_are_named"),
    ),
    Sentence(
        "A heartbeat proves life only: it brings neither updates nor settings.",
        of(OF_OPERATIONS, "a_heartbeat_brings_neither_tasks_nor_settings_and_a_poll_brings_both"),
    ),
    Sentence(
        "A poll brings updates and settings.",
        of(OF_OPERATIONS, "a_heartbeat_brings_neither_tasks_nor_settings_and_a_poll_brings_both")
        + of("cloud.test_tasks", "a_poll_brings_what_waits_once_and_no_more_until_the_next")
        + of("cloud.test_desired", "each_event_leads_to_what_the_table_says")
        + of("hub.test_mode", "a_poll_comes_before_a_heartbeat_and_stands_for_it"),
        later="updates of components; settings and tasks come",
    ),
)

VECTOR = (
    Sentence(
        "The status is connection by scan method by pattern by real-time scan by reputation service.",
        of(OF_STATUS, "status_vector_is_connection_by_scan_by_pattern_by_realtime_by_reputation")
        + of("broker.test_status", "there_are_as_many_combinations_as_the_dimensions_have_values"),
    ),
    Sentence(
        "A printed table has 54 rows, 18 for each state, of them 12 conventional and 6 smart; ours has every row.",
        of("broker.test_status_table", "matrix_has_no_hole", "rows_that_printed_tables_lack_are_there_and_marked"),
    ),
    Sentence(
        "It has misprints: rows that are different things and say the same, or name the wrong thing.",
        of(
            "broker.test_status",
            "different_protection_is_told_differently",
            "removing_a_condition_removes_exactly_its_actions_and_keeps_the_order_of_the_others",
        )
        + of("broker.test_status_table", "page_is_what_the_program_says_now"),
    ),
    Sentence(
        "It has no row for a fresh pattern with an unreachable reputation service.",
        of(OF_STATUS, "printed_table_has_no_row_for_pattern_fresh_and_reputation_unreachable"),
    ),
    Sentence(
        "It has no icon for unreachable.",
        of(OF_STATUS, "printed_table_has_no_icon_for_unreachable"),
    ),
    Sentence(
        "Icon, sentence and actions follow by rule from the vector: no cell can be missing.",
        of(OF_STATUS, "no_cell_can_be_missing")
        + of("broker.test_status", "every_combination_has_an_icon_a_sentence_and_actions_that_fit_the_contract"),
    ),
)

ACTIONS = (
    Sentence(
        "Pattern old: the user updates now; the administrator configures updates or grants the privilege.",
        of(OF_STATUS, "pattern_not_updated_for_a_while"),
        later="the update itself: update-now is refused with its reason",
    ),
    Sentence(
        "Real-time scan service stopped, and with it manual and scheduled scan: the user or the administrator starts it.",
        of(OF_STATUS, "realtime_scan_service_stopped_and_manual_and_scheduled_scan_are_gone_too"),
    ),
    Sentence(
        "Real-time scan disabled: the administrator enables it from the console.",
        of(OF_STATUS, "realtime_scan_disabled"),
    ),
    Sentence(
        "Real-time scan disabled while roaming: the user leaves roaming first, then the administrator enables it.",
        of(
            OF_STATUS,
            "realtime_scan_disabled_and_roaming",
            "everything_at_once_comes_in_an_order_in_which_it_can_be_done",
        ),
    ),
    Sentence(
        "Smart client cut off from every smart-protection server: check the location, then internal and external proxy.",
        of(OF_STATUS, "smart_client_disconnected_from_every_smart_protection_server"),
    ),
    Sentence(
        "Web-reputation server unreachable: check server, name resolution and proxy.",
        of(OF_STATUS, "web_reputation_server_unreachable"),
    ),
    Sentence(
        "Offline inside the company network: verify the connection to connector and cloud.",
        of(OF_STATUS, "offline_inside_the_company_network"),
    ),
)

LIFE = (
    Sentence(
        "The client tells the server when its service stops, is unloaded or uninstalled.",
        of(OF_PRESENCE, "clean_stop_of_an_unreachable_client_is_shown")
        + of("cloud.test_presence", "will_and_clean_stop_have_different_reasons")
        + of("end_to_end.test_presence", "a_killed_hub_has_lost_contact_and_a_stopped_one_was_stopped"),
    ),
    Sentence(
        "The client tells the server when it moves.",
        of(OF_PRESENCE, "client_that_moves_tells_the_server_and_is_lost_for_no_moment")
        + of("cloud.test_presence", "first_birth_of_a_process_is_told_from_a_change_of_path"),
    ),
    Sentence(
        "It does not on cable pull, kill or reformat: a last will instead of a clean goodbye.",
        of(OF_PRESENCE, "cable_pull_is_told_from_a_service_stop")
        + of("broker.test_server", "a_silent_client_is_cut_and_its_will_is_sent")
        + of("cloud.test_presence", "new_outbox_is_no_duplicate")
        + of("end_to_end.test_presence", "a_killed_hub_has_lost_contact_and_a_stopped_one_was_stopped"),
    ),
    Sentence(
        "Connections are verified daily by default, and that leaves a log.",
        of(
            OF_PRESENCE,
            "connections_are_verified_daily_by_default",
            "connections_that_fall_silent_are_found_and_logged",
        )
        + of("cloud.test_operations", "connections_are_verified_by_a_ping_to_all_that_are_there")
        + of("broker.test_server", "a_silent_client_is_cut_and_its_will_is_sent")
        + of("cloud.test_presence_records", "connection_log_is_read_from_the_newest_back")
        + of("cloud.test_api", "connection_log_tells_who_came_and_went"),
    ),
    Sentence(
        "Inactive clients are hidden after a time that depends on their class; nothing is destroyed.",
        of(OF_PRESENCE, "inactive_clients_are_hidden_and_nothing_is_destroyed")
        + of(
            "cloud.test_presence",
            "inactive_hub_is_hidden_after_the_time_of_its_class_and_revives_by_itself",
            "hub_in_contact_is_never_hidden",
        ),
    ),
    Sentence(
        "One status with its reason, never two that contradict each other; behind a dead connector it is the path.",
        of(
            OF_STATUS,
            "hub_behind_a_dead_connector_is_path_down_last_seen_and_not_offline",
            "one_status_with_its_reason_and_never_two_that_contradict_each_other",
        ),
    ),
)

COMPONENTS = (
    Sentence(
        "Update agents keep a copy of the components for their site.",
        later="updates of components",
    ),
    Sentence(
        "Their sources are tried in order: agent, then cloud.",
        later="updates of components",
    ),
    Sentence(
        "Updates are spread over a random window, so that a site does not stampede.",
        later="updates of components",
    ),
    Sentence(
        "Protection is a real sensor, which reads what is installed on the machine: ClamAV, or Microsoft Defender.",
        of("hub.test_reporting", "a_protection_that_nobody_has_told_is_not_made_up"),
        later="the sensor; what it will tell is understood, and without it nothing is claimed",
    ),
)

SENTENCES = (*STATES, *INTERVALS, *VECTOR, *ACTIONS, *LIFE, *COMPONENTS)


@cache
def defined_in(module: str) -> dict[str, ast.FunctionDef]:
    """Return the tests that a module defines, by name. Raises OSError if there is no such module."""
    file = TESTS.joinpath(*module.split(".")).with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {
        node.name: node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def problems_of(sentence: Sentence) -> Iterator[str]:
    """Say what is wrong with the proofs of a sentence."""
    if not sentence.proofs and not sentence.later:
        yield "has no proof"
    for proof in sentence.proofs:
        module, _, name = proof.partition("::")
        try:
            found = defined_in(module).get(name)
        except OSError:
            yield f"{module} is not there"
            continue
        if found is None:
            yield f"{proof} is not there"
        elif any("skip" in ast.unparse(mark) or "xfail" in ast.unparse(mark) for mark in found.decorator_list):
            yield f"{proof} does not always run"


@pytest.mark.parametrize("sentence", SENTENCES, ids=lambda sentence: sentence.text)
def test_sentence_is_proven_by_tests_that_are_there(sentence: Sentence) -> None:
    """A test that is renamed or removed must not take the proof of a sentence with it unseen."""
    assert list(problems_of(sentence)) == []


def test_check_of_the_proofs_finds_what_is_wrong() -> None:
    """A check that cannot fail protects nothing."""
    wrong = (
        Sentence("No proof."),
        Sentence("No module.", of("cloud.test_nothing", "x")),
        Sentence("No test.", of(OF_STATUS, "nothing")),
        Sentence("No test but a tool.", (f"{OF_STATUS}::required",)),
        Sentence("Left out on some machines.", of("hub.test_task_runner", "a_cancelled_check_is_killed")),
    )
    assert [len(list(problems_of(sentence))) for sentence in wrong] == [1] * len(wrong)


def test_every_sentence_is_listed_once() -> None:
    """Two entries for one sentence would come to differ."""
    assert [text for text, count in Counter(sentence.text for sentence in SENTENCES).items() if count > 1] == []
    assert [s.text for s in SENTENCES if len(set(s.proofs)) < len(s.proofs)] == []


@pytest.mark.parametrize("module", NAMED_BY_SENTENCE)
def test_every_test_that_quotes_a_sentence_is_listed(module: str) -> None:
    """The table is where one looks; a proof that it does not know is not found."""
    listed = {proof for sentence in SENTENCES for proof in sentence.proofs}
    names = {f"{module}::{name}" for name, node in defined_in(module).items() if '"' in (ast.get_docstring(node) or "")}
    assert names
    assert names - listed == set()


# --- What comes later ------------------------------------------------------------------------------------------------


def test_updates_are_not_there_yet() -> None:
    """When they are, the table must name their tests instead of putting them off."""
    assert "update-now" in get_args(Action)
    assert "update-now" not in HubTasks().allow


def test_protection_sensor_is_not_there_yet() -> None:
    """When it is, the table must name its tests instead of putting it off."""
    setup = configparser.ConfigParser()
    setup.read(TESTS.parent / "setup.cfg", encoding="utf-8")
    sensors = [line.partition("=")[0].strip() for line in setup["options.entry_points"]["hubline.sensors"].splitlines()]
    assert "cpu" in sensors
    assert "protection" not in sensors
