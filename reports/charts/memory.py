"""KV memory over time: every slot of the pool stacked by what it holds, one strip an engine on one time axis."""

from __future__ import annotations

from typing import Any, NamedTuple

import altair as alt
import numpy as np

from reports.charts import scales
from reports.charts.figure import Table, cells
from reports.columns import Columns, Floats, pivot, thin
from reports.dataset import Cell, Dataset, Group
from reports.style import LEDGER, MUTED, POOL, TEXT, USAGE, LedgerWord
from reports.words import count, plural

NS = 1e9
POINTS = 60
STRIP = 80  # px
NOT_REPORTED = "not reported by this engine"


class Stack(NamedTuple):
    """One engine's KV memory over time.  ``layers`` are shares of the pool, bottom first, each as long as ``t`` [s]."""

    words: list[LedgerWord]
    t: Floats
    layers: list[Floats]
    pool: float | None  # token slots, null when the engine tells shares only
    merged: int  # samples a point stands for
    window_end: float | None  # end of the measured window [s], over which the means of the tables are taken


def stack(cell: Cell, points: int = POINTS) -> Stack | None:
    """What the engine of ``cell`` tells of its KV memory, in the finest words it has; null when it tells nothing."""
    rows = cell.tables.metrics.rows(cell.info.cell_id, ("t", "name", "value"))
    return _ledger(cell, rows, points) or _pool(cell, rows, points) or _usage(cell, rows, points)


def _ledger(cell: Cell, rows: Columns, points: int) -> Stack | None:
    names = [f"ledger_{word.name}" for word in LEDGER]
    t, series = pivot(rows, names)
    if len(series) < len(names):
        return None
    return _stacked(cell, LEDGER, t, [series[name] for name in names], points)


def _pool(cell: Cell, rows: Columns, points: int) -> Stack | None:
    names = ("kv_slots_reserved", "kv_slots_allocated", "kv_slots_live", "kv_slots_evictable")
    t, series = pivot(rows, names)
    if not {"kv_slots_reserved", "kv_slots_allocated", "kv_slots_live"} <= series.keys():
        return None
    reserved, allocated, live = (series[name] for name in names[:3])
    evictable = series.get(names[3], np.zeros_like(live))
    return _stacked(cell, POOL, t, [live, allocated - live, evictable, reserved - allocated - evictable], points)


def _usage(cell: Cell, rows: Columns, points: int) -> Stack | None:
    t, series = pivot(rows, ["kv_usage"])
    if not series:
        return None
    held = np.clip(series["kv_usage"], 0, 1)
    t, thinned, merged = thin(t, {"held": held}, points)
    return Stack(USAGE, (t - cell.origin) / NS, [thinned["held"], 1 - thinned["held"]], None, merged, _window_end(cell))


def _stacked(cell: Cell, words: list[LedgerWord], t: Floats, layers: list[Floats], points: int) -> Stack | None:
    whole = np.all([np.isfinite(layer) for layer in layers], axis=0)
    total = np.sum(layers, axis=0)
    whole &= total > 0
    if not whole.any():
        return None
    shares = {word.name: np.clip(layer[whole] / total[whole], 0, 1) for word, layer in zip(words, layers, strict=True)}
    t, shares, merged = thin(t[whole], shares, points)
    named = [shares[word.name] for word in words]
    return Stack(words, (t - cell.origin) / NS, named, float(total[whole].max()), merged, _window_end(cell))


def _window_end(cell: Cell) -> float | None:
    if cell.summary is None or cell.summary.window_s is None:
        return None
    rows = cell.tables.requests.rows(cell.info.cell_id, ("t_send", "warmup"))
    sent = rows["t_send"].astype(np.float64)[~rows["warmup"].astype(bool)]
    sent = sent[np.isfinite(sent)]
    return (float(sent.min()) - cell.origin) / NS + cell.summary.window_s if sent.size else None


