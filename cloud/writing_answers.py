"""Keeps what hubs answer and tell of themselves (SQL)."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection

from broker.control import Logs, Reported, Results
from cloud.batch import Answered, Message
from cloud.desired_records import apply_reported
from cloud.log_records import apply_logs
from cloud.task_records import apply_results


def apply_answers(connection: Connection, answers: Iterable[tuple[int, Message]]) -> tuple[Answered, ...]:
    """Keep the answers of hubs, by number, and return what the machines are to hear: each message must be a new one."""
    told = []
    for hub_no, message in answers:
        newest = True
        match message.body:
            case Results() as body:
                apply_results(connection, hub_no, body, message.received_ms)
            case Reported() as body:
                place = (message.stream.epoch, message.seq)
                newest = apply_reported(connection, hub_no, body, *place, message.received_ms)
            case Logs() as body:
                apply_logs(connection, hub_no, body, message.received_ms)
            case _:
                raise AssertionError(message.kind)
        if newest:
            told.append(Answered(message.stream.site, message.stream.hub_id, body))
    return tuple(told)
