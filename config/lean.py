"""Imports libraries without what they load merely because it is installed, for uses that we do not have: memory in every role."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def without(*modules: str) -> Iterator[None]:
    """Let what is imported in this block take modules for missing that it can do without; whoever wants them later gets them."""
    left_out = [name for name in modules if name not in sys.modules]
    for name in left_out:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in left_out:
            del sys.modules[name]


@contextmanager
def with_empty(*modules: str) -> Iterator[None]:
    """Let what is imported in this block find empty modules, where it insists on some that we do not need."""
    left_out = {name: ModuleType(name) for name in modules if name not in sys.modules}
    sys.modules.update(left_out)
    try:
        yield
    finally:
        for name in left_out:
            del sys.modules[name]
