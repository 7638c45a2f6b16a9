"""amqtt as our engine: its broker, sessions and retained messages, without its path of a packet.

What a client sends has been checked by the gate and is carried out here at once, in one step: no task, no queue and no
lock per session, so nothing overtakes anything. A message goes to the subscribers that the index names, encoded once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Any, Final, Protocol

from amqtt.broker import Broker, RetainedApplicationMessage
from amqtt.session import Session

from broker import packets
from broker.packets import Connect
from broker.subscriptions import SubscriptionIndex, TopicTree
from config import limits, log

_CONFIG: Final[dict[str, Any]] = {"listeners": {"default": {"type": "external"}}, "plugins": {}}
"""amqtt opens no listener of its own and loads no plugin: nothing that it would do to a connection is asked for."""


class Outlet(Hashable, Protocol):
    """The way to one client."""

    def send(self, packet: bytes) -> None:
        """Send a packet, in order; a client that does not keep up is disconnected later, never in this call."""
        ...

    def replay(self, topics: list[str]) -> None:
        """Send the retained messages of these topics as the client takes them, each as it is at that moment."""
        ...


class _Transitions:
    """The three states of amqtt's session. Its own state machine, made anew for each session, costs 16 kB."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state = "new"

    def connect(self) -> None:
        self.state = "connected"

    def disconnect(self) -> None:
        self.state = "disconnected"

    def is_connected(self) -> bool:
        return self.state == "connected"


class _CleanSession(Session):  # type: ignore[misc]
    """A session whose queues stay empty, since it ends with its connection; so all share the same two."""

    def _init_states(self) -> None:
        self.transitions = _Transitions()


class ClientSession:
    """An open session: amqtt's, and beside it who gets its messages and what it has subscribed to."""

    __slots__ = ("amqtt", "client_id", "outlet", "topic_filters")

    def __init__(self, client_id: str, amqtt: Session, outlet: Outlet):
        self.client_id = client_id
        self.amqtt = amqtt
        self.outlet = outlet
        self.topic_filters: set[str] = set()

    async def stop(self) -> None:
        """End as amqtt wants it of a protocol handler: the connection is closed by whoever made it."""


class Engine(Broker):  # type: ignore[misc]
    """The broker of one site or cloud. Made inside a running event loop; `start` and `shutdown` are amqtt's own."""

    def __init__(self) -> None:
        super().__init__(_CONFIG)
        self.messages_in = self.messages_out = 0
        self.sessions_opened = self.wills = self.not_retained = 0
        self._log = log.get(__name__)
        self._index: SubscriptionIndex[Outlet] = SubscriptionIndex()
        self._retained_topics = TopicTree()
        self._retained_bytes = 0
        self._retained_full = False
        self._no_messages: asyncio.Queue[Any] = asyncio.Queue()

    def open_session(self, connect: Connect, outlet: Outlet) -> ClientSession:
        """Begin a clean session. Its client id must be free."""
        assert connect.client_id not in self._sessions
        session = _CleanSession()
        session.retained_messages = session.delivered_message_queue = self._no_messages
        session.client_id = connect.client_id
        session.clean_session = True
        session.keep_alive = connect.keep_alive_s
        if connect.will is not None:
            session.will_flag = True
            session.will_topic = connect.will.topic
            session.will_message = connect.will.payload
            session.will_qos = connect.will.qos
            session.will_retain = connect.will.retain
        session.transitions.connect()
        opened = ClientSession(connect.client_id, session, outlet)
        self._sessions[connect.client_id] = (session, opened)
        self.sessions_opened += 1
        return opened

    def close_session(self, closed: ClientSession, *, clean: bool) -> None:
        """End a session: forget its subscriptions, and publish its last will unless it ended with a DISCONNECT."""
        session = closed.amqtt
        session.transitions.disconnect()
        del self._sessions[closed.client_id]
        for topic_filter in closed.topic_filters:
            self._index.remove(topic_filter, closed.outlet)
        closed.topic_filters.clear()
        if session.will_flag and not clean:
            self.wills += 1
            self.publish(session.will_topic, session.will_message, retain=session.will_retain)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Deliver a message to everyone who wants it, and keep it for later subscribers if it is to be retained."""
        self.deliver(topic, packets.publish(topic, payload))
        if retain:
            self.retain(topic, payload)

    def deliver(self, topic: str, packet: bytes) -> None:
        """Hand a complete PUBLISH of QoS 0 to everyone who wants its topic."""
        outlets = self._index.subscribers(topic)
        self.messages_out += len(outlets)
        for outlet in outlets:
            outlet.send(packet)

    def subscribe(self, session: ClientSession, packet_id: bytes, topic_filters: list[str]) -> None:
        """Add subscriptions, acknowledge them, and then send what is retained (3.8.4)."""
        for topic_filter in topic_filters:
            session.topic_filters.add(topic_filter)
            self._index.add(topic_filter, session.outlet)
        session.outlet.send(packets.suback(packet_id, [packets.SUBSCRIBED] * len(topic_filters)))
        for topic_filter in topic_filters:
            retained = self._retained_topics.matching(topic_filter)
            if retained:
                session.outlet.replay(retained)

    def unsubscribe(self, session: ClientSession, packet_id: bytes, topic_filters: list[str]) -> None:
        """Remove subscriptions, those that are there, and acknowledge that."""
        for topic_filter in topic_filters:
            if topic_filter in session.topic_filters:
                session.topic_filters.discard(topic_filter)
                self._index.remove(topic_filter, session.outlet)
        session.outlet.send(packets.unsuback(packet_id))

    def retain(self, topic: str, payload: bytes) -> None:
        """Keep a message as its topic's newest; an empty one only removes what was kept (3.3.1.3)."""
        known = self._retained_messages.get(topic)
        before_bytes = 0 if known is None else len(known.data)
        if not payload:
            if known is not None:
                del self._retained_messages[topic]
                self._retained_topics.remove(topic)
                self._retained_bytes -= before_bytes
            return
        if self._retained_bytes - before_bytes + len(payload) > limits.RETAINED_MAX_BYTES or (
            known is None and len(self._retained_messages) >= limits.RETAINED_MAX
        ):
            self._refuse_to_retain(topic)
            return
        self._retained_full = False
        self._retained_messages[topic] = RetainedApplicationMessage(None, topic, payload, 0)
        self._retained_bytes += len(payload) - before_bytes
        if known is None:
            self._retained_topics.add(topic)

    @property
    def retained_count(self) -> int:
        """Return how many topics have a retained message."""
        return len(self._retained_messages)

    def retained_packet(self, topic: str) -> bytes | None:
        """Return the retained message of a topic as a PUBLISH, or None if there is none any more."""
        message = self._retained_messages.get(topic)
        if message is None:
            return None
        self.messages_out += 1
        return packets.publish(topic, message.data, retain=True)

    async def retain_message(
        self, source_session: Session | None, topic_name: str, data: bytes, qos: int | None = None
    ) -> None:
        """Retain as amqtt's own callers would."""
        self.retain(topic_name, bytes(data))

    async def _broadcast_message(
        self, session: Session | None, topic: str, data: bytes, force_qos: int | None = None
    ) -> None:
        self.publish(topic, bytes(data))

    def _refuse_to_retain(self, topic: str) -> None:
        """Drop what was kept of the topic, since an old message would pass for the newest, and say so once."""
        if topic in self._retained_messages:
            self.retain(topic, b"")
        self.not_retained += 1
        if not self._retained_full:
            self._retained_full = True
            self._log.warning("retained_messages_full", topics=len(self._retained_messages), bytes=self._retained_bytes)
