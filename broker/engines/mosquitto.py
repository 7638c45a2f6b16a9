"""Writes the configuration of Mosquitto (2.0.11 or newer): the contract's TLS, identities, rights and limits.

A client is who its certificate's subject says. What a member may do is written for it by name; whoever is not in the list may
do nothing. Mosquitto binds no client id to a certificate: ours end in what nobody can guess, so nobody takes a session over.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from broker.engines.plan import Engine, Heard, Plan
from broker.engines.site_bridge import bridging_connector
from broker.rights import publish_filters, subscribe_filters
from broker.tls import CIPHERS
from config import limits
from config.endpoint import split_endpoint
from config.errors import SettingsError
from config.members import Members
from config.principal import Principal
from config.settings import BrokerSettings

CONF: Final = "mosquitto.conf"
ACL: Final = "acl.conf"
OPENSSL: Final = "openssl.cnf"

_OPENSSL_CNF: Final = b"""# Written by Hubline: no TLS session is resumed, since nobody would look at the revocation list then.
openssl_conf = hubline
[hubline]
ssl_conf = ssl
[ssl]
system_default = sessions
[sessions]
MinProtocol = TLSv1.2
Options = -SessionTicket
NumTickets = 0
"""

_REFUSED: Final = (
    ("tls", re.compile(r"Client connection from (?P<client>\S+) failed: (?P<reason>.*?)\.?")),
    ("full", re.compile(r"Client connection from (?P<client>\S+) denied: (?P<reason>.*?)\.?")),
    ("packet", re.compile(r"Client (?P<client>.+) disconnected due to (?P<reason>.*?)\.?")),
    ("packet", re.compile(r"Client (?P<client>.+) (?P<reason>connected with too large Will payload)")),
    ("rights", re.compile(r"Client (?P<client>.+) disconnected, (?P<reason>not authorised)\.")),
    ("silent", re.compile(r"Client (?P<client>.+) has (?P<reason>exceeded timeout), disconnecting\.")),
    ("taken-over", re.compile(r"Client (?P<client>.+) (?P<reason>already connected), closing old connection\.")),
)
_STAMP: Final = re.compile(r"\d+: ")
"""What its first line begins with: it has not read yet that it shall leave the time to us."""
_EVERYDAY: Final = re.compile(
    r"New (connection|client)|Client .* (closed its connection|disconnected)|OpenSSL Error|Note: It is recommended"
    r"|mosquitto version|Config loaded|Opening "
)


_NOBODY: Final = re.compile(r"Client <unknown> (disconnected: Protocol error|closed its connection)\.")
"""The end of a connection that had not begun: it names nobody, and why it was refused is in a line of its own."""


class Mosquitto(Engine):
    """Mosquitto, told everything by three files of ours and by the bundle's certificates."""

    def plan(self, settings: BrokerSettings, members: Members, folder: Path) -> Plan:
        """Return how to run it in `folder`. Raises SettingsError for what it can't do."""
        connector = bridging_connector(settings)
        waiting = limits.SUBSCRIBER_QUEUE_MAX if connector is None else limits.BRIDGE_QUEUE_MAX
        lines = [*_global_lines(folder, waiting), *_listener_lines(settings)]
        principals, site = members.principals(), settings.identity.site
        more: Mapping[str, Sequence[str]] = {}
        bridging: frozenset[Path] = frozenset()
        if connector is not None:
            from broker.engines.mosquitto_bridge import bridge_section, watch_filters

            own = connector.identity
            lines += ["", bridge_section(connector, settings)]
            more = {own.name: watch_filters(connector)}
            bridging = frozenset((own.ca, own.cert, own.key))
        contents = {
            CONF: "\n".join([*lines, ""]).encode(),
            ACL: rights_file(principals, site, more).encode(),
            OPENSSL: _OPENSSL_CNF,
        }
        # Mosquitto takes up neither listeners nor bridges while it runs.
        restart_on = frozenset((CONF, OPENSSL, *(path.name for path in bridging)))
        return Plan(
            program="mosquitto",
            package="the package mosquitto (apt install mosquitto)",
            arguments=("-c", str(folder / CONF)),
            files=contents,
            private=frozenset(
                (CONF,) if bridging else ()
            ),  # It holds the bridge's client ids, which nobody must guess.
            restart_on=restart_on,
            restart_on_revocation=True,
            speaks_while_it_serves=True,
            environ={"OPENSSL_CONF": str(folder / OPENSSL)},
            reload_signal=getattr(signal, "SIGHUP", None),
            watched=bridging | frozenset(() if settings.broker.bridge is None else (settings.broker.bridge,)),
        )

    def hear(self, line: str) -> Heard | None:
        """Return what a line of its log says. It tells of a failed handshake, not of a publish beyond somebody's rights."""
        line = _STAMP.sub("", line, count=1)
        if _NOBODY.fullmatch(line):
            return None
        for kind, pattern in _REFUSED:
            if found := pattern.fullmatch(line):
                reason = found["reason"].rpartition("::")[2]
                return Heard("warning", line, refused=(kind, found["client"], reason))
        if line.startswith("OpenSSL Error") and "certificate" in line:
            return Heard("warning", line, refused=("tls", "unknown", line.rpartition("::")[2]))
        if _EVERYDAY.match(line):
            return Heard("debug", line, ready=line.startswith("mosquitto version") and line.endswith(" running"))
        level, _, _ = line.partition(": ")
        match level:
            case "Error":
                return Heard("error", line)
            case "Warning":
                return Heard("warning", line)
        return Heard("info", line) if line.strip() else None


