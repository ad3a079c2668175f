"""What a tie explains: answers that part where two tokens were as good as each other, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness.conformance.answer import Answer, Choice, TokenScore, parting
from harness.conformance.api import Exchange
from harness.conformance.cases.sampling import equals_explain
from harness.conformance.context import Context
from harness.conformance.limits import FP32

CONTEXT: Any = SimpleNamespace(limits=FP32)


def answer(*tokens: str, logprob: float = -0.1, gap: float = 3.0) -> Answer:
    """Its last token has ``logprob``, and the second best lies ``gap`` below the best."""
    values = [-0.1] * (len(tokens) - 1) + [logprob]
    top = [("best", -0.1), ("other", -0.1 - gap)]
    scores = [TokenScore(token, value, top) for token, value in zip(tokens, values, strict=True)]
    return Answer(Exchange("POST", "/", None), [Choice(0, "".join(tokens), scores=scores)], {}, {})


def test_where_answers_part() -> None:
    parted = parting(answer("a", "b"), answer("a", "c"))
    assert parted is not None
    assert [score.token for score in parted] == ["b", "c"]
    assert parting(answer("a", "b"), answer("a", "b")) is None
    assert parting(answer("a"), answer("a", "b")) is None


@pytest.mark.parametrize(("gap", "explained"), [(0.0, True), (0.04, True), (0.06, False)])
def test_greedy_answers_part_at_a_tie_or_one_is_wrong(gap: float, explained: bool) -> None:
    assert Context.part_at_a_tie(CONTEXT, answer("a", "b", gap=gap), answer("a", "c")) == explained


@pytest.mark.parametrize(("logprob", "explained"), [(-2.0, True), (-2.001, True), (-2.01, False), (-0.7, False)])
def test_sampled_answers_part_at_equals_or_the_seed_was_lost(logprob: float, explained: bool) -> None:
    one, other = answer("a", "b", logprob=-2.0), answer("a", "c", logprob=logprob)
    assert equals_explain(CONTEXT, one, other) == explained


def test_answers_that_do_not_part_need_no_explanation() -> None:
    assert not equals_explain(CONTEXT, answer("a", "b"), answer("a", "b"))
    assert not Context.part_at_a_tie(CONTEXT, answer("a", "b", gap=0.0), answer("a", "b", gap=0.0))
