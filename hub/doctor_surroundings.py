"""What the doctor sees around the machine: who answers a search, which names can be resolved, which proxy is on the way."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

import psutil

from broker import multicast
from broker.proxy import SETTING, Proxy, proxy_for
from broker.ssdp import Address
from config import limits
from config.endpoint import split_endpoint
from config.errors import SettingsError
from config.settings import HubSettings
from hub import discovery
from hub.diagnosis import Check, State
from hub.discovery import Answer
from hub.doctor_probe import in_thread

# --- Search -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heard:
    """What a search brought, or why there was none."""

    addresses: Sequence[Address] = ()
    answers: Sequence[Answer] = ()
    failures: Mapping[Address, str] = field(default_factory=dict)
    not_done: str | None = None


async def search(settings: HubSettings) -> Heard:
    """Search connectors as a hub does, if its settings let it."""
    if not settings.connector.discovery:
        return Heard(not_done="connector.discovery is false")
    failures: dict[Address, str] = {}
    try:
        addresses = multicast.usable_addresses()
    except (OSError, psutil.Error) as exc:
        return Heard(not_done=f"the interfaces can't be listed: {exc}")
    identity = settings.identity
    answers = await discovery.search(
        identity.fleet, identity.site, interfaces=addresses, failed=lambda address, why: failures.update({address: why})
    )
    return Heard(addresses, answers, failures)


def told_search(settings: HubSettings, heard: Heard) -> Check:
    """Tell of every interface what was answered there, and why it was not taken."""
    if heard.not_done is not None:
        off = not settings.connector.discovery
        return Check("search", State.OK if off else State.WARNING, f"not done: {heard.not_done}")
    site = settings.identity.site
    lines, interfaces = [], []
    for address in heard.addresses:
        answers = _answers_at(address, heard.answers)
        failure = heard.failures.get(address)
        said = [_answer_text(answer) for answer in answers] or [f"can't ask: {failure}" if failure else "no answer"]
        lines += [f"{address.interface} {address.ip}: {each}" for each in said]
        interfaces.append(
            {
                "interface": address.interface,
                "address": str(address.ip),
                "failure": failure,
                "answers": [
                    {"endpoint": each.endpoint, "source": each.source, "usn": each.usn, "why_not": each.why_not}
                    for each in answers
                ],
            }
        )
    details = {"interfaces": interfaces}
    if any(answer.accepted for answer in heard.answers):
        return Check("search", State.OK, f"a connector of site {site} has answered", lines=lines, details=details)
    others = len(heard.answers)
    text = f"no connector of site {site} has answered" + (f"; not taken: {others} other answers" if others else "")
    todo = (
        "does the connector run, and is UDP port 1900 open there? If it is in another network than this machine, "
        "no search reaches it: name the site's broker in connector.endpoints"
    )
    return Check("search", State.PROBLEM, text, todo, lines, details)


def _answers_at(address: Address, answers: Iterable[Answer]) -> list[Answer]:
    """Return the answers that came to one address: each tells interface and sender, so the IP version decides."""
    return [
        answer
        for answer in answers
        if answer.interface == address.interface
        and ip_address(answer.source.partition("%")[0]).version == address.ip.version
    ]


def _answer_text(answer: Answer) -> str:
    if answer.accepted:
        return f"connector at {answer.endpoint}"
    named = f" for {answer.endpoint}" if answer.endpoint else ""
    return f"answer from {answer.source}{named} not taken: {answer.why_not}"


# --- Names and proxy ----------------------------------------------------------------------------------------------------


def _host(endpoint: str) -> str:
    return split_endpoint(endpoint)[0]


def _is_name(host: str) -> bool:
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return True
    return False


async def resolve(hosts: Iterable[str]) -> dict[str, list[str] | str]:
    """Return for each host name its addresses, or why there are none."""

    def asked(host: str) -> list[str] | str:
        try:
            found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            return (getattr(exc, "strerror", None) or str(exc)).lower()
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))

    async def one(host: str) -> list[str] | str:
        try:
            return await in_thread(lambda: asked(host), limits.DOCTOR_STEP_S)
        except TimeoutError:
            return f"no name server has answered within {limits.DOCTOR_STEP_S:g} s"

    names = sorted(host for host in hosts if _is_name(host))
    return dict(zip(names, await asyncio.gather(*(one(name) for name in names)), strict=True))


def told_names(addresses: Mapping[str, list[str] | str], proxies: Mapping[str, Proxy | None]) -> Check:
    """Tell which names lead where."""
    left = sorted({_host(endpoint) for endpoint, proxy in proxies.items() if proxy and _is_name(_host(endpoint))})
    lines = [f"{host}: {known if isinstance(known, str) else ', '.join(known)}" for host, known in addresses.items()]
    lines += [f"{host}: left to the proxy" for host in left]
    details = {"names": dict(addresses), "left_to_proxy": left}
    lost = [host for host, known in addresses.items() if isinstance(known, str)]
    if lost:
        text = f"{', '.join(lost)} can't be resolved: {addresses[lost[0]]}"
        todo = "correct the name in the settings, or this machine's name servers"
        return Check("dns", State.PROBLEM, text, todo, lines[1:] and lines, details)
    text = "; ".join(lines) or "nothing to resolve: all brokers are named by address"
    return Check("dns", State.OK, text, details=details)


def proxies_of(settings: HubSettings) -> tuple[dict[str, Proxy | None], SettingsError | None]:
    """Return the way to each cloud broker, or what is wrong with what names the proxy."""
    found: dict[str, Proxy | None] = {}
    for endpoint in settings.cloud.endpoints:
        try:
            found[endpoint] = proxy_for(endpoint, settings.cloud.proxy)
        except SettingsError as exc:
            return found, exc
    return found, None


def told_proxy(proxies: Mapping[str, Proxy | None], problem: SettingsError | None) -> Check:
    """Tell which proxy is on the way to which cloud broker, and who says so."""
    if problem is not None:
        todo = f'correct it, or set {SETTING} in the settings; "none" there means that no proxy is used'
        return Check("proxy", State.PROBLEM, str(problem), todo)
    used = {endpoint: proxy for endpoint, proxy in proxies.items() if proxy is not None}
    details: dict[str, object] = {"proxies": {endpoint: str(proxy) for endpoint, proxy in used.items()}}
    if not used:
        return Check("proxy", State.OK, "none on the way to the cloud", details=details)
    ways = dict.fromkeys(f"{proxy} (from {proxy.origin})" for proxy in used.values())
    straight = [endpoint for endpoint in proxies if endpoint not in used]
    text = f"{', '.join(used)} through {', '.join(ways)}"
    return Check(
        "proxy", State.OK, text + (f"; straight to {', '.join(straight)}" if straight else ""), details=details
    )
