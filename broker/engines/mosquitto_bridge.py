"""Mosquitto's own bridge (`connector.bridge = "engine"`): what crosses, as whom, and behind what bounds.

It carries what the connector's own bridge carries, and no topic in both directions, so that nothing can go round in a circle.
Like that one it keeps nothing for later: hubs send again what the cloud has not acknowledged.
"""

from __future__ import annotations

from typing import Final

from broker.client_ids import client_id_of
from broker.engines.site_bridge import CONNECTED, notification_topic, refuse_unusable, watch_filters
from broker.rights import UP_SIDE
from broker.tls import ALPN, key_secret
from broker.topics import hub_filter
from config import limits
from config.endpoint import split_endpoint
from config.errors import SettingsError
from config.settings import BrokerSettings, ConnectorSettings

__all__ = ["CONNECTED", "bridge_section", "notification_topic", "restart_max_s", "watch_filters"]

HTTPS_PORT: Final = 443


def restart_max_s(keep_alive_s: int) -> int:
    """Return the longest wait before the bridge connects again: whoever wants to see a loss soon wants its end soon."""
    return min(max(keep_alive_s, limits.MOSQUITTO_KEEP_ALIVE_MIN_S), limits.BRIDGE_RESTART_MAX_S)


def bridge_section(connector: ConnectorSettings, settings: BrokerSettings) -> str:
    """Return the section of Mosquitto 2.0's configuration that bridges its site to the cloud broker; it must be the last.

    Its local side needs no rights in an ACL file: Mosquitto asks for none. Raises SettingsError for what a person must correct.
    """
    _refuse_unusable(connector, settings)
    identity = connector.identity
    secret = key_secret(identity, "bridge")
    keep_alive_s = max(connector.connector.keep_alive_s, limits.MOSQUITTO_KEEP_ALIVE_MIN_S)
    endpoints = [split_endpoint(endpoint) for endpoint in connector.cloud.endpoints]
    lines = [
        "connection cloud",
        f"addresses {' '.join(f'{host}:{port}' for host, port in endpoints)}",
        "round_robin false",
        f"local_clientid {client_id_of(identity.name, f'local-{secret}')}",
        f"remote_clientid {client_id_of(identity.name, f'bridge-{secret}')}",
        "bridge_protocol_version mqttv311",
        "try_private false",  # Says "bridge" by a bit of the protocol's version that other engines take for a wrong version.
        "cleansession true",
        "local_cleansession true",
        f"keepalive_interval {keep_alive_s}",
        f"restart_timeout {limits.BRIDGE_RESTART_FIRST_S} {restart_max_s(keep_alive_s)}",
        f"bridge_max_packet_size {limits.PACKET_MAX_BYTES}",
        "bridge_attempt_unsubscribe false",
        "bridge_outgoing_retain true",
        "notifications true",
        "notifications_local_only true",
        f"notification_topic {notification_topic(identity.name)}",
        f"bridge_cafile {identity.ca}",
        f"bridge_certfile {identity.cert}",
        f"bridge_keyfile {identity.key}",
        "bridge_tls_version tlsv1.2",
        "bridge_insecure false",
        "bridge_require_ocsp false",
    ]
    if any(port == HTTPS_PORT for _, port in endpoints):
        lines.append(f"bridge_alpn {ALPN[0]}")
    return "\n".join([*lines, *_topics(identity.fleet, identity.site)]) + "\n"


def _topics(fleet: str, site: str) -> list[str]:
    """Return what crosses. States are few and said once; for all else a hop's confirmation would promise nothing."""
    out = [f"topic {hub_filter(fleet, site, '+', channel)} out {1 if channel == 'state' else 0}" for channel in UP_SIDE]
    return [*out, f"topic {hub_filter(fleet, site, '+', 'down')} in 0"]


def _refuse_unusable(connector: ConnectorSettings, settings: BrokerSettings) -> None:
    refuse_unusable(connector, settings, "Mosquitto's bridge")
    there, file = connector.identity, settings.broker.bridge
    for key, path in (("ca", there.ca), ("cert", there.cert), ("key", there.key)):
        if any(character in str(path) for character in "\r\n"):
            raise SettingsError("is no path that Mosquitto's configuration can hold", file=file, key=f"identity.{key}")
