"""What happened over time: tokens/s, requests running and waiting, preemptions and KV memory, on one time axis."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np

from reports.charts import memory, scales
from reports.charts.figure import Figure, Table, cells, drawn
from reports.columns import Floats, event_rate, pivot, thin
from reports.dataset import Cell, Dataset, Engine, Group
from reports.style import SURFACE
from reports.words import plural

NS = 1e9
POINTS = 60
STRIP = 64  # px
_STRIPS = (("speed", "output tokens/s"), ("running", "requests running"), ("waiting", "requests waiting"))

Lines = dict[str, tuple[Floats, Floats]]  # strip -> (t [s], value)


def end_of(group: Group) -> float:
    """The longest cell of a group from its time zero [s]: one axis for all engines, so that faster ones end earlier."""
    ends = [0.0]
    for cells_ in group.cells.values():
        cell = cells_[0]
        done = cell.tables.requests.rows(cell.info.cell_id, ["t_done"])["t_done"].astype(np.float64)
        done = done[np.isfinite(done)]
        if done.size:
            ends.append((float(done.max()) - cell.origin) / NS)
    return max(ends) or 1.0


def lines(cell: Cell, end_s: float, points: int = POINTS) -> tuple[Lines, Floats, int]:
    """The strips of one cell, the times of its preemptions [s], and how many samples a point stands for."""
    rows = cell.tables.metrics.rows(cell.info.cell_id, ("t", "name", "value"))
    t, series = pivot(rows, ("requests_running", "requests_waiting", "preemptions_total"))
    seconds = (t - cell.origin) / NS
    found: Lines = {}
    merged = 1
    for name, column in (("running", "requests_running"), ("waiting", "requests_waiting")):
        if column in series:
            known = np.isfinite(series[column])
            at, thinned, n = thin(seconds[known], {name: series[column][known]}, points)
            found[name] = (at, thinned[name])
            merged = max(merged, n)
    preempted = np.empty(0)
    if "preemptions_total" in series:
        total = series["preemptions_total"]
        known = np.isfinite(total)
        preempted = seconds[known][1:][np.diff(total[known]) > 0]
    chunks = cell.tables.chunks.rows(cell.info.cell_id, ("t", "tokens"))
    tokens = chunks["tokens"].astype(np.float64)
    # A server that does not say how many tokens a chunk holds is counted in chunks.
    weights = np.where(np.isfinite(tokens), tokens, 1.0)
    at, rate = event_rate(chunks["t"].astype(np.float64), weights, cell.origin, cell.origin + end_s * NS, points // 2)
    if rate.any():  # chunks stamped outside of the cell, by a clock that stepped, draw no line
        kept = np.arange(at.size) <= np.flatnonzero(rate)[-1]
        found["speed"] = ((at[kept] - cell.origin) / NS, rate[kept])
    return found, preempted, merged


def timeline_figure(data: Dataset, group: Group, width: int, end_s: float, points: int = POINTS) -> Figure:
    """Tokens/s, running and waiting of every engine under ``group``, and below them the KV memory of each."""
    figure_id = f"time-{data.groups.index(group)}"
    found: list[tuple[Engine, Lines, Floats]] = []
    notes: list[str] = []
    merged = 1
    for engine in data.engines:
        valid = group.valid(engine.label)
        if group.cells.get(engine.label) and not valid:
            notes.append(f"{engine.label} is INVALID here and not drawn.")
        if not valid:
            continue
        strips, preempted, n = lines(valid[0], end_s, points)
        merged = max(merged, n)
        found.append((engine, strips, preempted))
        silent = [words for name, words in _STRIPS[1:] if name not in strips]
        if silent:
            notes.append(f"{engine.label}: {' and '.join(silent)} not reported by this engine.")
    title = f"Over time, {group.title}"
    shown = [(name, words) for name, words in _STRIPS if any(name in strips for _, strips, _ in found)]
    held = memory.collect(data, group, points)
    notes += held.notes
    if not shown and not held.shown:
        return Figure(figure_id, title, "Nothing was measured.", "", notes=[*notes, "Nothing was measured."])
    if merged > 1:
        notes.append(f"Running and waiting: each point is the mean of up to {plural(merged, 'sample')}.")
    total = sum(times.size for _, _, times in found)
    if total:
        notes.append(f"Triangles mark {plural(total, 'moment')} at which the preemption counter rose.")

    def build() -> alt.VConcatChart:
        last = shown[-1][0] if shown and not held.shown else None
        strips = [_strip(data, name, words, found, width, end_s, name == last) for name, words in shown]
        strips += held.strips(width, end_s)
        return alt.vconcat(*strips).properties(spacing=10).resolve_scale(color="independent")

    peaks = [
        f"{engine.label}, {words}: up to {strips[name][1].max():.0f}"
        for engine, strips, _ in found
        for name, words in shown
        if name in strips
    ]
    description = f"Output tokens/s, requests running and waiting over seconds. {'; '.join(peaks)}."
    if held.shown:
        description += f" Below, the share of the KV pool by what its slots hold. Means. {held.means}."
    tables = [
        (f"{words}, {engine.label}", Table(["s", words], list(zip(cells(x, 2), cells(y, 1), strict=True))))
        for name, words in shown
        for engine, strips, _ in found
        if name in strips
        for x, y in [strips[name]]
    ]
    return drawn(figure_id, title, description, build, [*tables, *held.tables], notes)


def _strip(
    data: Dataset,
    name: str,
    words: str,
    found: list[tuple[Engine, Lines, Floats]],
    width: int,
    end_s: float,
    is_last: bool,
) -> scales.Layered:
    rows: list[dict[str, Any]] = [
        {"engine": engine.label, "t": round(float(t), 4), "y": round(float(y), 3)}
        for engine, strips, _ in found
        if name in strips
        for t, y in zip(*strips[name], strict=True)
    ]
    across = alt.Axis(
        title="seconds" if is_last else None, labels=is_last, format=",f", tickCount=5, grid=False, domain=True
    )
    high = max((row["y"] for row in rows), default=0.0)
    up = scales.side_title(
        alt.Axis(title=words, format=scales.plain(high), tickCount=3, tickMinStep=1 if name != "speed" else 0)
    )
    x = alt.X("t:Q", scale=alt.Scale(domain=[0, end_s], nice=False), axis=across)
    line = alt.Chart(scales.values(rows)).mark_line(strokeWidth=1.75, clip=True)
    layers = [
        line.encode(
            x=x,
            y=alt.Y("y:Q", scale=alt.Scale(domain=[0, 1.08 * high or 1], nice=False), axis=up),
            color=scales.color(data.engines),
            strokeDash=scales.dash(data.engines),
        )
    ]
    if name == "running":
        marks = [
            {"engine": engine.label, "t": round(float(t), 4)}
            for engine, _, preempted in found
            for t in preempted[:POINTS]
        ]
        if marks:
            points = alt.Chart(scales.values(marks)).mark_point(
                shape="triangle-down", filled=True, size=40, opacity=1, stroke=SURFACE, strokeWidth=0.5
            )
            layers.append(points.encode(x=x, y=alt.value(4), color=scales.color(data.engines)))
    return alt.layer(*layers).properties(width=width - scales.MARGIN, height=STRIP)
