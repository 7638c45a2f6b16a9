"""What workers commit reaches the active process: by notices while it listens, from the database for when it did not.

Nothing is told out of a notice but who spoke when: answers and newest values are read from the database, newest values only
by this one process, so that an older one never follows a newer one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from random import SystemRandom
from typing import Final, TypeAlias, TypeVar

from sqlalchemy import Connection

from broker.backoff import Backoff
from broker.clock import unix_ms
from cloud import following_records as records
from cloud.batch import Answered, NewestValue
from cloud.database import Database
from cloud.dedicated import Dedicated
from cloud.hub_key import HubKey
from cloud.notices import CHANNEL, Place, Word, decode
from config import limits, log
from config.errors import ProtocolError, StorageError

T = TypeVar("T")
Told: TypeAlias = Callable[[Iterable[Word], Iterable[Answered]], None]
TellNewest: TypeAlias = Callable[[tuple[NewestValue, ...]], None]

_log: Final = log.get(__name__)


class Following:
    """Listens to all commits of a database. `told` hears who spoke and what was answered, `tell_newest` what sensors show."""

    def __init__(self, url: str, database: Database, told: Told, tell_newest: TellNewest):
        self._url: Final = url
        self._database: Final = database
        self._told: Final = told
        self._tell_newest: Final = tell_newest
        self._sure_ms: int | None = None
        self._look_from_ms: int | None = None
        self._places: deque[Place] = deque()
        self._to_read: Final = asyncio.Event()
        self._renewed: dict[HubKey, None] = {}
        self._all_newest = False
        self._newest_told: Final[dict[tuple[str, str, str], tuple[int, int]]] = {}
        self._to_tell: Final = asyncio.Event()
        self.listening = False

    async def run(self) -> None:
        """Follow, for ever."""
        async with asyncio.TaskGroup() as work:
            work.create_task(self._keep_listening())
            work.create_task(self._keep_reading())
            work.create_task(self._keep_newest())

    def tell_all(self) -> None:
        """Tell the newest value of every sensor again: the broker may have forgotten them."""
        self._newest_told.clear()
        self._all_newest = True
        self._to_tell.set()

    # --- Notices ------------------------------------------------------------------------------------------------------

    async def _keep_listening(self) -> None:
        backoff = Backoff(SystemRandom(), max_s=limits.STORE_RETRY_MAX_S, stable_s=0.0)
        while True:
            connection: Dedicated | None = None
            try:
                connection = await Dedicated.open(self._url)
                await connection.listen(CHANNEL, self._hear)
                if self._sure_ms is None:
                    self._sure_ms = await self._database.read(records.last_word_ms)
                self._look_through(self._sure_ms)
                self.listening = True
                backoff.lived(0.0)
                _log.info("notices_followed")
                await connection.watch(limits.NOTICE_CHECK_S, self._alive)
            except StorageError as exc:
                (_log.warning if self.listening else _log.debug)("notices_lost", reason=exc.reason)
                self.listening = False
            finally:
                if connection is not None:
                    await connection.close()
            await asyncio.sleep(backoff.next_s())

    def _alive(self) -> None:
        self._sure_ms = unix_ms()

    def _hear(self, text: str) -> None:
        try:
            notice = decode(text)
        except ProtocolError as exc:
            _log.warning("notice_refused", reason=exc.reason)
            return
        if notice.words:
            self._told(notice.words, ())
        if notice.answers:
            self._places.extend(notice.answers)
            self._to_read.set()
        for key in notice.renewed:
            self._renewed[(key.site, key.hub_id)] = None
            self._to_tell.set()
        if len(self._renewed) > limits.NEWEST_HUBS_WAITING_MAX:
            self._renewed.clear()
            self._all_newest = True
        if notice.more or len(self._places) > limits.NOTICE_ANSWERS_WAITING_MAX:
            self._look_through(unix_ms())

    # --- What hubs have answered --------------------------------------------------------------------------------------

    def _look_through(self, until_ms: int) -> None:
        """Read again what was committed lately: every notice of what came in before that moment was heard."""
        from_ms = max(until_ms - int(limits.NOTICE_SLACK_S * 1000), unix_ms() - int(limits.NOTICE_BACK_MAX_S * 1000))
        self._look_from_ms = from_ms if self._look_from_ms is None else min(from_ms, self._look_from_ms)
        self._places.clear()
        self._all_newest = True
        self._to_read.set()
        self._to_tell.set()

    async def _keep_reading(self) -> None:
        while True:
            await self._to_read.wait()
            self._to_read.clear()
            await asyncio.sleep(limits.NOTICE_INTERVAL_S)
            if self._look_from_ms is not None:
                from_ms, self._look_from_ms = self._look_from_ms, None
                await self._read_lately(from_ms)
            while self._places:
                some = [self._places.popleft() for _ in range(min(len(self._places), limits.READ_PAGE_MESSAGES))]
                self._told((), await self._read(lambda connection, some=some: records.answers_at(connection, some)))  # type: ignore[misc]

    async def _read_lately(self, from_ms: int) -> None:
        words = answers = 0
        after = 0
        while said := await self._read(lambda connection, after=after: records.words_since(connection, from_ms, after)):  # type: ignore[misc]
            self._told([word for _, word in said], ())
            after, words = said[-1][0], words + len(said)
        for page_of in (records.results_since, records.reported_since):
            place: records.Cursor | None = None
            while True:
                found, place = await self._read(
                    lambda connection, page_of=page_of, place=place: page_of(connection, from_ms, place)  # type: ignore[misc]
                )
                self._told((), found)
                answers += len(found)
                if place is None:
                    break
        _log.info("looked_through", since_ms=from_ms, hubs=words, answers=answers)

    # --- Newest values ------------------------------------------------------------------------------------------------

    async def _keep_newest(self) -> None:
        while True:
            await self._to_tell.wait()
            self._to_tell.clear()
            if self._all_newest:
                self._all_newest = False
                await self._database.newest(self._tell_changed)
            renewed, self._renewed = list(self._renewed), {}
            for start in range(0, len(renewed), limits.NEWEST_HUBS):
                keys = renewed[start : start + limits.NEWEST_HUBS]
                self._tell_changed(await self._read(lambda connection, keys=keys: records.newest_of(connection, keys)))  # type: ignore[misc]
            await asyncio.sleep(limits.LAST_INTERVAL_S)

    def _tell_changed(self, values: Sequence[NewestValue]) -> None:
        changed = []
        for value in values:
            name = (value.site, value.hub_id, value.sensor)
            state = (value.last.count, value.last.ts)  # A hub that was forgotten counts anew, but time has gone on.
            if self._newest_told.get(name) == state:
                continue
            changed.append(value)
            if name in self._newest_told or len(self._newest_told) < limits.NEWEST_REMEMBERED:
                self._newest_told[name] = state
        if changed:
            self._tell_newest(tuple(changed))

    # --- The database -------------------------------------------------------------------------------------------------

    async def _read(self, work: Callable[[Connection], T]) -> T:
        """Read until it works."""
        backoff = Backoff(SystemRandom(), max_s=limits.STORE_RETRY_MAX_S, stable_s=0.0)
        while True:
            try:
                return await self._database.read(work)
            except StorageError as exc:
                _log.debug("reading_waits", reason=exc.reason)
                await asyncio.sleep(backoff.next_s())
