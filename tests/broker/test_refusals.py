"""What is refused is counted for good and logged in streaks: neither lost, nor a flood in the log."""

from __future__ import annotations

from structlog.testing import capture_logs

from broker.refusals import Refusals
from config import limits

QUIET = limits.REFUSALS_QUIET_S


def lines(logs: list[object]) -> list[tuple[str, str]]:
    return [(entry["log_level"], entry["event"]) for entry in logs]  # type: ignore[index]


def test_a_streak_is_a_warning_then_silence_then_its_length() -> None:
    refusals = Refusals()
    with capture_logs() as logs:
        for second in range(5):
            refusals.note("publish", "berlin/hub/pc-1", "to 'x'", second)
        refusals.end_streaks(4 + QUIET - 1)
        assert lines(logs) == [("warning", "client_refused")] + [("debug", "client_refused")] * 4
        refusals.end_streaks(4 + QUIET)
    assert lines(logs)[5:] == [("info", "client_refusals_ended")]
    assert (logs[5]["count"], logs[5]["seconds"]) == (5, 4)
    with capture_logs() as logs:
        refusals.note("publish", "berlin/hub/pc-1", "to 'x'", 1000)
    assert lines(logs) == [("warning", "client_refused")]


def test_streaks_of_different_clients_and_kinds_are_apart() -> None:
    refusals = Refusals()
    with capture_logs() as logs:
        for kind, client in (("publish", "a"), ("publish", "b"), ("subscribe", "a"), ("publish", "a")):
            refusals.note(kind, client, "", 0)
        refusals.note("publish", "b", "", QUIET / 2)
        refusals.end_streaks(QUIET)
    assert [level for level, _ in lines(logs)] == ["warning", "warning", "warning", "debug", "debug", "info"]
    assert (logs[-1]["client"], logs[-1]["count"]) == ("a", 2)
    assert refusals.by_kind == {"publish": 4, "subscribe": 1}


def test_one_bad_certificate_does_not_hide_another_behind_the_same_address() -> None:
    """A whole site may come from one address: the foreign hub must not go unseen because of the expired one."""
    refusals = Refusals()
    with capture_logs() as logs:
        for reason in ("expired", "foreign", "expired"):
            refusals.note("tls", "10.0.0.1", reason, 0)
    assert [level for level, _ in lines(logs)] == ["warning", "warning", "debug"]


def test_what_happens_to_honest_clients_is_no_warning() -> None:
    """A thousand laptops that are closed at five o'clock are nothing to look into."""
    refusals = Refusals()
    with capture_logs() as logs:
        refusals.note("silent", "berlin/hub/pc-1", "", 0)
        refusals.note("taken-over", "berlin/hub/pc-1", "", 0)
    assert [level for level, _ in lines(logs)] == ["info", "info"]


def test_ten_thousand_clients_do_not_fill_the_memory_and_none_goes_uncounted() -> None:
    """Whoever can open sockets can make names; the counters are what an operator trusts."""
    refusals = Refusals()
    for number in range(10_000):
        refusals.note("tls", f"10.0.0.{number}", "", number)
    counts = refusals.by_client()
    assert len(counts) == limits.REFUSALS_KEPT + 1
    assert counts["others"] == {"tls": 10_000 - limits.REFUSALS_KEPT}
    assert len(refusals._streaks) <= limits.REFUSALS_KEPT
    assert refusals.by_kind["tls"] == 10_000
