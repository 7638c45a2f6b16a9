"""Reads the icons that come with the package; an assessment's icon is always one of them."""

from __future__ import annotations

from importlib import resources

from broker.status import ICONS


def read_icon(name: str) -> bytes | None:
    """Return the SVG of an icon, or None if there is no such icon: the name may come from outside."""
    if name not in ICONS:
        return None
    return resources.files("broker").joinpath("icons", f"{name}.svg").read_bytes()
