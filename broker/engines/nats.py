"""Writes the configuration of a nats-server: MQTT for hubs and connectors, JetStream for ingest, and its place in a cluster.

Nobody gets in without a certificate of the fleet. Who may do what is asked of us at each connection (`nats_callout`), since
nats-server itself knows no revocation list and binds no MQTT client id to a certificate; or, where the settings say so, it
is written into the configuration, without those two.
"""

from __future__ import annotations

import re
import secrets
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from broker.engines import nats_leaf
from broker.engines.nats_rights import ACCOUNT, permissions, user_permissions
from broker.engines.nats_supervisor import Supervisor
from broker.engines.plan import Engine, Heard, Plan
from broker.engines.site_bridge import bridging_connector
from broker.tls import ServerContext
from config import limits
from config.endpoint import join_endpoint, split_endpoint
from config.errors import SettingsError
from config.members import Members
from config.settings import BrokerSettings, ConnectorSettings, Identity, LogLevel

FILE: Final = "nats.conf"
SYSTEM_ACCOUNT: Final = "SYS"
"""The account in which nodes speak of themselves."""

QUESTIONS_ACCOUNT: Final = "QUESTIONS"
"""The account in which they ask who may come in."""

_PROOFS: Final = ("ca", "cert", "key")
_LINE: Final = re.compile(r"\[\d+\] \S+ \S+ \[(?P<level>[A-Z]{3})\] (?P<text>.*)")
_REFUSED: Final = (
    ("", re.compile(r"^Auth callout service returned an error: (?P<kind>\S+) (?P<client>\S+) (?P<reason>.*)")),
    ("publish", re.compile(r' - "(?P<client>[^"]+)" - Publish Violation - (?P<reason>.*)')),
    ("subscribe", re.compile(r' - "(?P<client>[^"]+)" - Subscription Violation - (?P<reason>.*)')),
    ("leaf", re.compile(r"^(?P<client>\S+):\d+ - lid:\d+ - (?P<reason>(Publish|Subscription) Violation on .*)")),
    ("tls", re.compile(r"^(?P<client>\S+):\d+ - [a-z]id:\d+ - TLS handshake error: (?P<reason>.*)")),
)
"""What tells of a refusal: by our own answer, whose kind comes first, by the rights, or in the handshake."""
_LEVELS: Final[dict[str, LogLevel]] = {"WRN": "warning", "ERR": "warning", "FTL": "error"}
_ORDINARY: Final = ("Replacing old client",)
"""What happens to honest clients too, whenever a machine changes its network."""
_KNOWN: Final = ("authentication error", "Plaintext passwords detected", "TLS Handshake First")
"""What is no news: a refusal has a line of its own, and the supervisor's password is new at each start, in a private file."""


