"""The gate's page: one file, no script, no external reference; computed from the record alone, so the same record gives
the same bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape

from harness.results.gate import GateRecord, GateResult, PairRecord, RuleResult
from reports.gate_words import NONE, arm_words, percent, quantity, result_of, rows, settings_that_differ
from reports.shell import render_page

WIDTH = 1080
ROW = 34
LABEL = 210
RIGHT = 24
BADGES = {"PASS": "valid", "FAIL": "invalid", "INCONCLUSIVE": "suspect"}
MARKS = {"PASS": "M3 8.5l3 3 7-7", "FAIL": "M4 4l8 8M12 4l-8 8", "INCONCLUSIVE": "M4 8h8"}
MAX_PANELS = 12


class RunRow(NamedTuple):
    pair: str
    order: str
    arm: str
    values: list[str]
    state: str


def gate_page(record: GateRecord) -> str:
    """The whole page as HTML.  Raises ValueError for a record that was not judged."""
    result = result_of(record)
    drawn = [rule for rule in result.rules if rule.worse_by is not None and rule.bound is not None]
    context = {
        "record": record,
        "result": result,
        "reasons": _other_reasons(result),
        "badge": BADGES[result.verdict],
        "mark": MARKS[result.verdict],
        "rows": rows(result),
        "forest": Markup(draw_forest(drawn)) if drawn else None,
        "panels": [(rule, Markup(draw_pairs(rule, record.pairs))) for rule in drawn[:MAX_PANELS]],
        "panels_left_out": max(0, len(drawn) - MAX_PANELS),
        "cvs": [(rule.rule.label, percent(rule.baseline_cv).lstrip("+")) for rule in result.rules],
        "arms": [("baseline", arm_words(record.baseline)), ("candidate", arm_words(record.candidate))],
        "facts": _facts(record),
        "different": settings_that_differ(record),
        "rules": [rule.rule for rule in result.rules],
        "runs": _runs(record, result.rules[:6]),
        "workload": _workload(record),
    }
    return render_page("gate.html.j2", context)


def _other_reasons(result: GateResult) -> list[str]:
    """The reasons that no metric's own line already gives."""
    said = {f"{rule.rule.label}: {rule.reason}" for rule in result.rules}
    return [reason for reason in result.reasons if reason not in said]


def draw_forest(rules: Sequence[RuleResult]) -> str:
    """SVG: how much worse each metric is, with its interval, against its limit.  Zero is no change; right is worse."""
    ends = [_worse_ends(rule) for rule in rules]
    limits = [rule.rule.limit for rule in rules]
    reach = max(0.01, *(abs(x) for pair in ends for x in pair), *(1.3 * limit for limit in limits))
    reach = min(reach, 1.0)
    height = ROW * len(rules) + 56
    span = WIDTH - LABEL - RIGHT

    def at(share: float) -> float:
        return LABEL + span * (min(max(share, -reach), reach) + reach) / (2 * reach)

    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img" aria-label="Change of each metric">']
    for tick in _ticks(reach):
        parts.append(_line(at(tick), 8, at(tick), height - 40, "var(--text)" if tick == 0 else "var(--grid)"))
        parts.append(_text(at(tick), height - 22, percent(tick), "middle"))
    parts.append(_text(at(0), height - 5, "better   ←   no change   →   worse", "middle"))
    for i, (rule, (low, high)) in enumerate(zip(rules, ends, strict=True)):
        y = 8 + ROW * (i + 0.5)
        color = {"FAIL": "var(--bad)", "PASS": "var(--good)"}.get(rule.verdict, "var(--warn)")
        parts.append(_text(LABEL - 10, y + 4, rule.rule.label, "end"))
        parts.append(_line(at(low), y, at(high), y, color, 3))
        middle = at(rule.worse_by or 0.0)
        parts.append(f'<circle cx="{middle:.1f}" cy="{y:.1f}" r="5" fill="{color}" stroke="var(--surface)">')
        parts.append(f"<title>{escape(rule.rule.label)}: {escape(rule.reason)}</title></circle>")
        x = at(rule.rule.limit)
        parts.append(_line(x, y - 12, x, y + 12, "var(--slo)", 2, "4 2"))
        bound = at(rule.bound or 0.0)
        parts.append(f'<path d="M{bound:.1f} {y - 6:.1f}l7 6l-7 6" fill="none" stroke="{color}" stroke-width="2"/>')
    parts.append("</svg>")
    return "".join(parts)


