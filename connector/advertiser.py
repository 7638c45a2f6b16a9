"""Says by SSDP where the site broker is (the contract's "SSDP"): answers searches, announces, takes leave. Pure.

It cannot be made to serve an attack on others: it answers only sources on the link or with an address that is not
globally routable, each a few times a second, with a bounded number of answers waiting in all. An answer is about two
and a half times as long as its search. It is given at the address of the interface that heard the search.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from random import Random
from typing import TypeAlias, assert_never
from uuid import UUID

from broker import ssdp
from broker.machine import Wakeup
from broker.ssdp import Address, IpAddress
from config import limits


@dataclass(frozen=True, slots=True)
class Started:
    """SSDP can be spoken at these addresses; there may be none yet."""

    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class InterfacesChanged:
    """SSDP can be spoken at these addresses now."""

    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class SearchReceived:
    """A search was heard on an interface. The source is what the datagram claims."""

    interface: str
    ip: IpAddress
    port: int
    search: ssdp.Search


@dataclass(frozen=True, slots=True)
class Stopping:
    """The process stops cleanly: take leave."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Send a datagram from `address` to the searcher."""

    address: Address
    ip: IpAddress
    port: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Announce:
    """Send a datagram from `address` to the group on its interface."""

    address: Address
    payload: bytes


AdvertiserEvent: TypeAlias = Started | InterfacesChanged | SearchReceived | Stopping | Wakeup
AdvertiserCommand: TypeAlias = Answer | Announce


@dataclass(frozen=True, slots=True)
class _Announcement:
    """The next announcement at an address, and how many follow it soon."""

    due_at: float
    repeats: int


class Advertiser:
    """The SSDP side of one connector. `uuid` is the same over restarts; `port` is the site broker's."""

    def __init__(self, uuid: UUID, site_hash: str, port: int, random: Random):
        self._usn = ssdp.usn_of(uuid)
        self._site_hash = site_hash
        self._port = port
        self._random = random
        self._rate = ssdp.SourceRate()
        self._announcements: dict[Address, _Announcement] = {}
        self._answers: list[tuple[float, int, Answer]] = []
        self._answers_planned = 0
        self._stopped = False

    def handle(self, event: AdvertiserEvent, now: float) -> list[AdvertiserCommand]:
        """Take an event and return what to send now; answers to a search come with a later `Wakeup`."""
        match event:
            case Started() | InterfacesChanged() | SearchReceived() | Stopping() if self._stopped:
                return []  # We have taken leave.
            case Started(addresses) | InterfacesChanged(addresses):
                self._use(addresses, now)
            case SearchReceived():
                self._plan_answer(event, now)
            case Stopping():
                return self._take_leave()
            case Wakeup():
                pass
            case _:
                assert_never(event)
        return [*self._due_answers(now), *self._due_announcements(now)]

    def deadline(self) -> float | None:
        """Return when the next datagram is due, or None while there is no address to speak at."""
        dues = [announcement.due_at for announcement in self._announcements.values()]
        if self._answers:
            dues.append(self._answers[0][0])
        return min(dues, default=None)

    def _use(self, addresses: tuple[Address, ...], now: float) -> None:
        """Announce at what is new; at what stayed, all goes on; what is due at addresses that are gone is forgotten."""
        first_at = now + self._random.uniform(0.0, limits.SSDP_ANNOUNCE_FIRST_S)
        new = _Announcement(first_at, limits.SSDP_ANNOUNCE_REPEATS - 1)
        self._announcements = {address: self._announcements.get(address, new) for address in addresses}
        self._answers = [planned for planned in self._answers if planned[2].address in self._announcements]
        heapq.heapify(self._answers)

    def _plan_answer(self, event: SearchReceived, now: float) -> None:
        if event.search.st not in (ssdp.SEARCH_TARGET, ssdp.ALL):
            return
        address = self._address_for(event)
        if address is None or len(self._answers) >= limits.SSDP_ANSWERS_PENDING_MAX:
            return
        own = any(event.ip == address.ip for address in self._announcements)
        if not self._rate.allows(event.ip, event.port, now, own=own):
            return
        payload = ssdp.build_response(self._usn, ssdp.location_of(address.ip, self._port), self._site_hash)
        wait_s = self._random.uniform(0.0, min(event.search.mx_s, limits.SSDP_MX_MAX_S))
        self._answers_planned += 1  # Keeps equal moments in order.
        answer = Answer(address, event.ip, event.port, payload)
        heapq.heappush(self._answers, (now + wait_s, self._answers_planned, answer))

    def _address_for(self, event: SearchReceived) -> Address | None:
        """Return the address to answer at, the one in the searcher's network if there is; None if not to answer."""
        if event.port == 0 or event.ip.is_multicast or event.ip.is_unspecified:
            return None
        here = [
            address
            for address in self._announcements
            if address.interface == event.interface and address.ip.version == event.ip.version
        ]
        on_link = [address for address in here if event.ip in address.network]
        if on_link:
            return on_link[0]
        return here[0] if here and not event.ip.is_global else None

    def _due_answers(self, now: float) -> list[AdvertiserCommand]:
        due: list[AdvertiserCommand] = []
        while self._answers and self._answers[0][0] <= now:
            due.append(heapq.heappop(self._answers)[2])
        return due

    def _due_announcements(self, now: float) -> list[AdvertiserCommand]:
        due: list[AdvertiserCommand] = []
        for address, announcement in self._announcements.items():
            if announcement.due_at > now:
                continue
            location = ssdp.location_of(address.ip, self._port)
            due.append(Announce(address, ssdp.build_alive(address.group_host, self._usn, location, self._site_hash)))
            self._announcements[address] = self._after(announcement, now)
        return due

    def _after(self, announcement: _Announcement, now: float) -> _Announcement:
        """Return the next announcement: soon while repeats are left, else before half of max-age is over."""
        if announcement.repeats > 0:
            wait_s = self._random.uniform(limits.SSDP_ANNOUNCE_SPACING_S / 2, limits.SSDP_ANNOUNCE_SPACING_S)
            return _Announcement(now + wait_s, announcement.repeats - 1)
        return _Announcement(now + self._random.uniform(limits.SSDP_MAX_AGE_S / 4, limits.SSDP_MAX_AGE_S / 2), 0)

    def _take_leave(self) -> list[AdvertiserCommand]:
        farewells: list[AdvertiserCommand] = [
            Announce(address, ssdp.build_byebye(address.group_host, self._usn, self._site_hash))
            for _ in range(limits.SSDP_ANNOUNCE_REPEATS)
            for address in self._announcements
        ]
        self._stopped = True
        self._announcements = {}
        self._answers = []
        return farewells
