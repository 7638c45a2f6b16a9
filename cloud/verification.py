"""Verifies the connections to all hubs, once a day by default: whoever seems to be there must answer; the task is the log."""

from __future__ import annotations

import asyncio
from typing import Final

from broker.clock import unix_ms
from cloud import task_records
from cloud.operations import Operations
from cloud.service_desk import ServiceDesk
from config import limits, log
from config.errors import HublineError

_log: Final = log.get(__name__)

AUTHOR: Final = "verification"
"""Who the task is said to be from; a token can have any name, but none runs without a person."""


async def verify_connections(operations: Operations, desk: ServiceDesk, every_h: float) -> None:
    """Order a ping to every hub that is there, each `every_h` hours, for ever; restarts of the service do not delay it."""
    first_s = min(limits.VERIFY_FIRST_S, every_h * 3600)
    await operations.ready()
    while True:
        try:
            last_ms = await desk.read(lambda connection: task_records.newest_by(connection, AUTHOR))
            due_s = 0.0 if last_ms is None else every_h * 3600 - (unix_ms() - last_ms) / 1000
            await asyncio.sleep(min(max(first_s, due_s), every_h * 3600))
            keys = operations.reachable[: limits.TASK_TARGETS_MAX]
            if keys:
                task = await desk.create_task(
                    keys, "ping", {}, expires_s=limits.VERIFY_EXPIRES_S, skip_if_offline=True, by=AUTHOR
                )
                _log.info("connections_verified", task=task, hubs=len(keys))
        except HublineError as exc:
            _log.warning("connections_not_verified", reason=str(exc))
            await asyncio.sleep(first_s)
