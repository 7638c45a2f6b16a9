"""PostgreSQL keeps every promise that SQLite keeps: the same tests, with the fixtures of this module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection

from cloud.postgres_engine import engine
from cloud.postgres_store import PostgresStore
from tests.cloud.test_desired_records import (  # noqa: F401
    test_a_forgotten_hub_leaves_nothing_behind,
    test_a_saved_version_never_goes_back,
    test_each_value_says_from_which_document_it_comes,
    test_every_version_of_a_document_is_kept_with_who_and_when,
    test_groups_are_filled_and_emptied_and_say_who_is_new,
    test_only_the_newest_word_of_a_hub_counts,
    test_the_history_of_a_document_is_bounded,
    test_the_machine_finds_after_a_restart_what_was_committed,
    test_the_standing_of_a_hub_tells_what_it_does_not_have_yet,
    test_two_writers_do_not_overwrite_each_other_unseen,
)
from tests.cloud.test_presence_records import (  # noqa: F401
    test_connection_log_is_read_from_the_newest_back,
    test_forgetting_a_hub_leaves_nothing_of_it_and_everything_of_others,
    test_forgetting_a_hub_with_much_takes_several_steps,
    test_hub_that_comes_back_after_it_was_forgotten_is_a_new_one,
    test_hubs_are_listed_page_by_page_without_the_hidden_ones,
    test_record_comes_back_as_it_was_saved,
    test_record_that_cannot_be_read_does_not_stop_the_cloud,
)
from tests.cloud.test_retention import (  # noqa: F401
    test_a_task_that_is_still_open_is_kept_however_old_it_is,
    test_each_kind_is_kept_as_long_as_its_setting_says,
    test_pruned_messages_are_counted_for_their_own_stream,
    test_pruning_goes_in_bounded_steps,
    test_rollups_outlive_their_readings_and_end_too,
    test_what_was_logged_and_asked_for_is_kept_as_long_as_its_kind,
    test_what_was_pruned_is_not_missing_not_uncounted_and_not_let_in_again,
)
from tests.cloud.test_states import (  # noqa: F401
    test_connector_is_known_by_its_newest_state,
    test_end_of_a_hub_keeps_what_its_birth_said,
    test_hub_is_known_by_its_newest_state_in_whatever_order_they_come,
)
from tests.cloud.test_store import (  # noqa: F401
    test_copies_that_ingest_has_dropped_are_counted,
    test_coverage_joins_what_touches,
    test_every_value_that_the_contract_allows_can_be_stored,
    test_gap_record_is_kept_once,
    test_hub_with_sensors_without_end_keeps_its_messages_but_not_the_sums,
    test_huge_values_of_many_transactions_do_not_poison_a_bucket,
    test_message_is_kept_as_received_with_its_times_and_points,
    test_newest_value_follows_the_hubs_clock_and_counts_each_reading_once,
    test_payload_is_never_kept_larger_than_it_was,
    test_quarantine_keeps_the_newest_and_counts_all,
    test_refused_message_with_an_envelope_takes_its_place_once,
    test_repetition_is_refused_and_counted_whatever_it_says,
    test_rollups_of_later_transactions_are_added,
    test_same_number_of_another_hub_site_or_outbox_is_another_message,
    test_times_at_the_ends_of_the_contract_can_be_stored,
    test_unknown_kind_is_stored,
)
from tests.cloud.test_task_records import (  # noqa: F401
    test_a_created_task_is_queued_at_each_of_its_hubs,
    test_a_presumed_end_is_corrected_by_a_late_result,
    test_a_wish_to_cancel_is_kept_and_changes_no_state,
    test_only_tasks_that_are_over_everywhere_are_pruned,
    test_results_are_applied_once_in_whatever_order_and_only_to_the_hub_that_tells,
    test_tasks_are_found_page_by_page_by_hub_state_and_site,
    test_what_a_hub_has_told_holds_against_what_the_machine_decided_meanwhile,
)
from tests.cloud.wire import FLEET
from tests.postgres import Postgres, postgres_server, prepared_postgres, prepared_template  # noqa: F401


class StoreOfTest(PostgresStore):
    """A store that says where a judge finds its database."""

    def __init__(self, database: Postgres):
        super().__init__(database.url, FLEET)
        self.file = database


@pytest.fixture
def file(prepared_postgres: Postgres) -> Postgres:  # noqa: F811
    return prepared_postgres


@pytest.fixture
def tmp_path(prepared_postgres: Postgres) -> _Folder:  # noqa: F811
    """Stand for the folder in which a test finds its database."""
    return _Folder(prepared_postgres)


class _Folder:
    def __init__(self, database: Postgres):
        self.database = database

    def __truediv__(self, name: str) -> Postgres:
        return self.database


@pytest.fixture
def store(file: Postgres) -> Iterator[StoreOfTest]:
    made = StoreOfTest(file)
    yield made
    made.close()


@pytest.fixture
def connection(request: pytest.FixtureRequest, file: Postgres) -> Iterator[Connection]:
    """Return a connection in a transaction; for tests of settings, to a database with the hub berlin/pc-1."""
    from cloud.states import add_hub

    made = engine(file.url)
    with made.connect() as opened, opened.begin():
        if request.function.__module__.endswith("test_desired_records"):
            add_hub(opened, "berlin", "pc-1")
        yield opened
    made.dispose()
