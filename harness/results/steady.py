"""Where warm-up ends: MSER-5 (White 1997; the rule that fared best in Mahajan & Ingalls 2004).

A series of throughput in equal stretches of time is averaged in batches of five; of all ways to cut batches off its
start, the one with the smallest standard error of what is left wins.  A best cut at the middle means that the series
never settled, and is no answer.
"""

from __future__ import annotations

import numpy as np

from harness.results.series import Floats

BATCH = 5
MIN_BATCHES = 20  # fewer leave the cut to chance
MAX_BINS = 10_000_000  # a month in quarters of a second: times further apart are damage, and not worth the memory


def mser5(values: Floats) -> int | None:
    """How many of ``values`` to cut off the start; None where they are too few or never settle."""
    batches = values.size // BATCH
    if batches < MIN_BATCHES:
        return None
    means = values[: batches * BATCH].reshape(batches, BATCH).mean(axis=1)
    left = np.arange(batches, 0, -1)
    # Sums over what is left after each cut, from the end.
    sums, squares = np.cumsum(means[::-1])[::-1], np.cumsum((means**2)[::-1])[::-1]
    errors = (squares / left - (sums / left) ** 2) / left
    # Beyond half of the series the estimate rests on little; a minimum at that edge says that the start never ended.
    half = batches // 2
    cut = int(np.argmin(errors[: half + 1]))
    return None if cut == half else cut * BATCH


def steady_start(times: Floats, weights: Floats, window: tuple[int, int], bin_ns: int) -> int | None:
    """The moment (ns) from which the throughput of ``weights`` arriving at ``times`` is steady within ``window``."""
    start, end = window
    bins = (end - start) // bin_ns
    if not BATCH * MIN_BATCHES <= bins <= MAX_BINS:
        return None
    inside = (times >= start) & (times < start + bins * bin_ns)
    counts = np.bincount(((times[inside] - start) // bin_ns).astype(int), weights=weights[inside], minlength=bins)
    cut = mser5(counts.astype(np.float64))
    return None if cut is None else start + cut * bin_ns
