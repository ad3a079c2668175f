"""Replays of recorded pairs: equal builds hardly ever fail, a known slowdown is found."""

from __future__ import annotations

import pytest

from harness.gate.replays import replay, run_to_run_cv
from tests.harness.gate.conftest import noisy_pairs, rule, spec


def test_equal_pairs_hardly_fail_even_when_one_name_was_always_slower() -> None:
    """The coin decides who is called the candidate, so a bias between the two recorded names cancels."""
    biased = noisy_pairs(60, 0.03, cv=0.01)
    assert replay(biased, spec(), 100, seed=1)["FAIL"] <= 4
    assert replay(biased, spec(), 100, seed=1, keep_arms=True)["FAIL"] > 60


def test_replays_are_reproducible_and_need_enough_pairs() -> None:
    pairs = noisy_pairs(30)
    assert replay(pairs, spec(), 20, seed=3) == replay(pairs, spec(), 20, seed=3)
    with pytest.raises(ValueError, match="only 30"):
        replay(pairs, spec(looks=(40,)), 1, seed=0)


def test_cv_is_over_all_runs() -> None:
    assert run_to_run_cv(noisy_pairs(400, cv=0.02))[rule().key] == pytest.approx(0.02, rel=0.1)