class Found(NamedTuple):
    """What the engines of a group tell of their KV memory, and what has to be said about it."""

    shown: list[tuple[str, Stack]]
    notes: list[str]

    @property
    def tables(self) -> list[tuple[str, Table]]:
        return [(f"{label}, % of the KV pool", _table(found)) for label, found in self.shown]

    @property
    def means(self) -> str:
        return "; ".join(f"{label}: {_means(found)}" for label, found in self.shown)

    def strips(self, width: int, end_s: float) -> list[scales.Layered]:
        """One strip an engine; the last carries the time axis."""
        last = len(self.shown) - 1
        return [_strip(label, found, width, end_s, is_last=i == last) for i, (label, found) in enumerate(self.shown)]


def collect(data: Dataset, group: Group, points: int = POINTS) -> Found:
    """The stacks of the engines of ``group``, of the first valid repeat of each."""
    shown: list[tuple[str, Stack]] = []
    notes: list[str] = []
    merged = 1
    for engine in data.engines:
        valid = group.valid(engine.label)
        if not valid:
            continue
        found = stack(valid[0], points)
        if found is None:
            notes.append(f"{engine.label}: KV memory {NOT_REPORTED}.")
            continue
        shown.append((engine.label, found))
        merged = max(merged, found.merged)
    if merged > 1:
        notes.append(f"KV memory: each point is the mean of up to {plural(merged, 'sample')}.")
    return Found(shown, notes)


def _strip(label: str, found: Stack, width: int, end_s: float, is_last: bool) -> scales.Layered:
    tops = np.cumsum(found.layers, axis=0)
    bottoms = tops - np.asarray(found.layers)
    rows: list[dict[str, Any]] = []
    for word, low, high, layer in zip(found.words, bottoms, tops, found.layers, strict=True):
        if layer.max() < 5e-4:
            continue
        rows += [
            {"t": round(float(t), 4), "low": round(float(a), 4), "high": round(float(b), 4), "word": word.name}
            for t, a, b in zip(found.t, low, high, strict=True)
        ]
    across = alt.Axis(
        title="seconds" if is_last else None, labels=is_last, format=",f", tickCount=5, grid=False, domain=True
    )
    up = scales.side_title(alt.Axis(title=None, format="%", values=[0, 0.5, 1]))
    # Each strip names every word any of them may draw, so that one colour means one thing.
    words = {word.name: word.color for layers in (LEDGER, POOL, USAGE) for word in layers}
    scale = alt.Scale(domain=list(words), range=list(words.values()))
    pool = f", {count(found.pool)} slots" if found.pool is not None else ", share of the pool"
    area = alt.Chart(scales.values(rows)).mark_area(interpolate="linear", clip=True)
    layers = area.encode(
        x=alt.X("t:Q", scale=alt.Scale(domain=[0, end_s], nice=False), axis=across),
        y=alt.Y("low:Q", scale=alt.Scale(domain=[0, 1]), axis=up),
        y2="high:Q",
        color=alt.Color("word:N", scale=scale, legend=None),
    )
    heading = alt.TitleParams(label, limit=width - 150)
    note = alt.Chart(scales.values([{"text": pool.removeprefix(", ")}])).mark_text(
        align="right", baseline="bottom", color=MUTED, fontSize=10
    )
    drawn = [layers, note.encode(text="text:N", x=alt.value(width - scales.MARGIN), y=alt.value(-7))]
    if found.window_end is not None and found.window_end < 0.98 * float(found.t[-1]):
        rule = alt.Chart(scales.values([{"t": found.window_end}])).mark_rule(color=TEXT, strokeDash=[3, 3])
        drawn.append(rule.encode(x="t:Q"))
    return alt.layer(*drawn).properties(width=width - scales.MARGIN, height=STRIP, title=heading)


def _table(found: Stack) -> Table:
    columns = ["s", *(word.label for word in found.words)]
    return Table(columns, list(zip(cells(found.t, 2), *(cells(100 * layer, 1) for layer in found.layers), strict=True)))


def _means(found: Stack) -> str:
    told = [f"{w.label} {100 * float(s.mean()):.1f} %" for w, s in zip(found.words, found.layers, strict=True)]
    return ", ".join(told)
