"""Receipts: whoever hands in a message hears once what became of it, and only a commit settles it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest

from broker.topics import Topic
from cloud.batch import Outcome
from cloud.ingest import Arrived, Connected, GiveBack, Ingest, NewestRead, Settle, Stopping, Store, Stored, StoreFailed
from cloud.intake import check, up_intake
from config import limits
from config.errors import SettingsError
from config.settings import CloudProcess, CloudSettings, Identity
from tests.broker.certificates import FleetFiles
from tests.broker.raw_mqtt import serving, until
from tests.cloud.wire import FLEET, T0, one, topic


def arrived(seq: int, receipt: int, content: bytes | None = None, where: str | None = None) -> Arrived:
    return Arrived(where or topic("pc-1"), one(seq) if content is None else content, T0, receipt=receipt)


def machine() -> Ingest:
    ingest = Ingest(FLEET, Random(1))
    ingest.handle(Connected(), 0.0)
    return ingest


def receipts(commands: list[object], kind: type[Settle | GiveBack]) -> list[int]:
    return [receipt for command in commands if isinstance(command, kind) for receipt in command.receipts]


def test_a_message_is_settled_by_its_commit_and_not_by_an_attempt() -> None:
    """The stream would forget what the database does not have."""
    ingest = machine()
    commands = ingest.handle(arrived(1, 11), 1.0)
    assert isinstance(commands[0], Store)
    assert receipts(commands, Settle) == []
    assert receipts(ingest.handle(StoreFailed(), 1.1), Settle) == []
    ingest.handle(arrived(1, 12), 1.2)
    assert receipts(ingest.handle(Stored(Outcome()), 2.0), Settle) == [11, 12]


def test_rubbish_and_wrong_topics_are_settled_with_the_commit_that_sets_them_aside() -> None:
    """A poisoned message must neither come for ever nor vanish unseen."""
    ingest = machine()
    down = str(Topic.down(FLEET, "berlin", "pc-1", "ack"))
    [store] = ingest.handle(arrived(1, 21, b"\xff", "rubbish"), 1.0)
    ingest.handle(arrived(1, 22, b"{}"), 1.0)
    ingest.handle(arrived(1, 23, where=down), 1.0)
    ingest.handle(arrived(1, 0, b"x"), 1.0)
    ingest.handle(arrived(5, 25), 1.0)
    assert isinstance(store, Store)
    first = ingest.handle(Stored(Outcome()), 2.0)
    assert receipts(first, Settle) == [21]
    assert any(isinstance(command, Store) for command in first)
    assert sorted(receipts(ingest.handle(Stored(Outcome()), 3.0), Settle)) == [22, 23, 25]


def test_what_says_nothing_to_keep_is_settled_at_once() -> None:
    """Nothing of it will be committed."""
    beat = Arrived(
        str(Topic.heartbeat(FLEET, "berlin", "pc-1")),
        b'{"epoch":"9f2c4be1d07a6b53","session":1,"ts":1}',
        T0,
        receipt=31,
    )
    assert receipts(machine().handle(beat, 1.0), Settle) == [31]


def test_a_flood_of_rubbish_is_settled_beyond_what_is_kept() -> None:
    """It is counted; sent again it would be the same rubbish."""
    ingest = machine()
    ingest.handle(arrived(1, 1), 1.0)
    answers = [receipts(ingest.handle(arrived(1, 100 + n, b"x", "rubbish"), 1.0), Settle) for n in range(150)]
    assert sum(map(len, answers)) == 150 - limits.QUARANTINE_WAITING_MAX


def test_what_does_not_fit_and_what_comes_too_late_is_given_back() -> None:
    """Somebody else takes it, or we do later."""
    ingest = machine()
    big = limits.INGEST_WAITING_MAX_BYTES // 200_000 + 50
    padded = one(1) + b" " * 200_000
    answers = [ingest.handle(arrived(n, n, padded.replace(b'"seq":1', b'"seq":%d' % n)), 1.0) for n in range(1, big)]
    back = [receipt for commands in answers for receipt in receipts(commands, GiveBack)]
    assert back
    assert not any(receipts(commands, Settle) for commands in answers)
    ingest.handle(Stopping(), 1.1)
    assert receipts(ingest.handle(arrived(99_999, 7), 1.2), GiveBack) == [7]


def test_a_worker_tells_no_newest_values_of_its_own() -> None:
    """Two workers could tell an older value after a newer one."""
    from broker.messages import Last
    from cloud.batch import NewestValue
    from cloud.ingest import PublishLast

    values = (NewestValue("berlin", "pc-1", "cpu", Last(T0, 1, 1)),)
    for tells in (True, False):
        ingest = Ingest(FLEET, Random(1), tells_newest=tells)
        ingest.handle(Connected(), 0.0)
        ingest.handle(arrived(1, 1), 1.0)
        told = ingest.handle(Stored(Outcome(newest=values)), 2.0)
        assert any(isinstance(command, PublishLast) for command in told) is tells


def test_fresh_newest_values_replace_what_waits_to_be_told() -> None:
    """They were read later, and so are newer."""
    from broker.messages import Last
    from cloud.batch import NewestValue
    from cloud.ingest import PublishLast

    ingest = Ingest(FLEET, Random(1), tells_newest=False)
    for count, fresh in ((1, True), (2, True), (1, False)):
        ingest.handle(NewestRead((NewestValue("berlin", "pc-1", "cpu", Last(T0, 1, count)),), fresh), 1.0)
    told = [command.last.count for command in ingest.handle(Connected(), 2.0) if isinstance(command, PublishLast)]
    assert told == [2]


@pytest.mark.parametrize(
    ("process", "part", "key"),
    [
        (CloudProcess(), "ingest", "cloud.database"),
        (CloudProcess(), "operations", "cloud.database"),
        (CloudProcess(database="postgresql://x/y", intake="jetstream"), "ingest", "cloud.nats"),
        (CloudProcess(intake="jetstream"), None, "cloud.nats"),
    ],
)
def test_a_part_that_can_not_work_says_why(tmp_path, process: CloudProcess, part, key: str) -> None:  # type: ignore[no-untyped-def]
    """One line at the start names the setting."""
    nothing = tmp_path / "nothing"
    with pytest.raises(SettingsError) as raised:
        check(CloudSettings(Identity(FLEET, "-", "cloud", nothing, nothing, nothing), process), part)
    assert raised.value.key == key
    if key == "cloud.database":
        assert "needs PostgreSQL: several processes can't share an SQLite file" in str(raised.value)


def test_a_shared_intake_says_which_brokers_can_serve_it(tmp_path: Path) -> None:
    """`intake = "shared"` stays in cloud.toml when the broker is exchanged for one without MQTT 5."""

    async def story() -> str | None:
        fleet = FleetFiles(tmp_path / FLEET)
        async with serving(fleet.broker_settings("-")) as server:
            [endpoint] = server.listen
            process = CloudProcess(broker=endpoint, intake="shared")
            intake = up_intake(CloudSettings(fleet.identity("cloud", "cloud", "-"), process), lambda event: None)
            running = asyncio.create_task(intake.run())
            await until(lambda: intake.reason is not None)
            running.cancel()
            await intake.close()
            return intake.reason

    reason = asyncio.run(story())
    assert reason is not None
    assert 'intake = "shared" needs a broker with MQTT 5' in reason
