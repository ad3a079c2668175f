"""The page of ``pagedbench kernels``: the roofline of one device with every measured kernel in it, and the tables behind it.

One file, no script, no external reference.  It takes the JSON document of ``pagedbench kernels`` (or the one that
``tests/gpu/bench_all.py`` writes, whose extra stages it shows too) and computes nothing but positions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from reports.shell import render_page

WIDTH, HEIGHT = 1080, 460
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 16, 48
# Series of the picture, by kernel name; other kernels are drawn as "other peer".
OURS, UNPAGED = "triton", "sdpa, K/V contiguous"
LOOKS = {OURS: ("s1", "circle"), UNPAGED: ("s7", "diamond")}
PEER_LOOK = ("s2", "square")


class Axis(NamedTuple):
    """A logarithmic axis from ``low`` to ``high`` over ``length`` pixels from ``start``."""

    low: float
    high: float
    start: float
    length: float

    def at(self, value: float) -> float:
        """Pixel of ``value``."""
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * self.length

    def ticks(self) -> list[float]:
        """Powers of ten inside the axis."""
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        return [10.0**power for power in range(first, last + 1)]


def render_kernels_page(results: Mapping[str, Any]) -> str:
    """The whole page as HTML."""
    rows = list(results["attention"]["rows"]) if isinstance(results.get("attention"), Mapping) else []
    timed = [row for row in rows if "timing" in row]
    ceilings = results.get("ceilings")
    has_roof = isinstance(ceilings, Mapping) and bool(timed)
    skipped: dict[str, list[str]] = {}
    for row in rows:
        if "skipped" in row:
            skipped.setdefault(f"{row['kernel']}: {row['skipped']}", []).append(row["case"])
    first = next((row for row in timed if row["kernel"] == OURS and "share_of_copy" in row), None)
    context = {
        "results": results,
        "rows": [row for row in rows if "skipped" not in row],
        "first": first,
        "skipped": skipped,
        "num_cases": len({row["case"] for row in rows}),
        "ceilings": ceilings if isinstance(ceilings, Mapping) else None,
        "versus": results["attention"]["against_peers"] if rows else None,
        "checks": results.get("check") or [],
        "steps": results["steps"] if isinstance(results.get("steps"), list) else [],
        "serving": results["serving"] if isinstance(results.get("serving"), Mapping) else None,
        "not_measured": results.get("not_measured", []),
        "roofline": Markup(draw_roofline(timed, ceilings)) if has_roof and isinstance(ceilings, Mapping) else None,
    }
    return render_page("kernels.html.j2", context)


def draw_roofline(rows: list[Mapping[str, Any]], ceilings: Mapping[str, float]) -> str:
    """SVG: achieved FLOP/s over operations a byte; the roof is what this device reached in a copy and in a product."""
    copy, product = ceilings["copy_bytes_per_s"], ceilings["bf16_matmul_flop_per_s"]
    intensity = [row["flops"] / row["min_bytes"] for row in rows]
    rates = [row["flop_per_s"] for row in rows]
    x = Axis(min(intensity) / 2, max(*intensity, 2 * product / copy) * 2, LEFT, WIDTH - LEFT - RIGHT)
    y = Axis(min(*rates, copy * x.low) / 2, product * 2, HEIGHT - BOTTOM, TOP + BOTTOM - HEIGHT)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="Roofline">']
    parts.extend(_grid(x, y))
    ridge = product / copy
    roof = [(x.low, copy * x.low), (ridge, product), (x.high, product)]
    points = " ".join(f"{x.at(a):.1f},{y.at(b):.1f}" for a, b in roof)
    parts.append(f'<polyline points="{points}" fill="none" stroke="var(--text)" stroke-width="2"/>')
    parts.append(_text(x.at(ridge / 6) - 8, y.at(copy * ridge / 6) - 4, f"copy, {copy / 1e12:.2f} TB/s", "end"))
    parts.append(_text(x.at(x.high) - 4, y.at(product) - 8, f"bf16 product, {product / 1e12:.0f} TFLOP/s", "end"))
    # Ours last, so that it lies on top.
    for row in sorted(rows, key=lambda row: row["kernel"] == OURS):
        where = x.at(row["flops"] / row["min_bytes"]), y.at(row["flop_per_s"])
        parts.append(_mark(row, *where))
    parts.append("</svg>")
    return "".join(parts)


def _grid(x: Axis, y: Axis) -> list[str]:
    lines = []
    for tick in x.ticks():
        at = x.at(tick)
        lines.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="var(--grid)"/>')
        lines.append(_text(at, HEIGHT - BOTTOM + 18, f"{tick:g}", "middle"))
    for tick in y.ticks():
        at = y.at(tick)
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="var(--grid)"/>')
        lines.append(_text(LEFT - 8, at + 4, f"{tick / 1e12:g}", "end"))
    lines.append(_text(WIDTH / 2, HEIGHT - 8, "operations a byte that must be moved", "middle"))
    lines.append(_text(LEFT - 56, TOP + 4, "TFLOP/s", "start"))
    return lines


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" fill="var(--muted)">{escape(words)}</text>'


def _mark(row: Mapping[str, Any], x: float, y: float) -> str:
    color, shape = LOOKS.get(row["kernel"], PEER_LOOK)
    label = f"{row['case']}, {row['kernel']}: {row['timing']['median_us']:.1f} us, {row['bytes_per_s'] / 1e12:.2f} TB/s"
    style = f'fill="var(--{color})" stroke="var(--surface)"'
    if shape == "circle":
        body = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5" {style}>'
        return f"{body}<title>{escape(label)}</title></circle>"
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if shape == "diamond" else ""
    body = f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" {style}{turn}>'
    return f"{body}<title>{escape(label)}</title></rect>"
