"""What an engine's own bridge may leave to the connector to carry: hubs' states, heartbeats and polls, all of them few (pure)."""

from __future__ import annotations

from collections import Counter
from typing import Final

from broker.topics import Topic, hub_filter
from config import limits
from config.errors import ProtocolError
from connector.bridge import Forward, Side, Subscribe

CHANNELS: Final = ("state", "heartbeat", "poll")


class Beside:
    """What of one site's hubs is carried beside a bridge, while it is `wanted`; `counters` gets what was and what was not."""

    def __init__(self, fleet: str, site: str, counters: Counter[str]):
        self.wanted = False
        self._site = (fleet, site, "hub")
        self._filters = tuple((hub_filter(fleet, site, "+", channel), 1) for channel in CHANNELS)
        self._counters = counters

    def subscribe(self) -> Subscribe:
        """Let the site tell it, and (again) what is retained there."""
        return Subscribe(Side.SITE, self._filters)

    def channel_of(self, text: str) -> str | None:
        """Return the channel of a topic, or None if it is none of ours."""
        try:
            topic = Topic.parse(text)
        except ProtocolError:
            return None
        ours = (topic.fleet, topic.site, topic.owner) == self._site and topic.channel in CHANNELS
        return topic.channel if ours else None

    def carry(self, channel: str, topic: str, payload: bytes, *, cloud_open: bool) -> list[Forward]:
        """Carry a message up as our own bridge does: only states are retained, and they come again when the cloud is back."""
        if len(payload) > limits.MESSAGE_MAX_BYTES:
            self._counters["beside_dropped_too_large"] += 1
        elif not cloud_open:
            self._counters["beside_dropped_closed"] += 1
        else:
            self._counters["beside_to_cloud"] += 1
            return [Forward(Side.CLOUD, topic, payload, 1, retain=channel == "state")]
        return []
