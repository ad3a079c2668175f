"""The exact test and its interval, against scipy and against every sign pattern."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from harness.results.intervals import hodges_lehmann, null_tail, p_greater, tail_index, upper_bound


@pytest.mark.parametrize("n", [1, 2, 5, 8, 12, 20, 33])
def test_p_is_scipys_exact_p(n: int) -> None:
    d = np.random.default_rng(n).normal(0.2, 1, (50, n))
    expected = [scipy.stats.wilcoxon(row, alternative="greater", method="exact").pvalue for row in d]
    np.testing.assert_allclose(p_greater(d), expected, rtol=1e-12)


def midranks_with_zeros(d: np.ndarray) -> np.ndarray:
    ranks: np.ndarray = scipy.stats.rankdata(np.abs(d))
    return ranks


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_p_with_ties_and_zeros_counts_every_sign_pattern(values: list[int]) -> None:
    d = np.array(values, dtype=float)
    ranks = midranks_with_zeros(d)
    used = ranks[d != 0]
    observed = ranks[d > 0].sum()
    sums = [
        sum(r for r, plus in zip(used, signs, strict=True) if plus)
        for signs in itertools.product((0, 1), repeat=used.size)
    ]
    expected = np.mean([s >= observed - 1e-9 for s in sums])
    assert p_greater(d[None])[0] == pytest.approx(expected, abs=1e-12)


@given(st.integers(6, 14), st.integers(0, 10_000))
def test_interval_holds_exactly_the_shifts_that_the_test_does_not_reject(n: int, seed: int) -> None:
    d = np.random.default_rng(seed).normal(0, 1, n)
    _, low, high = hodges_lehmann(d[None])
    step = 1e-9
    for end, inside in ((low[0], step), (high[0], -step)):
        for shift, kept in ((end + inside, True), (end - inside, False)):
            p = min(p_greater(d[None] - shift)[0], p_greater(shift - d[None])[0])
            assert (p > 0.025) == kept


def test_estimate_is_the_median_of_walsh_averages() -> None:
    d = np.array([[1.0, 2.0, 10.0]])
    averages = [1, 1.5, 5.5, 2, 6, 10]
    assert hodges_lehmann(d).estimate[0] == np.median(averages)


def test_upper_bound_is_the_end_of_the_two_sided_interval_of_twice_the_level() -> None:
    d = np.random.default_rng(0).normal(0, 1, (5, 3, 12))
    np.testing.assert_array_equal(upper_bound(d, 0.025), hodges_lehmann(d, 0.95).high)
    assert upper_bound(d, 0.025).shape == (5, 3)


@pytest.mark.parametrize(("n", "index"), [(5, None), (6, 0), (8, 3), (12, 13), (20, 52)])
def test_tail_index_is_the_tabulated_one(n: int, index: int | None) -> None:
    """R: qsignrank(0.025, n) - 1."""
    assert tail_index(n, 0.025) == index


def test_few_pairs_carry_no_bound() -> None:
    d = np.ones((1, 4))
    assert np.isinf(hodges_lehmann(d).high).all()
    assert np.isinf(upper_bound(d, 0.05)).all()


def test_null_distribution_sums_to_one_and_is_symmetric() -> None:
    tail = null_tail(12)
    assert tail[0] == pytest.approx(1.0)
    mass = tail[:-1] - tail[1:]
    np.testing.assert_allclose(mass, mass[::-1])
    assert tail[-2] == 2.0**-12
