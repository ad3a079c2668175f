"""A draw and its confirmation: who is refused, after how many samples, and what is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from harness.conformance import draws
from harness.conformance.case import Failed
from harness.conformance.draws import drawn_as

EXPECTED = {"a": 0.5, "b": 0.3, "c": 0.2}
DUE = Counter(a=500, b=300, c=200)
BENT = Counter(a=700, b=300)


async def judged(monkeypatch: pytest.MonkeyPatch, samples: Sequence[Counter[str]], **options: Any) -> tuple[float, int]:
    """p-value, and how many samples were asked for."""
    left = list(samples)

    async def draw(*_: Any, **__: Any) -> Counter[str]:
        return left.pop(0)

    monkeypatch.setattr(draws, "draw", draw)
    _, p = await drawn_as(None, "prompt", EXPECTED, 1000, "draws are odd", **options)  # type: ignore[arg-type]
    return p, len(samples) - len(left)


async def test_a_good_sample_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    p, asked = await judged(monkeypatch, [DUE, BENT])
    assert p > 0.9
    assert asked == 1


async def test_one_bad_sample_is_chance_and_two_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await judged(monkeypatch, [BENT, DUE]))[1] == 2
    with pytest.raises(Failed, match=r"1000 draws are odd, twice: G \d+\.\d on 2, p .*; 1 likely tokens never came"):
        await judged(monkeypatch, [BENT, BENT])


async def test_draws_of_tokens_that_were_not_told_count_only_where_the_rest_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strange = DUE + Counter(z=300)
    assert (await judged(monkeypatch, [strange], told=True))[0] > 0.9
    with pytest.raises(Failed):
        await judged(monkeypatch, [strange, strange])
