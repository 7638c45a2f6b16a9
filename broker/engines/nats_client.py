"""Connects to a nats-server of ours: always mutual TLS, from the first byte, at whatever address the name is served."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeAlias

from broker.tls import client_context, describe_tls_error
from config import limits, log
from config.errors import RefusedError, SettingsError, TransportError
from config.principal import server_name
from config.settings import Identity

if TYPE_CHECKING:
    from nats.aio.client import Client

_NO_RIGHTS: Final = "Authorization Violation"
Notice: TypeAlias = Callable[[], Awaitable[None]]


async def connected(
    endpoints: list[str],
    identity: Identity,
    *,
    user: str | None = None,
    password: str | None = None,
    on_lost: Notice | None = None,
    on_back: Notice | None = None,
    again: bool = False,
) -> Client:
    """Return a connected client; with `again` it connects anew by itself when it has lost its node.

    The endpoints are tried in their order. `on_lost` and `on_back` are called when that happens. Raises TransportError,
    RefusedError and SettingsError.
    """
    try:
        import nats
        from nats.errors import Error
    except ImportError as exc:
        raise SettingsError("nats-py is not here: pip install 'hubline[nats]'", key="nats") from exc

    async def on_error(exc: Exception) -> None:
        log.get(__name__).debug("nats_complained", reason=str(exc) or type(exc).__name__)

    context = client_context(identity, server_name(identity.fleet, identity.site))
    failure: TransportError | RefusedError = TransportError("nats", "no endpoint is known")
    for at, endpoint in enumerate(endpoints):
        try:
            async with asyncio.timeout(limits.CONNECT_TIMEOUT_S):
                client = await nats.connect(
                    # All of them, for when this one is lost; at first it is the only one that counts.
                    [f"tls://{each}" for each in (*endpoints[at:], *endpoints[:at])],
                    dont_randomize=True,
                    tls=context,
                    tls_hostname=context.server_name,
                    tls_handshake_first=True,
                    user=user,
                    password=password,
                    name=identity.name,
                    allow_reconnect=False,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=limits.NATS_RETRY_S,
                    connect_timeout=limits.CONNECT_TIMEOUT_S,
                    ping_interval=limits.KEEP_ALIVE_S,
                    max_outstanding_pings=1,
                    closed_cb=on_lost,
                    disconnected_cb=on_lost,
                    reconnected_cb=on_back,
                    error_cb=on_error,
                )
        except ssl.SSLError as exc:
            failure = RefusedError(endpoint, describe_tls_error(exc))
        except (OSError, TimeoutError, Error) as exc:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # The client has taken it for a failure of its own.
                raise asyncio.CancelledError from exc
            if _NO_RIGHTS in str(exc):
                failure = RefusedError(endpoint, "our certificate has no rights there, or is revoked")
            else:
                failure = TransportError(endpoint, str(exc) or type(exc).__name__)
        else:
            client.options["allow_reconnect"] = again
            return client
    raise failure
