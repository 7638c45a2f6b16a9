"""Lets a connector be found: drives the `Advertiser` on real sockets, on every interface, also on those that come late.

No state of the network ends it: an interface that cannot be used is tried again at every look at the interfaces.
"""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random, SystemRandom
from uuid import UUID

import psutil
import structlog

from broker import multicast, ssdp
from broker.process import watched
from broker.runner import Runner
from broker.ssdp import Address
from config import limits
from config.errors import ProtocolError
from connector.advertiser import (
    Advertiser,
    AdvertiserCommand,
    AdvertiserEvent,
    Announce,
    Answer,
    InterfacesChanged,
    SearchReceived,
    Started,
    Stopping,
)


class Announcer:
    """A connector's SSDP presence. `port` is the site broker's; `uuid` must be the same after a restart.

    `interfaces` says where to speak; it is asked again every `poll_s`.
    """

    def __init__(
        self,
        fleet: str,
        site: str,
        port: int,
        uuid: UUID,
        *,
        random: Random | None = None,
        interfaces: Callable[[], Sequence[Address]] = multicast.usable_addresses,
        poll_s: float = limits.SSDP_INTERFACES_POLL_S,
    ):
        self._advertiser = Advertiser(uuid, ssdp.site_hash_of(fleet, site), port, random or SystemRandom())
        self._interfaces = interfaces
        self._poll_s = poll_s
        self._senders: dict[Address, socket.socket] = {}
        self._listeners: dict[tuple[str, int], _Listener] = {}
        self._failures: Counter[str] = Counter()
        self._runner: Runner[AdvertiserEvent, AdvertiserCommand] | None = None
        self._polling: asyncio.Task[None] | None = None
        self._log = structlog.get_logger(__name__)

    async def start(self) -> None:
        """Answer and announce from now on. Never fails for the network's sake."""
        runner: Runner[AdvertiserEvent, AdvertiserCommand] = Runner(self._advertiser, self._execute)
        self._runner = runner
        await self._look(runner)
        runner.feed(Started(tuple(self._senders)))
        self._polling = watched(asyncio.create_task(self._poll(runner), name="announcer"))

    async def stop(self) -> None:
        """Take leave of every interface and close all sockets; may be called twice."""
        polling, self._polling = self._polling, None
        runner, self._runner = self._runner, None
        if runner is None:
            return
        try:
            if polling is not None:
                polling.cancel()
                await asyncio.wait([polling])
                if not polling.cancelled():
                    polling.result()  # It ends by itself only for a fault of ours; that must be seen.
        finally:
            runner.feed(Stopping())
            runner.close()
            for sender in self._senders.values():
                sender.close()
            self._senders.clear()
            listeners = list(self._listeners.values())
            self._listeners.clear()
            for listener in listeners:
                await listener.close()

    async def _poll(self, runner: Runner[AdvertiserEvent, AdvertiserCommand]) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            before = tuple(self._senders)
            await self._look(runner)
            if tuple(self._senders) != before:
                self._log.info("ssdp_interfaces_changed", addresses=[str(address.ip) for address in self._senders])
                runner.feed(InterfacesChanged(tuple(self._senders)))

    async def _look(self, runner: Runner[AdvertiserEvent, AdvertiserCommand]) -> None:
        """Bring the sockets in line with the interfaces that there are now."""
        try:
            addresses = list(self._interfaces())
        except (OSError, psutil.Error) as exc:
            self._failed("interfaces", reason=str(exc))
            return
        self._worked("interfaces")
        self._adjust_senders(addresses)
        await self._adjust_listeners(addresses, runner)

    def _adjust_senders(self, addresses: list[Address]) -> None:
        senders: dict[Address, socket.socket] = {}
        for address in addresses:
            sender = self._senders.pop(address, None)
            try:
                senders[address] = multicast.open_sender(address) if sender is None else sender
            except OSError as exc:  # Gone again, or an IPv6 address that is still being checked for doubles.
                self._failed(f"address {address.ip}", reason=_reason(exc))
        for address, sender in self._senders.items():
            sender.close()
            self._forget(address)
        self._senders = senders

    async def _adjust_listeners(
        self, addresses: list[Address], runner: Runner[AdvertiserEvent, AdvertiserCommand]
    ) -> None:
        """Keep one listener per interface and IP version. A program that does not share port 1900 costs one warning."""
        wanted: dict[tuple[str, int], Address] = {}
        for address in addresses:
            wanted.setdefault((address.interface, address.ip.version), address)
        for place, listener in list(self._listeners.items()):
            if not listener.alive or listener.address not in addresses:
                del self._listeners[place]
                await listener.close()
        refused: dict[str, list[str]] = {}
        for place, address in wanted.items():
            if place in self._listeners:
                continue
            try:
                self._listeners[place] = await _listen(address, runner)
            except OSError as exc:
                refused.setdefault(_reason(exc), []).append(str(address.ip))
        for what in [what for what in self._failures if what.startswith("listening: ")]:
            if what.removeprefix("listening: ") not in refused:
                self._worked(what)
        for reason, ips in refused.items():
            self._failed(f"listening: {reason}", reason=reason, addresses=ips)

    def _execute(self, command: AdvertiserCommand) -> None:
        address = command.address
        sender = self._senders.get(address)
        if sender is None:
            return  # Its interface went while the command waited.
        match command:
            case Answer(_, ip, port, payload):
                target = multicast.socket_address(address, ip, port)
            case Announce(_, payload):
                target = multicast.group_address(address)
        try:
            sender.sendto(payload, target)
        except OSError as exc:  # Unreachable, filtered, or no room: the searcher asks again.
            if isinstance(command, Announce):
                self._failed(f"address {address.ip}", reason=_reason(exc))
            else:
                self._log.debug("ssdp_answer_failed", address=str(address.ip), to=str(command.ip), reason=_reason(exc))
        else:
            if isinstance(command, Announce):
                self._worked(f"address {address.ip}")

    def _failed(self, what: str, **fields: object) -> None:
        self._failures[what] += 1
        log = self._log.warning if self._failures[what] == 1 else self._log.debug
        log("ssdp_failed", what=what, **fields)

    def _worked(self, what: str) -> None:
        failures = self._failures.pop(what, 0)
        if failures:
            self._log.info("ssdp_recovered", what=what, failures=failures)

    def _forget(self, address: Address) -> None:
        self._failures.pop(f"address {address.ip}", None)


