"""What is common to the bridges of engines that carry a site's messages to the cloud broker themselves (0012, 0017).

The connector watches such a bridge by notices, which only its own certificate may read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from broker.topics import Topic
from config.errors import SettingsError
from config.principal import CLOUD_SITE
from config.settings import BrokerSettings, ConnectorSettings, load

CONNECTED: Final = b"1"
"""What is retained at `notification_topic` while Mosquitto's bridge is connected; otherwise "0"."""


@dataclass(frozen=True, slots=True)
class Notice:
    """How a bridge is. Who names its `link`, the connection that it has, says so again and again, whether it changes or not.

    Such a bridge carries only what is sent in mass; the connector carries states, heartbeats and polls.
    """

    connected: bool
    link: str | None = None

    @classmethod
    def parse(cls, payload: bytes) -> Notice:
        """Read a notice; what can't be read says that the bridge is not connected."""
        state, space, link = payload.partition(b" ")
        return cls(state == CONNECTED, link.decode("ascii", "replace") if space else None)

    def encode(self) -> bytes:
        """Return it as it is published."""
        state = CONNECTED if self.connected else b"0"
        return state if self.link is None else b"%b %b" % (state, self.link.encode())


def notification_topic(connector_id: str) -> str:
    """Return where the site's broker says whether its bridge is connected; Mosquitto's own place, retained there."""
    return f"$SYS/broker/connection/{connector_id}/state"


def watch_filters(connector: ConnectorSettings) -> tuple[str, ...]:
    """Return what the connector must be able to read at the site broker beyond the contract's rights, to watch the bridge."""
    identity = connector.identity
    return notification_topic(identity.name), str(Topic.down(identity.fleet, identity.site, "+", "ack"))


def rights_to_watch(connector: ConnectorSettings | None) -> Mapping[str, Sequence[str]]:
    """Return what connectors, by name, may read besides."""
    return {} if connector is None else {connector.identity.name: watch_filters(connector)}


def bridging_connector(settings: BrokerSettings) -> ConnectorSettings | None:
    """Return the settings of the connector that lets this broker bridge to the cloud broker, if there is one."""
    file = settings.broker.bridge
    if file is None:
        return None
    if settings.identity.site == CLOUD_SITE:
        raise SettingsError("the cloud broker has nowhere to bridge to", key="broker.bridge", value=str(file))
    if not file.is_file():
        raise SettingsError("is no file: name the site's connector.toml", key="broker.bridge", value=str(file))
    return load(file, ConnectorSettings)


def refuse_unusable(connector: ConnectorSettings, settings: BrokerSettings, bridge: str) -> None:
    """Raise SettingsError if this connector does not let this broker bridge, or `bridge` (its kind) can't do it so."""
    here, there = settings.identity, connector.identity
    file = settings.broker.bridge
    if connector.connector.bridge != "engine":
        problem = (
            'lets the connector itself carry everything: write bridge = "engine" there, or leave out broker.bridge'
        )
        raise SettingsError(problem, file=file, key="connector.bridge", value=connector.connector.bridge)
    if (here.fleet, here.site) != (there.fleet, there.site):
        problem = f"is of {there.site} in {there.fleet}, this broker of {here.site} in {here.fleet}"
        raise SettingsError(problem, file=file, key="identity.site")
    if not connector.cloud.endpoints:
        raise SettingsError('names no cloud broker; give at least one "host:port"', file=file, key="cloud.endpoints")
    if connector.cloud.proxy not in ("", "none"):
        problem = f'can\'t be used by {bridge}: leave it out, or write bridge = "own"'
        raise SettingsError(problem, file=file, key="cloud.proxy")
