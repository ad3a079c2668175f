"""A figure of the page: a picture, what it shows in words, and the same data as a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from altair.utils.schemapi import debug_mode

from reports.charts.interactive import as_script, coloured, enliven
from reports.charts.svg import ChartError, render
from reports.columns import Floats
from reports.style import GRID, MUTED, TEXT

FONT_SIZE = 11
VEGA_LITE = "application/vnd.vegalite.v6+json"
VALIDATE = False  # the tests turn this on: each specification is then checked against the Vega-Lite schema


@dataclass(frozen=True)
class Table:
    """The data a figure draws; cells are text ready to show."""

    columns: list[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Figure:
    """``svg`` is empty when nothing could be drawn; ``notes`` then say why."""

    id: str
    title: str
    description: str
    svg: str
    tables: list[tuple[str, Table]] = field(default_factory=list)  # (caption, data)
    notes: list[str] = field(default_factory=list)
    spec: dict[str, Any] | None = field(default=None, repr=False)  # Vega-Lite, with the placeholder colours of style

    @property
    def live(self) -> str | None:
        """The specification for an interactive page as JSON that is safe inside ``<script>``; null without a picture."""
        return None if self.spec is None or not self.svg else as_script(enliven(self.spec))

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """What a notebook shows: the interactive chart in the light theme, the description where it cannot."""
        if self.spec is None:
            return {"text/plain": f"{self.title}: {' '.join(self.notes)}"}
        told = f"{self.title}. {self.description}"
        return {VEGA_LITE: json.loads(coloured(json.dumps(enliven(self.spec)), "light")), "text/plain": told}


def drawn(
    figure_id: str,
    title: str,
    description: str,
    build: Callable[[], Any],
    tables: Sequence[tuple[str, Table]] = (),
    notes: Sequence[str] = (),
) -> Figure:
    """The figure of the altair chart that ``build()`` gives.  Where it cannot be drawn, a note says why."""
    # altair checks every piece against the Vega-Lite schema as it is made; once, at the end of the whole, is enough.
    with debug_mode(False):
        spec = build().configure(**config()).to_dict(validate=VALIDATE)
    svg, problem = "", []
    try:
        svg = render(spec, figure_id)
    except ChartError as error:
        problem = [f"Not drawn: {error}. The data is not affected."]
    return Figure(figure_id, title, description, svg, list(tables), [*notes, *problem], spec)


def config() -> dict[str, Any]:
    """The one look of all charts."""
    axis = {
        "labelColor": MUTED,
        "titleColor": MUTED,
        "titleFontWeight": "normal",
        "labelFontSize": FONT_SIZE,
        "titleFontSize": FONT_SIZE,
        "gridColor": GRID,
        "domainColor": GRID,
        "tickColor": GRID,
        "ticks": False,
        "labelPadding": 5,
        "titlePadding": 7,
    }
    header = {
        "labelColor": TEXT,
        "labelFontSize": FONT_SIZE + 1,
        "labelFontWeight": 600,
        "labelPadding": 2,
        "title": None,
    }
    return {
        "background": "transparent",
        "axis": axis,
        "axisY": {"domain": False},
        "header": header,
        "view": {"stroke": None},
        "title": {"color": TEXT, "fontSize": FONT_SIZE + 1, "fontWeight": 600, "anchor": "start", "offset": 5},
        "font": "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif",
        "facet": {"spacing": 10},
        "concat": {"spacing": 14},
    }


def cells(values: Floats, decimals: int = 0) -> list[str]:
    """Numbers of a data table; a dash where one was not measured."""
    shown = np.char.mod(f"%.{decimals}f", np.where(np.isfinite(values), values, 0.0))
    return np.where(np.isfinite(values), shown, "–").tolist()
