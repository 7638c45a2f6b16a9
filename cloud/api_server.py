"""Serves the API in the service's own event loop: bound before anything else starts, ended within two seconds.

On an address of the network only with TLS, 1.2 or newer. Signals stay the service's own.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import uvicorn

from config import limits, log
from config.endpoint import join_endpoint, split_endpoint
from config.errors import SettingsError
from config.settings import Api

if TYPE_CHECKING:
    from fastapi import FastAPI

_log: Final = log.get(__name__)


class _Server(uvicorn.Server):
    """A server that leaves the signals to the service."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


class ApiServer:
    """The API on its address. `run` it as a task of its own; `close` ends that."""

    def __init__(self, app: FastAPI, settings: Api):
        """Raises SettingsError if the address can't be had, or is no place to serve without TLS."""
        self._app: Final = app
        options = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=limits.API_CONNECTIONS_MAX,
            timeout_graceful_shutdown=limits.API_STOP_S,
        )
        options.load()
        options.ssl = _tls(settings)
        self._sockets: Final = _bound(settings, secure=options.ssl is not None)
        self._server: Final = _Server(options)
        self._scheme: Final = "http" if options.ssl is None else "https"

    @property
    def url(self) -> str:
        """Return where the API is."""
        host, port, *_ = self._sockets[0].getsockname()
        return f"{self._scheme}://{join_endpoint(host, port)}"

    async def run(self) -> None:
        """Serve until closed."""
        _log.info("api_started", url=self.url)
        try:
            await self._server.serve(sockets=self._sockets)
        finally:
            for listening in self._sockets:
                listening.close()

    def close(self) -> None:
        """End all streams and take no more requests; `run` returns when those that have begun are answered, or soon after."""
        self._app.state.streams.close()
        self._server.should_exit = True


def _tls(settings: Api) -> ssl.SSLContext | None:
    if settings.cert is None and settings.key is None:
        return None
    if settings.cert is None or settings.key is None:
        missing = "cert" if settings.cert is None else "key"
        raise SettingsError("is missing: give both cert and key, or none", key=f"api.{missing}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(settings.cert, settings.key, password=lambda: "")
    except ssl.SSLError as exc:
        raise SettingsError(f"can't be used with {settings.key}: {exc.reason or exc}", key="api.cert") from exc
    except OSError as exc:
        raise SettingsError(f"can't be read: {exc.strerror}", key="api.cert", value=str(settings.cert)) from exc
    return context


def _bound(settings: Api, *, secure: bool) -> list[socket.socket]:
    host, port = split_endpoint(settings.listen)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as exc:
        raise SettingsError("is no address of this machine", key="api.listen", value=settings.listen) from exc
    if not secure and not all(ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found):
        problem = "is open to the network: set api.cert and api.key too, or listen on 127.0.0.1"
        raise SettingsError(problem, key="api.listen", value=settings.listen)
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listening = socket.socket(family, kind, protocol)
            sockets.append(listening)
            if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # On Windows SO_REUSEADDR would let anybody take the port over.
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
            else:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind(address)
            listening.listen(limits.API_CONNECTIONS_MAX)
            listening.setblocking(False)
    except OSError as exc:
        for listening in sockets:
            listening.close()
        problem = f"can't be listened on: {exc.strerror}"
        raise SettingsError(problem, key="api.listen", value=settings.listen) from exc
    return sockets
