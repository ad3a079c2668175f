"""The page of ``pagedbench paper``: every simulated number beside the paper's, the curves, and the ledger over time.

It takes the command's JSON document and computes nothing but shares and text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np

from reports.charts import scales
from reports.charts.figure import Figure, Table, drawn
from reports.charts.memory import STRIP, Found, Stack
from reports.shell import render_page
from reports.style import LEDGER, series_style
from reports.words import number

WIDTH, HEIGHT = 940, 230


def render_paper_page(document: Mapping[str, Any]) -> str:
    """The whole page as HTML."""
    sections = [
        {
            "figure": figure,
            "rows": [_row(row) for row in figure["rows"]],
            "charts": [curves(figure)] if figure["series"] else [],
        }
        for figure in document["figures"]
    ]
    if document["timelines"]:
        sections[0]["charts"] = [ledgers(document["timelines"])]
    off = [row for figure in document["figures"] for row in figure["rows"] if row["within"] is False]
    return render_page("paper.html.j2", {"document": document, "sections": sections, "off": off})


def _row(row: Mapping[str, Any]) -> dict[str, str]:
    deviation = row["deviation"]
    return {
        "case": row["case"],
        "quantity": row["quantity"].replace("_", " "),
        "ours": number(row["ours"], 4),
        "paper": number(row["paper"], 4),
        "deviation": number(deviation, 2) if deviation is None or deviation <= 0 else "+" + number(deviation, 2),
        "unit": row["unit"],
        "tolerance": row["tolerance"],
        "kind": row["kind"],
        "verdict": {True: "within", False: "OFF", None: ""}[row["within"]],
    }


def curves(figure: Mapping[str, Any]) -> Figure:
    """The lines of one figure."""
    rows = [
        {"name": line["name"], "x": x, "y": y} for line in figure["series"] for x, y in line["points"] if y is not None
    ]
    names = [line["name"] for line in figure["series"]]
    looks = [series_style(index) for index in range(len(names))]

    def build() -> scales.Layered:
        colour = alt.Color("name:N", scale=alt.Scale(domain=names, range=[look.color for look in looks]), legend=None)
        dash = alt.StrokeDash("name:N", scale=alt.Scale(domain=names, range=[look.dash for look in looks]), legend=None)
        shape = alt.Shape("name:N", scale=alt.Scale(domain=names, range=[look.marker for look in looks]), legend=None)
        across = alt.X(
            "x:Q",
            scale=alt.Scale(type="log", base=2) if figure.get("log_x") else alt.Scale(zero=True),
            axis=alt.Axis(title=figure["x"], format=",~r", grid=False, domain=True),
        )
        up_scale = alt.Scale(type="log") if figure.get("log_y") else alt.Scale(zero=True, domainMax=_top(figure, rows))
        up = alt.Y("y:Q", scale=up_scale, axis=scales.side_title(alt.Axis(title=figure["y"], tickCount=5)))
        base = alt.Chart(scales.values(rows)).encode(x=across, y=up, color=colour)
        points = base.mark_point(filled=True, size=34, opacity=1, clip=True).encode(shape=shape)
        return alt.layer(base.mark_line(clip=True).encode(strokeDash=dash), points).properties(
            width=WIDTH - scales.MARGIN, height=HEIGHT
        )

    tables = [
        (line["name"], Table([figure["x"], figure["y"]], [[number(x, 4), number(y, 4)] for x, y in line["points"]]))
        for line in figure["series"]
    ]
    description = f"{figure['y']} (up) over {figure['x']} (across): {', '.join(names)}."
    keys = " ".join(f"{look.marker}: {name}." for name, look in zip(names, looks, strict=True))
    return drawn(
        figure["figure"].replace(" ", "-").replace(".", ""), figure["title"], description, build, tables, [keys]
    )


def _top(figure: Mapping[str, Any], rows: list[dict[str, Any]]) -> float:
    """Far beyond the knee a curve says only that the queue grows: cut a latency axis where the paper does, at 1 s/token."""
    highest = max((row["y"] for row in rows), default=1.0)
    return min(1.0, highest) if figure["y"] == "s/token" else highest


def ledgers(timelines: Mapping[str, list[Any]]) -> Figure:
    """One stacked strip a policy."""
    shown: list[tuple[str, Stack]] = []
    for policy, points in timelines.items():
        if not points:
            continue
        t = np.array([at for at, _ in points])
        slots = np.array([[words[word.name] for word in LEDGER] for _, words in points], dtype=float)
        pool = float(slots[0].sum())
        shown.append((policy, Stack(LEDGER, t, list(slots.T / pool), pool, 1, None)))
    end = max(float(found.t[-1]) for _, found in shown)

    def build() -> alt.VConcatChart:
        return alt.vconcat(*Found(shown, []).strips(WIDTH, end)).properties(spacing=8)

    tables = [
        (
            f"{label}, % of the pool",
            Table(
                ["s", *(word.label for word in LEDGER)],
                [
                    [number(float(t), 4), *(number(100 * float(layer[index]), 3) for layer in found.layers)]
                    for index, t in enumerate(found.t)
                ],
            ),
        )
        for label, found in shown
    ]
    words = ", ".join(word.label for word in LEDGER)
    return drawn(
        "ledger",
        "KV memory over virtual time, by policy",
        f"Share of the KV pool (up, {STRIP} px a policy) over seconds (across). From the bottom: {words}.",
        build,
        tables,
        [f"From the bottom: {words}; hatched is waste. All requests wait from the start."],
    )
