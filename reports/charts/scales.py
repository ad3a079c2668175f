"""Encodings shared by all charts: an engine's colour, dash and marker; axes that start at 0 or say that they do not."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import altair as alt

from reports.dataset import Engine
from reports.style import series_style

LABEL_LIMIT = 96  # px; longer engine names end in an ellipsis on axes, the legend and tables have them in full
Y_AXIS = 34  # px kept for the labels of a value axis, so that stacked strips line up
Layered = alt.LayerChart | alt.FacetChart

MARGIN = Y_AXIS + 20  # px of a chart's width that are not its plotting area
LOG_SPREAD = 40.0  # values that spread over more than this factor are drawn on a log axis


def color(engines: Sequence[Engine]) -> alt.Color:
    """Field ``engine`` to its colour."""
    styles = [series_style(e.index) for e in engines]
    scale = alt.Scale(domain=[e.label for e in engines], range=[s.color for s in styles])
    return alt.Color("engine:N", scale=scale, legend=None)


def dash(engines: Sequence[Engine]) -> alt.StrokeDash:
    """Field ``engine`` to its dash."""
    styles = [series_style(e.index) for e in engines]
    scale = alt.Scale(domain=[e.label for e in engines], range=[s.dash for s in styles])
    return alt.StrokeDash("engine:N", scale=scale, legend=None)


def shape(engines: Sequence[Engine]) -> alt.Shape:
    """Field ``engine`` to its marker."""
    styles = [series_style(e.index) for e in engines]
    scale = alt.Scale(domain=[e.label for e in engines], range=[s.marker for s in styles])
    return alt.Shape("engine:N", scale=scale, legend=None)


def values(rows: list[dict[str, Any]]) -> alt.InlineData:
    """Inline data, as one JSON string: altair copies and checks lists of rows cell by cell, which takes seconds."""
    return alt.InlineData(values=json.dumps(rows, allow_nan=False), format=alt.DataFormat(type="json"))


def plain(high: float) -> str:
    """Format of an axis of counts or rates up to ``high`` that fits the room its labels have."""
    return "~s" if high >= 20_000 else ",f"


def is_wide(low: float, high: float) -> bool:
    """Does the range need a log axis?"""
    return low > 0 and high / low > LOG_SPREAD


def log_ticks(low: float, high: float, pixels: int, label: int) -> list[float]:
    """Round values on a log axis of this length whose labels, ``label`` px each, do not touch."""
    decades = math.log10(high / low)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        closest = min(math.log10(b / a) for a, b in pairwise((*steps, 10)))
        if closest / decades * pixels >= label:
            break
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    return [round(tick, 9) for tick in ticks if low <= tick <= high]


def milliseconds(low: float, high: float, pixels: int, label: int) -> tuple[alt.Scale, alt.Axis]:
    """Scale and axis of a latency, ``pixels`` long; its title says so when it is logarithmic."""
    if is_wide(low, high):
        axis = alt.Axis(title="ms (log axis)", format=",~r", values=log_ticks(low, high, pixels, label))
        return alt.Scale(type="log", nice=False), axis
    return alt.Scale(zero=True, nice=True), alt.Axis(title="ms", format=",f", tickCount=5)


def side_title(axis: alt.Axis) -> alt.Axis:
    """The title of a vertical axis, written level above it instead of turned along it."""
    axis.titleAngle, axis.titleAlign, axis.titleBaseline = 0, "left", "bottom"
    axis.titleX, axis.titleY = -Y_AXIS, -9
    axis.minExtent = axis.maxExtent = Y_AXIS
    return axis
