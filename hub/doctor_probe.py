"""Tries one broker step by step, as a hub would connect to it: TCP (through a proxy, too), TLS, MQTT, word of a connector.

It changes nothing there: its session has a name of its own, no birth and no will. Every step has its time.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from cryptography import x509

from broker import messages
from broker.client import HTTPS_PORT, Lost, Opened, Received, Refused, Session, SessionEvent, SessionOptions
from broker.messages import ConnectorState
from broker.proxy import SETTING, Proxy, tunnel
from broker.runner import monotonic_s
from broker.tls import ALPN, NamedContext, client_context, describe_tls_error
from broker.topics import Topic, connector_filter
from config import limits
from config.endpoint import split_endpoint
from config.errors import HublineError, ProtocolError, RefusedError, SettingsError
from config.principal import CLOUD_SITE, principal_of, server_name
from config.settings import Identity
from hub.diagnosis import Check, State, moment
from hub.doctor_checks import issuer_name
from hub.link import Kind

T = TypeVar("T")

IN_SETTINGS: Final = "named in the settings"
""" The `origin` of what a person has written down."""

_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_OTHER_NAME: Final = 62


@dataclass(frozen=True, slots=True)
class Target:
    """A broker to try. `origin` says how the hub knows it; `proxy` is on the way, or None."""

    kind: Kind
    endpoint: str
    origin: str
    proxy: Proxy | None = None

    @property
    def title(self) -> str:
        """Return how it is called in a report."""
        return f"{'site' if self.kind is Kind.CONNECTOR else 'cloud'} broker {self.endpoint}"


@dataclass(frozen=True, slots=True)
class Probed:
    """What came of it: the steps that were done, the last of them failed or none."""

    target: Target
    steps: tuple[Check, ...]
    connectors: Mapping[str, ConnectorState] = field(default_factory=dict)

    @property
    def via(self) -> str | None:
        """Return the connector that is good there, "direct" for a cloud broker that takes us, or None."""
        if any(step.state is not State.OK for step in self.steps):
            return None
        if self.target.kind is Kind.DIRECT:
            return messages.DIRECT
        good = (name for name, state in sorted(self.connectors.items()) if state.online and state.upstream == "up")
        return next(good, None)

    @property
    def failure(self) -> Check | None:
        """Return the step that failed, or None."""
        return next((step for step in self.steps if step.state is not State.OK), None)


async def in_thread(call: Callable[[], T], timeout_s: float) -> T:
    """Return what `call` returns. Raises TimeoutError; then the thread ends by itself, and holds up nobody.

    `call` must not raise. For name resolution, which has no time-out of its own, and for sockets that block.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T) -> None:
        if not future.done():
            future.set_result(result)

    def run() -> None:
        result = call()
        try:
            loop.call_soon_threadsafe(deliver, result)
        except RuntimeError:
            pass  # The loop has closed: nobody waits.

    threading.Thread(target=run, name="doctor", daemon=True).start()
    async with asyncio.timeout(timeout_s):
        return await future


async def probe(target: Target, identity: Identity, addresses: Mapping[str, list[str]], client_id: str) -> Probed:
    """Try a broker. `addresses` are those of the names that could be resolved."""
    name = server_name(identity.fleet, identity.site if target.kind is Kind.CONNECTOR else CLOUD_SITE)
    try:
        tls = client_context(identity, name)
    except SettingsError as exc:
        return Probed(target, (_failed("tls", target, f"not tried: {exc}", "mend the certificate first"),))
    try:
        steps = await in_thread(lambda: _reach(target, tls, addresses), 3 * limits.DOCTOR_STEP_S)
    except TimeoutError:
        steps = [
            _failed("tcp", target, f"{target.title}: it answers, but far too slowly", "look at that machine's load")
        ]
    if any(step.state is not State.OK for step in steps):
        return Probed(target, tuple(steps))
    return await _speak(target, tuple(steps), identity, client_id, client_context(identity, name))