def rights_file(
    principals: Sequence[Principal], broker_site: str, more: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Return the access control list: a block for each member who has anything to do at the broker of `broker_site`.

    `more` is what connectors, by name, may read besides.
    """
    lines = ["# Written by Hubline: who may publish (write) and read where. Whoever is not named here may do nothing."]
    for principal in principals:
        writes, reads = publish_filters(principal, broker_site), subscribe_filters(principal, broker_site)
        if principal.role == "connector" and more is not None:
            reads = (*reads, *more.get(principal.name, ()))
        if writes or reads:
            lines += ["", f"user {user_name(principal)}"]
            lines += [f"topic write {topic_filter}" for topic_filter in writes]
            lines += [f"topic read {topic_filter}" for topic_filter in reads]
    return "\n".join([*lines, ""])


def user_name(principal: Principal) -> str:
    """Return what Mosquitto calls a certificate's holder: its subject, by RFC 2253, so the last part comes first."""
    return f"O={principal.fleet},OU={principal.role},CN={principal.name}"


def _global_lines(folder: Path, waiting: int) -> list[str]:
    return [
        "# Written by Hubline from broker.toml and members.json: what is changed here is lost.",
        "per_listener_settings false",
        "user root",  # Only looked at by root: it runs as who we run as, and may read the key again at a reload.
        "log_dest stderr",
        "log_timestamp false",
        *(f"log_type {kind}" for kind in ("error", "warning", "notice", "information")),
        "connection_messages true",
        "sys_interval 0",
        "persistence false",
        "allow_anonymous false",
        "allow_zero_length_clientid false",
        f"acl_file {_path(folder / ACL)}",
        "check_retain_source false",  # What a member has said remains said; and the check takes a search of all members.
        "persistent_client_expiration 1h",
        "queue_qos0_messages false",
        "set_tcp_nodelay false",  # Small messages share packets, which spares a fifth of the processor; nobody waits for one.
        f"max_packet_size {limits.PACKET_MAX_BYTES}",
        f"message_size_limit {limits.MESSAGE_MAX_BYTES}",
        f"max_keepalive {limits.KEEP_ALIVE_MAX_S}",
        f"max_inflight_messages {limits.SESSION_IN_FLIGHT_MAX}",
        f"max_queued_messages {waiting}",
        f"max_queued_bytes {limits.SUBSCRIBER_QUEUE_MAX_BYTES}",
    ]


def _listener_lines(settings: BrokerSettings) -> list[str]:
    lines: list[str] = []
    for endpoint in settings.broker.listen:
        host, port = split_endpoint(endpoint)
        if port == 0:
            problem = "Mosquitto can't choose a port: name one"
            raise SettingsError(problem, key="broker.listen", value=endpoint)
        lines += ["", f"listener {port} {_word(host, 'broker.listen')}", *_tls_lines(settings)]
    return lines


def _tls_lines(settings: BrokerSettings) -> list[str]:
    identity = settings.identity
    return [
        f"cafile {_path(identity.ca)}",
        f"certfile {_path(identity.cert)}",
        f"keyfile {_path(identity.key)}",
        *(() if settings.broker.crl is None else (f"crlfile {_path(settings.broker.crl)}",)),
        "require_certificate true",
        "use_subject_as_username true",
        "tls_version tlsv1.2",  # The oldest that it takes.
        f"ciphers {CIPHERS}",
        f"max_connections {limits.ENGINE_CONNECTIONS_MAX}",
    ]


def _path(file: Path) -> str:
    return _word(str(file), "data_dir")


def _word(text: str, key: str) -> str:
    """Return a value as it may stand in a line of the configuration. Raises SettingsError for what would end that."""
    if text != text.strip() or any(char < " " or char == "\x7f" for char in text):
        raise SettingsError("can't stand in Mosquitto's configuration: a name has odd characters", key=key, value=text)
    return text
