"""Make ``spending.json``: ``python -m harness.gate.simulate_spending``.  Deterministic; about two minutes on one core.

Under the null hypothesis ranks are a uniform permutation and signs are fair coins.  For each plan the signed-rank sum of
every path is drawn at every look, and the nominal levels are chosen look by look: the largest rejection region whose
cumulative probability of a first crossing stays within the spending plan.  Fewer hypotheses never have a stricter level
than more (Holm's steps need that; Maurer and Bretz 2013, Statistics in Biopharmaceutical Research 5:311).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.gate.spending import FAIL_RATE, MAX_FAMILY, PASS_RATE, SHIPPED, Plan
from harness.results.intervals import null_tail

PATHS = 8_000_000
CHUNK = 200_000
SEED = 20261126


def sums(plan: Plan, paths: int, seed: int) -> NDArray[np.int16]:
    """Signed-rank sums, shape (paths, looks)."""
    rng = np.random.default_rng(seed)
    result = np.empty((paths, len(plan.looks)), dtype=np.int16)
    for start in range(0, paths, CHUNK):
        count = min(CHUNK, paths - start)
        size = rng.random((count, plan.looks[-1]), dtype=np.float32)
        sign = rng.integers(0, 2, size.shape, dtype=np.int8)
        for k, n in enumerate(plan.looks):
            order = np.argsort(size[:, :n], axis=1)
            positive = np.take_along_axis(sign[:, :n], order, axis=1)
            result[start : start + count, k] = positive @ np.arange(1, n + 1, dtype=np.int16)
    return result


def levels(plan: Plan, drawn: NDArray[np.int16], cumulative: tuple[float, ...], rate: float) -> list[float]:
    """Nominal level at each look, so that first crossings up to it are at most ``cumulative * rate``."""
    open_paths = np.ones(drawn.shape[0], dtype=bool)
    spent = 0.0
    chosen = []
    for k, n in enumerate(plan.looks):
        tail = null_tail(n)
        still = np.bincount(drawn[open_paths, k], minlength=tail.size) / drawn.shape[0]
        crossing = np.cumsum(still[::-1])[::-1]  # probability of a first crossing at W >= w
        budget = cumulative[k] * rate - spent
        # No simulation is needed, or trusted, for less than the whole region's own probability at the first look.
        exact = tail if k == 0 else crossing
        fitting = np.flatnonzero(exact[: tail.size - 1] <= budget)
        if fitting.size == 0:
            chosen.append(0.0)
            continue
        w = int(fitting[0])
        chosen.append(float(tail[w]))
        spent += float(exact[w])
        open_paths &= drawn[:, k] < w
    return chosen


def main() -> None:
    table: dict[str, dict[str, dict[str, list[float]]]] = {}
    for index, plan in enumerate(SHIPPED):
        drawn = sums(plan, PATHS, SEED + index)
        fail: dict[str, list[float]] = {}
        bound = [1.0] * len(plan.looks)
        for m in range(1, MAX_FAMILY + 1):
            bound = list(map(min, levels(plan, drawn, plan.fail, FAIL_RATE / m), bound))
            fail[str(m)] = bound
        table[plan.key] = {"fail": fail, "pass": {"1": levels(plan, drawn, plan.clear, PASS_RATE)}}
    document = {
        "made_by": "python -m harness.gate.simulate_spending",
        "paths": PATHS,
        "seed": SEED,
        "fail_rate": FAIL_RATE,
        "pass_rate": PASS_RATE,
        "levels": table,
    }
    target = Path(__file__).with_name("spending.json")
    target.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(target)


if __name__ == "__main__":
    main()
