"""MQTT client ids: the certificate's id, and an end by which one holder's sessions are told apart (the contract's "Rights").

Some engines bind no client id to a certificate and let anybody take over a session whose id he knows: so that end is one
that nobody can guess. Pure.
"""

from __future__ import annotations

import re
from typing import Final

from config import limits

SEPARATOR: Final = "_"
"""Between the id, a DNS label that cannot hold it, and the end. A dot, as in older clients' ids, is refused by NATS."""

_END: Final = re.compile(rf"[._][A-Za-z0-9_-]{{1,{limits.CLIENT_ID_SUFFIX_MAX}}}")


def client_id_of(name: str, suffix: str) -> str:
    """Return the client id of one of a holder's sessions; `suffix` is 1 to CLIENT_ID_SUFFIX_MAX of A-Z a-z 0-9 _ -."""
    return f"{name}{SEPARATOR}{suffix}"


def is_own(client_id: str, name: str) -> bool:
    """Tell whether the holder of the certificate of `name` may use a client id."""
    end = client_id.removeprefix(name)
    return client_id.startswith(name) and (not end or _END.fullmatch(end) is not None)
