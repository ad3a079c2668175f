"""MSER-5 finds the end of a warm-up, and says so when there is none."""

from __future__ import annotations

import numpy as np
import pytest

from harness.results.steady import mser5, steady_start


def noisy(values: np.ndarray, seed: int = 1) -> np.ndarray:
    return values + np.random.default_rng(seed).normal(0, 1, values.size)


@pytest.mark.parametrize("seed", range(5))
def test_a_warm_up_is_cut_off(seed: int) -> None:
    values = noisy(np.concatenate([np.linspace(0, 50, 60), np.full(300, 50.0)]), seed)
    cut = mser5(values)
    assert cut is not None
    assert 45 <= cut <= 75


@pytest.mark.parametrize("seed", range(5))
def test_a_steady_series_loses_little(seed: int) -> None:
    cut = mser5(noisy(np.full(400, 50.0), seed))
    assert cut is not None
    assert cut <= 200


def test_a_series_that_never_settles_has_no_answer() -> None:
    assert mser5(noisy(np.linspace(0, 100, 400))) is None
    assert mser5(np.full(99, 1.0)) is None


def test_the_cut_is_a_moment() -> None:
    rng = np.random.default_rng(2)
    slow, fast = rng.uniform(0, 10e9, 100), rng.uniform(10e9, 60e9, 5000)
    times = np.concatenate([slow, fast])
    start = steady_start(times, np.ones(times.size), (0, 60_000_000_000), 250_000_000)
    assert start is not None
    assert 8.5e9 <= start <= 15e9  # batches of 1.25 s
    assert steady_start(times, np.ones(times.size), (0, 10_000_000_000), 250_000_000) is None