class _Listener(asyncio.DatagramProtocol):
    """Hears the group on one interface; what is not a well-formed search is ignored."""

    def __init__(self, address: Address, runner: Runner[AdvertiserEvent, AdvertiserCommand]):
        self.address = address
        self.alive = True
        self._runner = runner
        self.transport: asyncio.DatagramTransport | None = None
        self._closed = asyncio.Event()

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not data.startswith(b"M-SEARCH "):
            return  # Announcements of others are the most of what is heard.
        try:
            message = ssdp.parse(data)
        except ProtocolError:
            return
        source = multicast.source_of(addr)
        if self.alive and source is not None and isinstance(message, ssdp.Search):
            self._runner.feed(SearchReceived(self.address.interface, *source, message))

    def error_received(self, exc: Exception) -> None:
        self.alive = False  # The next look opens another.

    def connection_lost(self, exc: Exception | None) -> None:
        self.alive = False
        self._closed.set()

    async def close(self) -> None:
        self.alive = False
        assert self.transport is not None
        self.transport.close()
        await self._closed.wait()


async def _listen(address: Address, runner: Runner[AdvertiserEvent, AdvertiserCommand]) -> _Listener:
    sock = multicast.open_listener(address)
    try:
        transport, listener = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Listener(address, runner), sock=sock
        )
    except BaseException:
        sock.close()
        raise
    listener.transport = transport
    return listener


def _reason(exc: OSError) -> str:
    return exc.strerror or str(exc)
