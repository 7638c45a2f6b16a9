"""Which mode a hub is in, and when a hub that keeps no session makes contact (pure).

A hub polls if its settings or its own addresses say so; a roaming one is called roaming, whichever way it connects.
Contacts come on a grid, each up to a small jitter later: waits never add up, so that between two heartbeats there is never
more than their interval and the jitter. What a sleeping machine has missed is made up by one contact, not by many.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address, ip_network
from math import floor
from random import Random
from typing import TypeAlias

from broker.backoff import Backoff
from broker.control import Mode
from broker.machine import Wakeup
from config import limits
from config.errors import SettingsError
from config.settings import HubMode

Ip: TypeAlias = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses from the first to the last, of one version of IP."""

    first: Ip
    last: Ip

    def __contains__(self, address: Ip) -> bool:
        return address.version == self.first.version and int(self.first) <= int(address) <= int(self.last)


def networks_of(texts: Iterable[str], key: str = "mode.unreachable") -> tuple[Range, ...]:
    """Return ranges written "a.b.c.d/n", "a.b.c.d-e.f.g.h", "x::/n" or as one address. Raises SettingsError."""
    found = []
    for text in texts:
        first, dash, last = text.partition("-")
        try:
            if dash:
                found.append(Range(IPv4Address(first), IPv4Address(last)))
            else:
                network = ip_network(text, strict=False)
                found.append(Range(network.network_address, network.broadcast_address))
        except (AddressValueError, ValueError) as exc:
            raise SettingsError(f"is no range of addresses: {exc}", key=key, value=text) from exc
        if int(found[-1].first) > int(found[-1].last):
            raise SettingsError("ends before it begins: write the smaller address first", key=key, value=text)
    return tuple(found)


def is_within(addresses: Iterable[str], ranges: Sequence[Range]) -> bool:
    """Tell whether one of a machine's addresses is in one of the ranges; what is no address counts for nothing."""
    for text in addresses:
        try:
            address = ip_address(text.partition("%")[0])
        except ValueError:
            continue
        if any(address in each for each in ranges):
            return True
    return False


def keeps_session(
    mode: HubMode, ranges: Sequence[Range], addresses: Sequence[str], *, present: bool | None = None
) -> bool:
    """Tell whether a hub with these addresses keeps a session, or connects only for its contacts.

    A machine without an address (a cable that is out, a lease that is renewed) is nowhere: it stays what it is at `present`,
    and at its start (None) it polls if it might be where it must, since a session there would break a rule.
    """
    match mode.kind:
        case "continuous":
            return True
        case "polling":
            return False
        case "auto" if ranges and not addresses:
            return False if present is None else present
        case "auto":
            return not is_within(addresses, ranges)


def mode_of(*, continuous: bool, roaming: bool) -> Mode:
    """Return the mode as the birth tells it."""
    if roaming:
        return "roaming"
    return "continuous" if continuous else "polling"


# --- Contacts -----------------------------------------------------------------------------------------------------------


class Contact(Enum):
    """What a hub makes contact for. A poll is a sign of life, too."""

    HEARTBEAT = "heartbeat"
    POLL = "poll"


@dataclass(frozen=True, slots=True)
class Ended:
    """A contact is over; `reached` says whether the cloud has answered."""

    contact: Contact
    reached: bool


@dataclass(frozen=True, slots=True)
class Begin:
    """Make contact now; report its end as `Ended`."""

    contact: Contact


class Contacts:
    """When a hub's contacts are due: one at a time, each every so many seconds (None: never), a poll before a heartbeat.

    A poll is due at the start. A contact that reached nobody stays due, and is tried again after a backoff.
    """

    def __init__(self, heartbeat_s: float | None, poll_s: float | None, *, random: Random, started_at: float):
        self.under_way: Contact | None = None
        self._random = random
        intervals = {Contact.POLL: poll_s, Contact.HEARTBEAT: heartbeat_s}  # In the order of their precedence.
        self._intervals_s = {contact: interval for contact, interval in intervals.items() if interval is not None}
        # A whole network is switched on at the same moment: each hub has a grid of its own from there on.
        self._origins = {
            contact: started_at - random.uniform(0.0, interval) for contact, interval in self._intervals_s.items()
        }
        self._due_at = {contact: self._next(contact, started_at) for contact in self._intervals_s}
        if Contact.POLL in self._due_at:
            self._due_at[Contact.POLL] = started_at
        self._not_before = started_at
        longest_s = min([limits.CONTACT_RETRY_MAX_S, *self._intervals_s.values()])
        self._backoff = Backoff(random, first_s=limits.CONTACT_RETRY_FIRST_S, max_s=longest_s)

    def due_at(self, contact: Contact) -> float | None:
        """Return when a contact comes next, or None if it never does, or is under way."""
        if contact not in self._due_at or contact is self.under_way:
            return None
        return max(self._due_at[contact], self._not_before)

    def handle(self, event: Ended | Wakeup, now: float) -> list[Begin]:
        """Take an event and return what to do; see Machine."""
        match event:
            case Ended(contact, _) if contact is not self.under_way:
                return []  # Of a contact that was over already.
            case Ended(contact, reached):
                self.under_way = None
                if reached:
                    self._satisfy(contact, now)
                else:
                    self._not_before = now + self._backoff.next_s()
        return self._begun(now)

    def deadline(self) -> float | None:
        """Return when the next contact is due."""
        if self.under_way is not None or not self._due_at:
            return None
        return max(min(self._due_at.values()), self._not_before)

    def _begun(self, now: float) -> list[Begin]:
        if self.under_way is not None or now < self._not_before:
            return []
        self.under_way = next((contact for contact, at in self._due_at.items() if at <= now), None)
        return [] if self.under_way is None else [Begin(self.under_way)]

    def _satisfy(self, contact: Contact, now: float) -> None:
        self._backoff.failures = 0
        for each in (contact, Contact.HEARTBEAT) if contact is Contact.POLL else (contact,):
            if each in self._due_at and (each is contact or self._due_at[each] <= now):
                self._due_at[each] = self._next(each, now)

    def _next(self, contact: Contact, now: float) -> float:
        """Return the contact's first turn after now, jittered."""
        interval_s = self._intervals_s[contact]
        turn = floor((now - self._origins[contact]) / interval_s) + 1
        jitter_s = min(limits.CONTACT_JITTER_MAX_S, limits.CONTACT_JITTER_SHARE * interval_s)
        return self._origins[contact] + turn * interval_s + self._random.uniform(0.0, jitter_s)
