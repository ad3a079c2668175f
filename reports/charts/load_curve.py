"""Latency against throughput as the load rises: the curve that shows where an engine stops keeping its limits."""

from __future__ import annotations

from typing import Any

import altair as alt

from reports.charts import scales
from reports.charts.figure import Figure, Table, drawn
from reports.charts.latency import slo_line, slo_of
from reports.dataset import Dataset, Group, load_level, load_words
from reports.metrics import THROUGHPUT, Metric
from reports.words import Spread, number

HEIGHT = 210  # px


def curve_figure(data: Dataset, workload: str, key: str, choices: tuple[Metric, ...], width: int) -> Figure:
    """Latency (up) over output tokens/s (across), a line an engine, a point a load level, the SLO on ``key`` drawn in.

    ``choices`` are percentiles of one latency, the most telling first: the first that every drawn point has is shown.
    """
    figure_id = f"load-{data.workloads.index(workload)}-{key}"
    groups = data.levels(workload)
    metric = _supported(data, groups, choices)
    rows: list[dict[str, Any]] = []
    table: list[list[str]] = []
    notes: list[str] = []
    for group in groups:
        for engine in data.engines:
            if group.cells.get(engine.label) and not group.valid(engine.label):
                notes.append(f"{engine.label} is INVALID at {load_words(group.load)} and not drawn.")
            speed, slow = THROUGHPUT.spread(group, engine.label).middle, metric.spread(group, engine.label).middle
            if speed is None or slow is None:
                continue
            level = load_level(group.load)
            rows.append({"engine": engine.label, "x": round(speed, 1), "y": round(slow, 3), "level": level})
            table.append([load_words(group.load), engine.label, number(speed), number(slow)])
    title = f"{metric.label} against throughput, {workload}"
    if not rows:
        return Figure(figure_id, title, "Not measured.", "", notes=[*notes, "Not measured in this run."])
    limit = slo_of(data, key)
    high, low = max(row["y"] for row in rows), max(1e-3, min(row["y"] for row in rows))
    if limit is not None and limit > 4 * high:
        notes.append(f"The SLO of {number(limit)} ms lies above the chart.")
        limit = None

    def build() -> scales.Layered:
        scale, up = scales.milliseconds(low, max(high, limit or 0), HEIGHT, 20)
        scales.side_title(up)
        across = alt.Axis(title="output tokens/s", format=scales.plain(max(row["x"] for row in rows)), tickCount=6)
        x = alt.X("x:Q", scale=alt.Scale(zero=True, nice=True), axis=across)
        y = alt.Y("y:Q", scale=scale, axis=up)
        base, color = alt.Chart(scales.values(rows)), scales.color(data.engines)
        layers = [
            base.mark_line(strokeWidth=2).encode(
                x=x, y=y, color=color, strokeDash=scales.dash(data.engines), order="level:Q"
            ),
            base.mark_point(filled=True, size=60, opacity=1).encode(
                x=x, y=y, color=color, shape=scales.shape(data.engines)
            ),
        ]
        if limit is not None:
            layers += slo_line(limit)
        return alt.layer(*layers).properties(width=width - scales.MARGIN, height=HEIGHT)

    levels = [load_words(group.load) for group in groups]
    description = f"{metric.label} in ms (up) against output tokens/s (across); each line runs from {levels[0]} to "
    description += f"{levels[-1]}. " + "; ".join(f"{r[1]} at {r[0]}: {r[2]} tokens/s, {r[3]} ms" for r in table) + "."
    columns = ["load", "engine", "output tokens/s", f"{metric.label}, ms"]
    return drawn(figure_id, title, description, build, [("Points", Table(columns, table))], notes)


def _supported(data: Dataset, groups: list[Group], choices: tuple[Metric, ...]) -> Metric:
    """The first of ``choices`` that every cell with a result has; the last where none is."""
    for metric in choices:
        spreads: list[tuple[Spread, Spread]] = [
            (THROUGHPUT.spread(group, e.label), metric.spread(group, e.label)) for group in groups for e in data.engines
        ]
        if all(slow.values for speed, slow in spreads if speed.values):
            return metric
    return choices[-1]
