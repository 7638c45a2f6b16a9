"""The exceptions of Hubline: a class exists only where a caller acts differently.

HublineError
├── SettingsError   a person must change a setting: says file, key, value and what would be right
├── TransportError  the network or a peer failed: try again later
├── ProtocolError   a message breaks the contract: never retried blindly
├── RefusedError    the peer said no, with its reason
└── StorageError    the disk or the database failed: stop acknowledging
"""

from __future__ import annotations

from pathlib import Path


class HublineError(Exception):
    """Any failure that Hubline names itself; its text is one line meant for a person."""


class SettingsError(HublineError):
    """A setting, a command's argument or a file that a person must correct."""

    def __init__(self, problem: str, *, file: Path | str | None = None, key: str | None = None, value: object = None):
        self.file, self.key, self.value, self.problem = file, key, value, problem
        place = ": ".join(str(part) for part in (file, key) if part is not None)
        shown = "" if value is None else f" = {value!r}"
        super().__init__(f"{place}{shown}: {problem}" if place else problem)


class TransportError(HublineError):
    """A connection could not be made or broke; the same call may succeed later."""

    def __init__(self, endpoint: str, reason: str):
        self.endpoint, self.reason = endpoint, reason
        super().__init__(f"{endpoint}: {reason}")


class ProtocolError(HublineError):
    """Bytes that the contract does not allow, from us or from the peer."""

    def __init__(self, reason: str, *, topic: str | None = None):
        self.reason, self.topic = reason, topic
        super().__init__(f"{topic}: {reason}" if topic else reason)


class RefusedError(HublineError):
    """The peer refused us, or we refused the peer; the reason names what must change."""

    def __init__(self, endpoint: str, reason: str):
        self.endpoint, self.reason = endpoint, reason
        super().__init__(f"{endpoint} refused: {reason}")


class StorageError(HublineError):
    """Something could not be made durable; whoever promised durability must stop promising."""

    def __init__(self, place: Path | str, reason: str):
        self.place, self.reason = place, reason
        super().__init__(f"{place}: {reason}")
