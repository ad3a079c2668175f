"""The headline metrics of the first screen, one tile each."""

from __future__ import annotations

from dataclasses import dataclass

from reports import tables
from reports.changes import Change, bases, change_of
from reports.compare import differ, memory_was_not_full
from reports.dataset import Dataset, Engine, Group
from reports.metrics import HEADLINES, RUNNING, UTILISATION, Metric
from reports.words import factor, percent


@dataclass(frozen=True)
class TileRow:
    """One engine in a tile; ``fill`` is the length of its bar, 0 to 1."""

    engine: Engine
    text: str
    range: str
    fill: float
    change: str = ""  # against the base, where the tile holds more than two engines


@dataclass(frozen=True)
class Tile:
    """One headline metric."""

    label: str
    unit: str
    better: str
    factor: str
    rows: list[TileRow]
    change: str = ""  # with two engines: the second against the first, with interval and detectable change


def tiles(data: Dataset, group: Group) -> list[Tile]:
    """The headline metrics of the engines of one group."""
    return [_tile(data, group, metric) for metric in HEADLINES]


def _tile(data: Dataset, group: Group, metric: Metric) -> Tile:
    spreads = {e.label: metric.spread(group, e.label) for e in data.engines if e.label in group.cells}
    moved = _changes(data, group, metric)
    middles = [s.middle for s in spreads.values() if s.middle is not None]
    top = 1.0 if metric.show is percent else max(middles, default=0.0)
    rows = []
    for engine in data.engines:
        if engine.label not in spreads:
            continue
        spread = spreads[engine.label]
        shown = tables.value(spread, metric)
        text = shown.text if group.valid(engine.label) else "INVALID"
        fill = (spread.middle or 0.0) / top if top > 0 else 0.0
        change = "" if len(moved) < 2 else _short(moved.get(engine.label))
        rows.append(TileRow(engine, text, shown.range, min(1.0, max(0.0, fill)), change))
    known = sorted((s for s in spreads.values() if s.values), key=lambda s: s.middle or 0.0)
    ratio = ""
    if len(known) > 1 and differ(known[0], known[-1]) and known[0].middle:
        ratio = factor((known[-1].middle or 0.0) / known[0].middle)
    better = f"{metric.better} is better"
    if metric in (RUNNING, UTILISATION) and _all_fitted(group, [label for label, s in spreads.items() if s.values]):
        # Nobody met the limit of the pool, so more at once only means that requests took longer.
        better, ratio = "all in flight fitted", ""
    told = _long(next(iter(moved.values()))) if len(moved) == 1 else ""
    return Tile(metric.label, metric.unit if metric.unit == "ms" else "", better, ratio, rows, told)


def _changes(data: Dataset, group: Group, metric: Metric) -> dict[str, Change]:
    """The change of ``metric`` of every engine that has a base to be compared with, by its label."""
    found: dict[str, Change] = {}
    for base, new in bases(data):
        if base.label in group.cells and new.label in group.cells:
            change = change_of(group, metric, base, new)
            if change is not None:
                found[new.label] = change
    return found


def _long(change: Change) -> str:
    """``−4.2 % (95 %: −6.0 to −2.1 %); detectable ±2.5 %``: a change with all that is known about it."""
    if change.change is None:
        return ""
    if change.low is None:
        return f"{change.change_text}; no interval from {change.n} repeats"
    sure = "" if change.verdict in ("better", "worse", "changed") else ", no change shown"
    return f"{change.change_text} (95 %: {change.interval_text}){sure}; detectable {change.detectable_text}"


def _short(change: Change | None) -> str:
    """``−4.2 % [−6.0 to −2.1]``, or the change alone where repeats are too few."""
    if change is None or change.change is None:
        return ""
    if change.low is None or change.high is None:
        return change.change_text
    return f"{change.change_text} [{change.interval_text.removesuffix(' %')}]"


def _all_fitted(group: Group, labels: list[str]) -> bool:
    return bool(labels) and all(memory_was_not_full(group, label) for label in labels)