def _worse_ends(rule: RuleResult) -> tuple[float, float]:
    """The interval turned so that more is worse."""
    low = rule.low if rule.low is not None else rule.change or 0.0
    high = rule.high if rule.high is not None else rule.change or 0.0
    if rule.rule.better == "lower":
        return low, high
    return 1 / max(1e-6, 1 + high) - 1, 1 / max(1e-6, 1 + low) - 1


def draw_pairs(rule: RuleResult, pairs: Sequence[PairRecord]) -> str:
    """SVG: each pair's change, turned so that up is worse, in the order in which the pairs were made."""
    shares = []
    for pair in pairs:
        a, b = (sample.values.get(rule.rule.key) for sample in (pair.baseline, pair.candidate))
        if pair.is_void or not a or not b:
            continue
        shares.append((pair.order, (b / a if rule.rule.better == "lower" else a / b) - 1))
    width, height = 340, 150
    reach = max(0.01, 1.3 * rule.rule.limit, *(min(1.0, abs(share)) for _, share in shares)) if shares else 0.01

    def y(share: float) -> float:
        return 12 + (height - 34) * (1 - (min(max(share, -reach), reach) + reach) / (2 * reach))

    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="Pairs of {escape(rule.rule.label)}">'
    ]
    parts.append(_line(56, y(0), width - 6, y(0), "var(--grid)", 1))
    parts.append(_line(56, y(rule.rule.limit), width - 6, y(rule.rule.limit), "var(--slo)", 1.5, "4 2"))
    parts.extend(_text(51, y(value) + 4, percent(value), "end") for value in (0.0, rule.rule.limit))
    step = (width - 76) / max(1, len(shares))
    for i, (order, share) in enumerate(shares):
        x = 66 + step * i
        title = f"<title>pair {i + 1} ({order}): {percent(share)}</title>"
        if order == "AB":
            parts.append(f'<circle cx="{x:.1f}" cy="{y(share):.1f}" r="3.6" fill="var(--s1)">{title}</circle>')
        else:
            parts.append(
                f'<rect x="{x - 3.3:.1f}" y="{y(share) - 3.3:.1f}" width="6.6" height="6.6" fill="var(--s2)">{title}</rect>'
            )
    parts.append(_text(width - 6, height - 6, f"{len(shares)} pairs in time order", "end"))
    parts.append("</svg>")
    return "".join(parts)


def _ticks(reach: float) -> list[float]:
    raw = reach / 3
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    count = math.floor(reach / step)
    return [round(i * step, 12) for i in range(-count, count + 1)]


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1, dash: str = "") -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width}"{dashes}/>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" fill="var(--muted)">{escape(words)}</text>'


def _facts(record: GateRecord) -> list[tuple[str, str]]:
    names = dict.fromkeys([*record.baseline.facts, *record.candidate.facts])
    found = []
    for name in names:
        if name == "settings":
            continue
        a, b = (str(info.facts.get(name, NONE)) for info in (record.baseline, record.candidate))
        found.append((name, a if a == b else f"{a} → {b}"))
    return found


def _workload(record: GateRecord) -> list[tuple[str, str]]:
    return [(name, _short(value)) for name, value in record.workload.items()]


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {str(part)[:12]}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(_short(part) for part in value)
    return str(value)


def _runs(record: GateRecord, rules: Sequence[RuleResult]) -> list[RunRow]:
    found = []
    for pair in record.pairs:
        for sample in (pair.baseline, pair.candidate) if pair.order == "AB" else (pair.candidate, pair.baseline):
            values = [quantity(sample.values.get(rule.rule.key), rule.rule.unit) for rule in rules]
            number = f"{pair.index + 1}" + (f" (attempt {pair.attempt + 1})" if pair.attempt else "")
            found.append(RunRow(number, pair.order, sample.arm, values, "; ".join(sample.void) or "counts"))
    return found
