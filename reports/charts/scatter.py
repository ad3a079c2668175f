"""Every request as a point: when it was sent and how long its first token took; the ones far off are named."""

from __future__ import annotations

from typing import Any, NamedTuple

import altair as alt
import numpy as np

from reports.charts import scales
from reports.charts.figure import Figure, Table, drawn
from reports.columns import Floats
from reports.dataset import Cell, Dataset, Group
from reports.style import TEXT
from reports.words import NULL_TEXT, count, number, plural

NS, NS_PER_MS = 1e9, 1e6
HEIGHT = 170  # px
# A request is far off when its TTFT lies this many interquartile ranges (of logarithms) above the upper quartile.
FAR_OFF = 3.0
NAMED = 3  # outliers named in the picture, per engine
LISTED = 12  # outliers in the table, per engine
MIN_REQUESTS = 8  # with fewer there is no telling what is usual


class Requests(NamedTuple):
    """The successful measured requests of a cell.  Units: position in the schedule, s, ms, ms, tokens."""

    position: Floats
    sent: Floats
    ttft: Floats
    e2e: Floats
    tokens: Floats

    def take(self, which: Any) -> Requests:
        return Requests(*(column[which] for column in self))


def requests_of(cell: Cell) -> Requests:
    """Requests of a cell that succeeded and whose times are sound; others are counted in the tables of the page."""
    names = ("request_index", "t_send", "t_first", "t_done", "output_tokens", "ok", "warmup")
    rows = cell.tables.requests.rows(cell.info.cell_id, names)
    send, first, done = (rows[name].astype(np.float64) for name in ("t_send", "t_first", "t_done"))
    ttft = (first - send) / NS_PER_MS
    kept = rows["ok"].astype(bool) & ~rows["warmup"].astype(bool) & np.isfinite(ttft) & (ttft > 0)
    found = Requests(
        rows["request_index"].astype(np.float64),
        (send - cell.origin) / NS,
        ttft,
        (done - send) / NS_PER_MS,
        rows["output_tokens"].astype(np.float64),
    )
    return found.take(kept)


def outliers(ttft: Floats) -> Any:
    """Positions of the requests that are far off, the slowest first."""
    if ttft.size < MIN_REQUESTS:
        return np.empty(0, dtype=np.int64)
    log = np.log(ttft)
    low, high = np.percentile(log, [25, 75])
    far = np.flatnonzero(log > high + FAR_OFF * max(high - low, 0.05))
    return far[np.argsort(-ttft[far], kind="stable")]


def scatter_figure(data: Dataset, group: Group, width: int, points: int) -> Figure:
    """TTFT of each request over the time it was sent; at most ``points`` a engine, outliers always among them."""
    figure_id = f"requests-{data.groups.index(group)}"
    rows: list[dict[str, Any]] = []
    named: list[dict[str, Any]] = []
    table: list[list[str]] = []
    notes: list[str] = []
    told: list[str] = []
    for engine in data.engines:
        valid = group.valid(engine.label)
        if group.cells.get(engine.label) and not valid:
            notes.append(f"{engine.label} is INVALID here and not drawn.")
        if not valid:
            continue
        found = requests_of(valid[0])
        far = outliers(found.ttft)
        n = found.ttft.size
        # Evenly over the schedule, so that the same run always shows the same requests.
        even = np.unique(np.linspace(0, n - 1, min(n, points)).round().astype(np.int64)) if n else np.empty(0, np.int64)
        order = np.argsort(found.sent, kind="stable")
        chosen = np.union1d(order[even], far[:LISTED]) if n else even
        rows += [
            {"engine": engine.label, "request": int(i), "t": round(float(t), 3), "y": float(f"{y:.4g}")}
            for i, t, y, *_ in zip(*found.take(chosen), strict=True)
        ]
        named += [
            {"engine": engine.label, "t": float(t), "y": float(y), "text": f"#{int(i)}"}
            for i, t, y, *_ in zip(*found.take(far[:NAMED]), strict=True)
        ]
        table += [
            [engine.label, f"#{int(i)}", f"{t:.2f}", number(y), number(e) if np.isfinite(e) else NULL_TEXT, count(k)]
            for i, t, y, e, k in zip(*found.take(far[:LISTED]), strict=True)
        ]
        shown = f", {chosen.size:,} drawn" if chosen.size < n else ""
        told.append(f"{engine.label}: {plural(n, 'request')}{shown}, {far.size:,} far off")
    title = f"Requests, {group.title}"
    if not rows:
        return Figure(figure_id, title, "Nothing was measured.", "", notes=[*notes, "Nothing was measured."])

    def build() -> scales.Layered:
        low, high = min(row["y"] for row in rows), max(row["y"] for row in rows)
        scale, up = scales.milliseconds(low, high, HEIGHT, 20)
        scales.side_title(up)
        x = alt.X("t:Q", axis=alt.Axis(title="sent at, seconds", grid=False, domain=True, tickCount=5, format=",~r"))
        y = alt.Y("y:Q", scale=scale, axis=up)
        dots = alt.Chart(scales.values(rows)).mark_point(filled=True, size=20, opacity=0.75)
        layers = [dots.encode(x=x, y=y, color=scales.color(data.engines), shape=scales.shape(data.engines))]
        names = _spread_out(named, low, high) if named else []
        middle = (min(row["t"] for row in rows) + max(row["t"] for row in rows)) / 2
        # A name stands on the side where the plot is, so that none runs into an axis.
        for is_late in (False, True):
            half = [row for row in names if (row["t"] > middle) is is_late]
            if half:
                words = alt.Chart(scales.values(half)).mark_text(
                    align="right" if is_late else "left", dx=-6 if is_late else 6, fontSize=10, color=TEXT
                )
                layers.append(words.encode(x=x, y=y, text="text:N"))
        return alt.layer(*layers).properties(width=width - scales.MARGIN, height=HEIGHT)

    description = f"TTFT of each request in ms (up) over the time it was sent (across). {'; '.join(told)}."
    tables = []
    if table:
        head = ["engine", "request", "sent, s", "TTFT, ms", "E2E, ms", "output tokens"]
        tables = [("Requests far off", Table(head, table))]
        notes.append("Named: the slowest of the requests far off; the number is the position in the schedule.")
    else:
        tables = [("Requests", Table(["engine", "far off"], [line.split(": ", 1) for line in told]))]
    return drawn(figure_id, title, description, build, tables, [*notes, f"{'; '.join(told)}."])


def _spread_out(named: list[dict[str, Any]], low: float, high: float) -> list[dict[str, Any]]:
    """The names that do not lie on each other: of two that are too close in height and time, the slower stays."""
    reach = max(high - low, 1e-9)
    ends = [row["t"] for row in named]
    span = max(max(ends) - min(ends), 1e-9)
    kept: list[dict[str, Any]] = []
    for row in sorted(named, key=lambda row: -float(row["y"])):
        near = (abs(row["y"] - k["y"]) / reach < 0.12 and abs(row["t"] - k["t"]) / span < 0.25 for k in kept)
        if not any(near):
            kept.append(row)
    return kept
