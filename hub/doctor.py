"""Examines a hub from the outside, whether or not it runs: is it all right, and by which path would it send now, and why.

Nothing is changed: not the outbox, not what the hub remembers, nothing at a broker. All is over within some 20 s.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from broker.client_ids import client_id_of
from broker.clock import unix_ms
from broker.proxy import Proxy
from config import limits, pki
from config.endpoint import split_endpoint
from config.errors import SettingsError
from config.settings import HubSettings
from hub import doctor_checks, network
from hub import doctor_surroundings as surroundings
from hub.diagnosis import Check, Report, State, Verdict
from hub.doctor_probe import IN_SETTINGS, Probed, Target, probe
from hub.doctor_surroundings import Heard
from hub.doctor_verdict import Situation, verdict
from hub.link import Kind
from hub.status import HubStatus, read_status

_REACHED: Final = ("tcp", State.OK)


async def examine(file: Path, settings: HubSettings) -> Report:
    """Do all checks for the hub of these settings, in order."""
    status = _running(settings)
    now_ms, folder, identity = unix_ms(), settings.hub.data_dir, settings.identity
    network.ask_gateway()  # Its answer is there before it is needed, after the search.
    written = doctor_checks.file_times(
        [identity.cert, folder / "outbox.db", folder / "outbox.db-wal", folder / "paths.json", folder / "status.json"]
    )
    local = [
        doctor_checks.clock(pki.utc_now(), doctor_checks.leaves_in(identity.cert), written),
        doctor_checks.settings_read(file, settings),
        doctor_checks.certificate(settings),
        doctor_checks.outbox(settings, None if status is None else status.pid, now_ms),
    ]
    kept, damage = doctor_checks.remembered(folder)
    proxies, proxy_problem = surroundings.proxies_of(settings)
    heard, addresses = await asyncio.gather(
        surroundings.search(settings), surroundings.resolve(_hosts(settings, proxies, kept.endpoints))
    )
    here = network.fingerprint()
    targets = _site_targets(settings, status, kept.endpoints, heard)[: limits.DOCTOR_TARGETS_MAX]
    targets += _cloud_targets(proxies)[: limits.DOCTOR_TARGETS_MAX]
    known = {host: found if isinstance(found, list) else [] for host, found in addresses.items()}
    probed = await asyncio.gather(
        *(probe(target, identity, known, client_id_of(identity.name, f"doctor-{_secret()}")) for target in targets)
    )
    situation = Situation(
        unix_ms(),
        [each for each in probed if each.target.kind is Kind.CONNECTOR],
        [each for each in probed if each.target.kind is Kind.DIRECT],
        None if status is None else status.path,
        kept.outage_ms,
        settings.failover,
        network.is_elsewhere(kept.network, here),
    )
    result = verdict(situation)
    remote = [
        surroundings.told_search(settings, heard),
        doctor_checks.cache(kept, damage, here, settings.failover, now_ms),
        surroundings.told_names(addresses, proxies),
        surroundings.told_proxy(proxies, proxy_problem),
    ]
    checks = [*local, *(_softened(check, result) for check in remote), *_steps(probed)]
    return Report(checks, result)


def unreadable(problem: SettingsError) -> Report:
    """Return the report on a hub whose settings can't be read: there is nothing else to examine."""
    check = Check("settings", State.PROBLEM, str(problem), "correct it; `hubline config check` reads it again")
    return Report([check], Verdict("none", "none: the settings can't be read, so the hub can't run"))


def _secret() -> str:
    """Return what nobody can guess: no session of ours can be taken over."""
    return secrets.token_hex(limits.CLIENT_ID_SECRET_BYTES)


def _running(settings: HubSettings) -> HubStatus | None:
    """Return what the hub says of itself, if it runs."""
    try:
        found = read_status(settings)
    except SettingsError:
        return None
    return found.status if found.running else None


def _hosts(settings: HubSettings, proxies: Mapping[str, Proxy | None], remembered: Sequence[str]) -> set[str]:
    """Return the hosts that this machine must be able to find; behind a proxy, the proxy finds them."""
    straight = [endpoint for endpoint in settings.cloud.endpoints if proxies.get(endpoint) is None]
    hosts = {split_endpoint(endpoint)[0] for endpoint in (*straight, *settings.connector.endpoints, *remembered)}
    return hosts | {proxy.host for proxy in proxies.values() if proxy is not None}


def _site_targets(
    settings: HubSettings, status: HubStatus | None, remembered: Sequence[str], heard: Heard
) -> list[Target]:
    """Return the site brokers to try, in the order in which a hub tries them."""
    in_use = status.path.endpoint if status is not None and status.path.kind == "connector" else None
    known = [(in_use, "in use by the running hub")] if in_use is not None else []
    known += [(endpoint, "remembered from earlier") for endpoint in remembered if endpoint != in_use]
    known += [(answer.endpoint, "found by SSDP") for answer in heard.answers if answer.accepted]
    known += [(endpoint, IN_SETTINGS) for endpoint in settings.connector.endpoints]
    origins: dict[str, dict[str, None]] = {}
    for endpoint, origin in known:
        origins.setdefault(endpoint, {})[origin] = None
    return [Target(Kind.CONNECTOR, endpoint, ", ".join(of)) for endpoint, of in origins.items()]


def _cloud_targets(proxies: Mapping[str, Proxy | None]) -> list[Target]:
    return [Target(Kind.DIRECT, endpoint, IN_SETTINGS, proxy) for endpoint, proxy in proxies.items()]


def _steps(probed: Sequence[Probed]) -> list[Check]:
    """Return all steps; what failed counts less where another broker of the kind, or a connector, works."""
    good = {each.target.kind for each in probed if each.via is not None}
    reached = {each.target.kind for each in probed for step in each.steps if (step.name, step.state) == _REACHED}
    return [_weighed(step, each.target, good, reached) for each in probed for step in each.steps]


def _weighed(step: Check, target: Target, good: set[Kind], reached: set[Kind]) -> Check:
    if step.state is not State.PROBLEM:
        return step
    if (
        step.name == "tcp"
        and target.kind is Kind.CONNECTOR
        and target.kind in reached
        and IN_SETTINGS not in target.origin
    ):
        # A connector tells every address that its machine has, and its broker need not listen on each.
        return replace(step, state=State.OK, text=f"{step.text}; not needed, another address answers", todo=None)
    harmless = target.kind in good or Kind.CONNECTOR in good
    return replace(step, state=State.WARNING) if harmless else step


def _softened(check: Check, result: Verdict) -> Check:
    """Return a check of the surroundings as a warning where there is a path all the same."""
    mild = check.state is State.PROBLEM and (result.path == "connector" or check.name == "search")
    return replace(check, state=State.WARNING) if mild else check
