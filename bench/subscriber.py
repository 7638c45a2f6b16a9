"""How the peer's storing subscribers hear: by paho-mqtt, as a user would, or by the load's own light client.

What comes is put into a list in the event loop, of which paho's thread knows nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from bench.load import Line
from broker.tls import client_context
from broker.topics import hub_filter
from config.endpoint import split_endpoint
from config.principal import CLOUD_SITE, server_name
from config.settings import Identity

By: TypeAlias = Literal["paho", "light"]


class Sink(Protocol):
    """Who stores what comes: topics and payloads."""

    waiting: list[tuple[bytes, bytes]]
    arrived: asyncio.Event


async def subscribe(sink: Sink, by: By, endpoint: str, fleet: str, bundle: Path) -> asyncio.Future[Any]:
    """Hear all that hubs send, with QoS 1; the result is done when the session has ended."""
    identity = Identity(fleet, CLOUD_SITE, bundle.name, bundle / "ca.pem", bundle / "cert.pem", bundle / "key.pem")
    context = client_context(identity, server_name(fleet, CLOUD_SITE))
    topic_filter = hub_filter(fleet, "+", "+", "up")
    if by == "paho":
        return await _by_paho(sink, endpoint, bundle.name, context, topic_filter)

    def take(topic: bytes, payload: bytes) -> None:
        sink.waiting.append((topic, payload))

    line = Line(bundle.name, take, lambda: sink.arrived.set() if sink.waiting else None)
    await line.open(endpoint, context)
    await line.subscribe(topic_filter, 1)
    return line.lost


async def _by_paho(sink: Sink, endpoint: str, client_id: str, context: Any, topic_filter: str) -> asyncio.Future[None]:
    loop = asyncio.get_running_loop()
    subscribed, lost = asyncio.Event(), loop.create_future()
    inbox = deque[tuple[bytes, bytes]]()

    def drain() -> None:
        while inbox:
            sink.waiting.append(inbox.popleft())
        sink.arrived.set()

    def on_message(_client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        inbox.append((message.topic.encode(), bytes(message.payload)))
        if len(inbox) == 1:
            loop.call_soon_threadsafe(drain)

    def on_connect(*_: Any) -> None:
        client.subscribe(topic_filter, 1)

    def on_subscribe(*_: Any) -> None:
        loop.call_soon_threadsafe(subscribed.set)

    def on_disconnect(*_: Any) -> None:
        loop.call_soon_threadsafe(end)

    def end() -> None:
        if not lost.done():
            lost.set_result(None)

    client = paho.Client(CallbackAPIVersion.VERSION2, client_id=client_id)
    client.tls_set_context(context)
    client.on_connect, client.on_subscribe, client.on_disconnect = on_connect, on_subscribe, on_disconnect
    client.on_message = on_message
    await asyncio.to_thread(client.connect, *split_endpoint(endpoint))
    client.loop_start()
    await subscribed.wait()
    return lost
