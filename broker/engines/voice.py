"""Passes on what an engine says in its log: line by line, cut short, and no more than a disk can bear."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from broker.admission import Admission
from broker.engines.plan import Heard
from broker.runner import monotonic_s
from config import limits, log

_LOUD: Final = ("warning", "error")


class Voice:
    """What one engine says, through all of its lives. `last` is its last complaint, in its own words."""

    def __init__(self, name: str):
        self.last = ""
        self._name = name
        self._lines = Admission(limits.ENGINE_LINES_PER_S, monotonic_s())
        self._dropped = 0
        self._log = log.get(__name__)

    def pass_on(self, heard: Heard) -> None:
        """Log a line, or count it if there were too many."""
        if heard.level in _LOUD:
            self.last = heard.text
        if not self._lines.take(monotonic_s()):
            self._dropped += 1
            return
        if self._dropped:
            self._log.warning("engine_lines_dropped", engine=self._name, count=self._dropped)
            self._dropped = 0
        say = {"debug": self._log.debug, "info": self._log.info, "warning": self._log.warning, "error": self._log.error}
        say[heard.level]("engine_said", engine=self._name, line=heard.text)


async def lines_of(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Yield the lines of a stream, each cut at LOG_TEXT_MAX bytes; what is longer costs no memory."""
    line = bytearray()
    while chunk := await stream.read(limits.READ_BUFFER_BYTES):
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            line += part[: limits.LOG_TEXT_MAX - len(line)]
            yield line.decode("utf-8", "replace").rstrip("\r")
            line.clear()
        line += rest[: limits.LOG_TEXT_MAX - len(line)]
    if line:
        yield line.decode("utf-8", "replace")
