"""Nothing that a client sends reaches the engine unchecked: its identity, its CONNECT, every packet and every topic.

One gate per connection, between TLS and the engine. It does no I/O: bytes in, calls of the engine and of the outlet out.

    before CONNECT ──CONNECT within the rights──▶ open ──DISCONNECT──▶ ended, without the will
          │                                        │
          └──anything else──▶ ended                └──violation, silence, loss, take-over──▶ ended, with the will
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

from broker import packets
from broker.client_ids import is_own
from broker.embedded import ClientSession, Engine, Outlet
from broker.packets import Connect, WrongVersionError
from broker.rights import Rights
from config import limits
from config.errors import ProtocolError
from config.principal import CLOUD_SITE, Principal


class ViolationError(Exception):
    """The client did what it may not: it gets `reply`, if there is one, and its connection is closed."""

    def __init__(self, kind: str, reason: str, reply: bytes = b""):
        self.kind, self.reason, self.reply = kind, reason, reply
        super().__init__(reason)


class Line(Outlet, Protocol):
    """The connection of one client, as its gate sees it."""

    last_seen_at: float

    def expel(self, kind: str, reason: str) -> None:
        """Cut the connection now; its session ends with its will before this returns."""
        ...


class Sessions:
    """The open sessions of one broker: each client id is there once, and belongs to one certificate's holder."""

    def __init__(self, engine: Engine, fleet: str, site: str):
        self.engine, self.fleet, self.site = engine, fleet, site
        self._by_client_id: dict[str, Gate] = {}
        self._by_holder: Counter[Principal] = Counter()

    def __len__(self) -> int:
        return len(self._by_client_id)

    def claim(self, client_id: str, gate: Gate) -> None:
        """Give a client id to a newcomer: the holder's own older session ends first, with its will. Raises ViolationError."""
        older = self._by_client_id.get(client_id)
        if older is not None and older.holder != gate.holder:
            reason = f"the client id {client_id!r} is in use by {older.holder.uri}"
            raise ViolationError("client-id", reason, packets.CONNACK_WRONG_CLIENT_ID)
        if older is None and self._by_holder[gate.holder] >= limits.SESSIONS_PER_CERTIFICATE_MAX:
            reason = f"{limits.SESSIONS_PER_CERTIFICATE_MAX} sessions of one certificate are open"
            raise ViolationError("too-many-sessions", reason, packets.CONNACK_BUSY)
        if older is not None:
            older.line.expel("taken-over", "a newer connection of the same client id has come")
        assert client_id not in self._by_client_id
        self._by_client_id[client_id] = gate
        self._by_holder[gate.holder] += 1

    def release(self, client_id: str, gate: Gate) -> None:
        """Take a client id back from the gate that holds it."""
        assert self._by_client_id.pop(client_id) is gate
        self._by_holder[gate.holder] -= 1
        if not self._by_holder[gate.holder]:
            del self._by_holder[gate.holder]


