r"""NUL characters in text, which SQLite keeps and PostgreSQL refuses: written there as an escape, and read back as they were.

The sign of the escape is U+001A ("substitute"): NUL is written as U+001A "0", and U+001A itself as U+001A "1".
"""

from __future__ import annotations

import re
from typing import Final

_SIGN: Final = "\x1a"
_WRITTEN: Final = {"\0": _SIGN + "0", _SIGN: _SIGN + "1"}
_READ: Final = {written: char for char, written in _WRITTEN.items()}
_TO_WRITE: Final = re.compile(f"[\0{_SIGN}]")
_TO_READ: Final = re.compile(f"{_SIGN}[01]")


def escape_nul(text: str) -> str:
    """Return text as PostgreSQL takes it."""
    if "\0" not in text and _SIGN not in text:
        return text
    return _TO_WRITE.sub(lambda found: _WRITTEN[found[0]], text)


def unescape_nul(text: str) -> str:
    """Return what `escape_nul` was given."""
    return text if _SIGN not in text else _TO_READ.sub(lambda found: _READ[found[0]], text)
