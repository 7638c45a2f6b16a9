"""How a session gets to its broker: paho's client, TLS with our certificates, a proxy on the way, and why it did not work.

Paho hands out its socket only after the handshake, in which a silent peer may hold us. Here it is known from its first moment.
"""

from __future__ import annotations

import socket
import ssl
from typing import Final

from paho.mqtt.enums import CallbackAPIVersion

from broker.client_events import Lost, Refused, SessionOptions
from broker.client_stream import ClientStream, socket_class
from broker.paho_client import paho
from broker.proxy import tunnel
from broker.tls import ALPN, describe_tls_error
from config import limits
from config.endpoint import split_endpoint
from config.errors import RefusedError, TransportError

HTTPS_PORT: Final = 443


class Dial:
    """One attempt to reach a broker. `client` has no callbacks yet; its socket reads and writes through the stream."""

    def __init__(self, options: SessionOptions, stream: ClientStream):
        self.socket: socket.socket | None = None
        self.tls_error: ssl.SSLError | None = None
        """What the broker said of our certificate; TLS 1.3 tells it only after the handshake."""
        self.given_up = False
        """Set it to have the connection end as soon as it has a socket."""
        self._options = options
        self._stream = stream
        self.client: Final = self._make_client()

    def connect(self) -> None:
        """Connect, shake hands and send CONNECT; this blocks. Raises what `failure` understands."""
        proxy = self._options.proxy
        host, port = split_endpoint(self._options.endpoint) if proxy is None else (proxy.host, proxy.port)
        self.client.connect(host, port, self._options.keep_alive_s)

    def failure(self, exc: RefusedError | TransportError | OSError | ValueError) -> Refused | Lost:
        """Return how the session ends by an exception: the TLS layer's own are OSErrors, too."""
        match exc:
            case ssl.SSLCertVerificationError():
                return Refused(describe_tls_error(exc))
            case ssl.SSLError():
                return Refused(describe_tls_error(exc)) if exc.reason else Lost(str(exc), None)
            case RefusedError():
                return Refused(str(exc))
            case TransportError():
                return Lost(str(exc), None)
            case _:
                proxy = self._options.proxy
                at_proxy = proxy is not None and not isinstance(self.socket, ssl.SSLSocket)
                return Lost(f"proxy {proxy}: {_plain(exc)}" if at_proxy else _plain(exc), self._stream.alive_at)

    def hang_up(self) -> None:
        """Wake whoever reads, at the end of what has come. The TLS layer stays, or that would be read as it came."""
        if self.socket is not None:
            try:
                socket.socket.shutdown(self.socket, socket.SHUT_RDWR)
            except OSError:
                pass  # Already gone.

    def _make_client(self) -> paho.Client:
        options = self._options
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=options.client_id,
            clean_session=None if options.mqtt5 else True,  # MQTT 5 begins clean anyway, and ends so.
            protocol=paho.MQTTv5 if options.mqtt5 else paho.MQTTv311,
            reconnect_on_failure=False,
        )
        options.tls.sslsocket_class = socket_class(self._stream, self._meet, self._note_alert)
        if split_endpoint(options.endpoint)[1] == HTTPS_PORT:
            options.tls.set_alpn_protocols(ALPN)
        if options.proxy is not None:
            options.tls.before_handshake = self._tunnel
        client.tls_set_context(options.tls)
        if options.will is not None:
            client.will_set(options.will.topic, options.will.payload, qos=1, retain=True)
        client.connect_timeout = limits.CONNECT_TIMEOUT_S + limits.CLOSE_TIMEOUT_S  # Ours comes first, and says so.
        client.max_inflight_messages_set(0)  # Bounded by the session: paho's own queue would hide what waits.
        return client

    def _meet(self, sock: socket.socket) -> None:
        """Take the socket before its handshake."""
        self.socket = sock
        if self.given_up:
            raise ConnectionAbortedError("aborted")

    def _note_alert(self, alert: ssl.SSLError) -> None:
        self.tls_error = alert

    def _tunnel(self, sock: socket.socket) -> None:
        assert self._options.proxy is not None
        self._meet(sock)  # A silent proxy may hold us, too.
        tunnel(sock, self._options.proxy, self._options.endpoint)


def _plain(exc: OSError | ValueError) -> str:
    """Return what the system says, without its error numbers."""
    return (getattr(exc, "strerror", None) or str(exc) or type(exc).__name__).lower()
