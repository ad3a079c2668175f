"""Places of tokens in their text, whatever dialect names them."""

from __future__ import annotations

import pytest

from harness.conformance.tokens_in_text import ends_of


@pytest.mark.parametrize(
    ("tokens", "text", "ends"),
    [
        (["Hello", " the", "re"], "Hello there", [5, 9, 11]),
        (["Hello", "\u0120the", "re"], "Hello there", [5, 9, 11]),
        (["\u2581Hello", "\u2581there"], " Hello there", [6, 12]),
        (["a", "<|im_end|>", "b"], "ab", [1, 1, 2]),  # not shown
        (["caf", "\ufffd", "\ufffd", "!"], "café!", [3, 3, 3, 5]),  # the bytes of one character
        (["a", ""], "a", [1, 1]),
        ([], "", []),
        (["x", "y"], "", [0, 0]),
    ],
)
def test_ends(tokens: list[str], text: str, ends: list[int]) -> None:
    assert ends_of(tokens, text) == ends
