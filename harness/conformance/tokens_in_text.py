"""Where returned tokens end in the text that they make.

Log-probabilities come with token texts, in one dialect or another: ``' the'``, ``'\u0120the'`` or ``'\u2581the'``, bytes
that are a part of a character (``'\ufffd'``), end-of-text tokens that the text does not show.
"""

from __future__ import annotations

from collections.abc import Sequence

AHEAD = 12  # characters that a token may begin later than expected, after ones that could not be found
_MARKS = str.maketrans({"\u0120": " ", "\u2581": " ", "\u010a": "\n"})


def ends_of(tokens: Sequence[str], text: str) -> list[int]:
    """For each token the place in ``text`` after its last character; for one that is not shown, that of the token before."""
    ends: list[int] = []
    place = 0
    for token in tokens:
        for form in (token, token.translate(_MARKS)):
            found = text.find(form, place, place + AHEAD + len(form)) if form else -1
            if found >= 0:
                place = found + len(form)
                break
        ends.append(place)
    return ends
