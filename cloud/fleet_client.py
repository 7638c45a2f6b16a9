"""Calls the API for `hubline fleet`, with what the standard library has: a command starts in a tenth of a second."""

from __future__ import annotations

import http.client
import json
import os
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias
from urllib.parse import quote, urlencode, urlsplit

from config import limits
from config.errors import HublineError, RefusedError, SettingsError, TransportError

DEFAULT_URL: Final = "http://127.0.0.1:8480"

_PREFIX: Final = "/api/v1"
_LOCAL: Final = ("127.0.0.1", "::1", "localhost")

Parameters: TypeAlias = Mapping[str, object]
"""Of a query; what is None is left out, a list is repeated."""


_NONE: Final[Parameters] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Place:
    """Where the API is, and how to prove who asks. `ca` is a file; without it the system's authorities count."""

    url: str
    token: str
    ca: Path | None = None


class AbsentError(HublineError):
    """The API knows no such thing."""


def place_from(directory: Path | None, environ: Mapping[str, str] | None = None) -> Place:
    """Return the place that a fleet directory or the environment gives. Raises SettingsError if there is no token."""
    said = os.environ if environ is None else environ
    url = said.get("HUBLINE_API_URL") or DEFAULT_URL
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
        raise SettingsError('must be like "https://cloud.example:8480"', key="HUBLINE_API_URL", value=url)
    if parts.scheme == "http" and parts.hostname not in _LOCAL:
        problem = "would send the token over the network for all to read: use https"
        raise SettingsError(problem, key="HUBLINE_API_URL", value=url)
    token = (said.get("HUBLINE_API_TOKEN") or None) if directory is None else None
    if token is None and directory is None and said.get("HUBLINE_FLEET_DIR"):
        directory = Path(said["HUBLINE_FLEET_DIR"])
    if token is None:
        if directory is None:
            ways = "give --dir FLEETDIR, or set HUBLINE_FLEET_DIR or HUBLINE_API_TOKEN"
            raise SettingsError(f"there is no token for the API: {ways}")
        token = _text(directory / "admin.token")
    token = token.strip()
    if not token.isascii() or not token.isprintable() or not token:
        raise SettingsError("the token for the API is no token: copy it anew")
    ca = said.get("HUBLINE_API_CA")
    if ca is None and directory is not None and (directory / "authority" / "ca.pem").is_file():
        return Place(url.rstrip("/"), token, directory / "authority" / "ca.pem")
    return Place(url.rstrip("/"), token, Path(ca) if ca else None)


