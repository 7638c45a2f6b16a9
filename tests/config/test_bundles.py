"""Generated TOML is TOML, whatever is in it."""

from __future__ import annotations

import tomllib

from hypothesis import given, settings
from hypothesis import strategies as st

from config.bundles import toml_string, toml_strings

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(texts=st.lists(TEXTS))
@settings(database=None)
def test_any_text_survives_toml(texts: list[str]) -> None:
    """A quote in a path must not become a key of somebody else's choice."""
    document = f"one = {toml_string(''.join(texts))}\nall = {toml_strings(texts)}\n"
    assert tomllib.loads(document) == {"one": "".join(texts), "all": texts}