# --- TCP and TLS, in a thread -------------------------------------------------------------------------------------------


def _reach(target: Target, tls: NamedContext, addresses: Mapping[str, list[str]]) -> list[Check]:
    sock = _dial(target, addresses)
    if isinstance(sock, Check):
        return [sock]
    way = "" if target.proxy is None else f" through proxy {target.proxy}"
    connected = _passed("tcp", target, f"{target.title} is reached{way}")
    with sock:
        return [connected, _shake(target, tls, sock, addresses)]


def _dial(target: Target, addresses: Mapping[str, list[str]]) -> socket.socket | Check:
    """Return a connection to the broker, through the proxy if there is one, or the check that failed."""
    host, port = split_endpoint(target.endpoint) if target.proxy is None else (target.proxy.host, target.proxy.port)
    at = target.title if target.proxy is None else f"proxy {target.proxy}"
    ends_at = monotonic_s() + limits.DOCTOR_STEP_S
    failure: OSError | HublineError | ValueError = OSError("no address")
    found = addresses.get(host, [host])
    if not found:
        return _failed("tcp", target, f"{at} has no address: its name can't be resolved", "see dns above")
    for number, address in enumerate(found):
        left_s = max(0.1, (ends_at - monotonic_s()) / (len(found) - number))
        sock = None
        try:
            sock = socket.create_connection((address, port), timeout=left_s)
            if target.proxy is not None:
                tunnel(sock, target.proxy, target.endpoint, max(0.1, ends_at - monotonic_s()))
            return sock
        except (OSError, ValueError, HublineError) as exc:
            failure = exc
            if sock is not None:
                sock.close()
    if isinstance(failure, HublineError):
        return _failed("tcp", target, f"{target.title}: {failure}", "mend it at the proxy, or in the proxy's setting")
    return _failed("tcp", target, *_refused(at, failure, target))


def _refused(at: str, failure: Exception, target: Target) -> tuple[str, str]:
    if target.proxy is not None:
        wrong = f'correct the proxy in {target.proxy.origin}, or set {SETTING} = "none" if none is needed'
        if isinstance(failure, ConnectionRefusedError):
            return f"{at}: nothing listens there (connection refused)", wrong
        return f"{at}: {_plain(failure)}", wrong
    if target.kind is Kind.CONNECTOR:
        runs, known = "does the site's broker run there (hubline broker run)", "or has it another address now"
    else:
        runs, known = "does the cloud broker run", "or has it another address"
    if isinstance(failure, ConnectionRefusedError):
        return f"{at}: nothing listens there (connection refused)", f"{runs}? {known}?"
    if isinstance(failure, TimeoutError):
        return f"{at}: {_plain(failure)}", f"is a firewall in between? {runs}? {known}?"
    return f"{at}: {_plain(failure)}", f"does this machine's network lead there? {known}?"


def _plain(failure: Exception) -> str:
    if isinstance(failure, TimeoutError):
        return f"no answer within {limits.DOCTOR_STEP_S:g} s"
    return (getattr(failure, "strerror", None) or str(failure)).lower()


def _shake(target: Target, tls: NamedContext, sock: socket.socket, addresses: Mapping[str, list[str]]) -> Check:
    if split_endpoint(target.endpoint)[1] == HTTPS_PORT:
        tls.set_alpn_protocols(ALPN)
    sock.settimeout(limits.DOCTOR_STEP_S)
    try:
        with tls.wrap_socket(sock) as secured:
            certificate = x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")
            text = f"{target.title} proves to be {tls.server_name}: {_said_by(certificate)}, {secured.version()}"
            return _passed("tls", target, text, _details(certificate))
    except TimeoutError:
        text = f"{target.title} takes the connection, and says nothing for {limits.DOCTOR_STEP_S:g} s"
        return _failed("tls", target, text, "another service may have this port, or the broker hangs: restart it")
    except ssl.SSLCertVerificationError as exc:
        return _unproven(target, tls, exc, _look(target, tls, addresses))
    except (OSError, ValueError) as exc:
        text = f"{target.title}: {_in_words(exc)}"
        reason = exc.reason if isinstance(exc, ssl.SSLError) else None
        if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
            return _failed("tls", target, text, "another service listens there: check the port")
        return _failed("tls", target, text, "look into the broker's log: it says whom it refuses, and why")