class Api:
    """The API at one place. One call at a time."""

    def __init__(self, place: Place):
        self.place: Final = place
        self._tls: ssl.SSLContext | None = None
        self._connection: http.client.HTTPConnection | None = None

    def get(self, path: str, **parameters: object) -> Any:
        """Return what is at a path below /api/v1. Raises what `call` raises."""
        return self.call("GET", path, parameters)

    def call(self, method: str, path: str, parameters: Parameters = _NONE, body: object = None) -> Any:
        """Make a request and return the answer.

        Raises TransportError if the API can't be reached, RefusedError for the token, AbsentError for what there is not, and
        SettingsError for what is wrong in the request.
        """
        answer = self._request(method, path, parameters, body)
        try:
            content = answer.read()
        except (OSError, http.client.HTTPException) as exc:
            raise self._broken(exc) from exc
        return self._checked(answer, content)

    def pages(self, path: str, **parameters: object) -> Iterator[dict[str, Any]]:
        """Return the entries of a list, page by page."""
        cursor = None
        while True:
            page = self.get(path, **{"limit": limits.API_PAGE_MAX, **parameters, "cursor": cursor})
            yield from page["items"]
            cursor = page["next"]
            if cursor is None:
                return

    def stream(self, path: str, **parameters: object) -> Iterator[tuple[str, dict[str, Any]]]:
        """Return server-sent events as (name, data) until the stream ends. Raises what `call` raises."""
        answer = self._request("GET", path, parameters, None)
        if answer.status != 200:
            self._checked(answer, answer.read())
        name = ""
        try:
            while line := answer.readline():
                key, _, value = line.decode("utf-8", "replace").rstrip("\r\n").partition(": ")
                if key == "event":
                    name = value
                elif key == "data":
                    yield name, json.loads(value)
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise self._broken(exc) from exc
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- One request ------------------------------------------------------------------------------------------------

    def _request(self, method: str, path: str, parameters: Parameters, body: object) -> http.client.HTTPResponse:
        query = urlencode({name: value for name, value in parameters.items() if value is not None}, doseq=True)
        target = _PREFIX + quote(path, safe="/:") + (f"?{query}" if query else "")
        headers = {"Authorization": f"Bearer {self.place.token}", "Accept": "application/json"}
        content = None
        if body is not None:
            content = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        reused = self._connection is not None
        try:
            return self._send(method, target, content, headers)
        except (http.client.RemoteDisconnected, ConnectionError) as exc:
            self.close()
            if not reused or method != "GET":
                raise self._broken(exc) from exc
        except (OSError, http.client.HTTPException) as exc:
            self.close()
            raise self._broken(exc) from exc
        try:  # The API has closed an idle connection: reading once more does no harm.
            return self._send(method, target, content, headers)
        except (OSError, http.client.HTTPException) as exc:
            self.close()
            raise self._broken(exc) from exc

    def _send(self, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> http.client.HTTPResponse:
        if self._connection is None:
            self._connection = self._connect()
        self._connection.request(method, target, body, headers)
        return self._connection.getresponse()

    def _connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.place.url)
        assert parts.hostname is not None
        if parts.scheme == "http":
            return http.client.HTTPConnection(parts.hostname, parts.port, timeout=limits.FLEET_TIMEOUT_S)
        if self._tls is None:
            try:
                self._tls = ssl.create_default_context(cafile=self.place.ca)
            except OSError as exc:
                raise SettingsError("can't be read as the authorities to trust", file=self.place.ca) from exc
            self._tls.minimum_version = ssl.TLSVersion.TLSv1_2
        return http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=limits.FLEET_TIMEOUT_S, context=self._tls
        )

    def _broken(self, exc: Exception) -> TransportError:
        self.close()
        match exc:
            case ssl.SSLCertVerificationError():
                reason = f"its certificate is not trusted ({exc.verify_message}): name its authority in HUBLINE_API_CA"
            case ssl.SSLError():
                reason = f"TLS failed ({exc.reason or exc}): is it https?"
            case ConnectionRefusedError():
                reason = "nobody listens there: is the cloud service running, and its API switched on?"
            case TimeoutError():
                reason = f"no answer within {limits.FLEET_TIMEOUT_S:g} s"
            case _:
                reason = f"can't be reached: {getattr(exc, 'strerror', None) or exc or 'the connection was closed'}"
        return TransportError(self.place.url, " ".join(reason.split()))

    def _checked(self, answer: http.client.HTTPResponse, content: bytes) -> Any:
        try:
            said = json.loads(content) if content else None
        except ValueError:
            said = None
        if answer.status < 400 and said is not None:
            return said
        error = said.get("error") if isinstance(said, dict) else None
        if not isinstance(error, str):
            raise TransportError(self.place.url, f"does not answer as Hubline's API does (HTTP {answer.status})")
        match answer.status:
            case 401 | 403 | 409 | 429:
                raise RefusedError("the API", error)
            case 404:
                raise AbsentError(error)
            case 400 | 412 | 413 | 422:
                raise SettingsError(error)
            case _:
                raise TransportError(self.place.url, error)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as exc:
        reason = getattr(exc, "strerror", None) or "it is no text"
        raise SettingsError(f"can't be read: {reason}: is this a fleet directory?", file=file) from exc
