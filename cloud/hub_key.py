"""How the cloud names a hub: an id is unique within its site only (pure)."""

from __future__ import annotations

from typing import TypeAlias

HubKey: TypeAlias = tuple[str, str]
"""(site, hub id)."""