class Gate:
    """What the holder of one certificate sends on one connection."""

    __slots__ = (
        "_needed",
        "_part",
        "_publishable",
        "_retainable",
        "_rights",
        "_session",
        "_sessions",
        "_subscribes_at",
        "holder",
        "keep_alive_s",
        "line",
    )

    def __init__(self, holder: Principal, sessions: Sessions, line: Line):
        self.holder, self.line = holder, line
        self.keep_alive_s = 0
        self._sessions = sessions
        self._rights = Rights(holder, sessions.site)
        self._session: ClientSession | None = None
        self._part = bytearray()  # The beginning of a packet whose end has not come yet,
        self._needed = 0  # and the length from which on it is worth looking at again.
        self._publishable: dict[bytes, str] = {}
        self._retainable: dict[bytes, str] = {}
        self._subscribes_at = 0.0

    @property
    def is_open(self) -> bool:
        """Tell whether a CONNECT was accepted and the session has not ended."""
        return self._session is not None

    def end(self, *, clean: bool) -> None:
        """End the session, if there is one; unless it is a clean end, its will is published now."""
        session, self._session = self._session, None
        if session is not None:
            self._sessions.release(session.client_id, self)
            self._sessions.engine.close_session(session, clean=clean)

    def receive(self, data: bytes) -> bool:
        """Take bytes as they come, and tell whether the client goes on: False after its DISCONNECT.

        Raises ViolationError; the bytes after the offending packet are not looked at.
        """
        if self._part:
            self._part += data
            if len(self._part) < self._needed:
                return True
            data = bytes(self._part)
            self._part.clear()
        try:
            return self._receive(data)
        except ProtocolError as exc:
            raise ViolationError("malformed", exc.reason) from exc

    def _receive(self, data: bytes) -> bool:
        start, end = 0, len(data)
        while end - start >= 2:
            first = data[start]
            length, body = data[start + 1], start + 2
            if length & 0x80:
                shift = 7
                length &= 0x7F
                while True:
                    if body == end:
                        self._keep(data, start, end - start + 1)
                        return True
                    more = data[body]
                    body += 1
                    length |= (more & 0x7F) << shift
                    shift += 7
                    if not more & 0x80:
                        break
                    if shift > 21:
                        raise ProtocolError("a remaining length of more than four bytes")
            stop = body + length
            if stop > end:
                self._check_beginning(first, stop - start)
                self._keep(data, start, stop - start)
                return True
            if first & 0xF0 == packets.PUBLISH and self._session is not None:
                self._publish(first, data, start, body, stop)
            elif not self._packet(first, data[body:stop], stop - start):
                return False
            start = stop
        if start != end:
            self._check_beginning(data[start], 1)
            self._keep(data, start, 2)
        return True

    def _keep(self, data: bytes, start: int, needed: int) -> None:
        self._part += data[start:] if start else data
        self._needed = needed

    def _check_beginning(self, first: int, size: int) -> None:
        """Refuse a packet before its end has come, if it can only be wrong."""
        if self._session is None:
            if first != packets.CONNECT:
                raise ProtocolError("the first packet is not a CONNECT")
            if size > limits.CONNECT_PACKET_MAX_BYTES:
                raise ProtocolError(f"a CONNECT of {size} bytes")
        elif size > limits.PACKET_MAX_BYTES:
            raise ViolationError("too-large", f"a packet of {size} bytes")

    def _packet(self, first: int, body: bytes, size: int) -> bool:
        self._check_beginning(first, size)
        if self._session is None:
            self._connect(body)
            return True
        match first:
            case packets.PINGREQ if not body:
                self.line.send(packets.PINGRESP)
            case packets.SUBSCRIBE:
                self._subscribe(self._session, body)
            case packets.UNSUBSCRIBE:
                self._sessions.engine.unsubscribe(self._session, *packets.parse_unsubscribe(body))
            case packets.DISCONNECT if not body:
                self.end(clean=True)
                return False
            case packets.CONNECT:
                raise ProtocolError("a second CONNECT")
            case _:
                raise ProtocolError(f"a packet that no client sends (0x{first:02x})")
        return True

    def _connect(self, body: bytes) -> None:
        try:
            connect = packets.parse_connect(body)
        except WrongVersionError as exc:
            raise ViolationError("version", exc.reason, packets.CONNACK_WRONG_VERSION) from exc
        self._check_holder()
        self._check_connect(connect)
        self._sessions.claim(connect.client_id, self)
        self.keep_alive_s = connect.keep_alive_s
        self._session = self._sessions.engine.open_session(connect, self.line)
        self.line.send(packets.CONNACK_ACCEPTED)

    def _check_holder(self) -> None:
        """Refuse who has nothing to do at this broker, whatever it asks for."""
        holder, here = self.holder, self._sessions
        if holder.fleet != here.fleet:
            raise ViolationError("fleet", f"of the fleet {holder.fleet}", packets.CONNACK_NOT_AUTHORIZED)
        if holder.role == "broker":
            raise ViolationError("role", "a broker's certificate is not a client's", packets.CONNACK_NOT_AUTHORIZED)
        if self._rights.none:
            place = "the cloud" if here.site == CLOUD_SITE else here.site
            raise ViolationError("site", f"of the site {holder.site}, not {place}", packets.CONNACK_NOT_AUTHORIZED)

    def _check_connect(self, connect: Connect) -> None:
        name, will = self.holder.name, connect.will
        if not is_own(connect.client_id, name):
            reason = f"the client id {connect.client_id[: limits.TOPIC_MAX_BYTES]!r} is not {name!r}"
            raise ViolationError("client-id", reason, packets.CONNACK_WRONG_CLIENT_ID)
        if not connect.clean_session:
            raise ViolationError("clean-session", "not a clean session", packets.CONNACK_NOT_AUTHORIZED)
        if will is None:
            return
        if len(will.payload) > limits.WILL_MAX_BYTES or will.qos > 1:
            reason = f"a will of {len(will.payload)} bytes with QoS {will.qos}"
            raise ViolationError("will", reason, packets.CONNACK_NOT_AUTHORIZED)
        if not self._rights.may_publish(will.topic, retain=will.retain):
            reason = f"a will for {will.topic[: limits.TOPIC_MAX_BYTES]!r}"
            raise ViolationError("will", reason, packets.CONNACK_NOT_AUTHORIZED)

    def _publish(self, first: int, data: bytes, start: int, body: int, stop: int) -> None:
        """Check a PUBLISH (3.3), pass it on with QoS 0, and acknowledge it. What runs here, runs for every message."""
        qos = first >> 1 & 3
        payload = body + 2
        if payload > stop:
            raise ProtocolError("a PUBLISH without a topic")
        payload += data[body] << 8 | data[body + 1]
        topic_end = payload
        if qos:
            payload += 2
        if payload > stop:
            raise ProtocolError("a field is longer than its packet")
        retain = first & 1
        raw = data[body + 2 : topic_end]
        topic = (self._retainable if retain else self._publishable).get(raw)
        if topic is None:
            topic = self._check_topic(raw, retain=bool(retain))
        if stop - payload > limits.MESSAGE_MAX_BYTES:
            raise ViolationError("too-large", f"a payload of {stop - payload} bytes")
        engine = self._sessions.engine
        engine.messages_in += 1
        if qos == 0:
            if first & 8:
                raise ProtocolError("a duplicate with QoS 0")
            engine.deliver(topic, data[start:stop] if first == packets.PUBLISH else b"0" + data[start + 1 : stop])
        elif qos == 1:
            packet_id = data[topic_end:payload]
            if packet_id == b"\0\0":
                raise ProtocolError("packet id 0")
            length = packets.length_bytes(stop - body - 2)
            engine.deliver(topic, b"0%b%b%b" % (length, data[body:topic_end], data[payload:stop]))
        else:
            raise ViolationError("qos", f"a message with QoS {qos}; 0 and 1 are served")
        if retain:
            engine.retain(topic, data[payload:stop])
        if qos:
            self.line.send(b"\x40\x02" + packet_id)

    def _check_topic(self, raw: bytes, *, retain: bool) -> str:
        """Return the topic that is published to, and remember that it is allowed. Raises ViolationError, ProtocolError."""
        topic = packets.text_of(raw)
        if len(raw) > limits.TOPIC_MAX_BYTES:
            raise ViolationError("publish", f"to a topic of {len(raw)} bytes")
        if not self._rights.may_publish(topic, retain=retain):
            allowed_otherwise = retain and self._rights.may_publish(topic)
            raise ViolationError("publish", f"to {topic!r}" + (", retained" if allowed_otherwise else ""))
        known = self._retainable if retain else self._publishable
        if len(known) >= limits.TOPICS_REMEMBERED_MAX:
            known.clear()
        known[raw] = topic
        return topic

    def _subscribe(self, session: ClientSession, body: bytes) -> None:
        packet_id, topic_filters = packets.parse_subscribe(body)
        refused = [wanted for wanted in topic_filters if not self._rights.may_subscribe(wanted)]
        if refused:
            codes = [packets.NOT_SUBSCRIBED if wanted in refused else packets.SUBSCRIBED for wanted in topic_filters]
            reason = f"to {refused[0][: limits.TOPIC_MAX_BYTES]!r}"
            raise ViolationError("subscribe", reason, packets.suback(packet_id, codes))
        # A bucket of SUBSCRIPTIONS_MAX that refills at SUBSCRIBES_PER_S, as the time until which it is paid for.
        now = self.line.last_seen_at
        self._subscribes_at = max(self._subscribes_at, now) + len(topic_filters) / limits.SUBSCRIBES_PER_S
        too_many = len(session.topic_filters.union(topic_filters)) > limits.SUBSCRIPTIONS_MAX
        if too_many or self._subscribes_at - now > limits.SUBSCRIPTIONS_MAX / limits.SUBSCRIBES_PER_S:
            codes = [packets.NOT_SUBSCRIBED] * len(topic_filters)
            raise ViolationError("subscribe", "too many subscriptions", packets.suback(packet_id, codes))
        self._sessions.engine.subscribe(session, packet_id, topic_filters)
