"""Peer T: Debian's Mosquitto as site broker, bridged by itself to a second one; mutual TLS with the fleet's own certificates.

In-flight 1000, unlimited queues, persistence on, QoS 1 on every hop, rights by certificate: what a careful user would set.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from config.errors import SettingsError

IN_FLIGHT: Final = 1000


def program() -> str:
    """Return Mosquitto's path. Raises SettingsError if it is not installed."""
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise SettingsError("Mosquitto, the peer, is not installed: apt-get install mosquitto (package: mosquitto)")
    return found


def write_cloud(folder: Path, bundles: Path, fleet: str, connector: str, readers: list[str], port: int) -> Path:
    """Write the settings of the broker in the cloud, and return the file."""
    rights = [f"user {connector}\ntopic write hl1/{fleet}/+/hub/+/up/+\ntopic read hl1/{fleet}/+/hub/+/down/+"]
    rights += [f"user {reader}\ntopic read hl1/{fleet}/#" for reader in readers]
    return _write(folder, bundles / "broker" / "cloud", port, rights, [])


def write_site(folder: Path, bundles: Path, fleet: str, site: str, connector: str, port: int, cloud_port: int) -> Path:
    """Write the settings of the site's broker and its bridge, and return the file."""
    root, client = f"hl1/{fleet}/{site}/hub", bundles / "connector" / connector
    rights = [f"pattern write {root}/%u/up/+\npattern write {root}/%u/state\npattern read {root}/%u/down/+"]
    bridge = [
        "connection cloud",
        f"address 127.0.0.1:{cloud_port}",
        f"remote_clientid {connector}",
        f"bridge_cafile {client / 'ca.pem'}",
        f"bridge_certfile {client / 'cert.pem'}",
        f"bridge_keyfile {client / 'key.pem'}",
        f"topic {root}/+/up/+ out 1",
        f"topic {root}/+/down/+ in 1",
        "notifications false",
        "restart_timeout 1",
    ]
    return _write(folder, bundles / "broker" / connector, port, rights, bridge)


def _write(folder: Path, bundle: Path, port: int, rights: list[str], bridge: list[str]) -> Path:
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
        f"listener {port} 127.0.0.1",
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
