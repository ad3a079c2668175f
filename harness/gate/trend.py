"""The trend of each metric over a history: points, steps, and the noise estimate for the next gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from harness.gate.catalogue import METRICS
from harness.gate.history import pairs_needed
from harness.results.gate import HistoryEntry, Trend, TrendPoint, TrendStep

DEFAULT_LIMIT = 0.05


def trends(entries: Sequence[HistoryEntry], change_points: Callable[[Sequence[float]], list[int]]) -> list[Trend]:
    """One trend a metric, in the order of the latest gate that has it."""
    keys = list(dict.fromkeys(key for entry in reversed(entries) for key in entry.metrics))
    return [trend for key in keys if (trend := _trend(key, entries, change_points)) is not None]


def _trend(
    key: str, entries: Sequence[HistoryEntry], change_points: Callable[[Sequence[float]], list[int]]
) -> Trend | None:
    points, spreads = [], []
    for entry in entries:
        metric = entry.metrics.get(key)
        if metric is None or metric.candidate is None:
            continue
        points.append(
            TrendPoint(label=entry.label, created_utc=entry.created_utc, value=metric.candidate, verdict=metric.verdict)
        )
        if metric.pair_spread is not None:
            spreads.append(metric.pair_spread)
    if not points:
        return None
    last = next(entry.metrics[key] for entry in reversed(entries) if key in entry.metrics)
    values = [point.value for point in points]
    starts = [0, *change_points(values)]
    levels = [median(values[a:b]) for a, b in zip(starts, [*starts[1:], len(values)], strict=True)]
    steps = [
        TrendStep(index=at, label=points[at].label, created_utc=points[at].created_utc, share=now / before - 1)
        for at, before, now in zip(starts[1:], levels, levels[1:], strict=False)
    ]
    name = key.rpartition("/")[2]
    limit = METRICS[name].limit if name in METRICS and METRICS[name].limit > 0 else DEFAULT_LIMIT
    spread = median(spreads) if spreads else None
    return Trend(
        key=key,
        label=last.label,
        unit=last.unit,
        better=last.better,
        limit=limit,
        points=points,
        steps=steps,
        pair_spread=spread,
        pairs_needed=None if spread is None else pairs_needed(spread, limit),
    )
