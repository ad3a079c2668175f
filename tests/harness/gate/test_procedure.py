"""One look: Holm's steps, and the error rates of the whole procedure in small."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.gate.error_rates import NOISES, coverage, false_alarms, play, power, simulate_pairs
from harness.gate.judge import judge
from harness.gate.procedure import holm
from harness.gate.spending import DEFAULT_LOOKS
from tests.harness.gate.conftest import pair, rule, spec


def holm_by_the_book(p: list[float], rate: float) -> list[bool]:
    rejected = [False] * len(p)
    for step, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[i] > rate / (len(p) - step):
            break
        rejected[i] = True
    return rejected


@given(st.lists(st.floats(0, 0.02), min_size=1, max_size=6, unique=True))
def test_holm_is_holm(p: list[float]) -> None:
    levels = tuple(0.01 / m for m in range(1, len(p) + 1))
    assert holm(np.array([p]), levels)[1][0].tolist() == holm_by_the_book(p, 0.01)


def test_equal_builds_rarely_fail_and_ten_percent_is_found() -> None:
    quiet = false_alarms(400, NOISES["normal"], 0.5, DEFAULT_LOOKS, (0.02,) * 5, seed=3)
    assert quiet["fail"] <= 0.01
    assert power(200, (0.02,) * 5, DEFAULT_LOOKS, 0.10, 0.02)["12"] > 0.97


@pytest.mark.parametrize("name", NOISES)
def test_intervals_cover(name: str) -> None:
    assert 0.93 <= coverage(2000, 20, NOISES[name], seed=5) <= 0.97


def test_the_judge_decides_as_the_simulation_does() -> None:
    """The error rates are of vectorised gates; a real gate must come out the same, pair for pair."""
    rng = np.random.default_rng(11)
    limits, names = (0.02, 0.05), ("itl_p50", "ttft_p50")
    rules = [rule(name, limit=limit) for name, limit in zip(names, limits, strict=True)]
    for shift in (0.0, 0.025, 0.05):
        d = simulate_pairs(rng, 40, 2, 20, NOISES["normal"], shift, cv=0.01)
        outcome = play(d, limits, DEFAULT_LOOKS)
        for gate, (failed, passed, used) in zip(d, outcome, strict=True):
            pairs = [
                pair(
                    i,
                    dict.fromkeys(names, 10.0),
                    {n: float(10 * np.exp(x)) for n, x in zip(names, column, strict=True)},
                )
                for i, column in enumerate(gate.T)
            ]
            result = judge(spec(*rules), pairs)
            assert (result.verdict == "FAIL") == bool(failed)
            assert (result.verdict == "PASS") == bool(passed)
            assert result.pairs_used == used
