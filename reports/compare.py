"""When two numbers differ, and when two engines had the same KV memory: the rules behind every comparing sentence."""

from __future__ import annotations

from collections.abc import Iterable

from reports.dataset import Dataset, Group
from reports.metrics import RUNNING, Metric
from reports.words import Spread

# Without repeats, throughputs closer than this are called about the same: run-to-run noise alone can make such a gap.
ABOUT_THE_SAME = 1.10
# With repeats, medians closer than this are about the same even where the ranges are apart: nobody acts on 2 %.
RELEVANT = 1.02
# Pools whose sizes differ by no more than this hold the same KV memory (rounding to whole blocks).
SAME_POOL = 1.01


def pools(group: Group, labels: Iterable[str]) -> dict[str, float]:
    """KV pool of every engine that reported it [slots]."""
    found = {label: group.values(label, lambda cell: cell.kv_reserved) for label in labels}
    return {label: max(values) for label, values in found.items() if values and max(values) > 0}


def pools_equal(sizes: Iterable[float]) -> bool:
    """Is it the same KV memory?"""
    sizes = list(sizes)
    return bool(sizes) and max(sizes) <= SAME_POOL * min(sizes)


def comparable(group: Group, labels: list[str]) -> list[str]:
    """Engines that told both the size of their pool and how many requests they ran.

    A gauge that stood at zero in every look at a run that served requests was never seen with them: it told nothing.
    """
    sizes = pools(group, labels)
    return [label for label in labels if label in sizes and (RUNNING.spread(group, label).middle or 0) > 0]


def extremes(group: Group, labels: list[str]) -> tuple[str, str]:
    """The engine that ran most requests at once, and the one that ran fewest."""
    ranked = sorted(labels, key=lambda label: -(RUNNING.spread(group, label).middle or 0))
    return ranked[0], ranked[-1]


def memory_was_not_full(group: Group, label: str) -> bool:
    """Did all requests in flight fit, so that the pool's true capacity was never met?"""
    peaks = group.values(label, lambda cell: cell.running_max)
    limit = group.load.concurrency if group.load.mode == "closed" else None
    return limit is not None and bool(peaks) and max(peaks) >= limit


def differ(a: Spread, b: Spread) -> bool:
    """May a difference be stated?  With repeats: ranges apart and over 2 %; without: more than noise could make."""
    if not a.values or not b.values:
        return False
    low, high = sorted((a.middle or 0, b.middle or 0))
    if a.is_repeated and b.is_repeated:
        apart = min(a.values) > max(b.values) or min(b.values) > max(a.values)
        return apart and high > RELEVANT * low
    return high > ABOUT_THE_SAME * low


def ratios(data: Dataset, metric: Metric, top: str, bottom: str) -> list[float]:
    """``metric`` of one engine over that of another, in every group where both have it."""
    pairs = [(metric.spread(group, top).middle, metric.spread(group, bottom).middle) for group in data.groups]
    return [a / b for a, b in pairs if a is not None and b]
