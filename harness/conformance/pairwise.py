"""Combinations of conditions: every pair of levels of any two factors occurs in some row.

Greedy covering array: each new row is the best of a few random ones by the pairs that it still adds.
"""

from __future__ import annotations

import itertools
import random

Level = str | int | bool
Row = dict[str, Level]

FACTORS: dict[str, tuple[Level, ...]] = {
    "warm": (False, True),
    "aborted": (False, True),
    "edge": ("inside", "page", "page+1", "chunk"),
    "n": (1, 2),
    "seeded": (False, True),
    "penalties": (False, True),
    "logprobs": (False, True),
    "streamed": (False, True),
    "batch": (1, 7, 16),
}
CANDIDATES = 40

Pair = tuple[tuple[str, Level], tuple[str, Level]]


def pairs_of(row: Row) -> set[Pair]:
    """Pairs of levels in a row, in the order of the factors."""
    return set(itertools.combinations(row.items(), 2))


def all_pairs(factors: dict[str, tuple[Level, ...]]) -> set[Pair]:
    """Every pair that must occur."""
    return {
        ((first, a), (second, b))
        for first, second in itertools.combinations(factors, 2)
        for a in factors[first]
        for b in factors[second]
    }


def covering_rows(rng: random.Random, factors: dict[str, tuple[Level, ...]] = FACTORS) -> list[Row]:
    """Rows that cover all pairs."""
    missing = all_pairs(factors)
    rows: list[Row] = []
    while missing:
        (first, a), (second, b) = rng.choice(sorted(missing, key=repr))
        tries = []
        for _ in range(CANDIDATES):
            row = {name: rng.choice(levels) for name, levels in factors.items()}
            row[first], row[second] = a, b
            tries.append(row)
        best = max(tries, key=lambda row: len(pairs_of(row) & missing))
        rows.append(best)
        missing -= pairs_of(best)
    return rows
