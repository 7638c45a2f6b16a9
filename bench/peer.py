"""Peer T: Debian's Mosquitto as site broker, bridged by itself to a second one; mutual TLS with the fleet's own certificates.

In-flight 1000, unlimited queues, persistence on, QoS 1 on every hop, rights by certificate: what a careful user would set.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.network import Place
from config.errors import SettingsError

IN_FLIGHT: Final = 1000
KEEP_ALIVE_S: Final = 20
"""As our connector's: how soon the bridge notices that the WAN is out."""


@dataclass(frozen=True, slots=True)
class Members:
    """Who connects to the peer's brokers besides hubs: the bridge, readers, and our cloud service where it takes their place."""

    connector: str
    readers: tuple[str, ...]
    service: str


def program() -> str:
    """Return Mosquitto's path. Raises SettingsError if it is not installed."""
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise SettingsError("Mosquitto, the peer, is not installed: apt-get install mosquitto (package: mosquitto)")
    return found


def write_cloud(place: Place, folder: Path, bundles: Path, fleet: str, members: Members, port: int) -> Path:
    """Write the settings of the broker in the cloud, and return the file."""
    connector = members.connector
    rights = [f"user {connector}\ntopic write hl1/{fleet}/+/hub/+/up/+\ntopic read hl1/{fleet}/+/hub/+/down/+"]
    rights += [f"user {reader}\ntopic read hl1/{fleet}/#" for reader in members.readers]
    rights += [f"user {members.service}\ntopic readwrite hl1/{fleet}/#"]
    return _write(place, folder, bundles / "broker" / "cloud", port, rights, [])


def write_site(
    place: Place, folder: Path, bundles: Path, fleet: str, site: str, members: Members, port: int, cloud_port: int
) -> Path:
    """Write the settings of the site's broker and its bridge, and return the file."""
    root, client = f"hl1/{fleet}/{site}/hub", bundles / "connector" / members.connector
    rights = [f"pattern write {root}/%u/up/+\npattern write {root}/%u/state\npattern read {root}/%u/down/+"]
    bridge = [
        "connection cloud",
        f"address {place.cloud_from_site}:{cloud_port}",
        f"remote_clientid {members.connector}",
        f"bridge_cafile {client / 'ca.pem'}",
        f"bridge_certfile {client / 'cert.pem'}",
        f"bridge_keyfile {client / 'key.pem'}",
        f"topic {root}/+/up/+ out 1",
        f"topic {root}/+/down/+ in 1",
        "notifications false",
        "restart_timeout 1",
        f"keepalive_interval {KEEP_ALIVE_S}",
    ]
    return _write(place, folder, bundles / "broker" / members.connector, port, rights, bridge)


def _write(place: Place, folder: Path, bundle: Path, port: int, rights: list[str], bridge: list[str]) -> Path:
    folder.mkdir(parents=True)
    acl, file = folder / "acl", folder / "mosquitto.conf"
    acl.write_text("\n\n".join(rights) + "\n", "utf-8")
    acl.chmod(0o600)
    lines = [
        *(["user root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []),  # Else it could not read the keys.
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        f"max_inflight_messages {IN_FLIGHT}",
        "max_queued_messages 0",
        "persistence true",
        f"persistence_location {folder}/",
        f"acl_file {acl}",
        "allow_anonymous false",
        f"listener {port} {place.listen}",
        f"cafile {bundle / 'ca.pem'}",
        f"certfile {bundle / 'cert.pem'}",
        f"keyfile {bundle / 'key.pem'}",
        f"crlfile {bundle / 'crl.pem'}",
        "require_certificate true",
        "use_identity_as_username true",
        *bridge,
    ]
    file.write_text("\n".join(lines) + "\n", "utf-8")
    return file
