"""One look of the gate at its pairs: which metrics are worse, which are shown not to be, and what follows for the gate.

The same functions judge one real gate and a hundred thousand simulated ones (``error_rates.py``), so that the printed
error rates are those of the code that decides.

::

    d[gate, metric, pair] = log(candidate / baseline), turned so that > 0 is worse

    FAIL  some metric: p <= its Holm level   and   estimate    > log(1 + limit)
    PASS  every metric:                            upper bound < log(1 + limit)
    else  look again at the planned number of pairs; after the last look INCONCLUSIVE
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.gate.spending import FAIL_RATE, PASS_RATE, Plan, fail_levels, pass_levels
from harness.results.intervals import Floats, hodges_lehmann, p_greater, upper_bound

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Levels:
    """Nominal levels of one look.  ``fail[j]`` is for ``j + 1`` hypotheses still in the family."""

    pairs: int
    fail: tuple[float, ...]
    clear: float


class Look(NamedTuple):
    """What one look shows; arrays of shape (gates, metrics)."""

    p: Floats  # one-sided, of "not worse"
    level: Floats  # what p had to meet at its step of Holm's procedure
    estimate: Floats  # log ratio
    low: Floats  # 95 % interval of it
    high: Floats
    bound: Floats  # one-sided, at the level of this look
    worse: Bools  # significant
    failed: Bools  # significant and above the limit
    cleared: Bools  # bound below the limit


def levels_of(plan: Plan, metrics: int, fail_rate: float = FAIL_RATE, pass_rate: float = PASS_RATE) -> list[Levels]:
    """The levels of every look of ``plan`` for a family of ``metrics``."""
    by_count = [fail_levels(plan, m, fail_rate) for m in range(1, metrics + 1)]
    clear = pass_levels(plan, pass_rate)
    return [Levels(pairs, tuple(levels[k] for levels in by_count), clear[k]) for k, pairs in enumerate(plan.looks)]


def look_at(d: Floats, limits: Floats, levels: Levels) -> Look:
    """Judge ``d`` of shape (gates, metrics, pairs) against ``limits`` (metrics,), given as shares (0.02 = 2 %)."""
    log_limit = np.log1p(limits)
    p = p_greater(d)
    level, worse = holm(p, levels.fail)
    estimate, low, high = hodges_lehmann(d)
    bound = upper_bound(d, levels.clear)
    return Look(p, level, estimate, low, high, bound, worse, worse & (estimate > log_limit), bound < log_limit)


def holm(p: Floats, levels: tuple[float, ...]) -> tuple[Floats, Bools]:
    """Holm's step-down over the last axis: the level that each p had to meet, and whether it and all before it did."""
    order = np.argsort(p, axis=-1, kind="stable")
    step = np.array(levels[::-1])  # the smallest p meets the level of the whole family
    met = np.logical_and.accumulate(np.take_along_axis(p, order, axis=-1) <= step, axis=-1)
    level, worse = np.empty_like(p), np.empty(p.shape, dtype=bool)
    np.put_along_axis(level, order, np.broadcast_to(step, p.shape), axis=-1)
    np.put_along_axis(worse, order, met, axis=-1)
    return level, worse
