"""Engines side by side: throughput, requests at once, and where the KV memory goes."""

from __future__ import annotations

from typing import Any

import altair as alt

from reports.charts import scales
from reports.charts.figure import Figure, Table, drawn
from reports.dataset import Dataset, Group, load_level, load_words
from reports.metrics import Metric
from reports.style import LEDGER, ON_LIVE, TEXT
from reports.tables import mean_ledger
from reports.words import Spread, percent

ROW = 21  # px a bar
NAMES = 92  # px for engine names


def bar_figure(data: Dataset, groups: list[Group], metric: Metric, width: int) -> Figure:
    """``metric`` of every engine as a bar with its number, a panel a group; whiskers span the repeats."""
    figure_id = f"bar-{metric.path.replace('.', '-').replace('_', '-')}"
    rows: list[dict[str, Any]] = []
    table: list[list[str]] = []
    for group in groups:
        for engine in data.engines:
            if engine.label not in group.cells:
                continue
            spread = metric.spread(group, engine.label)
            text = metric.show(spread.middle) if spread.values else _absent(group, engine.label)
            rows.append(
                {"engine": engine.label, "group": group.title, "value": spread.middle or 0.0, "text": text}
                | ({"low": spread.low, "high": spread.high} if spread.is_repeated else {})
            )
            table.append([group.title, engine.label, text, metric.show(spread.low), metric.show(spread.high)])
    title = metric.label
    if not any(metric.spread(group, label).values for group in groups for label in group.cells):
        return Figure(figure_id, title, "Not measured.", "", notes=["Not measured in this run."])

    def build() -> alt.FacetChart:
        engines = [e.label for e in data.engines]
        y = alt.Y("engine:N", sort=engines, title=None, axis=_names())
        top = max((row.get("high") or row["value"]) for row in rows)
        scale = alt.Scale(domain=[0, top * 1.22], nice=False)
        base = alt.Chart()
        bars = base.mark_bar(height=12).encode(
            x=alt.X("value:Q", scale=scale, axis=None), y=y, color=scales.color(data.engines)
        )
        text = base.mark_text(align="left", dx=6, color=TEXT, fontSize=11).encode(
            x=alt.X("edge:Q", scale=scale, axis=None), y=y, text="text:N"
        )
        layers = [bars, text]
        if any("low" in row for row in rows):
            layers.insert(
                1,
                base.mark_rule(color=TEXT, strokeWidth=1.25).encode(
                    x=alt.X("low:Q", scale=scale, axis=None), x2="high:Q", y=y
                ),
            )
        return _facet(alt.layer(*layers), rows, groups, width)

    for row in rows:
        row["edge"] = row.get("high") or row["value"]
    told = "; ".join(f"{r['group']}, {r['engine']}: {r['text']}" for r in rows)
    description = f"{title} of each engine, {_direction(metric)}. {told}."
    shown = Table(["workload and load", "engine", "median", "lowest", "highest"], table)
    return drawn(figure_id, title, description, build, [(title, shown)])


def _direction(metric: Metric) -> str:
    return {"higher": "higher is better", "lower": "lower is better", "neither": "neither end is better"}[metric.better]


def _absent(group: Group, label: str) -> str:
    return "not measured" if group.valid(label) else "INVALID"


def _names() -> alt.Axis:
    return alt.Axis(
        labelLimit=NAMES - 4,
        minExtent=NAMES + 8,
        maxExtent=NAMES + 8,
        domain=False,
        grid=False,
        labelColor=TEXT,
        labelPadding=8,
    )


def _facet(layers: scales.Layered, rows: list[dict[str, Any]], groups: list[Group], width: int) -> alt.FacetChart:
    header = alt.Header(labelOrient="top", labelAnchor="start", title=None, labelLimit=width)
    chart = layers.properties(width=width - NAMES - 24, height=alt.Step(ROW))
    return chart.facet(
        row=alt.Row("group:N", sort=[g.title for g in groups], header=header, title=None), data=scales.values(rows)
    ).resolve_scale(y="independent")