def _look(target: Target, tls: NamedContext, addresses: Mapping[str, list[str]]) -> x509.Certificate | None:
    """Return the certificate that is not to be trusted, to tell about it."""
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    sock = _dial(target, addresses)
    if isinstance(sock, Check):
        return None
    with sock:
        sock.settimeout(limits.DOCTOR_STEP_S)
        try:
            with tls.wrap_socket(sock) as secured:
                return x509.load_der_x509_certificate(secured.getpeercert(binary_form=True) or b"")
        except (OSError, ValueError):
            return None


def _unproven(
    target: Target, tls: NamedContext, exc: ssl.SSLCertVerificationError, certificate: x509.Certificate | None
) -> Check:
    text = f"{target.title} does not prove to be {tls.server_name}: {_in_words(exc)}"
    lines: list[str] = []
    if certificate is not None:
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        lines = [
            f"it says that it is {_said_by(certificate)}",
            f"its names: {', '.join(_names(certificate)) or 'none'}; valid from {begins:%Y-%m-%d} to {ends:%Y-%m-%d}",
        ]
    match exc.verify_code:
        case code if code == _NOT_YET_VALID:
            todo = (
                "this machine's clock is behind, or that of the machine was wrong which issued it: set the clock (NTP)"
            )
        case code if code == _EXPIRED:
            todo = "renew the broker's certificate (hubline provision renew); or this machine's clock is ahead: set it"
        case code if code == _OTHER_NAME:
            todo = (
                "it is the broker of another site or fleet: correct the address, or give this hub a bundle of its site"
            )
        case _:
            todo = "another fleet's broker has this address, or ca.pem here is out of date: take it from a new bundle"
    return replace(_failed("tls", target, text, todo, _details(certificate)), lines=lines)


def _in_words(exc: BaseException) -> str:
    return _addressed(describe_tls_error(exc).removeprefix("the peer's certificate is refused: "))


def _addressed(reason: str) -> str:
    """Say "this hub" where a log of the hub says "we"."""
    return reason.replace("the peer refuses our certificate", "it refuses this hub's certificate")


def _said_by(certificate: x509.Certificate) -> str:
    try:
        holder = principal_of(certificate)
        site = "" if holder.site == CLOUD_SITE else f"site {holder.site}, "
        who = f"{holder} of {site}fleet {holder.fleet}"
    except RefusedError:
        who = certificate.subject.rfc4514_string() or "nobody"
    return f"{who}, issued by {issuer_name(certificate)}"


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _details(certificate: x509.Certificate | None) -> dict[str, object]:
    if certificate is None:
        return {}
    return {
        "subject": certificate.subject.rfc4514_string(),
        "names": _names(certificate),
        "issuer": issuer_name(certificate),
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
    }


# --- MQTT ---------------------------------------------------------------------------------------------------------------


class _Listener:
    """Takes what a session reports: how it began, and the states of connectors."""

    def __init__(self) -> None:
        self.began: asyncio.Future[SessionEvent] = asyncio.get_running_loop().create_future()
        self.connectors: dict[str, ConnectorState] = {}
        self.heard = asyncio.Event()

    def __call__(self, event: SessionEvent) -> None:
        if isinstance(event, Received):
            try:
                self.connectors[Topic.parse(event.topic).name] = messages.decode(event.payload, ConnectorState)
                self.heard.set()
            except ProtocolError:
                pass  # It says nothing that counts.
        elif not self.began.done():
            self.began.set_result(event)


