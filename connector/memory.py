"""What a connector keeps across restarts: who it is on the network and to brokers, and how many sessions it has had."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID, uuid4

import msgspec
from msgspec.structs import replace

from broker.client_ids import client_id_of
from broker.tls import key_secret
from config import files
from config.errors import StorageError
from config.settings import Identity


class _Kept(msgspec.Struct, frozen=True):
    uuid: UUID
    session: int


class Memory:
    """A small file, written through to the disk before anything relies on it.

    A damaged file is replaced: a new uuid costs nothing, and the sessions go on from `fallback_session`, which only has
    to be larger than any number used before.
    """

    def __init__(self, file: Path, fallback_session: int):
        self._file = file
        try:
            self._kept = msgspec.json.decode(file.read_bytes(), type=_Kept)
        except FileNotFoundError:
            self._kept = _Kept(uuid4(), 0)
        except (msgspec.DecodeError, ValueError, RecursionError):
            self._kept = _Kept(uuid4(), fallback_session)
        except OSError as exc:
            raise StorageError(file, f"can't be read: {exc.strerror}") from exc
        self._save()

    @property
    def uuid(self) -> UUID:
        """Return the uuid of this connector's announcements."""
        return self._kept.uuid

    def client_id(self, identity: Identity) -> str:
        """Return the MQTT client id at every broker: after a restart it takes over its older session, and no stranger can.

        Two machines with one identity have two ids: they must not end each other's sessions for ever. Raises SettingsError
        if the key can't be read.
        """
        return client_id_of(identity.name, key_secret(identity, str(self._kept.uuid)))

    def next_session(self) -> int:
        """Return the next session number, after it is safe on disk. Raises StorageError."""
        self._kept = replace(self._kept, session=self._kept.session + 1)
        self._save()
        return self._kept.session

    def _save(self) -> None:
        try:
            files.replace(self._file, msgspec.json.encode(self._kept))
        except OSError as exc:
            raise StorageError(self._file, f"can't be written: {exc.strerror}") from exc
