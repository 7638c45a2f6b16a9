"""Notices of commits: small whatever was committed, and read back as what was told."""

from __future__ import annotations

import pytest

from broker.control import LogRecord, Logs, Results, TaskReport
from broker.messages import Last
from cloud.batch import Answered, Batch, Message, NewestValue, Outcome, Stream
from cloud.notices import Notice, Place, Renewed, Word, announcements, decode, words_of
from config import limits
from config.errors import ProtocolError
from tests.cloud.wire import EPOCH, SITE, T0

LONG = "a" * 63
RESULTS = Results([TaskReport("00000000000000aa", "done", T0)])
LOGS = Logs(EPOCH, [LogRecord(1, T0, "info", "started")])


def said(
    hub_id: str, seq: int, body: Results | Logs | None = None, *, kind: str = "readings", site: str = SITE
) -> Message:
    return Message(Stream(site, hub_id, EPOCH), seq, kind, T0, T0 + seq, b"{}", body)


def test_a_notice_names_the_newest_word_of_each_hub_where_answers_are_and_whose_values_changed() -> None:
    """That is all that operations need: the rest they read."""
    answer, line = said("pc-1", 2, RESULTS, kind="results"), said("pc-2", 7, LOGS, kind="logs")
    batch = Batch((said("pc-1", 1), answer, line))
    newest = tuple(NewestValue(SITE, "pc-1", sensor, Last(T0, 1, 1)) for sensor in ("cpu", "disk"))
    outcome = Outcome(newest=newest, answers=(Answered(SITE, "pc-1", RESULTS), Answered(SITE, "pc-2", LOGS)))
    [text] = announcements(batch, outcome)
    assert decode(text) == Notice(
        words=(Word(SITE, "pc-1", EPOCH, T0, T0 + 2, "results"), Word(SITE, "pc-2", EPOCH, T0, T0 + 7, "logs")),
        answers=(Place(SITE, "pc-1", EPOCH, 2, T0 + 2),),
        renewed=(Renewed(SITE, "pc-1"),),
    )


def test_a_large_commit_with_the_longest_names_takes_several_notices_and_all_of_it_arrives() -> None:
    """The database refuses a notice of 8,000 bytes, and with it the whole commit."""
    batch = Batch(
        tuple(
            said(f"{number:063d}", 1, RESULTS, kind="k" * 128, site=LONG)
            for number in range(limits.INGEST_BATCH_MESSAGES)
        )
    )
    newest = tuple(NewestValue(LONG, f"{number:063d}", "cpu", Last(T0, 1, 1)) for number in range(500))
    texts = announcements(batch, Outcome(newest=newest, answers=(Answered(LONG, f"{0:063d}", RESULTS),)))
    notices = [decode(text) for text in texts]
    assert max(len(text.encode()) for text in texts) < 8000
    assert len(texts) > 10
    assert tuple(word for notice in notices for word in notice.words) == words_of(batch)
    assert sum(len(notice.renewed) for notice in notices) == 500
    assert not any(notice.more for notice in notices)


def test_what_does_not_fit_or_can_not_be_named_is_told_as_more() -> None:
    """Then the database is looked through, and nothing is missed."""
    stranger = Outcome(answers=(Answered(SITE, "pc-1", RESULTS),))
    assert decode(announcements(Batch((said("pc-1", 1),)), stranger)[-1]).more
    huge = Outcome(newest=tuple(NewestValue(LONG, f"{n:063d}", "cpu", Last(T0, 1, 1)) for n in range(20_000)))
    texts = announcements(Batch(), huge)
    assert len(texts) == limits.NOTICES_PER_COMMIT
    assert decode(texts[-1]).more


def test_a_commit_that_changes_nothing_of_interest_is_not_told() -> None:
    """Most of the commits of a quiet fleet's states."""
    assert list(announcements(Batch(), Outcome())) == []


@pytest.mark.parametrize("text", ["", "hello", "[]", '{"w":[[1]]}', '{"w":"x"}', "\udc00"])
def test_what_is_no_notice_is_refused(text: str) -> None:
    """Anybody with a connection to the database can send anything to the channel."""
    with pytest.raises(ProtocolError):
        decode(text)
