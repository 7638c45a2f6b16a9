"""A connection to PostgreSQL for what lasts as long as a connection does: locks and notices. Its loss is noticed soon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from cloud.postgres_engine import connect, mended, place_of
from config import limits
from config.errors import SettingsError, StorageError

if TYPE_CHECKING:
    import asyncpg


class Dedicated:
    """One connection in the running event loop, made by `open`. `lost` is set when it is gone."""

    def __init__(self, url: str, connection: asyncpg.Connection):
        self.lost: Final = asyncio.Event()
        self._place: Final = place_of(url)
        self._connection: Final = connection
        connection.add_termination_listener(self._on_termination)

    @classmethod
    async def open(cls, url: str) -> Dedicated:
        """Connect. Raises StorageError."""
        from cloud.postgres_driver import FAILURES

        try:
            this = cls(url, await connect(url, 0.0))
        except FAILURES as exc:
            failure = mended(place_of(url), exc)
            reason = failure.problem if isinstance(failure, SettingsError) else failure.reason
            raise StorageError(place_of(url), reason) from exc
        idle_s, interval_s, count = limits.LEAD_PROBES_S
        try:
            await this.ask(
                "SELECT set_config('tcp_keepalives_idle', $1, false), set_config('tcp_keepalives_interval', $2, false),"
                " set_config('tcp_keepalives_count', $3, false), set_config('idle_session_timeout', '0', false)",
                *(str(idle_s), str(interval_s), str(count)),
            )
        except BaseException:
            this.abort()  # Nobody else knows of it.
            raise
        return this

    async def ask(self, sql: str, *parameters: object) -> Any:
        """Return the first value of the first row. Raises StorageError, also if the answer takes too long."""
        from cloud.postgres_driver import FAILURES

        try:
            async with asyncio.timeout(limits.LEAD_ANSWER_S):
                return await self._connection.fetchval(sql, *parameters)
        except TimeoutError as exc:
            self.abort()
            raise StorageError(self._place, f"no answer within {limits.LEAD_ANSWER_S:g} s") from exc
        except FAILURES as exc:
            raise self._failure(exc) from exc

    async def listen(self, channel: str, hear: Callable[[str], None]) -> None:
        """Hear the text of each notice from now on. Raises StorageError."""
        from cloud.postgres_driver import FAILURES

        loop = asyncio.get_running_loop()

        def on_notice(_connection: object, _pid: int, _channel: str, text: object) -> None:
            loop.call_soon(hear, str(text))  # Never in the driver's own call, which would swallow a fault of ours.

        try:
            async with asyncio.timeout(limits.LEAD_ANSWER_S):
                await self._connection.add_listener(channel, on_notice)
        except FAILURES as exc:
            raise self._failure(exc) from exc

    async def watch(self, every_s: float, alive: Callable[[], None] = lambda: None) -> None:
        """Ask again and again whether it works, `alive` each time that it did. Ends with its loss, by StorageError."""
        while True:
            await self.ask("SELECT 1")
            alive()
            try:
                async with asyncio.timeout(every_s):
                    await self.lost.wait()
            except TimeoutError:
                continue
            raise StorageError(self._place, "the connection was closed")

    async def close(self) -> None:
        """Close it in order, if that is soon possible."""
        try:
            async with asyncio.timeout(limits.CLOSE_TIMEOUT_S):
                await self._connection.close()
        except (TimeoutError, OSError):
            self.abort()

    def abort(self) -> None:
        """Close it at once."""
        if not self._connection.is_closed():
            self._connection.terminate()

    def _failure(self, exc: Exception) -> StorageError:
        """Say it in our words. A connection lost in the middle of something is given up: the client has not noticed."""
        import asyncpg

        if isinstance(exc, asyncpg.InternalClientError):
            self.abort()
        return StorageError(self._place, " ".join(str(exc).split()) or type(exc).__name__)

    def _on_termination(self, _connection: object) -> None:
        self.lost.set()