async def _speak(
    target: Target, before: tuple[Check, ...], identity: Identity, client_id: str, tls: NamedContext
) -> Probed:
    listener = _Listener()
    session = Session(SessionOptions(target.endpoint, client_id, tls, proxy=target.proxy), listener)
    session.open()
    try:
        async with asyncio.timeout(limits.DOCTOR_STEP_S):
            event = await asyncio.shield(listener.began)
        if isinstance(event, Opened):
            session.subscribe([(connector_filter(identity.fleet, identity.site), 1)])
            await _hear(listener)
    except TimeoutError:
        event = Lost(f"no answer to CONNECT within {limits.DOCTOR_STEP_S:g} s", None)
    finally:
        await session.close()
    match event:
        case Opened():
            mqtt = _passed("mqtt", target, f"{target.title} takes this hub (as {client_id})")
        case Refused(reason) | Lost(reason, _):
            todo = "look into the broker's log: it says whom it refuses, and why"
            if "our certificate" in reason:
                todo = (
                    "give this hub a valid bundle (hubline provision renew), or set the clocks of both machines right"
                )
            mqtt = _failed("mqtt", target, f"{target.title}: {_addressed(reason)}", todo)
            return Probed(target, (*before, mqtt))
        case _:
            mqtt = _failed("mqtt", target, f"{target.title} ended the session at once", "look into the broker's log")
            return Probed(target, (*before, mqtt))
    return Probed(target, (*before, mqtt, _word(target, listener.connectors)), listener.connectors)


async def _hear(listener: _Listener) -> None:
    try:
        async with asyncio.timeout(limits.DOCTOR_STATE_WAIT_S):
            await listener.heard.wait()
        await asyncio.sleep(limits.DOCTOR_STATE_SETTLE_S)
    except TimeoutError:
        pass  # Nothing is retained there.


def _word(target: Target, connectors: Mapping[str, ConnectorState]) -> Check:
    """Say what the broker tells of the site's connectors; only at the site's own broker it decides."""
    said = [describe_connector(name, state) for name, state in sorted(connectors.items())]
    details = {
        name: {"online": state.online, "upstream": state.upstream, "since": state.since, "session": state.session}
        for name, state in sorted(connectors.items())
    }
    if target.kind is Kind.DIRECT:
        known = "; ".join(said) or "no connector of this site has ever been heard"
        return _passed("connector", target, f"as the cloud broker knows it: {known}", {"connectors": details})
    if any(state.online and state.upstream == "up" for state in connectors.values()):
        return _passed("connector", target, "; ".join(said), {"connectors": details})
    if not said:
        text, todo = "no connector has said anything at this broker", "start the connector: hubline connector run"
    elif any(state.online for state in connectors.values()):
        text, todo = (
            "; ".join(said),
            "look into the connector's log and its [cloud] settings: why can't it reach the cloud?",
        )
    else:
        text, todo = "; ".join(said), "start the connector: hubline connector run"
    return _failed("connector", target, text, todo, {"connectors": details})


def describe_connector(name: str, state: ConnectorState) -> str:
    """Return in words how a connector is."""
    since = "" if state.since is None else f" since {moment(state.since)}"
    if state.online:
        return f"connector {name} is there, its cloud side is {state.upstream or 'unknown'}{since}"
    if state.reason == "stopped":
        return f"connector {name} was stopped"
    return f"connector {name} is gone, without a goodbye"


# --- Checks -------------------------------------------------------------------------------------------------------------


def _passed(name: str, target: Target, text: str, details: Mapping[str, object] | None = None) -> Check:
    return Check(name, State.OK, text, details=_with(target, details))


def _failed(name: str, target: Target, text: str, todo: str, details: Mapping[str, object] | None = None) -> Check:
    return Check(name, State.PROBLEM, text, todo, details=_with(target, details))


def _with(target: Target, details: Mapping[str, object] | None) -> dict[str, object]:
    return {"endpoint": target.endpoint, "kind": target.kind.value, "origin": target.origin, **(details or {})}
