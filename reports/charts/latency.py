"""How latency is distributed: the whole percentile curve of TTFT, ITL and E2E, as HdrHistogram plots it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import altair as alt
import numpy as np

from reports.charts import scales
from reports.charts.figure import Figure, Table, drawn
from reports.columns import Floats, gaps, latency
from reports.dataset import Dataset, Engine, Group
from reports.style import MUTED, SLO
from reports.words import number

NS_PER_MS = 1e6
CURVE_POINTS = 48
HEIGHT = 170  # px
# A percentile is drawn only while at least this many samples lie beyond it.
BEYOND = 5
_MARKED = (0.5, 0.9, 0.99)
_TABLE = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 0.9999)

Samples = Callable[[Group, str], Floats]


def ttft_samples(group: Group, label: str) -> Floats:
    """Time to first token of every counted request of an engine, its valid repeats pooled [ms]."""
    parts = [latency(_requests(cell, "t_send", "t_first"), "t_send", "t_first") for cell in group.valid(label)]
    return np.sort(np.concatenate(parts or [np.empty(0)])) / NS_PER_MS


def itl_samples(group: Group, label: str) -> Floats:
    """Gaps between the content chunks of every counted request of an engine, its valid repeats pooled [ms]."""
    parts = [
        gaps(
            _requests(cell, "request_index"),
            cell.tables.chunks.rows(cell.info.cell_id, ("request_index", "chunk", "t")),
        )
        for cell in group.valid(label)
    ]
    return np.sort(np.concatenate(parts or [np.empty(0)])) / NS_PER_MS


def e2e_samples(group: Group, label: str) -> Floats:
    """Time from sending to the end of the answer of every counted request, the valid repeats pooled [ms]."""
    parts = [latency(_requests(cell, "t_send", "t_done"), "t_send", "t_done") for cell in group.valid(label)]
    return np.sort(np.concatenate(parts or [np.empty(0)])) / NS_PER_MS


def _requests(cell: Any, *columns: str) -> Any:
    return cell.tables.requests.rows(cell.info.cell_id, (*columns, "ok", "warmup"))


def quantile(ordered: Floats, share: float) -> float:
    """The smallest sample that at least ``share`` of the sorted samples do not exceed."""
    return float(ordered[max(0, int(np.ceil(share * ordered.size - 1e-9)) - 1)])


def ttft_figure(data: Dataset, group: Group, width: int) -> Figure:
    """The percentile curve of the time to the first token, one curve an engine."""
    return _curve(data, group, width, "ttft", "TTFT", "Time to the first token", ttft_samples)


def itl_figure(data: Dataset, group: Group, width: int) -> Figure:
    """The percentile curve of the gaps between chunks, one curve an engine."""
    return _curve(data, group, width, "itl", "ITL", "Gap between content chunks", itl_samples)


def e2e_figure(data: Dataset, group: Group, width: int) -> Figure:
    """The percentile curve of the time from sending a request to the end of its answer, one curve an engine."""
    return _curve(data, group, width, "e2e", "E2E", "Time from sending a request to the end of its answer", e2e_samples)


def _curve(data: Dataset, group: Group, width: int, key: str, word: str, what: str, read: Samples) -> Figure:
    samples = _collect(data, group, read)
    rows: list[dict[str, Any]] = []
    marks: list[dict[str, Any]] = []
    for e, s in samples:
        nines = np.linspace(0, np.log10(max(1.0, s.size / BEYOND)), CURVE_POINTS)
        rows += [{"engine": e.label, "x": round(float(x), 4), "y": _rounded(quantile(s, 1 - 10.0**-x))} for x in nines]
        marks += [
            {"engine": e.label, "x": round(-float(np.log10(1 - p)), 4), "y": _rounded(quantile(s, p))}
            for p in _MARKED
            if s.size * (1 - p) >= BEYOND
        ]
    low, high = min((r["y"] for r in rows), default=0.0), max((r["y"] for r in rows), default=0.0)
    scale, axis = scales.milliseconds(max(low, 1e-3), high, HEIGHT, 20)
    ticks = [0, *(-float(np.log10(1 - p)) for p in (0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999))]
    scales.side_title(axis)

    def build() -> scales.Layered:
        text = "datum.value < 0.01 ? '0' : format(100 * (1 - pow(10, -datum.value)), '.6~r')"
        across = alt.Axis(title="percentile, each step ten times rarer", values=ticks, labelExpr=text)
        deepest = max((r["x"] for r in rows), default=1.0) or 1.0
        x = alt.X("x:Q", scale=alt.Scale(domain=[0, deepest], nice=False), axis=across)
        y = alt.Y("y:Q", scale=scale, axis=axis)
        return _layers(data, rows, marks, x, y, _limit(data, key, high)).properties(
            width=width - scales.MARGIN, height=HEIGHT
        )

    title = f"{word}, {group.title}"
    description = f"{what} in ms (up) at each percentile (across). {_summary(samples)}"
    return _figure(f"{key}-{data.groups.index(group)}", title, description, build, samples, data, group)


def _rounded(ms: float) -> float:
    """Four significant digits: more than a pixel shows."""
    return float(f"{ms:.4g}")


def _collect(data: Dataset, group: Group, read: Samples) -> list[tuple[Engine, Floats]]:
    found = [(engine, read(group, engine.label)) for engine in data.engines]
    return [(engine, samples) for engine, samples in found if samples.size]


def slo_of(data: Dataset, metric: str) -> float | None:
    """The limit that all runs share on this metric [ms]; null where they have none or differ."""
    limits = {run.run.manifest.slo[metric] for run in data.runs if metric in run.run.manifest.slo}
    return limits.pop() if len(limits) == 1 else None


def _limit(data: Dataset, metric: str, high: float) -> float | None:
    """The SLO of the run on this metric [ms], where it falls inside the chart."""
    limit = slo_of(data, metric)
    return limit if limit is not None and limit <= 1.5 * high else None


def _layers(
    data: Dataset, rows: list[dict[str, Any]], marks: list[dict[str, Any]], x: alt.X, y: alt.Y, limit: float | None
) -> scales.Layered:
    color, dash = scales.color(data.engines), scales.dash(data.engines)
    lines = alt.Chart(scales.values(rows)).mark_line(strokeWidth=2, clip=True)
    dots = alt.Chart(scales.values(marks)).mark_point(filled=True, size=52, opacity=1)
    layers = [
        lines.encode(x=x, y=y, color=color, strokeDash=dash, order="x:Q"),
        dots.encode(x=x, y=y, color=color, shape=scales.shape(data.engines)),
    ]
    if limit is not None:
        layers += slo_line(limit)
    return alt.layer(*layers)


def slo_line(limit: float) -> list[alt.Chart]:
    """A limit in ms drawn across a chart whose vertical axis is in ms, with its name."""
    at = alt.Chart(scales.values([{"limit": limit, "text": f"SLO {number(limit)} ms"}]))
    rule = at.mark_rule(stroke=SLO, strokeDash=[3, 3], strokeWidth=1.5).encode(y=alt.Y("limit:Q"))
    words = at.mark_text(color=MUTED, fontSize=10, align="right", dx=-2, dy=-6)
    return [rule, words.encode(text="text:N", y=alt.Y("limit:Q"), x=alt.value("width"))]


def _summary(samples: list[tuple[Engine, Floats]]) -> str:
    return "; ".join(f"{e.label}: median {number(quantile(s, 0.5))} ms, n {s.size:,}" for e, s in samples)


def _figure(
    figure_id: str,
    title: str,
    description: str,
    build: Callable[[], scales.Layered],
    samples: list[tuple[Engine, Floats]],
    data: Dataset,
    group: Group,
) -> Figure:
    notes = [f"{e.label} is INVALID here and not drawn." for e in data.engines if _is_void(group, e.label)]
    if not samples:
        return Figure(figure_id, title, "Nothing was measured.", "", notes=[*notes, "Nothing was measured."])
    shares = [p for p in _TABLE if any(s.size * (1 - p) >= BEYOND for _, s in samples) or p <= 0.5]
    rows = [
        [
            e.label,
            f"{s.size:,}",
            number(float(s[0])),
            *(number(quantile(s, p)) if p <= 0.5 or s.size * (1 - p) >= BEYOND else "–" for p in shares),
            number(float(s[-1])),
        ]
        for e, s in samples
    ]
    table = Table(["engine", "n", "min", *(f"p{100 * p:g}" for p in shares), "max"], rows)
    return drawn(figure_id, title, description, build, [("Milliseconds", table)], notes)


def _is_void(group: Group, label: str) -> bool:
    return bool(group.cells.get(label)) and not group.valid(label)
