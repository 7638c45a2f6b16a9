"""The peer of the cloud service: a subscriber of a few lines with paho-mqtt that counts what comes and keeps nothing.

`python -m bench.plain_reader ENDPOINT FLEET BUNDLE`; a line on standard output once it is subscribed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from broker.tls import client_context
from broker.topics import hub_filter
from config.endpoint import split_endpoint
from config.principal import CLOUD_SITE, server_name
from config.settings import Identity


def main(endpoint: str, fleet: str, bundle: Path) -> None:
    """Subscribe and count until ended."""
    identity = Identity(fleet, CLOUD_SITE, bundle.name, bundle / "ca.pem", bundle / "cert.pem", bundle / "key.pem")
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=bundle.name)
    client.tls_set_context(client_context(identity, server_name(fleet, CLOUD_SITE)))
    counted = 0

    def connected(*_: Any) -> None:
        client.subscribe(hub_filter(fleet, "+", "+", "up"), 0)

    def subscribed(*_: Any) -> None:
        print("[]", flush=True)

    def arrived(*_: Any) -> None:
        nonlocal counted
        counted += 1

    client.on_connect, client.on_subscribe, client.on_message = connected, subscribed, arrived
    host, port = split_endpoint(endpoint)
    client.connect(host, port)
    client.loop_forever()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
