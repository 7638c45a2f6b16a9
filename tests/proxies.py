"""Proxies for tests: tinyproxy, and one of a few lines that does as it is told."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

TINYPROXY = shutil.which("tinyproxy") or "/usr/bin/tinyproxy"
needs_tinyproxy = pytest.mark.skipif(
    not Path(TINYPROXY).exists(), reason="tinyproxy is not installed (package tinyproxy-bin)"
)


def tinyproxy_command(folder: Path, listen: str, port: int, *, allow: Sequence[int] = (), login: str = "") -> list[str]:
    """Return the command of a proxy that lets CONNECT through to the ports of `allow` (none: to every port)."""
    lines = [f"Listen {listen}", f"Port {port}", "Timeout 60", "MaxClients 50", "LogLevel Info"]
    lines += [f"ConnectPort {each}" for each in allow]
    lines += [f"BasicAuth {login.replace(':', ' ')}"] if login else []
    file = folder / f"tinyproxy-{port}.conf"
    file.write_text("\n".join([*lines, ""]))
    return [TINYPROXY, "-d", "-c", str(file)]


@contextmanager
def scripted_proxy(talk: Callable[[socket.socket, bytes], None]) -> Iterator[int]:
    """Serve one connection after the other on loopback: `talk` gets each, with the request that came. Yields the port."""
    over = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)

    def serve() -> None:
        while not over.is_set():
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                continue
            with sock:
                sock.settimeout(20)
                request = bytearray()
                while not request.endswith(b"\r\n\r\n"):
                    request += sock.recv(1)
                try:
                    talk(sock, bytes(request))
                except OSError:
                    pass  # The client has left.

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        over.set()
        thread.join()
        listener.close()
