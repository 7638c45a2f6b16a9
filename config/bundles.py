"""Writes the settings files that go into bundles: short, commented TOML with what differs from the defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from config.endpoint import join_endpoint
from config.principal import CLOUD_SITE, Principal

DEFAULT_PORT: Final = 8883
"""MQTT over TLS, as registered with IANA."""

_CLUSTER: Final = """
# For engine = "nats" in [broker], as a node of a cluster of three:
# [nats]
# cluster_listen = "0.0.0.0:6222"
# routes = ["node-2.example:6222", "node-3.example:6222"]  # the other nodes
# replicas = 3
# leaf_listen = "0.0.0.0:7422"  # for sites whose own NATS bridges (connector.bridge = "engine")
# cluster_ca = "cluster-ca.pem"
# cluster_cert = "cluster-cert.pem"
# cluster_key = "cluster-key.pem"
"""


def toml_string(text: str) -> str:
    """Return `text` as a TOML basic string (TOML 1.0.0, "String")."""
    return '"' + "".join(_escaped(char) for char in text) + '"'


def toml_strings(texts: Sequence[str]) -> str:
    """Return a TOML array of strings."""
    return "[" + ", ".join(toml_string(text) for text in texts) + "]"


def hub_toml(principal: Principal, cloud_endpoints: Sequence[str], connectors: Sequence[str]) -> str:
    """Return hub.toml; `connectors` are the site's known brokers, tried after cache and discovery."""
    return f"""{_head(principal)}
[hub]
data_dir = "data"               # keeps what the cloud has not confirmed yet: on a disk that lasts

[connector]
discovery = true                # find this site's connector by SSDP
endpoints = {toml_strings(connectors)}  # "host:port", tried after discovery

[cloud]
endpoints = {toml_strings(cloud_endpoints)}  # used directly when no connector can be reached
# proxy = "http://proxy.example:3128"  # by default HTTPS_PROXY and NO_PROXY of the environment count

# A section of its own sets a sensor:
# [sensors.cpu]
# enabled = true
# interval_s = 10
"""


def broker_toml(principal: Principal, ports: Sequence[int]) -> str:
    """Return broker.toml of a site's or the cloud's broker, listening on every address."""
    listen = [join_endpoint("0.0.0.0", port) for port in ports]  # noqa: S104 every client proves itself by certificate
    return f"""{_head(principal)}
[broker]
listen = {toml_strings(listen)}
crl = "crl.pem"                 # revoked certificates: replace it after `hubline provision revoke`
members = "members.json"        # for other engines than the default: replace it after `hubline provision`
{_CLUSTER if principal.site == CLOUD_SITE else ""}"""


def connector_toml(principal: Principal, cloud_endpoints: Sequence[str], port: int) -> str:
    """Return connector.toml for a connector beside its broker."""
    return f"""{_head(principal)}
[connector]
site_broker = {toml_string(join_endpoint("127.0.0.1", port))}
advertise = true                # answer the hubs' searches by SSDP

[cloud]
endpoints = {toml_strings(cloud_endpoints)}  # the cloud broker, tried in order
# proxy = "http://proxy.example:3128"  # by default HTTPS_PROXY and NO_PROXY of the environment count
"""


def cloud_toml(principal: Principal, port: int) -> str:
    """Return cloud.toml for a cloud service beside its broker."""
    return f"""{_head(principal)}
[cloud]
broker = {toml_string(join_endpoint("127.0.0.1", port))}
database = "sqlite:///cloud.db"
roster = "roster.json"          # the fleet's hubs: replace it after `hubline provision`

[api]
listen = "127.0.0.1:8480"       # beyond this machine only with cert = … and key = …
"""


def reader_toml(principal: Principal, cloud_endpoints: Sequence[str]) -> str:
    """Return reader.toml of a subscriber."""
    broker = cloud_endpoints[0] if cloud_endpoints else join_endpoint("127.0.0.1", DEFAULT_PORT)
    return f"""{_head(principal)}
[reader]
broker = {toml_string(broker)}
"""


def _head(principal: Principal) -> str:
    place = "the whole fleet" if principal.site == CLOUD_SITE else f"site {principal.site}"
    return f"""# {principal.role} {principal.name} of fleet {principal.fleet}, {place}.
# Relative paths start from this file's folder. Every setting and its default: hubline config show -c {principal.role}.toml

[identity]                      # must say what the certificate says
fleet = {toml_string(principal.fleet)}
site = {toml_string(principal.site)}
name = {toml_string(principal.name)}
ca = "ca.pem"
cert = "cert.pem"
key = "key.pem"
"""


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char < " " or char == "\x7f":
        return f"\\u{ord(char):04x}"
    return char
