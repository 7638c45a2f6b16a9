"""Starts an engine's process, and ends it: it never outlives us, and it ends in time whatever it does."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from contextlib import suppress
from pathlib import Path

from broker.engines import tether
from broker.engines.prepared import Prepared
from config import limits


async def start(prepared: Prepared, folder: Path) -> Process:
    """Start an engine in its folder; what it says, on either stream, is in the `stdout` of the process."""
    plan = prepared.plan
    command = [str(prepared.program), *plan.arguments]
    if os.name == "posix":
        tied = (sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), str(limits.ENGINE_OPEN_FILES))
        command = [*tied, *command]
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=STDOUT,
        cwd=folder,
        env={**os.environ, **plan.environ},
        start_new_session=True,  # Ctrl-C is for us to pass on.
    )


async def end(process: Process) -> None:
    """End a process: SIGTERM, and SIGKILL if that is not enough, as for one that is stopped."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(limits.ENGINE_STOP_S):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
