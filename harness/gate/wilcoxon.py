"""The exact Wilcoxon signed-rank test and the Hodges-Lehmann estimate with its exact interval, for many series at once.

A series is ``n`` differences ``d`` of pairs.  Under the null hypothesis each is as likely ``+d`` as ``-d``, so the sum
``W`` of the ranks of ``|d|`` with a positive sign has a distribution that is known exactly; nothing is assumed about the
shape of the noise.  Estimate and interval are order statistics of the ``n (n + 1) / 2`` Walsh averages
``(d_i + d_j) / 2, i <= j`` (Hollander, Wolfe, Chicken: Nonparametric Statistical Methods, 3rd ed., sections 3.1 to 3.3).

Series lie along the last axis; the other axes are whatever the caller has (gates, metrics).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """Hodges-Lehmann estimate with a two-sided interval; arrays of the series' leading shape."""

    estimate: Floats
    low: Floats
    high: Floats


@cache
def null_tail(n: int) -> Floats:
    """``tail[w] = P(W >= w)`` for ranks 1..n, ``w`` from 0 to n (n + 1) / 2 + 1."""
    return _tail(np.arange(1, n + 1))


def _tail(ranks: NDArray[np.int64]) -> Floats:
    """``tail[w]``: probability that the sum of a random half of whole-numbered ``ranks`` is at least ``w``."""
    total = int(ranks.sum())
    mass = np.zeros(total + 2)
    mass[0] = 1.0
    for rank in ranks.tolist():
        shifted = np.zeros_like(mass)
        shifted[rank:] = mass[: mass.size - rank]
        mass = 0.5 * (mass + shifted)
    return np.minimum(1.0, np.cumsum(mass[::-1])[::-1])


def p_greater(d: Floats) -> Floats:
    """One-sided exact p of "these differences are not above zero".  Shape (..., n) -> (...).

    Zeros and ties are treated by Pratt's method with mean ranks, and the distribution is then the exact one of those
    ranks (a zero counts in the ranking and supports neither side).
    """
    d = np.asarray(d, dtype=np.float64)
    n = d.shape[-1]
    flat = d.reshape(-1, n)
    size = np.abs(flat)
    order = np.argsort(size, axis=-1)
    in_order = np.take_along_axis(size, order, axis=-1)
    tied = (in_order[:, 0] == 0) | (np.diff(in_order, axis=-1) == 0).any(axis=-1)
    positive = np.take_along_axis(flat, order, axis=-1) > 0
    w = (positive * np.arange(1, n + 1)).sum(axis=-1)
    p = null_tail(n)[w]
    for row in np.flatnonzero(tied):
        p[row] = _p_tied(flat[row])
    return p.reshape(d.shape[:-1])


def _p_tied(d: Floats) -> float:
    sizes, inverse, counts = np.unique(np.abs(d), return_inverse=True, return_counts=True)
    before = np.concatenate(([0], np.cumsum(counts)[:-1]))
    doubled = (2 * before + counts + 1)[inverse]  # twice the mean rank: a whole number
    used = d != 0
    if sizes.size == 0 or not used.any():
        return 1.0
    return float(_tail(doubled[used].astype(np.int64))[int(doubled[d > 0].sum())])


def walsh_averages(d: Floats) -> Floats:
    """The n (n + 1) / 2 averages of pairs, unsorted.  Shape (..., n) -> (..., n (n + 1) / 2)."""
    i, j = np.triu_indices(d.shape[-1])
    averages: Floats = (d[..., i] + d[..., j]) / 2
    return averages


@cache
def tail_index(n: int, level: float) -> int | None:
    """How many Walsh averages lie outside a one-sided bound at ``level``, less one: the largest c, P(W <= c) <= level.

    None where even c = 0 is too likely: so few pairs carry no bound at that level.
    """
    tail = null_tail(n)
    lower = tail[-2::-1]  # P(W <= c) = P(W >= total - c): the distribution is symmetric
    fitting = np.flatnonzero(lower <= level)
    return int(fitting[-1]) if fitting.size else None


def hodges_lehmann(d: Floats, confidence: float = 0.95) -> Interval:
    """Estimate and two-sided exact interval; infinite ends where n is too small (n < 6 at 95 %)."""
    averages = walsh_averages(np.asarray(d, dtype=np.float64))
    size = averages.shape[-1]
    cut = tail_index(d.shape[-1], (1 - confidence) / 2)
    middle = [(size - 1) // 2, size // 2]
    wanted = sorted({*middle, *(() if cut is None else (cut, size - 1 - cut))})
    parted = np.partition(averages, wanted, axis=-1)
    estimate = (parted[..., middle[0]] + parted[..., middle[1]]) / 2
    if cut is None:
        return Interval(estimate, np.full_like(estimate, -np.inf), np.full_like(estimate, np.inf))
    return Interval(estimate, parted[..., cut], parted[..., size - 1 - cut])


def upper_bound(d: Floats, level: float) -> Floats:
    """One-sided exact upper confidence bound at ``1 - level``; infinite where n is too small."""
    averages = walsh_averages(np.asarray(d, dtype=np.float64))
    cut = tail_index(d.shape[-1], level)
    if cut is None:
        return np.full(d.shape[:-1], np.inf)
    at = averages.shape[-1] - 1 - cut
    bound: Floats = np.partition(averages, at, axis=-1)[..., at]
    return bound
