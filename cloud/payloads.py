"""How payloads are kept: as received, compressed with zstd. A stored code says how, so that the way may change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import zstandard

from config import limits
from config.errors import StorageError

PLAIN: Final = 0
ZSTD: Final = 1

_LEVEL: Final = 3
"""Measured on JSON readings: level 6 saves a few percent more and takes twice the time; level 1 saves little time."""


class PayloadCodec:
    """Packs and unpacks payloads; not to be used by two threads at once."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        self._decompressor = zstandard.ZstdDecompressor()

    def pack(self, payloads: Sequence[bytes]) -> list[tuple[int, bytes]]:
        """Return of each the code and the bytes to keep: never more than were received.

        All at once: other threads run meanwhile, and to let them begin, payload by payload, would cost more than the work.
        """
        if not payloads:
            return []
        found = self._compressor.multi_compress_to_buffer(list(payloads), threads=1)
        return [
            (ZSTD, found[at].tobytes()) if len(found[at]) < len(payload) else (PLAIN, payload)
            for at, payload in enumerate(payloads)
        ]

    def unpack(self, code: int, packed: bytes) -> bytes:
        """Return the payload as received. Raises StorageError if it is damaged (zstd frames carry a checksum)."""
        if code == PLAIN:
            return packed
        if code != ZSTD:
            raise StorageError("messages", f"payload code {code} is unknown: written by a newer Hubline")
        try:
            return self._decompressor.decompress(packed, max_output_size=limits.MESSAGE_MAX_BYTES)
        except zstandard.ZstdError as exc:
            raise StorageError("messages", f"a payload is damaged: {exc}") from exc
