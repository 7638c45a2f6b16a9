"""Whose settings count for which hub (pure): fleet < site < groups by name < hub, key by key; the innermost wins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from cloud.hub_key import HubKey
from config import remote

Scope: TypeAlias = Literal["fleet", "site", "group", "hub"]
Layer: TypeAlias = tuple[Scope, str]
Content: TypeAlias = dict[str, dict[str, Any]]

FLEET: Final = ""
"""The name of the fleet's own document."""


@dataclass(frozen=True, slots=True)
class DocumentChanged:
    """A document has been committed. `name` is "", a site, a group, or SITE/HUB; empty content means that nothing is set."""

    scope: Scope
    name: str
    version: int
    content: Mapping[str, object]


def layers(key: HubKey, groups: tuple[str, ...]) -> Iterator[Layer]:
    """Yield scope and name of the documents that count for a hub, the outermost first."""
    yield "fleet", FLEET
    yield "site", key[0]
    for group in sorted(groups):
        yield "group", group
    yield "hub", name_of(key)


def merged_of(*documents: Mapping[str, object]) -> Content:
    """Return documents laid over each other, as they are sent."""
    merged: Content = remote.merge(*documents)
    return merged


def name_of(key: HubKey) -> str:
    """Return the name of a hub's own document."""
    return f"{key[0]}/{key[1]}"


def key_of(name: str) -> HubKey:
    """Return the hub whose own document has this name."""
    site, _, hub_id = name.partition("/")
    return site, hub_id


class Scopes:
    """All documents, and what they come to for a hub; hubs without a document of their own share the work."""

    def __init__(self) -> None:
        self._documents: dict[Layer, DocumentChanged] = {}
        self._shared: dict[tuple[str, tuple[str, ...]], tuple[str, Content]] = {}

    def put(self, document: DocumentChanged) -> bool:
        """Take a document, and tell whether it is news: a late or repeated one is not."""
        known = self._documents.get((document.scope, document.name))
        if known is not None and document.version <= known.version:
            return False
        self._documents[document.scope, document.name] = document
        self._shared.clear()
        return True

    def drop(self, scope: Scope, name: str) -> None:
        """Forget a document, and that there ever was one."""
        self._documents.pop((scope, name), None)
        self._shared.clear()

    def of_hub(self, key: HubKey, groups: tuple[str, ...]) -> tuple[str, Content]:
        """Return hash and content of what a hub is to have."""
        *outer, inner = (self._content(layer) for layer in layers(key, groups))
        shared = self._shared.get((key[0], groups))
        if shared is None:
            content = merged_of(*outer)
            shared = self._shared[key[0], groups] = (remote.hash_of(content), content)
        if not inner:
            return shared
        content = merged_of(shared[1], inner)
        return remote.hash_of(content), content

    def _content(self, layer: Layer) -> Mapping[str, object]:
        found = self._documents.get(layer)
        return {} if found is None else found.content
