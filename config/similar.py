"""Finds what a person may have meant by a word that is not known."""

from __future__ import annotations

from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ", did you mean …?" with the known word that is most like `word`, or nothing if none is like it."""
    import difflib  # For mistakes only: a hub that starts has no time and no memory for it.

    close = difflib.get_close_matches(word, sorted(known), n=1)
    return f", did you mean {close[0]}?" if close else ""
