"""The page of a gate history: each metric from gate to gate with its steps; one file, no script."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from harness.results.gate import Trend
from reports.gate_words import percent, quantity
from reports.shell import render_page

WIDTH, HEIGHT = 520, 190
LEFT, RIGHT, TOP, BOTTOM = 66, 12, 12, 26
COLORS = {"FAIL": "var(--bad)", "PASS": "var(--good)"}


def history_page(trends: Sequence[Trend], gates: int) -> str:
    """The whole page as HTML; the same history gives the same bytes."""
    steps = sorted(
        ((step, trend) for trend in trends for step in trend.steps),
        key=lambda found: found[0].created_utc,
        reverse=True,
    )
    context = {
        "gates": gates,
        "panels": [(trend, Markup(draw(trend))) for trend in trends],
        "steps": [
            (trend.label, percent(step.share), step.label, step.created_utc, _is_worse(trend, step.share))
            for step, trend in steps
        ],
        "needs": [_need(trend, trend.pair_spread) for trend in trends if trend.pair_spread is not None],
        "quantity": quantity,
    }
    return render_page("history.html.j2", context)


def _need(trend: Trend, spread: float) -> tuple[str, str, str, str]:
    pairs = "more than 200" if trend.pairs_needed is None else str(trend.pairs_needed)
    return trend.label, percent(spread).lstrip("+"), f"{200 * trend.limit:.0f} %", pairs


def _is_worse(trend: Trend, share: float) -> bool:
    return (share < 0) == (trend.better == "higher")


def draw(trend: Trend) -> str:
    """SVG: one dot a gate (square: the gate failed), a line for each level, a dashed line at each step."""
    values = [point.value for point in trend.points]
    low, high = min(values), max(values)
    margin = max((high - low) * 0.15, abs(high) * 0.01, 1e-12)
    low, high = low - margin, high + margin
    step = (WIDTH - LEFT - RIGHT) / max(1, len(values) - 1)

    def x(i: float) -> float:
        return LEFT + step * i

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="Trend of {escape(trend.label)}">'
    ]
    for value in (low + margin, high - margin):
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="var(--grid)"/>'
        )
        parts.append(_text(LEFT - 6, y(value) + 4, f"{value:.4g}", "end"))
    for change in trend.steps:
        at = x(change.index - 0.5)
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="var(--slo)" stroke-dasharray="4 3"/>'
        )
        parts.append(_text(at + 4, TOP + 10, percent(change.share), "start"))
    for i, point in enumerate(trend.points):
        color = COLORS.get(point.verdict, "var(--warn)")
        title = (
            f"<title>{escape(point.label)} ({escape(point.created_utc)}): {point.value:.4g}, {point.verdict}</title>"
        )
        if point.verdict == "FAIL":
            parts.append(
                f'<rect x="{x(i) - 4:.1f}" y="{y(point.value) - 4:.1f}" width="8" height="8" fill="{color}">{title}</rect>'
            )
        else:
            parts.append(f'<circle cx="{x(i):.1f}" cy="{y(point.value):.1f}" r="3.8" fill="{color}">{title}</circle>')
    parts.append(_text(LEFT, HEIGHT - 8, trend.points[0].label[:24], "start"))
    if len(values) > 1:
        parts.append(_text(WIDTH - RIGHT, HEIGHT - 8, trend.points[-1].label[:24], "end"))
    parts.append("</svg>")
    return "".join(parts)


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="11" fill="var(--muted)">{escape(words)}</text>'
