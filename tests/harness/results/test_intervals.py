"""The shared intervals: exact tails against scipy and against enumeration, and the coverage they promise."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
import scipy.stats

from harness.results.intervals import (
    hodges_lehmann,
    hodges_lehmann_unpaired,
    null_tail,
    p_greater,
    rank_sum_cut,
    tail_index,
)


@pytest.mark.parametrize("n", [1, 4, 7])
def test_the_signed_rank_tail_is_that_of_all_signs(n: int) -> None:
    sums = np.array([sum(rank for rank, sign in enumerate(signs, 1) if sign) for signs in product((0, 1), repeat=n)])
    for w, tail in enumerate(null_tail(n)[:-1]):
        assert tail == pytest.approx((sums >= w).mean())


def test_the_signed_rank_p_is_scipys() -> None:
    d = np.random.default_rng(5).normal(0.3, 1, (20, 12))
    expected = [scipy.stats.wilcoxon(row, alternative="greater", method="exact").pvalue for row in d]
    assert p_greater(d) == pytest.approx(expected)


@pytest.mark.parametrize(("m", "n"), [(3, 3), (4, 4), (3, 5), (5, 2), (1, 6)])
def test_the_rank_sum_cut_is_that_of_all_orders(m: int, n: int) -> None:
    places = range(m + n)
    u = []
    for first in combinations(places, m):
        second = [place for place in places if place not in first]
        u.append(sum(a > b for a in first for b in second))
    for level in (0.005, 0.025, 0.1, 0.4):
        fitting = [c for c in range(m * n + 1) if np.mean(np.array(u) <= c) <= level]
        assert rank_sum_cut(m, n, level) == (fitting[-1] if fitting else None)


def test_too_few_runs_carry_no_interval() -> None:
    assert tail_index(5, 0.025) is None
    assert np.isinf(hodges_lehmann(np.arange(5.0)).low)
    assert np.isfinite(hodges_lehmann(np.arange(6.0)).low)
    assert np.isinf(hodges_lehmann_unpaired(np.arange(3.0), np.arange(4.0)).high)
    assert np.isfinite(hodges_lehmann_unpaired(np.arange(4.0), np.arange(4.0)).high)


def test_the_estimate_is_the_median_of_all_differences() -> None:
    x, y = np.array([1.0, 2.0, 4.0, 8.0]), np.array([3.0, 5.0, 5.5, 9.0, 20.0])
    found = hodges_lehmann_unpaired(x, y)
    assert float(found.estimate) == np.median([b - a for a in x for b in y])
    assert found.low <= found.estimate <= found.high


def test_an_unpaired_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    hits = 0
    for _ in range(1500):
        found = hodges_lehmann_unpaired(rng.standard_t(3, 6), rng.standard_t(3, 7) + 0.7)
        hits += bool(found.low <= 0.7 <= found.high)
    assert 0.94 <= hits / 1500 <= 0.98
