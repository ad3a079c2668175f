"""The few tests that sampled answers are judged by.  Error rates are those of the case, not of the suite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

ALPHA = 1e-4  # of one distribution test; a second, fresh sample must confirm a rejection
MIN_EXPECTED = 5.0  # smaller cells are pooled, as the chi-squared approximation wants it


def g_test(counts: Mapping[str, int], expected: Mapping[str, float]) -> tuple[float, float, int]:
    """G statistic, p-value and degrees of freedom of ``counts`` against probabilities that may leave a rest to 1.

    Tokens with a small expectation and everything unlisted are pooled into one cell.
    """
    from scipy.stats import chi2

    total = sum(counts.values())
    cells: list[tuple[int, float]] = []
    seen, mass = 0, 0.0
    for token, probability in expected.items():
        if probability * total >= MIN_EXPECTED:
            cells.append((counts.get(token, 0), probability * total))
            seen += counts.get(token, 0)
            mass += probability
    rest = max(1.0 - mass, 0.0) * total
    if rest >= MIN_EXPECTED:
        cells.append((total - seen, rest))
    elif cells:
        # Too little for a cell of its own: it joins the smallest, observed and expected alike.
        smallest = min(range(len(cells)), key=lambda place: cells[place][1])
        count, mean = cells[smallest]
        cells[smallest] = (count + total - seen, mean + rest)
    if len(cells) < 2:
        return 0.0, 1.0, 0
    statistic = 2 * sum(count * math.log(count / mean) for count, mean in cells if count)
    freedom = len(cells) - 1
    return statistic, float(chi2.sf(max(statistic, 0.0), freedom)), freedom


def binomial_low(successes: int, trials: int, probability: float) -> float:
    """P(X <= successes)."""
    from scipy.stats import binom

    return float(binom.cdf(successes, trials, probability))


def binomial_high(successes: int, trials: int, probability: float) -> float:
    """P(X >= successes)."""
    from scipy.stats import binom

    return float(binom.sf(successes - 1, trials, probability))


def fisher_high(first: int, second: int, trials: int) -> float:
    """One-sided p-value of Fisher's exact test that ``first`` of ``trials`` is more than ``second`` of as many."""
    from scipy.stats import hypergeom

    return float(hypergeom.sf(first - 1, 2 * trials, first + second, trials))


def k3(before: Sequence[float], after: Sequence[float]) -> float:
    """Mean of the k3 estimator of KL, exp(r) - 1 - r with r = after - before (Schulman; SGLang's KL tests)."""
    total = 0.0
    for first, second in zip(before, after, strict=True):
        ratio = max(min(second - first, 50.0), -50.0)
        total += math.exp(ratio) - 1 - ratio
    return total / len(before) if before else 0.0


def collision_probability(probabilities: Sequence[float]) -> float:
    """Probability that two draws agree."""
    return sum(p * p for p in probabilities)


def slope(values: Sequence[float]) -> tuple[float, float]:
    """Least-squares slope an index and its standard error."""
    n = len(values)
    mean_x, mean_y = (n - 1) / 2, sum(values) / n
    spread = sum((x - mean_x) ** 2 for x in range(n))
    rate = sum((x - mean_x) * (y - mean_y) for x, y in enumerate(values)) / spread
    rest = sum((y - mean_y - rate * (x - mean_x)) ** 2 for x, y in enumerate(values))
    return rate, math.sqrt(rest / max(n - 2, 1) / spread)
