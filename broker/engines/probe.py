"""Asks a running engine for a sign of life: a connection and the first words of TLS, which any server that lives answers.

It leaves before anybody has to prove who he is: nothing is refused, and no session begins. What the engine says of it in its
log can be told by the address that it came from.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from broker.engines.liveness import (
    Answered,
    Ask,
    Bounds,
    Command,
    Condemn,
    Doubt,
    Event,
    GiveUp,
    Liveness,
    NotAsked,
    Refused,
    Spoke,
)
from broker.machine import Wakeup
from broker.process import watched
from broker.runner import Runner, monotonic_s
from config import limits, log
from config.endpoint import join_endpoint, split_endpoint

Address: TypeAlias = tuple[str, int]

_ANYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 where we dial, not where we listen
_LEAVE_AT_ONCE: Final = struct.pack("HH" if sys.platform == "win32" else "ii", 1, 0)
"""SO_LINGER: no farewell. An engine that finds the end of a connection in its queue would call it a failed handshake."""


class Probe:
    """Asks one life of an engine until `close`. `on_hang` is called once, when it answers no more."""

    def __init__(self, address: Address, bounds: Bounds, on_hang: Callable[[Condemn], None]):
        self._address = address
        self._on_hang = on_hang
        self._liveness = Liveness(bounds, monotonic_s())
        self._runner: Runner[Event, Command] = Runner(self._liveness, self._execute)
        self._asking: asyncio.Task[None] | None = None
        self._place: Place | None = None
        self._sources: deque[re.Pattern[str]] = deque(maxlen=limits.ENGINE_PROBES_KNOWN_MAX)
        self._log = log.get(__name__)
        self._runner.feed(Wakeup())

    @property
    def unanswered(self) -> int | None:
        """Return how many questions in a row had no answer, or None while there was never one."""
        return self._liveness.unanswered if self._liveness.has_answered else None

    def spoke(self) -> None:
        """Take note that the engine has done something which only a living one can."""
        self._runner.feed(Spoke())

    def is_meant(self, line: str) -> bool:
        """Tell whether a line of the engine's log is about one of these questions."""
        return any(source.search(line) for source in self._sources)

    def close(self) -> None:
        """Ask no more."""
        self._runner.close()
        self._give_up()

    def _execute(self, command: Command) -> None:
        match command:
            case Ask():
                self._asking = watched(asyncio.create_task(self._ask(), name="engine-probe"))
            case GiveUp():
                self._give_up()
            case Doubt(unanswered):
                address = join_endpoint(*self._address)
                self._log.warning("engine_not_watched", address=address, unanswered=unanswered)
            case Condemn():
                self._on_hang(command)

    def _give_up(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            self._asking = None

    async def _ask(self) -> None:
        event: Event
        try:
            if self._place is None:  # Looked up once, as the engine has done it: a slow resolver is not its fault.
                self._place = await look_up(self._address)
            event = Answered() if await ask(self._place, self._note) else Refused()
        except OSError as exc:
            self._log.debug("engine_not_asked", reason=str(exc))
            event = NotAsked()
        self._runner.feed(event)

    def _note(self, source: Address) -> None:
        host, port = source
        names = "|".join(re.escape(name) for name in {f"{host}:{port}", join_endpoint(host, port)})
        self._sources.append(re.compile(rf"(?<![\w.:])(?:{names})(?!\d)"))


Place: TypeAlias = tuple[int, tuple[Any, ...]]
"""A family of addresses, and an address of it."""


def address_to_ask(listen: Sequence[str]) -> Address | None:
    """Return where an engine can be asked from its own machine: the first endpoint whose port is known, or None."""
    for endpoint in listen:
        host, port = split_endpoint(endpoint)
        if port:
            return _ANYWHERE.get(host, host), port
    return None


async def look_up(address: Address) -> Place:
    """Return the first place that a name stands for. Raises OSError."""
    loop = asyncio.get_running_loop()
    family, _, _, _, place = (await loop.getaddrinfo(*address, type=socket.SOCK_STREAM))[0]
    return family, place


async def ask(place: Place, on_source: Callable[[Address], None]) -> bool:
    """Tell whether somebody answers there at all, False if nobody listens. It waits as long as nothing happens.

    Raises OSError if it can't be asked, which is so if the address isn't this machine's. `on_source` is told where the question
    comes from before it is asked.
    """
    loop = asyncio.get_running_loop()
    family, address = place
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LEAVE_AT_ONCE)
        sock.bind((address[0], 0, *address[2:]))
        on_source(sock.getsockname()[:2])
        try:
            await loop.sock_connect(sock, address)
        except (ConnectionRefusedError, TimeoutError):
            return False
        try:
            await loop.sock_sendall(sock, client_hello())
            await loop.sock_recv(sock, 1)
        except ConnectionError:
            pass  # Only somebody who lives hangs up.
        return True


def client_hello() -> bytes:
    """Return the first words of a TLS client."""
    outgoing = ssl.MemoryBIO()
    talk = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    try:
        talk.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()
