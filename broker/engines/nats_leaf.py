"""A site's nats-server as a leaf node of the cloud's: the bridge that NATS itself has (`connector.bridge = "engine"`).

What may cross is said three times: by the cloud node's answer to who connects (`nats_rights.leaf_permissions`), and by what the
site's node neither sends nor takes. No subject is in both directions, and nothing that NATS keeps for itself crosses: streams
and MQTT sessions of both sides know nothing of each other. What the connector carries instead is in `connector.beside_bridge`.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any, Final

from broker.client_ids import client_id_of
from broker.engines.nats_rights import ACCOUNT, INSIDE, LEAF_UP, subject_of
from broker.engines.site_bridge import refuse_unusable
from broker.topics import HUB_CHANNELS, connector_filter, hub_filter
from config import limits
from config.endpoint import split_endpoint
from config.errors import SettingsError
from config.principal import CLOUD_SITE
from config.settings import BrokerSettings, ConnectorSettings

PREFIX: Final = "leaf-"
"""What the files begin with by which a leaf node proves itself; they are the connector's."""


def node_name(settings: BrokerSettings, connector: ConnectorSettings | None) -> str:
    """Return what a node calls itself. A leaf node is named after whose certificate it has: the cloud looks that it is."""
    return settings.identity.name if connector is None else client_id_of(connector.identity.name, "leaf")


def domain(settings: BrokerSettings) -> str:
    """Return what a leaf node's streams belong to: not to the cloud's, whose have no domain."""
    return f"site-{settings.identity.site}"


def check(settings: BrokerSettings, connector: ConnectorSettings | None) -> None:
    """Raise SettingsError for what a person must correct."""
    own = settings.nats
    asks = own.authorization != "permissions"
    if own.leaf_listen is not None:
        if settings.identity.site != CLOUD_SITE:
            raise SettingsError(
                "only nodes of the cloud take in leaf nodes", key="nats.leaf_listen", value=own.leaf_listen
            )
        if not asks:
            _refuse_permissions("nats.leaf_listen", own.leaf_listen)
    if connector is None:
        if own.leaf_remotes:
            problem = "is for a node that bridges by itself: name the connector.toml in broker.bridge, or leave it out"
            raise SettingsError(problem, key="nats.leaf_remotes", value=own.leaf_remotes)
        return
    refuse_unusable(connector, settings, "a leaf node of NATS")
    if not own.leaf_remotes:
        problem = 'must name where the cloud\'s nodes take in leaf nodes (their nats.leaf_listen): "host:port"'
        raise SettingsError(problem, key="nats.leaf_remotes")
    if not asks:
        _refuse_permissions("broker.bridge", str(settings.broker.bridge))
    if own.cluster_listen is not None:
        problem = "a node that bridges its site by itself can't be one of a cluster"
        raise SettingsError(problem, key="nats.cluster_listen", value=own.cluster_listen)
    if len({_is_address(endpoint) for endpoint in own.leaf_remotes}) > 1:
        problem = "must be names only, or IP addresses only: nats-server would look for a name in the certificate of an address"
        raise SettingsError(problem, key="nats.leaf_remotes", value=own.leaf_remotes)


def listening(listen: str, tls: dict[str, Any]) -> dict[str, Any]:
    """Return how a node of the cloud takes leaf nodes in."""
    return {"listen": listen, "tls": {**tls, "verify": True, "handshake_first": True}, "no_advertise": True}


def connecting(settings: BrokerSettings, tls: dict[str, Any]) -> dict[str, Any]:
    """Return how a site's node becomes a leaf node of the cloud."""
    remote = {
        "urls": [f"tls://{endpoint}" for endpoint in settings.nats.leaf_remotes],
        "no_randomize": True,
        "account": ACCOUNT,
        "tls": {**tls, "handshake_first": True},
        "deny_exports": [*INSIDE, *_others(LEAF_UP)],
        # What it may not take in, nats-server (seen with 2.15.1) doesn't send either: so what goes up can't be named here.
        "deny_imports": [*INSIDE, *_others((*LEAF_UP, "down"))],
    }
    return {"remotes": [remote], "reconnect": f"{limits.NATS_LEAF_RETRY_S}s"}


def _others(crossing: tuple[str, ...]) -> list[str]:
    """Return the subjects of all that doesn't cross in a direction, whosever it is."""
    channels = [channel for channel in HUB_CHANNELS if channel not in crossing]
    kept = [hub_filter("+", "+", "+", channel) for channel in channels]
    return [subject_of(each) for each in (*kept, connector_filter("+", "+"))]


def _is_address(endpoint: str) -> bool:
    try:
        ip_address(split_endpoint(endpoint)[0].partition("%")[0])
    except ValueError:
        return False
    return True


def _refuse_permissions(key: str, value: str) -> None:
    problem = 'needs nats.authorization = "auto": leaf nodes are let in by Hubline\'s own answer'
    raise SettingsError(problem, key=key, value=value)
