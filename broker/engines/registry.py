"""Which engines there are. Each is imported only when it is wanted."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Final, cast

from broker.engines.plan import Engine
from config.errors import SettingsError

ENGINES: Final[Mapping[str, str]] = {
    "mosquitto": "broker.engines.mosquitto:Mosquitto",
    "nats": "broker.engines.nats:Nats",
    "emqx": "broker.engines.emqx:Emqx",
}
"""Engine by name, as "module:class"."""


def engine_named(name: str) -> Engine:
    """Return an engine. Raises SettingsError if we run or configure none of this name."""
    if name not in ENGINES:
        raise SettingsError(f"there are {', '.join(ENGINES)}", key="engine", value=name)
    module, _, attribute = ENGINES[name].partition(":")
    return cast(Engine, getattr(importlib.import_module(module), attribute)())