def waste_figure(data: Dataset, groups: list[Group], width: int) -> Figure:
    """The ledger of each engine as one stacked bar of its whole pool, the waste hatched and its sum beside it."""
    rows: list[dict[str, Any]] = []
    ends: list[dict[str, Any]] = []
    for group in groups:
        for engine in data.engines:
            shares = mean_ledger(group, engine.label)
            if shares is None:
                continue
            at = 0.0
            for word in LEDGER:
                share = shares[word.name]
                text = f"{100 * share:.0f}" if share >= 0.085 else ""
                rows.append(
                    {"engine": engine.label, "group": group.title, "word": word.name}
                    | {"low": at, "high": at + share, "mid": at + share / 2, "text": text}
                )
                at += share
            waste = Spread(tuple(group.values(engine.label, lambda cell: cell.kv_waste))).middle
            ends.append({"engine": engine.label, "group": group.title, "text": f"waste {percent(waste)}"})
    title = "Where the KV pool goes"
    if not rows:
        return Figure("waste", title, "No ledger.", "", notes=["No engine of this run reports a ledger of its pool."])

    def build() -> alt.FacetChart:
        shown = {row["engine"] for row in rows}
        engines = [e.label for e in data.engines if e.label in shown]
        y = alt.Y("engine:N", sort=engines, title=None, axis=_names())
        scale = alt.Scale(domain=[0, 1.25], nice=False)
        words = alt.Scale(domain=[w.name for w in LEDGER], range=[w.color for w in LEDGER])
        merged = [row | {"edge": 1.0, "end": ""} for row in rows]
        merged += [row | {"low": None, "edge": 1.0, "end": row["text"], "text": ""} for row in ends]
        base = alt.Chart()
        bars = base.mark_bar(height=14).encode(
            x=alt.X("low:Q", scale=scale, axis=None),
            x2="high:Q",
            y=y,
            color=alt.Color("word:N", scale=words, legend=None),
        )
        inside = base.mark_text(fontSize=10, fontWeight=600).encode(
            x=alt.X("mid:Q", scale=scale, axis=None),
            y=y,
            text="text:N",
            color=alt.condition("datum.word == 'token_states'", alt.value(ON_LIVE), alt.value(TEXT)),
        )
        beside = base.mark_text(align="left", dx=6, fontSize=11, color=TEXT).encode(
            x=alt.X("edge:Q", scale=scale, axis=None), y=y, text="end:N"
        )
        return _facet(alt.layer(bars, inside, beside), merged, [g for g in groups if _has_ledger(data, g)], width)

    told = "; ".join(f"{row['group']}, {row['engine']}: {row['text']}" for row in ends)
    description = f"Mean share of the KV pool by what its slots hold, per cent; waste is hatched. {told}."
    return drawn("waste", title, description, build)


def _has_ledger(data: Dataset, group: Group) -> bool:
    return any(mean_ledger(group, engine.label) for engine in data.engines)


def level_figure(data: Dataset, workload: str, metric: Metric, width: int) -> Figure:
    """``metric`` against the load level of one workload, a line an engine; whiskers span the repeats."""
    figure_id = f"level-{data.workloads.index(workload)}-{metric.path.replace('.', '-').replace('_', '-')}"
    groups = data.levels(workload)
    rows: list[dict[str, Any]] = []
    table: list[list[str]] = []
    notes: list[str] = []
    for group in groups:
        for engine in data.engines:
            spread = metric.spread(group, engine.label)
            if engine.label in group.cells and not group.valid(engine.label):
                notes.append(f"{engine.label} is INVALID at {load_words(group.load)} and not drawn.")
            if spread.middle is None:
                continue
            rows.append(
                {"engine": engine.label, "level": load_level(group.load), "value": spread.middle}
                | {"low": spread.low, "high": spread.high}
            )
            shown = [metric.show(v) for v in (spread.middle, spread.low, spread.high)]
            table.append([load_words(group.load), engine.label, *shown])
    title = f"{metric.label}, {workload}"
    if not rows:
        return Figure(figure_id, title, "Not measured.", "", notes=[*notes, "Not measured in this run."])

    def build() -> scales.Layered:
        levels = sorted({row["level"] for row in rows})
        wide = scales.is_wide(levels[0], levels[-1]) or levels[-1] >= 8 * max(levels[0], 0.01)
        is_closed = groups[0].load.mode == "closed"
        across = alt.Axis(
            title=f"{'requests in flight' if is_closed else 'requests/s'}{' (log axis)' if wide else ''}",
            values=levels,
            labelExpr="'' + datum.value",  # a number format would round 16 to 20
            grid=False,
            domain=True,
        )
        kind = alt.Scale(type="log", base=2, nice=False) if wide else alt.Scale(zero=True)
        x = alt.X("level:Q", scale=kind, axis=across)
        unit = f"{metric.label}{f', {metric.unit}' if metric.unit == 'ms' else ''}"
        form = "%" if metric.show is percent else scales.plain(max(row["high"] for row in rows))
        up = scales.side_title(alt.Axis(title=unit, format=form, tickCount=5))
        y = alt.Y("value:Q", scale=alt.Scale(zero=True, nice=True), axis=up)
        base = alt.Chart(scales.values(rows))
        color = scales.color(data.engines)
        return alt.layer(
            base.mark_rule(strokeWidth=1.5).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=color),
            base.mark_line(strokeWidth=2).encode(x=x, y=y, color=color, strokeDash=scales.dash(data.engines)),
            base.mark_point(filled=True, size=60, opacity=1).encode(
                x=x, y=y, color=color, shape=scales.shape(data.engines)
            ),
        ).properties(width=width - scales.MARGIN, height=190)

    last = [r for r in rows if r["level"] == max(row["level"] for row in rows)]
    told = "; ".join(f"{r['engine']}: {metric.show(r['value'])}" for r in last)
    description = f"{metric.label} (up) against load (across), {_direction(metric)}. At the heaviest load: {told}."
    shown_table = Table(["load", "engine", "median", "lowest", "highest"], table)
    return drawn(figure_id, title, description, build, [(metric.label, shown_table)], notes)
