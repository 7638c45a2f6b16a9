"""Finds connectors of this site by SSDP, on every interface at once, and says of each answer why it was not taken.

An answer proves nothing: anybody on the network can send one, so every answer that fits is given, not the first only.
No socket is open before or after a search.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from broker import multicast, ssdp
from broker.runner import monotonic_s
from broker.ssdp import Address, IpAddress
from config import limits
from config.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a search. `endpoint` is "host:port", "" if it names none; `why_not` is None if it may be tried."""

    endpoint: str
    interface: str
    source: str
    usn: str
    why_not: str | None

    @property
    def accepted(self) -> bool:
        """Tell whether the endpoint may be tried."""
        return self.why_not is None


async def search(
    fleet: str,
    site: str,
    *,
    interfaces: Sequence[Address] | None = None,
    mx_s: int = limits.SSDP_MX_S,
    found: Callable[[Answer], None] | None = None,
    failed: Callable[[Address, str], None] | None = None,
) -> list[Answer]:
    """Ask for connectors on every usable interface and return all answers, those that may be tried first.

    Ends MX + SSDP_SEARCH_GRACE_S after its start, whatever arrives. `found` is called with each acceptable answer the
    moment it comes, `failed` with each address where the question could not be asked, and why.
    """
    ends_at = monotonic_s() + mx_s + limits.SSDP_SEARCH_GRACE_S
    addresses = multicast.usable_addresses() if interfaces is None else interfaces
    answers = Answers(ssdp.site_hash_of(fleet, site), addresses, found)
    ears: list[_Ear] = []
    try:
        for address in addresses:
            try:
                ears.append(await _open(address, answers, failed))
            except OSError as exc:
                _report(failed, address, exc)
        for ear in ears:
            ear.ask(mx_s)
        await asyncio.sleep(limits.SSDP_SEARCH_REPEAT_S)
        for ear in ears:
            ear.ask(mx_s)
        await asyncio.sleep(ends_at - monotonic_s())
    finally:
        for ear in ears:
            ear.close()
        for ear in ears:
            await ear.closed.wait()
    return answers.in_order()


class Answers:
    """What has been heard in one search: judged, each endpoint of a connector once, bounded in all and per source."""

    def __init__(self, site_hash: str, addresses: Sequence[Address], found: Callable[[Answer], None] | None = None):
        self._site_hash = site_hash
        self._own = {address.ip for address in addresses}
        self._found = found
        self._rate = ssdp.SourceRate()
        self._accepted: dict[tuple[str, str], tuple[int, Answer]] = {}
        self._refused: dict[Answer, None] = {}
        self._per_source: Counter[IpAddress] = Counter()

    def hear(self, datagram: bytes, address: Address, ip: IpAddress, port: int, now: float) -> None:
        """Take a datagram that came to `address` from `ip` and `port`."""
        if not self._rate.allows(ip, port, now, own=ip in self._own):
            return
        answer = judge(datagram, address, ip, self._site_hash)
        if not answer.accepted:
            if len(self._refused) < limits.SSDP_ANSWERS_MAX:
                self._refused[answer] = None
            return
        key = (answer.usn, answer.endpoint)
        full = len(self._accepted) >= limits.SSDP_ANSWERS_MAX
        if key in self._accepted or full or self._per_source[ip] >= limits.SSDP_ANSWERS_PER_SOURCE:
            return
        self._per_source[ip] += 1
        self._accepted[key] = (_distance(ip), answer)
        if self._found is not None:
            self._found(answer)

    def in_order(self) -> list[Answer]:
        """Return all answers: acceptable before others, then loopback, IPv4, IPv6, each in the order of arrival."""
        accepted = sorted(self._accepted.values(), key=lambda entry: entry[0])
        return [*(answer for _, answer in accepted), *self._refused]


def judge(datagram: bytes, address: Address, ip: IpAddress, site_hash: str) -> Answer:
    """Read an answer that came from `ip` to `address`, and say whether it may be tried."""
    try:
        message = ssdp.parse(datagram)
    except ProtocolError as exc:
        return Answer("", address.interface, str(ip), "", f"malformed: {exc.reason}")
    endpoint, why_not = "", None
    if not isinstance(message, ssdp.Response):
        usn = message.usn if isinstance(message, ssdp.Notification) else ""
        return Answer("", address.interface, str(ip), usn, "not an answer to a search")
    try:
        host, port = ssdp.endpoint_in(message.location or "")
        endpoint = multicast.endpoint_text(address, host, port)
    except ProtocolError as exc:
        host, why_not = None, exc.reason
    if message.st != ssdp.SEARCH_TARGET:
        why_not = "another kind of device"
    elif message.site_hash is None:
        why_not = "names no site"
    elif message.site_hash != site_hash:
        why_not = "a connector of another site"
    elif not ssdp.is_usn(message.usn):
        why_not = "USN is not that of a connector"
    elif host is not None and host != ip:
        why_not = f"LOCATION names {host}, but the answer came from {ip}"
    return Answer(endpoint, address.interface, str(ip), message.usn, why_not)


class _Ear(asyncio.DatagramProtocol):
    """Asks on one interface and hands on what is answered there."""

    def __init__(self, address: Address, answers: Answers, failed: Callable[[Address, str], None] | None):
        self._address = address
        self._answers = answers
        self._failed = failed
        self.transport: asyncio.DatagramTransport | None = None
        self.closed = asyncio.Event()

    def ask(self, mx_s: int) -> None:
        assert self.transport is not None
        payload = ssdp.build_search(self._address.group_host, mx_s)
        self.transport.sendto(payload, multicast.group_address(self._address))

    def datagram_received(self, data: bytes, addr: object) -> None:
        source = multicast.source_of(addr)
        if source is not None:
            self._answers.hear(data, self._address, *source, monotonic_s())

    def error_received(self, exc: Exception) -> None:
        _report(self._failed, self._address, exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()

    def close(self) -> None:
        assert self.transport is not None
        self.transport.abort()


async def _open(address: Address, answers: Answers, failed: Callable[[Address, str], None] | None) -> _Ear:
    sock = multicast.open_sender(address)
    try:
        transport, ear = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Ear(address, answers, failed), sock=sock
        )
    except BaseException:
        sock.close()
        raise
    ear.transport = transport
    return ear


def _report(failed: Callable[[Address, str], None] | None, address: Address, exc: Exception) -> None:
    if failed is not None:
        failed(address, (exc.strerror if isinstance(exc, OSError) else None) or str(exc))


def _distance(ip: IpAddress) -> int:
    return 0 if ip.is_loopback else 1 if ip.version == 4 else 2