class Nats(Engine):
    """nats-server, made anew or renewed from the settings. One object has one process's secrets: use it for every plan."""

    def __init__(self) -> None:
        self._supervisor = Supervisor()

    def plan(self, settings: BrokerSettings, members: Members, folder: Path) -> Plan:
        """Return how to run a node. Raises SettingsError for what a person must correct."""
        asks = authorization(settings) == "callout"
        connector = bridging_connector(settings)
        nats_leaf.check(settings, connector)
        contents = _certificates(settings)
        if asks:
            contents |= self._supervisor.files(contents["ca.pem"])
        conf = _configuration(settings, connector)
        conf |= self._asking(connector) if asks else _told(settings, members)
        own = settings.nats
        made_from = [own.cluster_ca, own.cluster_cert, own.cluster_key, settings.broker.bridge]
        restart_on = frozenset[str]()
        if connector is not None:
            # A leaf node changes no connection while it runs. Nothing is lost: a reload ends sessions, too.
            leaf = _copies(connector.identity, nats_leaf.PREFIX)
            contents |= leaf
            restart_on = frozenset((FILE, *leaf))
            made_from += [connector.identity.ca, connector.identity.cert, connector.identity.key]
        contents[FILE] = orjson.dumps(conf, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        return Plan(
            program="nats-server",
            package="Hubline's extra for it, pip install 'hubline[nats]', or nats-server 2.12 or newer",
            arguments=("--config", FILE),
            files=contents,
            private=frozenset(name for name in contents if name == FILE or name.endswith("key.pem")),
            restart_on=restart_on,
            self_contained=True,  # A reload ends the sessions of all whom it had to ask about.
            reload_signal=getattr(signal, "SIGHUP", None),
            watched=frozenset(path for path in made_from if path is not None),
        )

    def hear(self, line: str) -> Heard | None:
        """Return what a line of its log says; what it tells of itself at a start is for those who search for something."""
        found = _LINE.fullmatch(line)
        if found is None:
            return Heard("warning", line) if line.strip() else None
        text = found["text"]
        if found["level"] == "INF" and (not text or text[0] in " _-"):
            return None  # Part of a picture, or of a list of what is in its configuration.
        for kind, pattern in _REFUSED:
            if refused := pattern.search(text):
                return Heard("warning", text, refused=(kind or refused["kind"], refused["client"], refused["reason"]))
        level = _LEVELS.get(found["level"], "debug")
        if any(words in text for words in _ORDINARY):
            level = "info"
        elif any(words in text for words in _KNOWN):
            level = "debug"
        return Heard(level, text, ready=text == "Server is ready")

    def companions(
        self, settings: BrokerSettings, members: Callable[[], Members], folder: Path
    ) -> Sequence[Coroutine[Any, Any, None]]:
        """Return what lets clients in and puts them out, where the configuration doesn't say who may do what."""
        if authorization(settings) != "callout":
            return ()
        return (self._supervisor.supervise(settings, folder, bridging_connector(settings)),)

    def beside(self) -> Mapping[str, object]:
        """Return whether clients can be let in."""
        return self._supervisor.callout()

    def _asking(self, connector: ConnectorSettings | None) -> dict[str, Any]:
        """Return the accounts and the authorization of a node that asks its supervisor about each client.

        A node's supervisor answers for no other node of the cluster, whose key it hasn't.
        """
        asked = self._supervisor
        users = [asked.answering, asked.watching]
        account: dict[str, Any] = {"jetstream": "enabled"}
        if connector is not None:
            users.append(asked.telling)
            account["users"] = [asked.teller(connector)]
        return {
            "accounts": {
                ACCOUNT: account,
                QUESTIONS_ACCOUNT: {"users": [{"user": asked.answering, "password": asked.password}]},
                SYSTEM_ACCOUNT: {"users": [{"user": asked.watching, "password": asked.password}]},
            },
            "authorization": {
                "timeout": limits.NATS_CALLOUT_TIMEOUT_S,
                "auth_callout": {
                    "issuer": asked.issuer.public,
                    "account": QUESTIONS_ACCOUNT,
                    "auth_users": users,
                },
            },
        }


def authorization(settings: BrokerSettings) -> Literal["permissions", "callout"]:
    """Return how a node knows who may do what. Only by asking does it keep all of the contract, so "auto" is that."""
    return "permissions" if settings.nats.authorization == "permissions" else "callout"


def _told(settings: BrokerSettings, members: Members) -> dict[str, Any]:
    """Return the accounts of a node whose configuration names every member: by the URI in its certificate."""
    users = []
    for principal in members.principals():
        granted = permissions(principal, settings.identity.site)
        if granted is not None:
            users.append({"user": principal.uri} | user_permissions(granted))
    if not users:  # Without any user, nats-server would ask nobody who they are.
        users.append(
            {"user": "nobody", "password": secrets.token_urlsafe(), "permissions": {"publish": {"deny": [">"]}}}
        )
    return {"accounts": {ACCOUNT: {"jetstream": "enabled", "users": users}, SYSTEM_ACCOUNT: {"users": []}}}


def _configuration(settings: BrokerSettings, connector: ConnectorSettings | None) -> dict[str, Any]:
    own = settings.nats
    if len(settings.broker.listen) != 1:
        raise SettingsError(
            "nats-server serves MQTT at one address: give one, for example 0.0.0.0:8883",
            key="broker.listen",
            value=settings.broker.listen,
        )
    if split_endpoint(own.listen)[1] == 0:
        raise SettingsError("needs a port that can be named to others", key="nats.listen", value=own.listen)
    asks = authorization(settings) == "callout"
    trusted = "clients-ca.pem" if asks else "ca.pem"
    way = {"verify": True} if asks else {"verify_and_map": True}
    conf: dict[str, Any] = {
        "server_name": nats_leaf.node_name(settings, connector),
        "listen": _listen(own.listen),
        "tls": {**_tls("cert.pem", "key.pem", trusted), **way, "handshake_first": True},
        "max_payload": limits.PACKET_MAX_BYTES,
        "max_control_line": limits.NATS_CONTROL_LINE_MAX_BYTES,
        "ping_interval": f"{limits.KEEP_ALIVE_S}s",
        "logtime": True,
        "jetstream": {
            "store_dir": str(settings.broker.data_dir / "nats"),
            "sync_interval": "always",
            "max_file_store": limits.NATS_STORE_MAX_BYTES,
            "max_memory_store": limits.NATS_MEMORY_MAX_BYTES,
        },
        "mqtt": {
            "listen": _listen(settings.broker.listen[0]),
            "tls": {**_tls("cert.pem", "key.pem", "ca.pem"), **way},
            "ack_wait": f"{limits.NATS_ACK_WAIT_S:g}s",
            "max_ack_pending": limits.NATS_ACK_PENDING_MAX,
            "stream_replicas": own.replicas,
            "consumer_memory_storage": True,
            "js_api_timeout": f"{limits.NATS_STREAM_API_S:g}s",
            "consumer_inactive_threshold": f"{limits.NATS_SUBSCRIBER_GONE_S:g}s",
            "reject_qos2_publish": True,
        },
        "system_account": SYSTEM_ACCOUNT,
    }
    if own.leaf_listen is not None:
        conf["leafnodes"] = nats_leaf.listening(_listen(own.leaf_listen), _tls("cert.pem", "key.pem", "ca.pem"))
    if connector is not None:
        proofs = _tls(*(f"{nats_leaf.PREFIX}{name}.pem" for name in ("cert", "key", "ca")))
        conf["leafnodes"] = nats_leaf.connecting(settings, proofs)
        conf["jetstream"]["domain"] = nats_leaf.domain(settings)
        conf["ping_interval"], conf["ping_max"] = f"{connector.connector.keep_alive_s}s", 1
    if own.cluster_listen is not None:
        conf["cluster"] = _cluster(settings)
    elif own.replicas > 1:
        raise SettingsError(
            "needs a cluster of as many nodes: set nats.cluster_listen and nats.routes",
            key="nats.replicas",
            value=own.replicas,
        )
    return conf


def _cluster(settings: BrokerSettings) -> dict[str, Any]:
    own = settings.nats
    assert own.cluster_listen is not None
    return {
        "name": own.cluster,
        "listen": _listen(own.cluster_listen),
        "routes": [f"nats-route://{endpoint}" for endpoint in own.routes],
        "tls": {**_tls("cluster-cert.pem", "cluster-key.pem", "cluster-ca.pem"), "verify": True},
        "no_advertise": True,
    }


def _tls(cert: str, key: str, ca: str) -> dict[str, Any]:
    return {
        "cert_file": cert,
        "key_file": key,
        "ca_file": ca,
        "min_version": "1.2",
        "timeout": limits.CONNECT_TIMEOUT_S,
    }


def _certificates(settings: BrokerSettings) -> dict[str, bytes]:
    """Return copies of what a node proves itself with, so that a new certificate is a change of its files."""
    identity, own = settings.identity, settings.nats
    ServerContext(identity, settings.broker.crl)  # Its errors are better than those of nats-server.
    contents = _copies(identity, "")
    if own.cluster_listen is None:
        return contents
    ca, cert, key = own.cluster_ca, own.cluster_cert, own.cluster_key
    if ca is None or cert is None or key is None:
        raise SettingsError(
            "the nodes of a cluster need cluster_ca, cluster_cert and cluster_key: `hubline provision renew broker/…` puts the "
            "files into the bundle of a cloud broker",
            key="nats.cluster_listen",
            value=own.cluster_listen,
        )
    node = Identity(identity.fleet, identity.site, identity.name, ca, cert, key)
    ServerContext(node, None)
    return contents | _copies(node, "cluster-")


def _copies(identity: Identity, prefix: str) -> dict[str, bytes]:
    contents = {}
    for name, path in zip(_PROOFS, (identity.ca, identity.cert, identity.key), strict=True):
        try:
            contents[f"{prefix}{name}.pem"] = path.read_bytes()
        except OSError as exc:
            raise SettingsError(f"cannot be read: {exc.strerror}", file=path) from exc
    return contents


def _listen(endpoint: str) -> str:
    """Return an address to listen at; port 0, any free one, is -1 for nats-server."""
    host, port = split_endpoint(endpoint)
    return join_endpoint(host, port or -1)
