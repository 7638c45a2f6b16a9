"""Network endpoints as people write them: "host:port", "[v6 address]:port"."""

from __future__ import annotations

from config.errors import SettingsError


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Return host (without brackets) and port. Raises SettingsError."""
    host, colon, port = endpoint.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise SettingsError("is not host:port or [address]:port", key="endpoint", value=endpoint)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise SettingsError("an IPv6 address needs brackets: [address]:port", key="endpoint", value=endpoint)
    return host, int(port)


def join_endpoint(host: str, port: int) -> str:
    """Return "host:port", with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
